"""Text of files and prompts as it may be printed: a terminal obeys control characters, and a line is no page; and which
errors are said in a line."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def shown(text: Any, most: int = 200) -> str:
    """`text` with control, format and surrogate characters as escapes (spaces stay), cut to `most` characters."""
    found = str(text[: most + 1]) if isinstance(text, str) else str(text)
    escaped = "".join(letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
                      for letter in found[: most + 1])
    return escaped if len(escaped) <= most else f"{escaped[:most]}…"


def quoted(value: Any, most: int = 60) -> str:
    """A value out of a file, for a message: as Python writes it, cut."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]!r}… ({len(value):,} characters)"
    text = repr(value)
    return text if len(text) <= most + 2 else f"{text[:most]}…"


def is_for_people(error: BaseException) -> bool:
    """Whether our own code raised it: libraries' errors are faults to look at, with their traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(HERE)
