"""Pictures of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from t2i.training.callbacks.at_validation import AtValidation, undisturbed
from t2i.training.loggers import run_loggers
from t2i.training.strategies import is_sharded
from t2i.viz import grids


class ImageGrid(AtValidation):
    """Writes `<run>/grids/<name>-<step>.png` and shows them in the loggers, at the end of validations, on rank 0.

    The module's `pictures(batch)` gives `{name: {"rows": [(label, images), ...], "captions": [...]}}` or
    `{name: {"images": images, "captions": [...]}}`; the batch is the first of validation, always the same one.
    A module without `pictures` gets none.

    Args:
        every_n_steps: at most once in so many batches; the last validation always.
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self.batch: Any = None

    def on_validation_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, batch_index: int, loader_index: int = 0
    ) -> None:
        if batch_index == 0 and loader_index == 0 and trainer.is_global_zero:
            self.batch = batch

    def validated(self, trainer: pl.Trainer, module: Any) -> None:
        batch, self.batch = self.batch, None
        # Of a model in shares drawing on one rank would wait for the others for ever.
        if batch is None or not hasattr(module, "pictures") or is_sharded(trainer):
            return
        with undisturbed(module):
            pages = module.pictures(batch)
        for name, page in pages.items():
            image = (grids.rows(page["rows"], page["captions"]) if "rows" in page
                     else grids.grid(page["images"], page["captions"]))
            grids.save(image, Path(trainer.default_root_dir) / "grids" / f"{name}-{trainer.global_step:06}.png")
            for logger in run_loggers(trainer.loggers):
                logger.log_image(name, image, trainer.global_step)
                logger.log_table(name, page, trainer.global_step)
