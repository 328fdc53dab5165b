"""How a VQGAN trains: two players, one step a batch, and nothing that leaks from one to the other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from t2i.checkpoint import atomic, building, file_format
from t2i.config import quiet
from t2i.data.data_module import DataModule
from t2i.losses.gan import hinge_g
from t2i.models.base import NonFiniteLoss, check_finite, frozen_call
from t2i.models.distributed import StepRandom, shared_rand
from t2i.models.optimizers import warmup_cosine
from t2i.models.vqgan import VQGAN, load_tokenizer
from t2i.nets.patchgan import PatchGAN
from t2i.nets.tokenizer import ImageTokenizer
from t2i.quantizers.residual import Residual
from t2i.quantizers.simvq import SimVQ
from t2i.training import loggers
from t2i.training.callbacks.checkpointing import StepSeed
from t2i.types import Batch

MODEL = {
    "_target_": "t2i.models.vqgan.VQGAN", "image_size": 16, "max_steps": 6, "learning_rate": 1e-3,
    "autoencoder": {
        "_target_": "t2i.nets.autoencoder.Autoencoder", "channels": 8, "multipliers": [1, 1], "num_res_blocks": 1,
        "attention_levels": [], "z_channels": 4, "num_groups": 4, "mid_attention": False,
    },
    "quantizer": {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 16, "dim": 4},
    "discriminator": {"_target_": "t2i.nets.patchgan.PatchGAN", "channels": 8, "num_layers": 1, "norm": "none"},
    "discriminator_start": 0.0, "perceptual": None,
}  # fmt: skip


def vqgan(cls: type[VQGAN] = VQGAN, norm: str = "none", **changes) -> VQGAN:
    torch.manual_seed(0)
    node = {key: value for key, value in MODEL.items() if key not in ("_target_", "autoencoder", "quantizer")}
    parts = {name: building.build(MODEL[name]) for name in ("autoencoder", "quantizer")}
    return cls(**{**node, **parts, "discriminator": PatchGAN(channels=8, num_layers=1, norm=norm), **changes})


def batches(n: int = 6, broken_at: int | None = None) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.rand(2, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(n)]
    if broken_at is not None:
        made[broken_at][0, 0, 0, 0] = torch.nan
    return [Batch(image, ["a", "b"], [f"{i}a", f"{i}b"]) for i, image in enumerate(made)]


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.rows.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def fit(model: VQGAN, folder, data=None, steps: int = 6, logger=False, callbacks=(), **options) -> pl.Trainer:
    quiet.quiet()
    data = batches() if data is None else data
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=-1, logger=logger, log_every_n_steps=1,
        num_sanity_val_steps=0, default_root_dir=folder, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, use_distributed_sampler=False, callbacks=list(callbacks),
    )  # fmt: skip
    loader = {"datamodule": data} if isinstance(data, DataModule) else {
        "train_dataloaders": DataLoader(data, batch_size=None)}
    trainer.fit(model, **loader, weights_only=True, **options)
    return trainer


def weights(model: VQGAN) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


class Squares(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x - y).square().mean((1, 2, 3))


class Gradients(VQGAN):
    """Takes no step, so that the gradients are there to be seen; λ is kept."""

    fused = True

    def backward_and_step(self, loss, d_loss, keys):
        loss.backward(retain_graph=True)
        self.generator_gradients = {name: p.grad for name, p in self.named_parameters()}
        self.zero_grad()
        d_loss().backward()
        return None

    def check_finite(self, terms, keys):
        self.weight = terms["lambda"]


@pytest.mark.parametrize("norm", ["none", "batch", "spectral"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_gradients_are_those_of_the_published_losses(norm: str, dtype: torch.dtype | None, monkeypatch) -> None:
    """λ and the gradients, of each player's weights by its own loss alone, against a graph that is not cut."""
    monkeypatch.setattr(VQGAN, "discriminator_on", True)
    model, batch = vqgan(Gradients, norm=norm, perceptual=Squares()), batches(1)[0]
    model.eval()  # spectral norms and statistics stay
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        model.micro_batch_step(batch, None)
        d_gradients = {name: p.grad for name, p in model.named_parameters()}
        model.zero_grad()
        reconstruction, quantized = model.tokenizer(batch.image)
        seen = reconstruction.float()
        rec = (seen - batch.image).abs().mean() + model.perceptual_weight * (seen - batch.image).square().mean()
        gan = hinge_g(frozen_call(model.discriminator, seen))
        last = model.tokenizer.autoencoder.last_layer
        norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].float().norm() for loss in (rec, gan)]
        weight = (norms[0] / (norms[1] + 1e-4)).detach()
        (rec + model.discriminator_weight * weight * gan + model.quantizer_weight * quantized.loss).backward()
    error = {None: 1e-4, torch.bfloat16: 0.4, torch.float16: 0.1}[dtype]  # rounding is amplified by the norms' depth
    assert weight > 0 and float(model.weight) == pytest.approx(float(weight), rel=error)
    for name, parameter in model.named_parameters():
        one = name.startswith("discriminator.")
        assert (model.generator_gradients[name] is None) == one and (d_gradients[name] is None) != one
        if not one:
            assert (model.generator_gradients[name] - parameter.grad).norm() <= error * parameter.grad.norm()


def test_the_generator_hears_the_discriminator() -> None:
    model, batch = vqgan(), batches(1)[0]
    through = torch.autograd.grad(
        hinge_g(frozen_call(model.discriminator, model.tokenizer(batch.image)[0])),
        model.tokenizer.autoencoder.last_layer,
    )[0]
    plain = torch.autograd.grad(
        hinge_g(model.discriminator(model.tokenizer(batch.image)[0])), model.tokenizer.autoencoder.last_layer
    )[0]
    assert torch.equal(through, plain) and plain.abs().sum() > 0


class Alternating(VQGAN):
    fused = False


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_fused_equals_alternating_bit_for_bit(tmp_path, norm: str, optimizer: str) -> None:
    ends = []
    for cls in (VQGAN, Alternating):
        model = vqgan(cls, norm=norm, optimizer=optimizer, gradient_clip=1.0)
        before = weights(model)
        fit(model, tmp_path)
        ends.append(weights(model))
        for name in ("tokenizer.autoencoder.decoder.head.weight", "discriminator.head.weight"):
            assert not torch.equal(before[name], ends[-1][name])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_batch_is_a_step(tmp_path) -> None:
    seen = Losses()
    logger = loggers.make_loggers({"csv": {"_target_": "t2i.training.loggers.CSVLogger"}}, tmp_path, {})
    model = vqgan(max_steps=4)
    trainer = fit(model, tmp_path, steps=4, logger=logger, callbacks=[seen])
    assert trainer.global_step == len(seen.rows) == 4
    for logger in trainer.loggers:
        logger.finish()
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    step = lines[0].split(",").index("step")
    assert sorted({int(line.split(",")[step]) for line in lines[1:]}) in ([0, 1, 2, 3], [1, 2, 3, 4])
    for optimizer in trainer.optimizers:  # both took every step
        assert {int(state["step"]) for state in optimizer.state.values()} == {4}
        rate = 1e-3 * warmup_cosine(3, 0, 4, floor=0.05)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([rate] * len(optimizer.param_groups))
    names = {"loss", "loss/pixel", "loss/quantizer", "loss/generator", "loss/discriminator", "lambda", "logits/real",
             "logits/fake", "commitment"}
    assert {f"train/{name}" for name in names} <= set(seen.rows[0])


def test_the_discriminator_starts_when_it_should(tmp_path) -> None:
    seen, model = Losses(), vqgan(discriminator_start=0.5)
    before = weights(model)
    fit(model, tmp_path, steps=3, callbacks=[seen])
    assert all(torch.equal(before[name], value) for name, value in weights(model).items() if "discriminator" in name)
    assert all("train/loss/generator" not in row for row in seen.rows)
    seen, model = Losses(), vqgan(discriminator_start=0.5)
    fit(model, tmp_path, steps=6, callbacks=[seen])
    assert ["train/loss/discriminator" in row for row in seen.rows] == [False] * 3 + [True] * 3
    with pytest.raises(ValueError, match=r"discriminator_start=1.5 is a fraction of training, within \[0, 1\]"):
        vqgan(discriminator_start=1.5)


def test_without_a_discriminator(tmp_path) -> None:
    seen = Losses()
    trainer = fit(vqgan(discriminator=None), tmp_path, steps=6, data=batches(1) * 6, callbacks=[seen])
    assert trainer.global_step == 6
    assert seen.rows[-1]["train/loss"] < seen.rows[0]["train/loss"]
    assert not any("discriminator" in name for name in seen.rows[-1])


def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(tmp_path) -> None:
    model = vqgan()
    reference = vqgan()
    fit(reference, tmp_path, steps=2)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step 2: .*loss/pixel=nan.*The batch: 2a, 2b\."):
        fit(model, tmp_path, data=batches(broken_at=2))
    expected = weights(reference)
    assert all(torch.equal(expected[name], value) for name, value in weights(model).items())


class Overflowing(VQGAN):
    """Its discriminator's loss overflows while the generator's terms are finite."""

    def backward_and_step(self, generator_loss, discriminator_loss, keys):
        return super().backward_and_step(generator_loss, lambda: discriminator_loss() * torch.inf, keys)


def test_a_discriminator_loss_that_is_not_finite_stops_as_well(tmp_path) -> None:
    model = vqgan(Overflowing)
    before = weights(model)
    with pytest.raises(NonFiniteLoss, match=r"at step 0: loss/discriminator=inf. The batch: 0a, 0b\."):
        fit(model, tmp_path)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_check_finite_names_everything() -> None:
    check_finite({"a": torch.tensor(1.0)}, 0, [])
    terms = {"loss/pixel": torch.tensor(0.5), "loss/quantizer": torch.tensor(-torch.inf)}
    with pytest.raises(NonFiniteLoss, match=r"step 7: loss/pixel=0.5, loss/quantizer=-inf. The batch: k0.*k7 and 2 m"):
        check_finite(terms, 7, [f"k{i}" for i in range(10)])


def test_warmup_cosine() -> None:
    assert [warmup_cosine(step, 4, 20) for step in (0, 1, 3, 4, 12, 20, 99)] == pytest.approx(
        [0.25, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    )
    assert warmup_cosine(0, 0, 10) == 1.0 and warmup_cosine(10, 0, 10, floor=0.05) == pytest.approx(0.05)


class Whole:
    """Batches as the items of a data set."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, at: tuple[int, int]) -> Batch:
        return batches(4)[at[0]]


class Saves(pl.Callback):
    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        trainer.save_checkpoint(self.folder / f"at{trainer.global_step}.ckpt")


@pytest.mark.parametrize("noise", [False, True])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, noise: bool) -> None:
    """The second case: residual codes of SimVQ, which begin after noise in the third step, all of it drawn by step."""
    def run(callbacks=(), **options) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        changes = {"quantizer": Residual(SimVQ(8, 4), 2), "quantizer_start": 0.5, "bounded_latents": True}
        model = vqgan(discriminator_start=0.5, optimizer="muon", **changes if noise else {})
        callbacks = [*callbacks, StepSeed(3)] if noise else callbacks
        data = DataModule(Whole(), Whole(), batch_size=1, collate=lambda items: items[0])
        assert fit(model, tmp_path, data=data, callbacks=callbacks, **options).global_step == 6
        return weights(model)

    expected = run([Saves(tmp_path)])
    for stop in (2, 4, 5):  # before the discriminator starts, at an epoch's end, in the next
        found = run(ckpt_path=tmp_path / f"at{stop}.ckpt")
        assert all(torch.equal(expected[name], value) for name, value in found.items()), stop


def test_noise_stands_in_for_codes_until_the_quantiser_starts(tmp_path, monkeypatch) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    decode = ImageTokenizer.decode

    def watched(self: ImageTokenizer, z_q: torch.Tensor) -> torch.Tensor:
        seen.append((z_q.detach(), self.quantizer.vectors().detach()))
        return decode(self, z_q)

    monkeypatch.setattr(ImageTokenizer, "decode", watched)
    model = vqgan(quantizer=SimVQ(16, 4), discriminator=None, quantizer_start=0.5, bounded_latents=True)
    before = weights(model)["tokenizer.quantizer.codebook_map.weight"]
    rows = Losses()
    fit(model, tmp_path, callbacks=[rows, StepSeed(3)])
    distances = [(z[:, None] - codes[:, :, None, None]).norm(dim=2).amin(1).max() for z, codes in seen]
    assert all(d > 0.01 for d in distances[:3]) and all(d < 1e-5 for d in distances[3:]) and len(distances) == 6
    assert all(z.abs().max() <= 1.125 for z, _ in seen[:3]) and not torch.equal(seen[0][1], seen[2][1])
    assert not torch.equal(before, model.tokenizer.quantizer.codebook_map.weight)
    assert all("train/loss/quantizer" in row for row in rows.rows)
    image, noise = batches(1)[0].image, 0.125 * torch.ones(2, 4, 8, 8)
    reconstruction, quantized = model.tokenizer.with_noise(image, noise)
    torch.testing.assert_close(reconstruction, model.tokenizer.decode(model.tokenizer.latents(image) + noise))
    gradients = torch.autograd.grad(quantized.loss, [model.tokenizer.quant_conv.weight,
                                                     model.tokenizer.quantizer.codebook_map.weight], allow_unused=True)
    assert gradients[0] is None and gradients[1].abs().sum() > 0
    module = SimpleNamespace(shared_seed=5, device="cpu")
    torch.manual_seed(5)  # what one rank draws is what several share
    assert torch.equal(shared_rand(module, 4, 2, 3, 3), StepRandom(module, 4).uniform(18).view(4, 2, 3, 3))
    for wrong in ({"quantizer_start": 1.0}, {"latent_noise": -1.0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            vqgan(**wrong)


def test_bounded_latents_come_out_of_the_checkpoint(tmp_path) -> None:
    quantizer = {"_target_": "t2i.quantizers.product.Product", "groups": 2,
                 "quantizer": {"_target_": "t2i.quantizers.simvq.SimVQ", "codebook_size": 8, "dim": 2, "seed": 1}}
    config = MODEL | {"quantizer": quantizer, "bounded_latents": True}
    model, image = vqgan(quantizer=building.build(quantizer), bounded_latents=True), 9 * batches(1)[0].image
    path = tmp_path / "last.ckpt"
    atomic.save_atomic({"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": config})}, path)
    tokenizer = load_tokenizer(path)
    assert torch.equal(tokenizer.encode(image), model.eval().tokenizer.encode(image))
    assert tokenizer.bounded_latents and tokenizer.factors == (8, 8) and tokenizer.latents(image).abs().max() <= 1


def test_the_tokenizer_comes_out_of_the_checkpoint_alone(tmp_path) -> None:
    model, image = vqgan(), batches(1)[0].image
    path = tmp_path / "last.ckpt"
    atomic.save_atomic({"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": MODEL})}, path)
    tokenizer = load_tokenizer(path)
    model.eval()
    assert torch.equal(tokenizer.encode(image), model.tokenizer.encode(image))
    assert tokenizer.encode(image).shape == (2, 64) and tokenizer.grid == (8, 8) and not tokenizer.training
    assert not any(p.requires_grad for p in tokenizer.parameters())
    again = building.load(path, kind="vqgan")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    rows = dict(again.pictures(Batch(image, ["a", "b"], ["a", "b"]))["reconstructions"]["rows"])
    assert torch.equal(rows["reconstruction"], tokenizer.decode_ids(tokenizer.encode(image)))
    with pytest.raises(ValueError, match="holds a vqgan; a prior is wanted"):
        building.load(path, kind="prior")
