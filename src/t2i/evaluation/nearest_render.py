"""Drawings of concepts in styles, judged by the nearest render (`t2i.metrics.nearest_render`).

On seen and on held-out pairs: measures beside ceilings (the true renders, the tokenizer's reconstructions) and, where
pairs of several styles are held out, floors that need no net (`t2i.metrics.unseen_pairs`); what was taken for what;
sheets to look at. Beside them stands how far pictures are from their true ones by `EfficientNetDistance`, which tells
sharp from blurred and judges nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from t2i.data.datasets import dataset
from t2i.evaluation.composition import Judgement, Paint, reconstructed
from t2i.evaluation.generated_images import BATCH
from t2i.losses.perceptual import EfficientNetDistance
from t2i.metrics.intervals import Interval, bootstrap, described
from t2i.metrics.nearest_render import DISTANCES, MEASURES, SIDE, NearestRender, Verdicts
from t2i.metrics.unseen_pairs import floors, places
from t2i.types import Gallery, HasGallery
from t2i.viz import grids
from t2i.viz.html import named
from t2i.viz.tables import Table

JUDGE = {"judge": f"nearest of all true renders, squared differences of {SIDE} x {SIDE} averages",
         "interval": "Wilson; of a median order statistics; of a distance bootstrap, 1000"}
SHOWN = 4  # right and as many wrong drawings on a sheet
CONCEPTS = 8  # rows of the table of styles
LISTED = 20  # confusions
CAPTIONS = {
    "styles": "concepts in every style, the pairs that no training saw framed",
    "nearest_render_seen": "seen: the first right and the first wrong ones",
    "nearest_render_heldout": "held out: the first right and the first wrong ones",
}
RENDERS = ("ceiling_renders", "floor_other_style", "floor_other_concept")
LOWER = ("median_rank", "perceptual")


def without_gallery(data: type, metric: str) -> ValueError:
    return ValueError(f"metrics=[{metric}] is of data with concepts drawn in styles, such as data=emoji;"
                      f" {data.__name__} has none")


def open_gallery(
    config: dict[str, Any], size: int, trained: Mapping[str, Any] | None, metric: str = "nearest_render"
) -> Gallery:
    """The true pictures of a config's data at this size, for a metric. `trained`: the data node that a checkpoint was
    trained on.

    ValueError for data without a gallery, for styles that the checkpoint never saw, and for data that hold out other
    pairs than those that it was trained without.
    """
    made = dataset({**config, "data": {**config["data"], "image_size": size}}, "val")
    if not isinstance(made, HasGallery):
        raise without_gallery(type(made), metric)
    if trained is not None and trained["_target_"] != config["data"]["_target_"]:
        names = [node["_target_"].rpartition(".")[2] for node in (trained, config["data"])]
        raise ValueError(f"metrics=[{metric}]: the checkpoint was trained on {names[0]}, not on {names[1]}; images="
                         " judges what others drew")
    found = made.gallery()
    if trained is not None and "styles" in trained:
        if unknown := [style for style in dict.fromkeys(found.styles) if style not in trained["styles"]]:
            raise ValueError(f"data.styles: the checkpoint was trained on {', '.join(trained['styles'])}, never on"
                             f" {', '.join(unknown)}")
        # Which pairs are held out depends on the styles and, by near duplicates, on the ground; their halves also on
        # the order of the styles.
        node = config["data"]
        if other := [f"data.{key}={_shown(node[key])} ({_shown(trained[key])})" for key in ("styles", "background")
                     if key in trained and key in node and _shown(node[key]) != _shown(trained[key])]:
            raise ValueError(f"{', '.join(other)}: other pairs are held out then than those that the checkpoint was"
                             " trained without (its own values in brackets): leave data= out, or give it the same")
    return found


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str) else f"[{', '.join(map(str, value))}]"


def chosen(gallery: Gallery, n: int, seed: int, pairs: str = "all") -> dict[str, Int[Tensor, " m"]]:
    """Places of the pairs that are drawn, by chance: `heldout`, n of them or all, and as many `seen`; n where none is
    held out. `pairs`: all that are held out, or one half of them: `val`, to choose settings by, or `test`, to report.
    The halves do not depend on the seed."""
    chance, held = torch.Generator().manual_seed(seed), gallery.held_out
    each = {"seen": (~held).nonzero()[:, 0], "heldout": held.nonzero()[:, 0]}
    if pairs != "all":
        cut, count = torch.Generator().manual_seed(0), len(each["heldout"])
        order = [torch.randperm(len(at), generator=cut) for at in each.values()][1]  # as seed 0 draws them
        half = order[: count // 2] if pairs == "val" else order[count // 2 :]
        each["heldout"] = each["heldout"][half.sort().values]
    n = min(n, len(each["heldout"])) if held.any() else n
    return {split: at[torch.randperm(len(at), generator=chance)[:n]] for split, at in each.items() if len(at)}


def channels_first(pictures: UInt8[Tensor, "n h w 3"]) -> UInt8[Tensor, "n 3 h w"]:
    return pictures.permute(0, 3, 1, 2).contiguous()


def channels_last(pictures: UInt8[Tensor, "n 3 h w"]) -> UInt8[Tensor, "n h w 3"]:
    return pictures.permute(0, 2, 3, 1).contiguous()


def judged(
    paint: Paint, gallery: Gallery, tokenizer: Any, n: int, seed: int, distance: EfficientNetDistance | None = None,
    styles: bool = True, device: torch.device | str = "cpu", pairs: str = "all",
) -> Judgement:
    """Judges what `paint` gives for the captions of `chosen` pairs: scores by split, kind, distance and measure.

    Args:
        tokenizer: whose reconstructions are a ceiling; None for none.
        distance: of pictures to their true ones.
        styles: also paints the first concepts of the held-out pairs (or of all) in every style, for a table.
        device: compares drawings with renders.
    """
    judge, picked = NearestRender(gallery, device), chosen(gallery, n, seed, pairs)
    scores: dict[str, dict[str, dict[str, dict[str, Interval]]]] = {}
    taken: dict[str, dict[str, list[Any]]] = {}
    sheets: dict[str, Image.Image] = {}
    for split, truth in picked.items():
        renders = gallery.images[truth]
        drawn = channels_first(paint(split, [gallery.captions[i] for i in truth]))
        kinds = {"score": drawn, "ceiling_renders": renders}
        if tokenizer is not None:
            kinds["ceiling_reconstructions"] = channels_first(reconstructed(tokenizer, channels_last(renders)))
        if split == "heldout" and len(set(gallery.styles)) > 1:
            kinds |= {f"floor_{name}": pictures for name, pictures in floors(gallery, truth, seed).items()}
        scores[split] = {}
        for kind, pictures in kinds.items():
            # What is a render lies as it should: 75 looks at it would tell nothing.
            distances = DISTANCES[:1] if kind in RENDERS else DISTANCES
            found = {by: judge.verdicts(pictures, truth, by) for by in distances}
            each: dict[str, dict[str, Interval]] = {by: verdicts.measures() for by, verdicts in found.items()}
            if distance is not None:
                each["plain"]["perceptual"] = bootstrap(_apart(distance, pictures, renders), seed)
            scores[split][kind] = each
            if kind == "score":
                taken[split] = confusions(gallery, truth, found["plain"])
                sheets[f"nearest_render_{split}"] = sheet(gallery, truth, drawn, found["plain"])
    if styles:
        sheets["styles"] = style_table(paint, gallery, picked["heldout" if "heldout" in picked else "seen"])
    values = [(f"nearest_render_{split}_{name}", one, "lower" if name in LOWER else "higher", len(picked[split]))
              for split, kinds in scores.items() for name, one in kinds["score"]["plain"].items()]
    protocol = {**JUDGE, "n_pairs": n, "pairs": pairs, "renders": len(gallery.images),
                "styles": list(dict.fromkeys(gallery.styles))}
    return Judgement("Nearest render", described(scores), values, protocol,
                     [*tables(described(scores)), *confusion_tables(taken)],
                     {name: (image, CAPTIONS[name]) for name, image in sheets.items()}, {"confusions": taken})


def through(tokenizer: Any, gallery: Gallery) -> Paint:
    """A tokenizer's reconstructions in place of drawings."""
    at = {caption: i for i, caption in enumerate(gallery.captions)}
    return lambda split, text: reconstructed(tokenizer, channels_last(gallery.images[[at[one] for one in text]]))


@torch.no_grad()
def _apart(distance: EfficientNetDistance, pictures: Tensor, renders: Tensor) -> Tensor:
    device = next(distance.parameters()).device

    def scaled(part: Tensor) -> Tensor:
        return part.to(device).float().div(127.5).sub(1)

    return torch.cat([distance(scaled(a), scaled(b)).cpu()
                      for a, b in zip(pictures.split(BATCH), renders.split(BATCH), strict=True)])


def confusions(gallery: Gallery, truth: Int[Tensor, " n"], verdicts: Verdicts) -> dict[str, list[Any]]:
    """`styles` and `concepts`: [true, taken for, times], the most frequent first; `examples` of wrong pairs."""
    pairs = list(zip(truth.tolist(), verdicts.nearest.tolist(), verdicts.rank.tolist(), strict=True))

    def counted(names: list[str]) -> list[Any]:
        taken = Counter((names[i], names[j]) for i, j, _ in pairs if names[i] != names[j])
        return [[*names, times] for names, times in taken.most_common(LISTED)]

    wrong = [(i, j, rank) for i, j, rank in pairs if i != j]
    return {"styles": counted(gallery.styles), "concepts": counted(gallery.concepts),
            "examples": [{"caption": gallery.captions[i], "taken_for": gallery.captions[j], "rank_in_style": rank}
                         for i, j, rank in wrong[:LISTED]]}


def sheet(gallery: Gallery, truth: Int[Tensor, " n"], drawn: UInt8[Tensor, "n 3 s s"], verdicts: Verdicts
          ) -> Image.Image:
    """The first right and the first wrong drawings over their true renders and the nearest ones."""
    right, wrong = (mask.nonzero()[:, 0].tolist() for mask in (verdicts.pair, ~verdicts.pair))
    some = sorted(right[: max(SHOWN, 2 * SHOWN - len(wrong))]) + wrong[: max(SHOWN, 2 * SHOWN - len(right))]
    under = []
    for k in some:
        i, j = int(truth[k]), int(verdicts.nearest[k])
        under.append(f"{gallery.captions[i]}: right" if i == j else
                     f"{gallery.captions[i]}: taken for {gallery.captions[j]}; rank {int(verdicts.rank[k])}")
    rows = [("drawn", drawn[some]), ("true render", gallery.images[truth[some]]),
            ("nearest render", gallery.images[verdicts.nearest[some]])]
    return grids.rows([(label, channels_last(pictures)) for label, pictures in rows], under)


def style_table(paint: Paint, gallery: Gallery, truth: Int[Tensor, " n"]) -> Image.Image:
    """The concepts of the first of these pairs drawn in every style, held-out pairs framed."""
    names = list(dict.fromkeys(gallery.concepts[i] for i in truth))[:CONCEPTS]
    order = list(dict.fromkeys(gallery.concepts))
    at = places(gallery)[[order.index(name) for name in names]]
    there = at >= 0
    drawn = paint("styles", [gallery.captions[i] for i in at[there]])
    pixels = torch.full((*at.shape, *drawn.shape[1:]), 255, dtype=torch.uint8)
    pixels[there] = drawn
    return grids.framed_table(pixels.numpy(), names, list(dict.fromkeys(gallery.styles)),
                              (there & gallery.held_out[at]).numpy())


def shown_interval(found: Mapping[str, float], digits: int = 3) -> str:
    """`Interval.described` in a table's cell."""
    value, low, high = (f"{found[end]:.{digits}f}" for end in ("value", "low", "high"))
    return value if low == high else f"{value} ({low} to {high})"


def tables(scores: Mapping[str, Any]) -> list[Table]:
    """Of the nested scores, one a split: kinds and distances in rows, measures with their intervals in columns."""
    def cell(name: str, found: Mapping[str, Mapping[str, float]]) -> str:
        return shown_interval(found[name], 0 if name == "median_rank" else 3) if name in found else "–"

    made = []
    for split, kinds in scores.items():
        names = [*MEASURES, "perceptual"]
        rows = [[named(kind), by, *(cell(name, found) for name in names)]
                for kind, each in kinds.items() for by, found in each.items()]
        made.append(Table(named(split).capitalize(), ["pictures", "distance", *map(named, names)], rows,
                          strong_rows=range(len(DISTANCES))))
    return made


def confusion_tables(found: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    return [Table(f"{named(split).capitalize()}: {what} taken for others", ["true", "taken for", "drawings"],
                  [[true, taken, str(times)] for true, taken, times in lists[what]])
            for split, lists in found.items() for what in ("styles", "concepts") if lists[what]]
