"""Metrics of a validation, as callbacks: they see what a validation step returns and touch no weights, and nothing of
theirs lands in a checkpoint's weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from t2i.data.scenes import TASKS
from t2i.data.shapes import prompts
from t2i.evaluation.generated_images import draw
from t2i.metrics.composition import composition_score
from t2i.metrics.reconstruction import CodebookUsage, psnr, ssim


class Reconstructions(pl.Callback):
    """PSNR, SSIM and codebook usage of a tokenizer: over the epoch in training, over the split in validation."""

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        self.active = module.kind == "vqgan"
        if self.active:
            factors = module.tokenizer.factors
            self.usage = {"train": CodebookUsage(factors), "val": CodebookUsage(factors)}
            self.sums = torch.zeros(3, dtype=torch.float64)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        if self.active and not trainer.interrupted:  # the codes since the last validation, of all ranks
            counts = [count.clone().to(module.device) for count in self.usage["train"].counts]
            counts = [trainer.strategy.reduce(count, reduce_op="sum").cpu() for count in counts]
            checkpoint["codes_since_validation"] = counts

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        if self.active and "codes_since_validation" in checkpoint and trainer.is_global_zero:
            self.usage["train"].counts = [count.clone() for count in checkpoint["codes_since_validation"]]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if self.active:
            self.usage["train"].update(outputs["ids"])

    def on_validation_batch_end(
        self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int, loader: int = 0
    ) -> None:
        if self.active:
            self.usage["val"].update(outputs["ids"])
            pair = outputs["reconstruction"], outputs["image"]
            values = [float(psnr(*pair).sum()), float(ssim(*pair).sum()), float(len(batch.text))]
            self.sums += torch.tensor(values, dtype=torch.float64)

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        if self.active:
            sums = trainer.strategy.reduce(self.sums.to(module.device, copy=True), reduce_op="sum")
            values = {"val/psnr": float(sums[0] / sums[2]), "val/ssim": float(sums[1] / sums[2])}
            for split, usage in self.usage.items():
                values |= {f"{split}/codebook_{name}": float(value) for name, value in usage.compute().items()}
            module.log_dict(values, sync_dist=False)
            self.setup(trainer, module, "fit")


class Gap(pl.Callback):
    """`val/gap`: how much worse validation is than the training since the last one. Growing, it is overfitting.

    The training side has dropout and dropped captions and averages over changing weights, so a gap below 0 is usual
    early on; what tells is its course.

    Args:
        train, val: names of the two losses; None for those that are alike in each model: the whole loss, but for a
            VQGAN, whose whole loss has a discriminator in it, the pixels'.
    """

    def __init__(self, train: str | None = None, val: str | None = None) -> None:
        self.train, self.val = train, val
        self.total: Any = 0.0
        self.count = 0

    def setup(self, trainer: Any, module: Any, stage: str) -> None:
        part = "loss/pixel" if module.kind == "vqgan" else "loss"
        self.names = self.train or f"train/{part}", self.val or f"val/{part}"

    def over_ranks(self, trainer: Any, module: Any, value: Any) -> float:
        value = torch.as_tensor(value, dtype=torch.float64, device=module.device)
        return float(trainer.strategy.reduce(value.clone(), reduce_op="mean"))

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        if not trainer.interrupted:  # the other ranks are asked
            checkpoint["gap"] = {"total": self.over_ranks(trainer, module, self.total), "count": self.count}

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        held = checkpoint.get("gap", {"total": 0.0, "count": 0})
        self.total, self.count = held["total"], held["count"]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        value = trainer.callback_metrics.get(self.names[0])
        if value is not None:
            self.total, self.count = self.total + value.detach().double(), self.count + 1

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        value = trainer.callback_metrics.get(self.names[1])
        if value is not None and self.count and not trainer.sanity_checking:
            mean = self.over_ranks(trainer, module, self.total / self.count)
            module.log("val/gap", float(value) - mean, sync_dist=True)
            self.total, self.count = 0.0, 0


class Composition(pl.Callback):
    """Composition score of samples at the first of every so many validations, `n_per_task` pictures a task: a rough
    curve, not the evaluation."""

    def __init__(self, n_per_task: int = 8, guidance: float = 3.0, every_n_validations: int = 1) -> None:
        if n_per_task < 1:
            raise ValueError(f"n_per_task={n_per_task} must be at least 1")
        self.captions = [caption for task in TASKS for caption in prompts("val", task, n_per_task, seed=1)]
        self.guidance, self.every, self.seen = guidance, every_n_validations, 0

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        self.seen += 1
        if (self.seen - 1) % self.every == 0:
            options = {"guidance": self.guidance} if "guidance" in module.options else {}
            drawn = draw(module, [caption.text for caption in self.captions], 1, options)
            scores = composition_score(torch.cat([pictures for _, pictures in drawn]).numpy(), self.captions)
            module.log_dict({f"val/composition_{name}": value for name, value in scores.items()}, sync_dist=False)
