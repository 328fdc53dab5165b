"""Text of files and prompts as it may be printed: a terminal obeys control characters, and a line is no page."""

from __future__ import annotations

from typing import Any


def shown(text: Any, most: int = 200) -> str:
    """`text` with control, format and surrogate characters as escapes (spaces stay), cut to `most` characters."""
    found = str(text[: most + 1]) if isinstance(text, str) else str(text)
    escaped = "".join(letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode()
                      for letter in found[: most + 1])
    return escaped if len(escaped) <= most else f"{escaped[:most]}…"
