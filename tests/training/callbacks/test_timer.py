"""`trainer.max_minutes`: a run ends by the clock, is finished then, and counts on over a break."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import timer as lightnings_timer
from tests import tiny

from t2i.checkpoint import file_format, renames
from t2i.config.compose import ConfigError, compose
from t2i.training import train
from t2i.training.callbacks.checkpointing import RunCheckpoint
from t2i.training.callbacks.early_stopping import Timer
from t2i.training.callbacks.progress import ProgressBar

CLIP = [*tiny.CLIP, *tiny.DATA, *tiny.TRAINER, *tiny.QUIET, "trainer.checkpoint_every_steps=100"]


def config(folder: Path, name: str, *more: str) -> dict[str, Any]:
    paths = [f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}"]
    return compose([*CLIP, *paths, f"name={name}", "trainer.max_steps=1000", "trainer.max_minutes=0.1", *more])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time in which each batch takes a second, and nothing else any."""
    now = [100.0]

    def start(self: Timer, *given: Any) -> None:
        now[0] += 1

    monkeypatch.setattr(lightnings_timer, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Timer, "on_train_batch_start", start)
    return now


def test_a_run_ends_by_the_clock_validated_and_finished(tmp_path: Path, clock: list[float], capsys: Any) -> None:
    done = train.run(config(tmp_path, "x"))
    run_dir = tmp_path / "runs/x"
    assert done["steps"] == 6
    assert json.loads((run_dir / "finished.json").read_text())["steps"] == 6
    rows = [line.split(",") for line in (run_dir / "metrics.csv").read_text().splitlines()]
    step, value = rows[0].index("step"), rows[0].index("val/loss")
    assert [row[step] for row in rows[1:] if row[value]] == ["4", "6"]  # the last one beside the usual
    held = file_format.read(run_dir / "last.ckpt")
    assert held["global_step"] == 6 and file_format.progress(held, "x") == (6, 0.1)
    assert "The 0.1 minutes of trainer.max_minutes are spent at step 6." in capsys.readouterr().out
    train.run(config(tmp_path, "x"))
    assert "is finished (6 steps)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"trainer\.max_minutes: 0\.1 -> 0\.2"):
        train.run(config(tmp_path, "x", "trainer.max_minutes=0.2"))


def test_a_broken_run_counts_on(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    train.run(config(tmp_path, "whole"))
    original = RunCheckpoint.on_train_batch_end

    def interrupting(self: RunCheckpoint, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(RunCheckpoint, "on_train_batch_end", interrupting)
        with pytest.raises(SystemExit):
            train.run(config(tmp_path, "broken"))
    assert not (tmp_path / "runs/broken/finished.json").exists()
    clock[0] += 1000  # between the two nothing is counted
    spent = file_format.progress(file_format.read(tmp_path / "runs/broken/last.ckpt"), "x")[1] * 60
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: 0.0))
    done = train.run(config(tmp_path, "broken"))
    assert done["steps"] == 6 and spent >= 3 and done["seconds"] == pytest.approx(spent)  # of both sessions
    whole, broken = (file_format.read(tmp_path / f"runs/{name}/last.ckpt")["state_dict"] for name in ("whole",
                                                                                                      "broken"))
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


def test_a_run_broken_off_after_its_last_checkpoint_trains_no_batch_more(tmp_path: Path, clock: list[float]) -> None:
    done = train.run(config(tmp_path, "x"))
    (tmp_path / "runs/x/finished.json").unlink()
    before = (tmp_path / "runs/x/metrics.csv").read_bytes()
    again = train.run(config(tmp_path, "x"))
    assert (again["steps"], again["metrics"]) == (6, done["metrics"])
    assert (tmp_path / "runs/x/metrics.csv").read_bytes() == before


def test_steps_that_are_done_first_end_it_too(tmp_path: Path, clock: list[float]) -> None:
    assert train.run(config(tmp_path, "x", "trainer.max_steps=5"))["steps"] == 5
    assert file_format.progress(file_format.read(tmp_path / "runs/x/last.ckpt"), "x") == (5, 5 / 60)


def test_it_counts_without_a_limit_and_goes_on_with_the_count_of_earlier_versions() -> None:
    free = Timer()
    free.on_train_start(None, None)  # type: ignore[arg-type]
    assert free.time_remaining() is None and free.time_elapsed() > 0
    kept = renames.callback_states({"Minutes": {"seconds": 90.0}})
    limited = Timer(2)
    limited.load_state_dict(kept[limited.state_key])
    assert limited.time_elapsed() == 90 and limited.time_remaining() == 30


def test_the_time_left_is_the_shorter_one() -> None:
    bar, limit = ProgressBar(), Timer(2)
    bar.stream = io.StringIO()
    trainer = SimpleNamespace(max_steps=10**9, global_step=0, default_root_dir="x", callbacks=[limit],
                              callback_metrics={}, is_global_zero=True, train_dataloader=None)
    bar.setup(trainer, None, "fit")  # type: ignore[arg-type]
    bar.on_train_start(trainer)
    assert bar.train_progress_bar.format_dict["left"] == "2:00"
    bar.train_progress_bar.update(10**9 - 1)
    assert bar.train_progress_bar.format_dict["left"] == "0:00"


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_minutes=0: allowed are numbers > 0"):
        Timer(0)
    with pytest.raises(ConfigError, match=r"trainer\.max_minutes=soon"):
        compose([*CLIP, "trainer.max_minutes=soon"])
