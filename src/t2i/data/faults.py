"""What is wrong with a listing, as people read it: a few lines of bounded length, whatever a file holds."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

FIRST = 3  # faults that a message shows
LONGEST = 400  # characters of one of them
UNSEEN = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, breaks of lines and paragraphs
TURNS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # of the direction of writing


def printable(text: object) -> str:
    """One line that a terminal shows as it is: what would break or turn it is written as an escape."""
    return "".join(c.encode("unicode_escape", "surrogatepass").decode() if c in TURNS or
                   unicodedata.category(c) in UNSEEN else c for c in str(text))


def shown(value: Any, most: int = 60) -> str:
    """A value out of a file, for a message: as Python writes it, cut."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]!r}… ({len(value):,} characters)"
    text = repr(value)
    return text if len(text) <= most + 2 else f"{text[:most]}…"


def is_text(value: str) -> bool:
    """Whether a string is whole characters: none of the halves that JSON's \\ud800 or undecodable bytes leave."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def line_of(fault: object) -> str:
    """A fault as one line of bounded length; what is cut out of the middle is seldom what matters."""
    text, half = printable(fault), LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"


def told(faults: Sequence[str], most: int | None = FIRST) -> str:
    """The first faults, each on a line of its own, and how many more there are; None for all."""
    lines = [line_of(fault) for fault in faults[:most]]
    more = [f"and {len(faults) - len(lines)} more; prepare.py lists all"] if len(faults) > len(lines) else []
    return "".join(f"\n  {line}" for line in lines + more)


class Faulty(ValueError):
    """A listing that cannot be used: what for, and all its faults; the message shows the first of them."""

    def __init__(self, what: str, faults: Sequence[str] = ()) -> None:
        super().__init__(what + told(faults))
        self.what, self.faults = what, list(faults)

    def whole(self) -> str:
        return self.what + told(self.faults, None)
