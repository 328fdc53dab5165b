"""Composition accuracy: does a picture of shapes show what its caption claims?

Protocol "shapes-reader 1 / GenEval logic". A reader without learned weights turns a picture back into a list of things
(shape, colour, place, size) and its background; the clause logic of GenEval (arXiv 2310.11513) judges the caption's
clauses; a picture is right if every clause holds; a task's score is the mean over its pictures, overall the mean over
the tasks. As in GenEval, a thing must be there at least as often as claimed, and in the count task exactly as often;
other things beside it are no fault; a relation must hold between all pairs of the things that it names. Deviation:
no detector and no confidences, since the world is known: colours are the palette's, shapes the six of `scenes.py`, and
what looks like none of them is read as "unknown" and matches no clause.

Beside every score belong the same reader's score on true renders (ceiling), on the tokenizer's reconstructions
(stage-1 ceiling) and on pictures of shuffled captions (floor: `shuffled`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from torch import Tensor

from t2i.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    SHAPES,
    TASKS,
    Caption,
    Clause,
    Described,
    OnBackground,
    Related,
    Thing,
    coverage,
    relations,
)

READER = "shapes-reader 1"
UNKNOWN = "unknown"

_COLOUR_NAMES, _BACKGROUND_NAMES = tuple(COLOURS), tuple(BACKGROUNDS)
_PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)  # (8, 3)
_GROUNDS = np.array(list(BACKGROUNDS.values()), dtype=np.float32)  # (6, 3)
_FAR_COLOUR = 80.0  # a core farther than this from the whole palette has no name
_ASTRAY = 60.0  # RGB distance from the mixtures of background and colour
_FAINT = np.array([1.0, 0.85, 0.7], dtype=np.float32)
_SPECK = 0.35  # of the area of the smallest thing: less is dirt
_MISFIT = 0.30  # share of the mass off the best template beyond which a shape has no name
_WHOLE = 0.25  # share off the best template above which a thing of several colours may be several things
_SIZE_BORDER = (RADII["small"] + RADII["large"]) / 2


@dataclass(frozen=True)
class Found:
    """A thing read from a picture; `x`, `y`, `radius` in canvas fractions, `misfit` the share of mass off template."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    misfit: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """Whether all clauses hold, and one reason for each that does not."""

    correct: bool
    reasons: tuple[str, ...]


def _moments() -> tuple[np.ndarray, np.ndarray]:
    """Area and the centre of mass's height of each shape at radius 1."""
    masks = [coverage(shape, 150, 150, 100, 300, 300) for shape in SHAPES]
    rows = np.arange(300)[:, None] + 0.5
    areas = np.array([mask.sum() for mask in masks])
    heights = np.array([(mask * rows).sum() for mask in masks]) / areas
    return areas / 100**2, (heights - 150) / 100


_AREAS, _HEIGHTS = _moments()


def as_bytes(image: np.ndarray | Tensor) -> np.ndarray:
    """uint8 (…, h, w, 3) from the same, or from a float tensor (…, 3, h, w) in [-1, 1]."""
    if isinstance(image, Tensor):
        if not image.is_floating_point() or image.shape[-3] != 3:
            raise ValueError(f"image: a tensor must be float (…, 3, h, w), got {image.dtype} {tuple(image.shape)}")
        image = image.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().byte().movedim(-3, -1).numpy()
    if image.dtype != np.uint8 or image.shape[-1] != 3:
        raise ValueError(f"image: an array must be uint8 (…, h, w, 3), got {image.dtype} {image.shape}")
    return image


def _nearest(pixels: np.ndarray, names: np.ndarray) -> np.ndarray:
    """Index of the nearest of `names` (k, 3) for each of `pixels` (n, 3)."""
    return (np.square(names).sum(1) - 2 * pixels @ names.T).argmin(1)


def _background(image: np.ndarray) -> tuple[str, np.ndarray]:
    """The background that most of the border looks like, and its colour as it came out."""
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    names = _nearest(border, _GROUNDS)
    best = int(np.bincount(names, minlength=len(_GROUNDS)).argmax())
    return _BACKGROUND_NAMES[best], np.median(border[names == best], axis=0)


def _parts(mask: np.ndarray, image: np.ndarray) -> list[np.ndarray]:
    """One component (boolean mask) parted by colour, if its inner pixels show several."""
    # The inner pixels vote: edges are mixtures with the background and would show colours of their own.
    inner = ndimage.binary_erosion(mask, np.ones((3, 3)))
    counts = np.bincount(_nearest(image[inner], _PALETTE), minlength=len(_PALETTE))
    present = np.flatnonzero(counts > 0.15 * counts.sum())
    if len(present) < 2:
        return []
    owner = np.full(mask.shape, -1)
    owner[mask] = present[_nearest(image[mask], _PALETTE[present])]
    return [owner == colour for colour in present]


def _thing(offset: np.ndarray, ground: np.ndarray, mask: np.ndarray, others: np.ndarray) -> Found:
    """Read one thing: opacity against the background, then the best of six templates of equal mass.

    `offset` is the crop's colours less the background's, `mask` the thing's pixels; places in pixels of the crop.
    """
    height, width = mask.shape
    pixels = offset[mask]
    strength = np.square(pixels).sum(1)
    core = np.median(pixels[strength >= np.quantile(strength, 0.6)], axis=0)
    # Thin things never reach their full colour when blurred, so fainter colours count too, at a small price.
    faint = _FAINT[:, None, None] * (_PALETTE - ground)  # (3, 8, 3)
    far = (np.sqrt(np.square(core - faint).sum(-1)) + 60 * (1 - _FAINT[:, None])).min(0)
    colour = int(far.argmin())
    known = far[colour] < _FAR_COLOUR
    axis = _PALETTE[colour] - ground if known else core
    near = ndimage.binary_dilation(mask) & ~others
    alpha = np.where(near, np.clip(offset @ (axis / (axis @ axis)), 0, 1), 0)
    # Blur keeps to the line from background to colour; a thing that leaves it has no one colour to claim.
    astray = np.square(offset - alpha[:, :, None] * axis).sum(-1)[mask] > _ASTRAY**2
    known = known and astray.mean() < 0.3
    mass = max(float(alpha.sum()), 1e-6)
    x = float(alpha.sum(0) @ (np.arange(width) + 0.5)) / mass
    y = float(alpha.sum(1) @ (np.arange(height) + 0.5)) / mass
    radii = np.maximum(np.sqrt(mass / _AREAS), 1.0)
    tops = y - _HEIGHTS * radii
    templates = np.stack([coverage(s, x, tops[i], radii[i], width, height) for i, s in enumerate(SHAPES)])
    misfits = np.abs(alpha - templates).sum((1, 2)) / mass
    if misfits.min() > 0.06:  # not drawn sharply: a reconstruction, so compare with soft templates too
        soft = ndimage.gaussian_filter(templates, (0, 0.7, 0.7), truncate=3)
        misfits = np.minimum(misfits, np.abs(alpha - soft).sum((1, 2)) / mass)
    best = int(np.argmin(misfits))
    return Found(shape=SHAPES[best] if misfits[best] < _MISFIT else UNKNOWN,
                 colour=_COLOUR_NAMES[colour] if known else UNKNOWN, size="",
                 x=x, y=float(tops[best]), radius=float(radii[best]), misfit=float(misfits[best]))


def read_scene(image: np.ndarray | Tensor) -> tuple[str, list[Found]]:
    """Background and things of one picture: uint8 (h, w, 3), or a float tensor (3, h, w) in [-1, 1]."""
    picture = as_bytes(image).astype(np.float32)
    height, width, _ = picture.shape
    name, ground = _background(picture)
    offset = picture - ground
    # Half of the way to the palette's colour that is nearest to this background.
    least = 0.45 * float(np.linalg.norm(_PALETTE - BACKGROUNDS[name], axis=1).min())
    labels, count = ndimage.label(np.square(offset).sum(-1) > least**2)
    speck = _SPECK * _AREAS.min() * (RADII["small"] * width) ** 2
    found: list[Found] = []
    for number, (ys, xs) in enumerate(ndimage.find_objects(labels, count), start=1):
        # With surroundings, for the soft edge and for templates that overhang.
        top, left = max(ys.start - 2, 0), max(xs.start - 2, 0)
        box = (slice(top, ys.stop + 2), slice(left, xs.stop + 2))
        mask = labels[box] == number
        if mask.sum() < speck:
            continue
        others = (labels[box] > 0) & ~mask
        things = [_thing(offset[box], ground, mask, others)]
        parts = _parts(mask, picture[box])
        if parts and things[0].misfit > _WHOLE:  # perhaps several things that touch
            pieces = [_thing(offset[box], ground, part, others | (mask & ~part)) for part in parts]
            pieces = [piece for piece in pieces if _area(piece) > speck]
            if pieces and max(piece.misfit for piece in pieces) < things[0].misfit:
                things = pieces
        for thing in things:
            if _area(thing) > speck:
                x, y, radius = (thing.x + left) / width, (thing.y + top) / height, thing.radius / width
                size = "small" if radius < _SIZE_BORDER else "large"
                found.append(replace(thing, x=x, y=y, radius=radius, size=size))
    return name, found


def _area(thing: Found) -> float:
    area = _AREAS[SHAPES.index(thing.shape)] if thing.shape != UNKNOWN else 2.0
    return float(area) * thing.radius**2


def _matches(thing: Found | Thing, clause: Described) -> bool:
    return (thing.shape == clause.shape and clause.colour in (None, thing.colour)
            and clause.size in (None, thing.size))


def check_clauses(background: str, found: Sequence[Found | Thing], clauses: Sequence[Clause]) -> Verdict:
    """GenEval's logic: every clause must hold. Takes what `read_scene` returns, or a scene graph's own things."""
    reasons: list[str] = []
    groups: dict[int, list[Found | Thing]] = {}
    for number, clause in enumerate(clauses):
        if isinstance(clause, Described):
            groups[number] = matching = [thing for thing in found if _matches(thing, clause)]
            if len(matching) != clause.count if clause.exact else len(matching) < clause.count:
                wanted = " ".join(word for word in (clause.size, clause.colour, clause.shape) if word)
                bound = "exactly" if clause.exact else "at least"
                reasons.append(f"{wanted}: {bound} {clause.count} wanted, {len(matching)} found")
        elif isinstance(clause, OnBackground) and background != clause.background:
            reasons.append(f"background: {clause.background} wanted, {background} found")
    for clause in clauses:
        if not isinstance(clause, Related):
            continue
        subjects, targets = groups[clause.subject], groups[clause.object]
        if not subjects or not targets:
            reasons.append(f"{clause.relation}: nothing to relate")
        elif any(clause.relation not in relations(a.x, a.y, a.radius, b.x, b.y, b.radius)
                 for a in subjects for b in targets):
            reasons.append(f"{clause.relation}: the {subjects[0].shape} is not {clause.relation} of {targets[0].shape}")
    return Verdict(not reasons, tuple(reasons))


def verdicts(images: np.ndarray | Tensor, captions: Sequence[Caption]) -> list[Verdict]:
    """One verdict a picture; images uint8 (n, h, w, 3) or a float tensor (n, 3, h, w) in [-1, 1]."""
    pictures = as_bytes(images)
    if pictures.ndim != 4 or len(pictures) != len(captions):
        raise ValueError(f"images {pictures.shape} for {len(captions)} captions: one picture a caption is wanted")
    return [check_clauses(*read_scene(picture), caption.clauses)
            for picture, caption in zip(pictures, captions, strict=True)]


def composition_score(images: np.ndarray | Tensor, captions: Sequence[Caption]) -> dict[str, float]:
    """Share of right pictures for each task among the captions, and "overall", the mean of those tasks."""
    return shares([verdict.correct for verdict in verdicts(images, captions)], captions)


def shares(correct: Sequence[bool], captions: Sequence[Caption]) -> dict[str, float]:
    """`composition_score` of verdicts already at hand."""
    right: dict[str, list[bool]] = {}
    for hit, caption in zip(correct, captions, strict=True):
        right.setdefault(caption.task, []).append(hit)
    if not right:
        raise ValueError("captions: none given, a score needs at least one")
    order = [task for task in (*TASKS, "compound") if task in right]
    scores: dict[str, float] = {task: float(np.mean(right[task])) for task in order}
    return {**scores, "overall": float(np.mean(list(scores.values())))}


def shuffled(captions: Sequence[Caption], seed: int = 0) -> list[Caption]:
    """For the floor: each picture gets another picture's caption of the same task (no place keeps its own)."""
    result = list(captions)
    rng = np.random.default_rng(seed)
    for task in dict.fromkeys(caption.task for caption in captions):
        places = rng.permutation([i for i, caption in enumerate(captions) if caption.task == task])
        if len(places) < 2:
            raise ValueError(f"captions: only one of task {task!r}, nothing to shuffle it with")
        for place, source in zip(places, np.roll(places, 1), strict=True):
            result[place] = captions[source]
    return result
