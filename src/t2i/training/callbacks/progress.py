"""How far a run is: one line with the step, the losses, pictures a second and the time left.

On a terminal the line is redrawn; elsewhere (a file, a pipe) a new one is written every few seconds, so that logs
stay readable. Counts to `max_steps` over all epochs, and goes on counting where a continued run goes on; the time left
is that of `max_minutes` where it is the shorter.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, TextIO

from pytorch_lightning.callbacks import ProgressBar
from torch import Tensor

from t2i.training.callbacks.checkpointing import Minutes
from t2i.viz.progress import Line, brief, clock, drawn


def pictures_in(batch: Any) -> int:
    """How many pictures a batch holds: of a Batch or CodeBatch, a tensor, or the first tensor of a container."""
    if isinstance(batch, Tensor):
        return len(batch)
    if hasattr(batch, "text"):
        return len(batch.text)
    first = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
    return pictures_in(first)


class Progress(ProgressBar):
    """The progress line of a training.

    Args:
        show: metrics to print, by name (`train/loss`); None for all `train/` losses up to four.
        every_seconds: between lines where the output is no terminal.
        label: what is trained; None takes the run folder's name.
    """

    def __init__(self, show: list[str] | None = None, every_seconds: float = 10.0, label: str | None = None) -> None:
        super().__init__()
        if not every_seconds > 0:
            raise ValueError(f"every_seconds={every_seconds}: allowed are numbers > 0")
        self.names, self.every_seconds, self.label = show, every_seconds, label
        self.enabled = True
        self.stream: TextIO | None = None
        self.line: Line | None = None  # from the start of training

    def disable(self) -> None:
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def print(self, *values: Any, **options: Any) -> None:
        """Prints above the line without tearing it."""
        if self.enabled and self.line is not None:
            self.line.end()
        print(*values, **options)

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.line = Line(self.stream, self.every_seconds)
        self.title = self.label or Path(trainer.default_root_dir).name
        self.total = trainer.max_steps
        self.first_step = trainer.global_step
        self.started = time.monotonic()
        self.paused = 0.0
        self.pictures = 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if not self.enabled or self.line is None:
            return
        self.pictures += pictures_in(batch) * trainer.world_size
        if self.line.due():
            self.line.show(self.text(trainer, self.line))

    def text(self, trainer: Any, line: Line) -> str:
        now = time.monotonic()
        step = trainer.global_step
        trained = max(1e-9, now - self.started - self.paused)
        parts = [drawn(self.title, step, self.total, line.terminal), *self.losses(trainer)]
        parts.append(f"{brief(self.pictures / trained)} images/s")
        left = [c.left for c in trainer.callbacks if isinstance(c, Minutes) and c.left is not None]
        if self.total > 0 and step > self.first_step:
            # Validation belongs to the time left: it will come again.
            left.append((now - self.started) / (step - self.first_step) * (self.total - step))
        if left:
            parts.append(f"{clock(min(left))} left")
        return "  ".join(parts)

    def losses(self, trainer: Any) -> list[str]:
        known = trainer.callback_metrics
        names = self.names
        if names is None:
            wanted = [name for name in known if name.startswith("train/") and "loss" in name]
            names = sorted(wanted, key=lambda name: (name != "train/loss", name))[:4]
        # A metric of validation is not there before the first one.
        return [f"{name.removeprefix('train/')} {brief(float(known[name]))}" for name in names if name in known]

    def on_validation_start(self, trainer: Any, module: Any) -> None:
        self.stopped_at = time.monotonic()
        if self.enabled and self.line is not None and self.line.terminal:
            self.line.show(f"{drawn(self.title, trainer.global_step, self.total, True)}  validating")

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        if self.line is None:
            return  # `trainer.validate` alone
        self.paused += time.monotonic() - self.stopped_at
        named = {k: v for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        if self.enabled and named and not self.line.terminal:
            shown = "  ".join(f"{name} {brief(float(value))}" for name, value in list(named.items())[:6])
            self.line.show(f"{self.title}  step {trainer.global_step}  {shown}")

    def on_train_end(self, trainer: Any, module: Any) -> None:
        if self.enabled and self.line is not None:
            self.line.show(f"{self.text(trainer, self.line)}  took {clock(time.monotonic() - self.started)}")
            self.line.end()

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        if self.line is not None:
            self.line.end()
