"""What keeps a run exact and safe: checkpoints, what they hold, seeds of steps, and an orderly stop."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from t2i.checkpoint import atomic, file_format
from t2i.data.seeds import derive_seed
from t2i.models.base import NonFiniteLoss

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)  # a disk that takes no more
ABORTED = 130  # exit code of a run that was told twice to stop


class Aborted(SystemExit):
    """The second signal. Not KeyboardInterrupt, of which Lightning would make exit code 1 and words of its own."""


class ConfigInCheckpoint(pl.Callback):
    """Puts the resolved config and the module's parts into every checkpoint (`t2i.checkpoint.file_format`)."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["t2i"] = file_format.pack(module, self.config)


class OptimizerSettings(pl.Callback):
    """Lets a continued run train as its config says: learning rates, decay, betas and schedules of this run are written
    over those that came with the optimisers' state, which is laid out in memory as the weights are here (channels last
    or first). Raises ValueError where the checkpoint has another optimiser."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.optimizer = config["model"].get("optimizer")
        self.states: int | None = None  # optimisers whose state the checkpoint holds
        self.wanted: list[list[dict[str, Any]]] = []

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        before = checkpoint["t2i"]["config"]["model"].get("optimizer")
        if before != self.optimizer:
            raise ValueError(f"model.optimizer={self.optimizer}: the checkpoint holds the state of {before}, which"
                             f" {self.optimizer} cannot go on from; model.optimizer={before} is allowed, or a run from"
                             " the start (without resume=)")
        self.states = len(checkpoint["optimizer_states"])

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:  # before Lightning restores the optimisers
        if self.states not in (None, len(trainer.optimizers)):
            raise ValueError(f"{trainer.ckpt_path} holds the state of {self.states} optimisers; this run has"
                             f" {len(trainer.optimizers)}")
        self.wanted = [[{key: value for key, value in group.items() if key != "params"}
                        for group in optimizer.param_groups] for optimizer in trainer.optimizers]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        for optimizer, wanted in zip(trainer.optimizers, self.wanted, strict=True):
            for group, values in zip(optimizer.param_groups, wanted, strict=True):
                group.update(values)
            for parameter, state in optimizer.state.items():  # else torch's fused AdamW on a CPU mixes up the elements
                for name, value in state.items():
                    like = torch.is_tensor(value) and value.shape == parameter.shape
                    if like and value.stride() != parameter.stride():
                        state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            groups = scheduler.optimizer.param_groups
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, scheduler.lr_lambdas, strict=True):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)


class StepSeed(pl.Callback):
    """Seeds torch before every batch by f(seed, "step", batch, rank): a continued run draws what an unbroken one
    draws, and validation cannot disturb training."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        torch.manual_seed(derive_seed(self.seed, "step", trainer.global_step, trainer.global_rank))
        module.shared_seed = derive_seed(self.seed, "step", trainer.global_step, 0)  # what all ranks draw alike


class EpochLoop(_TrainingEpochLoop):
    """Lightning's loop over batches, which calls `on_batch_done` when all that a batch brings is done: its row in the
    logs, a validation that is due, and what follows from it. Lightning has no hook there; this is the one place of t2i
    that reaches into its loops."""

    def __init__(self, on_batch_done: Callable[[pl.Trainer], None], loop: _TrainingEpochLoop) -> None:
        super().__init__(loop.trainer, loop.min_steps, loop.max_steps)
        self.on_batch_done = on_batch_done

    def on_advance_end(self, data_fetcher: Any) -> None:
        super().on_advance_end(data_fetcher)
        self.on_batch_done(self.trainer)

    @contextmanager
    def counted_as_trained(self) -> Iterator[None]:
        """Inside, the counts are those at `on_train_batch_end`. From there Lightning goes on exactly, at the end of an
        epoch too, and takes a validation that falls on the step for done."""

        def count(by: int) -> None:
            self.batch_progress.total.completed += by
            self.batch_progress.current.completed += by
            self._batches_that_stepped += by

        count(-1)
        try:
            yield
        finally:
            count(1)


class RunCheckpoint(Checkpoint):
    """`last.ckpt` every so many batches or minutes and at the end, the one before as `previous.ckpt`, and
    `best.ckpt` by the smallest (`mode` max: the largest) `monitor` of validation.

    Not `ModelCheckpoint`: in manual optimisation that miscounts batches and ignores minutes, and it writes before the
    batch's row in the logs and its validation. These are written after, so that a run that is continued, wherever it
    was broken off, logs, validates and keeps what an unbroken run does. Within `signals`, SIGINT and SIGTERM set a flag
    that all ranks agree on after the batch: save, stop; `stopped` then is True. A second signal aborts at once, as the
    first does where no batch will follow. A `monitor` that the first validation does not measure raises ValueError.
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
        self.stop_requested = self.stopped = self.training_began = self.is_training = False
        self.prints = True  # whether this process tells what happens

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "monitor": self.monitor, "mode": self.mode, "measured": self.measured,
                "metrics": self.metrics}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.metrics = state.get("metrics", {})
        same = (state.get("monitor", self.monitor), state.get("mode", self.mode)) == (self.monitor, self.mode)
        if same and (self.folder / "best.ckpt").is_file():  # else this run has no best yet
            self.best, self.measured = state["best"], state.get("measured", False)

    def attach(self, trainer: pl.Trainer) -> None:
        """To be called before the trainer is given anything to train."""
        trainer.fit_loop.epoch_loop = EpochLoop(self.after_batch, trainer.fit_loop.epoch_loop)

    def how_to_continue(self) -> str:
        """How a run that ended before its end goes on."""
        last = self.folder / "last.ckpt"
        if not last.is_file():
            return "Nothing was saved yet: the same command begins anew."
        return f"The same command goes on from {f'step {self.saved_step}, ' if self.saved_step >= 0 else ''}{last}."

    def on_signal(self, number: int, frame: Any) -> None:
        if self.stop_requested or not self.is_training:
            raise Aborted(ABORTED)
        self.stop_requested = True
        if self.prints:
            print("\nStopping after this batch, with a checkpoint; once more aborts at once.", flush=True)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM are ours; in other threads than the main one whoever runs us there has them."""
        ours = threading.current_thread() is threading.main_thread()
        listened = (signal.SIGINT, signal.SIGTERM) if ours else ()
        before = {which: signal.signal(which, self.on_signal) for which in listened}
        try:
            yield
        finally:
            for which, handler in before.items():
                signal.signal(which, handler)

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.saved_step, self.saved_at = trainer.global_step, time.monotonic()
        # What ranks save must not hang on what each sees of the folder.
        self.best, self.measured = trainer.strategy.broadcast((self.best, self.measured))
        self.prints = trainer.is_global_zero
        if signal.getsignal(signal.SIGINT) == self.on_signal:
            signal.signal(signal.SIGTERM, self.on_signal)  # Lightning has put a handler of its own before it
        self.training_began = self.is_training = True

    def after_batch(self, trainer: pl.Trainer) -> None:
        step, seconds = trainer.global_step, time.monotonic() - self.saved_at
        late = self.every_minutes is not None and seconds >= 60 * self.every_minutes
        # Ranks must agree.
        asked, late = (trainer.strategy.reduce_boolean_decision(one, all=False) for one in (self.stop_requested, late))
        ends = trainer.should_stop or step == trainer.max_steps
        missing = self.validated and not self.measured and not ends and not asked
        if self.improved:  # before last.ckpt, which says so
            self.write(trainer, self.folder / "best.ckpt")
            self.improved = False
        if late or asked or ends or missing or (self.every_steps is not None and step % self.every_steps == 0):
            self.save(trainer)
        if missing:
            raise ValueError(f"{self.unmeasured(trainer)} Give trainer.monitor= one of them, or null."
                             f" {self.how_to_continue()}")
        if asked and not ends:
            self.stopped = trainer.should_stop = True

    def write(self, trainer: pl.Trainer, path: Path) -> None:
        with trainer.fit_loop.epoch_loop.counted_as_trained():  # type: ignore[attr-defined]
            trainer.save_checkpoint(path, weights_only=False)

    def save(self, trainer: pl.Trainer) -> None:
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

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if not self.monitor or trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.monitor)
        self.validated = True
        self.measured |= value is not None
        if value is not None and self.sign * (float(value) - self.best) < 0:
            self.best, self.improved = float(value), True

    def unmeasured(self, trainer: pl.Trainer) -> str:
        known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
        return (f"trainer.monitor={self.monitor} is not measured at step {trainer.global_step}; "
                + (f"this run's validation has {known}." if known else "there was no validation."))

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.is_training = False
        if self.monitor and not self.measured and not self.stopped and trainer.is_global_zero:
            print(f"\nNo best.ckpt: {self.unmeasured(trainer)}")

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        """Keeps the state as crash.ckpt where that is possible and there is something to keep; never raises, so that
        what went wrong is told."""
        if isinstance(exception, Aborted) and self.prints:
            print(f"\nAborted at step {trainer.global_step}. {self.how_to_continue()}", flush=True)
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
        except (OSError, RuntimeError, NonFiniteLoss) as error:  # a loss that was not read yet
            print(f"The state of step {trainer.global_step} could not be kept in {path}: {error}")
