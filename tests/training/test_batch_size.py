"""A batch that was found: the rule, what bounds it, and that a run keeps it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from tests import tiny

from t2i.checkpoint import file_format
from t2i.config.compose import ConfigError, compose
from t2i.models.vqgan import VQGAN
from t2i.training import batch_size, hardware, profiling, train

WORDS = [*tiny.VQGAN, *tiny.DATA, *tiny.TRAINER, *tiny.QUIET, "trainer.max_steps=16", "trainer.val_every_steps=8",
         "trainer.log_every_steps=4", "model.quantizer.warmup_steps=3"]
FREE = 10e9


def config(folder: Path, *words: str) -> dict[str, Any]:
    return compose([*WORDS, f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", "name=x", *words])


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Seconds of a step by the batch, which a test may fill in; 1 GB and 0.1 a picture, of 10 GB that are free."""
    seconds: dict[int, float] = {}

    def measure(config: dict[str, Any], earlier: list[Any]) -> tuple[list[Any], dict[str, float]]:
        size = config["data"]["batch_size"]
        if seconds.get(size) == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        figures = {"memory_gb": 1 + 0.1 * size, "seconds_a_step": seconds.get(size, 1.0)}
        return [("batch", f"{size} pictures", "the config")], figures

    monkeypatch.setattr(profiling, "measure", measure)
    monkeypatch.setattr(batch_size, "LEAST", 1)
    monkeypatch.setattr(hardware, "memory_of", lambda device: ("Fake", FREE))
    return seconds


def test_the_rule() -> None:
    before = compose([*WORDS, *tiny.VQGAN, "model.optimizer=muon", "trainer.max_minutes=3"])
    held, after = json.dumps(before), batch_size.scaled(before, 4)
    assert json.dumps(before) == held
    was, now = before["model"], after["model"]
    assert after["data"]["batch_size"] == 4 * before["data"]["batch_size"] == 32
    assert after["trainer"]["scale_batch_size"] == 4
    for rate in ("learning_rate", "muon_learning_rate"):
        assert now[rate] == 2 * was[rate]
    assert now["discriminator_learning_rate"] is None  # the same
    assert after["trainer"]["max_steps"] == now["max_steps"] == 4 and now["warmup_steps"] == 25
    assert after["trainer"]["val_every_steps"] == 2 and after["trainer"]["log_every_steps"] == 1
    assert now["quantizer"]["warmup_steps"] == 1  # of 3
    same = ("max_minutes", "limit_val_batches", "accumulate_grad_batches", "checkpoint_every_minutes")
    assert [after["trainer"][key] for key in same] == [before["trainer"][key] for key in same]
    gan = compose([*tiny.DFGAN, "model.halve_every=800", "text_encoder.path=x", "trainer.limit_val_batches=0.5"],
                  files=False)
    after = batch_size.scaled(gan, 2)
    assert after["model"]["halve_every"] == 400 and after["model"]["cutmix_steps"] == 5000
    assert after["model"]["discriminator_learning_rate"] == pytest.approx(2**0.5 * 4e-4, rel=1e-4)
    assert after["trainer"]["limit_val_batches"] == 0.5  # a share
    assert after["model"]["penalty_every"] == gan["model"]["penalty_every"]


@pytest.mark.parametrize(("seconds", "pictures", "times", "said"), [
    ({}, 96, 8, "8 images/s at 8, 16 images/s at 16, 32 images/s at 32, 64 images/s at 64; 8 times is the most"),
    ({16: 1.5, 32: 2.9}, 96, 2, "10.7 images/s at 16, 11 images/s at 32; twice as many are not 5% faster"),
    ({}, 40, 4, "32 images/s at 32; the training split has 40"),
    ({32: 0}, 96, 2, "16 images/s at 16; 32 do not fit in memory"),
])
def test_a_batch_is_doubled_as_long_as_that_pays_and_fits(
    tmp_path: Path, machine: dict[int, float], seconds: dict[int, float], pictures: int, times: int, said: str
) -> None:
    machine |= seconds
    found, told = batch_size.find(config(tmp_path), [], pictures)
    assert found == times
    assert told.endswith(said)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("words", "times", "said"), [
    (["data.batch_size=32"], 2, "64 images/s at 64; about 82 fit in memory"),  # (0.92 x 10 - 1) / 0.1
    (["data.batch_size=32", "trainer.accumulate_grad_batches=2"], 4, "128 images/s at 128; about 164 fit in memory"),
    (["data.batch_size=32", "trainer.devices=2"], 4, "128 images/s at 128; about 164 fit in memory"),
    (["data.batch_size=50"], 1, "nothing measured; about 82 fit in memory"),
])
def test_memory_bounds_it(tmp_path: Path, words: list[str], times: int, said: str) -> None:
    assert hardware.batch_that_fits(config(tmp_path), FREE, []) == 82
    found, told = batch_size.find(config(tmp_path, *words), [], None)
    assert found == times and told.endswith(said)


@pytest.mark.usefixtures("machine")
def test_a_short_run_keeps_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_size, "LEAST", 1000)
    told = "16 images/s at 16; 1,000 steps are to be left"
    for steps, times, said in ((3999, 2, told), (4000, 4, "32 images/s at 32; 1,000 steps are to be left")):
        found = batch_size.find(config(tmp_path, f"trainer.max_steps={steps}"), [], None)
        assert found[0] == times and found[1].endswith(said)
    monkeypatch.setattr(profiling, "measure", None)  # nor does it measure then
    assert batch_size.find(config(tmp_path, "trainer.max_steps=1999"), [], None) == (
        1, "nothing measured; 1,000 steps are to be left")


def stopping(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Lets a run be told to stop in the validation at a step."""
    original = VQGAN.validation_step

    def told(self: VQGAN, batch: Any, index: int) -> Any:
        if self.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, index)

    monkeypatch.setattr(VQGAN, "validation_step", told)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return file_format.read(run_dir / "last.ckpt")["state_dict"]


def test_a_run_keeps_what_it_found_and_is_the_run_of_the_same_numbers_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By real steps, of which any rate will do; broken off and continued, it measures no more."""
    typed = ["data.batch_size=16", "model.learning_rate=1.414e-4", "model.muon_learning_rate=0.02828",
             "trainer.max_steps=8", "trainer.val_every_steps=4", "trainer.log_every_steps=2",
             "trainer.checkpoint_every_steps=1", "model.warmup_steps=50", "model.quantizer.warmup_steps=2"]
    train.run(config(tmp_path, *typed, "name=typed"))
    auto = config(tmp_path, "data.batch_size=auto")
    assert auto["data"]["batch_size"] == 8 and auto["trainer"]["scale_batch_size"] == "auto"
    with monkeypatch.context() as patch:
        patch.setattr(batch_size, "MOST", 2)
        patch.setattr(batch_size, "LEAST", 8)
        patch.setattr(batch_size, "GAIN", 0.0)
        stopping(patch, 4)
        with pytest.raises(SystemExit) as stopped:
            train.run(auto)
    assert stopped.value.code == train.STOPPED
    told = capsys.readouterr().out
    for line in ("trainer.scale_batch_size=2 (auto: ", "images/s at 16; 2 times is the most); learning rates x sqrt(2)",
                 "data.batch_size: 8 -> 16", "learning_rate: 0.0001 -> 0.0001414", "max_steps: 16 -> 8"):
        assert line in told
    monkeypatch.delattr(profiling, "measure")  # not needed any more
    held = json.loads((tmp_path / "runs/x/config.json").read_text())
    assert held["data"]["batch_size"] == 16 and held["trainer"]["scale_batch_size"] == 2
    assert train.run(auto)["steps"] == 8
    assert "trainer.scale_batch_size=2 (auto, as found before); " in capsys.readouterr().out
    one, other = weights(tmp_path / "runs/typed"), weights(tmp_path / "runs/x")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert train.run(config(tmp_path, "trainer.scale_batch_size=2"))["steps"] == 8  # the same run: it is finished
    with pytest.raises(ValueError, match=r"another config:(.|\n)*\n  data\.batch_size: 16 -> 8"):
        train.run(config(tmp_path))
    longer = ["name=y", f"resume={tmp_path / 'runs/x/last.ckpt'}", "trainer.max_steps=20"]
    assert train.run(config(tmp_path, "data.batch_size=auto", *longer))["steps"] == 10


def test_processes_that_the_first_one_starts_take_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(profiling, "measure")
    auto = config(tmp_path, "data.batch_size=auto", "trainer.devices=2")
    (tmp_path / "runs/x").mkdir(parents=True)
    (tmp_path / "runs/x/config.json").write_text(json.dumps(batch_size.scaled(auto, 4)))
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    found = batch_size.settled(auto, tmp_path / "runs/x")
    assert found == batch_size.scaled(auto, 4) and capsys.readouterr().out == ""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # torchrun starts all at once
    with pytest.raises(ValueError, match=r"under torchrun and SLURM all processes begin at once.*trainer\.devices=1"):
        batch_size.settled(auto, tmp_path / "runs/x")


def test_an_estimate_is_of_the_batch_that_it_finds(
    tmp_path: Path, machine: dict[int, float], capsys: pytest.CaptureFixture[str]
) -> None:
    machine |= {16: 1.5, 32: 2.9}
    profiling.run(config(tmp_path, "estimate=true", "data.batch_size=auto"), [])
    shown = capsys.readouterr().out
    assert "data.batch_size: 8 -> 16" in shown and "batch  16 pictures" in shown
    assert not list(tmp_path.iterdir())


def test_what_it_can_be() -> None:
    for wrong in ("0", "-1", "1.5", "most"):
        with pytest.raises(ConfigError, match=rf"^trainer\.scale_batch_size={wrong}: .* is needed"):
            compose([*WORDS, f"trainer.scale_batch_size={wrong}"])
