"""The report of a pipeline: one HTML file that holds its pictures, to look at, to mail, to keep.

What there is to show goes in; what is missing (a stage without plots, a report without scores) is left out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.viz.html import composition_tables, picture, write_page
from t2i.viz.progress import clock
from t2i.viz.tables import Table

_METRICS = 12  # last values shown for a stage
PLOTS = {"scores": "scores by step", "codebook": "use of the codebook", "loss": "losses and the rest by step"}


def _last_grids(run_dir: Path) -> list[tuple[str, Path]]:
    """The newest grid of each name: `<name>-<step>.png`."""
    newest: dict[str, Path] = {}
    for path in sorted((run_dir / "grids").glob("*-[0-9]*.png")):
        newest[path.stem.rpartition("-")[0]] = path
    return [(f"{name}, step {int(path.stem.rpartition('-')[2])}", path) for name, path in newest.items()]


def _stage(stage: Mapping[str, Any]) -> dict[str, Any]:
    run_dir, facts = Path(stage["run_dir"]), []
    if stage.get("seconds") is not None:
        facts.append(f"{clock(stage['seconds'])} min")
    if stage.get("steps") is not None:
        facts.append(f"{stage['steps']} steps")
    values = {name: value for name, value in (stage.get("metrics") or {}).items() if name.startswith("val/")}
    metrics = [(name, f"{value:.4g}") for name, value in values.items()]
    shown = _last_grids(run_dir)
    shown += [(caption, path) for name, caption in PLOTS.items()
              if (path := run_dir / "plots" / f"{name}.png").is_file()]
    return {"name": stage["name"], "command": stage.get("command"), "facts": [*facts, str(run_dir)],
            "metrics": Table("", ["at the last validation", ""], metrics[:_METRICS]) if metrics else None,
            "pictures": [picture(path, caption) for caption, path in shown]}


def write_report(
    folder: str | Path,
    stages: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any] | None = None,
    grids: Sequence[tuple[str, str | Path]] = (),
    next_commands: Sequence[str] = (),
    title: str = "From captions to pictures",
    notes: Sequence[str] = (),
    tables: Sequence[Table] = (),
) -> Path:
    """Writes `<folder>/report.html` and returns its path.

    Args:
        stages: in order; each with `name`, `run_dir`, and where known `command`, `seconds`, `steps`, `metrics`. Plots
            and the newest grids are taken from the run folder.
        scores: {split: {kind: {task: share}}}, as `t2i.evaluation.evaluate` gives under `composition`.
        tables: of other scores.
        grids: (caption, PNG) shown at the top.
        next_commands: what to try next.
        notes: lines under the title (hardware, sampler, protocol).
    """
    timed = [(stage["name"], stage["seconds"]) for stage in stages if stage.get("seconds") is not None]
    total = sum(seconds for _, seconds in timed)
    times = Table("", ["stage", "min:s"], [(name, clock(seconds)) for name, seconds in timed])
    return write_page(
        Path(folder) / "report.html", "report.html", title=title, date=time.strftime("%Y-%m-%d %H:%M"),
        spent=clock(total) if total else "", notes=notes, grids=[picture(Path(path), text) for text, path in grids],
        scores=composition_tables(scores) if scores else [], tables=tables, next_commands=next_commands,
        times=times if len(stages) > 1 else None, stages=[_stage(stage) for stage in stages])
