"""A drawing between two of its steps: how far it is, and what it looks like, decoded where somebody looks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class DrawingStep:
    """`done` of `total` steps, and `images()`: the pictures by now, (b, 3, h, w) in [-1, 1] on the CPU. It is to be
    called before the next step."""

    done: int
    total: int
    images: Callable[[], Float[Tensor, "b 3 h w"]]


def grey_where_unknown(
    images: Float[Tensor, "b 3 h w"], known: Bool[Tensor, "b gh gw"]
) -> Float[Tensor, "b 3 h w"]:
    """Pictures with the patches of codes that are not known in grey; what is known whole comes back as it is."""
    if bool(known.all()):
        return images
    shown = F.interpolate(known[:, None].float(), images.shape[2:], mode="nearest") > 0
    return images.where(shown.to(images.device), 0.0)
