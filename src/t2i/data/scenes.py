"""Scene graphs of coloured shapes: what a picture contains, how it is drawn, and captions that are true of it.

The ground shared by the embedded data set (`data/shapes.py`) and the composition metric (`metrics/composition.py`).
Pure numpy. Positions and radii are fractions of the canvas; x runs right, y runs down. A thing lies inside the circle
of its `radius` around (x, y), whatever its shape. The relation between two things is GenEval's (arXiv 2310.11513,
offset of the centres, shrunk by a tenth of both boxes, against the distance of the centres).

A caption says as much as its task needs (shape, number, colour, relation) and, with `extras`, at times size and
background. Orange takes "an"; numbers come as words and as digits; one thing is "a", "one" or "1".
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Literal, TypeVar

import numpy as np

# Nearest pair: 105 apart in RGB (orange and yellow); nearest to a background: 106 (green and brown).
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 30, 40), "green": (35, 150, 60), "blue": (35, 75, 225), "yellow": (250, 232, 60),
    "orange": (245, 135, 20), "purple": (130, 40, 180), "cyan": (60, 210, 230), "pink": (250, 100, 190),
}  # fmt: skip
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255), "black": (0, 0, 0), "gray": (150, 150, 150), "beige": (225, 210, 180),
    "navy": (20, 25, 70), "brown": (95, 65, 40),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
RADII = {"small": 0.11, "large": 0.16}
GAP = 0.028  # between the circles around two things
MARGIN = 0.03  # between such a circle and the edge of the canvas
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
PLURAL_ES = ("cross",)
FRAMES = ("{x}", "{x}", "{x}", "a picture of {x}", "a drawing of {x}", "there {is} {x}")
PAIRS = ("{a} and {b}", "{a} and {b}", "{a} with {b}", "{a}, {b}", "both {a} and {b}")
RELATIONS = {
    "left": ("{a} to the left of {b}", "{a} left of {b}", "{a} on the left of {b}", "{a} beside {b}, on the left",
             "{a} on the left and {b} on the right"),
    "right": ("{a} to the right of {b}", "{a} right of {b}", "{a} on the right of {b}", "{a} beside {b}, on the right",
              "{a} on the right and {b} on the left"),
    "above": ("{a} above {b}", "{a} above {b}", "{a} over {b}", "{a} at the top and {b} at the bottom"),
    "below": ("{a} below {b}", "{a} below {b}", "{a} under {b}", "{a} at the bottom and {b} at the top"),
}
INVERSE = {"left": "right", "right": "left", "above": "below", "below": "above"}

Task = Literal["single", "colour", "count", "two", "position", "attribution", "compound"]
TASKS: tuple[Task, ...] = ("single", "colour", "count", "two", "position", "attribution")  # GenEval's six

T = TypeVar("T")

# Extents for radius 1. The square's half side keeps its corners inside the circle.
_CIRCLE, _SQUARE, _CROSS_HALF, _RING_OUTER, _RING_INNER = 0.88, 0.70, 0.32, 0.98, 0.52
_SQRT2, _SQRT3_2 = math.sqrt(2.0), math.sqrt(3.0) / 2.0


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `x`, `y`, `radius` in canvas fractions."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Scene:
    """A scene graph. `things` are listed group by group; `groups` holds the size of each group.

    All things of a group have one shape. `relation` says where the first group lies with respect to the second, in
    scenes whose captions speak of it.
    """

    background: str
    things: tuple[Thing, ...]
    task: Task
    groups: tuple[int, ...]
    relation: str | None = None


@dataclass(frozen=True)
class Described:
    """Claim: the picture has `count` such things, at least (exactly when `exact`); None claims nothing."""

    shape: str
    colour: str | None = None
    size: str | None = None
    count: int = 1
    exact: bool = False


@dataclass(frozen=True)
class Related:
    """Claim: clause number `subject` lies `relation` ("left" …) of clause number `object` of the same caption."""

    relation: str
    subject: int
    object: int


@dataclass(frozen=True)
class OnBackground:
    """Claim: the background has this colour."""

    background: str


Clause = Described | Related | OnBackground


@dataclass(frozen=True)
class Caption:
    """A sentence, what it claims, and the task it belongs to."""

    text: str
    clauses: tuple[Clause, ...]
    task: Task


def relations(ax: float, ay: float, ar: float, bx: float, by: float, br: float) -> set[str]:
    """Where a (centre, radius) lies with respect to b: a subset of {left, right, above, below}, as GenEval has it."""
    dx, dy = ax - bx, ay - by
    norm = math.hypot(dx, dy)
    slack = 0.1 * (2 * ar + 2 * br)
    if norm < 1e-6:
        return set()
    dx = math.copysign(max(abs(dx) - slack, 0.0), dx) / norm
    dy = math.copysign(max(abs(dy) - slack, 0.0), dy) / norm
    found = {"left": dx < -0.5, "right": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, holds in found.items() if holds}


def _distance(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline for radius 1, negative inside; exact up to the corners' outside."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - _CIRCLE
    if shape == "ring":
        middle, half = (_RING_OUTER + _RING_INNER) / 2, (_RING_OUTER - _RING_INNER) / 2
        return np.abs(np.sqrt(u * u + v * v) - middle) - half
    u = np.abs(u)
    if shape == "triangle":  # point up
        return np.maximum(v - 0.5, u * _SQRT3_2 - v * 0.5 - 0.5)
    v = np.abs(v)
    if shape == "square":
        return np.maximum(u, v) - _SQUARE
    if shape == "diamond":
        return (u + v - 1.0) / _SQRT2
    if shape == "cross":
        return np.maximum(np.minimum(u, v) - _CROSS_HALF, np.maximum(u, v) - 0.95)
    raise ValueError(f"shape={shape!r} is none of {', '.join(SHAPES)}")


def coverage(shape: str, x: float, y: float, radius: float, width: int, height: int) -> np.ndarray:
    """How much of each pixel a shape covers, (height, width) in [0, 1]; all arguments in pixels."""
    u = (np.arange(width, dtype=np.float32) + (0.5 - x))[None, :] / radius
    v = (np.arange(height, dtype=np.float32) + (0.5 - y))[:, None] / radius
    return np.clip(0.5 - _distance(shape, u, v) * radius, 0.0, 1.0)


def render(scene: Scene, image_size: int) -> np.ndarray:
    """Draw a scene, antialiased: uint8 (image_size, image_size, 3)."""
    canvas = np.empty((image_size, image_size, 3), dtype=np.float32)
    canvas[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        x, y, radius = thing.x * image_size, thing.y * image_size, thing.radius * image_size
        left, top = max(int(x - radius) - 1, 0), max(int(y - radius) - 1, 0)
        right, bottom = min(int(x + radius) + 3, image_size), min(int(y + radius) + 3, image_size)
        mask = coverage(thing.shape, x - left, y - top, radius, right - left, bottom - top)[:, :, None]
        box = canvas[top:bottom, left:right]
        box += mask * (np.array(COLOURS[thing.colour], dtype=np.float32) - box)
    return (canvas + 0.5).astype(np.uint8)


def pick(rng: Random, choices: Sequence[T]) -> T:
    """One of `choices`, from `Random.random()` alone, whose sequence Python promises to keep."""
    return choices[int(rng.random() * len(choices))]


def describe(scene: Scene, rng: Random, extras: bool = True) -> Caption:
    """One caption of the scene, in one of several phrasings, under 120 words. Without `extras` neither size nor
    background is spoken of."""
    clauses: list[Clause] = []
    words: list[str] = []
    for described in claims(scene, rng, extras):
        clauses.append(described)
        words.append(_phrase(described, rng, plain_number=scene.task != "count"))
    if len(words) == 1:
        text = pick(rng, FRAMES).format(x=words[0], **{"is": "is" if scene.groups[0] == 1 else "are"})
    elif scene.relation is not None:
        relation, a, b = scene.relation, 0, 1
        if rng.random() < 0.5:
            relation, a, b = INVERSE[relation], 1, 0
        text = pick(rng, RELATIONS[relation]).format(a=words[a], b=words[b])
        clauses.append(Related(relation, a, b))
    else:
        a = int(rng.random() * 2)
        text = pick(rng, PAIRS).format(a=words[a], b=words[1 - a])
    if extras and rng.random() < 0.15:
        clauses.append(OnBackground(scene.background))
        text = f"{text} on a {scene.background} background"
    return Caption(text, tuple(clauses), scene.task)


def claims(scene: Scene, rng: Random, extras: bool) -> Iterator[Described]:
    """What a caption says of each group: always its shape and number, colour as the task has it, size at times."""
    say_colour = scene.task in ("colour", "attribution", "compound")
    if scene.task in ("count", "position"):
        say_colour = rng.random() < 0.5
    things = iter(scene.things)
    for count in scene.groups:
        group = list(islice(things, count))
        coloured = say_colour
        if scene.task == "position" and extras and rng.random() < 0.15:  # "a red circle above a square"
            coloured = not coloured
        colour = _shared({thing.colour for thing in group}) if coloured else None
        size = _shared({thing.size for thing in group}) if extras and rng.random() < 0.3 else None
        yield Described(group[0].shape, colour, size, count, scene.task in ("count", "compound"))


def _shared(values: set[str]) -> str | None:
    return values.pop() if len(values) == 1 else None


def _phrase(clause: Described, rng: Random, plain_number: bool) -> str:
    """ "two small red circles" and its variants."""
    plural = "" if clause.count == 1 else "es" if clause.shape in PLURAL_ES else "s"
    rest = " ".join(word for word in (clause.size, clause.colour, clause.shape + plural) if word)
    if clause.count > 1:
        number = NUMBERS[clause.count] if rng.random() < 0.6 else str(clause.count)
    else:
        roll = rng.random() if plain_number else 0.65 + 0.35 * rng.random()
        article = "an" if rest.startswith("orange") else "a"
        number = article if roll < 0.75 else "one" if roll < 0.9 else "1"
    return f"{number} {rest}"
