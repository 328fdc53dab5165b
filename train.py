"""Trains one model, or runs a recipe. `python train.py --help` lists what can be set."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli import app


@hydra.main(config_path="conf", config_name="train", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    return app.job(cfg, "train")


if __name__ == "__main__":
    app.main(main, "train")
