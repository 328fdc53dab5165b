"""The RDB generator: DF-GAN's coarse blocks, a residual dense block that joins picture and caption, and up again.

Residual dense block: Zhang et al. 2018, arXiv 1802.08797; its place between text-fusing blocks is IMAGAN's. The
caption enters three times: by fusion in every up-block, and tiled beside the features before and after the dense block.
Of the original only the order and the widths are known; what is ours: fusing up-blocks after the dense block as before
it, BatchNorm with the ranks' common statistics in the joint convolution and the residual blocks.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.nets.dfgan import UpBlock
from t2i.nets.gan_blocks import BatchNorm, Residual, conv3, count_doublings, with_text
from t2i.types import GeneratorOutput


class ResidualDense(nn.Module):
    """Convolutions that each see all before them, a 1x1 fusion, and the input beside it through one convolution."""

    def __init__(self, in_channels: int, out_channels: int, growth: int, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(in_channels + i * growth, growth, 3, padding=1) for i in range(num_layers)
        )
        self.fusion = nn.Conv2d(in_channels + num_layers * growth, out_channels, 1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        dense = x
        for layer in self.layers:
            dense = torch.cat([dense, F.leaky_relu(layer(dense), 0.2)], 1)
        return self.fusion(dense) + self.shortcut(x)


@register("generator")
class RDBGenerator(nn.Module):
    """Noise (b, noise_dim) and captions (b, text_dim) to pictures.

    Args:
        image_size: a power of two from 32.
        channels: at the finest level of 256 pixels; eight times as many at the coarse ones, twice in the dense
            block's growth. Published form: 32 channels, 8 layers.
        tanh: see `t2i.nets.dfgan.DFGenerator`.
    """

    def __init__(
        self, image_size: int, channels: int = 32, noise_dim: int = 100, text_dim: int = 256, num_layers: int = 8,
        tanh: bool = True,
    ) -> None:
        super().__init__()
        self.image_size, self.noise_dim, self.text_dim, self.tanh = image_size, noise_dim, text_dim, tanh
        condition, wide = noise_dim + text_dim, 8 * channels
        ups = count_doublings(image_size, 32) - 2
        self.stem = nn.Linear(noise_dim, wide * 4 * 4)
        self.coarse = nn.ModuleList(UpBlock(condition, wide, wide) for _ in range(2))
        self.dense = ResidualDense(wide + text_dim, wide, 2 * channels, num_layers)
        self.joint = nn.Sequential(conv3(wide + text_dim, wide), BatchNorm(wide), nn.ReLU())
        self.residual = nn.Sequential(*(Residual(wide) for _ in range(2)))
        widths = [wide, *(channels * min(2**i, 8) for i in reversed(range(ups)))]
        self.fine = nn.ModuleList(UpBlock(condition, a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, noise: Float[Tensor, "b z"], text: Float[Tensor, "b t"]) -> GeneratorOutput:
        condition = torch.cat([noise, text], 1)
        x = self.stem(noise).unflatten(1, (-1, 4, 4))
        for block in self.coarse:
            x = block(x, condition)
        x = self.dense(with_text(x, text))
        x = self.residual(self.joint(with_text(x, text)))
        for block in self.fine:
            x = block(x, condition)
        image = self.head(F.leaky_relu(x, 0.2))
        return GeneratorOutput(torch.tanh(image) if self.tanh else image)
