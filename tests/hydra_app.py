"""A Hydra app in the tests' own process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import hydra
from omegaconf import DictConfig

from t2i.cli import app
from t2i.config.compose import CONF


def main(config_name: str, run: Callable[[dict[str, Any], list[str]], Any] | None = None) -> NoReturn:
    """train.py, sample.py, evaluate.py or prepare.py, with `run` as their work if given; its words: `sys.argv`."""

    def task(cfg: DictConfig) -> float | None:
        return app.job(cfg, config_name, run)

    app.main(hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(task), config_name)
