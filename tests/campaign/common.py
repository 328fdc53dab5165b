"""What the groups of the campaign share: a case's outcome, and the table of all outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Outcome = Literal["right", "wrong", "executed", "traceback", "silent", "hung", "skipped"]


@dataclass(frozen=True)
class Result:
    """One case: `right` (it worked, or one good line said what is wrong), `wrong` (a bad line, a bad result),
    `executed` (something that a file said was run, opened or written), `traceback`, `silent` (a fault without a word),
    `hung`, or `skipped` (this machine cannot try it; `detail` says why)."""

    name: str
    group: str
    outcome: Outcome
    detail: str = ""


def table(results: Sequence[Result], seconds: dict[str, float] | None = None) -> str:
    """Outcomes by group as a Markdown table."""
    kinds = get_args(Outcome)
    lines = [f"| group | cases | {' | '.join(kinds)} | seconds |", "| --- |" + " ---: |" * (len(kinds) + 2)]
    for group in dict.fromkeys(result.group for result in results):
        counted = Counter(result.outcome for result in results if result.group == group)
        took = f"{seconds[group]:.0f}" if seconds is not None and group in seconds else ""
        lines.append(f"| {group} | {counted.total()} | {' | '.join(str(counted[k]) for k in kinds)} | {took} |")
    return "\n".join(lines)
