"""Tables as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from t2i.config.messages import shown

LONGEST = 1000  # characters of a cell


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of text under a head; columns `right`, by their places, are set flush right.

    Line breaks, bars and control characters in cells are escaped.
    """
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(shown(cell.replace("\n", " "), LONGEST).replace("|", "\\|") for cell in cells) + " |"

    under = "| " + " | ".join("---:" if i in right else "---" for i in range(len(head))) + " |"
    return "\n".join([line(head), under, *map(line, rows)])
