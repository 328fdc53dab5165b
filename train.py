"""Trains one model, or runs a recipe. `python train.py --help` lists what can be set."""

import shlex
import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli import app
from t2i.config.compose import plan


def run(config: dict[str, Any], overrides: list[str]) -> Any:
    if config["estimate"]:
        from t2i.training import profiling

        return profiling.run(config, overrides)
    if config["stages"] is not None:
        from t2i.training import pipeline

        return pipeline.run(config, plan(overrides))
    from t2i.training import train

    return train.run(config, "python train.py " + shlex.join(overrides))


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    return app.job(cfg, "train", run)


if __name__ == "__main__":
    app.main(main, "train")
