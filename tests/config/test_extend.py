"""docs/extend.md: parts of a user's own, in a folder outside the repository, by `_target_` alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.in_child import app, wait

from tiny import TRAINER, VQGAN

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/extend.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, body in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", TEXT, re.DOTALL):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(body)
    return tmp_path


def train(folder: Path, *words: str) -> tuple[int, str]:
    """Its exit code, and what it printed."""
    log = folder / "log"
    return wait(app("train", words, folder, log)), log.read_text()


def test_the_examples_train(folder: Path) -> None:
    (command,) = re.findall(r"python …/train\.py (.*?)\n```", TEXT, re.DOTALL)
    words = command.replace("\\\n", " ").split()
    small = [word for word in VQGAN if not word.startswith(("model=", "model.quantizer"))]
    code, told = train(folder, *words, *small, *TRAINER, "trainer.max_steps=4", "callbacks.plots=null")
    assert code == 0, told
    assert "The slowest step was" in told
    assert "val/loss" in (folder / "lines.txt").read_text()
    run_dir = folder / "runs/vqgan-stripes"
    assert json.loads((run_dir / "config.json").read_text())["model"]["quantizer"]["_target_"] == "mine.Signs"
    assert (run_dir / ".hydra/config.yaml").is_file() and (run_dir / "last.ckpt").is_file()


def test_their_mistakes_are_told_in_a_line(folder: Path) -> None:
    code, told = train(folder, "--config-dir", "conf", "model=vqgan", "model/quantizer=signs", "data=stripes",
                       "+model.quantizer.depth=2", "data.size=much", "+callbacks.a._target_=mine.Nothing",
                       "+callbacks.b._target_=yours.Callback")
    assert code == 2
    assert sorted(told.removeprefix("error: ").splitlines()) == [
        "callbacks.a._target_=mine.Nothing: mine has no such class",
        "callbacks.b._target_=yours.Callback: there is no module yours (a module of your own is found in the current"
        " folder, or by PYTHONPATH)",
        "data.size=much: a whole number is needed",
        "model.quantizer.depth: Signs has no such argument; it has dim",
    ]
    assert not (folder / "runs").exists()
