"""What an installed package has of the clone, and that every recipe composes from there; `t2i train` and its kin."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import t2i
from t2i.cli import app, console
from t2i.config.compose import ConfigError, compose
from t2i.config.places import APPS, ROOT, program

COMPOSE = """
import json
from t2i.config import places
from t2i.config.compose import choices, compose
stages = compose(["experiment=quickstart"], files=False)["stages"]
quantizer = compose(["model/quantizer=fsq"])["model"]["quantizer"]["_target_"]
print(json.dumps([places.ROOT == places.PACKAGE / "root", choices("experiments"), stages, quantizer]))
"""


def python(folder: Path, *words: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True, timeout=240,
                          env={**os.environ, "PYTHONPATH": str(path)})


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel unpacks, without the build's isolation: the clone's files through setup.py's build_py."""
    place = tmp_path_factory.mktemp("installed")
    source = place / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("conf", "experiments"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.py", "pyproject.toml", *(f"{one}.py" for one in APPS)):
        shutil.copy(ROOT / name, source)
    made = python(source, "setup.py", "-q", "build_py", "--build-lib", str(place / "lib"), path=source)
    assert made.returncode == 0, made.stderr
    return place / "lib"


def test_the_package_has_apps_configs_and_recipes(installed: Path, tmp_path: Path) -> None:
    for top in ("conf", "experiments"):
        found, packed = ({path.relative_to(root).as_posix() for path in (root / top).rglob("*") if path.is_file()}
                         for root in (ROOT, installed / "t2i/root"))
        assert found == packed
    done = python(tmp_path, "-c", COMPOSE, path=installed)
    assert done.returncode == 0, done.stderr
    recipes = sorted(path.relative_to(ROOT / "experiments").with_suffix("").as_posix()
                     for path in (ROOT / "experiments").rglob("*.yaml"))
    stages = ["quickstart/clip", "quickstart/vqgan", "quickstart/prior"]
    assert json.loads(done.stdout) == [True, recipes, stages, "t2i.quantizers.fsq.FSQ"]


def test_t2i_train_answers_from_any_folder(installed: Path, tmp_path: Path) -> None:
    shown = python(tmp_path, "-m", "t2i", "train", "experiment=quickstart/clip", "--cfg", "job", "--package", "paths",
                   path=installed)
    assert (shown.returncode, shown.stdout) == (0, "# @package paths\nruns: runs\ncache: cache\n"), shown.stderr
    wrong = python(tmp_path, "-m", "t2i", "sample", "prompt=a", path=installed)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ckpt= is needed")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", APPS)
def test_the_console_command_runs_the_apps(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        console.main([name, "--help"])
    told = capsys.readouterr().out
    assert not end.value.code and f"Keys (conf/{name}.yaml)" in told and told.startswith(f"{program(name)} ")
    assert sys.argv[0] == str(ROOT / f"{name}.py")  # what further processes are started with


def test_flags_in_front_of_an_app_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert console.main(["--trust", "mine", "train", "model=clip"]) == 2
    assert console.main(["--trust", "mine", "compare"]) == 2
    assert capsys.readouterr().err.count("comes first: t2i ") == 2
    with pytest.raises(SystemExit):
        console.main(["inspect", "a.ckpt", "--fast"])
    assert "unrecognized arguments: --fast" in capsys.readouterr().err


def test_a_command_is_told_as_it_works_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert program("train") == "python train.py"
    monkeypatch.chdir(tmp_path)
    assert program("train") == "t2i train"


def test_nothing_is_listed_twice() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    names = [word.split(">")[0].split("<")[0].lower().replace("_", "-") for part in lists for word in part]
    assert len(names) == len(set(names))
    (line,) = [each for each in (ROOT / "requirements.txt").read_text().splitlines() if each[:1] != "#"]
    assert line == f"-e .[{','.join(project['optional-dependencies'])}]"  # all extras


def test_from_python_the_words_are_those_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []

    def trained(config: dict[str, object], words: list[str]) -> dict[str, str]:
        seen.append((str(config["name"]), words))
        return {"run_dir": "runs/mine"}

    monkeypatch.setitem(app.RUNS, "train", trained)
    assert t2i.train("model=clip", "name=mine") == Path("runs/mine/last.ckpt")
    assert seen == [("mine", ["model=clip", "name=mine"])]
    for words, why in ((["model=clp"], "did you mean clip"), (["model=clip", "seed=0,1"], "seed has several values"),
                       (["model=clip", "-m"], "'-m' is no setting"), (["estimate=true"], "trains nothing")):
        with pytest.raises(ValueError, match=why):
            t2i.train(*words)
    with pytest.raises(ConfigError, match=r"ckpt=nothing\.ckpt: no such file"):
        t2i.evaluate("ckpt=nothing.ckpt")

    def stopped(config: dict[str, object], words: list[str]) -> None:
        raise SystemExit(75)

    monkeypatch.setitem(app.RUNS, "train", stopped)
    with pytest.raises(KeyboardInterrupt):  # a kernel goes on
        t2i.train("model=clip")


def test_what_needs_an_extra_says_which_command_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["model=clip", "logger=wandb"]
    assert compose(words)["logger"]["wandb"]
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else found(name))
    with pytest.raises(ConfigError, match=r"^logger\.wandb needs a package that is not installed: pip install wandb "):
        compose(words)
