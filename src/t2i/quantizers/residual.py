"""Residual quantisation: each of several quantisers takes what those before it left over; the codes' vectors add up.

Papers: Autoregressive Image Generation using Residual Quantization, arXiv 2203.01941 (RQ-VAE), whose loss it is: the
commitment to the sum of the first d codes, added up over d; SoundStream, arXiv 2107.03312. Each depth has a codebook of
its own, as in SoundStream; RQ-VAE shares one.
"""

from __future__ import annotations

from typing import cast

from jaxtyping import Float, Int
from torch import Tensor

from t2i.checkpoint.registry import register
from t2i.quantizers.base import CodebookQuantizer, straight_through
from t2i.quantizers.parts import CompositeQuantizer, copies
from t2i.types import Quantized, Quantizer


@register("quantizer")
class Residual(CompositeQuantizer):
    """Latents (b, dim, h, w) to `depth` codes, the coarsest first; straight-through.

    Args:
        quantizer: of the first depth; copies of it are those of the others. One whose codes lie where the latents do
            and can become as small as what is left over: vq (without normalize), ema, simvq.
        depth: how many codes a place has.
    """

    def __init__(self, quantizer: Quantizer, depth: int = 2) -> None:
        if not isinstance(quantizer, CodebookQuantizer) or quantizer.moves_latents:
            raise ValueError(f"quantizer={type(quantizer).__name__}: residuals need codes that are free to lie where"
                             " the residuals do: one of vq (without normalize), ema, simvq")
        super().__init__(copies(cast(Quantizer, quantizer), depth, "depth"))
        self.dim = quantizer.dim

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        z = rest = z.float()
        found = {}
        for name, part in self.parts.items():
            found[name] = part(rest)
            rest = rest - found[name].z_q.detach()
        return self.together(found, straight_through(z, (z - rest).detach()))

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return z.float()

    def decode_ids(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        first, *others = self.vectors_of(ids)
        return sum(others, first)
