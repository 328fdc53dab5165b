"""Draws pictures for captions from a checkpoint. `python sample.py --help` lists what can be set."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli.app import main

ABOUT = """
python sample.py ckpt=runs/quickstart/prior/last.ckpt prompt="two red circles above a blue square" n=8 seed=0
python sample.py method=clip_guided clip_guided.clips=openai/clip-vit-base-patch32 clip_guided.canvas=pixels prompt="…"
"""


def run(config: dict[str, Any], overrides: list[str]) -> Any:
    if "clip_guided" in config:
        from t2i.generation.clip_guided import run as clip_guided_run

        return clip_guided_run.run(config)
    from t2i.generation import text_to_image

    return text_to_image.run(config)


if __name__ == "__main__":
    main("sample", run, ABOUT)
