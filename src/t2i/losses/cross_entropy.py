"""Cross-entropy over a codebook with its gradient made in the forward pass, a few hundred rows at a time.

The usual chain (to float32, log-softmax, its gradient) writes four matrices of positions x codes in float32; here one
in the logits' own precision is all that is kept, and a block's work stays in the processor's cache: 4.5x faster at
4,096 positions and 1,024 codes on a CPU (docs/log.md).
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 256  # on a CPU; a GPU takes all rows at once


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        n = len(logits)
        rows = ROWS if logits.device.type == "cpu" else n
        gradient = torch.empty_like(logits)
        total = torch.zeros((), dtype=torch.float32, device=logits.device)
        for start in range(0, n, rows):
            x, wanted = logits[start : start + rows].float(), target[start : start + rows, None]
            p = x.softmax(1)
            normaliser = x.amax(1) - p.amax(1).log()  # log of the sum of exponentials; the largest p is at least 1 / k
            total += normaliser.sum() - x.gather(1, wanted).sum()
            p.scatter_add_(1, wanted, p.new_full((1, 1), -1.0).expand_as(wanted))
            gradient[start : start + rows] = p  # within [-1, 1]: the mean comes after a loss scale, or fp16 underflows
        ctx.save_for_backward(gradient)
        return total / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * (factor / len(gradient)).to(gradient.dtype), None


def cross_entropy(logits: Float[Tensor, "n k"], target: Int[Tensor, " n"]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood in nats, in float32 whatever the logits' precision; differentiable once."""
    if torch.is_grad_enabled() and logits.requires_grad:
        return _CrossEntropy.apply(logits, target)
    return torch.nn.functional.cross_entropy(logits.float(), target)
