"""The patch discriminator: one logit for each overlapping patch of a picture.

Paper: Image-to-Image Translation with Conditional Adversarial Networks, arXiv 1611.07004, in the form that
VQGAN (arXiv 2012.09841) trains against. Deviation: BatchNorm can be exchanged for spectral normalisation
(arXiv 1802.05957) or left out; without it a picture's logits do not depend on the rest of its batch.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from t2i.checkpoint.registry import register


@register("discriminator")
class PatchGAN(nn.Module):
    """Pictures in [-1, 1] (b, in_channels, h, w) to logits (b, 1, h', w').

    `num_layers` strided convolutions halve the picture as often; three see patches of 70x70 pixels. The
    shortest side must be at least 3 * 2 ** num_layers.
    """

    def __init__(
        self, in_channels: int = 3, channels: int = 64, num_layers: int = 3,
        norm: Literal["batch", "spectral", "none"] = "batch",
    ) -> None:
        super().__init__()
        if norm not in ("batch", "spectral", "none"):
            raise ValueError(f"norm={norm!r}: one of batch, spectral, none is needed")
        if not 1 <= num_layers <= 16:
            raise ValueError(f"num_layers={num_layers}: from 1 to 16 are allowed, each halves the picture")
        self.smallest_side = 3 * 2**num_layers
        self.stem = nn.Conv2d(in_channels, channels, 4, stride=2, padding=1)
        self.convs = nn.ModuleList()
        self.norms = nn.ModuleList()
        current = channels
        for i in range(1, num_layers + 1):
            width = channels * min(2**i, 8)
            stride = 2 if i < num_layers else 1
            # BatchNorm's shift makes the bias before it redundant.
            self.convs.append(nn.Conv2d(current, width, 4, stride=stride, padding=1, bias=norm != "batch"))
            self.norms.append(nn.BatchNorm2d(width) if norm == "batch" else nn.Identity())
            current = width
        self.head = nn.Conv2d(current, 1, 4, stride=1, padding=1)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, 1.0 if name.startswith("norms.") else 0.0, 0.02)
        if norm == "spectral":
            for conv in (self.stem, *self.convs, self.head):
                spectral_norm(conv)

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 1 ph pw"]:
        height, width = image.shape[-2:]
        if min(height, width) < self.smallest_side:
            raise ValueError(f"image of {height}x{width} (h x w) is too small for num_layers={len(self.convs)}: at"
                             f" least {self.smallest_side} pixels a side are needed")
        h = F.leaky_relu(self.stem(image), 0.2)
        for conv, norm in zip(self.convs, self.norms, strict=True):
            h = F.leaky_relu(norm(conv(h)), 0.2)
        return self.head(h)
