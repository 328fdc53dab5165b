"""How the GANs train: guard, resume, precision, stage II over stage I, sampling, and what is refused."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny

from t2i.checkpoint import building, file_format
from t2i.config.compose import compose
from t2i.models.clip import CLIP
from t2i.models.dfgan import DFGAN
from t2i.models.sampling import normals
from t2i.models.stackgan import load_stage1
from t2i.models.text_gan import TextGAN
from t2i.nets.dfgan import DFDiscriminator, DFGenerator
from t2i.nets.stackgan import StageTwo
from t2i.training import train
from t2i.training.callbacks.checkpointing import RunCheckpoint

BASE = ["data.size=64", "data.val_size=16", "data.batch_size=8", "trainer=cpu", "trainer.val_every_steps=4",
        "trainer.limit_val_batches=1", "trainer.log_every_steps=1", "logger=csv", "callbacks=gan", *tiny.QUIET,
        "callbacks.ema.decay=0.9"]
DFGAN_ = [*tiny.DFGAN, "data.image_size=16"]
STACK1 = [*tiny.STACKGAN1, "data.image_size=16"]
STACK2 = ["model=stackgan2", "model.generator.channels=4", "model.discriminator.channels=4", "data.image_size=64",
          "model.generator.condition_dim=8", "model.generator.text_dim=8", "model.generator.num_res_blocks=1"]
OWN = "model.discriminator_text=own"
UNET = ["model/discriminator=unet", "model.discriminator.channels=2", "model.cutmix_steps=1"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    sizes = {"width": 16, "num_heads": 2, "num_layers": 1, "text_width": 16, "text_layers": 1, "text_heads": 2}
    model = CLIP(image_size=16, embed_dim=16, vocab_size=300, context_length=77, **sizes)
    model.prepare(["a red circle", "two blue squares above a ring on a white background"] * 9)
    folder = tmp_path_factory.mktemp("clip") / "hf"
    model.export(folder)
    return str(folder)


def config(folder: Path, clip: str, model: list[str], *more: str, steps: int = 6) -> dict[str, Any]:
    paths = [f"paths.runs={folder}", f"paths.cache={folder / 'cache'}", f"trainer.max_steps={steps}"]
    encoder = [] if model[0] == "model=stackgan2" else [f"text_encoder.path={clip}"]
    return compose([*model, *BASE, *encoder, *paths, *more])


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory, clip: str) -> str:
    folder = tmp_path_factory.mktemp("stage1")
    train.run(config(folder, clip, STACK1, "name=one"))
    return str(folder / "one/last.ckpt")


@pytest.mark.parametrize("model", [
    DFGAN_, [*DFGAN_, *UNET], [*DFGAN_, "model/generator=rdb", "data.image_size=32"], STACK1,
    [*STACK1, *UNET], [*STACK1, OWN]],
    ids=["dfgan", "unet", "rdb", "stackgan1", "stackgan1-unet", "stackgan1-own"])  # fmt: skip
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_every_system_trains_and_draws_from_its_file(
    tmp_path: Path, clip: str, model: list[str], precision: str
) -> None:
    result = train.run(config(tmp_path, clip, model, "name=x", f"trainer.precision={precision}"))
    assert result["steps"] == 6 and all(np.isfinite(v) for v in result["metrics"].values())
    assert result["metrics"]["train/skipped"] == 0
    made = building.load(tmp_path / "x/last.ckpt")
    two = made.sample(["a red circle", "two blue squares"], seeds=[1, 2])
    torch.testing.assert_close(two[1:], made.sample(["two blue squares"], seeds=[2]), atol=1e-5, rtol=1e-5)
    assert two.shape[2] == made.image_size and not torch.equal(two[0], two[1])


@pytest.mark.parametrize("model", [DFGAN_, STACK1], ids=["dfgan", "stackgan1"])
def test_sixty_steps_in_bf16_skip_none(tmp_path: Path, clip: str, model: list[str]) -> None:
    more = ["trainer.precision=bf16-mixed", "trainer.val_every_steps=30", "trainer.log_every_steps=20", "name=x"]
    result = train.run(config(tmp_path, clip, model, *more, steps=60))
    assert result["steps"] == 60 and result["metrics"]["train/skipped"] == 0
    assert all(np.isfinite(value) for value in result["metrics"].values())
    held = file_format.read(tmp_path / "x/last.ckpt")
    assert all(bool(torch.isfinite(value).all()) for value in held["state_dict"].values())


def test_the_penalty_works_where_the_discriminator_is_told_what_has_no_gradient(tmp_path: Path, clip: str) -> None:
    more = ["name=x", "model.penalty_weight=0.02", "model.penalty_power=2", "model.gan_loss=hinge",
            "model.generator.condition_start=0.1", "model.discriminator.batch_norm=false"]
    result = train.run(config(tmp_path, clip, STACK1, *more))
    assert result["metrics"]["train/loss/penalty"] > 0 and result["metrics"]["train/skipped"] == 0


def test_stackgans_discriminator_can_read_captions_by_itself(tmp_path: Path, clip: str, stage1: str) -> None:
    assert building.load(stage1).discriminator_text is None
    made = {}
    for steps in (1, 4):
        train.run(config(tmp_path, clip, STACK1, f"name=own{steps}", OWN, steps=steps))
        made[steps] = building.load(tmp_path / f"own{steps}/last.ckpt")
    one, four = (made[steps].discriminator_text.linear.weight for steps in (1, 4))
    assert one.shape == (made[1].discriminator.text_dim, 16) and not torch.equal(one, four)
    generator, discriminator = made[1].optimized_modules()
    assert any(one is p for p in discriminator.parameters()) and not any(one is p for p in generator.parameters())
    pooled = made[1].text_encoder(["a red circle", "two blue squares"]).pooled
    told = made[1].condition(pooled, made[1].draw(pooled, torch.zeros(2, made[1].noise_dim)))
    torch.testing.assert_close(told, made[1].discriminator_text(pooled))
    train.run(config(tmp_path, clip, STACK2, "name=two", f"model.stage1.path={stage1}", OWN, steps=2))
    assert building.load(tmp_path / "two/last.ckpt").discriminator_text is not None
    with pytest.raises(ValueError, match=r"discriminator_text=both: one of generator, own is needed"):
        train.run(config(tmp_path, clip, STACK1, "name=both", "model.discriminator_text=both"))


def test_a_skip_adds_stage_ones_picture() -> None:
    torch.manual_seed(0)
    net = StageTwo(32, channels=4, text_dim=8, condition_dim=8, num_res_blocks=1, tanh=False).eval()
    coarse, noise, text = torch.rand(2, 3, 8, 8), torch.randn(2, 8), torch.randn(2, 8)
    plain = net(coarse, noise, text).image
    net.skip = True
    wanted = plain + torch.nn.functional.interpolate(coarse, scale_factor=4.0, mode="bilinear")
    torch.testing.assert_close(net(coarse, noise, text).image, wanted)


def test_stage_two_carries_stage_one_and_its_encoder(tmp_path: Path, clip: str, stage1: str) -> None:
    copy = tmp_path / "stage1.ckpt"
    copy.write_bytes(Path(stage1).read_bytes())
    train.run(config(tmp_path, clip, STACK2, "name=two", f"model.stage1.path={copy}"))
    before = load_stage1(copy).state_dict()
    copy.unlink()
    made = building.load(tmp_path / "two/last.ckpt")
    assert made.sample(["a red circle"], seeds=[0]).shape == (1, 3, 64, 64)
    assert all(torch.equal(value, made.stage1.state_dict()[name]) for name, value in before.items())
    assert not any(name.startswith("stage1") for name in made.state_dict())


def test_stage_two_refuses_another_stage_one(tmp_path: Path, clip: str, stage1: str) -> None:
    with pytest.raises(ValueError, match=r"stage1 draws 16 pixels.*64, four times as many"):
        train.run(config(tmp_path, clip, STACK2, "name=a", f"model.stage1.path={stage1}", "data.image_size=32"))
    train.run(config(tmp_path, clip, DFGAN_, "name=df", steps=1))
    with pytest.raises(ValueError, match=r"holds a dfgan; a stackgan1 is wanted"):
        train.run(config(tmp_path, clip, STACK2, "name=b", f"model.stage1.path={tmp_path / 'df/last.ckpt'}"))
    with pytest.raises(ValueError, match=r"model.stage1.path= is needed: the checkpoint of a stage I"):
        compose(["model=stackgan2"])
    other = CLIP(image_size=16, embed_dim=24, width=16, num_heads=2, num_layers=1, text_width=16, text_layers=1,
                 text_heads=2, vocab_size=300)
    other.prepare(["a"])
    other.export(tmp_path / "hf")
    found = config(tmp_path, clip, STACK2, "name=c", f"model.stage1.path={stage1}")
    found["model"]["text_encoder"] = {"_target_": "t2i.text_encoders.clip.CLIPText", "path": str(tmp_path / "hf")}
    with pytest.raises(ValueError, match=r"sentences of 24 numbers, stage1 was trained on 16"):
        train.run(found)


@pytest.mark.parametrize("model", [[*DFGAN_, *UNET], STACK1], ids=["dfgan-unet", "stackgan1"])
def test_stopping_and_continuing_equals_an_unbroken_run(
    tmp_path: Path, monkeypatch: Any, clip: str, model: list[str]
) -> None:
    train.run(config(tmp_path, clip, model, "name=whole", "trainer.precision=32-true"))
    real = RunCheckpoint.on_train_batch_end

    def interrupting(self: RunCheckpoint, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, trainer, *rest)

    monkeypatch.setattr(RunCheckpoint, "on_train_batch_end", interrupting)
    with pytest.raises(SystemExit):
        train.run(config(tmp_path, clip, model, "name=broken", "trainer.precision=32-true"))
    monkeypatch.undo()
    train.run(config(tmp_path, clip, model, "name=broken", "trainer.precision=32-true"))
    a, b = (file_format.read(tmp_path / name / "last.ckpt") for name in ("whole", "broken"))
    assert all(torch.equal(a["state_dict"][name], b["state_dict"][name]) for name in a["state_dict"])
    assert all(torch.equal(a["ema"]["weights"][name], b["ema"]["weights"][name]) for name in a["ema"]["weights"])


def test_a_planted_nan_is_skipped_counted_and_stops_the_run_after_so_many(
    tmp_path: Path, monkeypatch: Any, clip: str
) -> None:
    real, planted = TextGAN.discriminator_terms, {2, 3}

    def broken(self: TextGAN, batch: Any, *rest: Any) -> Any:
        terms, named = real(self, batch, *rest)
        if self.global_step in planted:
            terms["loss/discriminator"] = terms["loss/discriminator"] * float("nan")
        return terms, named

    monkeypatch.setattr(TextGAN, "discriminator_terms", broken)
    result = train.run(config(tmp_path, clip, STACK1, "name=few", "model.max_skipped=2"))
    assert result["steps"] == 6 and result["metrics"]["train/skipped"] == 2
    held = file_format.read(tmp_path / "few/last.ckpt")
    assert int(held["state_dict"]["skipped"]) == 2
    assert all(bool(torch.isfinite(v).all()) for v in held["state_dict"].values())
    with pytest.raises(ValueError, match=r"2 optimiser steps had a loss or gradient that is not finite.*max_skipped=1"):
        train.run(config(tmp_path, clip, STACK1, "name=many", "model.max_skipped=1"))


def test_a_nan_in_the_forward_leaves_no_trace_in_weights_or_statistics(
    tmp_path: Path, monkeypatch: Any, clip: str
) -> None:
    real = TextGAN.training_step
    kept: list[dict[str, torch.Tensor]] = []

    def broken(self: TextGAN, batch: Any, index: int) -> Any:
        kept.append({name: value.clone() for name, value in self.state_dict().items() if name != "skipped"})
        if index == 3:
            batch.image[0, 0, 0, 0] = float("nan")
        return real(self, batch, index)

    monkeypatch.setattr(TextGAN, "training_step", broken)
    train.run(config(tmp_path, clip, STACK1, "name=x"))
    assert all(torch.equal(kept[3][name], kept[4][name]) for name in kept[3])
    assert not all(torch.equal(kept[2][name], kept[3][name]) for name in kept[3])


def test_refusals(tmp_path: Path, clip: str) -> None:
    with pytest.raises(ValueError, match=r"data.batch_size=1: .* 2 or more"):
        train.run(config(tmp_path, clip, DFGAN_, "name=a", "data.batch_size=1"))
    with pytest.raises(ValueError, match="16-mixed needs a GPU"):
        train.run(config(tmp_path, clip, DFGAN_, "name=b", "trainer.precision=16-mixed"))
    with pytest.raises(ValueError, match="trainer.accumulate_grad_batches=2: DFGAN needs every batch whole"):
        train.run(config(tmp_path, clip, DFGAN_, "name=c", "trainer.accumulate_grad_batches=2"))
    with pytest.raises(ValueError, match="projection=none: .* 16 numbers, the net takes 8"):
        train.run(config(tmp_path, clip, DFGAN_, "name=d", "model.projection=none"))
    encoder = building.build({"_target_": "t2i.text_encoders.clip.CLIPText", "path": clip})
    with pytest.raises(ValueError, match=r"discriminator\.text_dim=4: text_dim=8"):
        DFGAN(DFGenerator(8, 2, 4, 8), DFDiscriminator(8, 2, 4), encoder, 1, text_dim=8)
    with pytest.raises(ValueError, match=r"generator\.image_size=8 and discriminator\.image_size=16"):
        DFGAN(DFGenerator(8, 2, 4, 8), DFDiscriminator(16, 2, 8), encoder, 1, text_dim=8)
    with pytest.raises(ValueError, match="cutmix_steps=-1: a whole number from 0"):
        DFGAN(DFGenerator(8, 2, 4, 8), DFDiscriminator(8, 2, 8), encoder, 1, text_dim=8, cutmix_steps=-1)
    model = DFGAN(DFGenerator(8, 2, 4, 8), DFDiscriminator(8, 2, 8), encoder, 1, text_dim=8)
    with pytest.raises(ValueError, match="guidance is no option of a dfgan"):
        model.sample(["a"], seeds=[0], guidance=2.0)
    with pytest.raises(ValueError, match="truncation=2: allowed"):
        model.sample(["a"], seeds=[0], truncation=2)


def test_equal_captions_are_no_mismatch(clip: str) -> None:
    encoder = building.build({"_target_": "t2i.text_encoders.clip.CLIPText", "path": clip})
    model = DFGAN(DFGenerator(8, 2, 4, 8), DFDiscriminator(8, 2, 8), encoder, 1, text_dim=8)
    model.__dict__["_trainer"] = None
    weights = TextGAN.mismatched(model, ["a", "A", "b", "c"])
    assert weights.tolist() == pytest.approx([0, 4 / 3, 4 / 3, 4 / 3])
    assert TextGAN.mismatched(model, ["a", "a"]).tolist() == [0, 0]


def test_truncated_noise() -> None:
    plain, cut = normals([3, 4], 5000), normals([3, 4], 5000, 0.5)
    torch.testing.assert_close(normals([4], 5000)[0], plain[1])
    assert float(cut.abs().max()) <= 1.0 and float(plain.abs().max()) > 2
    # Within two deviations a normal distribution has a variance of 0.774.
    assert float(cut.var()) == pytest.approx(0.25 * 0.7737, rel=0.05)
    assert torch.all((cut > 0) == (plain > 0))
