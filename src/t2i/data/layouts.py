"""Where the things of an embedded scene stand: rejection sampling, deterministic by the given random generator."""

from __future__ import annotations

import math
from random import Random

from t2i.data.phrases import pick
from t2i.data.scenes import GAP, MARGIN, relations


def coordinate(rng: Random, low: float, lattice: int | None) -> float:
    """A number in [low, 1 - low]: free on a grid of 1/1024 (so that a scene's content is a handful of integers), or
    a centre of the lattice's cells."""
    if lattice is None:
        return round((low + (1 - 2 * low) * rng.random()) * 1024) / 1024
    cells = [k for k in range(lattice) if low <= (k + 0.5) / lattice <= 1 - low]
    return (pick(rng, cells) + 0.5) / lattice


def place(
    rng: Random, radii: list[float], groups: tuple[int, ...], relation: str | None, lattice: int | None
) -> list[tuple[float, float]] | None:
    """Places without overlap, or None where many tries found no room; with a relation every pair across the groups
    holds it, single pairs clearly so."""
    axis = 0 if relation in ("left", "right") else 1
    clear = relation is not None and len(radii) == 2
    placed: list[tuple[float, float]] = []
    for tries in range(1, 600 * len(radii)):
        if len(placed) == len(radii):
            return placed
        if tries % (30 * len(radii)) == 0:
            placed = []
        i = len(placed)
        spot = [coordinate(rng, MARGIN + radii[i], lattice) for _ in range(2)]
        if relation is not None and not clear:  # groups keep to their halves: fewer tries
            first_half = (i < groups[0]) == (relation in ("left", "above"))
            if (spot[axis] < 0.5) != first_half:
                continue
        x, y = spot
        if any(
            math.hypot(x - u, y - v) < radii[i] + r + GAP for (u, v), r in zip(placed, radii[:i], strict=True)
        ):
            continue
        if relation is not None and i >= groups[0]:
            others = list(zip(placed, radii[:i], strict=True))[: groups[0]]
            if any(relation not in relations(u, v, r, x, y, radii[i]) for (u, v), r in others):
                continue
            if clear:
                offset = abs(x - placed[0][0]), abs(y - placed[0][1])
                if offset[1 - axis] > 0.5 * offset[axis]:
                    continue
        placed.append((x, y))
    return None
