"""The tiny runs that the campaign damages, kills and fills disks under: their command lines, and real files of each."""

from __future__ import annotations

from pathlib import Path

from campaign import forked

STEPS = 12
SCENES = ["data.image_size=16", "data.size=64", "data.val_size=16", "data.batch_size=8"]
TRAINER = ["trainer=cpu", "trainer.precision=32-true", "trainer.val_every_steps=4", "trainer.limit_val_batches=1",
           "trainer.checkpoint_every_steps=2", "trainer.log_every_steps=2", "logger=csv", "callbacks.plots=null",
           "callbacks.pictures=null"]
VQGAN = ["model=vqgan", "model.autoencoder.channels=8", "model.autoencoder.multipliers=[1]",
         "model.autoencoder.attention_levels=[]", "model.autoencoder.mid_attention=false",
         "model.autoencoder.patch_size=4", "model.autoencoder.z_channels=8", "model.autoencoder.num_groups=0",
         "model.quantizer.codebook_size=16", "model.quantizer.dim=4", "model.discriminator.channels=4",
         "model.discriminator.num_layers=1", "model.discriminator_start=0.25"]
CLIP = ["model=clip", "model.patch_size=8", "model.width=16", "model.num_layers=1", "model.num_heads=2",
        "model.text_width=16", "model.text_layers=1", "model.text_heads=2", "model.embed_dim=8",
        "model.vocab_size=300"]
PRIOR = ["model=prior", "model.width=16", "model.num_layers=1", "model.num_heads=2", "model.dropout=0.1",
         "callbacks.ema={_target_: t2i.training.callbacks.ema.EMA, modules: [gpt], decay: 0.9}"]
DFGAN = ["model=dfgan", "model.generator.channels=2", "model.discriminator.channels=2", "model.text_dim=8",
         "callbacks=gan", "callbacks.plots=null", "callbacks.pictures=null", "trainer.monitor=null"]
STACKGAN1 = ["model=stackgan1", "model.generator.channels=4", "model.discriminator.channels=4",
             "model.generator.noise_dim=12", "model.generator.condition_dim=8", "model.generator.text_dim=8",
             "trainer.monitor=null"]
MODELS = {"clip": CLIP, "vqgan": VQGAN, "prior": PRIOR, "dfgan": DFGAN, "stackgan1": STACKGAN1}


def needs(model: str, folder: Path) -> list[str]:
    """What a model is given of other runs."""
    encoder = f"text_encoder.path={folder / 'runs/clip/hf'}"
    return {"prior": [encoder, f"model.tokenizer.path={folder / 'runs/vqgan/last.ckpt'}"],
            "dfgan": [encoder], "stackgan1": [encoder]}.get(model, [])


def words(model: str, made: Path, runs: Path, *more: str, steps: int = STEPS, cache: Path | None = None) -> list[str]:
    """The command line of a tiny run; what it needs of others comes from `made`."""
    data = [] if any(word.startswith("data=") for word in more) else SCENES
    return [*MODELS[model][:1], *data, *TRAINER, *MODELS[model][1:], *needs(model, made), f"paths.runs={runs}",
            f"paths.cache={cache or made / 'cache'}", f"trainer.max_steps={steps}", *more]


def pictures(folder: Path) -> None:
    import numpy as np
    from PIL import Image

    for split, count in (("train", 24), ("val", 8)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 256, (20, 22, 3), np.uint8)
            Image.fromarray(noise).save(folder / split / f"{i}.png")


def make(folder: Path, models: tuple[str, ...] = tuple(MODELS)) -> Path:
    """Trains the tiny models into `folder/runs/<model>` and exports prior and VQGAN beside them, where they are
    missing; `folder/pictures` gets noise in two splits."""
    if not (folder / "pictures").exists():
        pictures(folder / "pictures")
    for model in models:
        if not (folder / f"runs/{model}/finished.json").is_file():
            line = words(model, folder, folder / "runs", f"name={model}")
            ended = forked.run(forked.command("train", line), folder, 120)
            if ended.code:
                raise RuntimeError(f"the tiny {model} could not be made:\n{ended.err}\n{ended.out}")
        if model in ("prior", "vqgan") and not (folder / f"export/{model}/model.safetensors").is_file():
            out = str(folder / f"export/{model}")
            ended = forked.run(forked.command("t2i", ["export", str(folder / f"runs/{model}/last.ckpt"), out]),
                               folder, 60)
            if ended.code:
                raise RuntimeError(f"the tiny {model} could not be exported:\n{ended.err}")
    return folder
