"""What keeps a run exact and safe: seeds of every step, checkpoints, and an orderly stop."""

from __future__ import annotations

import errno
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
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from t2i.checkpoint import atomic, file_format
from t2i.data.seeds import derive_seed
from t2i.models.base import NonFiniteLoss

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # a disk that takes no more
ABORTED = 130  # exit code of a run that was told twice to stop


class Aborted(SystemExit):
    """The second signal. Not KeyboardInterrupt, of which Lightning would make exit code 1 and words of its own."""


class StepSeed(pl.Callback):
    """Seeds torch before every batch by f(seed, "step", batch, rank): a continued run draws what an unbroken one
    draws, and validation cannot disturb training."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        torch.manual_seed(derive_seed(self.seed, "step", trainer.global_step, trainer.global_rank))
        module.shared_seed = derive_seed(self.seed, "step", trainer.global_step, 0)  # what all ranks draw alike


class SelfDescribing(pl.Callback):
    """Puts the resolved config and the module's parts into every checkpoint (`t2i.checkpoint.file_format`)."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: Any, module: Any, held: dict[str, Any]) -> None:
        held["t2i"] = file_format.pack(module, self.config)


class AsConfigured(pl.Callback):
    """Lets a continued run train as its config says: learning rates, decay, betas and schedules of this run are written
    over those that came with the optimisers' state. Raises ValueError where the checkpoint has another optimiser."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.optimizer = config["model"].get("optimizer")
        self.states: int | None = None  # optimisers whose state the checkpoint holds
        self.wanted: list[list[dict[str, Any]]] = []

    def on_load_checkpoint(self, trainer: Any, module: Any, held: dict[str, Any]) -> None:
        before = held["t2i"]["config"]["model"].get("optimizer")
        if before != self.optimizer:
            raise ValueError(f"model.optimizer={self.optimizer}: the checkpoint holds the state of {before}, which"
                             f" {self.optimizer} cannot go on from; model.optimizer={before} is allowed, or a run from"
                             " the start (without resume=)")

        self.states = len(held["optimizer_states"])

    def on_fit_start(self, trainer: Any, module: Any) -> None:  # before Lightning restores the optimisers
        if self.states not in (None, len(trainer.optimizers)):
            raise ValueError(f"{trainer.ckpt_path} holds the state of {self.states} optimisers; this run has"
                             f" {len(trainer.optimizers)}")
        self.wanted = [[{key: value for key, value in group.items() if key != "params"}
                        for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        for optimizer, wanted in zip(trainer.optimizers, self.wanted, strict=True):
            for group, values in zip(optimizer.param_groups, wanted, strict=True):
                group.update(values)
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            groups = scheduler.optimizer.param_groups
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)


class Minutes(pl.Callback):
    """Counts the time spent training, and ends the run as finished when `limit` minutes are spent (None: never).

    Counted from the first batch, validation and saving included; what lies before it (data, caches) is not. The count
    is kept in checkpoints and goes on in a continued run. Lightning validates once more when it is told to stop.
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

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if self.left == 0:  # broken off between its last checkpoint and its end
            trainer.should_stop = True

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


class Batches(_TrainingEpochLoop):
    """Lightning's loop over batches, which calls `done` when all that a batch brings is done: its row in the logs, a
    validation that is due, and what follows from it. Lightning has no hook there."""

    def __init__(self, done: Any, loop: _TrainingEpochLoop) -> None:
        super().__init__(loop.trainer, loop.min_steps, loop.max_steps)
        self.when_done = done

    def on_advance_end(self, data_fetcher: Any) -> None:
        super().on_advance_end(data_fetcher)
        self.when_done(self.trainer)

    @contextmanager
    def counted_as_trained(self) -> Iterator[None]:
        """Inside, the counts are those at `on_train_batch_end`. From there Lightning goes on exactly, at the end of an
        epoch too, and takes a validation that falls on the step for done."""
        counts = (self.batch_progress.total, self.batch_progress.current)
        for count in counts:
            count.completed -= 1
        self._batches_that_stepped -= 1
        try:
            yield
        finally:
            for count in counts:
                count.completed += 1
            self._batches_that_stepped += 1


class Checkpoints(pl.Callback):
    """`last.ckpt` every so many batches or minutes and at the end, the one before as `previous.ckpt`, and
    `best.ckpt` by the smallest (`mode` max: the largest) `monitor` of validation.

    Written when all that a batch brings is done, so that a run that is continued, wherever it was broken off, logs,
    validates and keeps what an unbroken run does. Counts batches (Lightning's own callback miscounts in manual
    optimisation). Within `signals`, SIGINT and SIGTERM set a flag that all ranks agree on after the batch: save, stop;
    `stopped` then is True. A second signal aborts at once, as the first does where no batch will follow. A `monitor`
    that the first validation does not measure raises ValueError.
    """

    def __init__(self, folder: Path, every_steps: int | None, every_minutes: float | None, monitor: str | None,
                 mode: Literal["min", "max"] = "min") -> None:
        self.folder, self.every_steps, self.every_minutes, self.monitor = folder, every_steps, every_minutes, monitor
        self.mode, self.sign = mode, 1.0 if mode == "min" else -1.0
        self.best = self.sign * float("inf")
        self.validated = self.measured = self.improved = self.crashed = False
        self.metrics: dict[str, float] = {}
        self.saved_step = -1
        self.saved_at = time.monotonic()
        self.asked = self.stopped = self.began = self.training = False
        self.told = True  # whether this process tells what happens

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor, "mode": self.mode, "measured": self.measured,
                "metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metrics = state.get("metrics", {})
        same = (state.get("monitor", self.monitor), state.get("mode", self.mode)) == (self.monitor, self.mode)
        if same and (self.folder / "best.ckpt").is_file():  # else this run has no best yet
            self.best, self.measured = state["best"], state.get("measured", False)

    def attach(self, trainer: Any) -> None:
        """To be called before the trainer is given anything to train."""
        trainer.fit_loop.epoch_loop = Batches(self.after_batch, trainer.fit_loop.epoch_loop)

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
        self.saved_step = trainer.global_step
        if trainer.world_size > 1:  # what they save must not hang on what each sees of the folder
            self.best, self.measured = trainer.strategy.broadcast((self.best, self.measured))
        self.told = trainer.is_global_zero
        if signal.getsignal(signal.SIGINT) == self.ask:
            signal.signal(signal.SIGTERM, self.ask)  # Lightning has put a handler of its own before it
        self.began = self.training = True

    def due(self, trainer: Any) -> bool:
        step = trainer.global_step
        by_steps = self.every_steps is not None and step % self.every_steps == 0
        by_time = self.every_minutes is not None and time.monotonic() - self.saved_at >= 60 * self.every_minutes
        if trainer.world_size > 1:  # clocks differ: ranks must agree
            by_time = trainer.strategy.reduce_boolean_decision(by_time, all=False)
        return by_steps or by_time or step == trainer.max_steps

    def after_batch(self, trainer: Any) -> None:
        asked = self.asked
        if trainer.world_size > 1:
            asked = trainer.strategy.reduce_boolean_decision(asked, all=False)
        ends = trainer.should_stop or trainer.global_step == trainer.max_steps
        missing = self.validated and not self.measured and not ends and not asked
        if self.improved:  # before last.ckpt, which says so
            self.write(trainer, self.folder / "best.ckpt")
            self.improved = False
        if self.due(trainer) or asked or ends or missing:
            self.save(trainer)
        if missing:
            raise ValueError(f"{self.unmeasured(trainer)} Give trainer.monitor= one of them, or null. {self.way_on()}")
        if asked and not ends:
            self.stopped = trainer.should_stop = True

    def write(self, trainer: Any, path: Path) -> None:
        with trainer.fit_loop.epoch_loop.counted_as_trained():
            trainer.save_checkpoint(path, weights_only=False)

    def save(self, trainer: Any) -> None:
        if self.saved_step == trainer.global_step:
            return
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        last = self.folder / "last.ckpt"
        if trainer.is_global_zero and last.is_file():
            kept = self.folder / ".previous.tmp"
            kept.unlink(missing_ok=True)
            try:
                os.link(last, kept)
                os.replace(kept, self.folder / "previous.ckpt")
                kept.unlink(missing_ok=True)  # left where the two are one file already, after a kill in between
            except OSError as error:  # a file system without hard links keeps one checkpoint, not two
                print(f"Only last.ckpt is kept: {error}")
        self.write(trainer, last)
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not self.monitor or trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.monitor)
        # Some measure in every so many validations alone.
        later = any(self.monitor.startswith(getattr(one, "now_and_then", "\0")) for one in trainer.callbacks)
        self.validated = not later
        self.measured |= value is not None
        if value is not None and self.sign * (float(value) - self.best) < 0:
            self.best, self.improved = float(value), True

    def unmeasured(self, trainer: Any) -> str:
        known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
        return (f"trainer.monitor={self.monitor} is not measured at step {trainer.global_step}; "
                + (f"this run's validation has {known}." if known else "there was no validation."))

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.training = False
        if self.monitor and not self.measured and not self.stopped and trainer.is_global_zero:
            print(f"\nNo best.ckpt: {self.unmeasured(trainer)}")

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        """Keeps the state as crash.ckpt where that is possible and there is something to keep; never raises, so that
        what went wrong is told."""
        if isinstance(exception, Aborted):
            if self.told:
                print(f"\nAborted at step {trainer.global_step}. {self.way_on()}", flush=True)
            return
        full = isinstance(exception, OSError) and exception.errno in FULL
        nothing = self.saved_step < 0 or trainer.global_step == self.saved_step
        if isinstance(exception, KeyboardInterrupt | SystemExit) or full or nothing:
            return
        if trainer.world_size > 1 and not isinstance(exception, NonFiniteLoss):  # others one rank has alone
            return
        path = self.folder / "crash.ckpt"
        try:
            # Not by the trainer, which waits for the other ranks: they may be gone.
            held = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            if trainer.is_global_zero:
                atomic.save_atomic(held, path)
            self.crashed = True
        except (OSError, RuntimeError) as error:
            print(f"The state of step {trainer.global_step} could not be kept in {path}: {error}")
