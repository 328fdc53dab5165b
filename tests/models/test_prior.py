"""How the prior trains and draws, and that its checkpoint needs nothing beside it."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from t2i.checkpoint import atomic, building, file_format
from t2i.config import aliases, quiet
from t2i.models.base import NonFiniteLoss
from t2i.models.clip import CLIP
from t2i.models.distributed import step_random
from t2i.models.prior import Prior
from t2i.models.vqgan import load_tokenizer
from t2i.text_encoders.clip import CLIPText
from t2i.types import CodeBatch

TEXT = ["red above blue", "blue above red", "green", "two green above red"]
VQGAN = {
    "_target_": "t2i.models.vqgan.VQGAN", "image_size": 8, "max_steps": 1,
    "autoencoder": {
        "_target_": "t2i.nets.autoencoder.Autoencoder", "channels": 8, "multipliers": [1, 1], "num_res_blocks": 1,
        "attention_levels": [], "z_channels": 4, "num_groups": 4, "mid_attention": False,
    },
    "quantizer": {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 16, "dim": 4},
    "discriminator": None, "perceptual": None,
}  # fmt: skip
SIZES = {"width": 32, "num_layers": 1, "num_heads": 2, "warmup_steps": 1, "learning_rate": 0.01, "max_steps": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tokenizer's checkpoint and a CLIP's folder, both fresh."""
    root = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    clip = CLIP(image_size=8, patch_size=8, width=16, num_layers=1, num_heads=2, text_width=16, text_layers=1,
                text_heads=2, embed_dim=8, vocab_size=280, context_length=12)
    clip.prepare(TEXT)
    clip.export(root / "hf")
    vqgan = building.build(VQGAN)
    with torch.no_grad():  # fresh codes are all but equal; drawings shall differ
        vqgan.tokenizer.quantizer.codebook.normal_()
    held = {"state_dict": vqgan.state_dict(), "t2i": file_format.pack(vqgan, {"model": VQGAN})}
    atomic.save_atomic(held, root / "vqgan.ckpt")
    return SimpleNamespace(root=root, vqgan=root / "vqgan.ckpt", hf=root / "hf")


def config(made) -> dict:
    tokenizer = {"_target_": "t2i.models.vqgan.load_tokenizer", "path": str(made.vqgan)}
    encoder = {"_target_": "t2i.text_encoders.clip.CLIPText", "path": str(made.hf)}
    return {"_target_": "t2i.models.prior.Prior", "tokenizer": tokenizer, "text_encoder": encoder, **SIZES}


def prior(made, **changes) -> Prior:
    torch.manual_seed(0)
    return building.build({**config(made), **changes})


@pytest.fixture(scope="module")
def toy() -> CodeBatch:
    ids = torch.randint(16, (4, 16), generator=torch.Generator().manual_seed(3))
    return CodeBatch(ids, list(TEXT), [f"k{i}" for i in range(4)])


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.rows: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        self.rows.append(float(trainer.logged_metrics["train/loss"]))


def fit(model: Prior, folder, data: list[CodeBatch], steps: int) -> tuple[pl.Trainer, list[float]]:
    quiet.quiet()
    seen = Losses()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=-1, logger=False, log_every_n_steps=1,
        num_sanity_val_steps=0, default_root_dir=folder, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, use_distributed_sampler=False, callbacks=[seen],
    )  # fmt: skip
    loader = DataLoader(data, batch_size=None)
    trainer.fit(model, loader, loader, weights_only=True)
    return trainer, seen.rows


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls_and_the_captions_draw_their_codes(made, toy, tmp_path, optimizer: str) -> None:
    model = prior(made, caption_dropout=0.0, optimizer=optimizer)
    trainer, losses = fit(model, tmp_path, [toy] * 40, 40)
    assert trainer.global_step == len(losses) == 40
    assert losses[0] == pytest.approx(torch.tensor(16.0).log().item(), abs=0.2) and losses[-1] < 0.3
    metrics = trainer.callback_metrics
    assert metrics["val/loss"] < 0.3
    # Only the first code is in doubt without a caption: log(4) / 16 more at least.
    assert metrics["val/loss_without_caption"] > metrics["val/loss"] + 0.08
    drawn = model.sample(TEXT, seeds=[0, 1, 2, 3], temperature=0.0)
    assert torch.equal(drawn, model.tokenizer.decode_ids(toy.ids))


def test_dropped_codes_are_replaced_or_masked_in_training_alone(made, toy, monkeypatch) -> None:
    model = prior(made, code_dropout=0.8)
    torch.manual_seed(0)
    shown, masked = map(list, zip(*(model.corrupted(toy.ids, step_random(model, 4)) for _ in range(200)), strict=True))
    changed = torch.stack([ids != toy.ids for ids in shown]).float()
    # On average two fifths, half of them masked; a random other is the same one time in sixteen.
    assert changed.mean().item() == pytest.approx(0.2 * 15 / 16, abs=0.02)
    assert torch.stack(masked).float().mean().item() == pytest.approx(0.2, abs=0.02)
    a_picture = (torch.stack(masked) | changed.bool()).float().mean(2)
    assert a_picture.min() == 0 and a_picture.max() > 0.6  # every picture has a share of its own
    assert all(int(ids.max()) < 16 and int(ids.min()) >= 0 for ids in shown)
    asked: list[tuple] = []
    loss = model.loss
    monkeypatch.setattr(model, "loss", lambda *given: asked.append(given) or loss(*given))
    trainer = pl.Trainer(max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
                         enable_model_summary=False, accelerator="cpu")
    trainer.fit(model, DataLoader([toy], batch_size=None), DataLoader([toy], batch_size=None))
    (_, _, seen, hidden), = (given for given in asked if len(given) == 4)  # validation goes without
    assert len(asked) > 1 and hidden.any() and not torch.equal(seen, toy.ids)
    with pytest.raises(ValueError, match=r"code_dropout=1.5 is a share, within \[0, 1\]"):
        prior(made, code_dropout=1.5)
    with pytest.raises(ValueError, match="caption_heads=true: the tokenizer's codes have one part"):
        prior(made, caption_heads=True)


def test_ranks_share_out_what_one_alone_drops(made, toy, monkeypatch) -> None:
    model = prior(made, code_dropout=0.8)
    torch.manual_seed(7)
    shown, masked = model.corrupted(toy.ids, step_random(model, 4))
    monkeypatch.setattr(Prior, "shared_seed", 7, raising=False)
    monkeypatch.setattr("t2i.models.distributed.is_distributed", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        of_rank, hidden = model.corrupted(toy.ids[rank::2], step_random(model, 2))
        assert torch.equal(of_rank, shown[rank::2]) and torch.equal(hidden, masked[rank::2])


def test_only_the_gpt_is_trained_and_saved(made, toy, tmp_path) -> None:
    model = prior(made)
    before = {name: value.clone() for name, value in model.tokenizer.state_dict().items()}
    fit(model, tmp_path, [toy] * 2, 2)
    assert all(name.startswith("gpt.") for name in model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in model.tokenizer.state_dict().items())
    assert not any(p.requires_grad for p in model.text_encoder.tower.parameters())
    assert not model.tokenizer.training and not model.text_encoder.tower.training


def test_dropped_captions_train_the_null_prefix(made, toy, monkeypatch) -> None:
    model = prior(made, caption_dropout=0.5)
    monkeypatch.setattr("t2i.models.prior.log_step", lambda *_: None)
    torch.nn.init.normal_(model.gpt.blocks[0].attention_out.weight)  # starts at zero: nothing of the prefix is heard
    kept = torch.zeros(4, dtype=torch.bool)
    model.loss(toy, kept).backward()
    assert model.gpt.null.grad.abs().sum() == 0 and model.gpt.text_in.weight.grad.abs().sum() > 0
    model.zero_grad()
    model.loss(toy, ~kept).backward()
    assert model.gpt.null.grad.abs().sum() > 0 and model.gpt.text_in.weight.grad.abs().sum() == 0
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(model, "loss", lambda batch, null, *codes: asked.append(null) or torch.tensor(1.0))
    torch.manual_seed(0)
    for _ in range(100):
        model.training_step(toy, 0)
    assert torch.stack(asked).float().mean().item() == pytest.approx(0.5, abs=0.1)
    model.caption_dropout = 0.0
    model.training_step(toy, 0)
    assert not asked[-1].any()


def test_a_loss_that_is_not_finite_stops_before_any_weight_moves(made, toy, tmp_path) -> None:
    model = prior(made)
    with torch.no_grad():
        model.gpt.predict.first.weight[0, 0] = torch.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteLoss, match=r"at step 0: train/loss=nan. The batch: k0, k1, k2, k3\."):
        fit(model, tmp_path, [toy], 1)
    after = model.state_dict()
    assert all(after[name].equal(before[name]) or name == "gpt.predict.first.weight" for name in before)


def test_its_checkpoint_draws_when_everything_else_is_gone(made, toy, tmp_path) -> None:
    root = tmp_path / "parts"
    shutil.copytree(made.root, root)
    here = SimpleNamespace(root=root, vqgan=root / "vqgan.ckpt", hf=root / "hf")
    model = prior(here)
    fit(model, tmp_path, [toy] * 5, 5)
    held = {"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": config(here)})}
    path = tmp_path / "prior.ckpt"
    atomic.save_atomic(held, path)
    options = {"seeds": [3, 4, 5, 6], "guidance": 2.0, "top_k": 8}
    expected = model.sample(TEXT, **options)
    shutil.rmtree(root)
    again = building.load(path, kind="prior")
    assert torch.equal(again.sample(TEXT, **options), expected)
    assert expected.shape == (4, 3, 8, 8) and expected.abs().max() <= 1
    second = {"state_dict": again.state_dict(), "t2i": file_format.pack(again, held["t2i"]["config"])}
    atomic.save_atomic(second, path)  # what was loaded can be saved again
    assert torch.equal(building.load(path).sample(TEXT, **options), expected)
    own = load_tokenizer(path)  # the one it carries
    assert all(torch.equal(value, model.tokenizer.state_dict()[name]) for name, value in own.state_dict().items())
    with pytest.raises(ValueError, match=r"vqgan.ckpt does not exist"):
        prior(here)


OFF = {"neighbours": False, "running_sums": False, "text_noise": 0.0, "positions": "rotary", "part_heads": "depth"}


def test_removed_options_that_were_off_load_and_others_are_told(made, tmp_path) -> None:
    assert {f"model.{key}": value for key, value in OFF.items()} == aliases.REMOVED_KEYS
    model, path = prior(made), tmp_path / "prior.ckpt"
    told = "removed in this version: train again, or use the version before"

    def save(weights: dict[str, torch.Tensor], **options: object) -> None:
        held = {"state_dict": weights, "t2i": file_format.pack(model, {"model": {**config(made), **options}})}
        atomic.save_atomic(held, path)

    save(model.state_dict(), **OFF)
    assert torch.equal(building.load(path).sample(TEXT, seeds=[1, 2, 3, 4]), model.sample(TEXT, seeds=[1, 2, 3, 4]))
    assert not OFF.keys() & file_format.read(path)["t2i"]["config"]["model"].keys()
    for key, value in {"neighbours": True, "running_sums": True, "text_noise": 0.3, "positions": "learned",
                       "part_heads": "pointer"}.items():  # fmt: skip
        save(model.state_dict(), **{**OFF, key: value})
        with pytest.raises(ValueError) as caught:
            building.load(path)
        assert str(caught.value) == f"{path}: t2i.config.model has {key}={value!r}, which was {told}"
    save(model.state_dict(), neighbours=True, running_sums=True)
    with pytest.raises(ValueError, match="has neighbours=True, running_sums=True, which were removed in this version"):
        building.load(path)
    save({**model.state_dict(), "gpt.row": torch.zeros(4, 1, 32)})  # before there were options
    with pytest.raises(ValueError) as caught:
        building.load(path)
    assert str(caught.value) == f"the weights in {path} are of options that were {told} (gpt.row)"


def test_pictures_depend_on_caption_and_seed_alone(made) -> None:
    model = prior(made)
    torch.nn.init.normal_(model.gpt.predict.first.weight)
    together = model.sample(TEXT, seeds=[1, 2, 3, 4])
    assert torch.equal(model.sample(TEXT[2:], seeds=[3, 4]), together[2:])
    assert torch.equal(model.sample(TEXT, seeds=[1, 2, 3, 4]), together)
    assert not torch.equal(model.sample(TEXT, seeds=[5, 6, 7, 8]), together)
    model.train()
    state = torch.get_rng_state()
    model.sample(TEXT[:1], seeds=[1])
    assert model.training and torch.equal(state, torch.get_rng_state())
    blind = model.sample(TEXT[:2], seeds=[1, 1], unconditional=True)
    assert torch.equal(blind[0], blind[1])


def test_completion_keeps_what_was_given(made, toy) -> None:
    model = prior(made)
    rows = toy.ids[:, :8]  # two of four rows
    asked = []
    decode = model.tokenizer.decode_ids
    model.tokenizer.decode_ids = lambda ids: asked.append(ids) or decode(ids)
    model.sample(TEXT, seeds=[1, 2, 3, 4], given=rows, guidance=2.0)
    assert torch.equal(asked[0][:, :8], rows) and asked[0].shape == (4, 16)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"top_k": 17}, "top_k=17: allowed are 1 to 16"),
        ({"temperature": -1.0}, "temperature=-1.0: allowed are numbers >= 0"),
        ({"top_p": 0.0}, "top_p=0.0: allowed are 0 < top_p <= 1"),
        ({"guidance": -2.0}, "guidance=-2.0: allowed are numbers >= 0"),
        ({"seeds": [1]}, "4 captions but 1 seeds; each picture takes one"),
        ({"given": torch.full((4, 1), 16)}, "given codes reach from 16 to 16; allowed are 0 to 15"),
        ({"given": torch.zeros(4, 17, dtype=torch.long)}, r"given codes have shape \(4, 17\)"),
        ({"cfg_scale": 2.0}, "cfg_scale is no option of the prior; allowed are unconditional, temperature"),
    ],
)
def test_options_that_are_refused(made, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        prior(made).sample(TEXT, **{"seeds": [1, 2, 3, 4], **options})


def test_no_captions_and_impossible_numbers_are_refused(made) -> None:
    with pytest.raises(ValueError, match="give at least one caption"):
        prior(made).sample([], seeds=[])
    for dropout in (1.0, -0.1):
        with pytest.raises(ValueError, match=rf"caption_dropout={dropout} is a probability, within \[0, 1\)"):
            prior(made, caption_dropout=dropout)


def test_the_encoder_is_a_clip_text_tower(made) -> None:
    model = prior(made)
    assert isinstance(model.text_encoder, CLIPText)
    assert model.gpt.text_length == 12 and model.gpt.text_in.in_features == 3 * 16
    assert model.gpt.grid == (4, 4) and model.gpt.codebook_size == 16
