"""Drawings of what is asked for in words that never stood in a training caption, beside the same by seen names.

Of data with concepts in styles: for each of `Gallery.unseen_words` a pair of concept and style that was seen is drawn
by the word's caption and by the pair's own, from the same seeds, styles in turn. A drawing is right if the nearest of
all true renders (`t2i.metrics.nearest_render`, plain distance) shows a concept that the word names, in whatever style.
The group `far` has the words that share none with the names of their concepts: `stew`, not `panda face`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from t2i.evaluation.composition import Judgement, Paint
from t2i.evaluation.nearest_render import SHOWN, channels_first, channels_last, shown_interval
from t2i.metrics.intervals import Interval, described, ratio, wilson
from t2i.metrics.nearest_render import TOP, NearestRender
from t2i.metrics.unseen_pairs import places
from t2i.types import Gallery, UnseenWord
from t2i.viz import grids
from t2i.viz.html import named
from t2i.viz.tables import Table

JUDGE = {"right": "the nearest of all true renders shows a concept that the word names",
         "top5": f"of the renders in the style one that the word names is among the nearest {TOP}",
         "interval": "Wilson; of the share of two scores bootstrap over words, 1000"}
MEASURES = ("concept", "top5")
SHEET = "asked for by unseen words: the first right and the first wrong ones"


@dataclass(frozen=True)
class Asked:
    """A word, and the place in the gallery of the seen pair that is drawn for it."""

    word: UnseenWord
    place: int


def asked(gallery: Gallery, n: int, seed: int) -> list[Asked]:
    """`n` unseen words, by chance, or all, each with a seen pair of a concept that it names; styles in turn.

    ValueError where the gallery has fewer than two such words.
    """
    if n < 2:
        raise ValueError(f"n_pairs={n}: metrics=[paraphrase] takes at least 2 (the floor exchanges words)")
    row = {name: i for i, name in enumerate(dict.fromkeys(gallery.concepts))}
    at = places(gallery)
    seen = (at >= 0) & ~gallery.held_out[at]
    found: list[Asked] = []
    for i in torch.randperm(len(gallery.unseen_words), generator=torch.Generator().manual_seed(seed)).tolist():
        word = gallery.unseen_words[i]
        pairs = [(row[name], (len(found) + k) % at.shape[1]) for k in range(at.shape[1]) for name in word.concepts]
        if (pair := next((pair for pair in pairs if seen[pair]), None)) is not None and len(found) < n:
            found.append(Asked(word, int(at[pair])))
    if len(found) < 2:
        raise ValueError(f"metrics=[paraphrase] asks by words that stand in no caption of the data; there are"
                         f" {len(found)}, at least 2 are needed")
    return found


def captions(gallery: Gallery, chosen: list[Asked]) -> dict[str, list[str]]:
    """What is drawn, by `names` and by `words`."""
    return {"names": [gallery.captions[one.place] for one in chosen],
            "words": [one.word.captions[gallery.styles[one.place]] for one in chosen]}


def is_far(word: UnseenWord) -> bool:
    """Whether a word shares none with the names of its concepts."""
    return not set(word.word.split()) & set(" ".join(word.concepts).replace("-", " ").split())


def judged(paint: Paint, gallery: Gallery, n: int, seed: int, device: torch.device | str = "cpu") -> Judgement:
    """Judges what `paint` gives for the captions of `n` unseen words, and of the same pairs by name: scores by group
    (`all`, `far`), kind and measure."""
    chosen, judge = asked(gallery, n, seed), NearestRender(gallery, device)
    truth = torch.tensor([one.place for one in chosen])
    named_by = torch.tensor([[name in one.word.concepts for name in gallery.concepts] for one in chosen])
    drawn = {kind: channels_first(paint(kind, text)) for kind, text in captions(gallery, chosen).items()}
    nearest, right, rank = judge.among(drawn["words"], named_by, truth)
    verdicts = {
        "names": judge.among(drawn["names"], named_by, truth)[1:], "words": (right, rank),
        "ceiling_renders": judge.among(gallery.images[truth], named_by, truth)[1:],
        "floor_shuffled_words": judge.among(drawn["words"], named_by.roll(1, 0), truth)[1:],
    }
    far = torch.tensor([is_far(one.word) for one in chosen])
    groups = {group: some for group, some in (("all", torch.ones_like(far)), ("far", far)) if some.any()}
    scores = {group: _scores({kind: (hit[some], at[some] <= TOP) for kind, (hit, at) in verdicts.items()}, seed)
              for group, some in groups.items()}
    values = [("_".join(filter(None, ("paraphrase", "far" if group == "far" else "", kind,
                                      "top5" if name == "top5" else ""))), interval, "higher", int(some.sum()))
              for group, some in groups.items() for kind in ("names", "words", "share")
              for name, interval in scores[group][kind].items()]
    words = [
        {"caption": one.word.captions[gallery.styles[one.place]], "word": one.word.word,
         "concepts": list(one.word.concepts), "taken_for": gallery.captions[j], "right": hit, "rank_in_style": place}
        for one, j, hit, place in zip(chosen, nearest.tolist(), right.tolist(), rank.tolist(), strict=True)]
    protocol = {**JUDGE, "n_pairs": n, "unseen_words": len(gallery.unseen_words), "renders": len(gallery.images)}
    return Judgement("Unseen words", described(scores), values, protocol, tables(described(scores)),
                     {"paraphrase": (_sheet(gallery, chosen, drawn, nearest, right, rank), SHEET)},
                     {"unseen_words": words})


def _scores(hits: Mapping[str, tuple[Bool[Tensor, " n"], ...]], seed: int) -> dict[str, dict[str, Interval]]:
    """Shares by kind and measure; `share` is that of `words` in `names`, where these are ever right."""
    found = {kind: dict(zip(MEASURES, map(wilson, each), strict=True)) for kind, each in hits.items()}
    share = {name: ratio(words.double(), names.double(), seed)
             for name, words, names in zip(MEASURES, hits["words"], hits["names"], strict=True) if names.any()}
    return {"names": found.pop("names"), "words": found.pop("words"), "share": share, **found}


def _sheet(
    gallery: Gallery, chosen: list[Asked], drawn: Mapping[str, UInt8[Tensor, "n 3 s s"]], nearest: Tensor,
    right: Bool[Tensor, " n"], rank: Tensor,
) -> Image.Image:
    """The first right and the first wrong drawings over those by name, the true renders and the nearest ones."""
    good, bad = right.nonzero()[:, 0].tolist(), (~right).nonzero()[:, 0].tolist()
    some = good[: max(SHOWN, 2 * SHOWN - len(bad))] + bad[: max(SHOWN, 2 * SHOWN - len(good))]
    under = [f"{chosen[k].word.word} ({', '.join(chosen[k].word.concepts)}): "
             + ("right" if right[k] else f"taken for {gallery.concepts[int(nearest[k])]}; rank {int(rank[k])}")
             for k in some]
    truth = gallery.images[[chosen[k].place for k in some]]
    rows = [("by the word", drawn["words"][some]), ("by the name", drawn["names"][some]), ("true render", truth),
            ("nearest render", gallery.images[nearest[some]])]
    return grids.rows([(label, channels_last(pictures)) for label, pictures in rows], under)


def tables(scores: Mapping[str, Any]) -> list[Table]:
    """Of the nested scores, one a group: kinds in rows, measures with their intervals in columns."""
    titles = {"all": "Asked for by unseen words", "far": "By unseen words that share none with the name"}
    return [Table(titles[group], ["asked for", "right concept", "top five of the style"],
                  [[named(kind), *(shown_interval(found[name]) if name in found else "–" for name in MEASURES)]
                   for kind, found in kinds.items()], strong_rows=[1])
            for group, kinds in scores.items()]
