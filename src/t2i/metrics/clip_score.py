"""CLIP score: the cosine between a picture's and a caption's CLIP embeddings (arXiv 2103.00020, 2104.08718).

Scale: the raw cosine in [-1, 1], neither x100 (torchmetrics, whose CLIPScore fails with transformers 5) nor x2.5 and
clipped at 0 (CLIPScore). The caption is taken as it is, behind `prefix`, which is empty unless given. The CLIP that
scores should not be the one that conditioned or guided; `id` says which, and `text_id` tells its text tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from t2i.checkpoint.weights_hash import weights_hash
from t2i.metrics.features import checked
from t2i.text_encoders.clip_folder import image_normalisation, image_size, preprocess
from t2i.text_encoders.dual_encoder import load_towers, text_features

ROWS = 256
FEATURES = "projected CLIP image embeddings, not normalised, float32"
RESIZE = "bicubic, antialiased, centre crop"


def text_hash(tower: nn.Module) -> str:
    """Twelve hexadecimal digits of a text tower's weights, of a whole CLIP or of the tower by itself."""
    return weights_hash(tower, only=("text_model.", "text_projection."), digits=12)


class CLIPScorer:
    """Scores pictures in [-1, 1] of any size against captions, frozen, in float32: a `t2i.types.ClipModel`, without
    gradients. Called with bytes it is a `FeatureNet` of projected image embeddings, not normalised."""

    name = "clip"

    def __init__(self, path: str, allow_download: bool = False, prefix: str = "") -> None:
        self.model, self.tokenizer = load_towers(path, allow_download)
        self.mean, self.std = image_normalisation(path, allow_download)
        self.path, self.prefix, self.image_size = path, prefix, image_size(self.model)
        self.dim = int(self.model.visual_projection.out_features)

    @cached_property
    def id(self) -> str:
        """Twelve hexadecimal digits of the hash of the weights."""
        return weights_hash(self.model, digits=12)

    def hash(self) -> str:
        return self.id

    @property
    def text_id(self) -> str:
        """The same of the text tower alone, as `text_hash` gives it."""
        return text_hash(self.model)

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides about the features."""
        return {"network": FEATURES, "hash": self.id, "size": self.image_size, "resize": RESIZE,
                "transformers": transformers.__version__}

    @property
    def score_protocol(self) -> dict[str, Any]:
        """What decides about a score."""
        return {**self.protocol, "network": "CLIP", "path": self.path, "prefix": self.prefix,
                "scale": "raw cosine in [-1, 1]"}

    def to(self, device: torch.device | str) -> CLIPScorer:
        module: nn.Module = self.model  # transformers' `to` is typed as one without self
        module.to(device)
        return self

    @torch.no_grad()
    def _parts(self, items: Any, features: Callable[[Any], Tensor]) -> Tensor:
        with torch.autocast(self.model.device.type, enabled=False):
            return torch.cat([features(items[i : i + ROWS]).float() for i in range(0, len(items), ROWS)])

    def _embed(self, images: Float[Tensor, "b 3 h w"]) -> Tensor:
        pixels = preprocess(images.to(self.model.device), self.image_size, self.mean, self.std)
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def __call__(self, pictures: UInt8[Tensor, "n h w 3"] | np.ndarray) -> Float[Tensor, "n d"]:
        """Not normalised, float32, on the CPU."""
        return self._parts(checked(pictures), lambda part: self._embed(
            part.to(self.model.device).permute(0, 3, 1, 2).float().div(127.5).sub(1)).cpu())

    def embed_image(self, views: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32."""
        return F.normalize(self._parts(views, self._embed), dim=-1)

    def embed_text(self, text: Sequence[str]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32."""
        def embed(part: Sequence[str]) -> Tensor:
            return text_features(self.model, self.tokenizer, [self.prefix + caption for caption in part])

        return F.normalize(self._parts(text, embed), dim=-1)

    def score(self, images: Float[Tensor, "b 3 h w"], text: list[str]) -> Float[Tensor, " b"]:
        """Raw cosine of picture i with caption i."""
        if len(images) != len(text) or not text:
            raise ValueError(f"{len(images)} pictures, {len(text)} texts: score takes one text a picture, at least one")
        return (self.embed_image(images) * self.embed_text(text)).sum(-1)
