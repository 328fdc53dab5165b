"""Gradient checkpointing: a module's inner activations are not kept for the backward but computed again.

Chen et al. 2016, arXiv 1604.06174: memory for one more forward. Random numbers (dropout) are drawn again as they were
drawn first, so that the gradients are those without.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """A module that can do without its activations; what it computes stands in `run`.

    `checkpointing` is no part of its state: `set_checkpointing` sets it on a whole net.
    """

    checkpointing = False

    def again(self, run: Callable[..., Tensor], *inputs: Tensor | int | None) -> Tensor:
        """`run(*inputs)`, where gradients are wanted without keeping what lies between."""
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(run, *inputs, use_reentrant=False)
        return run(*inputs)


def set_checkpointing(net: nn.Module, on: bool) -> None:
    """Switches every `Recomputed` of a net; ValueError if it has none."""
    found = [module for module in net.modules() if isinstance(module, Recomputed)]
    if on and not found:
        raise ValueError(f"checkpointing=true: {type(net).__name__} has no part that can be computed again")
    for module in found:
        module.checkpointing = on
