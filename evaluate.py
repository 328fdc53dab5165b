"""Measures a checkpoint. `python evaluate.py --help` lists what can be set."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.command import main

ABOUT = """
python evaluate.py ckpt=runs/quickstart/prior/last.ckpt metrics=[composition]
"""


def run(config: dict[str, Any], overrides: list[str]) -> Any:
    from t2i import evaluation

    return evaluation.run(config)


if __name__ == "__main__":
    main("evaluate", run, ABOUT)
