"""Where metrics go: `metrics.csv` and TensorBoard in the run's folder are the truth, W&B is a mirror that may fail
(`t2i.training.wandb_logger`).

Lightning labels what it logs after batch n (from 1) with n - 1; everything here says n, which is also the step of a
checkpoint written then. What a continued run finds of later steps than its own first one comes from batches that
are trained again, and is dropped.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from t2i.training.wandb_logger import WandB

KINDS = ("csv", "tensorboard", "wandb")







@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, errors of the disk name the file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{path} could not be written: {error.strerror}") from error


class MetricsCSV(Logger):
    """`metrics.csv`: a row for each time something is logged, empty cells where it was not.

    Rows are written at once and never kept in memory. A new metric adds a column (the file is copied once, line by
    line). A run that continues drops the rows of its first step and later, and lines cut off by a kill.
    """

    def __init__(self, run_dir: Path) -> None:
        super().__init__()
        self.path = Path(run_dir) / "metrics.csv"
        self.columns: list[str] | None = None

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The config is in the run's folder already."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        batches = 0 if step is None else step + 1
        row: dict[str, Any] = {"step": batches, **{name: float(value) for name, value in metrics.items()}}
        if "epoch" in row:
            row["epoch"] = int(row["epoch"])
        first = self.columns is None
        known = (self._header() or ["step", "epoch"]) if self.columns is None else self.columns
        columns = list(dict.fromkeys([*known, *row]))
        with named(self.path):
            if first or columns != known:
                self._copy(columns, before=batches if first else None)
            self.columns = columns
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                csv.writer(file).writerow([row.get(name, "") for name in columns])

    def _header(self) -> list[str]:
        if not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])

    def _copy(self, columns: list[str], before: int | None) -> None:
        """Rewrites the file line by line under new columns, keeping whole rows of steps less than `before`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f".{self.path.name}.part")
        with open(beside, "w", newline="", encoding="utf-8") as new:
            writer = csv.writer(new)
            writer.writerow(columns)
            if self.path.is_file():
                with open(self.path, newline="", encoding="utf-8") as old:
                    reader = csv.reader(old)
                    header = next(reader, [])
                    for cells in reader:
                        if len(cells) != len(header) or not cells[0].isdigit():
                            continue
                        if before is not None and int(cells[0]) >= before:
                            continue
                        kept = dict(zip(header, cells, strict=True))
                        writer.writerow([kept.get(name, "") for name in columns])
            new.flush()
            os.fsync(new.fileno())
        os.replace(beside, self.path)

    def finish(self, failed: bool = False) -> None:
        self.columns = None


class TensorBoard(TensorBoardLogger):
    """Events under `<run>/tb`; of a continued run, what later steps had written before is hidden."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(save_dir=Path(run_dir), name="", version="tb", default_hp_metric=False)
        self.started, self.place = False, Path(run_dir) / "tb"

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The config is in the run's folder already."""

    @rank_zero_only
    def save(self) -> None:
        """Flushes; unlike the parent, writes no hparams.yaml."""
        if self._experiment is not None:
            with named(self.place):
                self._experiment.flush()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        batches = 0 if step is None else step + 1
        with named(self.place):
            self._start(batches)
            for name, value in metrics.items():
                self.experiment.add_scalar(name, value, batches)

    @rank_zero_only
    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        with named(self.place):
            self._start(step)
            self.experiment.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def _start(self, batches: int) -> None:
        if not self.started and batches > 1:  # Lightning opened it before anybody knew where the run goes on
            if self._experiment is not None:
                self._experiment.close()
                self._experiment = None
            self._kwargs["purge_step"] = batches
        self.started = True

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Nothing: `finish` closes; on a full disk the parent's closing would hide what went wrong."""

    def finish(self, failed: bool = False) -> None:
        held, self._experiment = self._experiment, None
        if held is not None:
            with suppress(OSError) if failed else named(self.place):
                held.close()


def make_loggers(
    names: Iterable[str],
    run_dir: Path,
    config: dict[str, Any],
    name: str,
    group: str | None = None,
    project: str = "t2i",
) -> list[Logger]:
    """The loggers of a run by name: csv, tensorboard, wandb. `config` is a plain dict."""
    names = list(names)
    unknown = sorted(set(names) - set(KINDS))
    if unknown:
        raise ValueError(f"logger.names={names}: {', '.join(unknown)} unknown; allowed are {', '.join(KINDS)}")
    makers = {
        "csv": lambda: MetricsCSV(run_dir),
        "tensorboard": lambda: TensorBoard(run_dir),
        "wandb": lambda: WandB(run_dir, config, name, group, project),
    }
    return [makers[kind]() for kind in dict.fromkeys(names)]


def log_image(loggers: Iterable[Any], name: str, image: Image.Image, step: int) -> None:
    """Shows a picture in every logger that takes pictures; `step` in batches done."""
    for logger in loggers:
        if hasattr(logger, "log_image"):
            logger.log_image(name, image, step)


def log_table(loggers: Iterable[Any], name: str, page: Mapping[str, Any], step: int) -> None:
    """Shows captioned pictures, a page of a module's `pictures(batch)`, in every logger that takes tables."""
    for logger in loggers:
        if hasattr(logger, "log_table"):
            logger.log_table(name, page, step)


def finish(loggers: Iterable[Any], failed: bool = False) -> None:
    """Ends every logger after a job, so that the next one of a sweep or pipeline starts its own; `failed` says that
    the job broke off with an error."""
    for logger in loggers:
        if hasattr(logger, "finish"):
            logger.finish(failed)
