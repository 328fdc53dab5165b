"""Draws pictures for captions from a checkpoint. `python sample.py --help` lists what can be set."""

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli import app


def run(config: dict[str, Any], overrides: list[str]) -> Any:
    if "guide" in config:
        from t2i.generation.clip_guided import run as clip_guided_run

        return clip_guided_run.run(config)
    from t2i.generation import text_to_image

    return text_to_image.run(config)


@hydra.main(config_path="conf", config_name="sample", version_base="1.3")
def main(cfg: DictConfig) -> float | None:
    return app.job(cfg, "sample", run)


if __name__ == "__main__":
    app.main(main, "sample")
