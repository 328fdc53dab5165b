"""What keeps a run exact and safe: seeds of every step, checkpoints, and an orderly stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch

from t2i import checkpoint
from t2i.data.seeds import number
from t2i.models.base import NonFiniteLoss

ABORTED = 130  # exit code of a run that was told twice to stop


class Aborted(SystemExit):
    """The second signal. Not KeyboardInterrupt, of which Lightning would make exit code 1 and words of its own."""


class StepSeed(pl.Callback):
    """Seeds torch before every batch by f(seed, "step", batch, rank): a continued run draws what an unbroken one
    draws, and validation cannot disturb training."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        torch.manual_seed(number(self.seed, "step", trainer.global_step, trainer.global_rank))
        module.shared_seed = number(self.seed, "step", trainer.global_step, 0)  # what all ranks draw alike


class SelfDescribing(pl.Callback):
    """Puts the resolved config and the module's parts into every checkpoint (`t2i.checkpoint`)."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Any, module: Any, held: dict[str, Any]) -> None:
        held["t2i"] = checkpoint.pack(module, self.config)


class Minutes(pl.Callback):
    """Counts the time spent training, and ends the run as finished when `limit` minutes are spent (None: never).

    Counted from the first batch, validation and saving included; what lies before it (data, caches) is not. The count
    is kept in checkpoints and goes on in a continued run. Lightning validates once more when it is told to stop. A run
    that was broken off between that and its end trains one batch more.
    """

    def __init__(self, limit: float | None = None) -> None:
        if limit is not None and not limit > 0:
            raise ValueError(f"trainer.max_minutes={limit}: allowed are numbers > 0, or null")
        self.limit = limit
        self.before = 0.0  # seconds, up to the checkpoint that is continued
        self.since: float | None = None

    @property
    def seconds(self) -> float:
        return self.before + (0.0 if self.since is None else time.monotonic() - self.since)

    @property
    def left(self) -> float | None:
        """Seconds to go; None without a limit."""
        return None if self.limit is None else max(0.0, 60 * self.limit - self.seconds)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before, self.since = state["seconds"], None

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if self.since is None:
            self.since = time.monotonic()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if self.limit is None:
            return
        spent = self.left == 0
        if trainer.world_size > 1:  # clocks differ: ranks must agree
            spent = trainer.strategy.reduce_boolean_decision(spent, all=False)
        if spent:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(f"\nThe {self.limit:g} minutes of trainer.max_minutes are spent at step {trainer.global_step}.")


class Checkpoints(pl.Callback):
    """`last.ckpt` every so many batches or minutes and at the end, the one before as `previous.ckpt`, and
    `best.ckpt` by the smallest (`mode` max: the largest) `monitor` of validation.

    Counts batches (Lightning's own callback miscounts in manual optimisation). Within `signals`, SIGINT and SIGTERM set
    a flag that all ranks agree on at the next batch: save, stop; `stopped` then is True. A second signal aborts at
    once, as the first does where no batch will follow.
    """

    def __init__(self, folder: Path, every_steps: int | None, every_minutes: float | None, monitor: str | None,
                 mode: Literal["min", "max"] = "min") -> None:
        self.folder, self.every_steps, self.every_minutes, self.monitor = folder, every_steps, every_minutes, monitor
        self.sign = 1.0 if mode == "min" else -1.0
        self.best = self.sign * float("inf")
        self.saved_step = -1
        self.saved_at = time.monotonic()
        self.asked = self.stopped = self.training = False
        self.told = True  # whether this process tells what happens

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]

    @classmethod
    def of(cls, trainer: Any) -> Checkpoints:
        return next(callback for callback in trainer.callbacks if isinstance(callback, cls))

    def way_on(self) -> str:
        """How a run that ended before its end goes on."""
        last = self.folder / "last.ckpt"
        if not last.is_file():
            return "Nothing was saved yet: the same command begins anew."
        return f"The same command goes on from {f'step {self.saved_step}, ' if self.saved_step >= 0 else ''}{last}."

    def ask(self, number: int, frame: Any) -> None:
        if self.asked or not self.training:
            raise Aborted(ABORTED)
        self.asked = True
        if self.told:
            print("\nStopping after this batch, with a checkpoint; once more aborts at once.", flush=True)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM are ours; in other threads than the main one whoever runs us there has them."""
        ours = threading.current_thread() is threading.main_thread()
        before = {which: signal.signal(which, self.ask) for which in (signal.SIGINT, signal.SIGTERM)} if ours else {}
        try:
            yield
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.saved_at = time.monotonic()
        self.saved_step = trainer.global_step if trainer.ckpt_path else -1
        self.told = trainer.is_global_zero
        if signal.getsignal(signal.SIGINT) == self.ask:
            signal.signal(signal.SIGTERM, self.ask)  # Lightning has put a handler of its own before it
        self.training = True

    def due(self, trainer: Any) -> bool:
        step = trainer.global_step
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        by_time = self.every_minutes is not None and time.monotonic() - self.saved_at >= 60 * self.every_minutes
        if trainer.world_size > 1:  # clocks differ: ranks must agree
            by_time = trainer.strategy.reduce_boolean_decision(by_time, all=False)
        return by_steps or by_time or step == trainer.max_steps  # here, where Lightning's epoch count is exact

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        asked = self.asked
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        if asked:
            self.save(trainer)
            self.stopped = trainer.global_step < trainer.max_steps
            trainer.should_stop = True
        elif self.due(trainer):
            self.save(trainer)

    def save(self, trainer: Any) -> None:
        if self.saved_step == trainer.global_step:
            return
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero and last.is_file():
            kept = self.folder / ".previous.tmp"
            kept.unlink(missing_ok=True)
            try:
                os.link(last, kept)
                os.replace(kept, self.folder / "previous.ckpt")
            except OSError as error:  # a file system without hard links keeps one checkpoint, not two
                print(f"Only last.ckpt is kept: {error}")
        trainer.save_checkpoint(last, weights_only=False)
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        value = trainer.callback_metrics.get(self.monitor) if self.monitor else None
        if value is not None and not trainer.sanity_checking and self.sign * (float(value) - self.best) < 0:
            self.best = float(value)
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=False)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.training = False
        self.save(trainer)
        known = sorted(name for name in trainer.callback_metrics if name.startswith("val/"))
        if self.monitor and known and self.monitor not in trainer.callback_metrics and trainer.is_global_zero:
            print(f"\nNo best.ckpt: trainer.monitor={self.monitor} was not measured; this run's validation has"
                  f" {', '.join(known)}")

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        if isinstance(exception, Aborted):
            if self.told:
                print(f"\nAborted at step {trainer.global_step}. {self.way_on()}", flush=True)
        elif trainer.world_size == 1 or isinstance(exception, NonFiniteLoss):  # which all ranks have; others one alone
            trainer.save_checkpoint(self.folder / "crash.ckpt", weights_only=False)
