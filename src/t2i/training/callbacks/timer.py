"""`trainer.max_minutes`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning import callbacks


class Timer(callbacks.Timer):
    """Lightning's: counts training, validation and saving included, over breaks, and ends the run as finished when
    `minutes` are spent (None: never). What lies before the first batch (data, caches) is not counted."""

    def __init__(self, minutes: float | None = None) -> None:
        if minutes is not None and not minutes > 0:
            raise ValueError(f"trainer.max_minutes={minutes}: allowed are numbers > 0, or null")
        super().__init__(None if minutes is None else timedelta(minutes=minutes), verbose=False)
        self.minutes = minutes

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        super().on_train_batch_end(trainer, *rest)
        spent = self.minutes is not None and self.time_elapsed() >= 60 * self.minutes
        if spent and trainer.should_stop and trainer.is_global_zero:
            print(f"\nThe {self.minutes:g} minutes of trainer.max_minutes are spent at step {trainer.global_step}.")
