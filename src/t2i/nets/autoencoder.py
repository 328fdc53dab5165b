"""The convolutional autoencoder of VQGAN: pictures to a grid of latent vectors and back.

Paper: Taming Transformers for High-Resolution Image Synthesis, arXiv 2012.09841. Residual blocks with
GroupNorm and swish, self-attention on chosen levels, strided convolutions down, nearest
neighbour and a convolution up.

Deviations: attention is placed by level and not by resolution, so that a net does not depend on the picture
size; `num_groups` 0 leaves out the norms (GroupNorm hides the flat colours of drawings, docs/log.md) and starts
every residual block as its shortcut; `patch_size` folds pixels into channels before the first convolution (and
unfolds them after the last), which makes small CPU models several times cheaper; the attention of the middle can be
left out; the group count shrinks to the largest common divisor where a level has too few channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.nets.resnet_blocks import Downsample, Level, Middle, Upsample, norm_of


def check_positive(**sizes: int) -> None:
    """ValueError naming the first argument below 1."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name}={value}: at least 1 is needed")


def check_sides(image: Float[Tensor, "b c h w"], factor: int) -> None:
    height, width = image.shape[-2:]
    if height % factor or width % factor:
        raise ValueError(f"image of {height}x{width} (h x w): both sides must be multiples of the encoder's factor"
                         f" {factor}")


class _Pyramid(nn.Module):
    """What encoder and decoder have in common: the sizes, checked. Level 0 is the finest in both."""

    def __init__(
        self, channels: int, multipliers: Sequence[int], num_res_blocks: int, attention_levels: Sequence[int],
        z_channels: int, patch_size: int,
    ) -> None:
        super().__init__()
        check_positive(channels=channels, num_res_blocks=num_res_blocks, patch_size=patch_size)
        if len(multipliers) == 0 or min(multipliers) < 1:
            raise ValueError(f"multipliers={list(multipliers)}: one whole number >= 1 for each level is needed")
        if wrong := [level for level in attention_levels if not 0 <= level < len(multipliers)]:
            raise ValueError(f"attention_levels={list(attention_levels)}: {wrong} not among the levels"
                             f" 0..{len(multipliers) - 1} (0 is the finest; there is one for each of multipliers)")
        self.patch_size, self.z_channels = patch_size, z_channels
        self.widths = [channels * multiplier for multiplier in multipliers]
        self.factor = patch_size * 2 ** (len(multipliers) - 1)


class Encoder(_Pyramid):
    """Pictures (b, in_channels, h, w) to latents (b, z_channels, h / factor, w / factor)."""

    def __init__(
        self,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (4,),
        z_channels: int = 256,
        in_channels: int = 3,
        num_groups: int = 32,
        patch_size: int = 1,
        mid_attention: bool = True,
        local: bool = False,
        attention_heads: int = 1,
        antialias: bool = False,
    ) -> None:
        super().__init__(channels, multipliers, num_res_blocks, attention_levels, z_channels, patch_size)
        if local and (len(multipliers) > 1 or len(attention_levels) > 0 or mid_attention or num_groups):
            raise ValueError("local_encoder=true sees one patch at a time: it goes with multipliers of one level"
                             " (patch_size is the factor), attention_levels=[], mid_attention=false and num_groups=0")
        kernel_size = 1 if local else 3
        self.stem = nn.Conv2d(in_channels * patch_size**2, channels, kernel_size, padding=kernel_size // 2)
        self.levels = nn.ModuleList()
        current = channels
        for i, width in enumerate(self.widths):
            resize = Downsample(width, antialias) if i < len(self.widths) - 1 else None
            self.levels.append(Level(current, width, num_res_blocks, num_groups, i in attention_levels, resize,
                                     kernel_size, attention_heads))
            current = width
        self.middle = Middle(current, num_groups, mid_attention, kernel_size, attention_heads)
        self.norm = norm_of(current, num_groups)
        self.head = nn.Conv2d(current, z_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b z gh gw"]:
        check_sides(image, self.factor)
        h = self.stem(F.pixel_unshuffle(image, self.patch_size) if self.patch_size > 1 else image)
        for level in self.levels:
            h = level(h)
        return self.head(F.silu(self.norm(self.middle(h))))


class Decoder(_Pyramid):
    """Latents (b, z_channels, h, w) to pictures (b, out_channels, h * factor, w * factor), not clamped.

    It has one residual block more a level than the encoder, as in the paper's code. `levels` runs from the
    finest (0) to the coarsest, like the encoder's, and is walked backwards.
    """

    def __init__(
        self,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (4,),
        z_channels: int = 256,
        out_channels: int = 3,
        num_groups: int = 32,
        patch_size: int = 1,
        mid_attention: bool = True,
        attention_heads: int = 1,
        antialias: bool = False,
    ) -> None:
        super().__init__(channels, multipliers, num_res_blocks, attention_levels, z_channels, patch_size)
        current = self.widths[-1]
        self.stem = nn.Conv2d(z_channels, current, 3, padding=1)
        self.middle = Middle(current, num_groups, mid_attention, num_heads=attention_heads)
        levels: list[Level] = []
        for i, width in reversed(list(enumerate(self.widths))):
            resize = Upsample(width, antialias) if i > 0 else None
            levels.append(Level(current, width, num_res_blocks + 1, num_groups, i in attention_levels, resize,
                                num_heads=attention_heads))
            current = width
        self.levels = nn.ModuleList(reversed(levels))
        self.norm = norm_of(current, num_groups)
        self.head = nn.Conv2d(current, out_channels * patch_size**2, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """The weight on which the adaptive weight of the adversarial loss is measured."""
        return self.head.weight

    def compile(self, *args: Any, **options: Any) -> None:
        """All but the last layer, of whose weight λ asks the gradient: a compiled net gives all gradients or none."""
        self.features = torch.compile(self.features, *args, **options)  # type: ignore[method-assign]

    def features(self, z: Float[Tensor, "b z gh gw"]) -> Float[Tensor, "b d h2 w2"]:
        """What the last layer is given."""
        h = self.middle(self.stem(z))
        for level in reversed(self.levels):
            h = level(h)
        return F.silu(self.norm(h))

    def forward(self, z: Float[Tensor, "b z gh gw"]) -> Float[Tensor, "b c h w"]:
        h = self.head(self.features(z))
        return F.pixel_shuffle(h, self.patch_size) if self.patch_size > 1 else h


class TwoHalves(nn.Module):
    """A `t2i.types.Autoencoder` of an encoder and a decoder."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, z_channels: int, factor: int, parts: int) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.z_channels, self.factor, self.parts = z_channels, factor, parts

    @property
    def last_layer(self) -> Tensor:
        return self.decoder.last_layer  # type: ignore[return-value]  # torch's own type forgets what a module has

    def forward(self, image: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.decoder(self.encoder(image))


@register("autoencoder")
class Autoencoder(TwoHalves):
    """An encoder and the decoder that mirrors it, from one list of arguments.

    `attention_levels` are indices into `multipliers`, 0 the finest; `factor` is how many pixels a side one
    latent position covers: patch_size * 2 ** (len(multipliers) - 1). With `local_encoder` the encoder's convolutions
    are 1x1: a code says what its own patch shows and nothing else, so that equal patches have equal codes; a prior
    learns such codes several times faster (docs/log.md). The decoder still sees the neighbours. `attention_heads` is of
    every attention, in the levels and in the middle. `antialias` blurs wherever the size changes, down and up, so that
    a shifted picture gives shifted latents and no checkerboard; `patch_size` folds pixels all the same.
    """

    def __init__(
        self,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (4,),
        z_channels: int = 256,
        image_channels: int = 3,
        num_groups: int = 32,
        patch_size: int = 1,
        mid_attention: bool = True,
        local_encoder: bool = False,
        attention_heads: int = 1,
        antialias: bool = False,
    ) -> None:
        if antialias and len(multipliers) == 1:
            raise ValueError(f"antialias=true blurs where the size changes from level to level:"
                             f" multipliers={list(multipliers)} is one level")
        shared = (channels, multipliers, num_res_blocks, attention_levels, z_channels, image_channels, num_groups,
                  patch_size, mid_attention)
        encoder = Encoder(*shared, local_encoder, attention_heads, antialias)
        super().__init__(encoder, Decoder(*shared, attention_heads, antialias), z_channels, encoder.factor, parts=1)
