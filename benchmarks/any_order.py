"""Drawing by the prior in any order against the raster prior: whole pictures with guidance, random weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from t2i.models import any_order, sampling
from t2i.models.sampling import Sampler, uniforms
from t2i.nets.arpg import ARPG
from t2i.nets.gpt import GPT

Turns = Callable[..., list[float]]


class Round:
    """Both priors over 16 x 16 codes, 12 layers of 768, under captions of 24 tokens."""

    def __init__(self, batch: int, dtype: torch.dtype, quick: bool) -> None:
        torch.manual_seed(0)
        side, width, layers = (4, 32, 2) if quick else (16, 768, 12)
        sizes: tuple[Any, ...] = ((1024,), (side, side), 128, 24, width, layers, width // 64 or 1)
        self.raster, self.any = (net(*sizes).to(dtype).eval() for net in (GPT, ARPG))
        self.text = torch.randn(batch, 24, 128, dtype=dtype), torch.ones(batch, 24, dtype=torch.bool)
        self.uniform = uniforms(range(batch), side * side)
        self.steps, self.shape = side * side // 8, f"{layers} x {width}, {side * side} codes, batch {batch}"

    def in_raster(self) -> None:
        sampling.generate(self.raster, *self.text, self.uniform, guidance=2.0)

    def in_any_order(self) -> None:
        any_order.generate(self.any, *self.text, self.uniform, steps=self.steps, schedule="arccos", order="halton",
                           sampler=Sampler(guidance=2.0, guided=True))


def rows(quick: bool, turns: Turns, dtype: torch.dtype, name: str) -> Iterator[tuple[str, str, str, str, float]]:
    for batch in (4, 1):
        both = Round(batch, dtype, quick)
        both.in_any_order()
        quicker, raster = turns(1 if quick else 3, both.in_any_order, both.in_raster)
        yield ("prior_any: drawing", f"{both.shape}, guidance, {name}, {both.steps} steps",
               f"{quicker / batch:.2f} s a picture", f"raster prior: {raster / batch:.2f} s a picture",
               raster / quicker)
