"""Averaged weights."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor


class EMA(pl.Callback):
    """Exponential moving average of the weights of named sub-modules, used in validation and kept in checkpoints.

    Not Lightning's `EMAWeightAveraging`: that copies frozen nets too, and a run shorter than its start ends with its
    initial weights. The shadow is float32 and holds parameters, and with `buffers` what BatchNorm keeps of its inputs
    too, which belongs to the weights that it was kept under. It is counted in batches: after batch n the decay is
    min(decay, (1 + n) / (10 + n)), so that no run ends near its initial weights. A checkpoint has it under `ema`:
    {"weights": {full name: tensor}, "updates": int}.

    Args:
        modules: attribute paths in the LightningModule, such as ["gpt"].
        decay: of the average, in [0, 1).
        buffers: whether running statistics (floating-point buffers) are averaged with the weights.
    """

    def __init__(self, modules: list[str], decay: float = 0.999, buffers: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: allowed are numbers from 0 up to, not including, 1")
        if not modules:
            raise ValueError("modules=[]: name at least one sub-module to average")
        self.modules, self.decay, self.buffers = list(modules), decay, buffers
        self.shadow: dict[str, Tensor] = {}
        self.held: dict[str, Tensor] = {}  # the training's weights while the averages are in their place
        self.updates = 0

    def tensors(self, module: pl.LightningModule) -> dict[str, Tensor]:
        """What is averaged, by full name."""
        children = dict(module.named_modules())
        if unknown := [name for name in self.modules if name not in children]:
            raise ValueError(f"modules={self.modules}: no {', '.join(unknown)} in {type(module).__name__}; it has"
                             f" {', '.join(name for name, _ in module.named_children())}")
        found: dict[str, Tensor] = {}
        for prefix in self.modules:
            found |= dict(children[prefix].named_parameters(prefix))
            if self.buffers:
                found |= {n: b for n, b in children[prefix].named_buffers(prefix) if b.is_floating_point()}
        return found

    def on_fit_start(self, trainer: Any, module: pl.LightningModule) -> None:
        now = self.tensors(module)
        if not self.shadow:
            self.shadow = {name: value.detach().float().clone() for name, value in now.items()}
        elif wrong := sorted(set(self.shadow) ^ set(now)):
            raise ValueError(f"the checkpoint's averaged weights do not fit the model: {', '.join(wrong[:5])}")
        self.shadow = {name: value.to(now[name].device) for name, value in self.shadow.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, module: pl.LightningModule, *_: Any) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = self.tensors(module)
        torch._foreach_lerp_(list(self.shadow.values()), [now[name].float() for name in self.shadow], 1 - decay)

    @torch.no_grad()
    def on_validation_start(self, trainer: Any, module: pl.LightningModule) -> None:
        if self.shadow and not self.held:
            now = self.tensors(module)
            self.held = {name: value.detach().clone() for name, value in now.items()}
            for name, value in now.items():
                value.copy_(self.shadow[name])

    @torch.no_grad()
    def on_validation_end(self, trainer: Any, module: pl.LightningModule) -> None:
        for name, value in self.tensors(module).items() if self.held else ():
            value.copy_(self.held[name])
        self.held = {}

    def on_exception(self, trainer: Any, module: pl.LightningModule, exception: BaseException) -> None:
        self.on_validation_end(trainer, module)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = {"weights": {name: value.cpu().clone() for name, value in self.shadow.items()},
                             "updates": self.updates}
        checkpoint["state_dict"] |= self.held  # saved in mid-validation: the training goes on from its own weights

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        if "ema" not in checkpoint:
            raise ValueError("the checkpoint was trained without averaged weights (EMA); it cannot go on with them")
        self.shadow = {name: value.float().clone() for name, value in checkpoint["ema"]["weights"].items()}
        self.updates = checkpoint["ema"]["updates"]
