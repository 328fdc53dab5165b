"""Lightning's adverts, and warnings of it that tell the user nothing; our own warnings in a line."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from t2i.config.messages import HERE, shown

LONGEST = 1000  # letters of a warning
_PYTHONS = warnings.formatwarning
# What Lightning 2.6 says to everybody, whatever they do.
_NEWS = (
    "Tip:", "litlogger", "litmodels", "GPU available", "TPU available", "HPU available", "Seed set to", "LOCAL_RANK",
    "`Trainer.fit` stopped", "Restoring states from", "Restored all states", "Using bfloat16", "Using 16bit",
    "Initializing distributed:", "distributed_backend=", "All distributed processes", "--------------------",
    "`Trainer(", "Loading `train_dataloader`", "Running in `fast_dev_run`",
)


_WARNINGS = (
    ".*does not have many workers.*", ".*log_every_n_steps.*", ".*num_workers.*", ".*LeafSpec.*",
    ".*in eval mode at the start of training.*", ".*mid-epoch checkpoint.*", ".*is not resumable.*",
    ".*Checkpoint directory .* exists.*", ".*Trying to infer the `batch_size`.*", ".*pkg_resources.*",
    ".*was configured without a `logger`.*", ".*Starting from v1.9.0.*", ".*not resume.*dataloader.*",
    ".*The total number of parameters detected may be inaccurate.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*It is recommended to use `self.log.*sync_dist.*",
)


def _says_something(record: logging.LogRecord) -> bool:
    return not any(piece in record.getMessage() for piece in _NEWS)


def quiet() -> None:
    """Silences the adverts and warnings of Lightning that tell the user nothing; everything else still speaks."""
    for name in ("pytorch_lightning.utilities.rank_zero", "pytorch_lightning.accelerators.cuda",
                 *(f"lightning_fabric.utilities.{part}" for part in ("rank_zero", "seed", "distributed"))):
        logger = logging.getLogger(name)
        if _says_something not in logger.filters:
            logger.addFilter(_says_something)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def plain_warnings() -> None:
    """Warnings of our own are a line each, without the place in the source where Python says them."""
    warnings.formatwarning = _formatted


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    if Path(filename).resolve().is_relative_to(HERE):
        return f"warning: {shown(str(message), LONGEST)}\n"
    return _PYTHONS(message, category, filename, lineno, line)
