"""What is drawn or measured at the end of validations, without disturbing the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Inside, the module is in eval mode without gradients; after it, modes and random generators are as before."""
    modes = {child: child.training for child in module.modules()}
    with isolate_rng(include_cuda=torch.cuda.is_initialized()), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for child, mode in modes.items():
                child.training = mode


class AtValidation(pl.Callback):
    """Calls `validated` at the end of validations, at most once in `every_n_steps` batches; of the last one always.

    Not at `on_validation_end`: there EMA has given the training weights back, or not, by its place in the list.
    """

    def __init__(self, every_n_steps: int) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: allowed are whole numbers from 1")
        self.every_n_steps = every_n_steps
        self.last_step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_step = state["last_step"]

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        step = trainer.global_step
        ends = trainer.should_stop or 0 < trainer.max_steps <= step
        early = self.last_step is not None and step - self.last_step < self.every_n_steps
        if not trainer.sanity_checking and (ends or not early):
            self.last_step = step
            self.validated(trainer, module)

    def validated(self, trainer: pl.Trainer, module: Any) -> None:
        raise NotImplementedError
