"""Where metrics go: `metrics.csv` and TensorBoard in the run's folder are the truth, W&B is a mirror that may fail
(`t2i.training.wandb_logger`); any logger of Lightning's comes in by its `_target_` under `logger.`.

Lightning labels what it logs after batch n (from 1) with n - 1; ours say n, which is also the step of a checkpoint
written then. What a continued run finds of later steps than its own first one comes from batches that are trained
again, and is dropped.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import loggers
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from t2i.checkpoint import building

# Which curves belong in one panel, by section: TensorBoard's custom scalars, and a workspace of W&B (docs/wandb.md). A
# codebook of several parts numbers them, `val/codebook_usage_1`.
PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "Loss": {"loss": ("train/loss", "val/loss"), "validation minus training": ("val/gap",)},
    "Tokenizer": {
        "pixels": ("train/loss/pixel", "val/loss/pixel"), "PSNR": ("val/psnr",), "SSIM": ("val/ssim",),
        "codebook usage": ("train/codebook_usage", "val/codebook_usage"),
        "codebook perplexity": ("train/codebook_perplexity", "val/codebook_perplexity")},
    "Captions": {
        "with and without caption": ("val/loss", "val/loss_without_caption"),
        "retrieval": ("val/text_to_image", "val/image_to_text"), "composition": ("val/composition_overall",)},
    "Discriminator": {
        "losses": ("train/loss/generator", "train/loss/discriminator"),
        "logits": ("train/logits/real", "train/logits/wrong", "train/logits/fake"), "matching": ("val/matching",)},
}


class RunLogger(Logger):
    """A logger of a run folder. Nothing is written before `begin`; after `finish` what is logged begins anew."""

    run_dir: Path

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        """Told before training: `config` is the run's, plain and resolved."""
        self.run_dir = Path(run_dir)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The config is in the run's folder already."""

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """Shows a picture; `step` in batches done."""

    def log_table(self, name: str, page: Mapping[str, Any], step: int) -> None:
        """Shows captioned pictures, a page of a module's `pictures(batch)`: {"rows": [(label, images), ...],
        "captions"} or {"images", "captions"}, images in [-1, 1] or bytes."""

    def finish(self, failed: bool = False) -> None:
        """Ends it after a job; `failed` says that the job broke off with an error."""


def make_loggers(nodes: Mapping[str, Any], run_dir: Path, config: Mapping[str, Any]) -> list[Logger]:
    """The loggers that the nodes name, those of a run folder begun."""
    made: list[Logger] = [building.build(node) for node in nodes.values() if node]
    for logger in run_loggers(made):
        logger.begin(run_dir, config)
    return made


def run_loggers(found: Iterable[Logger]) -> list[RunLogger]:
    return [logger for logger in found if isinstance(logger, RunLogger)]


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, errors of the disk name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from error


class CSVLogger(RunLogger):
    """`metrics.csv`: a row for each time something is logged, empty cells where it was not.

    Lightning's `CSVLogger` deletes the file of the run that goes on and keeps all rows in memory. Here rows are written
    at once, a new metric adds a column (the file is copied once, line by line), and a run that continues drops the rows
    of its first step and later, and lines cut off by a kill.
    """

    name, version = "csv", ""  # type: ignore[assignment]  # properties of Lightning's
    columns: list[str] | None = None

    @property
    def path(self) -> Path:
        return self.run_dir / "metrics.csv"

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": 0 if step is None else step + 1}
        row |= {name: int(value) if name == "epoch" else float(value) for name, value in metrics.items()}
        with named(self.path):
            if self.columns is None or not row.keys() <= set(self.columns):
                self._rewrite(row)
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns or []).writerow(row)

    def _rewrite(self, row: Mapping[str, Any]) -> None:
        """Copies the file line by line under columns for `row` too; the first time only rows of earlier steps."""
        before = row["step"] if self.columns is None else float("inf")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.part")
        with (open(self.path if self.path.is_file() else os.devnull, newline="", encoding="utf-8") as old,
              open(beside, "w", newline="", encoding="utf-8") as new):
            rows = csv.DictReader(old)
            self.columns = list(dict.fromkeys([*(rows.fieldnames or ["step", "epoch"]), *row]))
            writer = csv.DictWriter(new, self.columns)
            writer.writeheader()
            for kept in rows:
                whole = None not in kept and None not in kept.values()
                if whole and kept["step"].isdigit() and int(kept["step"]) < before:
                    writer.writerow(kept)
            new.flush()
            os.fsync(new.fileno())
        os.replace(beside, self.path)

    def finish(self, failed: bool = False) -> None:
        self.columns = None


class TensorBoardLogger(RunLogger, loggers.TensorBoardLogger):
    """Lightning's, with events under `<run>/tb` and `PANELS` as custom scalars; of a continued run, what later steps
    had written before is hidden."""

    def __init__(self) -> None:
        super().__init__(save_dir=".", name="", version="tb", default_hp_metric=False)
        self.started = False

    def begin(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        super().begin(run_dir, config)
        self._root_dir = str(run_dir)

    @rank_zero_only
    def save(self) -> None:
        """Flushes; unlike the parent, writes no hparams.yaml."""
        if self._experiment is not None:
            with named(Path(self.log_dir)):
                self._experiment.flush()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        batches = 0 if step is None else step + 1
        with named(Path(self.log_dir)):
            self._start(batches)
            for name, value in metrics.items():
                self.experiment.add_scalar(name, value, batches)

    @rank_zero_only
    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        with named(Path(self.log_dir)):
            self._start(step)
            self.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def _start(self, batches: int) -> None:
        if not self.started and batches > 1:  # Lightning opened it before anybody knew where the run goes on
            if self._experiment is not None:
                self._experiment.close()
                self._experiment = None
            self._kwargs["purge_step"] = batches
        if not self.started:
            self.experiment.add_custom_scalars(tensorboard_layout())
        self.started = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: `finish` closes; on a full disk the parent's closing would hide what went wrong."""

    def finish(self, failed: bool = False) -> None:
        held, self._experiment = self._experiment, None
        if held is not None:
            with suppress(OSError) if failed else named(Path(self.log_dir)):
                held.close()


def tensorboard_layout() -> dict[str, dict[str, list[Any]]]:
    """`PANELS` as `SummaryWriter.add_custom_scalars` takes them; names there are regular expressions."""
    return {section: {title: ["Multiline", [rf"{re.escape(name)}(_\d+)?$" for name in names]]
                      for title, names in panels.items()} for section, panels in PANELS.items()}
