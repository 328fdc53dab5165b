"""One page builder: a document, its style, tables and pictures inside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path

_NAMES = {
    "score": "score", "ceiling_renders": "ceiling: true renders",
    "ceiling_reconstructions": "ceiling: reconstructions", "floor_shuffled_captions": "floor: shuffled captions",
    "seen": "seen combinations", "heldout": "held-out combinations",
}


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
