"""What happens beside a training: averaged weights, picture grids, loss plots.

Each works from the run's folder (the trainer's `default_root_dir`), on rank 0 where it writes, and changes neither
the weights nor the random numbers of the training.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from t2i.training.loggers import log_image, log_table
from t2i.training.strategies import is_sharded
from t2i.viz import grids, plots


class EMA(pl.Callback):
    """Exponential moving average of the weights of named sub-modules, used in validation and kept in checkpoints.

    The shadow is float32 and holds parameters, and with `buffers` what BatchNorm keeps of its inputs too, which belongs
    to the weights that it was kept under; other buffers stay as they are. It is counted in batches: after batch
    n the decay is min(decay, (1 + n) / (10 + n)), so that no run, however short, ends near its initial weights.
    A checkpoint has it under `ema`: {"weights": {full name: tensor}, "updates": int}.

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
        self.held: dict[str, Tensor] = {}
        self.updates = 0

    def parameters(self, module: Any) -> dict[str, Tensor]:
        children = dict(module.named_modules())
        unknown = [name for name in self.modules if name not in children]
        if unknown:
            allowed = ", ".join(name for name, _ in module.named_children())
            name = type(module).__name__
            raise ValueError(f"modules={self.modules}: no {', '.join(unknown)} in {name}; it has {allowed}")
        found: dict[str, Tensor] = {}
        for prefix in self.modules:
            held: dict[str, Tensor] = dict(children[prefix].named_parameters())
            if self.buffers:
                held |= {n: b for n, b in children[prefix].named_buffers() if b.is_floating_point()}
            found |= {f"{prefix}.{name}": value for name, value in held.items()}
        return found

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        now = self.parameters(module)
        if not self.shadow:
            self.shadow = {name: value.detach().float().clone() for name, value in now.items()}
        elif set(self.shadow) != set(now):
            wrong = sorted(set(self.shadow) ^ set(now))
            raise ValueError(f"the checkpoint's averaged weights do not fit the model: {', '.join(wrong[:5])}")
        self.shadow = {name: value.to(now[name].device) for name, value in self.shadow.items()}

    @torch.no_grad()
    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = self.parameters(module)
        torch._foreach_lerp_(list(self.shadow.values()), [now[name].float() for name in self.shadow], 1 - decay)

    @torch.no_grad()
    def swap_in(self, module: Any) -> None:
        if self.shadow and not self.held:
            now = self.parameters(module)
            self.held = {name: value.detach().clone() for name, value in now.items()}
            for name, value in now.items():
                value.copy_(self.shadow[name])

    @torch.no_grad()
    def swap_out(self, module: Any) -> None:
        if self.held:
            for name, value in self.parameters(module).items():
                value.copy_(self.held[name])
            self.held = {}

    @contextmanager
    def averaged(self, module: Any) -> Iterator[None]:
        """The module with the averaged weights; the training ones are back whatever happens."""
        self.swap_in(module)
        try:
            yield
        finally:
            self.swap_out(module)

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.swap_in(module)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        self.swap_out(module)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self.swap_out(module)

    def on_save_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = {"weights": {name: value.cpu().clone() for name, value in self.shadow.items()},
                             "updates": self.updates}
        for name, value in self.held.items():  # saved in mid-validation: the training goes on from its own weights
            checkpoint["state_dict"][name] = value

    def on_load_checkpoint(self, trainer: Any, module: Any, checkpoint: dict[str, Any]) -> None:
        if "ema" not in checkpoint:
            raise ValueError("the checkpoint was trained without averaged weights (EMA); it cannot go on with them")
        self.shadow = {name: value.float().clone() for name, value in checkpoint["ema"]["weights"].items()}
        self.updates = checkpoint["ema"]["updates"]


@contextmanager
def undisturbed(module: torch.nn.Module) -> Iterator[None]:
    """Inside, the module is in eval mode without gradients; after it, modes and random generators are as before."""
    modes = {child: child.training for child in module.modules()}
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 -- guards what others may use
    with torch.random.fork_rng(devices), torch.no_grad():
        module.eval()
        try:
            yield
        finally:
            for child, mode in modes.items():
                child.training = mode
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


class PictureGrid(pl.Callback):
    """Writes `<run>/grids/<name>-<step>.png` and shows them in the loggers, at the end of validations.

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
        self, trainer: Any, module: Any, batch: Any, batch_index: int, loader_index: int = 0
    ) -> None:
        if batch_index == 0 and loader_index == 0 and trainer.is_global_zero:
            self.batch = batch

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        # Not `on_validation_end`: there EMA has given the training weights back, or not, by its place in the list.
        step = trainer.global_step
        batch, self.batch = self.batch, None
        if is_sharded(trainer):  # drawing on one rank would wait for the others for ever
            return
        if batch is None or trainer.sanity_checking or not hasattr(module, "pictures"):
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
            log_image(trainer.loggers, name, image, step)
            log_table(trainer.loggers, name, page, step)


class EarlyStopping(pl.Callback):
    """Stops when `monitor` has not fallen by more than `least` for `patience` validations; `best.ckpt` is what counts.

    A stopped run is finished: the same command does not go on. Its counts are kept in checkpoints.

    Args:
        monitor: a metric of validation; smaller is better.
        patience: validations without improvement that are borne.
        least: what counts as improvement.
    """

    def __init__(self, monitor: str = "val/loss", patience: int = 3, least: float = 0.0) -> None:
        if patience < 1 or least < 0:
            raise ValueError(f"patience={patience} (a whole number from 1) and least={least} (a number from 0)")
        self.monitor, self.patience, self.least = monitor, patience, least
        self.best, self.since = float("inf"), 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since": self.since, "monitor": self.monitor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("monitor", self.monitor) == self.monitor:
            self.best, self.since = state["best"], state["since"]

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if self.since >= self.patience:  # broken off between its last checkpoint and its end
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if trainer.sanity_checking:
            return
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(name for name in trainer.callback_metrics if name.startswith("val/")))
            raise ValueError(f"callbacks: monitor={self.monitor} is no metric of this run's validation; it has {known}")
        value = float(trainer.callback_metrics[self.monitor])
        if value < self.best - self.least:
            self.best, self.since = value, 0
            return
        self.since += 1
        if self.since >= self.patience:
            trainer.should_stop = True
            if trainer.is_global_zero:
                print(f"\nStopped early at step {trainer.global_step}: {self.monitor} was {self.best:.4g} at best, and"
                      f" not better for {self.since} validations. best.ckpt holds that step.")


class LossPlots(pl.Callback):
    """Writes `<run>/plots/loss.png`, `codebook.png` and `scores.png` from `metrics.csv` (`t2i.viz.plots`) after
    validations
    and at the end.

    Args:
        groups: panels of loss.png, title -> columns of metrics.csv; None for one a metric.
        every_seconds: at most once in so many seconds (it takes one or two), but always once at the end.
    """

    def __init__(self, groups: dict[str, list[str]] | None = None, every_seconds: float = 30.0) -> None:
        self.groups, self.every_seconds = groups, every_seconds
        self.last = -float("inf")

    def plot(self, trainer: Any) -> None:
        run_dir = Path(trainer.default_root_dir)
        if trainer.is_global_zero and (run_dir / "metrics.csv").is_file():
            self.last = time.monotonic()
            plots.plot_run(run_dir, self.groups)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if not trainer.sanity_checking and time.monotonic() - self.last >= self.every_seconds:
            self.plot(trainer)

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self.plot(trainer)
