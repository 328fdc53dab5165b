"""Which pairs of a concept and a style are held out: a rule from pixels and names alone.

Near duplicates, within a style or across, lie in one split: concepts with such pictures form a group. For HELD_OUT of
the groups, by a hash of a concept's code points, one style is held out of all the group's concepts, again by a hash; a
style with a near duplicate in another style of the group never is. So a concept held out in a style is seen in all
others, and a hash knows nothing of the order of lists. Of one style alone, every twentieth group is held out.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from t2i.data import cache
from t2i.data.emoji_art import Art
from t2i.data.emoji_font import Undrawable
from t2i.data.emoji_names import share
from t2i.data.image_dataset import assign_splits
from t2i.data.seeds import derive_seed
from t2i.viz.progress import counter

VERSION = 1
SIDE, RMSE = 32, 0.02  # near duplicates differ by less than this, of 1, in pictures of SIDE x SIDE
HELD_OUT = 0.4
CHUNK = 512

Pair = tuple[str, str]  # concept, style
NearDuplicates = list[tuple[Pair, Pair]]


def near_duplicates(images: UInt8[Tensor, "n 3 s s"], rmse: float = RMSE) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of pictures whose root mean squared difference is less than `rmse`, of 1; counted in whole
    numbers, so that all machines find the same."""
    flat = images.flatten(1).float().div(255)
    squares, most = flat.square().sum(1), rmse**2 * flat.shape[1]
    found = []
    for first in range(0, len(flat), CHUNK):
        rows = slice(first, first + CHUNK)
        away = squares[rows, None] + squares[None, first:] - 2 * flat[rows] @ flat[first:].T
        for i, j in (away < 1.1 * most + 0.1).nonzero().add(first).tolist():
            if i < j:
                exact = (images[i].long() - images[j].long()).square().sum().item()
                if exact < most * 255**2:
                    found.append((i, j))
    return found


def find_near_duplicates(
    arts: Mapping[str, Art], keys: Sequence[str], background: str, root: Path | None = None,
) -> tuple[NearDuplicates, dict[str, str]]:
    """Near duplicates among all pictures of some concepts, and what of these cannot be drawn, with the reason, by
    concept. All are rendered for it, once: what was found is kept below `root`, unless that is None."""
    if root is None:
        return _compare(arts, keys, background)
    header = {"version": VERSION, "side": SIDE, "rmse": RMSE, "background": background,
              "art": {style: art.version for style, art in arts.items()}, "concepts": derive_seed(*keys)}

    def fill(part: Path) -> cache.Header:
        near, faults = _compare(arts, keys, background)
        (part / "near.json").write_text(json.dumps({"near": near, "faults": faults}), encoding="utf-8")
        return {}

    folder = root / "emoji" / f"{derive_seed(json.dumps(header)):016x}"
    cache.build(folder, header, fill, "index of near duplicates")
    try:
        found = json.loads((folder / "near.json").read_text(encoding="utf-8"))
        return [((a, b), (c, d)) for (a, b), (c, d) in found["near"]], dict(found["faults"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder}/near.json is damaged: {error!r}. Delete {folder} to make it anew.") from error


def _compare(arts: Mapping[str, Art], keys: Sequence[str], background: str) -> tuple[NearDuplicates, dict[str, str]]:
    images, pairs, faults = list[Tensor](), list[Pair](), dict[str, str]()
    with counter("near duplicates", len(keys) * len(arts)) as progress:
        for key in keys:
            for style, art in arts.items():
                try:
                    images.append(art.pixels(key, SIDE, background))
                    pairs.append((key, style))
                except Undrawable as error:
                    faults.setdefault(key, str(error))
            progress(len(images))
    near = near_duplicates(torch.stack(images)) if images else []
    return [(pairs[i], pairs[j]) for i, j in near], faults


def group_concepts(keys: Sequence[str], near: NearDuplicates) -> dict[str, str]:
    """The group of each concept, by its first key in the order of letters."""
    index = {key: i for i, key in enumerate(sorted(keys))}
    ends = np.array([(index[a], index[b]) for (a, _), (b, _) in near if a in index and b in index]).reshape(-1, 2)
    joined = coo_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(len(index), len(index)))
    labels = connected_components(joined, directed=False)[1]
    names = dict[int, str]()
    return {key: names.setdefault(int(label), key) for key, label in zip(index, labels, strict=True)}


def held_out_pairs(keys: Sequence[str], styles: Sequence[str], near: NearDuplicates) -> set[Pair]:
    """The pairs of concept and style that no training split has."""
    groups = group_concepts(keys, near)
    names = sorted(set(groups.values()))
    if len(styles) == 1:
        chosen = {name for name, split in zip(names, assign_splits(names), strict=True) if split == "val"}
        return {(key, styles[0]) for key in keys if groups[key] in chosen}
    barred: defaultdict[str, set[str]] = defaultdict(set)
    for (a, style), (_, other) in near:
        if a in groups and style != other:
            barred[groups[a]] |= {style, other}
    styles_out: dict[str, str] = {}
    for name in names:
        allowed = [style for style in styles if style not in barred[name]]
        if allowed and share(name) < HELD_OUT:
            styles_out[name] = min(allowed, key=lambda style: share(name, style))
    return {(key, styles_out[groups[key]]) for key in keys if groups[key] in styles_out}
