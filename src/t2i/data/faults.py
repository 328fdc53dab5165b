"""What is wrong with a listing, as people read it: a few lines of bounded length, whatever a file holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from t2i.config.messages import shown

FIRST = 3  # faults that a message shows
LONGEST = 400  # characters of one of them


def quoted(value: Any, most: int = 60) -> str:
    """A value out of a file, for a message: as Python writes it, cut."""
    if isinstance(value, str) and len(value) > most:
        return f"{value[:most]!r}… ({len(value):,} characters)"
    text = repr(value)
    return text if len(text) <= most + 2 else f"{text[:most]}…"


def brief(text: object) -> str:
    """A path or a fault as one line of bounded length; what is cut out of its middle is seldom what matters."""
    line, half = shown(text, 1_000_000), LONGEST // 2
    return line if len(line) <= LONGEST else f"{line[:half]}…{line[-half:]}"


def is_text(value: str) -> bool:
    """Whether a string is whole characters: none of the halves that JSON's \\ud800 or undecodable bytes leave."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def told(faults: Sequence[str], most: int | None = FIRST) -> str:
    """The first faults, each on a line of its own, and how many more there are; None for all."""
    lines = [brief(fault) for fault in faults[:most]]
    more = [f"and {len(faults) - len(lines)} more; prepare.py lists all"] if len(faults) > len(lines) else []
    return "".join(f"\n  {line}" for line in lines + more)


class Faulty(ValueError):
    """A listing that cannot be used: what for, and all its faults; the message shows the first of them."""

    def __init__(self, what: str, faults: Sequence[str] = ()) -> None:
        super().__init__(what + told(faults))
        self.what, self.faults = what, list(faults)

    def whole(self) -> str:
        return self.what + told(self.faults, None)
