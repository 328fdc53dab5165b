"""Product quantisation: the latent's channels are cut into parts, and each part has a quantiser of its own.

Paper: Jégou, Douze and Schmid 2011, Product Quantization for Nearest Neighbor Search, doi 10.1109/TPAMI.2010.57. A
place has one code a part; together they are one number, the first part the most significant (`types.ravel_index`), so
that what handles codes need not know of parts, and what should (a prior) reads `factors`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.quantizers.base import check_ids, nan_unless_finite
from t2i.types import Quantized, Quantizer, ravel_index, unravel_index


@register("quantizer")
class Product(nn.Module):
    """Latents (b, dim, h, w), dim the sum over the parts, to one code a part.

    Args:
        parts: name -> quantiser, in the order of the channels. All need the same `dim`, since the tokenizer fits the
            latent's channels to them in equal groups.
    """

    def __init__(self, parts: Mapping[str, Quantizer]) -> None:
        super().__init__()
        if not parts:
            raise ValueError("parts={}: at least one quantiser is needed")
        dims = {name: part.dim for name, part in parts.items()}
        if len(set(dims.values())) > 1:
            shown = ", ".join(f"{name} {dim}" for name, dim in dims.items())
            raise ValueError(f"parts of different dim ({shown}): all must have the same")
        modules = nn.ModuleDict(cast(Mapping[str, nn.Module], parts))
        self.parts = cast(Mapping[str, Quantizer], modules)  # torch's own type forgets what it holds
        self.dim = sum(dims.values())
        self.factors = tuple(factor for part in parts.values() for factor in part.factors)
        self.codebook_size = math.prod(self.factors)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        if z.shape[1] != self.dim:
            raise ValueError(f"latent of {z.shape[1]} channels: the parts quantise {self.dim}")
        if self.training:
            z = z + nan_unless_finite(z)  # what is not finite in one part moves none
        found = {name: part(x) for (name, part), x in zip(self.parts.items(), self.cut(z), strict=True)}
        each = torch.cat([unravel_index(q.ids, self.parts[name].factors) for name, q in found.items()], -1)
        return Quantized(
            z_q=torch.cat([q.z_q for q in found.values()], 1),
            ids=ravel_index(each, self.factors),
            loss=torch.stack([q.loss for q in found.values()]).sum(),
            metrics={f"{name}/{key}": value for name, q in found.items() for key, value in q.metrics.items()},
        )

    def cut(self, z: Float[Tensor, "b d h w"]) -> tuple[Tensor, ...]:
        return z.split(self.dim // len(self.parts), 1)

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return torch.cat([part.unrounded(x) for part, x in zip(self.parts.values(), self.cut(z), strict=True)], 1)

    def decode_ids(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        check_ids(ids, self.codebook_size)
        each, found = unravel_index(ids, self.factors), []
        for part in self.parts.values():
            mine, each = each[..., : len(part.factors)], each[..., len(part.factors) :]
            found.append(part.decode_ids(ravel_index(mine, part.factors)))
        return torch.cat(found, 1)

    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        """The vectors of every factor, each in its own space."""
        return [vectors for part in self.parts.values() for vectors in part.codebooks()]
