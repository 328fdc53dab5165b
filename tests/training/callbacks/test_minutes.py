"""`trainer.max_minutes`: a run ends by the clock, is finished then, and counts on over a break."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import tiny

from t2i.checkpoint import file_format
from t2i.config.compose import ConfigError, compose
from t2i.training import train
from t2i.training.callbacks import checkpointing
from t2i.training.callbacks.checkpointing import Checkpoints, Minutes
from t2i.training.callbacks.progress import Progress

CLIP = [*tiny.CLIP, *tiny.DATA, *tiny.TRAINER, *tiny.QUIET, "trainer.checkpoint_every_steps=100"]


def config(folder: Path, name: str, *more: str) -> dict[str, Any]:
    paths = [f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}"]
    return compose([*CLIP, *paths, f"name={name}", "trainer.max_steps=1000", "trainer.max_minutes=0.1", *more])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time in which each batch takes a second, and nothing else any."""
    now = [100.0]
    original = Minutes.on_train_batch_start

    def start(self: Minutes, *given: Any) -> None:
        original(self, *given)
        now[0] += 1

    monkeypatch.setattr(checkpointing, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(Minutes, "on_train_batch_start", start)
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
    assert held["global_step"] == 6 and held["callbacks"]["Minutes"] == {"seconds": 6.0}
    assert "The 0.1 minutes of trainer.max_minutes are spent at step 6." in capsys.readouterr().out
    train.run(config(tmp_path, "x"))
    assert "is finished (6 steps)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"trainer\.max_minutes: 0\.1 -> 0\.2"):
        train.run(config(tmp_path, "x", "trainer.max_minutes=0.2"))


def test_a_broken_run_counts_on(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    train.run(config(tmp_path, "whole"))
    original = Checkpoints.on_train_batch_end

    def interrupting(self: Checkpoints, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoints, "on_train_batch_end", interrupting)
        with pytest.raises(SystemExit):
            train.run(config(tmp_path, "broken"))
    assert not (tmp_path / "runs/broken/finished.json").exists()
    clock[0] += 1000  # between the two nothing is counted
    assert train.run(config(tmp_path, "broken"))["steps"] == 6
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
    assert file_format.read(tmp_path / "runs/x/last.ckpt")["callbacks"]["Minutes"] == {"seconds": 5.0}


def test_it_counts_without_a_limit_and_ranks_agree() -> None:
    free = Minutes()
    trainer = SimpleNamespace(should_stop=False, world_size=1, global_step=1, is_global_zero=False)
    free.on_train_batch_start(trainer, None, None, 0)
    free.on_train_batch_end(trainer, None, None, None, 0)
    assert free.left is None and free.seconds > 0 and not trainer.should_stop
    asked = []

    def other_rank_is_over(mine: bool, all: bool) -> bool:
        asked.append((mine, all))
        return True

    trainer.world_size, trainer.strategy = 2, SimpleNamespace(reduce_boolean_decision=other_rank_is_over)
    Minutes(60).on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.should_stop and asked == [(False, False)]


def test_the_time_left_is_the_shorter_one() -> None:
    bar = Progress()
    limit = Minutes(2)
    trainer = SimpleNamespace(max_steps=10**9, global_step=0, default_root_dir="x", callbacks=[limit],
                              callback_metrics={})
    bar.on_train_start(trainer, None)
    assert bar.line is not None
    trainer.global_step = 1
    assert bar.text(trainer, bar.line).endswith("2:00 left")
    bar.started -= 10**-3
    limit.limit = None
    assert not bar.text(trainer, bar.line).endswith("2:00 left")


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_minutes=0: allowed are numbers > 0"):
        Minutes(0)
    with pytest.raises(ConfigError, match=r"trainer\.max_minutes=soon"):
        compose([*CLIP, "trainer.max_minutes=soon"])
