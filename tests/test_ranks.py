"""Several processes against one: the same global batches, losses, metrics, caches and weights. About a minute."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from t2i import checkpoint
from t2i.config import ROOT, ConfigError, compose
from t2i.devices import strategy
from t2i.models.prior import Prior

SMALL = ["data.image_size=32", "data.size=96", "data.val_size=22", "data.batch_size=8", "trainer=cpu",
         "trainer.precision=32-true", "trainer.val_every_steps=4", "trainer.limit_val_batches=3",
         "trainer.log_every_steps=1", "trainer.max_steps=8", "logger=csv", "callbacks.plots=null"]
MODELS = {
    "clip": ["model=clip", "model.patch_size=8", "model.width=16", "model.num_layers=1", "model.num_heads=2",
             "model.text_width=16", "model.text_layers=1", "model.text_heads=2", "model.embed_dim=8"],
    "vqgan": ["model=vqgan", "model.autoencoder.channels=8", "model.autoencoder.multipliers=[1]",
              "model.autoencoder.attention_levels=[]", "model.autoencoder.mid_attention=false",
              "model.autoencoder.patch_size=8", "model.autoencoder.z_channels=8", "model.autoencoder.num_groups=0",
              "model.quantizer.codebook_size=16", "model.quantizer.dim=4", "model.discriminator.channels=4",
              "model.discriminator.num_layers=2", "model.discriminator.norm=none", "model.discriminator_start=0.25"],
    "dfgan": ["model=dfgan", "model.generator.channels=2", "model.discriminator.channels=2", "model.text_dim=8",
              "callbacks=gan"],
    "stackgan1": ["model=stackgan1", "model/discriminator=unet", "model.generator.channels=4", "model.cutmix_steps=1",
                  "model.discriminator.channels=2", "model.generator.noise_dim=12", "model.generator.condition_dim=8",
                  "model.generator.text_dim=8"],
    "prior": ["model=prior", "model.width=16", "model.num_layers=2", "model.num_heads=2"],
}


def train(folder: Path, model: str, ranks: int, *more: str, launcher: list[str] | None = None) -> str:
    parts = [f"model.tokenizer.path={folder}/vqgan/last.ckpt", f"text_encoder.path={folder}/clip/hf"]
    told = parts if model == "prior" else parts[1:] if "gan" in model and model != "vqgan" else []
    words = [*MODELS[model], *SMALL, *told, f"paths.runs={folder}",
             f"paths.cache={folder}/cache", f"name={model}", f"trainer.devices={ranks}",
             *(["trainer.strategy=ddp"] if ranks > 1 else []), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*(launcher or [sys.executable]), str(ROOT / "train.py"), *words], env=environment,
                          capture_output=True, text=True, timeout=280, check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def alike(one: Path, two: Path, most: float = 1e-5) -> None:
    a, b = rows(one), rows(two)
    assert len(a) == len(b) >= 10
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert (x[name] == "") == (y[name] == ""), name
            if x[name]:
                assert float(x[name]) == pytest.approx(float(y[name]), rel=most, abs=most), (name, x["step"])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_ranks_train_as_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    for model in MODELS:
        train(one, model, 1)
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        train(two, model, 2, launcher=launcher if model == "vqgan" else None)  # torchrun, and Lightning's own
        alike(one / model, two / model)
        a, b = (checkpoint.read(folder / model / "last.ckpt")["state_dict"] for folder in (one, two))
        if model != "clip":  # Adam makes much of gradients that are nought but for rounding, most without momentum
            most = 1e-4 if model in ("dfgan", "stackgan1") else 1e-5
            assert max(float((a[name].float() - b[name].float()).abs().max()) for name in a) < most
    hashes = [sorted(hashlib.sha256(p.read_bytes()).hexdigest() for p in (folder / "cache").glob("*/*/codes.npy"))
              for folder in (one, two)]
    assert len(hashes[0]) == 2 and hashes[0] == hashes[1]
    # In shares (FSDP): the same again, and a checkpoint that draws by itself.
    train(two, "prior", 2, "name=sharded", "trainer.strategy=fsdp")
    alike(one / "prior", two / "sharded")
    model = checkpoint.load(two / "sharded/last.ckpt", kind="prior")
    assert model.sample(["a red circle"], seeds=[0]).shape == (1, 3, 32, 32)
    whole = checkpoint.load(one / "prior/last.ckpt", kind="prior")
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    assert max(float((p - q).detach().abs().max()) for p, q in pairs) < 1e-5


def test_what_does_not_go_with_shares_is_told_all_at_once() -> None:
    prior = [*MODELS["prior"], "model.tokenizer.path=x.ckpt", "text_encoder.path=x", "trainer.strategy=fsdp"]
    ema = "callbacks.ema={_target_: t2i.callbacks.EMA, modules: [gpt], decay: 0.9}"
    wrong = compose([*prior, "model.optimizer=muon", ema, "trainer.accumulate=2"], files=False)
    with pytest.raises(ValueError, match=r"(?s)muon needs whole matrices.*ema averages.*accumulate: 1 is allowed"):
        strategy(wrong, Prior.__new__(Prior))
    with pytest.raises(ValueError, match="model=prior is allowed, others take trainer=ddp"):
        strategy(compose([*MODELS["vqgan"], "trainer.strategy=fsdp"]), torch.nn.Linear(1, 1))
    assert strategy(compose([*MODELS["vqgan"], "trainer.strategy=ddp"]), None) == "ddp"
    with pytest.raises(ConfigError, match="strategy"):
        compose([*MODELS["vqgan"], "trainer.strategy=3"])
