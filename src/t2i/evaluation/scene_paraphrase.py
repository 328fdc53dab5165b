"""Composition of drawn scenes by how captions are worded: plain words in sentence forms of training, and from there
other forms or other words (`t2i.data.english.phrased`).

All wordings but the grammar's have the same scenes and claims, drawn from the same seeds; only words differ. `share` is
a wording's score in that of `plain`. Held-out combinations are no part of it: `metrics=[composition]` has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from t2i.data.english import Phrasing
from t2i.data.scenes import TASKS, Caption, Scene, render
from t2i.data.shapes import World, prompted
from t2i.evaluation.composition import READ_BY, Judgement, Paint
from t2i.metrics.composition import shuffled, verdicts
from t2i.metrics.intervals import Interval, described, ratio, wilson
from t2i.viz import grids
from t2i.viz.tables import Table

BASE: Phrasing = "plain"
SHEET = "One of each task, by wording"
WORDINGS: dict[Phrasing, str] = {
    "grammar": "the plain grammar", "plain": "training's forms, plain words",
    "templates": "held-out forms, plain words", "synonyms": "training's forms, training's synonyms",
    "new_words": "training's forms, held-out synonyms",
}  # fmt: skip
OVERALL = "overall"


def judged(paint: Paint, image_size: int, n_per_task: int, seed: int, world: World) -> Judgement:
    """Judges what `paint` gives for captions in each wording: scores by wording, kind (`score`, `ceiling_renders`,
    `floor_shuffled_captions`, `share`) and task."""
    scores: dict[str, dict[str, dict[str, Interval]]] = {}
    right: dict[Phrasing, Tensor] = {}
    drawn, under = [], []
    for wording in WORDINGS:
        chosen = prompts(n_per_task, seed, world, [wording])
        captions = [caption for caption, _ in chosen]
        truth = torch.stack([torch.from_numpy(render(scene, image_size)) for _, scene in chosen])
        pictures = paint(wording, [caption.text for caption in captions])
        right[wording] = _right(pictures, captions)
        scores[wording] = {
            "score": _by_task(right[wording], captions),
            "ceiling_renders": _by_task(_right(truth, captions), captions),
            "floor_shuffled_captions": _by_task(_right(pictures, shuffled(captions, seed)), captions),
        }
        drawn.append(pictures[::n_per_task])  # the first of each task
        under += [caption.text for caption in captions[::n_per_task]]
    shares = [wording for wording in WORDINGS if wording not in (BASE, "grammar")] if right[BASE].any() else []
    for wording in shares:
        scores[wording]["share"] = {OVERALL: ratio(right[wording].double(), right[BASE].double(), seed)}
    named = [(f"paraphrase_{wording}", scores[wording]["score"]) for wording in WORDINGS]
    named += [(f"paraphrase_{wording}_share", scores[wording]["share"]) for wording in shares]
    protocol = {**READ_BY, "interval": "Wilson; of a share bootstrap, 1000", "n_per_task": n_per_task}
    values = [(name, found[OVERALL], "higher", n_per_task * len(TASKS)) for name, found in named]
    return Judgement("Wordings", described(scores), values, protocol, tables(described(scores)),
                     {"paraphrase": (grids.grid(torch.cat(drawn), under, len(TASKS)), SHEET)})


def prompts(
    n_per_task: int, seed: int, world: World, wordings: Sequence[Phrasing] = tuple(WORDINGS)
) -> list[tuple[Caption, Scene]]:
    """The captions that are judged, wording after wording and task after task, each with a scene that it is true of."""
    return [pair for wording in wordings for task in TASKS
            for pair in prompted("val", task, n_per_task, seed, world, wording)]


def _right(pictures: Tensor, captions: list[Caption]) -> Tensor:
    return torch.tensor([verdict.correct for verdict in verdicts(pictures.numpy(), captions)])


def _by_task(right: Tensor, captions: list[Caption]) -> dict[str, Interval]:
    """With as many captions a task, the mean of the tasks is that of all."""
    tasks = [caption.task for caption in captions]
    found = {str(task): wilson(right[torch.tensor([one == task for one in tasks])]) for task in TASKS}
    return {**found, OVERALL: wilson(right)}


def tables(scores: Mapping[str, Any]) -> list[Table]:
    """Of the nested scores: wordings in rows."""
    def cell(found: Mapping[str, Mapping[str, float]], task: str) -> str:
        return f"{found[task]['value']:.3f}" if task in found else "–"

    head = ["wording", *TASKS, OVERALL, "share of plain", "floor", "ceiling"]
    rows = [[WORDINGS[wording], *(cell(kinds["score"], task) for task in (*TASKS, OVERALL)),  # type: ignore[index]
             cell(kinds.get("share", {}), OVERALL), cell(kinds["floor_shuffled_captions"], OVERALL),
             cell(kinds["ceiling_renders"], OVERALL)] for wording, kinds in scores.items()]
    return [Table("Scenes by wording", head, rows)]
