"""What all guides share: the way of views into an image tower, unit vectors, and the hash of weights that never change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.text_encoders.clip_folder import preprocess

Precision = Literal["32-true", "bf16-mixed"]


def checked(precision: Precision) -> Precision:
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}: one of {', '.join(get_args(Precision))} is needed")
    return precision


def seen(
    tower: Callable[[Tensor], Tensor],
    views: Float[Tensor, "b 3 s s"],
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    precision: Precision,
    device: torch.device,
) -> Float[Tensor, "b d"]:
    """Unit vectors in float32 of views in [-1, 1], with a gradient for the views.

    bf16-mixed covers the tower alone: its normalisation layers and the unit length stay in float32. An autocast around
    the call has no say.
    """
    if tuple(views.shape[-2:]) != (size, size):
        raise ValueError(f"views of {' x '.join(map(str, views.shape[-2:]))} pixels: this guide takes {size} x {size}")
    pixels = preprocess(views.to(device), size, mean, std)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
        found = tower(pixels)
    return F.normalize(found.float(), dim=-1)


def said(text: list[str]) -> list[str]:
    if not text:
        raise ValueError("text=[]: give at least one text")
    return text


def weights_hash(*modules: nn.Module) -> str:
    """Sixteen hex digits over the weights; of a transformers CLIP the first twelve are `CLIPScorer.id`."""
    digest = hashlib.sha256()
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
