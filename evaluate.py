"""Measures a checkpoint. `python evaluate.py --help` lists what can be set."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli.app import main

ABOUT = """
python evaluate.py ckpt=runs/quickstart/prior/last.ckpt                                    composition
python evaluate.py ckpt=runs/quickstart/prior/last.ckpt protocol=shapes judge=CLIP         and distances, CLIP score
python evaluate.py ckpt=runs/quickstart/vqgan/last.ckpt metrics=[reconstruction]           a tokenizer
python evaluate.py images=FOLDER data=coco data.root=COCO protocol=coco30k inception=FILE  what another program drew
"""


def run(config: dict[str, Any], overrides: list[str]) -> Any:
    from t2i.evaluation import evaluate

    return evaluate.run(config)


if __name__ == "__main__":
    main("evaluate", run, ABOUT)
