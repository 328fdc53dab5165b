"""`compare.html`: one file that holds table, curves and pictures, readable on a phone too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.evaluation.compare.images import ORIGINALS, Sheet
from t2i.evaluation.compare.runs import Run
from t2i.evaluation.compare.tables import Column, footnotes
from t2i.viz.html import picture, write_page
from t2i.viz.plots import COLOURS, COSTS, Line, by_metric, sheet
from t2i.viz.tables import Table

SMALL = 128  # pixels: smaller pictures are enlarged by whole pixels, unsmoothed
LINE_DASHES = ("", "7 3", "2 2", "7 3 2 3")  # as `plots.DASHES`


def line_style(k: int) -> dict[str, str]:
    """Colour and dashes of the k-th run's line."""
    return {"colour": COLOURS[k % len(COLOURS)], "dash": LINE_DASHES[k // len(COLOURS) % len(LINE_DASHES)]}


def shared(runs: Sequence[Run]) -> list[str]:
    """The metrics that at least two runs have, validation's first, the total loss first of each."""
    names = list(dict.fromkeys(name for run in runs for name in run.series if name not in COSTS))
    both = [name for name in names if sum(name in run.series for run in runs) > 1]
    ordered = [name for group in by_metric(both).values() for name in group]
    return sorted(ordered, key=lambda name: not name.startswith("val/"))


def curves(runs: Sequence[Run]) -> dict[str, bytes]:
    """A PNG a shared metric, a line a run; a run's colour is its place among the runs."""
    made = {}
    for name in shared(runs):
        lines = [Line(run.label, *run.series[name], k, k // len(COLOURS))
                 for k, run in enumerate(runs) if name in run.series]
        made[name] = sheet({name: lines}, width=3.3, height=2.3, legend=False, dpi=130)
    return made


def _sheet(made: Sheet, labels: Sequence[str]) -> dict[str, Any]:
    columns = []
    for label, (images, under) in made.columns.items():
        values = [float(line.removesuffix(" dB")) for line in under if line.endswith(" dB")]
        columns.append({
            "label": label, "line": line_style(labels.index(label)) if label in labels else None,
            "mean": f"mean {sum(values) / len(values):.1f} dB" if values else "",
            "pictures": [picture(image, f"{label}: {text}", SMALL)
                         for image, text in zip(images, made.texts, strict=True)],
            "under": [""] * len(under) if label == ORIGINALS else under})
    return {"title": made.title, "notes": made.notes, "texts": made.texts, "columns": columns}


def write(
    path: Path, runs: Sequence[Run], made: Sequence[Column], rest: Mapping[str, Sequence[str]],
    charts: Mapping[str, bytes], sheets: Sequence[Sheet], notes: Sequence[str], commands: Sequence[str],
    facts: Sequence[str], date: str,
) -> Path:
    """Writes the whole page.

    Args:
        made, rest: columns of the table, and the settings that are not among them.
        charts: metric -> PNG.
        notes: what a reader must know before the numbers.
        commands, facts: how to do it again, and on what it was done.
    """
    labels = [run.label for run in runs]
    scored = ("Scores are those of evaluation.json, with their intervals; bold is better than all others beyond them."
              if any(run.evaluation for run in runs) else "No run has an evaluation.json: evaluate.py measures scores.")
    validated = {name: data for name, data in charts.items() if name.startswith("val/")}
    return write_page(
        path, "compare.html", title=f"{len(runs)} runs side by side", date=date, labels=labels, notes=notes,
        columns=made, footnotes=footnotes(made), lines=[line_style(k) for k in range(len(runs))], scored=scored,
        more=Table("", ["setting", *labels], [[key, *values] for key, values in rest.items()]),
        sheets=[_sheet(one, labels) for one in sheets], several_kinds=len({run.kind for run in runs}) > 1,
        validated=[picture(data, name) for name, data in validated.items()],
        trained=[picture(data, name) for name, data in charts.items() if name not in validated],
        commands=commands, facts=facts)
