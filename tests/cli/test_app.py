"""What the doors do before any of our work begins."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hydra_app import main
from t2i.cli import app
from t2i.config.compose import ConfigError

ROUNDS = """
import resource
from t2i.cli.app import keep_freed_memory
{before}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(1 << 26)
start = faults()
for _ in range(8):
    bytearray(1 << 26)
print(faults() - start)
"""


def new_pages(before: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", ROUNDS.format(before=before)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=clean).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
def test_freed_memory_is_kept() -> None:
    by_default, kept = new_pages(""), new_pages("keep_freed_memory()")
    assert kept < 100 and by_default > 2 * kept + 100


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc has the setting: see above")
def test_elsewhere_it_does_nothing() -> None:
    new_pages("keep_freed_memory()")


@pytest.mark.parametrize(("name", "words", "why"), [
    ("train", ["-m", "model=vqgan", "seed=0,1", "sweep.launcher=joblib"], r"instead of sweep\.launcher= write hydra/l"),
    ("train", ["-m", "model=vqgan", "seed=0,1", "trainer.devices=2"], r"-m with trainer\.devices=2"),
    ("train", ["-m", "model=vqgan", "seed=0,1", "trainer.devices=2", "hydra/launcher=joblib"], r"trainer\.devices=2"),
    ("train", ["-m", "experiments=quickstart", "seed=0,1"], "does not run pipelines"),
    ("train", ["-m", "model=vqgan", "seed=0,1", "estimate=true"], "leave -m out"),
    ("train", ["-m", "model=vqgan", "data.batch_sze=1,2"], r"did you mean data\.batch_size"),
    ("train", ["-m", "model=vqgan", "data.batch_sze=1,2", "hydra/launcher=joblib"], r"did you mean data\.batch_size"),
    ("train", ["-m", "model=vqgan", "model/quantizer=vq,emma"], "model/quantizer=emma: .*did you mean ema"),
    ("train", ["-m", "model=vqgan", "trainer.monitor=val/a,val/b"], r"val/a \(min\), val/b \(min\)"),
    ("train", ["-m", "model=vqgan", "model.learning_rate=interval(0,1)"], "searched by hydra/sweeper=optuna"),
    ("train", ["-m", "model=vqgan", "hydra/sweeper=optuna", "model.larning_rate=interval(0,1)"], "model.learning_rate"),
    ("train", ["-m", "model=vqgan", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize"], "monitor_mode=min"),
    ("train", ["-m", "model=vqgan", "hydra/sweeper=optuna", "trainer.monitor=null"], "needs a metric to search by"),
    ("train", ["model=vqgan", "hparams_search=vqgan_optuna"], "put -m before"),
    ("train", ["model=vqgan", "seed=1,2"], "seed has several values: put -m"),
    ("sample", ["-m", "seed=0,1"], "ckpt= is needed"),
    ("train", ["-m", "--cfg", "job"], "one at a time"),
    ("train", ["model=vqgan", "--resolve"], "goes with --cfg"),
    ("train", ["model=vqgan", "--config-name", "trian"], "--config-name trian: there is no such file"),
])
def test_what_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], why: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=why):
        app.prepared(name, words)
    assert not list(tmp_path.iterdir())


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="under torchrun"):
        app.prepared("train", ["-m", "model=vqgan", "seed=0,1"])


def test_of_several_processes_the_first_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.prepared("train", ["model=vqgan"]) == ["model=vqgan"]
    monkeypatch.setenv("RANK", "1")
    assert app.prepared("train", ["model=vqgan"]) == ["model=vqgan", "hydra.output_subdir=null",
                                                      "hydra/job_logging=none"]


def ran(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, *words: str) -> tuple[dict[str, Any], list[str]]:
    """What an app's work is called with."""
    calls: list[tuple[dict[str, Any], list[str]]] = []
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    with pytest.raises(SystemExit) as end:
        main(name, lambda config, overrides: calls.append((config, overrides)))
    assert end.value.code == 0
    return calls[0]


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


HYDRAS = [".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml", "hydra_app.log"]


def test_hydras_files_lie_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, words = ran(monkeypatch, tmp_path, "train", "model=vqgan", "name=a b", "hydra.verbose=true")
    assert files(tmp_path) == [f"runs/a b/{name}" for name in HYDRAS]
    assert config["name"] == "a b" and words == ["model=vqgan", "name=a b"]


@pytest.mark.parametrize(("folder", "runs", "name"), [("else/where", "else", "where"), ("runs/x/y", "runs", "x/y")])
def test_hydra_run_dir_is_the_runs_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, runs: str, name: str
) -> None:
    config, words = ran(monkeypatch, tmp_path, "train", "experiment=quickstart", f"hydra.run.dir={folder}")
    assert (tmp_path / config["paths"]["runs"], config["name"]) == (tmp_path / runs, name)
    assert words[0] == "experiments=quickstart" and words[-1] == f"name={name}"
    assert files(tmp_path) == [f"{folder}/{each}" for each in HYDRAS]


@pytest.mark.parametrize(("name", "words"), [("train", ["model=vqgan", "estimate=true"]), ("prepare", ["data=shapes"])])
def test_nothing_is_left_lying_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str]
) -> None:
    ran(monkeypatch, tmp_path, name, *words)
    assert files(tmp_path) == []


def test_a_prompt_arrives_to_the_letter_through_hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a=1, b.ckpt").touch()
    for prompt in ("a cat's {hat}, 3:30 = $HOME ${x} \\", "???", "naïve 🍎"):
        config, words = ran(monkeypatch, tmp_path, "sample", "ckpt=a=1, b.ckpt", f"prompt={prompt}")
        assert (config["prompt"], config["ckpt"]) == (prompt, "a=1, b.ckpt")
        assert words == ["ckpt=a=1, b.ckpt", f"prompt={prompt}"]


def test_never_moves_the_earlier_run_before_hydra_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran(monkeypatch, tmp_path, "train", "model=vqgan", "seed=1")
    (tmp_path / "runs/vqgan-shapes/config.json").write_text("{}")
    ran(monkeypatch, tmp_path, "train", "model=vqgan", "seed=2", "resume=never")
    (old,) = (tmp_path / "runs").glob("*.old*")
    assert "seed=1" in (old / ".hydra/overrides.yaml").read_text()
    assert "seed=2" in (tmp_path / "runs/vqgan-shapes/.hydra/overrides.yaml").read_text()
