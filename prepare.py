"""Looks a data set over before it is trained on, and packs it. `python prepare.py --help` lists what can be set."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from t2i.cli.app import main

ABOUT = """
python prepare.py data=coco data.root=coco                counts, faults, duplicates, captions, a contact sheet
python prepare.py data=folder data.root=mine pack=true    and the packed cache that training reads
"""


def run(config: dict[str, Any], overrides: list[str]) -> Any:
    from t2i.data import prepare

    return prepare.run(config)


if __name__ == "__main__":
    main("prepare", run, ABOUT)
