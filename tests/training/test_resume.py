"""What a run goes on with: after any kill as if unbroken, under what its config says, alone in its folder."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.in_child import config, differing, in_child, result, rows

from t2i.checkpoint import atomic, file_format, renames
from t2i.models.vqgan import VQGAN
from t2i.training import resume, train
from t2i.training.callbacks.early_stopping import EarlyStopping

STOP = ("callbacks.early_stopping={_target_: t2i.training.callbacks.early_stopping.EarlyStopping, monitor: val/loss,"
        " patience: 3, min_delta: 1}",
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
    train.run(config(folder, "name=whole"))
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
        train.run(config(tmp_path, "name=x"))

    assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
    done = train.run(config(tmp_path, "name=x"))
    assert not differing(result(whole / "runs/whole"), result(tmp_path / "runs/x"))
    kept = json.loads((whole / "runs/whole/finished.json").read_text())["metrics"]
    assert done["metrics"] == pytest.approx(kept, nan_ok=True)
    assert not list((tmp_path / "runs").rglob(".*"))  # no lock, and nothing half written


def test_told_to_stop_in_a_validation_it_ends_that_and_adds_nothing(tmp_path: Path, whole: Path) -> None:
    def told() -> None:
        in_validation(6, signal.SIGTERM)
        train.run(config(tmp_path, "name=x"))

    assert in_child(told, tmp_path / "log") == train.STOPPED
    assert file_format.read(tmp_path / "runs/x/last.ckpt")["global_step"] == 6
    early = rows(tmp_path / "runs/x")
    assert early == rows(whole / "runs/whole")[: len(early)] and early[-1]["step"] == "6" and "val/loss" in early[-1]
    train.run(config(tmp_path, "name=x"))
    assert not differing(result(whole / "runs/whole"), result(tmp_path / "runs/x"))


def test_early_stopping_counts_on_after_a_kill_and_stops_where_it_would_have(tmp_path: Path) -> None:
    assert train.run(config(tmp_path, "name=whole", *STOP))["steps"] == 8  # validated at 2, and thrice no better

    for name, kill in (("mid", lambda: in_validation(8, signal.SIGKILL)),
                       ("end", lambda: in_writing("finished.json", 1, signal.SIGKILL))):
        def broken(name: str = name, kill: Callable[[], None] = kill) -> None:
            kill()
            train.run(config(tmp_path, f"name={name}", *STOP))

        assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
        assert train.run(config(tmp_path, f"name={name}", *STOP))["steps"] == 8
        assert not differing(result(tmp_path / "runs/whole"), result(tmp_path / f"runs/{name}"))


def test_a_count_of_another_metric_starts_anew() -> None:
    held = EarlyStopping("val/loss", 2)
    held.wait_count = 2
    other, same = EarlyStopping("val/psnr", 2), EarlyStopping("val/loss", 2)
    assert other.state_key != held.state_key == same.state_key
    same.load_state_dict(held.state_dict())
    assert (same.wait_count, same.patience) == (2, 2)
    earlier = renames.callback_states({"EarlyStopping": {"best": 1.5, "since": 1, "monitor": "val/loss"}})
    same.load_state_dict(earlier[same.state_key])
    assert (same.wait_count, float(same.best_score)) == (1, 1.5)


def test_a_monitor_that_is_not_measured_stops_at_the_first_validation(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer\.monitor=val/lozz is not measured at step 2; .*val/loss, .*"
                                         r"trainer\.monitor= one.*The same command goes on from step 2, .*last\.ckpt"):
        train.run(config(tmp_path, "name=x", "trainer.monitor=val/lozz"))
    assert not (tmp_path / "runs/x/crash.ckpt").exists()
    train.run(config(tmp_path, "name=x"))  # as it says
    assert not differing(result(whole / "runs/whole"), result(tmp_path / "runs/x"))


def test_a_monitor_is_missed_at_the_end_where_nothing_validated_before(tmp_path: Path, capsys: Any) -> None:
    train.run(config(tmp_path, "name=x", "trainer.monitor=val/lozz", "trainer.max_steps=1"))
    assert "No best.ckpt: trainer.monitor=val/lozz is not measured at step 1; there was no" in capsys.readouterr().out


def test_what_decides_nothing_may_change_and_a_folder_may_lie_elsewhere(tmp_path: Path, whole: Path) -> None:
    def stopped() -> None:
        in_validation(6, signal.SIGTERM)
        train.run(config(tmp_path, "name=x"))

    in_child(stopped, tmp_path / "log")
    shutil.copytree(tmp_path / "runs/x", tmp_path / "else/where/y")
    train.run(config(tmp_path, f"paths.runs={tmp_path / 'else'}", "name=where/y", "group=g", "logger=none",
                      "data.workers=1", "callbacks=default", "trainer.checkpoint_every_steps=5",
                      "callbacks.ema={_target_: t2i.training.callbacks.ema.EMA, modules: [tokenizer], decay: 0.9}"))
    ours, theirs = (result(place) for place in (whole / "runs/whole", tmp_path / "else/where/y"))
    assert set(differing(ours, theirs)) <= {"rows"}


def test_files_of_the_runs_folder_are_the_same_wherever_that_is() -> None:
    a, b = ({"paths": {"runs": runs, "cache": "c"}, "name": runs, "model": {"path": f"{runs}/t/last.ckpt"}, "seed": 0}
            for runs in ("runs", "/disk/runs"))
    assert resume.decisive(a) == resume.decisive(b) == {"model.path": "<paths.runs>/t/last.ckpt", "seed": 0}
    assert resume.decisive(a) != resume.decisive(a | {"model": {"path": "runs/other/last.ckpt"}})


def test_a_folder_without_a_checkpoint_takes_the_corrected_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accumulate_grad_batches=9"):
        train.run(config(tmp_path, "name=x", "trainer.accumulate_grad_batches=9"), "python train.py wrong")
    run_dir = tmp_path / "runs/x"
    assert {path.name for path in run_dir.iterdir()} == {"config.json", "command.txt"}  # and no crash.ckpt of nothing
    (run_dir / "metrics.csv").write_text("step,epoch\n1,0\n")
    assert train.run(config(tmp_path, "name=x", "trainer.max_steps=2"), "python train.py right")["steps"] == 2
    assert (run_dir / "command.txt").read_text() == "python train.py right\n"
    assert "\n1,0" not in (run_dir / "metrics.csv").read_text()
    with pytest.raises(ValueError, match=r"model\.betas: .*\n.* name=NEW resume=.*x/last\.ckpt;.*resume=never"):
        train.run(config(tmp_path, "name=x", "trainer.max_steps=2", "model.betas=[0.1,0.2]"))


def test_a_longer_run_begins_from_a_finished_one_and_goes_on_with_itself(tmp_path: Path, whole: Path) -> None:
    words = ("name=longer", f"resume={whole / 'runs/whole/last.ckpt'}", "trainer.max_steps=20")

    def broken() -> None:
        in_validation(18, signal.SIGKILL)
        train.run(config(tmp_path, *words))

    assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
    assert file_format.read(tmp_path / "runs/longer/last.ckpt")["global_step"] == 16
    assert in_child(lambda: train.run(config(tmp_path, *words)), tmp_path / "log") == 0
    assert f"Continuing from {tmp_path / 'runs/longer/last.ckpt'}" in (tmp_path / "log").read_text()
    assert [row["step"] for row in rows(tmp_path / "runs/longer")] == ["14", "15", "16", "18", "18", "20"]
    assert (tmp_path / "runs/longer/best.ckpt").is_file()
    assert train.run(config(tmp_path, *words))["steps"] == 20  # finished: said, and not trained again


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("first", [False, True])
def test_a_run_goes_on_where_weights_lie_otherwise_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, first: bool
) -> None:
    """As on a GPU (channels last) after a CPU, and back."""
    words = ("model.discriminator_start=0", f"model.optimizer={optimizer}")
    monkeypatch.setattr(VQGAN, "channels_last", first)
    train.run(config(tmp_path, "name=begun", *words, "trainer.max_steps=4"))
    for then in (False, True):
        monkeypatch.setattr(VQGAN, "channels_last", then)
        train.run(config(tmp_path, f"name={then}", *words, f"resume={tmp_path / 'runs/begun/last.ckpt'}",
                         "trainer.max_steps=8"))
    one, other = (file_format.read(tmp_path / f"runs/{then}/last.ckpt")["state_dict"] for then in (False, True))
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-4, rtol=0, msg=lambda text, n=name: f"{n} {text}")


def test_killed_with_muon_the_same_command_gives_what_an_unbroken_run_gives(tmp_path: Path) -> None:
    words = ("model.optimizer=muon", "trainer.max_steps=8")
    train.run(config(tmp_path, "name=whole", *words))

    def broken() -> None:
        in_validation(6, signal.SIGKILL)
        train.run(config(tmp_path, "name=broken", *words))

    assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
    assert file_format.read(tmp_path / "runs/broken/last.ckpt")["global_step"] == 4
    train.run(config(tmp_path, "name=broken", *words))
    assert differing(result(tmp_path / "runs/whole"), result(tmp_path / "runs/broken")) == []


def test_damaged_checkpoints_are_told(tmp_path: Path, capsys: Any) -> None:
    def stopped() -> None:
        in_validation(8, signal.SIGTERM)
        train.run(config(tmp_path, "name=x"))

    assert in_child(stopped, tmp_path / "log") == train.STOPPED
    run_dir, made = tmp_path / "runs/x", config(tmp_path, "name=x")
    (run_dir / "last.ckpt").write_bytes(b"PK nothing")
    assert resume.open_run(made, run_dir) == run_dir / "previous.ckpt"
    told = capsys.readouterr().out
    assert "last.ckpt" in told and "The checkpoint before it is taken." in told
    resume.begin(run_dir, run_dir / "previous.ckpt", None)
    assert (run_dir / "damaged.ckpt").read_bytes() == b"PK nothing" and not (run_dir / "last.ckpt").exists()
    (run_dir / "damaged.ckpt").rename(run_dir / "last.ckpt")
    (run_dir / "previous.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"resume=must, but .* no readable .*last\.ckpt.*previous\.ckpt is empty"):
        resume.open_run(made | {"resume": "must"}, run_dir)
    assert resume.open_run(made, run_dir) is None
    told = capsys.readouterr().out
    assert "previous.ckpt is empty" in told and "training starts from the beginning (resume=must stops" in told


def limited(size: int) -> None:
    """Files of this process end at `size` bytes, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_a_full_disk_is_told_with_what_is_kept_and_the_same_command_goes_on(tmp_path: Path, whole: Path) -> None:
    def full(step: int) -> None:
        original = VQGAN.training_step

        def filling(self: VQGAN, *given: Any) -> Any:
            if self.global_step == step:
                limited(100_000)
            return original(self, *given)

        VQGAN.training_step = filling  # type: ignore[method-assign]
        train.run(config(tmp_path, "name=x"))

    def at_the_end() -> None:
        original = atomic.write_text

        def filling(path: Path, text: str) -> None:
            if path.name == "finished.json":
                limited(len(text) - 1)
            original(path, text)

        atomic.write_text = filling  # type: ignore[assignment]
        train.run(config(tmp_path, "name=x"))

    for step, kept in ((0, "Nothing was saved yet: the same command begins anew"),
                       (6, r"The same command goes on from step 4, .*/x/last\.ckpt")):
        assert in_child(lambda step=step: full(step), tmp_path / "log") == 2  # type: ignore[misc]
        said = (tmp_path / "log").read_text().strip().splitlines()[-1]
        assert re.fullmatch(rf"error: .*\.ckpt could not be written: File too large\..* Make room .*\. {kept}\.", said)
    assert not (tmp_path / "runs/x/crash.ckpt").exists()
    assert in_child(at_the_end, tmp_path / "log") == 2
    said = (tmp_path / "log").read_text().strip().splitlines()[-1]
    assert "finished.json could not be written: File too large" in said and "goes on from step 13" in said
    train.run(config(tmp_path, "name=x"))
    assert not differing(result(whole / "runs/whole"), result(tmp_path / "runs/x"))


def test_what_went_wrong_is_told_also_where_its_state_cannot_be_kept(tmp_path: Path) -> None:
    def broken() -> None:
        original = VQGAN.training_step

        def breaking(self: VQGAN, *given: Any) -> Any:
            if self.global_step == 1:
                limited(100_000)
                raise RuntimeError("of its own")
            return original(self, *given)

        VQGAN.training_step = breaking  # type: ignore[method-assign]
        train.run(config(tmp_path, "name=x"))

    assert in_child(broken, tmp_path / "log") == 1
    said = (tmp_path / "log").read_text()
    assert "The state of step 1 could not be kept in" in said and "File too large" in said
    assert said.strip().splitlines()[-1] == "RuntimeError: of its own"


def test_a_second_process_is_kept_out_of_a_folder_in_which_one_trains(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs/x"
    with resume.alone_in(run_dir):
        assert in_child(lambda: train.run(config(tmp_path, "name=x")), tmp_path / "log") == 2
        said = (tmp_path / "log").read_text().strip().splitlines()[-1]
        assert re.fullmatch(rf"error: {run_dir} is being trained by process {os.getpid()} on {socket.gethostname()}"
                            r" since [-0-9]+ [:0-9]+: wait for it .*\(name=…\)", said), said
        assert in_child(lambda: train.run(config(tmp_path, "name=y", "trainer.max_steps=1")), tmp_path / "log") == 0
        with pytest.raises(ValueError, match=f"is being trained by process {os.getpid()} on "):
            train.run(config(tmp_path, "name=x"))  # in this very process
    assert not list((tmp_path / "runs").glob(".*"))
    with resume.alone_in(run_dir):
        pass


def test_a_lock_of_another_machine_says_what_to_delete_unless_its_job_was_moved(
    tmp_path: Path, monkeypatch: Any
) -> None:
    lock = tmp_path / ".x.lock"
    held = {"pid": 1, "host": "elsewhere", "since": "2026-11-01 10:00:00", "job": "7"}
    lock.write_text(json.dumps(held))
    with (pytest.raises(ValueError, match=rf"process 1 on elsewhere since 2026-11-01 10:00:00.*delete {lock}"),
          resume.alone_in(tmp_path / "x")):
        pass
    assert json.loads(lock.read_text()) == held
    monkeypatch.setenv("SLURM_JOB_ID", "7")  # the scheduler started it again on this one
    with resume.alone_in(tmp_path / "x"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()


def test_what_killed_processes_left_is_taken_away_and_others_files_stay(tmp_path: Path) -> None:
    gone, living = os.fork(), os.getpid()
    if not gone:
        os._exit(0)
    os.waitpid(gone, 0)
    left = {f".last.ckpt.{gone}.tmp", f".best.ckpt.{living}.tmp", ".previous.tmp", f"grids/.a.png.{gone}.part",
            ".metrics.csv.part", ".hf.abc/model.safetensors", f".evaluation.json.{gone}.tmp"}
    stays = {f".evaluation.json.{living}.tmp", "last.ckpt", "hf/model.safetensors", f"grids/.b.png.{living}.part"}
    for name in left | stays:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    resume.tidy(tmp_path)
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == stays


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"paths": []}', "[" * 100_000])
def test_a_damaged_config_is_named(tmp_path: Path, content: str) -> None:
    made = config(tmp_path, "name=x")
    (tmp_path / "last.ckpt").write_bytes(b"")
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json is damaged .*: delete it, and the run goes on under this"):
        resume.open_run(made, tmp_path)


def test_a_run_with_removed_options_is_told_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "prior"
    folder.mkdir()
    (folder / "last.ckpt").write_bytes(b"")
    model = {"_target_": "t2i.models.prior.Prior", "width": 8, "neighbours": True, "part_heads": "depth"}
    (folder / "config.json").write_text(json.dumps({"paths": {}, "model": model}))
    with pytest.raises(ValueError, match=r"that were removed in this version \(model\.neighbours=True\): name="):
        resume.open_run({"resume": "auto", "paths": {}, "model": model}, folder)
