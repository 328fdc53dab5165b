"""What the nets of text-to-image GANs share: sizes, captions beside features, BatchNorm over all ranks."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def count_doublings(image_size: int, smallest: int) -> int:
    """How often 4 pixels double to `image_size`; ValueError where they do not, or the size is below `smallest`."""
    if image_size < smallest or image_size & (image_size - 1):
        raise ValueError(f"image_size={image_size}: allowed are powers of two from {smallest}")
    return image_size.bit_length() - 3


def with_text(x: Float[Tensor, "b c h w"], text: Float[Tensor, "b t"]) -> Float[Tensor, "b d h w"]:
    """A caption's numbers beside the features of every place."""
    return torch.cat([x, text[:, :, None, None].expand(-1, -1, *x.shape[2:])], 1)


class TextProjection(nn.Module):
    """Pooled caption states, brought to mean 0 and deviation 1, through one linear layer."""

    def __init__(self, pooled_dim: int, text_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(pooled_dim, text_dim)

    def forward(self, pooled: Float[Tensor, "b p"]) -> Float[Tensor, "b t"]:
        return self.linear(F.layer_norm(pooled, pooled.shape[1:]))


def text_projection(kind: Literal["linear", "none"], pooled_dim: int, text_dim: int) -> nn.Module:
    """From a text encoder's pooled states to what a net takes; `none` wants equal widths."""
    if kind == "linear":
        return TextProjection(pooled_dim, text_dim)
    if pooled_dim != text_dim:
        raise ValueError(f"projection=none: the text encoder's sentences have {pooled_dim} numbers, the net"
                         f" takes {text_dim}; projection=linear is allowed")
    return nn.Identity()


class _AllReduceSum(torch.autograd.Function):
    """The sum over all ranks, as often differentiable as one likes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _AllReduceSum.apply(gradient)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm over pictures (b, c, h, w) or vectors (b, c) whose statistics in training are the global batch's.
    `nn.SyncBatchNorm` needs a GPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim not in (2, 4):
            raise ValueError(f"x has {input.ndim} dimensions: (b, c) or (b, c, h, w) is needed")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return super().forward(x)
        self._check_input_dim(x)
        dims = [d for d in range(x.ndim) if d != 1]
        count = x.numel() // x.shape[1]
        wide = x.float()
        sums = _AllReduceSum.apply(torch.cat([wide.sum(dims), wide.square().sum(dims), wide.new_full((1,), count)]))
        total = sums[-1].detach()
        mean, square = (sums[:-1] / total).chunk(2)
        var = square - mean.square()
        with torch.no_grad():
            cast(Tensor, self.num_batches_tracked).add_(1)
            share = cast(float, self.momentum)
            cast(Tensor, self.running_mean).lerp_(mean, share)
            cast(Tensor, self.running_var).lerp_(var * total / (total - 1), share)
        shape = [1, -1, *[1] * (x.ndim - 2)]
        scale = self.weight * torch.rsqrt(var + self.eps)
        return ((wide - mean.view(shape)) * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


def conv3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


class Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            conv3(channels, channels), BatchNorm(channels), nn.ReLU(), conv3(channels, channels), BatchNorm(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.block(x))
