"""What networks that turn pictures into features must do, so that distributions of features can be compared."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor


class FeatureNet(Protocol):
    """Frozen; in float32 whatever autocast says; a picture's features do not depend on its batch."""

    @property
    def name(self) -> str: ...

    @property
    def dim(self) -> int: ...

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides about the features: network, weights, size, filter, quantisation."""
        ...

    def __call__(self, pictures: UInt8[Tensor, "n h w 3"] | np.ndarray) -> Float[Tensor, "n d"]:
        """Float32, on the CPU."""
        ...


def checked(pictures: Tensor | np.ndarray) -> UInt8[Tensor, "n h w 3"]:
    """ValueError for anything but bytes of whole pictures in three channels."""
    held = torch.as_tensor(pictures)
    if held.dtype != torch.uint8 or held.ndim != 4 or held.shape[-1] != 3:
        raise ValueError(f"pictures {held.dtype} {tuple(held.shape)}: uint8 (n, h, w, 3) is wanted")
    return held
