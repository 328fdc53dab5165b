"""Tables of text, for pages and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from t2i.config.messages import shown

LONGEST = 1000  # characters of a cell


@dataclass(frozen=True)
class Table:
    """Cells of text; `strong` rows and columns, by their places, are set in bold."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    strong_rows: Sequence[int] = ()
    strong_columns: Sequence[int] = ()


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Rows of text under a head; columns `right`, by their places, are set flush right.

    Line breaks, bars and control characters in cells are escaped.
    """
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(shown(cell.replace("\n", " "), LONGEST).replace("|", "\\|") for cell in cells) + " |"

    under = "| " + " | ".join("---:" if i in right else "---" for i in range(len(head))) + " |"
    return "\n".join([line(head), under, *map(line, rows)])


def markdown(tables: Iterable[Table]) -> str:
    """Each under its title."""
    return "\n\n".join(f"{one.title}:\n\n{markdown_table(one.head, one.rows)}" for one in tables)
