"""From a text encoder's pooled states to the captions that a GAN's nets take."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Projection(nn.Module):
    """Pooled caption states, brought to mean 0 and deviation 1, through one linear layer."""

    def __init__(self, pooled_dim: int, text_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pooled_dim, text_dim)

    def forward(self, pooled: Float[Tensor, "b p"]) -> Float[Tensor, "b t"]:
        return self.linear(F.layer_norm(pooled, pooled.shape[1:]))


def text_projection(kind: Literal["linear", "none"], pooled_dim: int, text_dim: int) -> nn.Module:
    """From a text encoder's pooled states to what a net takes; `none` wants equal widths."""
    if kind == "linear":
        return Projection(pooled_dim, text_dim)
    if pooled_dim != text_dim:
        raise ValueError(f"projection=none: the text encoder's sentences have {pooled_dim} numbers, the net"
                         f" takes {text_dim}; projection=linear is allowed")
    return nn.Identity()
