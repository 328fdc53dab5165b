"""Measures a checkpoint. `python evaluate.py --help` lists what can be set."""

import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli import app


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    return app.job(cfg, "evaluate")


if __name__ == "__main__":
    app.main(main, "evaluate")
