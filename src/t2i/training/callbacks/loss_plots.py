"""Curves of a training."""

from __future__ import annotations

import time
from pathlib import Path

import pytorch_lightning as pl

from t2i.viz import plots


class LossPlots(pl.Callback):
    """Writes `<run>/plots/loss.png`, `codebook.png` and `scores.png` from `metrics.csv` (`t2i.viz.plots`) after
    validations and at the end.

    Args:
        groups: panels of loss.png, title -> columns of metrics.csv; None for one a metric.
        every_seconds: at most once in so many seconds (it takes one or two), but always once at the end.
    """

    def __init__(self, groups: dict[str, list[str]] | None = None, every_seconds: float = 30.0) -> None:
        self.groups, self.every_seconds = groups, every_seconds

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self.last = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        run_dir = Path(trainer.default_root_dir)
        if trainer.is_global_zero and (run_dir / "metrics.csv").is_file():
            plots.plot_run(run_dir, self.groups)
            self.last = time.monotonic()

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if not trainer.sanity_checking and time.monotonic() - self.last >= self.every_seconds:
            self.on_train_end(trainer, module)
