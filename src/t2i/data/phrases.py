"""The grammar of the embedded data set: captions that are true of a scene, in several phrasings, under 120 words.

A caption says as much as its task needs (shape, number, colour, relation) and, when `extras`, at times size and
background. Orange takes "an"; numbers come as words and as digits; one thing is "a", "one" or "1".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from random import Random
from typing import TypeVar

from t2i.data.scenes import INVERSE, Caption, Clause, Described, OnBackground, Related, Scene

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
T = TypeVar("T")


def pick(rng: Random, choices: Sequence[T]) -> T:
    """One of `choices`, from `Random.random()` alone, whose sequence Python promises to keep."""
    return choices[int(rng.random() * len(choices))]


def describe(scene: Scene, rng: Random, extras: bool = True) -> Caption:
    """One caption of the scene. Without `extras` neither size nor background is spoken of."""
    clauses: list[Clause] = []
    words: list[str] = []
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
        described = Described(group[0].shape, colour, size, count, scene.task in ("count", "compound"))
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
