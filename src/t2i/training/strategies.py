"""How a run is spread over devices: Lightning's strategies by name, and the prior in shares (`trainer=fsdp`).

Sharding is torch's FSDP2 (`fully_shard`) through Lightning's ModelParallelStrategy: parameters keep their shapes, so
that weight decay and checkpoints know them, and `last.ckpt` is one whole file that `sample.py` reads anywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from lightning_fabric.plugins.environments import LightningEnvironment
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from pytorch_lightning.strategies import DDPStrategy, ModelParallelStrategy
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from t2i.checkpoint import building, file_format


class Launcher(_SubprocessScriptLauncher):
    """Lightning's, which starts the other processes of this machine, but for what happens when one of them is lost:
    Lightning's own watch kills the first within five seconds, before it can say anything. Under torchrun and SLURM,
    which start and watch all of them, it does nothing."""

    patience = 10.0  # seconds in which a process may find out by itself that another one is gone
    parent = 0

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self.parent = os.getppid()
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        done = threading.Event()
        threading.Thread(target=self.watch, args=(done, trainer), daemon=True).start()
        try:
            return function(*args, **kwargs)
        finally:
            done.set()

    def watch(self, done: threading.Event, trainer: Any) -> None:
        """Ends this process when it waits for one that is gone: GPUs wait for one another for half an hour."""
        while not done.wait(1.0):
            gone = self.lost()
            if gone is not None and not done.wait(self.patience):
                if self.speaks:
                    print(f"error: {gone} {trainer.checkpoint_callback.how_to_continue()}", file=sys.stderr, flush=True)
                self.end(0)
                os._exit(2)

    @property
    def is_child(self) -> bool:
        return isinstance(self.cluster_environment, LightningEnvironment) and self.cluster_environment.local_rank() > 0

    @property
    def speaks(self) -> bool:
        """Whether it falls to this process to say what was lost: to the first, or to the second in its place."""
        return not self.is_child or self.cluster_environment.local_rank() == 1

    def lost(self, wait: float = 0.0) -> str | None:
        """Which process is gone before its time, looking for `wait` seconds. The first sees all that it started, and
        they see the first."""
        first, until = self.cluster_environment.node_rank() * self.num_processes, time.monotonic() + wait
        while True:
            codes = {first + i: each.poll() for i, each in enumerate(self.procs, 1)}
            gone = [f"{rank} ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
                    for rank, code in codes.items() if code]
            if self.is_child and os.getppid() != self.parent:
                gone = [str(first)]
            if gone:
                return f"rank {', '.join(gone)} of {self.num_processes * self.num_nodes} was lost."
            if time.monotonic() >= until:
                return None
            time.sleep(0.05)

    def end(self, seconds: float) -> None:
        """Gives every process that was started so long to end by itself."""
        for each in self.procs:
            try:
                each.wait(seconds)
            except subprocess.TimeoutExpired:
                each.kill()
                each.wait()


class Watched:
    """For strategies: their processes are started by `Launcher`, and none outlives the first one's failure."""

    gone: str | None = None

    def _configure_launcher(self: Any) -> None:
        self._launcher = Launcher(self.cluster_environment, self.num_processes, self.num_nodes)

    def on_exception(self: Any, exception: BaseException) -> None:
        if is_of_connection(exception):
            self.gone = self._launcher.lost(wait=1.0)
        self._launcher.end(0.0 if isinstance(exception, SystemExit) else 3.0)


def is_of_connection(error: BaseException) -> bool:
    """Whether it is what processes say that cannot reach one another; of gloo it has no type of its own."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in ("gloo", "NCCL", "Connection")))


def lost(strategy: Any, error: BaseException) -> str | None:
    """What to tell of an error that came of another process's end; None for any other error. Where another process
    tells, this one ends in silence."""
    if not isinstance(strategy, Watched) or not is_of_connection(error):
        return None
    launcher: Launcher = strategy.launcher  # type: ignore[attr-defined]
    if launcher.is_child and (strategy.gone is None or not launcher.speaks):
        raise SystemExit(2)
    return strategy.gone or f"one of {launcher.num_processes * launcher.num_nodes} processes was lost."


class Replicated(Watched, DDPStrategy):
    """The same weights on every device."""


class Sharded(Watched, ModelParallelStrategy):
    """One share of weights, gradients and optimiser state a device; checkpoints are whole files."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        # Lightning's "auto" would share out over machines and cut layers over the devices of each.
        self._data_parallel_size = self.num_nodes * len(self.parallel_devices or [None])
        super().setup_environment()


def is_sharded(trainer: pl.Trainer) -> bool:
    return isinstance(trainer.strategy, Sharded)


def strategy(config: dict[str, Any], model: Any) -> Any:
    """The strategy of `trainer.strategy`, a name or a node; ValueError says all that does not go with fsdp."""
    wanted, devices = config["trainer"]["strategy"], config["trainer"]["devices"]
    if isinstance(wanted, dict):
        return building.build(wanted)
    if wanted == "auto" and (config["trainer"]["num_nodes"] > 1 or (isinstance(devices, int) and devices > 1)):
        wanted = "ddp"  # as Lightning's auto has it, and watched
    if wanted != "fsdp":
        return Replicated() if wanted == "ddp" else wanted
    faults = {
        f"{file_format.kind_of(model)} has two optimisers or is small: model=prior is allowed, others take trainer=ddp":
            not hasattr(model, "shard"),
        "model.optimizer=muon needs whole matrices: model.optimizer=adamw is allowed":
            config["model"]["optimizer"] == "muon",
        "callbacks.ema averages whole weights: callbacks.ema=null is allowed": bool(config["callbacks"].get("ema")),
        "trainer.accumulate_grad_batches: 1 is allowed": config["trainer"]["accumulate_grad_batches"] > 1,
    }
    if any(faults.values()):
        listed = "\n  ".join(text for text, wrong in faults.items() if wrong)
        raise ValueError(f"trainer.strategy=fsdp does not go with this run:\n  {listed}")
    return Sharded()
