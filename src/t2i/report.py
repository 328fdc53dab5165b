"""The report of a pipeline: one HTML file that holds its pictures, to look at, to mail, to keep.

What there is to show goes in; what is missing (a stage without plots, a report without scores) is left out.
"""

from __future__ import annotations

import base64
import html
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.pictures import write_bytes
from t2i.progress import clock

_NAMES = {
    "score": "score", "ceiling_renders": "ceiling: true renders",
    "ceiling_reconstructions": "ceiling: reconstructions", "floor_shuffled_captions": "floor: shuffled captions",
    "seen": "seen combinations", "heldout": "held-out combinations",
}
_METRICS = 12  # last values shown for a stage

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { font-size: 1.7rem; margin-bottom: .2rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #ddd; }
h3 { margin: 1.4rem 0 .4rem; font-size: 1rem; }
.quiet { color: #666; }
img { max-width: 100%; height: auto; border: 1px solid #e4e4e4; border-radius: 4px; }
table { border-collapse: collapse; margin: .6rem 0 1rem; } .wide { overflow-x: auto; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e8e8e8;
         font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; } thead th { border-bottom: 2px solid #bbb; vertical-align: bottom; }
tr.overall td, td.score { font-weight: 600; }
pre { background: #f5f5f3; padding: .7rem .9rem; border-radius: 4px; overflow-x: auto; white-space: pre-wrap; }
figure { margin: .6rem 0 1.2rem; } figcaption { color: #666; font-size: .9rem; }
"""


def named(name: str) -> str:
    return html.escape(_NAMES[name] if name in _NAMES else name.replace("_", " "))


def table(head: str, rows: str) -> str:
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def picture(path: Path, caption: str) -> str:
    kind = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}[path.suffix.lower()]
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption, quote=True)
    return f'<figure><img alt="{text}" src="data:image/{kind};base64,{data}"><figcaption>{text}</figcaption></figure>'


def document(title: str, body: str, style: str = "") -> str:
    """A whole page around the HTML of its body; `style` is CSS beside the house's own."""
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(title)}</title><style>{STYLE}{style}</style></head>\n<body>\n{body}\n</body></html>\n")


def score_table(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """HTML tables of {split: {kind: {task: share}}}, one a split: tasks in rows, score and its bounds in columns."""
    parts = []
    for split, kinds in scores.items():
        tasks = list(dict.fromkeys(task for kind in kinds.values() for task in kind))
        head = "".join(f"<th>{named(kind)}</th>" for kind in kinds)
        lines = []
        for task in tasks:
            cells = ""
            for kind, values in kinds.items():
                value = f"{values[task]:.3f}" if task in values else "–"
                cells += f'<td class="{"score" if kind == "score" else ""}">{value}</td>'
            lines.append(f'<tr class="{"overall" if task == "overall" else ""}"><td>{named(task)}</td>{cells}</tr>')
        parts.append(f"<h3>{named(split).capitalize()}</h3>\n<div class=wide>"
                     + table(f"<th>task</th>{head}", "".join(lines)) + "</div>")
    return "\n".join(parts)


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
        scores: {split: {kind: {task: share}}}, as `t2i.evaluation` gives under `composition`.
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
