"""Codes to pictures of any size and aspect, a tile at a time, as if the whole were decoded at once.

A decoder's first steps work at the resolution of the codes and have its attention: they run on the whole grid, which
costs little. The later ones are convolutions, of which each pixel sees so many codes around it and no more: tiles take
that margin with them and lose it again, so that there is no seam to blend. What is left that joins far pixels is
GroupNorm: its statistics are summed up over all tiles before, norm after norm, each behind the settled ones. Decoders
of other kinds are decoded in tiles of the model's size that are blended where they overlap.

Attention below the codes' resolution makes all down to it run on the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.nets.autoencoder import Decoder
from t2i.nets.resnet_blocks import Attention, Upsample
from t2i.nets.tokenizer import ImageTokenizer
from t2i.nets.two_colour import TwoColourDecoder
from t2i.types import Tokenizer


@dataclass
class Step:
    """A step of a decoder: `reach` is how many codes on each side its result sees, `scale` positions a code there are
    before it."""

    run: Callable[[Tensor], Tensor]
    reach: float
    scale: int
    attends: bool = False
    norms: list[nn.GroupNorm] = field(default_factory=list)


def _step(module: nn.Module, reach: float, scale: int) -> Step:
    parts = list(module.modules())
    return Step(module, reach / scale, scale, any(isinstance(part, Attention) for part in parts),
                [part for part in parts if isinstance(part, nn.GroupNorm)])


def steps_of(decoder: Decoder) -> list[Step]:
    """What `Decoder.forward` does, in order."""
    found, scale = [_step(decoder.stem, 1, 1), _step(decoder.middle, 4, 1)], 1
    for level in reversed(list(decoder.levels)):
        for i, block in enumerate(level.blocks):  # type: ignore[arg-type, union-attr]  # a Level's
            attention = [level.attentions[i]] if len(level.attentions) else []  # type: ignore[index, arg-type, union-attr]
            found.append(_step(nn.Sequential(block, *attention), 2, scale))
        if isinstance(level.resize, Upsample):
            # The convolution follows at twice the size; bilinear interpolation sees a neighbour before it.
            found.append(_step(level.resize, 0.5 + (level.resize.mode == "bilinear"), scale))
            scale *= 2
    last = _step(nn.Sequential(decoder.norm, nn.SiLU(), decoder.head, nn.PixelShuffle(decoder.patch_size)), 1, scale)
    return [*found, last]


@dataclass
class Plan:
    """What of a decoder runs on the whole grid and what on tiles, which see `margin` codes around their own."""

    whole: list[Step]
    tiled: list[Step]

    @property
    def margin(self) -> int:
        return math.ceil(sum(step.reach for step in self.tiled))

    @property
    def norms(self) -> list[nn.GroupNorm]:
        return [norm for step in self.tiled for norm in step.norms]


def plan_of(decoder: Any) -> Plan | None:
    """None for decoders of other kinds."""
    if isinstance(decoder, TwoColourDecoder):  # patches, and a decoder that refines them
        reach = sum(step.reach for step in steps_of(decoder.refine))
        return Plan([], [Step(decoder, reach, 1)])
    if not isinstance(decoder, Decoder):
        return None
    steps = steps_of(decoder)
    coarse = next((i for i, step in enumerate(steps) if isinstance(step.run, Upsample)), 0)
    cut = max([coarse, *(i + 1 for i, step in enumerate(steps) if step.attends)])
    return Plan(steps[:cut], steps[cut:])


def check_codes(tokenizer: Tokenizer, ids: Int[Tensor, "b gh gw"]) -> None:
    """ValueError for codes out of range or no grid of them."""
    if ids.ndim != 3 or 0 in ids.shape:
        raise ValueError(f"codes of shape {tuple(ids.shape)}: (pictures, rows, columns) are wanted")
    if int(ids.min()) < 0 or int(ids.max()) >= tokenizer.codebook_size:
        raise ValueError(f"codes from {int(ids.min())} to {int(ids.max())}: this tokenizer has 0 to"
                         f" {tokenizer.codebook_size - 1}")


@torch.no_grad()
def decode_tiled(
    tokenizer: Tokenizer, ids: Int[Tensor, "b gh gw"], tile: int | None = None, rounds: int | None = None
) -> Float[Tensor, "b 3 h w"]:
    """Pictures in [-1, 1] on the CPU, of a grid of any size.

    Args:
        tokenizer: a `t2i.types.Tokenizer`.
        ids: codes.
        tile: codes a side of what is decoded at a time, the margin with it; None: four margins, or the model's grid
            where that is more.
        rounds: in which the norms' statistics are summed up. None: one for each norm, up to that norm, after which they
            are those of the whole; fewer are quicker and leave steps between tiles (docs/editing.md); 0 leaves each
            tile its own.

    ValueError for a tile that its margin leaves nothing of.
    """
    check_codes(tokenizer, ids)
    plan = plan_of(tokenizer.autoencoder.decoder) if isinstance(tokenizer, ImageTokenizer) else None
    if plan is None:
        return decode_blended(tokenizer, ids)
    assert isinstance(tokenizer, ImageTokenizer)
    margin = plan.margin
    side = max(4 * margin, *tokenizer.grid) if tile is None else tile
    if side <= 2 * margin:
        raise ValueError(f"tile={side}: this decoder sees {margin} codes on each side of one, so that at least"
                         f" {2 * margin + 1} are needed")
    patch = tokenizer.autoencoder.factor
    x = tokenizer.post_quant_conv(tokenizer.quantizer.decode_ids(ids))
    for step in plan.whole:
        x = step.run(x)
    scale = plan.tiled[0].scale
    tiles = list(_tiles(ids.shape[1], ids.shape[2], side, margin))
    found = torch.empty(len(ids), 3, ids.shape[1] * patch, ids.shape[2] * patch)

    def decoded(tile: Tile, steps: Sequence[Step]) -> Tensor:
        y = x[:, :, tile.outer[0].start * scale : tile.outer[0].stop * scale,
              tile.outer[1].start * scale : tile.outer[1].stop * scale].contiguous()
        for step in steps:
            y = step.run(y)
        return y

    with Statistics(plan.norms) as statistics:
        if plan.norms and len(tiles) > 1:
            upto = [i + 1 for i, step in enumerate(plan.tiled) for _ in step.norms]
            for stop in upto if rounds is None else [len(plan.tiled)] * rounds:
                for one in tiles:
                    statistics.of = one
                    decoded(one, plan.tiled[:stop])
                statistics.settle()
        statistics.of = None
        for one in tiles:
            inner = (slice(i.start * patch, i.stop * patch) for i in one.inner)
            within = (slice((i.start - o.start) * patch, (i.stop - o.start) * patch)
                      for i, o in zip(one.inner, one.outer, strict=True))
            found[:, :, *inner] = decoded(one, plan.tiled)[:, :, *within].float().clamp(-1, 1).cpu()
    return found


@dataclass(frozen=True)
class Tile:
    """Rows and columns of codes: what is decoded, and what of it is kept."""

    outer: tuple[slice, slice]
    inner: tuple[slice, slice]


def _spans(length: int, side: int, margin: int) -> Iterator[tuple[slice, slice]]:
    """Tiles along one side, alike in size, that keep as much as they can; none where the whole fits."""
    if length <= side:
        yield slice(0, length), slice(0, length)
        return
    kept = side - 2 * margin
    count = math.ceil((length - 2 * margin) / kept)
    edges = [0, *(margin + round(i * (length - 2 * margin) / count) for i in range(1, count)), length]
    for start, stop in pairwise(edges):
        yield slice(max(0, start - margin), min(length, stop + margin)), slice(start, stop)


def _tiles(rows: int, columns: int, side: int, margin: int) -> Iterator[Tile]:
    for (top, inner_top), (left, inner_left) in product(_spans(rows, side, margin), _spans(columns, side, margin)):
        yield Tile((top, left), (inner_top, inner_left))


class Statistics:
    """Inside, GroupNorms take the statistics that were settled. While `of` is a tile, what it shows them within its
    inner part is summed up."""

    def __init__(self, norms: Sequence[nn.GroupNorm]) -> None:
        self.norms, self.of = norms, None
        self.sums: dict[nn.GroupNorm, Tensor] = {}  # (3, b, groups): positions' number, sum and sum of squares
        self.settled: dict[nn.GroupNorm, tuple[Tensor, Tensor]] = {}

    of: Tile | None

    def __enter__(self) -> Statistics:
        self.hooks = ExitStack()
        for norm in self.norms:
            handle = norm.register_forward_hook(self.normalised)
            self.hooks.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self.hooks.close()

    def normalised(self, norm: nn.GroupNorm, given: tuple[Tensor], output: Tensor) -> Tensor | None:
        x = given[0]
        if self.of is not None:
            scale = x.shape[2] // (self.of.outer[0].stop - self.of.outer[0].start)
            rows, columns = (slice((i.start - o.start) * scale, (i.stop - o.start) * scale)
                             for i, o in zip(self.of.inner, self.of.outer, strict=True))
            part = x[:, :, rows, columns].double().unflatten(1, (norm.num_groups, -1)).flatten(2)
            sums = torch.stack([torch.full_like(part[:, :, 0], part.shape[2]), part.sum(2), part.square().sum(2)])
            self.sums[norm] = self.sums.get(norm, torch.zeros_like(sums)) + sums
        if norm not in self.settled:
            return None
        # The norm as one scale and shift a channel, which needs no copy of x but the result.
        mean, deviation = (value.to(x.dtype).repeat_interleave(norm.num_channels // norm.num_groups, 1)
                           for value in self.settled[norm])
        scaled = norm.weight / deviation
        return torch.addcmul((norm.bias - mean * scaled)[:, :, None, None], x, scaled[:, :, None, None])

    def settle(self) -> None:
        for norm, (count, total, squares) in self.sums.items():
            mean = total / count
            self.settled[norm] = mean, (squares / count - mean.square()).clamp_min(0).add(norm.eps).sqrt()
        self.sums = {}


def starts(length: int, window: int) -> list[int]:
    """Where windows begin that overlap by half and cover a length."""
    return [*range(0, length - window, max(1, window // 2)), length - window]


def decode_blended(tokenizer: Tokenizer, ids: Int[Tensor, "b gh gw"]) -> Float[Tensor, "b 3 h w"]:
    """Pictures in [-1, 1] of a grid that is at least the tokenizer's, in tiles of its size, blended where they overlap.
    """
    (rows, columns), side = tokenizer.grid, tokenizer.image_size
    patch = side // rows
    size = ids.shape[1] * patch, ids.shape[2] * patch
    total, weights = torch.zeros(len(ids), 3, *size), torch.zeros(size)
    ramp = torch.minimum(torch.arange(1, side + 1), torch.arange(side, 0, -1)).float()
    weight = ramp[:, None] * ramp
    for top, left in product(starts(ids.shape[1], rows), starts(ids.shape[2], columns)):
        tile = tokenizer.decode_ids(ids[:, top : top + rows, left : left + columns].flatten(1)).float().cpu()
        where = slice(top * patch, top * patch + side), slice(left * patch, left * patch + side)
        total[:, :, *where] += tile * weight
        weights[where] += weight
    return total / weights
