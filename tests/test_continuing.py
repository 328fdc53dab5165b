"""What a run goes on with: after any kill as if unbroken, under what its config says, alone in its folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign.interruptions import config, differing, in_child, result

from t2i import checkpoint, engine, loggers, run_lock
from t2i.callbacks import EarlyStopping
from t2i.guards import Checkpoints
from t2i.models.vqgan import VQGAN

STOP = ("callbacks.early_stopping={_target_: t2i.callbacks.EarlyStopping, monitor: val/loss, patience: 3, least: 1}",
        "trainer.max_steps=100")


def strike(which: int) -> None:
    os.kill(os.getpid(), which)


def in_validation(step: int, which: int) -> None:
    original = VQGAN.validation_step

    def struck(self: VQGAN, batch: Any, index: int) -> Any:
        if self.global_step == step and index == 0:
            strike(which)
        return original(self, batch, index)

    VQGAN.validation_step = struck  # type: ignore[method-assign]


def in_writing(name: str, times: int, which: int) -> None:
    """As the so-many-th file of that name is about to take its place."""
    original, seen = os.replace, [0]

    def struck(source: Any, target: Any) -> None:
        seen[0] += Path(target).name == name
        if seen[0] == times and Path(target).name == name:
            strike(which)
        original(source, target)

    os.replace = struck  # type: ignore[assignment]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    engine.run(config(folder, "name=whole"))
    return folder


# Of 13 steps: validated every 2, checkpoints at 4, 8, 12 and 13.
KILLS: dict[str, Callable[[], None]] = {
    "in the validation of a checkpoint's step": lambda: in_validation(8, signal.SIGKILL),
    "in another validation": lambda: in_validation(10, signal.SIGKILL),
    "before best.ckpt has its place": lambda: in_writing("best.ckpt", 2, signal.SIGKILL),
    "between best.ckpt and last.ckpt": lambda: in_writing("previous.ckpt", 1, signal.SIGKILL),
    "before last.ckpt has its place, at an epoch's end": lambda: in_writing("last.ckpt", 3, signal.SIGKILL),
    "before it is said to be finished": lambda: in_writing("finished.json", 1, signal.SIGKILL),
}


@pytest.mark.parametrize("when", KILLS)
def test_killed_at_any_moment_the_same_command_gives_what_an_unbroken_run_gives(
    tmp_path: Path, whole: Path, when: str
) -> None:
    def broken() -> None:
        KILLS[when]()
        engine.run(config(tmp_path, "name=x"))

    assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
    done = engine.run(config(tmp_path, "name=x"))
    assert not differing(result(whole / "runs/whole"), result(tmp_path / "runs/x"))
    kept = json.loads((whole / "runs/whole/finished.json").read_text())["metrics"]
    assert done["metrics"] == pytest.approx(kept, nan_ok=True)
    assert not list((tmp_path / "runs").rglob(".*"))  # no lock, and nothing half written


def test_told_to_stop_in_a_validation_it_ends_that_and_adds_nothing(tmp_path: Path, whole: Path) -> None:
    def told() -> None:
        in_validation(6, signal.SIGTERM)
        engine.run(config(tmp_path, "name=x"))

    assert in_child(told, tmp_path / "log") == engine.STOPPED
    assert checkpoint.read(tmp_path / "runs/x/last.ckpt")["global_step"] == 6
    rows = (tmp_path / "runs/x/metrics.csv").read_text().splitlines()
    assert rows == (whole / "runs/whole/metrics.csv").read_text().splitlines()[: len(rows)]
    assert rows[-1].startswith("6,")
    engine.run(config(tmp_path, "name=x"))
    assert not differing(result(whole / "runs/whole"), result(tmp_path / "runs/x"))


def test_early_stopping_counts_on_after_a_kill_and_stops_where_it_would_have(tmp_path: Path) -> None:
    assert engine.run(config(tmp_path, "name=whole", *STOP))["steps"] == 8  # validated at 2, and thrice no better

    for name, kill in (("mid", lambda: in_validation(8, signal.SIGKILL)),
                       ("end", lambda: in_writing("finished.json", 1, signal.SIGKILL))):
        def broken(name: str = name, kill: Callable[[], None] = kill) -> None:
            kill()
            engine.run(config(tmp_path, f"name={name}", *STOP))

        assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
        assert engine.run(config(tmp_path, f"name={name}", *STOP))["steps"] == 8
        assert not differing(result(tmp_path / "runs/whole"), result(tmp_path / f"runs/{name}"))


def test_a_count_of_another_metric_starts_anew() -> None:
    held = EarlyStopping("val/loss", 2)
    held.since = 2
    other, same = EarlyStopping("val/psnr", 2), EarlyStopping("val/loss", 2)
    other.load_state_dict(held.state_dict())
    same.load_state_dict(held.state_dict())
    assert (other.since, same.since) == (0, 2)


def test_a_monitor_that_is_not_measured_stops_at_the_first_validation(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.monitor=val/lozz is not measured at step 2; .*val/loss, .*"
                                         r"last\.ckpt holds step 2; the same command with another trainer\.monitor="):
        engine.run(config(tmp_path, "name=x", "trainer.monitor=val/lozz"))
    assert not (tmp_path / "runs/x/crash.ckpt").exists()
    engine.run(config(tmp_path, "name=x"))  # as it says
    assert not differing(result(whole / "runs/whole"), result(tmp_path / "runs/x"))


def test_a_monitor_is_missed_at_the_end_where_nothing_validated_before(tmp_path: Path, capsys: Any) -> None:
    engine.run(config(tmp_path, "name=x", "trainer.monitor=val/lozz", "trainer.max_steps=1"))
    assert "No best.ckpt: trainer.monitor=val/lozz is not measured at step 1; there was no" in capsys.readouterr().out


def test_what_decides_nothing_may_change_and_a_folder_may_lie_elsewhere(tmp_path: Path, whole: Path) -> None:
    def stopped() -> None:
        in_validation(6, signal.SIGTERM)
        engine.run(config(tmp_path, "name=x"))

    in_child(stopped, tmp_path / "log")
    shutil.copytree(tmp_path / "runs/x", tmp_path / "else/where/y")
    engine.run(config(tmp_path, f"paths.runs={tmp_path / 'else'}", "name=where/y", "group=g", "logger=none",
                      "data.workers=1", "callbacks=default", "trainer.checkpoint_every_steps=5",
                      "callbacks.ema={_target_: t2i.callbacks.EMA, modules: [tokenizer], decay: 0.9}"))
    ours, theirs = (result(place) for place in (whole / "runs/whole", tmp_path / "else/where/y"))
    assert set(differing(ours, theirs)) <= {"rows"}


def test_files_of_the_runs_folder_are_the_same_wherever_that_is() -> None:
    a, b = ({"paths": {"runs": runs, "cache": "c"}, "name": runs, "model": {"path": f"{runs}/t/last.ckpt"}, "seed": 0}
            for runs in ("runs", "/disk/runs"))
    assert engine.decisive(a) == engine.decisive(b) == {"model.path": "<paths.runs>/t/last.ckpt", "seed": 0}
    assert engine.decisive(a) != engine.decisive(a | {"model": {"path": "runs/other/last.ckpt"}})


def test_a_folder_without_a_checkpoint_takes_the_corrected_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accumulate=9"):
        engine.run(config(tmp_path, "name=x", "trainer.accumulate=9"), "python train.py wrong")
    run_dir = tmp_path / "runs/x"
    assert {path.name for path in run_dir.iterdir()} == {"config.json", "command.txt"}  # and no crash.ckpt of nothing
    (run_dir / "metrics.csv").write_text("step,epoch\n1,0\n")
    assert engine.run(config(tmp_path, "name=x", "trainer.max_steps=2"), "python train.py right")["steps"] == 2
    assert (run_dir / "command.txt").read_text() == "python train.py right\n"
    assert "\n1,0" not in (run_dir / "metrics.csv").read_text()
    with pytest.raises(ValueError, match=r"model\.betas: .*\n.* name=NEW resume=.*x/last\.ckpt;.*resume=never"):
        engine.run(config(tmp_path, "name=x", "trainer.max_steps=2", "model.betas=[0.1,0.2]"))


def test_a_longer_run_begins_from_a_finished_one_and_goes_on_with_itself(tmp_path: Path, whole: Path) -> None:
    words = ("name=longer", f"resume={whole / 'runs/whole/last.ckpt'}", "trainer.max_steps=20")

    def broken() -> None:
        in_validation(18, signal.SIGKILL)
        engine.run(config(tmp_path, *words))

    assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
    assert checkpoint.read(tmp_path / "runs/longer/last.ckpt")["global_step"] == 16
    assert in_child(lambda: engine.run(config(tmp_path, *words)), tmp_path / "log") == 0
    assert f"Continuing from {tmp_path / 'runs/longer/last.ckpt'}" in (tmp_path / "log").read_text()
    rows = (tmp_path / "runs/longer/metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["14", "15", "16", "18", "18", "20"]
    assert (tmp_path / "runs/longer/best.ckpt").is_file()
    assert engine.run(config(tmp_path, *words))["steps"] == 20  # finished: said, and not trained again


def test_damaged_checkpoints_are_told(tmp_path: Path, capsys: Any) -> None:
    def stopped() -> None:
        in_validation(8, signal.SIGTERM)
        engine.run(config(tmp_path, "name=x"))

    assert in_child(stopped, tmp_path / "log") == engine.STOPPED
    run_dir, made = tmp_path / "runs/x", config(tmp_path, "name=x")
    (run_dir / "last.ckpt").write_bytes(b"PK nothing")
    assert engine.open_run(made, run_dir) == run_dir / "previous.ckpt"
    told = capsys.readouterr().out
    assert "last.ckpt" in told and "The checkpoint before it is taken." in told
    (run_dir / "previous.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"resume=must, but .* no readable .*last\.ckpt.*previous\.ckpt is empty"):
        engine.open_run(made | {"resume": "must"}, run_dir)
    assert engine.open_run(made, run_dir) is None
    told = capsys.readouterr().out
    assert "previous.ckpt is empty" in told and "training starts from the beginning (resume=must stops" in told
