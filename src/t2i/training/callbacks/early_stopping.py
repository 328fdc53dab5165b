"""What ends a run before its last step: validation that gets no better, and the clock."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning import callbacks


class EarlyStopping(callbacks.EarlyStopping):
    """Lightning's, for a run that goes on by the same command: a run that it stopped is finished, also where it was
    broken off before it said so, and its patience is the config's, not the checkpoint's. A `monitor` that validation
    does not measure is a ValueError; one that is not finite is no improvement."""

    def __init__(self, monitor: str = "val/loss", patience: int = 3, min_delta: float = 0.0,
                 mode: Literal["min", "max"] = "min") -> None:
        if patience < 1 or min_delta < 0:
            raise ValueError(f"patience={patience} (a whole number from 1) and min_delta={min_delta} (a number from 0)")
        super().__init__(monitor, min_delta, patience, mode=mode, check_finite=False, check_on_train_epoch_end=False)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        best = torch.as_tensor(state_dict["best_score"])  # earlier versions kept a number
        super().load_state_dict(state_dict | {"patience": self.patience, "best_score": best})

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        known = trainer.callback_metrics
        if self.monitor not in known and not self._should_skip_check(trainer):
            listed = ", ".join(sorted(name for name in known if name.startswith("val/")))
            raise ValueError(f"callbacks: monitor={self.monitor} is no metric of this run's validation; it has"
                             f" {listed}")
        super().on_validation_end(trainer, module)
        if self.wait_count >= self.patience and trainer.is_global_zero:
            print(f"\nStopped early at step {trainer.global_step}: {self.monitor} was {float(self.best_score):.4g} at"
                  f" best, and not better for {self.wait_count} validations. best.ckpt holds that step.")


class Timer(callbacks.Timer):
    """Lightning's, of `trainer.max_minutes`: counts training, validation and saving included, over breaks, and ends the
    run as finished when `minutes` are spent (None: never). What lies before the first batch (data, caches) is not
    counted. `before`: the seconds of a run's earlier sessions, as its checkpoint has them."""

    before = 0.0

    def __init__(self, minutes: float | None = None) -> None:
        if minutes is not None and not minutes > 0:
            raise ValueError(f"trainer.max_minutes={minutes}: allowed are numbers > 0, or null")
        super().__init__(None if minutes is None else timedelta(minutes=minutes), verbose=False)
        self.minutes = minutes

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.before = float(state_dict["time_elapsed"].get("train", 0.0))

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        super().on_train_batch_end(trainer, *rest)
        spent = self.minutes is not None and self.time_elapsed() >= 60 * self.minutes
        if spent and trainer.should_stop and trainer.is_global_zero:
            print(f"\nThe {self.minutes:g} minutes of trainer.max_minutes are spent at step {trainer.global_step}.")
