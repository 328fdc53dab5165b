"""The W&B mirror: what its offline run files hold after real trainings, ids over segments, and what may fail."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import struct
import subprocess
import time
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tests import tiny
from tests.in_child import in_child
from wandb.proto import wandb_internal_pb2
from wandb.sdk.launch.sweeps import utils as sweeps

from t2i.checkpoint import file_format
from t2i.config.compose import ROOT, compose
from t2i.training import resume, train, wandb_logger
from t2i.training.callbacks.checkpointing import RunCheckpoint
from t2i.training.wandb_logger import WandbLogger, has_key, last_step
from t2i.version import code_version

TINY = [*tiny.VQGAN, *tiny.DATA, *tiny.TRAINER, "trainer.max_steps=8", "trainer.log_every_steps=1",
        "callbacks.plots=null", "callbacks.progress=null"]
TINY_CODES = [word for word in TINY if word.startswith("model.quantizer.")]
KEY = "0123456789" * 4  # has the form of one


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: Any, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setattr(wandb_logger, "_claimed", {})


def opened(run_dir: Path, name: str) -> WandbLogger:
    log = WandbLogger()
    log.begin(run_dir, {"name": name, "group": None})
    return log


def config(folder: Path, *more: str) -> dict[str, Any]:
    return compose([*TINY, f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", *more])


def records(path: Path) -> Iterator[Any]:
    """The records of a `.wandb` file: LevelDB's log format (blocks of 32 KiB, records whole or in pieces) after a
    header of seven bytes, which belongs to the first block."""
    content, at, piece = path.read_bytes(), 7, b""
    assert content[:4] in (b":W&B", b"")
    while at + 7 <= len(content):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        if at + 7 + length > len(content):  # still being written
            return
        piece += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            piece = b""
            yield record


def values(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


class Segment:
    """What one offline run file says."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.axes: dict[str, str] = {}
        self.files: dict[str, dict[str, Path]] = {}  # table -> its files by path
        self.models: dict[str, dict[str, Path]] = {}  # artifact of checkpoints -> its files by path
        self.exit: int | None = None
        (path,) = folder.glob("*.wandb")
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.run, self.config = record.run, values(record.run.config.update)
            elif kind == "history":
                self.rows.append(values(record.history.item))
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "metric":
                self.axes[record.metric.glob_name or record.metric.name] = record.metric.step_metric
            elif kind == "artifact" and record.artifact.type == "run_table":
                held = {item.path: Path(item.local_path) for item in record.artifact.manifest.contents}
                (path,) = [path for path in held if path.endswith(".table.json")]
                self.files[path.removesuffix(".table.json")] = held
            elif kind == "artifact" and record.artifact.type == "model":
                held = {item.path: Path(item.local_path) for item in record.artifact.manifest.contents}
                self.models[record.artifact.name] = held
            elif kind == "exit":
                self.exit = record.exit.exit_code

    def table(self, name: str) -> dict[str, Any]:
        """The last table logged under this name, its pictures opened."""
        files = self.files[name]
        assert all(path.is_relative_to(self.folder.parent) for path in files.values())  # the run folder can be moved
        held = json.loads(files[f"{name}.table.json"].read_text())
        held["data"] = [[Image.open(files[cell["path"]]) if isinstance(cell, dict) else cell for cell in row]
                        for row in held["data"]]
        return held

    def column(self, name: str) -> list[tuple[int, Any]]:
        return [(row["step"], row[name]) for row in self.rows if name in row]


def segments(run_dir: Path) -> list[Segment]:
    """The segments of a run, by their ids; wandb may still be writing when `finish` returns."""
    found = []
    for folder in (run_dir / "wandb").glob("offline-run-*"):
        until = time.monotonic() + 30
        while (segment := Segment(folder)).exit is None:
            assert time.monotonic() < until, f"{folder} was not written to its end"
            time.sleep(0.1)
        found.append(segment)
    return sorted(found, key=lambda segment: (len(segment.run.run_id), segment.run.run_id))


def csv_columns(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    with open(run_dir / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [(int(row["step"]), float(row[name])) for row in rows if row[name] != ""]
            for name in rows[0] if name != "step"}


@pytest.mark.slow
def test_a_stopped_and_continued_training_as_wandb_reads_it(tmp_path: Path, monkeypatch: Any) -> None:
    settings = config(tmp_path, "name=x", "group=g", "logger=wandb", "logger.wandb.log_model=true")
    original = RunCheckpoint.on_train_batch_end

    def interrupting(self: RunCheckpoint, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(RunCheckpoint, "on_train_batch_end", interrupting)
        with pytest.raises(SystemExit):
            train.run(settings)
    run_dir = tmp_path / "runs/x"
    stopped = file_format.file_hash(run_dir / "last.ckpt")
    train.run(settings)
    first, second = segments(run_dir)

    kept = json.loads((run_dir / "wandb.json").read_text())
    assert [first.run.run_id, second.run.run_id] == [kept["id"], f"{kept['id']}-2"]
    assert kept["segments"] == 2 and kept["online"] is None
    assert {(s.run.run_group, s.run.display_name, s.run.project) for s in (first, second)} == {("g", "x", "t2i")}

    for segment in (first, second):
        assert segment.axes == {"step": "", "*": "step"}
        assert all("step" in row for row in segment.rows)
        assert not {name for row in segment.rows for name in row if "global_step" in name}
        held = {name: value for name, value in segment.config.items() if name not in ("_wandb", "code")}
        assert held == json.loads(json.dumps(settings))  # nested as it was composed
        assert segment.config["code"] == code_version() and segment.config["code"]["torch"] == torch.__version__

    expected = csv_columns(run_dir)
    assert {"val/loss", "val/loss/pixel"} <= set(expected) and any(name.startswith("train/") for name in expected)
    both = {name: first.column(name) + second.column(name) for name in expected}
    assert {name: column[-1] for name, column in both.items()} == {n: c[-1] for n, c in expected.items()}
    assert both == expected  # nothing lost, nothing double

    for segment, steps in ((first, [4]), (second, [8])):
        assert set(steps) <= {step for step, _ in segment.column("reconstructions.path")}
        for _, path in segment.column("reconstructions.path"):
            assert Image.open(segment.folder / "files" / path).size[0] > 100
        assert set(steps) <= {step for step, _ in segment.column("tables/reconstructions._type")}
        table = segment.table("tables/reconstructions")
        assert table["columns"] == ["caption", "input", "reconstruction"] and len(table["data"]) == 8
        assert all(isinstance(row[0], str) and row[0] for row in table["data"])
        assert all(picture.size == (32, 32) for row in table["data"] for picture in row[1:])
        assert segment.exit == 0

    assert first.summary["checkpoint/last"] == stopped
    for segment in (first, second):  # each has the checkpoints of its own end, whatever replaced them later
        (files,) = segment.models.values()
        assert list(segment.models) == [f"model-{segment.run.run_id}"] and files.keys() >= {"last.ckpt"}
        assert all(path.is_relative_to(run_dir) for path in files.values())
        for name, path in files.items():
            assert file_format.file_hash(path) == segment.summary[f"checkpoint/{name.removesuffix('.ckpt')}"]
    for name in ("last", "best"):
        assert second.summary[f"checkpoint/{name}"] == file_format.file_hash(run_dir / f"{name}.ckpt")


@pytest.mark.slow
def test_a_broken_wandb_leaves_the_training_finished(tmp_path: Path, monkeypatch: Any) -> None:
    run_dir = tmp_path / "runs/folder"
    run_dir.mkdir(parents=True)
    (run_dir / "wandb").write_text("in the way")
    with pytest.warns(UserWarning, match="W&B is off from here on .NotADirectoryError"):
        assert train.run(config(tmp_path, "name=folder", "logger=wandb"))["steps"] == 8

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_logger, "PATIENCE", 3)
    with pytest.warns(UserWarning, match="W&B cannot be used online .CommError: .*logged offline") as told:
        assert train.run(config(tmp_path, "name=server", "logger=wandb"))["steps"] == 8
    assert sum("W&B" in str(warning.message) for warning in told) == 1
    (segment,) = segments(tmp_path / "runs/server")
    assert segment.column("val/loss") == csv_columns(tmp_path / "runs/server")["val/loss"]


def test_an_error_in_training_marks_the_run_failed(tmp_path: Path) -> None:
    log = opened(tmp_path, "run")
    log.log_metrics({"loss": 1.0}, 0)
    log.finish(failed=True)
    (segment,) = segments(tmp_path)
    assert segment.exit == 1 and segment.run.run_group == "run"


@pytest.mark.slow
def test_a_silent_server_holds_nothing_up_for_long(tmp_path: Path, monkeypatch: Any) -> None:
    """It takes connections and never answers: it is waited for as long as PATIENCE says, and some seconds more."""
    assert wandb_logger.PATIENCE <= 15
    monkeypatch.setattr(wandb_logger, "PATIENCE", 2)
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        log = opened(tmp_path, "run")
        started = time.monotonic()
        with pytest.warns(UserWarning, match="logged offline"):
            log.log_metrics({"loss": 1.0}, 0)
        log.finish()
        assert time.monotonic() - started < 30
    assert [segment.column("loss") for segment in segments(tmp_path)] == [[(1, 1.0)]]


def test_a_key_of_the_wrong_form_is_told_and_the_run_goes_on_offline(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    log = opened(tmp_path, "run")
    with pytest.warns(UserWarning, match="AuthenticationError"):
        log.log_metrics({"loss": 1.0}, 0)
    log.finish()
    assert len(segments(tmp_path)) == 1


def test_a_failing_mirror_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    log = opened(tmp_path / "file/run", "run")
    with pytest.warns(UserWarning, match=r"W&B is off from here on .NotADirectoryError"):
        log.log_metrics({"loss": 1.0}, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.log_metrics({"loss": 1.0}, 1)
        log.log_image("grid", Image.new("RGB", (2, 3)), 1)
        log.finish()


def test_a_table_of_one_picture_a_row_and_pictures_as_bytes(tmp_path: Path) -> None:
    log = opened(tmp_path, "run")
    log.log_table("tensors", {"images": torch.ones(2, 3, 4, 5), "captions": ["a", "b"]}, 3)
    log.log_table("arrays", {"images": np.zeros((1, 4, 5, 3), np.uint8), "captions": None}, 3)
    log.finish()
    (segment,) = segments(tmp_path)
    assert segment.column("tables/tensors._type") == [(3, "table-file")]
    tensors, arrays = segment.table("tables/tensors"), segment.table("tables/arrays")
    assert tensors["columns"] == arrays["columns"] == ["caption", "picture"]
    assert [row[0] for row in tensors["data"]] == ["a", "b"] and [row[0] for row in arrays["data"]] == [""]
    white, black = (np.asarray(table["data"][0][1]) for table in (tensors, arrays))
    assert white.shape == (4, 5, 3) and white.min() == 255 and black.max() == 0


def test_steps_that_the_server_has_are_not_sent_again(tmp_path: Path) -> None:
    log = opened(tmp_path, "run")
    assert log.experiment.id == log.version
    log.sent = last_step({"step": 4, "loss": 1.0})  # what a resumed run's summary holds
    for step in range(2, 7):
        log.log_metrics({"loss": float(step)}, step - 1)
    log.finish()
    (segment,) = segments(tmp_path)
    assert segment.column("loss") == [(5, 5.0), (6, 6.0)]
    assert last_step({}) == 0


def test_ids_of_segments_online_and_offline(tmp_path: Path) -> None:
    """Online one id goes on; whatever offline run there was, no id is given twice."""

    def given(*modes: str) -> list[str]:
        folder = tmp_path / "-".join(modes)
        folder.mkdir()
        found = []
        for mode in modes:
            wanted, kept = opened(folder, "run")._segment(mode == "on")
            (folder / "wandb.json").write_text(json.dumps(kept))
            found.append(wanted.replace(kept["id"], "id"))
        return found

    assert given("on", "on", "on") == ["id", "id", "id"]
    assert given("off", "off", "off") == ["id", "id-2", "id-3"]
    assert given("on", "off", "on", "off") == ["id", "id-2", "id", "id-3"]
    assert given("off", "on", "on") == ["id", "id-2", "id-2"]


def test_the_environments_run_id_is_used_by_one_run(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "handed")
    for name, wanted in (("a", "handed"), ("a", "handed-2")):
        log = opened(tmp_path / name, name)
        log.log_metrics({"loss": 1.0}, 0)
        assert log.version == wanted
        log.finish()
    other = opened(tmp_path / "b", "b")
    other.log_metrics({"loss": 1.0}, 0)
    assert other.version not in ("", "handed")
    other.finish()
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    third = opened(tmp_path / "c", "c")
    with pytest.warns(UserWarning, match="a job of a W&B sweep is one run"):
        third.log_metrics({"loss": 1.0}, 0)


def test_inside_a_sweep_the_agents_id_is_kept_when_the_server_is_gone(tmp_path: Path) -> None:
    """In a process of its own, as an agent starts one: wandb reads the sweep's variables once."""

    def job() -> None:
        os.environ |= {"WANDB_RUN_ID": "agents", "WANDB_SWEEP_ID": "sweep", "WANDB_API_KEY": KEY,
                       "WANDB_BASE_URL": "http://127.0.0.1:9"}
        wandb_logger.PATIENCE = 2
        log = WandbLogger()
        log.begin(tmp_path, {"name": "run", "group": None})
        log.log_metrics({"a": 1.0}, 0)
        log.finish()

    assert in_child(job, tmp_path / "log") == 0, (tmp_path / "log").read_text()
    (segment,) = segments(tmp_path)
    assert segment.run.run_id == "agents" and segment.column("a") == [(1, 1.0)]


def test_every_job_of_the_sweep_file_composes_in_a_folder_of_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    """The command line is made by wandb itself, as its agent does."""
    sweep = yaml.safe_load((ROOT / "sweeps/quantizers.yaml").read_text())
    assert sweep["program"] == "train.py" and (ROOT / sweep["program"]).is_file()
    swept = sweep["parameters"]
    names = set()
    for i, chosen in enumerate(product(*(parameter["values"] for parameter in swept.values()))):
        command = sweeps.create_sweep_command(sweep["command"])  # as the agent does: before the job's id is set
        monkeypatch.setenv("WANDB_RUN_ID", f"run{i}")
        job = {"args": {key: {"value": value} for key, value in zip(swept, chosen, strict=True)}}
        words = sweeps.create_sweep_command_args(job)["args_no_hyphens"]
        line = [part for word in command for part in (words if word == "${args_no_hyphens}" else [word])]
        overrides = line[line.index("${program}") + 1 :]
        made = compose([*overrides, f"paths.runs={tmp_path}"])
        assert (made["model"]["quantizer"]["_target_"].split(".")[2], made["seed"]) == chosen
        assert "wandb" in made["logger"] and made["group"] == "quantizers"
        names.add(made["name"])
        resume.open_run(made, tmp_path / made["name"])
    assert names == {f"quantizers/run{i}" for i in range(9)}


SWEEP = yaml.safe_load((ROOT / "sweeps/quantizers.yaml").read_text())


@pytest.mark.parametrize("quantizer", SWEEP["parameters"]["model/quantizer"]["values"])
def test_every_choice_of_the_sweep_trains_and_logs_its_metric(tmp_path: Path, quantizer: str) -> None:
    sizes = ["model.quantizer.levels=[4,4]"] if quantizer == "fsq" else TINY_CODES
    words = [*(word for word in TINY if word not in TINY_CODES), f"model/quantizer={quantizer}", *sizes]
    result = train.run(compose([*words, "name=x", "logger=none", "trainer.max_steps=4", f"paths.runs={tmp_path}"]))
    assert SWEEP["metric"]["name"] in result["metrics"]


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_the_codes_version_names_commit_and_changes(tmp_path: Path) -> None:
    assert code_version(tmp_path)["commit"] is None and code_version(tmp_path)["changed"] is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-q", "-m", "first")
    (tmp_path / "notes.txt").write_text("of no matter")
    found = code_version(tmp_path)
    assert len(found["commit"]) == 40 and found["changed"] is False
    (tmp_path / "a.py").write_text("2")
    assert code_version(tmp_path) == {**found, "changed": True}
    assert found["t2i"] == "0.1.0" and found["torch"] == torch.__version__


def test_key_from_environment_or_netrc(tmp_path: Path, monkeypatch: Any) -> None:
    assert not has_key()
    (tmp_path / "no-netrc").write_text("machine api.wandb.ai login user password none\n")
    assert has_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert not has_key()
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert has_key()
