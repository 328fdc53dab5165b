"""Networks that turn pictures into features whose distributions are compared."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from t2i.metrics.clip_score import CLIPScorer
from t2i.metrics.fd_clip import FEATURES, image_features


class FeatureNet(Protocol):
    """Frozen; in float32 whatever autocast says; a picture's features do not depend on its batch."""

    name: str
    dim: int

    def __call__(self, pictures: UInt8[Tensor, "n h w 3"] | np.ndarray) -> Float[Tensor, "n d"]:
        """Float32, on the CPU."""
        ...

    def protocol(self) -> dict[str, Any]:
        """What decides about the features: network, weights, size, filter, quantisation."""
        ...


class ClipFeatures:
    """The projected image embeddings of a CLIP, not normalised."""

    name = "clip"

    def __init__(self, judge: CLIPScorer) -> None:
        self.judge, self.dim = judge, int(judge.model.visual_projection.out_features)

    def __call__(self, pictures: UInt8[Tensor, "n h w 3"] | np.ndarray) -> Float[Tensor, "n d"]:
        return image_features(self.judge, pictures)

    def protocol(self) -> dict[str, Any]:
        held = self.judge.protocol
        return {"network": FEATURES, **{key: held[key] for key in ("hash", "size", "resize", "transformers")}}
