"""Where the apps and their configs lie, in a clone and in an installed package."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
# What stands at a clone's root, the apps, conf/ and experiments/, lies in t2i/root/ of a wheel (setup.py).
ROOT = PACKAGE / "root" if (PACKAGE / "root").is_dir() else PACKAGE.parents[1]
CONF = ROOT / "conf"
RECIPES = ROOT / "experiments"
APPS = ("train", "sample", "evaluate", "prepare")


def program(app: str) -> str:
    """How an app is called from the current folder: `python train.py` in a clone's root, `t2i train` elsewhere."""
    return f"python {app}.py" if Path.cwd() == ROOT else f"t2i {app}"
