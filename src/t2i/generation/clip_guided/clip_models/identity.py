"""Whether two CLIPs are one and the same, so that what scores a picture is not what guided it."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from t2i.types import Guide

# Cosine from which two image towers count as one. One tower in float32 and in bfloat16 is above 0.999; towers trained
# apart are near 0; neighbouring checkpoints of one training lie between, and from here on no longer judge each other.
SAME = 0.995


class Scorer(Protocol):
    """`t2i.metrics.clip_score.CLIPScorer`, of which the metrics' room is the home."""

    size: int

    @property
    def id(self) -> str: ...

    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]: ...


def same_weights(one: Guide | Scorer, other: Guide | Scorer) -> bool:
    """Whether both see pictures through the same weights: by their hashes, and where those differ by what they make of
    a few pictures, so that another file format or another text tower hides nothing."""
    a, b = _hash(one), _hash(other)
    if a[: len(b)] == b[: len(a)]:
        return True
    if _size(one) != _size(other):
        return False
    left, right = _features(one), _features(other)
    return left.shape == right.shape and bool((left * right).sum(-1).mean() > SAME)


def _hash(clip: Guide | Scorer) -> str:
    return clip.hash() if isinstance(clip, Guide) else clip.id


def _size(clip: Guide | Scorer) -> int:
    return clip.image_size if isinstance(clip, Guide) else clip.size


@torch.no_grad()
def _features(clip: Guide | Scorer) -> Float[Tensor, "b d"]:
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = F.interpolate(coarse, (_size(clip),) * 2, mode="bilinear")
    found = clip.embed_image(pictures) if isinstance(clip, Guide) else clip.image_features(pictures)
    return found.float().cpu()
