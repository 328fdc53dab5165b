"""Sweeps: the objective of a run, the table, CSV and JSON, a GPU for each job, and Hydra's launchers and sweepers."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hydra_app import main
from t2i.cli import app, sweep
from t2i.config.compose import ConfigError
from tiny import CLIP, DATA, QUIET, TRAINER

ROOT = Path(__file__).resolve().parents[2]
MEASURED = "step,train/loss,val/loss,val/psnr\n1,9,,\n2,8,0.5,20\n4,7,0.25,30\n6,1,0.75,25\n8,1,nan,inf\n"


def test_the_objective_is_the_best_of_all_validations(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(MEASURED)
    last = {"val/loss": 0.75, "val/psnr": 25.0, "val/other": 1.0}
    assert sweep.objective(tmp_path, last, "val/loss", "min") == 0.25
    assert sweep.objective(tmp_path, last, "val/loss", "max") == 0.75
    assert sweep.objective(tmp_path, last, "val/psnr", "max") == 30
    assert sweep.objective(tmp_path, last, "val/other", "min") is None
    assert sweep.objective(tmp_path / "bare", last, "val/other", "min") == 1.0
    assert sweep.objective(tmp_path / "bare", {}, "val/loss", "min") is None


def ended(i: int, value: float | None, **more: Any) -> dict[str, Any]:
    return {"job": i, "settings": {"model/quantizer": "ema", "seed": str(i)}, "run_dir": f"runs/{i}", "steps": 2,
            "objective": value, "metrics": {"val/loss": 0.5, "train/loss": 1.0}, "error": None,
            "goal": ("val/loss", "min")} | more


def test_the_best_job_is_named() -> None:
    rows = [ended(0, 0.5), ended(1, 0.0123), ended(2, None), ended(3, 3.0)]
    assert sweep.best(rows) == "best: model/quantizer=ema seed=1 (objective 0.0123: val/loss, min) in runs/1"
    assert "seed=3 (objective 3:" in sweep.best([row | {"goal": ("val/loss", "max")} for row in rows])
    assert sweep.best([ended(0, None, goal=("val/fid", "min"))]) == (
        "No objective: val/fid was not measured; there is val/loss")
    assert sweep.best([ended(0, None, run_dir=None, error="x")]) == ""
    assert sweep.best([ended(0, None, goal=None)]) == ""


def test_files_hold_everything(tmp_path: Path) -> None:
    failed = ended(1, None, run_dir=None, metrics={}, error="no such file")
    del failed["steps"]
    for row in (failed, ended(0, 0.25)):  # in whichever order they end
        sweep.keep(tmp_path / "s", row)
    with (tmp_path / "s/sweep.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["model/quantizer", "seed", "objective", "steps", "val/loss", "train/loss", "error"]
    assert first["objective"] == "0.25" and first["error"] == ""
    assert second["seed"] == "1" and second["objective"] == "" and second["error"] == "no such file"
    held = json.loads((tmp_path / "s/sweep.json").read_text())
    assert held == json.loads(json.dumps({"jobs": [ended(0, 0.25), failed]}))
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [".jobs", "sweep.csv", "sweep.json"]


def test_the_table_shows_settings_objective_and_validation() -> None:
    rows = [sweep.flat_row(ended(0, 0.25)), sweep.flat_row(ended(1, None, error="broken"))]
    lines = sweep.table(rows).splitlines()
    assert lines[0].split() == ["model/quantizer", "seed", "objective", "steps", "val/loss", "error"]
    assert lines[1].split() == ["ema", "0", "0.25", "2", "0.5"]
    assert lines[2].split() == ["ema", "1", "2", "0.5", "broken"]


def test_each_process_has_a_gpu_of_its_own(tmp_path: Path) -> None:
    code = (f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n"
            "from pathlib import Path; from t2i.cli import sweep; import os\n"
            f"sweep.take_gpu(Path({str(tmp_path)!r})); print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); input()")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "4,6"}
    jobs = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=environment) for _ in range(2)]
    assert all(job.stdout for job in jobs)
    assert {job.stdout.readline().strip() for job in jobs if job.stdout} == {"4", "6"}
    jobs[0].communicate("\n")  # a process that ends gives its GPU to the next
    third = subprocess.run([sys.executable, "-c", code], input="\n", capture_output=True, text=True, env=environment)
    assert third.stdout.strip() in {"4", "6"}
    jobs[1].communicate("\n")


def scored(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """A run that validated three times, and was best at the second."""
    if config["seed"] == 13:
        raise ConfigError("seed=13: anything else is allowed")
    if config["seed"] == 14:
        raise RuntimeError("out of memory")
    run_dir = Path(config["paths"]["runs"]) / config["name"]
    value = config["seed"] + 1.0
    (run_dir / "metrics.csv").write_text(f"step,val/loss,val/psnr\n1,9,{value}\n2,{value},1\n3,8,1\n")
    (run_dir / "words.txt").write_text("\n".join(overrides))
    return {"run_dir": str(run_dir), "steps": 3, "metrics": {"val/loss": 8.0, "val/psnr": 1.0}}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def swept(monkeypatch: pytest.MonkeyPatch, *words: str, run: app.Run | None = scored) -> int:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    with pytest.raises(SystemExit) as end:
        main("train", run)
    return int(end.value.code or 0)


def test_a_sweep_ends_with_its_best_job(alone: Path, monkeypatch: Any, capsys: Any) -> None:
    assert swept(monkeypatch, "model/quantizer=vq,ema", "seed=3,1", "data.batch_size=4") == 0
    lines = capsys.readouterr().out.splitlines()
    folder = alone / "runs/vqgan-shapes-sweep"
    assert ("best: model/quantizer=vq seed=1 (objective 2: val/loss, min) in"
            " runs/vqgan-shapes-sweep/quantizer-vq_seed-1") in lines
    rows = json.loads((folder / "sweep.json").read_text())["jobs"]
    assert [row["objective"] for row in rows] == [4.0, 2.0, 4.0, 2.0]
    assert rows[1]["settings"] == {"model/quantizer": "vq", "seed": "1"}
    assert (folder / "quantizer-vq_seed-1/.hydra/overrides.yaml").is_file()
    words = (folder / "quantizer-vq_seed-1/words.txt").read_text().split("\n")
    assert words[-2:] == ["name=vqgan-shapes-sweep/quantizer-vq_seed-1", "group=vqgan-shapes-sweep"]


def test_one_job_that_fails_does_not_end_the_others(alone: Path, monkeypatch: Any, capsys: Any) -> None:
    assert swept(monkeypatch, "model=vqgan", "seed=13,14,1", "name=mine") == 1
    shown = capsys.readouterr()
    assert "[job 0] seed=13: error: seed=13: anything else is allowed" in shown.out
    assert "failed: job 0, 1" in shown.out
    rows = json.loads((alone / "runs/mine-sweep/sweep.json").read_text())["jobs"]
    assert [row["error"] for row in rows] == ["seed=13: anything else is allowed", "RuntimeError: out of memory", None]
    assert swept(monkeypatch, "model=vqgan", "name=mine", "seed=2") == 0  # one job
    assert "best: seed=2" not in capsys.readouterr().out  # what has one value is not swept
    assert [row["job"] for row in json.loads((alone / "runs/mine-sweep/sweep.json").read_text())["jobs"]] == [0]


def test_models_of_different_kinds(alone: Path, monkeypatch: Any) -> None:
    assert swept(monkeypatch, "model=vqgan,clip", "model.warmup_steps=7", "trainer.monitor=val/loss") == 0
    assert (alone / "runs/models-sweep/model-clip/words.txt").is_file()


def test_what_ended_is_kept_when_a_sweep_is_broken_off(alone: Path, monkeypatch: Any) -> None:
    def breaking(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
        if config["seed"] == 2:
            raise SystemExit(75)
        return scored(config, overrides)

    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "model=vqgan", "seed=1,2,3"])
    with pytest.raises(SystemExit) as end:
        main("train", breaking)
    assert end.value.code == 75
    held = json.loads((alone / "runs/vqgan-shapes-sweep/sweep.json").read_text())
    assert [row["settings"] for row in held["jobs"]] == [{"seed": "1"}]


@pytest.mark.xdist_group("optuna")  # importing it takes seven seconds
def test_optuna_searches_through_a_file(alone: Path, monkeypatch: Any, capsys: Any) -> None:
    words = ["model=vqgan", "hparams_search=vqgan_optuna", "hydra.sweeper.n_trials=3", "seed=4"]
    assert swept(monkeypatch, *words) == 0
    rows = json.loads((alone / "runs/vqgan-shapes-sweep/sweep.json").read_text())["jobs"]
    assert len(rows) == 3 and {row["objective"] for row in rows} == {5.0}
    assert "model.learning_rate" in rows[0]["settings"] and "seed" not in rows[0]["settings"]
    assert "best: " in capsys.readouterr().out


def test_the_other_apps_have_a_table_too(alone: Path, monkeypatch: Any, capsys: Any) -> None:
    (alone / "a.ckpt").touch()
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "-m", "ckpt=a.ckpt", "seed=1,2"])
    with pytest.raises(SystemExit) as end:
        main("evaluate", lambda config, overrides: {"score": 0.5 * config["seed"]})
    assert not end.value.code
    assert [row["score"] for row in json.loads((alone / "runs/evaluate-sweep/sweep.json").read_text())["jobs"]] == [
        0.5, 1.0]
    assert sorted(path.name for path in alone.iterdir()) == ["a.ckpt", "runs"]


TINY = [*CLIP, *DATA, *TRAINER, *QUIET, "trainer.max_steps=4"]


@pytest.mark.xdist_group("optuna")
def test_optuna_trains(alone: Path, monkeypatch: Any, capsys: Any) -> None:
    words = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "model.learning_rate=interval(0.0001,0.01)"]
    assert swept(monkeypatch, *TINY, *words, run=None) == 0
    rows = json.loads((alone / "runs/clip-shapes-sweep/sweep.json").read_text())["jobs"]
    assert len(rows) == 2 and all(row["steps"] == 4 and row["objective"] is not None for row in rows)
    assert "best: " in capsys.readouterr().out


@pytest.mark.parametrize("launcher", [["joblib", "hydra.launcher.n_jobs=2"], ["submitit_local"]], ids=" ".join)
def test_launchers_run_jobs_in_processes_of_their_own(
    alone: Path, monkeypatch: Any, capfd: Any, launcher: list[str]
) -> None:
    def seen(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:  # sent to them as it is
        folder = Path(config["paths"]["runs"]) / config["name"]
        return {"run_dir": str(folder), "steps": os.getpid(), "metrics": {"val/loss": float(config["seed"])}}

    words = [f"hydra/launcher={launcher[0]}", *launcher[1:]]
    assert swept(monkeypatch, "model=clip", "seed=0,1", *words, run=seen) == 0
    rows = json.loads((alone / "runs/clip-shapes-sweep/sweep.json").read_text())["jobs"]
    assert [row["objective"] for row in rows] == [0, 1] and os.getpid() not in {row["steps"] for row in rows}
    assert "best: seed=0 (objective 0: val/loss, min)" in capfd.readouterr().out


def test_slurm_that_is_not_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"hydra/launcher=submitit_slurm: there is no srun here"):
        app.prepared("train", ["-m", "model=clip", "trainer=cpu", "hydra/launcher=submitit_slurm", "seed=0,1"])
