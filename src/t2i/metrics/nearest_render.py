"""The nearest render: of all true pictures that there are, is a drawing's own the one that it is most like?

For data sets of concepts drawn in styles (`t2i.types.Gallery`). A picture is its 16 x 16 area averages in [0, 1], so
that neither blur nor noise decides, and no learned net judges, least of all one that a loss was made of. Two distances,
both mean squared differences:

    plain     of the pictures as they are
    aligned   the least over drawings moved by -2 to 2 pixels of 64 either way and scaled by 0.9, 1 and 1.1, with the
              background (the median of the border, by channel) beyond their edges

Renders that are as near as the true one, to a quarter of a grey level, are not nearer: equal pictures count as right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from t2i.metrics.intervals import Interval, median, wilson
from t2i.types import Gallery

SIDE = 16
SHIFTS, SCALES = (-2, -1, 0, 1, 2), (0.9, 1.0, 1.1)  # pixels of 64; factors
Distance = Literal["plain", "aligned"]
DISTANCES: tuple[Distance, ...] = ("plain", "aligned")
MEASURES = ("pair", "concept", "style", "style_given_concept", "concept_given_style", "top5", "median_rank")
TOP = 5
_TIE = (0.25 / 255) ** 2
_ROWS = 32  # drawings at a time: 25 variants of them against 5,000 renders are 16 MB


def averages(images: UInt8[Tensor, "n 3 s s"]) -> Float[Tensor, "n 768"]:
    """16 x 16 area averages in [0, 1], a row a picture. ValueError for pictures smaller than that."""
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < SIDE:
        raise ValueError(f"pictures {images.dtype} {tuple(images.shape)}: uint8 (n, 3, h, w) of at least {SIDE} pixels"
                         " a side is wanted")
    parts = [_averages(part.float() / 255) for part in images.split(512)]
    return torch.cat(parts) if parts else torch.zeros(0, 3 * SIDE**2)


def _averages(pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 768"]:
    return F.interpolate(pixels, (SIDE, SIDE), mode="area").flatten(1)


def variants(images: UInt8[Tensor, "n 3 s s"]) -> Iterator[Float[Tensor, "v n 768"]]:
    """The averages of pictures moved and scaled, all shifts of one scale after the other."""
    pixels, (height, width) = images.float() / 255, images.shape[-2:]
    border = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], -1)
    ground = border.median(-1).values[..., None, None]
    shifts = sorted({round(shift * width / 64) for shift in SHIFTS})
    reach = max(shifts)
    for scale in SCALES:
        theta = pixels.new_tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]]).expand(len(pixels), 2, 3)
        grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
        scaled = F.grid_sample(pixels - ground, grid, padding_mode="zeros", align_corners=False)
        padded = F.pad(scaled, [reach] * 4) + ground
        yield torch.stack([_averages(padded[..., reach + y : reach + y + height, reach + x : reach + x + width])
                           for y in shifts for x in shifts])


def numbered(names: Sequence[str]) -> Int[Tensor, " n"]:
    """Names as numbers, equal ones for equal names, in the order of their first appearance."""
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([order[name] for name in names])


@dataclass(frozen=True)
class Verdicts:
    """What drawings were taken for, a row a drawing.

    nearest: the nearest render of all, a place in the gallery. rank: of the true render among those of its style, from
    1. style_given_concept: the true one is the nearest among the renders of its concept.
    """

    nearest: Int[Tensor, " n"]
    pair: Bool[Tensor, " n"]
    concept: Bool[Tensor, " n"]
    style: Bool[Tensor, " n"]
    style_given_concept: Bool[Tensor, " n"]
    rank: Int[Tensor, " n"]

    def measures(self) -> dict[str, Interval]:
        """`MEASURES`, with intervals: shares of the drawings (Wilson), and the median rank (order statistics)."""
        shares = {"pair": self.pair, "concept": self.concept, "style": self.style,
                  "style_given_concept": self.style_given_concept, "concept_given_style": self.rank == 1,
                  "top5": self.rank <= TOP}
        return {**{name: wilson(right) for name, right in shares.items()}, "median_rank": median(self.rank)}


class NearestRender:
    """Judges drawings by the renders of a gallery, whose averages are taken once; `device` compares them."""

    def __init__(self, gallery: Gallery, device: torch.device | str = "cpu") -> None:
        self.concept, self.style = numbered(gallery.concepts), numbered(gallery.styles)
        renders = averages(gallery.images).to(device)
        self.centre = renders.mean(0)  # taken off both sides: the squares below lose fewer digits
        self.renders = renders - self.centre

    def distances(self, drawings: UInt8[Tensor, "n 3 s s"], distance: Distance) -> Float[Tensor, "n g"]:
        """Mean squared difference of each drawing and each render, pixels in [0, 1]."""
        squares, wanted, found = self.renders.square().sum(1), self.renders.T, []
        for part in drawings.split(_ROWS):
            part = part.to(squares.device)
            least = squares.new_full((len(part), len(squares)), torch.inf)
            for moved in variants(part) if distance == "aligned" else [averages(part)[None]]:
                flat = (moved - self.centre).flatten(0, 1)
                apart = torch.addmm(flat.square().sum(1, keepdim=True), flat, wanted, alpha=-2)
                least = least.minimum(apart.view(len(moved), len(part), -1).amin(0))
            found.append(((least + squares).clamp_min(0) / wanted.shape[0]).cpu())
        return torch.cat(found) if found else torch.zeros(0, len(squares))

    def verdicts(
        self, drawings: UInt8[Tensor, "n 3 s s"], truth: Int[Tensor, " n"], distance: Distance = "plain"
    ) -> Verdicts:
        """Of drawings whose true pictures stand at the places `truth` of the gallery."""
        if len(drawings) != len(truth) or not len(truth):
            raise ValueError(f"{len(drawings)} drawings and {len(truth)} true pictures: as many of both, at least one")
        apart = self.distances(drawings, distance)
        nearer = apart < apart.gather(1, truth[:, None]) - _TIE
        pair = ~nearer.any(1)
        nearest = torch.where(pair, truth, apart.argmin(1))
        concept, style = self.concept[truth], self.style[truth]
        return Verdicts(
            nearest, pair, self.concept[nearest] == concept, self.style[nearest] == style,
            style_given_concept=~(nearer & (self.concept == concept[:, None])).any(1),
            rank=1 + (nearer & (self.style == style[:, None])).sum(1))

    def among(
        self, drawings: UInt8[Tensor, "n 3 s s"], right: Bool[Tensor, "n g"], asked: Int[Tensor, " n"]
    ) -> tuple[Int[Tensor, " n"], Bool[Tensor, " n"], Int[Tensor, " n"]]:
        """Of drawings for which several renders are right (plain distance): the nearest render, whether it is one of
        these, and the rank of the first of them among the renders in the style of `asked`, places in the gallery."""
        apart = self.distances(drawings, "plain")
        allowed, in_style = apart.masked_fill(~right, torch.inf), self.style == self.style[asked][:, None]
        best = allowed.min(1)
        hit = ~(apart < best.values[:, None] - _TIE).any(1)
        least = allowed.masked_fill(~in_style, torch.inf).amin(1, keepdim=True)
        rank = 1 + ((apart < least - _TIE) & in_style).sum(1)
        return torch.where(hit, best.indices, apart.argmin(1)), hit, rank
