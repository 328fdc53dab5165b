"""One page builder: Jinja2 templates (`viz/templates/`) whose every value is escaped text, never markup.

Control and format characters of what files say are shown as escapes, as on a terminal; a page is one file that holds
its pictures.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from t2i.config.messages import shown
from t2i.viz.grids import write_bytes
from t2i.viz.tables import Table

LONGEST = 10_000  # characters of one value
NAMES = {
    "score": "score", "ceiling_renders": "ceiling: true renders",
    "ceiling_reconstructions": "ceiling: reconstructions", "floor_shuffled_captions": "floor: shuffled captions",
    "floor_other_style": "floor: the concept in another style", "floor_other_concept": "floor: another concept",
    "floor_mean": "floor: mean of the other styles", "floor_ridge": "floor: ridge regression on the other styles",
    "names": "by seen names", "words": "by unseen words", "share": "words / names",
    "floor_shuffled_words": "floor: shuffled words",
    "seen": "seen combinations", "heldout": "held-out combinations",
}


@dataclass(frozen=True)
class Picture:
    """A picture inside a page: a data URI, what it shows, and whether it is too small to be smoothed."""

    uri: Markup
    caption: str
    small: bool = False


def picture(source: Path | bytes | np.ndarray, caption: str, smallest: int = 0) -> Picture:
    """Of a PNG or JPEG file, of a PNG's bytes, or of uint8 (h, w, 3), which is `small` below `smallest` pixels."""
    if isinstance(source, np.ndarray):
        held = io.BytesIO()
        Image.fromarray(source).save(held, format="PNG", optimize=True)
        return Picture(uri(held.getvalue()), caption, max(source.shape[:2]) < smallest)
    if isinstance(source, bytes):
        return Picture(uri(source), caption)
    return Picture(uri(source.read_bytes(), {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}[source.suffix.lower()]),
                   caption)


def uri(data: bytes, kind: str = "png") -> Markup:
    return Markup(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")


def _value(value: Any) -> Any:
    return value if isinstance(value, Markup) else shown(value, LONGEST)


def _lines(text: Any) -> Markup:
    return Markup("\n").join(escape(shown(line, LONGEST)) for line in str(text).split("\n"))


def _breaking(text: Any) -> Markup:
    """Long keys break behind their joints alone."""
    return Markup("<wbr>").join(escape(_value(part)) for part in re.split(r"(?<=[._/])", str(text)))


PAGES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, finalize=_value,
                    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
PAGES.filters |= {"lines": _lines, "breaking": _breaking}


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Renders a template of `viz/templates/` to a file, written whole or not at all."""
    return write_bytes(path, PAGES.get_template(template).render(**values).encode())


def named(name: str) -> str:
    """What a key of scores is called on pages."""
    return NAMES[name] if name in NAMES else name.replace("_", " ")


def composition_tables(scores: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Table]:
    """Of {split: {kind: {task: share}}}, one a split: tasks in rows, score and its bounds in columns."""
    made = []
    for split, kinds in scores.items():
        tasks = list(dict.fromkeys(task for kind in kinds.values() for task in kind))
        rows = [[named(task), *(f"{values[task]:.3f}" if task in values else "–" for values in kinds.values())]
                for task in tasks]
        made.append(Table(named(split).capitalize(), ["task", *map(named, kinds)], rows,
                          [i for i, task in enumerate(tasks) if task == "overall"],
                          [i for i, kind in enumerate(kinds, 1) if kind == "score"]))
    return made
