"""Finite scalar quantisation: each latent channel is rounded to one of a few levels; their product is the
codebook.

Paper: Finite Scalar Quantization: VQ-VAE Made Simple, arXiv 2309.15505. No learned codebook, no extra loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.quantizers.base import check_ids, nan_unless_finite, straight_through, to_grid, to_rows
from t2i.types import Quantized


@register("quantizer")
class FSQ(nn.Module):
    """Latents (b, len(levels), h, w) to a grid of prod(levels) points in [-1, 1]; computed in float32."""

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__()
        if len(levels) == 0 or min(levels) < 2:
            raise ValueError(f"levels={list(levels)}: one whole number >= 2 for each channel is needed")
        self.levels = tuple(levels)
        self.dim = len(levels)
        self.codebook_size = math.prod(levels)
        self.factors = (self.codebook_size,)
        basis = [math.prod(self.levels[:i]) for i in range(self.dim)]
        self.register_buffer("_levels", torch.tensor(self.levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)

    def _bound(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        # An even number of levels has no middle: half a step of shift makes rounding hit exactly that many.
        # The 0.1 % keeps the outermost levels reachable by a finite input.
        half = (self._levels - 1) * (1 + 1e-3) / 2
        offset = (self._levels % 2 == 0).float() / 2
        shift = torch.atanh(offset / half)
        return torch.tanh(x + shift) * half - offset

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        if z.shape[1] != self.dim:
            raise ValueError(f"latent of {z.shape[1]} channels: levels={list(self.levels)} quantise {self.dim}")
        with torch.autocast(z.device.type, enabled=False):
            bounded = self._bound(to_rows(z))
            rounded = bounded.detach().round()
            half_width = self._levels // 2
            ids = ((rounded + half_width).long() * self._basis).sum(1)
            z_q = straight_through(bounded, rounded) / half_width
        return Quantized(to_grid(z_q, z), ids.view(len(z), *z.shape[2:]), nan_unless_finite(z.float()))

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        with torch.autocast(z.device.type, enabled=False):
            return (self._bound(z.float().permute(0, 2, 3, 1)) / (self._levels // 2)).permute(0, 3, 1, 2)

    def decode_ids(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        check_ids(ids, self.codebook_size)
        half_width = self._levels // 2
        each = torch.div(ids.unsqueeze(-1), self._basis, rounding_mode="floor") % self._levels
        return ((each - half_width).float() / half_width).permute(0, 3, 1, 2)

    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        every = torch.arange(self.codebook_size, device=self._basis.device)
        return [self.decode_ids(every.view(1, 1, -1))[0, :, 0].T]
