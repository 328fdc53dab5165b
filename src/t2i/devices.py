"""How a run is spread over devices: Lightning's strategies by name, and the prior in shares (`trainer=fsdp`).

Sharding is torch's FSDP2 (`fully_shard`) through Lightning's ModelParallelStrategy: parameters keep their shapes, so
that weight decay and checkpoints know them, and `last.ckpt` is one whole file that `sample.py` reads anywhere.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from pytorch_lightning.strategies import ModelParallelStrategy

from t2i import checkpoint


class Sharded(ModelParallelStrategy):
    """One share of weights, gradients and optimiser state a device; checkpoints are whole files."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        # Lightning's "auto" would share out over machines and cut layers over the devices of each.
        self._data_parallel_size = self.num_nodes * len(self.parallel_devices or [None])
        super().setup_environment()


def is_sharded(trainer: Any) -> bool:
    return isinstance(trainer.strategy, Sharded)


def strategy(config: dict[str, Any], model: Any) -> Any:
    """The strategy of `trainer.strategy`; ValueError says all that does not go with fsdp."""
    wanted = config["trainer"]["strategy"]
    if wanted != "fsdp":
        return wanted
    faults = []
    if not hasattr(model, "shard"):
        faults.append(f"{checkpoint.kind_of(model)} has two optimisers or is small: model=prior is allowed, others take"
                      " trainer=ddp")
    if config["model"]["optimizer"] == "muon":
        faults.append("model.optimizer=muon needs whole matrices: model.optimizer=adamw is allowed")
    if config["callbacks"]["ema"] is not None:
        faults.append("callbacks.ema averages whole weights: callbacks.ema=null is allowed")
    if config["trainer"]["accumulate"] > 1:
        faults.append("trainer.accumulate: 1 is allowed")
    if faults:
        raise ValueError("trainer.strategy=fsdp does not go with this run:\n  " + "\n  ".join(faults))
    return Sharded()


def processes() -> tuple[int, int]:
    """This process's number and how many torchrun started; they are joined (gloo) on the first call. (0, 1) alone."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks == 1:
        return 0, 1
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def meet() -> None:
    """Waits for the other processes that torchrun started."""
    if processes()[1] > 1:
        dist.barrier()


def agreed(fault: str | None) -> str | None:
    """What is wrong with the first process that has something wrong; waits for all, so that all end alike."""
    ranks = processes()[1]
    if ranks == 1:
        return fault
    told: list[str | None] = [None] * ranks
    dist.all_gather_object(told, fault)
    return next((one for one in told if one is not None), None)


def own_device(wanted: str) -> str:
    """Of several processes each takes a GPU of its own where `auto` finds some."""
    if wanted == "auto" and torch.cuda.is_available() and processes()[1] > 1:
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return wanted
