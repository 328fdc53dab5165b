"""The report of a pipeline: one HTML file that holds its pictures, to look at, to mail, to keep.

What there is to show goes in; what is missing (a stage without plots, a report without scores) is left out.
"""

from __future__ import annotations

import html
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.viz.grids import write_bytes
from t2i.viz.html import document, picture, score_table, table
from t2i.viz.progress import clock

_METRICS = 12  # last values shown for a stage













def _last_grids(run_dir: Path) -> list[tuple[str, Path]]:
    """The newest grid of each name: `<name>-<step>.png`."""
    newest: dict[str, Path] = {}
    for path in sorted((run_dir / "grids").glob("*-[0-9]*.png")):
        newest[path.stem.rpartition("-")[0]] = path
    return [(f"{name}, step {int(path.stem.rpartition('-')[2])}", path) for name, path in newest.items()]


def _stage(stage: Mapping[str, Any]) -> str:
    run_dir = Path(stage["run_dir"])
    title = html.escape(stage["name"])
    facts = [f"{clock(stage['seconds'])} min" if stage.get("seconds") is not None else "",
             f"{stage['steps']} steps" if stage.get("steps") is not None else "", html.escape(str(run_dir))]
    parts = [f"<h2>{title}</h2>", f"<p class=quiet>{' · '.join(fact for fact in facts if fact)}</p>"]
    if stage.get("command"):
        parts.append(f"<pre>{html.escape(stage['command'])}</pre>")
    metrics = [(name, value) for name, value in (stage.get("metrics") or {}).items() if name.startswith("val/")]
    if metrics:
        rows = "".join(f"<tr><td>{html.escape(k)}</td><td>{v:.4g}</td></tr>" for k, v in metrics[:_METRICS])
        parts.append(table("<th>at the last validation</th><th></th>", rows))
    for caption, path in _last_grids(run_dir):
        parts.append(picture(path, caption))
    for name, caption in (("scores", "scores by step"), ("codebook", "use of the codebook"),
                          ("loss", "losses and the rest by step")):
        if (run_dir / "plots" / f"{name}.png").is_file():
            parts.append(picture(run_dir / "plots" / f"{name}.png", caption))
    return "\n".join(parts)


def write_report(
    folder: str | Path,
    stages: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Any] | None = None,
    grids: Sequence[tuple[str, str | Path]] = (),
    next_commands: Sequence[str] = (),
    title: str = "From captions to pictures",
    notes: Sequence[str] = (),
) -> Path:
    """Writes `<folder>/report.html` and returns its path.

    Args:
        stages: in order; each with `name`, `run_dir`, and where known `command`, `seconds`, `steps`, `metrics`. Plots
            and the newest grids are taken from the run folder.
        scores: {split: {kind: {task: share}}}, as `t2i.evaluation.evaluate` gives under `composition`.
        grids: (caption, PNG) shown at the top.
        next_commands: what to try next.
        notes: lines under the title (hardware, sampler, protocol).
    """
    total = sum(stage["seconds"] for stage in stages if stage.get("seconds") is not None)
    spent = f" · {clock(total)} min in all" if total else ""
    head = [f"<h1>{html.escape(title)}</h1>", f"<p class=quiet>{time.strftime('%Y-%m-%d %H:%M')}{spent}</p>"]
    head += [f"<p>{html.escape(note)}</p>" for note in notes]
    head += [picture(Path(path), caption) for caption, path in grids]
    if scores:
        head += ["<h2>Composition score</h2>",
                 "<p>The share of pictures in which a reader without learned weights finds what the caption says."
                 " The ceilings are the same reader on true renders and on the tokenizer's reconstructions of them;"
                 " the floor is the drawn pictures judged against other captions of the same task.</p>",
                 score_table(scores)]
    if next_commands:
        head.append("<h2>Try next</h2><pre>" + "\n".join(html.escape(command) for command in next_commands) + "</pre>")
    if len(stages) > 1:
        rows = "".join(f"<tr><td>{html.escape(s['name'])}</td><td>{clock(s['seconds'])}</td></tr>"
                       for s in stages if s.get("seconds") is not None)
        head.append("<h2>Time</h2>" + table("<th>stage</th><th>min:s</th>", rows))
    body = "\n".join([*head, *(_stage(stage) for stage in stages)])
    return write_bytes(Path(folder) / "report.html", document(title, body).encode())
