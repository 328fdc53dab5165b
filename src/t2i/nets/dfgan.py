"""DF-GAN's nets (Tao et al. 2020, arXiv 2008.05865): generation by deep fusion of text, and its discriminator.

Every block of the generator modulates its features twice in a row by affine maps that noise and caption decide, with a
nonlinearity after each. Sizes follow the published code's form (`nf` there is `channels` here): at 256 pixels and 32
channels 9,744,131 parameters in the generator, 6,619,206 in the discriminator, 295,936 in its head. Deviation: a
shortcut between equal widths is the identity in both nets; the discriminator keeps the unused kernel that published
files have there.
"""

from __future__ import annotations

import itertools
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.nets.gan_blocks import count_doublings, with_text
from t2i.types import DiscriminatorFeatures, DiscriminatorLogits, GeneratorOutput


def level_widths(channels: int, image_size: int) -> list[int]:
    """Channels at 4, 8, … `image_size` pixels: doubling towards the coarse end, to at most 8 x `channels`."""
    return [channels * min(2**i, 8) for i in reversed(range(count_doublings(image_size, 8) + 1))]


class Affine(nn.Module):
    """Scale and shift of each channel from a condition, by two small perceptrons; starts as the identity."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.scale, self.shift = (
            nn.Sequential(nn.Linear(condition_dim, channels), nn.ReLU(), nn.Linear(channels, channels))
            for _ in range(2)
        )
        for part, start in ((self.scale, 1.0), (self.shift, 0.0)):
            last = cast(nn.Linear, part[2])
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, start)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return x * self.scale(condition)[:, :, None, None] + self.shift(condition)[:, :, None, None]


class Fusion(nn.Module):
    """The deep text-image fusion block: affine, LeakyReLU, affine, LeakyReLU."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.affines = nn.ModuleList(Affine(condition_dim, channels) for _ in range(2))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for affine in self.affines:
            x = F.leaky_relu(affine(x, condition), 0.2)
        return x


class UpBlock(nn.Module):
    """Nearest doubling, then two fusions and 3x3 convolutions beside a shortcut."""

    def __init__(self, condition_dim: int, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.fusions = nn.ModuleList([Fusion(condition_dim, in_channels), Fusion(condition_dim, out_channels)])
        self.convs = nn.ModuleList(
            [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.Conv2d(out_channels, out_channels, 3, padding=1)]
        )
        same = in_channels == out_channels
        self.shortcut: nn.Module = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2)
        short = self.shortcut(x)
        for fusion, conv in zip(self.fusions, self.convs, strict=True):
            x = conv(fusion(x, condition))
        return short + x


@register("generator")
class DFGenerator(nn.Module):
    """Noise (b, noise_dim) and captions (b, text_dim) to pictures.

    Args:
        image_size: a power of two from 8.
        channels: at the finest level; eight times as many at the coarse ones.
        tanh: whether the picture is squashed into [-1, 1]. Without, values may lie outside, and grounds of pure white
            are reached without the gradient vanishing.
    """

    def __init__(
        self, image_size: int, channels: int = 32, noise_dim: int = 100, text_dim: int = 256, tanh: bool = True
    ) -> None:
        super().__init__()
        self.image_size, self.noise_dim, self.text_dim, self.tanh = image_size, noise_dim, text_dim, tanh
        widths = level_widths(channels, image_size)
        condition = noise_dim + text_dim
        self.stem = nn.Linear(noise_dim, widths[0] * 4 * 4)
        self.blocks = nn.ModuleList(UpBlock(condition, a, b) for a, b in itertools.pairwise(widths))
        self.head = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, noise: Float[Tensor, "b z"], text: Float[Tensor, "b t"]) -> GeneratorOutput:
        condition = torch.cat([noise, text], 1)
        x = self.stem(noise).unflatten(1, (-1, 4, 4))
        for block in self.blocks:
            x = block(x, condition)
        image = self.head(F.leaky_relu(x, 0.2))
        return GeneratorOutput(torch.tanh(image) if self.tanh else image)


class DownBlock(nn.Module):
    """A strided and a plain convolution without biases, scaled by a learned factor, beside a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, start: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(in_channels, out_channels, 4, stride=2, padding=1, bias=False),
             nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)]
        )  # fmt: skip
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.gamma = nn.Parameter(torch.full((1,), start))
        self.same = in_channels == out_channels
        if self.same:
            self.shortcut.requires_grad_(False)  # published files have it, no forward uses it

    def forward(self, x: Tensor) -> Tensor:
        # Means of four pixels and a 1x1 convolution commute: the means first, at a quarter of the work.
        short = F.avg_pool2d(x, 2)
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.2)
        return (short if self.same else self.shortcut(short)) + self.gamma * x


class Head(nn.Module):
    """One logit from a picture's 4 x 4 features and its caption."""

    def __init__(self, in_channels: int, channels: int, text_dim: int) -> None:
        super().__init__()
        self.joint = nn.Conv2d(in_channels + text_dim, channels, 3, padding=1, bias=False)
        self.last = nn.Conv2d(channels, 1, 4, bias=False)

    def forward(self, deep: Float[Tensor, "b c 4 4"], text: Float[Tensor, "b t"]) -> Float[Tensor, " b"]:
        return self.last(F.leaky_relu(self.joint(with_text(deep, text)), 0.2)).flatten()


@register("discriminator")
class DFDiscriminator(nn.Module):
    """Pictures (b, 3, s, s) in [-1, 1] to 4 x 4 features; those under a caption to one logit.

    Args:
        image_size: a power of two from 8.
        channels: at the finest level; eight times as many at the coarse ones.
        residual_start: of the factors on the blocks' convolutions, which are learned; the paper's is 0. In short runs
            at small sizes, 1 lets the discriminator see shapes at all (docs/log.md).
    """

    def __init__(
        self, image_size: int, channels: int = 32, text_dim: int = 256, residual_start: float = 0.0
    ) -> None:
        super().__init__()
        self.image_size, self.text_dim = image_size, text_dim
        widths = level_widths(channels, image_size)[::-1]
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(DownBlock(a, b, residual_start) for a, b in itertools.pairwise(widths))
        self.head = Head(widths[-1], 2 * channels, text_dim)

    def features(self, image: Float[Tensor, "b 3 h w"]) -> DiscriminatorFeatures:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return DiscriminatorFeatures(x)

    def logits(self, features: DiscriminatorFeatures, text: Float[Tensor, "b t"]) -> DiscriminatorLogits:
        return DiscriminatorLogits(self.head(features.deep, text))
