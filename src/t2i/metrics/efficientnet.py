"""Features of EfficientNet-Lite0 (arXiv 1905.11946, ImageNet), for a Fréchet distance whose net pip brings.

The 1,280 pooled features before the classifier, of pictures brought to 224 pixels, the net's own size, by the bicubic
filter with antialiasing and not rounded. The distance is FID's formula on them; it is no FID, and comparable with none.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from t2i.losses.perceptual import EfficientNetLite0
from t2i.metrics.features import checked

SIDE = 224
ROWS = 32


class EfficientNetFeatures:
    """A `t2i.metrics.features.FeatureNet`. ValueError where its packages are not installed."""

    name = "efficientnet"
    dim = EfficientNetLite0.dim

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.net = EfficientNetLite0().to(self.device)

    @torch.no_grad()
    def __call__(self, pictures: UInt8[Tensor, "n h w 3"] | np.ndarray) -> Float[Tensor, "n 1280"]:
        # cuDNN would round the products of float32 convolutions to TF32.
        with torch.autocast(self.device.type, enabled=False), torch.backends.cudnn.flags(allow_tf32=False):
            parts = [self._part(part).cpu() for part in checked(pictures).split(ROWS)]
        return torch.cat(parts) if parts else torch.zeros(0, self.dim)

    def _part(self, part: UInt8[Tensor, "b h w 3"]) -> Float[Tensor, "b 1280"]:
        images = part.permute(0, 3, 1, 2).to(self.device).float().div(127.5).sub(1)
        return self.net.pooled(F.interpolate(images, (SIDE, SIDE), mode="bicubic", antialias=True).clamp(-1, 1))

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides about the features."""
        return {"network": "efficientnet-lite0, pooled", "sha256": self.net.sha256, "size": SIDE,
                "resize": "bicubic, antialiased", "quantised": False, "dim": self.dim}
