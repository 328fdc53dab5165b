"""What makes several ranks train as one would: the global batch, of which rank r has the rows r, r + world, …."""

from __future__ import annotations

import math
import os
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Bool, Int
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _AllGatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack(parts, 1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[dist.get_rank() :: dist.get_world_size()]


def all_gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks in the order of the global batch, with gradients (their sum over the ranks is taken, as
    data-parallel averaging wants of a loss that every rank computes whole)."""
    return _AllGatherRows.apply(x) if is_distributed() else x


def all_gather_objects(items: list[Any]) -> list[Any]:
    """The same for a list of anything, whose length may differ by one between the ranks; tensors on the CPU."""
    if not is_distributed():
        return items
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, items)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def next_rows(x: Tensor) -> Tensor:
    """For each row the one after it in the global batch, and for the last the first; without gradient."""
    rolled = all_gather_rows(x.detach()).roll(-1, 0)
    return rolled[dist.get_rank() :: dist.get_world_size()] if is_distributed() else rolled


def average_gradients(parameters: list[Tensor]) -> None:
    """Means over the ranks of what each worked out for its share; for backwards outside data-parallel's own."""
    found = [p.grad for p in parameters if p.grad is not None]
    if not is_distributed() or not found:
        return
    flat = torch.cat([gradient.flatten() for gradient in found])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for gradient, mean in zip(found, flat.split([g.numel() for g in found]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def rank_without(condition: Bool[Tensor, ""]) -> Int[Tensor, ""]:
    """The first rank on which a condition does not hold; where it holds on all, their number. Nothing is read."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
    found = condition.long() * (world - rank) + rank
    if world > 1:
        dist.all_reduce(found, dist.ReduceOp.MIN)
    return found


def first_rank_without(condition: Bool[Tensor, ""]) -> int | None:
    """The first rank on which a condition does not hold; None where it holds on all. One look at the device."""
    rank = int(rank_without(condition))
    return rank if rank < (dist.get_world_size() if is_distributed() else 1) else None


def shared_rand(module: Any, count: int, *size: int) -> Tensor:
    """Uniform numbers (count, *size) in [0, 1), this rank's share of those of the global batch: what one rank alone
    draws first in its step (`t2i.training.callbacks.checkpointing.StepSeed`)."""
    if not is_distributed():
        return torch.rand(count, *size, device=module.device)
    return StepRandom(module, count).uniform(math.prod(size)).view(count, *size)


class StepRandom:
    """The random numbers of a training step: drawn for the global batch, of which a rank takes its rows.

    Args:
        count: pictures of this rank's batch.
    """

    def __init__(self, module: Any, count: int) -> None:
        self.generator = torch.Generator().manual_seed(module.shared_seed)
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)
        self.count, self.device = count * self.world, module.device

    def normal(self, size: int) -> Tensor:
        """(b, size), standard normal."""
        return self.share(torch.randn(self.count, size, generator=self.generator))

    def uniform(self, size: int) -> Tensor:
        """(b, size) in [0, 1)."""
        return self.share(torch.rand(self.count, size, generator=self.generator))

    def integers(self, most: int, size: int) -> Tensor:
        """(b, size), whole numbers from 0 to most - 1."""
        return self.share(torch.randint(most, (self.count, size), generator=self.generator))

    def share(self, drawn: Tensor) -> Tensor:
        """This rank's rows, where they are used."""
        return drawn[self.rank :: self.world].to(self.device, non_blocking=True)

    def shared(self) -> float:
        """A number in [0, 1) that all ranks share."""
        return float(torch.rand((), generator=self.generator))


class LocalRandom:
    """The random numbers of a training step of one rank alone, drawn where it is: those of `StepRandom` on the CPU.

    Args:
        count: pictures of the batch.
    """

    def __init__(self, module: Any, count: int) -> None:
        self.count, self.device = count, module.device

    def uniform(self, size: int) -> Tensor:
        """(b, size) in [0, 1)."""
        return torch.rand(self.count, size, device=self.device)

    def integers(self, most: int, size: int) -> Tensor:
        """(b, size), whole numbers from 0 to most - 1."""
        return torch.randint(most, (self.count, size), device=self.device)


def step_random(module: Any, count: int) -> StepRandom | LocalRandom:
    """Numbers for each picture of a step: of several ranks, those that one alone would draw."""
    return StepRandom(module, count) if is_distributed() else LocalRandom(module, count)


def log_step(module: Any, values: dict[str, Tensor], batch_size: int) -> None:
    """Logs what a training step worked out: in the steps that are written as means over the ranks, which one sum over
    them gives. Names that this step has not are forgotten; Lightning would write what an earlier one said."""
    results, prefix = module.trainer._results, "training_step."
    for key in [key for key in results if key.startswith(prefix) and key.removeprefix(prefix) not in values]:
        del results[key]
    if is_distributed() and module.trainer._logger_connector.should_update_logs:
        means = torch.stack([value.detach().float() for value in values.values()])
        dist.all_reduce(means)
        values = dict(zip(values, means / dist.get_world_size(), strict=True))
    module.log_dict(values, batch_size=batch_size)


def rank_and_world_size() -> tuple[int, int]:
    """Of this process among those that torchrun started; they are joined (gloo) on the first call. (0, 1) alone."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def barrier() -> None:
    """Waits for the other processes that torchrun started."""
    if rank_and_world_size()[1] > 1:
        dist.barrier()


def first_error(error: str | None) -> str | None:
    """The error of the first process that has one; waits for all, so that all end alike."""
    world = rank_and_world_size()[1]
    if world == 1:
        return error
    errors: list[str | None] = [None] * world
    dist.all_gather_object(errors, error)
    return next((one for one in errors if one is not None), None)


def local_device(wanted: str) -> str:
    """Of several processes each takes a GPU of its own where `auto` finds some."""
    if wanted == "auto" and torch.cuda.is_available() and rank_and_world_size()[1] > 1:
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return wanted
