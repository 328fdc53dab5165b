"""Trains one model, or runs a recipe. `python train.py --help` lists what can be set."""

import shlex
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli.app import main
from t2i.config.compose import plan

ABOUT = """
python train.py experiments=quickstart              nothing -> captioned pictures
python train.py model=vqgan data=shapes             one stage; runs/vqgan-shapes
python train.py -m model/quantizer=vq,ema,fsq       a sweep
python train.py experiments=shapes estimate=true    parameters, memory and hours of a recipe, without training
python train.py … name=b resume=runs/a/last.ckpt trainer.max_steps=20000    a finished run, for longer
"""


def run(config: dict[str, Any], overrides: list[str]) -> Any:
    if config["estimate"]:
        from t2i.training import profiling

        return profiling.run(config, overrides)
    if config["stages"] is not None:
        from t2i.training import pipeline

        return pipeline.run(config, plan(overrides))
    from t2i.training import train

    return train.run(config, "python train.py " + shlex.join(overrides))


if __name__ == "__main__":
    main("train", run, ABOUT)
