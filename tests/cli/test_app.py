"""What the doors do before any of our work begins."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from t2i.cli import app
from t2i.config.compose import ConfigError, compose

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


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scored(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A run that validated three times, and was best at the second."""
    run_dir = Path(config["paths"]["runs"]) / config["name"]
    run_dir.mkdir(parents=True)
    value = config["seed"] + 1.0
    (run_dir / "metrics.csv").write_text(f"step,val/loss,val/psnr\n1,9,{value}\n2,{value},1\n3,8,1\n")
    return {"run_dir": str(run_dir), "steps": 3, "metrics": {"val/loss": 8.0, "val/psnr": 1.0}}


def test_a_sweep_ends_with_its_best_job(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.sweep("train", scored, ["model=vqgan", "seed=3,1,2"]) == 0
    assert ("best: seed=1 (objective 2: val/loss, min) in runs/vqgan-shapes-sweep/seed-1"
            in capsys.readouterr().out.splitlines())
    held = json.loads((alone / "runs/vqgan-shapes-sweep/sweep.json").read_text())
    assert [row["objective"] for row in held["jobs"]] == [4.0, 2.0, 3.0]
    assert held["jobs"][1]["metrics"] == {"val/loss": 8.0, "val/psnr": 1.0}
    more = ["sweep.objective=val/psnr", "sweep.objective_mode=max", "name=other"]
    app.sweep("train", scored, ["model=vqgan", "seed=3,1,2", *more])
    assert "best: seed=3 (objective 4: val/psnr, max)" in capsys.readouterr().out


def test_what_ended_is_kept_when_a_sweep_is_broken_off(alone: Path) -> None:
    def breaking(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
        if config["seed"] == 2:
            raise SystemExit(75)
        return scored(config, overrides)

    with pytest.raises(SystemExit):
        app.sweep("train", breaking, ["model=vqgan", "seed=1,2,3"])
    held = json.loads((alone / "runs/vqgan-shapes-sweep/sweep.json").read_text())
    assert [row["settings"] for row in held["jobs"]] == [{"seed": "1"}]


def test_the_goal_follows_the_monitor_or_is_given() -> None:
    def goal(*words: str) -> Any:
        return app.goal([compose([*one, *words]) for one in (["model=vqgan"], ["model=vqgan", "seed=1"])])

    assert goal() == ("val/loss", "min")
    assert goal("trainer.monitor=val/psnr", "trainer.monitor_mode=max") == ("val/psnr", "max")
    assert goal("trainer.monitor_mode=max", "sweep.objective=val/l1") == ("val/l1", "min")
    assert goal("sweep.objective=val/psnr", "sweep.objective_mode=max") == ("val/psnr", "max")
    assert goal("trainer.monitor=null") is None
    differing = [compose(["model=vqgan", f"trainer.monitor={key}"]) for key in ("val/a", "val/b")]
    with pytest.raises(ConfigError, match=r"val/a \(min\), val/b \(min\); give sweep\.objective="):
        app.goal(differing)


def test_how_a_sweep_runs_is_no_part_of_its_runs(alone: Path) -> None:
    words = ["model=vqgan", "seed=0,1"]
    plain = app.prepare_sweep("train", words)
    assert app.prepare_sweep("train", [*words, "sweep.launcher=joblib", "sweep.jobs=3"]) == plain


@pytest.mark.parametrize(("door", "words", "why"), [
    ("train", ["model=vqgan", "seed=0,1", "sweep.launcher=basic,joblib"], r"sweep\.launcher has several values"),
    ("train", ["model=vqgan", "seed=0,1", "sweep.launcher=slurm"], r"sweep\.launcher=slurm: one of basic, joblib"),
    ("train", ["model=vqgan", "seed=0,1", "sweep.jobs=0"], r"sweep\.jobs=0: .*>= 1 is needed"),
    ("train", ["model=vqgan", "seed=0,1", "sweep.job=2"], r"sweep\.job: there is no such key.*sweep\.jobs"),
    ("train", ["model=vqgan", "seed=0,1", "launcher=joblib"], r"launcher: .*did you mean sweep\.launcher"),
    ("train", ["model=vqgan", "seed=0,1", "trainer.devices=2", "sweep.launcher=joblib"], r"sweep\.launcher=joblib or"),
    ("train", ["experiments=quickstart", "seed=0,1", "sweep.launcher=joblib"], "does not run pipelines"),
    ("train", ["model=vqgan", "seed=0,1", "estimate=true", "sweep.launcher=joblib"], "estimates measure one at a time"),
    ("sample", ["ckpt=x", "seed=0,1", "sweep.launcher=joblib"], r"sample\.py -m runs one job after the other"),
    ("evaluate", ["ckpt=x", "seed=0,1", "sweep.launcher=joblib"], r"evaluate\.py -m runs one job after the other"),
])
def test_what_cannot_be_is_refused_before_anything_runs(alone: Path, door: str, words: list[str], why: str) -> None:
    def never(config: dict[str, Any], overrides: list[str]) -> None:
        pytest.fail("a job was started")

    with pytest.raises(ConfigError, match=why):
        app.sweep(door, never, words)
    assert not list(alone.iterdir())


def test_torchrun_is_refused(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="under torchrun"):
        app.prepare_sweep("train", ["model=vqgan", "seed=0,1", "sweep.launcher=joblib"])


def test_a_launcher_without_m_is_a_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "model=vqgan", "sweep.launcher=joblib"])
    with pytest.raises(SystemExit) as end:
        app.main("train", lambda config, overrides: pytest.fail("it ran"), "")
    assert end.value.code == 2
    assert "sweep.launcher=joblib: sweep. settings say how -m runs its jobs" in capsys.readouterr().err


@pytest.mark.parametrize(("missing", "code"), [({}, 0), ({"kid": "4 pictures"}, 1)])
def test_an_evaluation_without_a_metric_ends_with_code_1(
    monkeypatch: pytest.MonkeyPatch, missing: dict[str, str], code: int
) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "images=."])
    with pytest.raises(SystemExit) as ended:
        app.main("evaluate", lambda config, overrides: {"missing": missing}, "")
    assert ended.value.code == code
