"""Product quantisation: the latent's channels are cut into groups, and each group has a quantiser of its own.

Paper: Jégou, Douze and Schmid 2011, Product Quantization for Nearest Neighbor Search, doi 10.1109/TPAMI.2010.57.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.checkpoint.registry import register
from t2i.quantizers.base import nan_unless_finite
from t2i.quantizers.parts import CompositeQuantizer, copies
from t2i.types import Quantized, Quantizer


@register("quantizer")
class Product(CompositeQuantizer):
    """Latents (b, dim, h, w), dim the sum over the groups, to one code a group.

    Args:
        parts: the groups' quantisers, in the order of the channels, as a list or by name. All need the same `dim`.
        quantizer: in place of `parts` the quantiser of every group: itself of the first, copies of the others.
        groups: how many, with `quantizer`.
    """

    def __init__(
        self,
        parts: Mapping[str, Quantizer] | Sequence[Quantizer] | None = None,
        quantizer: Quantizer | None = None,
        groups: int | None = None,
    ) -> None:
        if (parts is None) == (quantizer is None) or (quantizer is None) != (groups is None):
            raise ValueError("a product is made of parts, or of quantizer and groups: one of the two is needed")
        super().__init__(copies(quantizer, groups, "groups") if quantizer is not None and groups is not None
                         else parts or [])
        self.dim = sum(part.dim for part in self.parts.values())

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        if z.shape[1] != self.dim:
            raise ValueError(f"latent of {z.shape[1]} channels: the parts quantise {self.dim}")
        if self.training:
            z = z + nan_unless_finite(z)  # what is not finite in one part moves none
        found = {name: part(x) for (name, part), x in zip(self.parts.items(), self.cut(z), strict=True)}
        return self.together(found, torch.cat([q.z_q for q in found.values()], 1))

    def cut(self, z: Float[Tensor, "b d h w"]) -> tuple[Tensor, ...]:
        return z.split(self.dim // len(self.parts), 1)

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return torch.cat([part.unrounded(x) for part, x in zip(self.parts.values(), self.cut(z), strict=True)], 1)

    def decode_ids(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        return torch.cat(self.vectors_of(ids), 1)
