"""Measuring steps of a training: seconds, operations, memory, and what the hardware does at best."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.flop_counter import FlopCounterMode

TIMED, SECONDS = 5, 15.0  # steps that are timed: so many, or as many as begin within the seconds


def resident() -> int:
    """Bytes of this process in memory, as far as the system tells."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of systems without /proc: the largest so far


class Peak:
    """The most memory above what was in use when it was entered: allocated on a GPU, else resident."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.bytes = device.type == "cuda", 0

    def start(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)  # the doors tell glibc to keep what was freed (t2i.cli.app)
        self.before, self.stopped = resident(), threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        while not self.stopped.wait(0.001):
            self.bytes = max(self.bytes, resident() - self.before)

    def stop(self) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self.before
            return
        self.bytes = max(self.bytes, resident() - self.before)
        self.stopped.set()
        self.thread.join()


class Meter(pl.Callback):
    """Measures the steps of each phase: one that counts operations and warms up (two more where nets are compiled),
    one that watches memory, and a few that are timed. Phases are fractions of training: with and without the
    discriminator where it starts later."""

    def __init__(self, model: Any, compiled: bool) -> None:
        start = getattr(model, "discriminator_start", None) if getattr(model, "has_discriminator", False) else None
        shares = {"": 1.0} if start is None else {" without the discriminator": start, " with it": 1 - start}
        self.phases = {name: share for name, share in shares.items() if share > 0}
        self.waiting, self.compiled = list(self.phases), compiled
        self.seconds: dict[str, float] = {}
        self.operations: dict[str, float] = {}
        self.activations: dict[str, int] = {}
        self.state = 0
        self.step = 0
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if self.step == 0 and hasattr(module, "discriminator_start"):
            module.discriminator_start = 2.0 if "without" in self.waiting[0] else 0.0
        if self.step == 0:
            torch.compiler.set_stance("force_eager" if self.compiled else "default")
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()
        self.watched = self.step == (3 if self.compiled else 1)
        if self.watched:
            self.peak = Peak(module.device)
            self.peak.start()
        self.wait(module)
        self.started = time.perf_counter()

    def wait(self, module: Any) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.wait(module)
        took, phase = time.perf_counter() - self.started, self.waiting[0]
        if self.step == 0:
            self.counter.__exit__(None, None, None)
            torch.compiler.set_stance("default")
            self.operations[phase] = float(self.counter.get_total_flops())
        elif self.watched:
            self.peak.stop()
            self.activations[phase] = self.peak.bytes
            self.state = sum(value.numel() * value.element_size() for optimizer in trainer.optimizers
                             for state in optimizer.state.values() for value in state.values()
                             if isinstance(value, torch.Tensor))
        if phase in self.activations and (not self.watched or took > SECONDS):
            self.times.append(took)
        self.step += 1
        if len(self.times) == TIMED or sum(self.times) > SECONDS:
            self.seconds[phase] = sorted(self.times)[len(self.times) // 2]
            self.waiting, self.step, self.times = self.waiting[1:], 0, []
            trainer.should_stop = not self.waiting


def product(device: torch.device, precision: str) -> tuple[int, float]:
    """The side of a big matrix product in the run's precision, and its operations a second at best."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    n, best = 8192 if device.type == "cuda" else 2048, float("inf")
    a = torch.randn(n, n, device=device).to(dtype)
    for _ in range(4):
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return n, 2 * n**3 / best
