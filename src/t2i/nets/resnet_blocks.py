"""What VQGAN's encoder and decoder are built of (arXiv 2012.09841): residual blocks, attention, changes of size.

Deviations, with the same weights under the same names: attention may have several heads; changes of size may be
anti-aliased (Making Convolutional Networks Shift-Invariant Again, arXiv 1904.11486).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.nets.recompute import Recomputed


class GroupNorm(nn.GroupNorm):
    """torch's. With channels last its backward in bf16 on a CPU takes ten times as long as with channels first and both
    ways there (docs/log.md, 2026-12-01)."""

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        last = torch.channels_last
        slow = self.training and x.dtype == torch.bfloat16 and not x.is_cuda
        if slow and x.is_contiguous(memory_format=last):
            return super().forward(x.contiguous()).contiguous(memory_format=last)
        return super().forward(x)


def norm_of(channels: int, num_groups: int) -> nn.Module:
    """GroupNorm, or nothing for num_groups 0."""
    return GroupNorm(math.gcd(num_groups, channels), channels, eps=1e-6) if num_groups else nn.Identity()


class ResidualBlock(Recomputed):
    def __init__(self, in_channels: int, out_channels: int, num_groups: int, kernel_size: int = 3) -> None:
        super().__init__()
        padding = kernel_size // 2
        self.norm_1 = norm_of(in_channels, num_groups)
        self.conv_1 = nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)
        self.norm_2 = norm_of(out_channels, num_groups)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, kernel_size, padding=padding)
        same = in_channels == out_channels
        self.shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)
        if not num_groups:  # without norms a deep stack must start as its shortcuts
            for parameter in self.conv_2.parameters():
                nn.init.zeros_(parameter)

    def run(self, x: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = self.conv_2(F.silu(self.norm_2(h)))
        return self.shortcut(x) + h

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h w"]:
        return self.again(self.run, x)


class Attention(Recomputed):
    """Self-attention over all positions, with a residual connection; `num_heads` share the channels."""

    def __init__(self, channels: int, num_groups: int, num_heads: int = 1) -> None:
        super().__init__()
        if num_heads < 1 or channels % num_heads:
            raise ValueError(f"attention_heads={num_heads}: at least 1 that divides the {channels} channels of the"
                             " level is needed")
        self.num_heads = num_heads
        self.norm = norm_of(channels, num_groups)
        self.query, self.key, self.value, self.output = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def heads(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.permute(0, 2, 3, 1).reshape(b, h * w, self.num_heads, c // self.num_heads)
        return x.transpose(1, 2)  # (b, heads, h w, head_dim)

    def run(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        y = self.norm(x)
        q, k, v = (self.heads(part(y)) for part in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return x + self.output(y.reshape(b, h, w, c).permute(0, 3, 1, 2))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        return self.again(self.run, x)


class Downsample(nn.Module):
    """Half the size by a convolution of stride 2.

    antialias: after a blur by [1, 3, 3, 1] / 8 both ways. The paper blurs between convolution and stride; the two
    commute, and blurring first, as StyleGAN2 (arXiv 1912.04958), is a quarter of the work.
    """

    def __init__(self, channels: int, antialias: bool = False) -> None:
        super().__init__()
        self.antialias = antialias
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        if self.antialias:
            x = F.pad(x, (2, 2, 2, 2), mode="replicate")
            for _ in range(3):  # [1, 1] / 2 thrice
                x = F.avg_pool2d(x, 2, stride=1)
            return self.conv(x)
        # One column right and one row below, not one all round: what the published weights were trained with.
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the size, then a convolution.

    antialias: bilinear, which is the nearest neighbour's pixels blurred by [1, 2, 1] / 4 both ways.
    """

    def __init__(self, channels: int, antialias: bool = False) -> None:
        super().__init__()
        self.mode = "bilinear" if antialias else "nearest"
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode=self.mode))


class Level(nn.Module):
    """Residual blocks at one resolution, each followed by attention where asked, then the change of size."""

    def __init__(
        self, in_channels: int, out_channels: int, num_blocks: int, num_groups: int, attention: bool,
        resize: nn.Module | None, kernel_size: int = 3, num_heads: int = 1,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(in_channels if i == 0 else out_channels, out_channels, num_groups, kernel_size)
            for i in range(num_blocks)
        )
        self.attentions = nn.ModuleList(
            Attention(out_channels, num_groups, num_heads) for _ in range(num_blocks if attention else 0)
        )
        self.resize = nn.Identity() if resize is None else resize

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b d h2 w2"]:
        for i, block in enumerate(self.blocks):
            x = block(x)
            if len(self.attentions) > 0:
                x = self.attentions[i](x)
        return self.resize(x)


class Middle(nn.Sequential):
    """The bottleneck: two residual blocks, between them attention where asked."""

    def __init__(
        self, channels: int, num_groups: int, attention: bool, kernel_size: int = 3, num_heads: int = 1
    ) -> None:
        first = ResidualBlock(channels, channels, num_groups, kernel_size)
        centre = Attention(channels, num_groups, num_heads) if attention else nn.Identity()
        super().__init__(first, centre, ResidualBlock(channels, channels, num_groups, kernel_size))
