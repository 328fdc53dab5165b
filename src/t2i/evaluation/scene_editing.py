"""Edits of scenes: one of two things in a true render is asked to become another, in its place.

The box around the thing (its outline and MARGIN) is drawn anew under a caption that names both things with their
colours, as of the task `attribution`. An edit is right if the reader (`t2i.metrics.composition`) finds the new thing
where the old one was and the other one where it stood, each in its shape and colour, on the same ground, and nothing
else. `seen`: the scene that is asked for has seen combinations alone; `heldout`: the new thing's colour is one that its
shape never had. Beside it the floor (the render as it was) and the ceilings (a render of the scene that is asked for,
and that with its box out of the tokenizer's reconstruction).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from t2i.data.scenes import COLOURS, SHAPES, Caption, Scene, Task, Thing, describe, pick, render
from t2i.data.seeds import derive_seed
from t2i.data.shapes import Split, World, prompted, scene_held_out
from t2i.evaluation.composition import READ_BY, Judgement, reconstructed
from t2i.generation.editing import blend, of_box
from t2i.metrics.composition import read_scene
from t2i.metrics.intervals import Interval, described, wilson
from t2i.viz import grids
from t2i.viz.tables import Table

TASK: Task = "attribution"
SPLITS: tuple[Split, ...] = ("val", "heldout")
NAMES = {"val": "seen", "heldout": "heldout"}
MARGIN = 0.02  # of the canvas, around a thing's circle
ASTRAY = 0.06  # of the canvas: a thing that was read farther from its place is another
SHEET = "true renders, what was asked for, and what the edits gave: the first ones"
SHOWN = 8
COLUMNS = {"score": "score", "ceiling_renders": "ceiling: renders",
           "ceiling_reconstructions": "ceiling: reconstructions", "floor_no_edit": "floor: no edit"}
Paint = Callable[["Asked", int], UInt8[Tensor, "h w 3"]]  # an edit and its seed -> the edited picture


@dataclass(frozen=True)
class Asked:
    """A scene, the scene that it is to become, its caption, and the box that is drawn anew, in shares of the side."""

    before: Scene
    after: Scene
    caption: Caption
    box: tuple[float, float, float, float]


def replaced(scene: Scene, split: Split, rng: Random) -> tuple[Scene, Thing]:
    """The scene with one of its things replaced in its place, and the thing that went; what it becomes is held out in
    the split `heldout` alone."""
    options = []
    for i, thing in enumerate(scene.things):
        other = scene.things[1 - i]
        for shape in SHAPES:
            for colour in COLOURS:
                # A thing of its own: neither the other's shape or colour nor the old one's.
                if shape in (thing.shape, other.shape) or colour in (thing.colour, other.colour):
                    continue
                new = replace(thing, shape=shape, colour=colour)
                after = replace(scene, things=tuple(new if one is thing else one for one in scene.things))
                if scene_held_out(after) == (split == "heldout"):
                    options.append((after, thing))
    return pick(rng, options)


def asked(n: int, seed: int, world: World, split: Split) -> list[Asked]:
    """`n` edits of scenes of the validation split."""
    found = []
    for k, (_, scene) in enumerate(prompted("val", TASK, n, seed, world)):
        rng = Random(derive_seed(seed, "edit", split, k))
        after, thing = replaced(scene, split, rng)
        far = thing.radius + MARGIN
        box = (max(0.0, thing.x - far), max(0.0, thing.y - far), min(1.0, thing.x + far), min(1.0, thing.y + far))
        found.append(Asked(scene, after, describe(after, rng, extras=False), box))
    return found


def is_right(picture: np.ndarray, scene: Scene) -> bool:
    """Whether the reader finds the scene's things in their places, and nothing else."""
    ground, found = read_scene(picture)
    if ground != scene.background or len(found) != len(scene.things):
        return False
    return all(any((one.shape, one.colour) == (thing.shape, thing.colour)
                   and max(abs(one.x - thing.x), abs(one.y - thing.y)) < ASTRAY for one in found)
               for thing in scene.things)


def judged(paint: Paint, image_size: int, tokenizer: Any, n: int, seed: int, world: World) -> Judgement:
    """Judges what `paint` gives for `n` edits of each split: scores by split (`seen`, `heldout`) and kind (`COLUMNS`).
    """
    scores: dict[str, dict[str, Interval]] = {}
    sheets = {}
    for split in SPLITS:
        edits, name = asked(n, seed, world, split), NAMES[split]
        before = _renders([edit.before for edit in edits], image_size)
        after = _renders([edit.after for edit in edits], image_size)
        drawn = torch.stack([paint(edit, derive_seed(seed, "edited", split, k)) for k, edit in enumerate(edits)])
        back = reconstructed(tokenizer, after).clone()
        seam = max(1, image_size // tokenizer.grid[0] // 4)
        for k, edit in enumerate(edits):  # as an edit is composited
            share = blend(of_box(edit.box, image_size, image_size), seam)[..., None]
            back[k] = (share * back[k] + (1 - share) * before[k]).round().byte()
        scores[name] = {kind: _share(pictures, edits) for kind, pictures in (
            ("score", drawn), ("ceiling_renders", after), ("ceiling_reconstructions", back), ("floor_no_edit", before))}
        rows = [(row, some[:SHOWN]) for row, some in (("before", before), ("asked for", after), ("edited", drawn))]
        sheets[f"editing-{name}"] = grids.rows(rows, [edit.caption.text for edit in edits[:SHOWN]]), f"{name}: {SHEET}"
    return Judgement("Edits", described(scores),
                     [(f"editing_{name}", kinds["score"], "higher", n) for name, kinds in scores.items()],
                     {**READ_BY, "interval": "Wilson", "n_per_task": n}, tables(described(scores)), sheets)


def _renders(scenes: list[Scene], image_size: int) -> UInt8[Tensor, "n h w 3"]:
    return torch.stack([torch.from_numpy(render(scene, image_size)) for scene in scenes])


def _share(pictures: Tensor, edits: list[Asked]) -> Interval:
    return wilson(torch.tensor([is_right(picture.numpy(), edit.after)
                                for picture, edit in zip(pictures, edits, strict=True)]))


def tables(scores: Mapping[str, Any]) -> list[Table]:
    """Of the nested scores: splits in rows."""
    rows = [[split, *(f"{kinds[kind]['value']:.3f}" for kind in COLUMNS)] for split, kinds in scores.items()]
    return [Table("Edits: one of two things becomes another", ["split", *COLUMNS.values()], rows)]
