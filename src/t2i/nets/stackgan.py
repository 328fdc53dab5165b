"""StackGAN's nets (Zhang et al. 2016, arXiv 1612.03242): a coarse picture from a caption, then a fine one from both.

Sizes follow the published code's form (GF_DIM and DF_DIM are `channels` here). At 192 and 96 channels, 128 numbers of
condition and a text of 1,024: stage I 20.02 M and 12.41 M parameters at 64 pixels; stage II, without stage I and with
two residual blocks, 37.13 M and 159.9 M at 256. Deviations: any power of two at stage I and four times that at stage
II; BatchNorm's statistics in training are those of the batch over all ranks; heads give logits, the loss has the
sigmoid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.nets.gan_blocks import BatchNorm, Residual, conv3, count_doublings, with_text
from t2i.types import DiscriminatorFeatures, DiscriminatorLogits, GeneratorOutput


def up(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Upsample(scale_factor=2), conv3(in_channels, out_channels), BatchNorm(out_channels), nn.ReLU()
    )


class Augmentation(nn.Module):
    """Conditioning augmentation: a caption as a Gaussian, from which the generator's condition is drawn (eq. 2).

    `deviation`: of its first weights, 0.02 as all others' in the paper. Discriminators see the Gaussian's mean,
    which then is near 0; with 0.1 captions matter from the start (docs/log.md).
    """

    def __init__(self, text_dim: int, condition_dim: int, deviation: float = 0.02) -> None:
        super().__init__()
        if not deviation > 0:
            raise ValueError(f"condition_start={deviation}: allowed are numbers above 0")
        self.linear = nn.Linear(text_dim, 2 * condition_dim)
        self.deviation = deviation

    def forward(self, text: Float[Tensor, "b t"]) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"]]:
        """Mean and logarithm of the variance; both are cut off at 0, as in the published code."""
        mean, log_var = F.relu(self.linear(text)).chunk(2, 1)
        return mean, log_var


def init_weights(module: nn.Module) -> None:
    """Weights from N(0, 0.02), those of BatchNorm around 1, biases of linear maps 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.normal_(part.weight, 0.0, 0.02)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, 1.0, 0.02)
            nn.init.zeros_(part.bias)
    for part in module.modules():
        if isinstance(part, Augmentation) and part.deviation != 0.02:
            nn.init.normal_(part.linear.weight, 0.0, part.deviation)


@register("generator")
class StageOne(nn.Module):
    """Noise (b, noise_dim) and captions (b, text_dim) to pictures of 8 to 64 pixels or more.

    The first `noise_dim - condition_dim` numbers of the noise are the picture's, the others draw the condition.
    `tanh`: see `t2i.nets.dfgan.DFGenerator`; `condition_start`: see `Augmentation`.
    """

    def __init__(
        self, image_size: int = 64, channels: int = 192, noise_dim: int = 228, text_dim: int = 256,
        condition_dim: int = 128, tanh: bool = True, condition_start: float = 0.02,
    ) -> None:
        super().__init__()
        ups = count_doublings(image_size, 8)
        if noise_dim <= condition_dim:
            raise ValueError(f"noise_dim={noise_dim}: more than condition_dim={condition_dim} is needed, whose numbers"
                             " are among it")
        if channels * 8 % 2**ups:
            raise ValueError(f"channels={channels}: 8 x channels must be divisible by {2**ups} at {image_size} pixels")
        self.image_size, self.noise_dim, self.text_dim = image_size, noise_dim, text_dim
        self.condition_dim, self.tanh = condition_dim, tanh
        wide = 8 * channels
        self.augmentation = Augmentation(text_dim, condition_dim, condition_start)
        self.stem = nn.Sequential(nn.Linear(noise_dim, wide * 4 * 4, bias=False), BatchNorm(wide * 4 * 4), nn.ReLU())
        self.ups = nn.ModuleList(up(wide // 2**i, wide // 2 ** (i + 1)) for i in range(ups))
        self.head = conv3(wide // 2**ups, 3)
        init_weights(self)

    def forward(self, noise: Float[Tensor, "b z"], text: Float[Tensor, "b t"]) -> GeneratorOutput:
        mean, log_var = self.augmentation(text)
        own, around = noise.split([self.noise_dim - self.condition_dim, self.condition_dim], 1)
        condition = mean + around * (0.5 * log_var).exp()
        x = self.stem(torch.cat([own, condition], 1)).unflatten(1, (-1, 4, 4))
        for block in self.ups:
            x = block(x)
        image = self.head(x)
        return GeneratorOutput(torch.tanh(image) if self.tanh else image, mean, log_var)


@register("generator")
class StageTwo(nn.Module):
    """Pictures of stage I and captions to pictures four times as wide. `noise` draws the condition alone.

    Args:
        image_size: of the result; stage I's is a quarter.
        num_res_blocks: 4 in the paper, 2 for COCO.
        tanh: see `t2i.nets.dfgan.DFGenerator`.
        condition_start: see `Augmentation`.
        skip: whether stage I's picture, enlarged, is added to the result; not in the paper, where stage II in short
            runs forgets what stage I drew (docs/log.md).
    """

    def __init__(
        self, image_size: int = 256, channels: int = 192, text_dim: int = 256, condition_dim: int = 128,
        num_res_blocks: int = 4, tanh: bool = True, condition_start: float = 0.02, skip: bool = False,
    ) -> None:
        super().__init__()
        count_doublings(image_size, 32)
        if channels % 4:
            raise ValueError(f"channels={channels}: multiples of 4 are allowed")
        self.image_size, self.text_dim, self.condition_dim = image_size, text_dim, condition_dim
        self.noise_dim, self.tanh, self.skip, wide = condition_dim, tanh, skip, 4 * channels
        self.augmentation = Augmentation(text_dim, condition_dim, condition_start)
        self.encoder = nn.Sequential(
            conv3(3, channels), nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False), BatchNorm(2 * channels), nn.ReLU(),
            nn.Conv2d(2 * channels, wide, 4, stride=2, padding=1, bias=False), BatchNorm(wide), nn.ReLU(),
        )  # fmt: skip
        self.joint = nn.Sequential(conv3(wide + condition_dim, wide), BatchNorm(wide), nn.ReLU())
        self.residual = nn.Sequential(*(Residual(wide) for _ in range(num_res_blocks)))
        self.ups = nn.ModuleList(up(wide // 2**i, wide // 2 ** (i + 1)) for i in range(4))
        self.head = conv3(wide // 16, 3)
        init_weights(self)

    def forward(self, coarse: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b c"], text: Tensor) -> GeneratorOutput:
        mean, log_var = self.augmentation(text)
        condition = mean + noise * (0.5 * log_var).exp()
        x = self.encoder(coarse)
        x = self.residual(self.joint(with_text(x, condition)))
        for block in self.ups:
            x = block(x)
        image = self.head(x)
        if self.skip:
            image = image + F.interpolate(coarse.to(image.dtype), scale_factor=4.0, mode="bilinear")
        return GeneratorOutput(torch.tanh(image) if self.tanh else image, mean, log_var)


def norm_of(channels: int, batch_norm: bool) -> nn.Module:
    return BatchNorm(channels) if batch_norm else nn.Identity()


class StackHead(nn.Module):
    """One logit from 4 x 4 features, under a condition or without one."""

    def __init__(self, channels: int, condition_dim: int, batch_norm: bool) -> None:
        super().__init__()
        self.joint: nn.Module = nn.Identity()
        if condition_dim:
            self.joint = nn.Sequential(conv3(channels + condition_dim, channels), norm_of(channels, batch_norm),
                                       nn.LeakyReLU(0.2))
        self.last = nn.Conv2d(channels, 1, 4)

    def forward(self, deep: Tensor, condition: Tensor | None = None) -> Float[Tensor, " b"]:
        if condition is not None:
            deep = with_text(deep, condition)
        return self.last(self.joint(deep)).flatten()


@register("discriminator")
class StackDiscriminator(nn.Module):
    """Pictures to 4 x 4 features; those under a condition (b, text_dim) to a logit, and without one to another.

    Args:
        image_size: a power of two from 8. Widths double with every halving; beyond 8 x `channels` 3x3 convolutions
            bring them down again, as at stage II.
        text_dim: of the condition, which for StackGAN is the mean of its conditioning augmentation.
        unconditional: a second head that does not see the caption, as at stage II.
        batch_norm: false leaves it out, and starts as torch does: real and drawn pictures are normalised apart, so that
            a ground of another colour is not seen where pictures are mostly ground (docs/log.md).
    """

    def __init__(
        self, image_size: int = 64, channels: int = 96, text_dim: int = 128, unconditional: bool = False,
        batch_norm: bool = True,
    ) -> None:
        super().__init__()
        self.image_size, self.text_dim = image_size, text_dim
        downs = count_doublings(image_size, 8)
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1, bias=False), nn.LeakyReLU(0.2)]
        width = channels
        for _ in range(downs - 1):
            layers += [nn.Conv2d(width, 2 * width, 4, stride=2, padding=1, bias=False),
                       norm_of(2 * width, batch_norm), nn.LeakyReLU(0.2)]
            width *= 2
        while width > 8 * channels:
            layers += [conv3(width, width // 2), norm_of(width // 2, batch_norm), nn.LeakyReLU(0.2)]
            width //= 2
        self.encoder = nn.Sequential(*layers)
        self.head = StackHead(width, text_dim, batch_norm)
        self.free_head = StackHead(width, 0, batch_norm) if unconditional else None
        if batch_norm:
            init_weights(self)

    def features(self, image: Float[Tensor, "b 3 h w"]) -> DiscriminatorFeatures:
        return DiscriminatorFeatures(self.encoder(image))

    def logits(self, features: DiscriminatorFeatures, text: Float[Tensor, "b c"]) -> DiscriminatorLogits:
        unconditional = None if self.free_head is None else self.free_head(features.deep)
        return DiscriminatorLogits(self.head(features.deep, text), unconditional)
