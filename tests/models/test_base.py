"""Nothing in a training step waits for a GPU, and a loss that is not finite still moves nothing and is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.device_reads import DeviceReads

from t2i.checkpoint import file_format
from t2i.config.compose import compose
from t2i.models import optimizers
from t2i.models.base import BaseModule
from t2i.models.distributed import StepRandom
from t2i.models.text_gan import TextGAN
from t2i.models.vqgan import VQGAN
from t2i.training import train
from t2i.training.callbacks.checkpointing import RunCheckpoint, StepSeed

RARE = ["trainer.val_every_steps=6", "trainer.checkpoint_every_steps=6", "trainer.log_every_steps=4"]
VQ = [*tiny.VQGAN, "model.discriminator_start=0", "model.quantizer.decay=0.5"]
EMA = "callbacks.ema={_target_: t2i.training.callbacks.ema.EMA, modules: [%s]}"
GAN = ["data.image_size=16", "callbacks=gan"]


def config(folder: Path, *words: str, steps: int = 6) -> dict[str, Any]:
    paths = [f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}"]
    more = [word for word in words if not word.startswith("model=")]
    first = [word for word in words if word.startswith("model=")]
    return compose([*first, *tiny.DATA, *tiny.TRAINER, *tiny.QUIET, *paths, f"trainer.max_steps={steps}", *RARE, *more])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP and a tokenizer, trained a step each."""
    root = tmp_path_factory.mktemp("made")
    train.run(config(root, *tiny.CLIP, "name=clip", steps=1))
    train.run(config(root, *tiny.VQGAN, "name=vqgan", steps=1))
    return root / "runs"


def words_of(name: str, made: Path) -> list[str]:
    encoder, tokenizer = f"text_encoder.path={made / 'clip/hf'}", f"model.tokenizer.path={made / 'vqgan/last.ckpt'}"
    return {
        "clip": tiny.CLIP,
        "vqgan": [*VQ, EMA % "tokenizer"],
        "prior": [*tiny.PRIOR, encoder, tokenizer, "model.code_dropout=0.5", "model.caption=keys", EMA % "gpt"],
        "prior_any": [*tiny.PRIOR, "model=prior_any", "model.num_layers=2", encoder, tokenizer],
        "dfgan": [*tiny.DFGAN, *GAN, encoder],
        "unet": [*tiny.DFGAN, *GAN, encoder, "model/discriminator=unet", "model.discriminator.channels=2",
                 "model.cutmix_steps=1"],
        "stackgan1": [*tiny.STACKGAN1, *GAN, encoder],
    }[name]


@pytest.mark.parametrize("name", ["clip", "vqgan", "prior", "prior_any", "dfgan", "unet", "stackgan1"])
def test_a_step_that_is_not_logged_waits_for_no_gpu(
    tmp_path: Path, made: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the callbacks of a run; what is read is read in steps that are logged."""
    modes: list[DeviceReads] = []
    watched: list[int] = []
    begin, end = StepSeed.on_train_batch_start, RunCheckpoint.on_train_batch_end

    def watch(self: StepSeed, trainer: Any, *rest: Any) -> None:
        begin(self, trainer, *rest)
        if trainer.global_step and (trainer.global_step + 1) % 4:  # in the first an EMA codebook starts from k-means
            watched.append(trainer.global_step)
            modes.append(DeviceReads())
            modes[-1].__enter__()

    def look_away(self: RunCheckpoint, trainer: Any, *rest: Any) -> None:
        if modes:
            modes.pop().__exit__(None, None, None)
        end(self, trainer, *rest)

    monkeypatch.setattr(BaseModule, "checks_later", True)
    monkeypatch.setattr(StepRandom, "shared", lambda self: 0.0)  # drawn on the host, wherever the model is
    monkeypatch.setattr(StepSeed, "on_train_batch_start", watch)
    monkeypatch.setattr(RunCheckpoint, "on_train_batch_end", look_away)
    try:
        result = train.run(config(tmp_path, *words_of(name, made), "name=x"))
    finally:
        if modes:
            modes.pop().__exit__(None, None, None)
    assert result["steps"] == 6 and watched == [1, 2, 4, 5]


def test_what_waits_is_seen() -> None:
    x = torch.rand(3)
    for wait in (lambda: float(x[0]), lambda: bool((x > 0).all()), lambda: x[x > 0], lambda: x.nonzero()):
        with pytest.raises(AssertionError, match="waits for the device"), DeviceReads():
            wait()


def broken_at(monkeypatch: pytest.MonkeyPatch, step: int) -> dict[int, dict[str, torch.Tensor]]:
    """Lets the pixel loss of a step be not a number; returns the weights and averages before and after each step."""
    original, seen = VQGAN.reconstruction_terms, {}

    def broken(self: VQGAN, *images: torch.Tensor) -> dict[str, torch.Tensor]:
        terms = original(self, *images)
        seen[self.global_step] = {name: p.detach().clone() for name, p in self.named_parameters()}
        return {**terms, "loss/pixel": terms["loss/pixel"] * math.nan} if self.global_step == step else terms

    monkeypatch.setattr(VQGAN, "reconstruction_terms", broken)
    monkeypatch.setattr(BaseModule, "checks_later", True)
    return seen


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_loss_that_is_read_later_moves_nothing_and_stops_at_the_next_logged_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    seen = broken_at(monkeypatch, 1)
    with pytest.raises(ValueError, match=r"not finite at step 1: loss/pixel=nan.*shapes/.*skipped, and read at step 3"):
        train.run(config(tmp_path, *VQ, "name=x", f"model.optimizer={optimizer}"))
    assert sorted(seen) == [0, 1, 2, 3]
    moved = [any(not torch.equal(seen[i][name], seen[i + 1][name]) for name in seen[i]) for i in range(3)]
    assert moved == [True, False, True] and not (tmp_path / "runs/x/last.ckpt").exists()
    assert all(bool(value.isfinite().all()) for value in seen[3].values())


@pytest.mark.parametrize("asked", ["trainer.checkpoint_every_steps=3", "trainer.val_every_steps=3",
                                   "trainer.max_steps=3"])
def test_nothing_is_saved_or_validated_over_a_loss_that_was_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    broken_at(monkeypatch, 1)
    with pytest.raises(ValueError, match=r"not finite at step 1: .*read at step 3"):
        train.run(config(tmp_path, *VQ, "name=x", "trainer.log_every_steps=100", asked))
    assert not (tmp_path / "runs/x/last.ckpt").exists()


@pytest.mark.parametrize("where", ["loss/discriminator", "loss/generator"])
def test_gans_skip_later_what_they_skip_at_once(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A discriminator's loss, or a generator's, that is not a number: weights, buffers and count end alike."""
    original, ends = TextGAN.step_if_finite, []

    def broken(self: TextGAN, optimizer: Any, terms: dict[str, torch.Tensor], *rest: Any) -> Any:
        if self.global_step == 2 and where in terms:
            terms = {**terms, where: terms[where] * math.nan}
        return original(self, optimizer, terms, *rest)

    monkeypatch.setattr(TextGAN, "step_if_finite", broken)
    for later in (False, True):
        monkeypatch.setattr(BaseModule, "checks_later", later)
        words = [*words_of("stackgan1", made), f"name={later}", "callbacks.ema=null"]
        train.run(config(tmp_path, *words))
        ends.append(file_format.read(tmp_path / f"runs/{later}/last.ckpt"))
    now, after = (end["state_dict"] for end in ends)
    assert int(after["skipped"]) == 1 and ends[0]["global_step"] == ends[1]["global_step"] == 6
    assert now.keys() == after.keys() and all(torch.equal(now[name], after[name]) for name in now)
    with pytest.raises(ValueError, match=r"1 optimiser steps had a loss.*the last at step 2: .*max_skipped=0"):
        train.run(config(tmp_path, *words, "name=stops", "model.max_skipped=0"))


@pytest.mark.parametrize("name", ["vqgan", "dfgan"])
def test_channels_last_change_the_layout_alone(
    tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    ends = []
    for last in (False, True):
        monkeypatch.setattr(BaseModule, "channels_last", last)
        train.run(config(tmp_path, *words_of(name, made), f"name={last}", steps=3))
        ends.append(file_format.read(tmp_path / f"runs/{last}/last.ckpt")["state_dict"])
    kernels = [key for key, value in ends[0].items() if key.startswith("discriminator.") and value.ndim == 4
               and min(value.shape[1:]) > 1]
    assert len(kernels) > 2
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, atol=1e-3, rtol=1e-2)
        if key in kernels:
            assert [end[key].is_contiguous(memory_format=torch.channels_last) for end in ends] == [False, True]


def test_weights_in_shares_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BaseModule()
    assert not model.reads_later  # on a CPU
    model.checks_later = True
    assert model.reads_later
    monkeypatch.setattr(BaseModule, "device_mesh", object())
    assert not model.reads_later


def test_muon_skips_a_step_it_is_told_to() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.LayerNorm(16))
    optimizer = optimizers.make(net, "muon", 0.1, (0.9, 0.9))
    for wrong in (0.0, 1.0):
        net(torch.randn(2, 16)).square().sum().backward()
        before, state = [p.detach().clone() for p in net.parameters()], str(optimizer.state_dict())
        optimizer.found_inf = torch.tensor(wrong)
        optimizer.step()
        moved = any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
        assert moved == (str(optimizer.state_dict()) != state) == (wrong == 0)
