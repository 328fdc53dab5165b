"""What a GPU cannot do, in a line: a driver that torch cannot use, memory that does not hold the batch."""

from __future__ import annotations

import copy
import math
import os
import re
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

SPARE = 0.92  # of the memory, at most in use: what is free is in pieces


def driver_fault() -> str | None:
    """Why torch cannot use this machine's GPU; None where it can, and where there is none."""
    if torch.version.cuda is None or torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        said = " ".join(str(error).split())
        if "too old" in said:
            return f"{said.partition('. ')[0].removesuffix('.')} (torch {torch.__version__})"
    return None


def tell_driver_fault(accelerator: str) -> None:
    """Where `auto` has to go on without the GPU that there is."""
    if accelerator == "auto" and (fault := driver_fault()) is not None:
        warnings.warn(f"trainer.accelerator=auto: the run goes on without the GPU. {fault}", stacklevel=2)


def memory_of(device: torch.device) -> tuple[str, int]:
    """A GPU's name and its bytes; of a CPU those that are free."""
    if device.type != "cuda":
        return "this machine", free_memory()
    found = torch.cuda.get_device_properties(device)
    return found.name, found.total_memory


def free_memory() -> int:
    """Bytes of this machine, or of the container that it is, which may still be taken."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    if (held := Path("/proc/meminfo")).is_file():
        found += [1024 * int(kilobytes) for kilobytes in re.findall(r"MemAvailable:\s+(\d+) kB", held.read_text())]
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and (most := limit.read_text().strip()).isdecimal():
        found.append(int(most) - int(used.read_text()))
    return max(0, min(found))


def batch_that_fits(config: dict[str, Any], total: float, earlier: list[dict[str, Any]]) -> int | None:
    """The largest batch of one device whose step takes `total` bytes, by what steps of two small ones took; 0 where
    not even those fit, None where memory did not grow with the batch. `earlier`: see `profiling.Parts`."""
    from t2i.training.profiling import measure  # which imports training.train, and that this

    config, took = copy.deepcopy(config), []
    config["trainer"] |= {"accumulate_grad_batches": 1, "devices": 1, "num_nodes": 1}
    for size in (2, 4):
        config["data"]["batch_size"] = size
        try:
            took.append(1e9 * measure(config, earlier)[1]["memory_gb"])
        except torch.OutOfMemoryError:
            return 0
    each = (took[1] - took[0]) / 2
    return max(0, math.floor((SPARE * total - took[0]) / each) + 2) if each > 0 else None


def too_little_memory(config: dict[str, Any], trainer: Any, model: Any, error: BaseException) -> str:
    """What to do about a batch that a GPU's memory does not hold; a batch that it does is named."""
    name, total = memory_of(trainer.strategy.root_device)
    size, pieces = config["data"]["batch_size"], config["trainer"]["accumulate_grad_batches"]
    cut = f" in pieces (trainer.accumulate_grad_batches={pieces})" if pieces > 1 else ""
    traceback.clear_frames(error.__traceback__)  # they hold the step's activations
    torch.cuda.empty_cache()
    fits = batch_that_fits(config, total, []) if trainer.world_size == 1 else None
    ways = ["model.checkpointing=true"] if "checkpointing" in config["model"] else []
    if fits:
        ways.insert(0, f"data.batch_size={fits}")
        if model.supports_micro_batches:
            ways.insert(0, f"trainer.accumulate_grad_batches={math.ceil(size / fits)}, with which the step is the same")
    else:
        ways.append("a smaller data.batch_size")
    known = "" if fits is None else f": about {fits} pictures at once fit" if fits else ": not even 4 pictures fit"
    return (f"{name} has not enough memory ({total / 1e9:.1f} GB) for data.batch_size={size}{cut}{known}. Try"
            f" {'; or '.join(ways)}.")
