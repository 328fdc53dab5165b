"""What makes several ranks train as one would: the global batch, of which rank r has the rows r, r + world, …."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gathered(x: Tensor) -> Tensor:
    """The rows of all ranks in the order of the global batch, with gradients (their sum over the ranks is taken, as
    data-parallel averaging wants of a loss that every rank computes whole)."""
    if not several():
        return x
    from torch.distributed.nn.functional import all_gather

    return torch.stack(all_gather(x.contiguous()), 1).flatten(0, 1)


def gathered_objects(items: list[Any]) -> list[Any]:
    """The same for a list of anything, whose length may differ by one between the ranks; tensors on the CPU."""
    if not several():
        return items
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def shared_rand(module: Any, count: int) -> Tensor:
    """`count` uniform numbers, this rank's share of those of the global batch: what one rank alone draws first in its
    step (`t2i.guards.StepSeed`)."""
    if not several():
        return torch.rand(count, device=module.device)
    world = module.trainer.world_size
    every = torch.rand(count * world, generator=torch.Generator().manual_seed(module.shared_seed))
    return every[module.trainer.global_rank :: world].to(module.device)


def log_now(module: Any) -> bool:
    """Whether training values are logged at this step, and so are worth adding up over the ranks."""
    return several() and (module.global_step + 1) % module.trainer.log_every_n_steps == 0
