"""How far a run is: one bar over all epochs with the losses, pictures a second, the share of the time in which training
waited for data, and the time left."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer, TQDMProgressBar
from tqdm import tqdm

from t2i.data.data_module import StatefulLoader
from t2i.types import Batch, CodeBatch
from t2i.viz.progress import Bar, brief


class ProgressBar(TQDMProgressBar):
    """Lightning's, counting to `max_steps` over epochs and breaks; in files a line every few seconds (`t2i.viz`).

    Metrics are read when the bar is drawn, not every step: reading waits for the GPU. The time left is that of
    `trainer.max_minutes` where it is the shorter.

    Args:
        show: metrics, by name (`train/loss`); None for all `train/` losses up to four.
        every_seconds: between lines where the output is no terminal.
        label: what is trained; None takes the run folder's name.
    """

    stream: TextIO | None = None  # stderr

    def __init__(self, show: list[str] | None = None, every_seconds: float = 10.0, label: str | None = None) -> None:
        super().__init__()
        if not every_seconds > 0:
            raise ValueError(f"every_seconds={every_seconds}: allowed are numbers > 0")
        self.names, self.every_seconds, self.label = show, every_seconds, label
        self.images, self.validating = 0, 0.0

    def init_train_tqdm(self) -> Bar:  # type: ignore[override]  # any tqdm does
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        timer = next((one for one in callbacks if isinstance(one, Timer)), Timer())
        self.started = time.monotonic()
        return Bar(self.label or Path(self.trainer.default_root_dir).name, max(0, self.trainer.max_steps),
                   self.trainer.global_step, self.every_seconds, self.stream, self.details, timer.time_remaining,
                   disable=self.is_disabled)

    def init_validation_tqdm(self) -> tqdm:  # type: ignore[type-arg, override]
        return Bar("validating", 0, stream=self.stream, leave=False, position=1,
                   disable=self.is_disabled or not self.train_progress_bar.terminal)

    def details(self) -> str:
        known = self.trainer.callback_metrics
        names = self.names
        if names is None:
            wanted = [name for name in known if name.startswith("train/") and "loss" in name]
            names = sorted(wanted, key=lambda name: (name != "train/loss", name))[:4]
        # A metric of validation is not there before the first one.
        losses = [f"{name.removeprefix('train/')} {brief(float(known[name]))}" for name in names if name in known]
        seconds = max(1e-9, time.monotonic() - self.started - self.validating)
        speed = f"{brief(self.images / seconds)} images/s"
        if isinstance(loader := self.trainer.train_dataloader, StatefulLoader):
            speed += f" (data {loader.waited / seconds:.0%})"
        return "  ".join([*losses, speed])

    def on_train_epoch_start(self, *_: Any) -> None:
        """Goes on with the bar of all epochs."""

    def on_train_epoch_end(self, *_: Any) -> None:
        """Likewise."""

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        size = len(batch.text) if isinstance(batch, Batch | CodeBatch) else len(batch)
        self.images += size * trainer.world_size
        self.train_progress_bar.update()

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        self.paused = time.monotonic()
        super().on_validation_start(trainer, module)

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.val_progress_bar.close()
        self.reset_dataloader_idx_tracker()
        self.validating += time.monotonic() - self.paused
        bar, metrics = self.train_progress_bar, trainer.callback_metrics
        found = [f"{name} {brief(float(value))}" for name, value in metrics.items() if name.startswith("val/")]
        if found and not bar.disable and not bar.terminal:
            bar.fp.write("  ".join([f"{bar.desc}  step {trainer.global_step}", *found[:6]]))

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: BaseException) -> None:
        if self._train_progress_bar is not None:
            self.train_progress_bar.close()
