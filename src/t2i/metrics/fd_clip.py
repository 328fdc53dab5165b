"""Fréchet distance of pictures by a CLIP's image features (`frechet.py`; arXiv 1706.08500 has Inception's instead).

Features: the projected image embeddings of a frozen CLIP, float32, not normalised; pictures are resized and cropped
as that CLIP takes them. The figure belongs to the CLIP (`CLIPScorer.id`), to the number of pictures on either side and
to the reference set: figures of other judges, numbers or sets, and FID's, are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from t2i.metrics.clip_score import ROWS, CLIPScorer
from t2i.metrics.frechet import Moments, frechet_distance
from t2i.text_encoders.clip_folder import preprocess

FEATURES = "projected CLIP image embeddings, not normalised, float32"


@torch.no_grad()
def image_features(judge: CLIPScorer, pictures: UInt8[Tensor, "n h w 3"] | np.ndarray) -> Float[Tensor, "n d"]:
    """Embeddings, not normalised, float32, on the CPU."""
    held = torch.as_tensor(pictures)
    if held.dtype != torch.uint8 or held.ndim != 4 or held.shape[-1] != 3:
        raise ValueError(f"pictures {held.dtype} {tuple(held.shape)}: uint8 (n, h, w, 3) is wanted")
    device = judge.model.device
    parts = []
    with torch.autocast(device.type, enabled=False):
        for part in held.split(ROWS):
            image = part.to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)
            pixels = preprocess(image, judge.size, judge.mean, judge.std)
            parts.append(judge.model.get_image_features(pixel_values=pixels).pooler_output.float().cpu())
    return torch.cat(parts)


def moments(judge: CLIPScorer, chunks: Iterable[Tensor | np.ndarray]) -> Moments:
    """Of pictures that come in chunks of uint8 (n, h, w, 3)."""
    found: Moments | None = None
    for chunk in chunks:
        features = image_features(judge, chunk)
        found = Moments(features.shape[1]) if found is None else found
        found.update(features)
    if found is None:
        raise ValueError("pictures: none given")
    return found


def fd_clip(judge: CLIPScorer, pictures: Iterable[Tensor | np.ndarray], real: Moments) -> float:
    """The distance of drawn pictures, in chunks of uint8 (n, h, w, 3), from real ones whose `moments` are known."""
    return frechet_distance(moments(judge, pictures), real)
