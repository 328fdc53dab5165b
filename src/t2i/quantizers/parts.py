"""What quantisers have in common that are made of several: their parts, and one number for the codes of all.

A place has one code a part; together they are one number, the first part the most significant (`types.ravel_index`), so
that what handles codes need not know of parts, and what should (a prior) reads `factors`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.quantizers.base import check_ids
from t2i.types import Quantized, Quantizer, ravel_index, unravel_index

LARGEST = 2**63 - 1  # code of int64


def copies(quantizer: Quantizer, count: int, name: str) -> list[Quantizer]:
    """The quantiser and copies of it, `count` in all; ValueError names the argument `name`."""
    if count < 1:
        raise ValueError(f"{name}={count}: at least 1 is needed")
    check_size(quantizer.factors * min(count, 64), f"{name}={count}")  # before they are made: 64 are always too many
    return [quantizer, *(copy.deepcopy(quantizer) for _ in range(count - 1))]


def check_size(factors: Sequence[int], what: str) -> None:
    if math.prod(factors) > LARGEST:
        raise ValueError(f"{what}: codes of {len(factors)} parts of {', '.join(map(str, factors[:8]))}"
                         f"{', …' if len(factors) > 8 else ''} do not fit into one whole number of 64 bits: the product"
                         " of the parts' sizes must be less than 2**63")


class CompositeQuantizer(nn.Module):
    """Quantisers of one `dim`, in order, by name; `dim` is what all of them together quantise."""

    def __init__(self, parts: Mapping[str, Quantizer] | Sequence[Quantizer]) -> None:
        super().__init__()
        named = dict(parts if isinstance(parts, Mapping) else zip(map(str, range(len(parts))), parts, strict=True))
        if not named:
            raise ValueError("parts={}: at least one quantiser is needed")
        dims = {name: part.dim for name, part in named.items()}
        if len(set(dims.values())) > 1:
            shown = ", ".join(f"{name} {dim}" for name, dim in dims.items())
            raise ValueError(f"parts of different dim ({shown}): all must have the same")
        self.factors = tuple(factor for part in named.values() for factor in part.factors)
        check_size(self.factors, "parts")
        self.codebook_size = math.prod(self.factors)
        # torch's own type forgets what it holds
        self.parts = cast(Mapping[str, Quantizer], nn.ModuleDict(cast(Mapping[str, nn.Module], named)))

    def together(self, found: Mapping[str, Quantized], z_q: Float[Tensor, "b d h w"]) -> Quantized:
        """One result of those of the parts."""
        each = torch.cat([unravel_index(q.ids, self.parts[name].factors) for name, q in found.items()], -1)
        return Quantized(
            z_q=z_q,
            ids=ravel_index(each, self.factors),
            loss=torch.stack([q.loss for q in found.values()]).sum(),
            metrics={f"{name}/{key}": value for name, q in found.items() for key, value in q.metrics.items()},
        )

    def vectors_of(self, ids: Int[Tensor, "b h w"]) -> list[Float[Tensor, "b d h w"]]:
        """What each part's code stands for."""
        check_ids(ids, self.codebook_size)
        each, found = unravel_index(ids, self.factors), []
        for part in self.parts.values():
            mine, each = each[..., : len(part.factors)], each[..., len(part.factors) :]
            found.append(part.decode_ids(ravel_index(mine, part.factors)))
        return found

    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        """The vectors of every factor, each in its own space."""
        return [vectors for part in self.parts.values() for vectors in part.codebooks()]
