"""Curves of `metrics.csv`, without a display: `python -m t2i plot runs/a [runs/b …]` draws them anew for any run.

Into `<run>/plots/` go `codebook.png` (usage and perplexity of a tokenizer's codes, a colour a factor), `scores.png`
(what validation measures beside losses: PSNR, composition, retrieval, distances) and `loss.png` (all the rest). A file
that would be empty is not written. Matplotlib (Agg) is imported on first use.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ABOUT = """
python -m t2i plot runs/quickstart/vqgan     plots/loss.png, codebook.png, scores.png from the run's metrics.csv
python -m t2i plot runs/a runs/b             the same for each
"""
# Okabe and Ito's, told apart by people of any colour vision; without their yellow, which is faint on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))  # for more lines than colours
NO_SCORE = {"loss", "gap", "logits", "lambda", "penalty", "commitment", "codebook", "skipped", "scale"}
CODEBOOK = re.compile(r"(train|val)/codebook_(usage|perplexity)(?:_(\d+))?")
MANY = 400  # points of a line; more are averaged
DPI = 100

Series = Mapping[str, tuple[Sequence[int], Sequence[float]]]


@dataclass(frozen=True)
class Line:
    """One curve of a chart; colour and dash are numbers of `COLOURS` and `DASHES`, None for the chart's next."""

    label: str
    steps: Sequence[int]
    values: Sequence[float]
    colour: int | None = None
    dash: int = 0


def read_metrics(path: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The steps and values of each column of a `metrics.csv`; empty cells are skipped."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = csv.DictReader(file)
            if rows.fieldnames is not None and "step" not in rows.fieldnames:
                raise ValueError("it has no column step")
            for row in rows:
                if not (row.get("step") or "").lstrip("-").isdecimal():
                    continue  # a line cut off by a kill
                for name, cell in row.items():
                    if name in (None, "step", "epoch") or not cell:
                        continue
                    steps, values = series.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(cell))
    except (ValueError, csv.Error, TypeError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    return series


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over equal runs of points, so that a long noisy curve stays readable."""
    every = max(1, math.ceil(len(values) / MANY))
    parts = [slice(i, i + every) for i in range(0, len(values), every)]
    return [sum(steps[p]) / len(steps[p]) for p in parts], [sum(values[p]) / len(values[p]) for p in parts]


# What scores while training cost: in metrics.csv, but no curve to look at.
COSTS = ("val/score_n", "val/score_seconds", "val/score_share")


def is_score(name: str) -> bool:
    """Whether a metric is one of validation that says how good a model is, beside losses and their parts."""
    where, _, rest = name.partition("/")
    return where == "val" and bool(rest) and not NO_SCORE & set(re.split(r"[/_]", rest))


def by_metric(names: Sequence[str]) -> dict[str, list[str]]:
    """Panels by the name without its `train/` or `val/`, the total loss first."""
    found: dict[str, list[str]] = {}
    for name in names:
        _, slash, rest = name.partition("/")
        found.setdefault(rest if slash else name, []).append(name)
    order = sorted(found, key=lambda key: (key != "loss", not key.startswith("loss"), key))
    return {key: found[key] for key in order}


def shares(names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Which metrics go into loss.png, codebook.png and scores.png; a score's own training curve goes with it."""
    names = [name for name in names if name not in COSTS]
    codebook = [name for name in names if CODEBOOK.fullmatch(name)]
    scored = {name.partition("/")[2] for name in names if is_score(name)}
    scores = [name for name in names if name.partition("/")[2] in scored]
    return [name for name in names if name not in {*codebook, *scores}], codebook, scores


def is_log(values: Sequence[float]) -> bool:
    """Whether an axis is logarithmic: every finite value positive, the largest at least twenty times the smallest."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) >= 20 * min(finite)


def chart(axes: Any, title: str, lines: Sequence[Line], legend: bool = True) -> None:
    """Draws lines into matplotlib axes, the horizontal axis in steps."""
    shown: list[float] = []
    for k, line in enumerate(lines):
        steps, values = _thinned(line.steps, line.values)
        shown += values
        mark = "o" if len(values) < 30 else None
        colour = COLOURS[(k if line.colour is None else line.colour) % len(COLOURS)]
        axes.plot(steps, values, label=line.label, color=colour, linestyle=DASHES[line.dash % len(DASHES)],
                  marker=mark, markersize=3, linewidth=1.3)
    if is_log(shown):
        axes.set_yscale("log")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8, which="both")
    axes.grid(alpha=0.3)
    if legend:
        axes.legend(fontsize=8, handlelength=3.2)


def sheet(panels: Mapping[str, Sequence[Line]], across: int = 3, width: float = 4.6, height: float = 2.9,
          legend: bool = True, dpi: int = DPI) -> bytes:
    """A PNG of panels, title -> lines, `across` in a row, each `width` x `height` inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(across, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure: Figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for k, (title, lines) in enumerate(panels.items()):
        chart(figure.add_subplot(rows, columns, k + 1), title, lines, legend)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=dpi)
    return held.getvalue()


def _panels(series: Series, groups: Mapping[str, Sequence[str]]) -> dict[str, list[Line]]:
    panels = {}
    for title, names in groups.items():
        places = [name.partition("/")[0] if "/" in name else name for name in names]
        # Training and validation keep their colours from panel to panel, unless a group has several of a kind.
        fixed = {"train": 0, "val": 1} if len(set(places)) == len(places) else {}
        panels[title] = [Line(place, *series[name], fixed.get(place, k))
                         for k, (place, name) in enumerate(zip(places, names, strict=True))]
    return panels


def codebook_panels(series: Series, names: Sequence[str]) -> dict[str, list[Line]]:
    """Usage and perplexity of the codes, a colour a factor, validation drawn through and training dashed."""
    panels: dict[str, list[Line]] = {}
    for name in names:
        found = CODEBOOK.fullmatch(name)
        assert found is not None
        split, what, factor = found.groups()
        label = split if factor is None else f"factor {factor}, {split}"
        title = {"usage": "codebook usage (share of the codes)", "perplexity": "codebook perplexity"}[what]
        panels.setdefault(title, []).append(Line(label, *series[name], int(factor or 1) - 1, int(split == "train")))
    return dict(sorted(panels.items(), reverse=True))


def score_panels(series: Series, names: Sequence[str]) -> dict[str, list[Line]]:
    """Validation's scores over time, the tasks of the composition score in one panel."""
    tasks = [name for name in names if name.startswith("val/composition_")]
    lines = [Line(name.removeprefix("val/composition_"), *series[name], k, k // len(COLOURS))
             for k, name in enumerate(tasks)]
    composition = {"composition (share of pictures that are right)": lines} if lines else {}
    return composition | _panels(series, by_metric([name for name in names if name not in tasks]))


def plot_run(run_dir: Path, groups: dict[str, list[str]] | None = None) -> list[Path]:
    """Writes a run's plots from its `metrics.csv`, and returns those that there was something for.

    In `loss.png` a panel holds what differs only in `train/` and `val/`; `groups` (title -> columns) instead may name
    any column.
    """
    from t2i.checkpoint.atomic import write_bytes

    path = run_dir / "metrics.csv"
    if not path.is_file():
        raise ValueError(f"{run_dir} has no metrics.csv: it is no run folder, or nothing was logged yet")
    series = read_metrics(path)
    if unknown := sorted({name for names in (groups or {}).values() for name in names} - set(series)):
        raise ValueError(f"{path} has no columns {', '.join(unknown)}; it has {', '.join(sorted(series))}")
    losses, codebook, scores = shares(list(series))
    plots = {"loss": _panels(series, by_metric(losses) if groups is None else groups),
             "codebook": codebook_panels(series, codebook), "scores": score_panels(series, scores)}
    return [write_bytes(run_dir / "plots" / f"{name}.png", sheet(panels)) for name, panels in plots.items() if panels]


def run(words: Sequence[str]) -> None:
    """Draws the plots of the run folders named."""
    for word in words:
        if not Path(word).is_dir():
            raise ValueError(f"{word} is no folder; python -m t2i plot takes run folders and no options")
        made = plot_run(Path(word))
        print("\n".join(map(str, made)) if made else f"{word}: metrics.csv holds nothing to draw yet")
