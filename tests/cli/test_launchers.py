"""Jobs of a sweep in processes of their own: places, logs, failures, stopping, going on; by joblib and by submitit.

Most doors here are small scripts, so that what is tested is the launching and not the minutes of a training.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from t2i.cli import launchers
from t2i.cli.launchers import Job, Outcome
from t2i.config.compose import IGNORED, compose

ROOT = Path(__file__).resolve().parents[2]
# A door: takes name= and what to do, writes what it was given where a run writes its results.
DOOR = """
import json, os, signal, sys, time
from pathlib import Path
words = dict(word.partition("=")[::2] for word in sys.argv[1:])
run_dir = Path(words["runs"]) / words["name"]
print("started", words["name"], "torch" in sys.modules, flush=True)
if words["do"] == "fail":
    print("error: model.width=0: at least 1 is needed", file=sys.stderr)
    sys.exit(2)
if words["do"] == "crash":
    raise RuntimeError("out of memory")
if words["do"] == "wait":
    def stop(number, frame):
        print("stopped and saved", flush=True)
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (run_dir.parent / "waiting").touch()
    time.sleep(60)
run_dir.mkdir(parents=True, exist_ok=True)
seen = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
since = time.time()
time.sleep(float(words.get("seconds", 0)))
result = {"run_dir": str(run_dir), "steps": 2, "metrics": {}, "seen": seen, "from": since, "to": time.time()}
(run_dir / "finished.json").write_text(json.dumps(result))
"""
NEEDS_JOBLIB, NEEDS_SUBMITIT = (
    pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed: pip install -e '.[sweeps]'")
    for name in ("joblib", "submitit"))
SUBMITIT = {"cluster": "local", "minutes": 5, "partition": None, "gpus": 0, "cpus": None, "memory_gb": None}


@pytest.fixture
def door(tmp_path: Path) -> Path:
    path = tmp_path / "door.py"
    path.write_text(DOOR)
    return path


def job(folder: Path, name: str, *words: str) -> Job:
    config = {"paths": {"runs": str(folder / "runs")}, "name": name, "trainer": {"accelerator": "cpu"},
              "resume": "auto"}
    return Job(name, [f"runs={folder / 'runs'}", f"name={name}", *words], config, folder / "logs" / f"{name}.log")


def by_place(found: Iterator[tuple[int, Outcome]]) -> list[Outcome]:
    return [outcome for _, outcome in sorted(found, key=lambda pair: pair[0])]


def test_each_job_has_a_gpu_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(launchers, "cores", lambda: 8)
    assert launchers.places(None, 9, ["4", "6"]) == [
        {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "4"}, {"OMP_NUM_THREADS": "4", "CUDA_VISIBLE_DEVICES": "6"}]
    assert launchers.places(3, 9, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert launchers.places(None, 9, []) == [{"OMP_NUM_THREADS": "4"}] * 2
    assert launchers.places(5, 1, []) == [{"OMP_NUM_THREADS": "8"}]
    assert launchers.places(16, 16, [])[0] == {"OMP_NUM_THREADS": "1"}
    with pytest.raises(ValueError, match=r"sweep\.jobs=3: there are 2 GPUs \(4, 6\).*allowed are 1 to 2"):
        launchers.places(3, 9, ["4", "6"])
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launchers.places(2, 9, []) == [{"OMP_NUM_THREADS": "5"}] * 2


def test_jobs_that_never_use_a_gpu_share_none() -> None:
    assert launchers.visible_gpus(["cpu", "mps"]) == []


@pytest.mark.parametrize("name", ["joblib", "submitit"])
def test_a_missing_library_names_the_extra(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"sweep\.launcher={name} needs {name}: pip install -e '\.\[sweeps\]'"):
        launchers.library(name)
    with pytest.raises(ValueError, match=r"\[sweeps\]"):
        list(launchers.launch([], {"launcher": name}, Path(), Path()))


@NEEDS_JOBLIB
def test_joblib_keeps_the_others_when_one_fails(
    tmp_path: Path, door: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    todo = [job(tmp_path, "a", "do=run"), job(tmp_path, "b", "do=fail"), job(tmp_path, "c", "do=crash"),
            job(tmp_path, "d", "do=run")]
    found = by_place(launchers.with_joblib(todo, door, 2))
    assert found[0]["result"]["run_dir"] == str(tmp_path / "runs/a")
    assert found[3]["result"]["seen"] == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES":
                                          os.environ.get("CUDA_VISIBLE_DEVICES")}
    assert found[1] == {"error": "model.width=0: at least 1 is needed", "log": str(tmp_path / "logs/b.log")}
    assert found[2] == {"error": "RuntimeError: out of memory", "log": str(tmp_path / "logs/c.log")}
    assert (tmp_path / "logs/d.log").read_text() == "started d False\n"
    printed = capfd.readouterr().out
    assert printed == f"joblib: 2 at once, OMP_NUM_THREADS=3 each; logs in {tmp_path / 'logs'}\n"


@NEEDS_JOBLIB
def test_joblib_runs_as_many_at_once_as_asked(tmp_path: Path, door: Path) -> None:
    def most(at_once: int, where: str) -> int:
        todo = [job(tmp_path / where, str(i), "do=run", "seconds=1") for i in range(2)]
        spans = [o["result"] for o in by_place(launchers.with_joblib(todo, door, at_once))]
        return max(sum(s["from"] <= t["from"] < s["to"] for s in spans) for t in spans)

    assert most(1, "one") == 1
    assert most(2, "two") == 2


@NEEDS_JOBLIB
def test_only_this_start_of_a_log_is_read(tmp_path: Path, door: Path) -> None:
    failing = job(tmp_path, "a", "do=fail")
    list(launchers.with_joblib([failing], door, 1))
    again = Job(failing.name, [*failing.words[:2], "do=crash"], failing.config, failing.log)
    assert by_place(launchers.with_joblib([again], door, 1))[0]["error"] == "RuntimeError: out of memory"
    assert failing.log.read_text().count("started a") == 2


def interrupt_when(path: Path) -> threading.Thread:
    def wait() -> None:
        for _ in range(600):
            if path.exists():
                os.kill(os.getpid(), signal.SIGINT)
                return
            time.sleep(0.1)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@NEEDS_JOBLIB
def test_one_ctrl_c_stops_every_job_and_starts_no_other(tmp_path: Path, door: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    thread = interrupt_when(tmp_path / "runs/waiting")
    todo = [job(tmp_path, "a", "do=run"), job(tmp_path, "b", "do=wait"), job(tmp_path, "c", "do=run")]
    found = by_place(launchers.with_joblib(todo, door, 1))
    thread.join()
    assert "result" in found[0]
    assert found[1] == {"stopped": True, "log": str(tmp_path / "logs/b.log")}
    assert "stopped and saved" in (tmp_path / "logs/b.log").read_text()
    assert found[2] == {"stopped": True} and not (tmp_path / "logs/c.log").exists()
    assert signal.getsignal(signal.SIGINT) is before


@NEEDS_JOBLIB
def test_a_job_killed_from_elsewhere_is_an_error(tmp_path: Path) -> None:
    door = tmp_path / "door.py"
    door.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert "exit code -9" in by_place(launchers.with_joblib([job(tmp_path, "a")], door, 1))[0]["error"]


@NEEDS_SUBMITIT
def test_submitit_runs_here_and_keeps_the_others_when_one_fails(tmp_path: Path, door: Path) -> None:
    todo = [job(tmp_path, "a", "do=run"), job(tmp_path, "b", "do=fail"), job(tmp_path, "c", "do=crash")]
    found = by_place(launchers.with_submitit(todo, door, 2, SUBMITIT, tmp_path / "submitit"))
    assert found[0]["result"]["steps"] == 2
    assert found[0]["result"]["seen"]["OMP_NUM_THREADS"] == os.environ["OMP_NUM_THREADS"]
    assert found[0]["result"]["seen"]["CUDA_VISIBLE_DEVICES"] == ""
    assert found[1]["error"] == "model.width=0: at least 1 is needed"
    assert "started b" in Path(found[1]["log"]).read_text()
    assert found[2]["error"] == "RuntimeError: out of memory"
    assert "PYTHONPATH" not in os.environ or str(ROOT / "src") not in os.environ["PYTHONPATH"].split(os.pathsep)


@NEEDS_SUBMITIT
def test_ctrl_c_cancels_what_submitit_runs(tmp_path: Path, door: Path) -> None:
    thread = interrupt_when(tmp_path / "runs/waiting")
    (tmp_path / "runs").mkdir()
    todo = [job(tmp_path, "a", "do=wait"), job(tmp_path, "b", "do=run")]
    found = by_place(launchers.with_submitit(todo, door, 1, SUBMITIT, tmp_path / "submitit"))
    thread.join()
    assert found[0]["stopped"] and found[1] == {"stopped": True}
    assert not (tmp_path / "runs/a/finished.json").exists() and not (tmp_path / "runs/b").exists()


@NEEDS_SUBMITIT
def test_slurm_is_refused_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"sweep\.submitit\.cluster=slurm: .*srun.*Allowed here is local"):
        launchers.executor(SUBMITIT | {"cluster": "slurm"}, tmp_path)


@NEEDS_SUBMITIT
def test_slurm_is_given_the_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = tmp_path / "srun"  # submitit asks whether there is one, and runs nothing before a job is handed over
    srun.write_text("#!/bin/sh\nexit 1\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    settings = {"cluster": "slurm", "minutes": 90, "partition": "big", "gpus": 1, "cpus": 6, "memory_gb": 12}
    made = launchers.executor(settings, tmp_path / "submitit")
    text = made._executor._make_submission_file_text("python job", "0")
    for line in ("--time=90", "--partition=big", "--gpus-per-node=1", "--cpus-per-task=6", "--mem=12GB"):
        assert f"#SBATCH {line}" in text, text
    unset = {"gpus": 0, "cpus": None, "partition": None, "memory_gb": None}
    bare = launchers.executor(settings | unset, tmp_path / "bare")
    text = bare._executor._make_submission_file_text("python job", "0")
    assert not re.search(r"gpus|cpus-per|partition|mem=", text), text


@NEEDS_SUBMITIT
def test_a_preempted_job_is_the_same_command_again(tmp_path: Path) -> None:
    door = launchers.Door("door.py", ("a=1",), {"X": "1"})
    assert door.checkpoint().function == door


@NEEDS_JOBLIB
def test_what_is_finished_is_not_started(tmp_path: Path) -> None:
    config = compose(["model=clip", f"paths.runs={tmp_path}", "name=x", "sweep.launcher=joblib"])
    todo = Job("x", [], config, tmp_path / "x.log")
    assert launchers.finished(todo) is None
    run_dir = tmp_path / "x"
    run_dir.mkdir()
    (run_dir / "config.json").write_text(json.dumps(compose(["model=clip", f"paths.runs={tmp_path}", "name=x"])))
    (run_dir / "finished.json").write_text('{"steps": 2}')
    assert launchers.finished(todo) is None  # without its checkpoint it is nothing
    (run_dir / "last.ckpt").touch()
    assert launchers.finished(todo) == {"steps": 2}  # by another launcher
    options = {"launcher": "joblib", "jobs": None, "submitit": {"folder": None}}
    assert list(launchers.launch([todo], options, tmp_path / "none.py", tmp_path)) == [
        (0, {"result": {"steps": 2}, "before": True})]
    assert launchers.finished(Job("x", [], config | {"resume": "never"}, todo.log)) is None
    assert launchers.finished(Job("x", [], config | {"seed": 1}, todo.log)) is None
    assert "sweep" in IGNORED


@pytest.mark.slow
@pytest.mark.timeout(900)
@NEEDS_JOBLIB
def test_an_interrupted_sweep_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", "model=clip", "model.patch_size=8", "model.width=16",
        "model.num_layers=1", "model.num_heads=2", "model.text_width=16", "model.text_layers=1", "model.text_heads=2",
        "model.embed_dim=8", "data.image_size=32", "data.size=96", "data.val_size=16", "data.batch_size=8",
        "data.workers=0", "trainer=cpu", "trainer.precision=32-true", "trainer.limit_val_batches=1",
        "trainer.val_every_steps=150", "trainer.checkpoint_every_steps=5", "trainer.max_steps=300", "logger=csv",
        f"paths.cache={tmp_path / 'cache'}", f"paths.runs={tmp_path / 'runs'}",
        "seed=0,1", "sweep.launcher=joblib", "sweep.jobs=1"]
    folder = tmp_path / "runs/clip-shapes-sweep"
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    for _ in range(3000):
        if (folder / "seed-0/last.ckpt").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 75, out
    assert "Stopped with 2 of 2 jobs to go" in out
    assert not (folder / "seed-0/finished.json").exists() and not (folder / "seed-1").exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "Continuing from" in (folder / "logs/seed-0.log").read_text()
    held = json.loads((folder / "sweep.json").read_text())
    assert [row["steps"] for row in held["jobs"]] == [300, 300]
    best = min(held["jobs"], key=lambda row: row["objective"])
    assert f"best: seed={best['settings']['seed']} (objective " in again.stdout
