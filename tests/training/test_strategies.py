"""Several processes against one: the same global batches, losses, metrics, caches and weights, past logs, validations,
checkpoints and a kill. `tests/campaign/two_processes.py` has it longer, and by `train.py`."""

from __future__ import annotations

import hashlib
import math
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pytorch_lightning.plugins.environments import LightningEnvironment

from campaign.two_processes import (
    FORK,
    MODELS,
    SINCE_VALIDATION,
    apart,
    command,
    lines,
    run,
    run_broken,
    start,
)
from t2i.checkpoint import building, file_format
from t2i.config.compose import ConfigError, compose
from t2i.models.base import NonFiniteLoss, NonFiniteLossOnOtherRank, check_finite
from t2i.models.prior import Prior
from t2i.training.strategies import Launcher, Replicated, lost, strategy

SHORTER = ["trainer.max_steps=18", "trainer.val_every_steps=10", "trainer.checkpoint_every_steps=6",
           "trainer.log_every_steps=8", "callbacks.pictures=null"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the others need, by one process."""
    folder = tmp_path_factory.mktemp("alone")
    for model in ("clip", "vqgan"):
        run(1, command(folder, model, 1, "cpu", *SHORTER), folder / f"{model}.log")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [*MODELS, "prior-fsdp"])
def test_two_ranks_killed_and_continued_train_as_one(alone: Path, kind: str) -> None:
    model, trainer = kind.removesuffix("-fsdp"), "fsdp" if kind.endswith("-fsdp") else "ddp"
    one, two = alone / model, alone / f"{model}-{trainer}"
    if not one.is_dir():
        run(1, command(alone, model, 1, "cpu", *SHORTER), alone / f"{model}.log")
    words = command(alone, model, 2, trainer, *SHORTER, f"name={two.name}", f"paths.cache={alone / 'other'}")
    run_broken(2, words, two, alone / f"{two.name}.log", torchrun=model == "vqgan")
    # Adam makes much of gradients that are nought but for rounding, most without momentum.
    assert apart(one, two, *SINCE_VALIDATION) < (1e-3 if model in ("dfgan", "stackgan1") else 1e-5)
    if model in ("vqgan", "prior"):
        a, b = (file_format.read(folder / "last.ckpt")["state_dict"] for folder in (one, two))
        assert max(float((a[name].float() - b[name].float()).abs().max()) for name in a) < 1e-5
    if model == "prior":
        hashes = [sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in (alone / name).glob("*/*/codes.npy"))
                  for name in ("cache", "other")]
        assert len(hashes[0]) == 2 and hashes[0] == hashes[1]
    if trainer == "fsdp":
        drawing = building.load(two / "last.ckpt", kind="prior")  # a whole file, though kept in shares
        assert drawing.sample(["a red circle"], seeds=[0]).shape == (1, 3, 32, 32)


@pytest.mark.slow
def test_where_one_of_two_is_lost_the_other_ends_with_one_line(tmp_path: Path) -> None:
    log, words = tmp_path / "log", command(tmp_path, "vqgan", 2, "ddp", "trainer.max_steps=100000")
    processes = start(2, words, log)
    while not (tmp_path / "vqgan/last.ckpt").is_file():
        assert all(process.is_alive() for process in processes), log.read_text()
        processes[0].join(0.02)
    processes[1].kill()
    processes[0].join(60)
    assert processes[0].exitcode == 2, log.read_text()
    told = lines(log.read_text())
    assert len(told) == 1, told
    assert told[0].startswith("error: one of 2 processes was lost. The same command goes on from step")
    assert not (tmp_path / "vqgan/crash.ckpt").exists()


def test_a_lost_rank_is_named() -> None:
    launcher = Launcher(LightningEnvironment(), 3, 1)
    launcher.procs = [subprocess.Popen(["sleep", "60"]) for _ in range(2)]
    assert launcher.lost() is None
    launcher.procs[0].send_signal(signal.SIGKILL)
    assert launcher.lost(wait=10) == "rank 1 (signal 9) of 3 was lost."
    held = Replicated()
    held._launcher = launcher
    held.on_exception(RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"))
    assert all(process.poll() is not None for process in launcher.procs)  # nobody is left behind
    assert lost(held, RuntimeError("[gloo] Connection closed by peer")) == "rank 1 (signal 9) of 3 was lost."
    assert lost(held, RuntimeError("CUDA out of memory")) is None


def test_several_devices_without_a_strategy_are_watched_too() -> None:
    net = torch.nn.Linear(1, 1)
    assert isinstance(strategy(compose([*MODELS["vqgan"], "trainer.devices=2"]), net), Replicated)
    assert strategy(compose([*MODELS["vqgan"]]), net) == "auto"


def _meets(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    check_finite({"loss": torch.tensor(1.0)}, 1, ["a"])
    try:
        check_finite({"loss": torch.tensor(math.nan if rank else 2.0)}, 7, [f"picture-of-{rank}"])
    except NonFiniteLossOnOtherRank:
        told = ""
    except NonFiniteLoss as error:
        told = str(error)
    Path(folder, str(rank)).write_text(told)


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_and_that_one_tells(tmp_path: Path) -> None:
    processes: list[Any] = [FORK.Process(target=_meets, args=(rank, str(tmp_path))) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "0").read_text() == ""
    assert "not finite at step 7: loss=nan. The batch: picture-of-1." in (tmp_path / "1").read_text()


def test_what_does_not_go_with_shares_is_told_all_at_once() -> None:
    prior = [*MODELS["prior"], "model.tokenizer.path=x.ckpt", "text_encoder.path=x", "trainer.strategy=fsdp"]
    ema = "callbacks.ema={_target_: t2i.training.callbacks.ema.EMA, modules: [gpt], decay: 0.9}"
    wrong = compose([*prior, "model.optimizer=muon", ema, "trainer.accumulate_grad_batches=2"], files=False)
    with pytest.raises(ValueError, match=r"(?s)muon needs whole matrices.*ema averages.*_grad_batches: 1 is allowed"):
        strategy(wrong, Prior.__new__(Prior))
    with pytest.raises(ValueError, match="model=prior is allowed, others take trainer=ddp"):
        strategy(compose([*MODELS["vqgan"], "trainer.strategy=fsdp"]), torch.nn.Linear(1, 1))
    assert strategy(compose([*MODELS["vqgan"], "trainer.strategy=ddp"]), None).__class__ is Replicated
    with pytest.raises(ConfigError, match="strategy"):
        compose([*MODELS["vqgan"], "trainer.strategy=3"])
