"""The table of `t2i compare`: settings, cost, validation metrics and scores of runs, and notes on what differs unseen.

A score's protocol (`evaluation.json`) says how it was measured. Where it differs between runs for more than the
checkpoint, a footnote says in what, and none is called the best.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from t2i.config.compose import flat
from t2i.config.messages import shown
from t2i.evaluation.compare.runs import ABSENT, WIDE, Run, last_validation, settings
from t2i.viz.progress import clock
from t2i.viz.tables import markdown_table

LOADING = ("size", "batch_size", "workers")  # of the data, what no score hangs on
OWN = {"path"}  # where a CLIP lies; its hash says which it is
FORMER = {"judge": "clip_model", "judge_had_a_hand": "clip_involvement"}  # keys of protocols of earlier versions


@dataclass(frozen=True)
class Score:
    """A measured number, with its interval where there is one."""

    value: float
    low: float
    high: float
    better: str  # "lower" or "higher"
    protocol: dict[str, Any]  # dotted key -> value

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass
class Column:
    """A column of the table: a cell a run, the row that is better than all others, and a footnote."""

    title: str
    cells: list[str]
    best: int | None = None
    note: str | None = None


def scores_of(evaluation: Mapping[str, Any] | None) -> dict[str, Score]:
    """The scores of an `evaluation.json`; none of one that an earlier version wrote, which `warnings` tells."""
    if evaluation is None or "protocols" not in evaluation:
        return {}
    world = evaluation["protocol"]["data"] or {}
    data = {key: value for key, value in world.items() if key not in LOADING}  # a score's own protocol does not say it
    found = {}
    for name, protocol in evaluation["protocols"].items():
        entry = evaluation["scores"][name]
        protocol = {FORMER.get(key, key): value for key, value in protocol.items()}
        leaves = {key: value for key, value in flat({"data": data, **protocol}).items() if not isinstance(value, dict)}
        held = {key: value for key, value in leaves.items() if key.rpartition(".")[2] not in OWN}
        found[name] = Score(float(entry["value"]), entry["low"], entry["high"], entry["better"],
                            held | {"n": entry["n"]})
    return found


def best(scores: Sequence[Score | None]) -> int | None:
    """The row that is better than all others beyond their intervals; None where intervals overlap or lack."""
    there = [(i, score) for i, score in enumerate(scores) if score is not None]
    ends: dict[int, list[float]] = {}  # near and far end, the larger the better
    for i, score in there:
        if score.low == score.high or score.better != there[0][1].better:
            return None
        ends[i] = [score.low, score.high] if score.better == "higher" else [-score.high, -score.low]
    first = max(ends, key=lambda i: sum(ends[i]), default=None)
    others = [far for i, (_, far) in ends.items() if i != first]
    return first if first is not None and others and ends[first][0] > max(others) else None


def unlike(labels: Sequence[str], scores: Sequence[Score | None]) -> str | None:
    """In what the protocols of one score differ: `n: 500 (a), 1000 (b, c)`, or None."""
    there = [(label, score.protocol) for label, score in zip(labels, scores, strict=True) if score is not None]
    parts = []
    for key in dict.fromkeys(key for _, protocol in there for key in protocol):
        groups: dict[str, list[str]] = {}
        for label, protocol in there:
            value = json.dumps(protocol[key], ensure_ascii=False) if key in protocol else "not said"
            groups.setdefault(value.strip('"'), []).append(label)
        if len(groups) > 1:
            parts.append(f"{key}: " + ", ".join(f"{value} ({', '.join(names)})" for value, names in groups.items()))
    return f"not measured alike: {'; '.join(parts)}" if parts else None


def columns(runs: Sequence[Run]) -> tuple[list[Column], dict[str, list[str]]]:
    """The table's columns behind the runs' names, and the settings that found no room in it."""
    differing = settings([run.config for run in runs])
    keys = list(differing)
    made = [Column(key, differing[key]) for key in keys[:WIDE]]
    for title, key, shape in (("steps", "steps", str), ("minutes trained", "minutes", lambda one: clock(60 * one)),
                              ("parameters", "parameters",
                               lambda one: f"{one / 1e6:.3g} M" if one >= 1e5 else f"{one:,}")):
        values = [run.facts.get(key) for run in runs]
        made.append(Column(title, [ABSENT if value is None else shape(value) for value in values]))
    scored, labels = [scores_of(run.evaluation) for run in runs], [run.label for run in runs]
    for name in dict.fromkeys(name for one in scored for name in one):
        row = [one.get(name) for one in scored]
        note = unlike(labels, row)
        cells = [ABSENT if score is None else str(score) for score in row]
        made.append(Column(name, cells, None if note else best(row), note))
    validated = [last_validation(run) for run in runs]
    for name in dict.fromkeys(name for one in validated for name in one):
        made.append(Column(name, [f"{one[name]:.4g}" if name in one else ABSENT for one in validated]))
    return made, {key: differing[key] for key in keys[WIDE:]}


def warnings(runs: Sequence[Run]) -> list[str]:
    """Evaluations of other checkpoints than those compared, and such as cannot be read."""
    notes = []
    for run in runs:
        if run.evaluation is None:
            continue
        if "protocols" not in run.evaluation:
            notes.append(f"{run.label}: evaluation.json was written by an earlier version and is not shown; evaluate.py"
                        " writes it anew.")
            continue
        protocol, own = run.evaluation["protocol"], run.facts.get("hash")
        scored = protocol["hash"]
        if own is not None and scored != own:
            notes.append(f"{run.label}: evaluation.json scored another checkpoint ({protocol['checkpoint']},"
                        f" {scored}) than the one compared here ({run.checkpoint and run.checkpoint.name}, {own}).")
    return notes


def footnotes(made: Sequence[Column]) -> list[tuple[str, str]]:
    """(title, note) of the columns that have one; their place in the list, from 1, is their number."""
    return [(column.title, column.note) for column in made if column.note is not None]


def markdown(labels: Sequence[str], made: Sequence[Column]) -> str:
    """The table with its footnotes."""
    notes = footnotes(made)
    heads = [c.title + (f" ({notes.index((c.title, c.note)) + 1})" if c.note else "") for c in made]
    cells = ([label, *(f"**{c.cells[i]}**" if c.best == i else c.cells[i] for c in made)]
             for i, label in enumerate(labels))
    lines = [markdown_table(["run", *heads], cells), "",
             *(f"({k}) {shown(title)}: {shown(note, 1000)}\n" for k, (title, note) in enumerate(notes, 1))]
    return "\n".join(lines).rstrip()
