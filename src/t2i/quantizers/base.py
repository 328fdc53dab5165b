"""What the quantisers share: the layout of latents, the codebook's sizes and lookup, the check of ids, gradients.

Straight-through: Neural Discrete Representation Learning, arXiv 1711.00937.
"""

from __future__ import annotations

from abc import abstractmethod

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


def to_rows(z: Float[Tensor, "b d h w"]) -> Float[Tensor, "n d"]:
    """Latents as float32 rows in raster order, n = b h w."""
    return z.float().permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def to_grid(rows: Float[Tensor, "n d"], z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
    """The inverse of `to_rows`, in the shape of `z`."""
    b, d, h, w = z.shape
    return rows.view(b, h, w, d).permute(0, 3, 1, 2)


def straight_through(z: Float[Tensor, "n d"], q: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The value of `q` with the gradient of `z`."""
    return z + (q - z).detach()


def nan_unless_finite(x: Tensor) -> Float[Tensor, ""]:
    """0, or NaN where a number of `x` is not finite: a loss on which training stops, without asking the device."""
    return (x.detach() * 0).sum()


def check_ids(ids: Int[Tensor, "..."], codebook_size: int) -> None:
    """ValueError naming the first id outside [0, codebook_size)."""
    wrong = (ids < 0) | (ids >= codebook_size)
    if bool(wrong.any()):
        raise ValueError(f"code id {int(ids[wrong][0])} is out of range: this codebook has {codebook_size} entries,"
                         f" ids 0..{codebook_size - 1}")


class CodebookQuantizer(nn.Module):
    """Latents (b, dim, h, w) to one of `codebook_size` vectors each.

    moves_latents: `unrounded` is not the latents themselves, but where else the codes lie.
    """

    moves_latents = False

    def __init__(self, codebook_size: int, dim: int) -> None:
        super().__init__()
        if codebook_size < 2 or dim < 1:
            raise ValueError(f"codebook_size={codebook_size}, dim={dim}: at least 2 codes of 1 dimension are needed")
        self.codebook_size, self.factors, self.dim = codebook_size, (codebook_size,), dim

    @abstractmethod
    def vectors(self) -> Float[Tensor, "k d"]:
        """The codes' vectors as they are used, in float32."""

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return z.float()

    def decode_ids(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        check_ids(ids, self.codebook_size)
        return F.embedding(ids, self.vectors()).permute(0, 3, 1, 2)

    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        return [self.vectors().detach()]
