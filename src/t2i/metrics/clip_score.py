"""CLIP score: the cosine between a picture's and a caption's CLIP embeddings (arXiv 2103.00020, 2104.08718).

Scale: the raw cosine in [-1, 1], neither x100 (torchmetrics) nor x2.5 and clipped at 0 (CLIPScore). The
caption is taken as it is, behind `prefix`, which is empty unless given. The CLIP that scores should not be the one that
conditioned or guided; `id` says which, and `text_id` tells its text tower.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPModel

from t2i.text_encoders.clip_folder import CaptionTokenizer, image_normalisation, image_size, load_clip, preprocess

ROWS = 256


def _hash(module: nn.Module, beginnings: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.startswith(beginnings):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def text_hash(tower: nn.Module) -> str:
    """Twelve hexadecimal digits of a text tower's weights, of a whole CLIP or of the tower by itself."""
    return _hash(tower, ("text_model.", "text_projection."))


class CLIPScorer:
    """Scores pictures in [-1, 1] of any size against captions, frozen, in float32."""

    def __init__(self, path: str, allow_download: bool = False, prefix: str = "") -> None:
        model, tokenizer = load_clip(path, allow_download)
        self._set(model, tokenizer, *image_normalisation(path, allow_download), path, prefix)

    @classmethod
    def from_model(
        cls, model: CLIPModel, tokenizer: CaptionTokenizer, mean: tuple[float, ...], std: tuple[float, ...],
        prefix: str = "",
    ) -> CLIPScorer:
        """Around a model already at hand (shared, not copied; call it in eval mode)."""
        scorer = cls.__new__(cls)
        scorer._set(model, tokenizer, mean, std, prefix=prefix)
        return scorer

    def _set(
        self, model: CLIPModel, tokenizer: CaptionTokenizer, mean: tuple[float, ...], std: tuple[float, ...],
        path: str | None = None, prefix: str = "",
    ) -> None:
        self.model, self.tokenizer, self.mean, self.std = model, tokenizer, mean, std
        self.size = image_size(model)
        self.path, self.prefix = path, prefix
        self._id: str | None = None

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the hash of the weights."""
        if self._id is None:
            self._id = _hash(self.model, ("",))
        return self._id

    @property
    def text_id(self) -> str:
        """The same of the text tower alone, as `text_hash` gives it."""
        return text_hash(self.model)

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides about a score."""
        return {"network": "CLIP", "path": self.path, "hash": self.id, "prefix": self.prefix,
                "scale": "raw cosine in [-1, 1]", "size": self.size, "resize": "bicubic, antialiased, centre crop",
                "transformers": transformers.__version__}

    def to(self, device: torch.device | str) -> CLIPScorer:
        module: nn.Module = self.model  # transformers' `to` is typed as one without self
        module.to(device)
        return self

    @torch.no_grad()
    def image_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32."""
        device = self.model.device
        parts = []
        with torch.autocast(device.type, enabled=False):
            for part in images.split(ROWS):
                pixels = preprocess(part.to(device), self.size, self.mean, self.std)
                parts.append(self.model.get_image_features(pixel_values=pixels).pooler_output)
        return F.normalize(torch.cat(parts).float(), dim=-1)

    @torch.no_grad()
    def text_features(self, text: list[str]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32."""
        device = self.model.device
        parts = []
        with torch.autocast(device.type, enabled=False):
            for i in range(0, len(text), ROWS):
                ids, _ = self.tokenizer([self.prefix + caption for caption in text[i : i + ROWS]])
                parts.append(self.model.get_text_features(input_ids=ids.to(device)).pooler_output)
        return F.normalize(torch.cat(parts).float(), dim=-1)

    def score(self, images: Float[Tensor, "b 3 h w"], text: list[str]) -> Float[Tensor, " b"]:
        """Raw cosine of picture i with caption i."""
        if len(images) != len(text) or not text:
            raise ValueError(
                f"score takes one caption a picture, at least one: {len(images)} pictures, {len(text)} texts"
            )
        return (self.image_features(images) * self.text_features(text)).sum(-1)
