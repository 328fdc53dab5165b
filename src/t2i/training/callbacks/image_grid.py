"""Pictures of a training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.seed import isolate_rng

from t2i.training.loggers import run_loggers
from t2i.training.strategies import is_sharded
from t2i.viz import grids


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


class ImageGrid(pl.Callback):
    """Writes `<run>/grids/<name>-<step>.png` and shows them in the loggers, at the end of validations, on rank 0.

    The module's `pictures(batch)` gives `{name: {"rows": [(label, images), ...], "captions": [...]}}` or
    `{name: {"images": images, "captions": [...]}}`; the batch is the first of validation, always the same one.
    A module without `pictures` gets none.

    Args:
        every_n_steps: at most once in so many batches; the last validation always.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps={every_n_steps}: allowed are whole numbers from 1")
        self.every_n_steps = every_n_steps
        self.batch: Any = None
        self.last_step: int | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_step = state["last_step"]

    def on_validation_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_index: int, loader_index: int = 0
    ) -> None:
        if batch_index == 0 and loader_index == 0 and trainer.is_global_zero:
            self.batch = batch

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        # Not `on_validation_end`: there EMA has given the training weights back, or not, by its place in the list.
        step, batch, self.batch = trainer.global_step, self.batch, None
        # Of a model in shares drawing on one rank would wait for the others for ever.
        if batch is None or trainer.sanity_checking or not hasattr(module, "pictures") or is_sharded(trainer):
            return
        ends = trainer.should_stop or 0 < trainer.max_steps <= step
        if not ends and self.last_step is not None and step - self.last_step < self.every_n_steps:
            return
        self.last_step = step
        with undisturbed(module):
            drawn = module.pictures(batch)
        for name, page in drawn.items():
            image = (grids.rows(page["rows"], page["captions"]) if "rows" in page
                     else grids.grid(page["images"], page["captions"]))
            grids.save(image, Path(trainer.default_root_dir) / "grids" / f"{name}-{step:06}.png")
            for logger in run_loggers(trainer.loggers):
                logger.log_image(name, image, step)
                logger.log_table(name, page, step)
