"""Measures a checkpoint. `python evaluate.py --help` lists what can be set."""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli import app


def run(config: dict[str, Any], overrides: list[str]) -> Any:
    from t2i.evaluation import evaluate

    return evaluate.run(config)


@hydra.main(config_path="conf", config_name="evaluate", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    return app.job(cfg, "evaluate", run)


if __name__ == "__main__":
    app.main(main, "evaluate")
