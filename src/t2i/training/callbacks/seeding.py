"""Random numbers of a step that hang on the step alone."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from t2i.data.seeds import derive_seed


class StepSeed(pl.Callback):
    """Seeds torch before every batch by f(seed, "step", batch, rank): a continued run draws what an unbroken one
    draws, and validation cannot disturb training."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        torch.manual_seed(derive_seed(self.seed, "step", trainer.global_step, trainer.global_rank))
        module.shared_seed = derive_seed(self.seed, "step", trainer.global_step, 0)  # what all ranks draw alike
