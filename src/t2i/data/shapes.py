"""The embedded data set: captioned scenes of coloured shapes, drawn on the fly, with the scene graph as ground truth.

Scenes follow GenEval's six tasks (arXiv 2310.11513), plus a rarer "compound" kind with a relation between two groups.
Every scene is a pure function of (seed, split, index).

Which scene belongs to which split is a property of the scene, not of its index, so splits are disjoint for every seed:

* `heldout`: the scene graph contains at least one of these combinations (indices into COLOURS, SHAPES):
  - colour x shape: (colour - 3 * shape) % 8 == 1, one colour of each shape (6 of 48 pairs);
  - shape x relation x shape: right == (left + 1) % 6 or below == (above + 2) % 6 (12 of 60): no circle is called left
    of a square, no circle above a triangle, and so on. Every shape has every role in training, beside other shapes.
    The relation is that of the graph (tasks position and compound); the layout of scenes that state none is free;
  - colour x count: (colour + count) % 8 == 0 for two or more things of one colour (5 of 40 pairs).
* `val`: of the others, those whose content (background, things, places) hashes to 0 modulo 10.
* `train`: the rest.

Held-out prompts name a held-out combination in their own words. The tasks `single` and `two` name shapes alone, so they
have no held-out form and are no part of the held-out table (`HELDOUT_TASKS`). Prompts for evaluation speak of neither
size nor background.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from random import Random
from typing import Literal, get_args

import numpy as np
import torch

from t2i.checkpoint.registry import register
from t2i.data.english import PHRASINGS, Phrasing, phrased
from t2i.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    INVERSE,
    MARGIN,
    RADII,
    SHAPES,
    TASKS,
    Caption,
    Described,
    Related,
    Scene,
    Task,
    Thing,
    pick,
    relations,
    render,
)  # fmt: skip
from t2i.types import Example

Split = Literal["train", "val", "heldout"]

ROLES = ("left", "right", "above", "below")
HELDOUT_TASKS: tuple[Task, ...] = ("colour", "count", "position", "attribution")
KINDS: tuple[Task, ...] = (*TASKS, "compound")
TASK_WEIGHTS: dict[str, float] = {**dict.fromkeys(TASKS, 1.0), "compound": 0.5}
CAPTIONS_PER_SCENE = 6
COUNTS = (1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6)
COMPOUNDS = ((2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (2, 3), (3, 2))
_COLOUR_INDEX = {name: i for i, name in enumerate(COLOURS)}
_SHAPE_INDEX = {name: i for i, name in enumerate(SHAPES)}


@dataclass(frozen=True)
class World:
    """What scenes are made of beyond their task: where things may stand (`_coordinate`), on what backgrounds."""

    lattice: int | None = None
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)


EVERYWHERE = World()


def colour_shape_held_out(colour: str, shape: str) -> bool:
    return (_COLOUR_INDEX[colour] - 3 * _SHAPE_INDEX[shape]) % 8 == 1


def relation_held_out(shape: str, relation: str, other: str) -> bool:
    """Whether "`shape` `relation` of `other`", or the same said the other way round, is held out."""
    if relation in ("right", "below"):
        shape, relation, other = other, INVERSE[relation], shape
    step = 1 if relation == "left" else 2
    return (_SHAPE_INDEX[other] - _SHAPE_INDEX[shape]) % len(SHAPES) == step


def colour_count_held_out(colour: str, count: int) -> bool:
    return count >= 2 and (_COLOUR_INDEX[colour] + count) % 8 == 0


def scene_held_out(scene: Scene) -> bool:
    """Whether the scene graph contains a held-out combination."""
    counts = Counter(thing.colour for thing in scene.things)
    ends = [sum(scene.groups[: i + 1]) for i in range(len(scene.groups))]  # a caption tells the number of a group
    groups = [scene.things[end - count : end] for count, end in zip(scene.groups, ends, strict=True)]
    first, last = scene.things[0].shape, scene.things[-1].shape
    return (any(colour_shape_held_out(thing.colour, thing.shape) for thing in scene.things)
            or any(colour_count_held_out(colour, count) for colour, count in counts.items())
            or any(colour_count_held_out(group[0].colour, len(group)) for group in groups
                   if len({thing.colour for thing in group}) == 1)
            or (scene.relation is not None and relation_held_out(first, scene.relation, last)))


def caption_held_out(caption: Caption) -> bool:
    """Whether the caption's own clauses name a held-out combination."""
    for clause in caption.clauses:
        if isinstance(clause, Described) and clause.colour is not None:
            if colour_shape_held_out(clause.colour, clause.shape) or colour_count_held_out(clause.colour, clause.count):
                return True
        if isinstance(clause, Related):
            subject, target = caption.clauses[clause.subject], caption.clauses[clause.object]
            if isinstance(subject, Described) and isinstance(target, Described):
                if relation_held_out(subject.shape, clause.relation, target.shape):
                    return True
    return False


def split_of(scene: Scene) -> Split:
    """The one split that a scene belongs to."""
    if scene_held_out(scene):
        return "heldout"
    things = sorted((t.shape, t.colour, t.size, round(t.x * 1024), round(t.y * 1024)) for t in scene.things)
    digest = blake2b(repr((scene.background, things)).encode(), digest_size=4).digest()
    return "val" if int.from_bytes(digest, "big") % 10 == 0 else "train"


def _random(*key: object) -> Random:
    return Random(int.from_bytes(blake2b(repr(key).encode(), digest_size=16).digest(), "big"))


def _graph(rng: Random, task: Task, world: World) -> Scene:
    """Any scene of the task, whatever its split, its things not yet placed."""
    relation = pick(rng, ROLES) if task in ("position", "compound") else None
    groups = {"single": (1,), "colour": (1,)}.get(task, (1, 1))
    if task == "count":
        groups = (pick(rng, COUNTS),)
    elif task == "compound":
        groups = pick(rng, COMPOUNDS)
    shapes, colours = list(SHAPES), list(COLOURS)
    things: list[Thing] = []
    for count in groups:
        shape = shapes.pop(int(rng.random() * len(shapes)))
        colour = pick(rng, colours)
        if task == "attribution":
            colours.remove(colour)
        size = "small" if sum(groups) > 3 else pick(rng, tuple(RADII))
        mixed = task == "count" and rng.random() < 0.2
        for _ in range(count):
            if mixed:
                colour = pick(rng, colours)
                size = "small" if sum(groups) > 3 else pick(rng, tuple(RADII))
            things.append(Thing(shape, colour, size, 0.0, 0.0, RADII[size]))
    return Scene(pick(rng, world.backgrounds), tuple(things), task, groups, relation)


def _coordinate(rng: Random, low: float, lattice: int | None) -> float:
    """A number in [low, 1 - low]: free on a grid of 1/1024 (so that a scene's content is a handful of integers), or
    a centre of the lattice's cells."""
    if lattice is None:
        return round((low + (1 - 2 * low) * rng.random()) * 1024) / 1024
    cells = [k for k in range(lattice) if low <= (k + 0.5) / lattice <= 1 - low]
    return (pick(rng, cells) + 0.5) / lattice


def _place(rng: Random, radii: list[float], groups: tuple[int, ...], relation: str | None,
           lattice: int | None) -> list[tuple[float, float]] | None:
    """Places without overlap, by rejection sampling, or None where many tries found no room; with a relation every pair
    across the groups holds it, single pairs clearly so."""
    axis = 0 if relation in ("left", "right") else 1
    clear = relation is not None and len(radii) == 2
    placed: list[tuple[float, float]] = []
    for tries in range(1, 600 * len(radii)):
        if len(placed) == len(radii):
            return placed
        if tries % (30 * len(radii)) == 0:
            placed = []
        i = len(placed)
        x, y = spot = [_coordinate(rng, MARGIN + radii[i], lattice) for _ in range(2)]
        if relation is not None and not clear:  # groups keep to their halves: fewer tries
            first_half = (i < groups[0]) == (relation in ("left", "above"))
            if (spot[axis] < 0.5) != first_half:
                continue
        others = list(zip(placed, radii[:i], strict=True))
        if any(math.hypot(x - u, y - v) < radii[i] + r + GAP for (u, v), r in others):
            continue
        if relation is not None and i >= groups[0]:
            if any(relation not in relations(u, v, r, x, y, radii[i]) for (u, v), r in others[: groups[0]]):
                continue
            offset = abs(x - placed[0][0]), abs(y - placed[0][1])
            if clear and offset[1 - axis] > 0.5 * offset[axis]:
                continue
        placed.append((x, y))
    return None


def _scene_of(rng: Random, task: Task, split: Split, world: World = EVERYWHERE) -> Scene:
    """A scene of the task and split; one that finds no room, or no place of its split, gives way to another."""
    while True:
        scene = _graph(rng, task, world)
        if scene_held_out(scene) != (split == "heldout"):
            continue
        radii = [thing.radius for thing in scene.things]
        for _ in range(100):  # the hash that parts train from val sees the places, so new places are enough
            places = _place(rng, radii, scene.groups, scene.relation, world.lattice)
            if places is None:
                break
            things = tuple(replace(thing, x=x, y=y) for thing, (x, y) in zip(scene.things, places, strict=True))
            placed = replace(scene, things=things)
            if split_of(placed) == split:
                return placed


@register("data")
class Shapes:
    """Map-style data set; `ds[index, epoch]` is an Example, the same in every epoch.

    `size` counts the train scenes, `val_size` those of `val` and of `heldout`; `tasks` weighs the kinds of scene
    (default: the six tasks 1 each, compound 0.5; kinds left out are not drawn). With `lattice` n things stand at the
    centres of n x n cells instead of anywhere, and `backgrounds` names those to draw from: fewer different patches,
    for the smallest budgets. `phrasing`: how captions are worded, the plain grammar of `scenes.py` or ordinary English,
    of which that is a quarter (`english.phrased` has them all).
    """

    def __init__(self, split: Split, image_size: int = 64, size: int = 20000, val_size: int = 2000, seed: int = 0,
                 tasks: Mapping[str, float] | None = None, lattice: int | None = None,
                 backgrounds: Sequence[str] | None = None, phrasing: Phrasing = "grammar") -> None:
        if split not in get_args(Split):
            raise ValueError(f"split={split!r} is none of {', '.join(get_args(Split))}")
        if image_size < 8:
            raise ValueError(f"image_size={image_size}: shapes can be told apart from 32 pixels on, 8 is the least")
        if size < 1 or val_size < 1:
            raise ValueError(f"size={size}, val_size={val_size}: both must be at least 1")
        weights = dict(TASK_WEIGHTS if tasks is None else tasks)
        if unknown := sorted(set(weights) - set(TASK_WEIGHTS)):
            raise ValueError(f"tasks names {', '.join(unknown)}; allowed are {', '.join(TASK_WEIGHTS)}")
        if any(weight < 0 for weight in weights.values()) or not sum(weights.values()) > 0:
            raise ValueError(f"tasks={weights}: weights must be at least 0 and not all 0")
        if lattice is not None and lattice < 8:
            raise ValueError(f"lattice={lattice}: at least 8 cells a side, so that six things find room, or null")
        if unknown := sorted(set(backgrounds or ()) - set(BACKGROUNDS)):
            raise ValueError(f"backgrounds names {', '.join(unknown)}; allowed are {', '.join(BACKGROUNDS)}, or null")
        if phrasing not in PHRASINGS:
            raise ValueError(f"data.phrasing={phrasing} is none of {', '.join(PHRASINGS)}")
        self.split, self.image_size, self.seed, self.phrasing = split, image_size, seed, phrasing
        self.world = World(lattice, tuple(backgrounds or BACKGROUNDS))
        self.size = size if split == "train" else val_size
        self._kinds = [kind for kind in KINDS if weights.get(kind, 0) > 0]
        self._bounds = np.cumsum([weights[kind] for kind in self._kinds]) / sum(weights[k] for k in self._kinds)

    def __len__(self) -> int:
        return self.size

    def scene(self, index: int) -> Scene:
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} of {self.size} scenes")
        rng = _random("scene", self.seed, self.split, index)
        kind = min(int(np.searchsorted(self._bounds, rng.random(), "right")), len(self._kinds) - 1)
        return _scene_of(rng, self._kinds[kind], self.split, self.world)

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(caption.text for caption in self.describe(index))

    def describe(self, index: int, scene: Scene | None = None) -> list[Caption]:
        """Several phrasings, each true of the scene (computed anew unless given), no text twice."""
        scene = self.scene(index) if scene is None else scene
        rng = _random("captions", self.seed, self.split, index)
        found = [phrased(scene, rng, self.phrasing) for _ in range(CAPTIONS_PER_SCENE)]
        return list({caption.text: caption for caption in found}.values())

    def __getitem__(self, item: tuple[int, int]) -> Example:
        index, _ = item
        scene = self.scene(index)
        image = torch.from_numpy(np.ascontiguousarray(render(scene, self.image_size).transpose(2, 0, 1)))
        captions = tuple(caption.text for caption in self.describe(index, scene))
        return Example(image=image, captions=captions, key=f"shapes/{self.seed}/{self.split}/{index}")


def prompted(split: Split, task: Task, n: int, seed: int = 0,
             world: World = EVERYWHERE, phrasing: Phrasing = "grammar") -> list[tuple[Caption, Scene]]:
    """`n` captions of one task for evaluation, each with a scene that it is true of (whose render is the ceiling):
    of seen combinations (`val`), or (`heldout`) naming a held-out one."""
    allowed = HELDOUT_TASKS if split == "heldout" else KINDS
    if task not in allowed:
        raise ValueError(f"task={task!r} with split={split!r}: allowed are {', '.join(allowed)}")
    found: list[tuple[Caption, Scene]] = []
    rng = _random("prompts", seed, split, task)
    while len(found) < n:
        scene = _scene_of(rng, task, split, world)
        # But for the grammar, of a generator a caption: the same scenes and claims in all wordings.
        words = rng if phrasing == "grammar" else _random("words", seed, split, task, len(found))
        caption = phrased(scene, words, phrasing, extras=False)
        if split != "heldout" or caption_held_out(caption):
            found.append((caption, scene))
    return found


def prompts(split: Split, task: Task, n: int, seed: int = 0) -> list[Caption]:
    """The captions of `prompted`."""
    return [caption for caption, _ in prompted(split, task, n, seed)]
