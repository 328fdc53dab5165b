"""The U-Net discriminator: one logit for a picture with its caption, and one for each of its pixels.

Paper: A U-Net Based Discriminator for Generative Adversarial Networks, arXiv 2002.12655: the encoder is BigGAN's
discriminator (arXiv 1809.11096), a mirrored decoder with skips gives the pixels' logits. Deviations: instead of a
projected class label the global logit sees the caption, by the head of DF-GAN (arXiv 2008.05865), here with biases
and, as all convolutions, spectral normalisation; the pixels do not see it, since a wrong caption does not make a pixel
fake; BigGAN's non-local block is left out; the width, 32 channels, is DF-GAN's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from t2i.checkpoint.registry import register
from t2i.nets.gan_blocks import count_doublings, with_text
from t2i.types import DiscriminatorFeatures, DiscriminatorLogits

_MULTIPLIERS = (1, 2, 4, 8, 8, 16)
_BOTTLENECK = 4  # pixels a side


def _conv(in_channels: int, out_channels: int, kernel: int, spectral: bool, padding: int | None = None) -> nn.Module:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2 if padding is None else padding)
    # BigGAN's start, with which the spectral norm divides by 1 from the first step on.
    nn.init.orthogonal_(conv.weight)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return spectral_norm(conv) if spectral else conv


class _Down(nn.Module):
    """(b, in_channels, h, w) to (b, out_channels, h / 2, w / 2); `first`: the input is a picture, which no ReLU cuts.
    """

    def __init__(self, in_channels: int, out_channels: int, spectral: bool, first: bool) -> None:
        super().__init__()
        self.first = first
        self.conv1 = _conv(in_channels, out_channels, 3, spectral)
        self.conv2 = _conv(out_channels, out_channels, 3, spectral)
        self.shortcut = _conv(in_channels, out_channels, 1, spectral)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        h = self.conv1(x if self.first else F.relu(x))
        h = F.avg_pool2d(self.conv2(F.relu(h)), 2)
        # A 1x1 convolution and a mean change places freely: four times fewer products this way.
        return h + self.shortcut(F.avg_pool2d(x, 2))


class _Up(nn.Module):
    """(b, in_channels, h, w) to (b, out_channels, 2 h, 2 w)."""

    def __init__(self, in_channels: int, out_channels: int, spectral: bool) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, 3, spectral)
        self.conv2 = _conv(out_channels, out_channels, 3, spectral)
        self.shortcut = _conv(in_channels, out_channels, 1, spectral)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        h = self.conv1(F.interpolate(F.relu(x), scale_factor=2.0, mode="nearest"))
        return self.conv2(F.relu(h)) + F.interpolate(self.shortcut(x), scale_factor=2.0, mode="nearest")


@register("discriminator")
class UNetDiscriminator(nn.Module):
    """Pictures in [-1, 1] and captions (b, text_dim) to logits, high for real ones: one a picture, one a pixel.

    `image_size` is a power of two, at least 16; the encoder halves it down to 4x4. `spectral`: spectral normalisation
    (arXiv 1802.05957) of every convolution, one power iteration a forward in training. There is no BatchNorm: a
    picture's logits do not depend on the rest of its batch. ReLU within the net, as in BigGAN, which the paper builds
    on; LeakyReLU(0.2) in the head, as in DF-GAN. Can be differentiated twice, for gradient penalties. 11.5M
    parameters at 256 pixels, 2.3M at 64.
    """

    def __init__(self, image_size: int, text_dim: int = 256, channels: int = 32, spectral: bool = True) -> None:
        super().__init__()
        levels = count_doublings(image_size, 16)
        sizes = {"text_dim": text_dim, "channels": channels}
        if faults := [f"{name}={value}: at least 1 is needed" for name, value in sizes.items() if value < 1]:
            raise ValueError("; ".join(faults))
        self.image_size, self.text_dim = image_size, text_dim
        widths = [channels * m for m in (_MULTIPLIERS + _MULTIPLIERS[-1:] * levels)[:levels]]
        self.down = nn.ModuleList(
            _Down(a, b, spectral, first=i == 0) for i, (a, b) in enumerate(zip([3, *widths[:-1]], widths, strict=True))
        )
        # Each level but the deepest reads its encoder's twin beside what comes from below: twice the width.
        self.up = nn.ModuleList()
        for i in reversed(range(levels)):
            below = widths[i] if i == levels - 1 else 2 * widths[i]
            self.up.append(_Up(below, widths[max(i - 1, 0)], spectral))
        self.pixel_head = _conv(widths[0], 1, 1, spectral)
        self.joint = _conv(widths[-1] + text_dim, 2 * channels, 3, spectral)
        self.head = _conv(2 * channels, 1, _BOTTLENECK, spectral, padding=0)

    def features(self, image: Float[Tensor, "b 3 h w"]) -> DiscriminatorFeatures:
        """Of pictures (b, 3, image_size, image_size), with the logit of every pixel."""
        if image.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(f"image of shape {tuple(image.shape)}: (b, 3, {self.image_size}, {self.image_size}) is"
                             f" needed, as image_size={self.image_size}")
        h, skips = image, []
        for down in self.down:
            h = down(h)
            skips.append(h)
        deep = F.relu(skips.pop())
        for up in self.up:
            h = up(h)
            if skips:
                h = torch.cat([h, skips.pop()], 1)
        return DiscriminatorFeatures(deep=deep, pixels=self.pixel_head(F.relu(h)))

    def logits(self, features: DiscriminatorFeatures, text: Float[Tensor, "b t"]) -> DiscriminatorLogits:
        """The logit of each picture with its caption; those of the pixels are handed on."""
        if text.shape != (len(features.deep), self.text_dim):
            raise ValueError(f"text of shape {tuple(text.shape)}: ({len(features.deep)}, {self.text_dim}) is needed,"
                             " one caption of text_dim numbers a picture")
        h = F.leaky_relu(self.joint(with_text(features.deep, text)), 0.2)
        return DiscriminatorLogits(conditional=self.head(h).flatten(), pixels=features.pixels)
