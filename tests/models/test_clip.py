import json
import resource
import warnings

import pytest
import torch
from transformers import AutoTokenizer, CLIPModel

from t2i.metrics.clip_score import CLIPScorer
from t2i.models.clip import CLIP
from t2i.text_encoders.clip import CLIPText
from t2i.text_encoders.clip_folder import (
    CaptionTokenizer,
    image_normalisation,
    load_clip,
    preprocess,
    save_folder,
    train_tokenizer,
)
from t2i.types import Batch, TextEncoder

COLOURS = {
    "red": (1.0, -1.0, -1.0),
    "green": (-1.0, 1.0, -1.0),
    "blue": (-1.0, -1.0, 1.0),
    "grey": (0.0, 0.0, 0.0),
}
CAPTIONS = [f"{a} above {b}" for a in COLOURS for b in COLOURS]
SMALL = {
    "image_size": 16, "patch_size": 8, "width": 32, "num_layers": 1, "num_heads": 2, "text_width": 32,
    "text_layers": 2, "text_heads": 2, "embed_dim": 16, "vocab_size": 300, "context_length": 16,
    "warmup_steps": 5, "max_steps": 60, "learning_rate": 3e-3,
}  # fmt: skip


def picture(caption: str) -> torch.Tensor:
    top, bottom = caption.split(" above ")
    rows = [torch.tensor(COLOURS[name]).view(3, 1, 1).expand(3, 8, 16) for name in (top, bottom)]
    return torch.cat(rows, dim=1)


def batch() -> Batch:
    return Batch(torch.stack([picture(c) for c in CAPTIONS]), list(CAPTIONS), list(CAPTIONS))


def small(**changes: object) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(**{**SMALL, **changes})
    model.prepare(CAPTIONS)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "hf"
    small().export(path)
    return path


def test_the_folder_is_an_ordinary_hugging_face_folder(folder):
    ours, tokenizer = load_clip(str(folder))
    theirs, their_tokenizer = CLIPModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    texts = ["red above blue", "A GREY, 'odd'", "é 🙂"]
    expected = their_tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = tokenizer(texts)
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"].bool())
    theirs_text = theirs.get_text_features(**expected).pooler_output
    torch.testing.assert_close(CLIPText(str(folder))(texts).pooled, theirs_text, atol=1e-5, rtol=0)
    images = batch().image
    torch.testing.assert_close(
        ours.get_image_features(pixel_values=images).pooler_output,
        theirs.get_image_features(pixel_values=images).pooler_output,
    )
    assert image_normalisation(str(folder)) == ((0.5,) * 3, (0.5,) * 3)


def test_exporting_again_replaces_the_folder_and_leaves_nothing_beside(tmp_path):
    model = small()
    model.export(tmp_path / "hf")
    model.clip.logit_scale.data.fill_(1.0)
    model.export(tmp_path / "hf")
    assert load_clip(str(tmp_path / "hf"))[0].logit_scale.item() == 1.0
    assert [p.name for p in tmp_path.iterdir()] == ["hf"]


def test_a_full_disk_is_named_and_leaves_nothing_beside(tmp_path):
    model, (soft, hard) = small(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"hf could not be written: File too large"):
            model.export(tmp_path / "hf")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


def test_captions_differ_and_do_not_depend_on_their_batch(folder):
    encoder = CLIPText(str(folder))
    assert isinstance(encoder, TextEncoder)
    texts = ["red above blue", "blue above red", "", "a longer grey"]
    together = encoder(texts)
    assert together.states.shape == (*together.mask.shape, encoder.dim)
    assert together.pooled.shape == (4, encoder.pooled_dim)
    assert (together.pooled[0] - together.pooled[1]).abs().max() > 1e-4
    assert not together.states[~together.mask].any()
    for i, text in enumerate(texts):
        alone = encoder([text])
        n = alone.states.shape[1]
        assert together.mask[i].sum() == n
        torch.testing.assert_close(together.states[i, :n], alone.states[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together.pooled[i], alone.pooled[0], atol=1e-5, rtol=0)


def test_case_does_not_matter_and_autocast_does_not_touch_it(folder):
    encoder = CLIPText(str(folder))
    states = encoder(["red above blue"]).states
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = encoder(["RED above Blue"]).states
    assert again.dtype == torch.float32 and torch.equal(states, again) and not states.requires_grad


def test_what_was_trained_is_what_is_read(folder):
    model = small()
    expected = model.encode_text(CAPTIONS)
    torch.testing.assert_close(CLIPText(str(folder))(CAPTIONS).pooled, expected, atol=1e-5, rtol=0)


def test_layers(folder):
    layers = {layer: CLIPText(str(folder), layer)(["red"]).states for layer in (-1, -2, 0, 1, 2)}
    assert torch.equal(layers[-2], layers[1]) and not torch.equal(layers[-1], layers[2])
    for layer, states in layers.items():
        assert torch.equal(CLIPText(str(folder), layer).states(["red"]).states, states)
    with pytest.raises(ValueError, match="layer=3.*allowed are -3 to 2"):
        CLIPText(str(folder), 3)


def test_long_captions_are_cut_with_a_warning_that_says_where(folder):
    encoder = CLIPText(str(folder))
    long = "red above blue " * 6 + "zebra"
    with pytest.warns(UserWarning, match=r"takes 14.*cut after '.*red above'.*not seen: 'blue.*zebra'"):
        embedding = encoder([long])
    assert embedding.states.shape[1] == encoder.max_length == 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder(["red above blue"])


def test_a_part_replaces_the_folder(tmp_path):
    small().export(tmp_path / "hf")
    encoder = CLIPText(str(tmp_path / "hf"), layer=-2)
    (tmp_path / "hf").rename(tmp_path / "away")
    torch.save(encoder.part(), tmp_path / "part.pt")
    part = torch.load(tmp_path / "part.pt", weights_only=True)
    assert part["config"]["_target_"] == "t2i.text_encoders.clip.CLIPText" and set(part["files"]) == {
        "config.json",
        "tokenizer.json",
    }
    again = CLIPText.from_part(part, "last.ckpt")
    expected, got = encoder(CAPTIONS), again(CAPTIONS)
    assert torch.equal(expected.states, got.states) and torch.equal(expected.pooled, got.pooled)
    assert again.part()["files"] == part["files"]


def test_a_missing_folder_says_what_was_looked_for_and_how_to_get_it(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere.*no folder of that name.*model=clip.*allow_download"):
        load_clip(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no config.json"):
        load_clip(str(tmp_path))


def test_missing_weights_and_a_foreign_end_token_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    model, tokenizer = load_clip(str(folder))
    save_folder(model, tokenizer.to_json(), tmp_path / "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "logit_scale"},
        tmp_path / "hf" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="1 weights are missing, logit_scale"):
        load_clip(str(tmp_path / "hf"))
    model.config.text_config.eos_token_id = 7
    save_folder(model, tokenizer.to_json(), tmp_path / "hf")
    with pytest.raises(ValueError, match="pools at token 7"):
        load_clip(str(tmp_path / "hf"))


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="vocab_size=100: at least 259"):
        train_tokenizer(["a"], 100)


def test_words_of_the_training_captions_become_single_tokens():
    tokenizer = CaptionTokenizer.from_json(train_tokenizer(CAPTIONS * 4, 300).to_str(), 16)
    ids, _ = tokenizer(["red above blue"])
    assert ids.shape == (1, 5) and ids[0, 0] == tokenizer.start and ids[0, -1] == tokenizer.end != 2


def test_preprocess_keeps_colours_crops_and_lets_the_gradient_through():
    image = torch.full((1, 3, 20, 30), 0.2, requires_grad=True)
    out = preprocess(image, 10, (0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
    assert out.shape == (1, 3, 10, 10)
    torch.testing.assert_close(out[0, :, 5, 5], torch.tensor([0.5, 0.8, 0.6]))
    out.sum().backward()
    assert image.grad[..., 10, 15].abs().min() > 0
    wide = torch.zeros(1, 3, 8, 16)
    wide[..., 4:12] = 1
    assert (preprocess(wide, 8, (0.5,) * 3, (0.5,) * 3) == 1).all()


def test_training_tells_the_pictures_apart(tmp_path):
    model, data = small(), batch()
    set_up = model.configure_optimizers()
    optimizer, scheduler = set_up["optimizer"], set_up["lr_scheduler"]["scheduler"]
    losses = []
    for _ in range(SMALL["max_steps"]):
        loss = model._loss(model.encode_image(data.image), model.encode_text(data.text), data.text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        model.on_train_batch_end(None, data, 0)
        losses.append(loss.item())
    assert losses[0] > 2.0 and losses[-1] < 0.5
    assert scheduler.get_last_lr()[0] == 0
    model.export(tmp_path / "hf")
    scorer = CLIPScorer(str(tmp_path / "hf"))
    right = scorer.score(data.image, data.text)
    wrong = scorer.score(data.image, data.text[1:] + data.text[:1])
    assert (right <= 1.0001).all() and (right > wrong).all()


def test_scorer_names_its_weights_and_checks_its_input(folder):
    scorer = CLIPScorer(str(folder))
    assert scorer.id == CLIPScorer(str(folder)).id and len(scorer.id) == 12
    assert scorer.score(torch.zeros(2, 3, 24, 24), ["red", "blue"]).shape == (2,)
    with pytest.raises(ValueError, match="2 pictures, 1 texts"):
        scorer.score(torch.zeros(2, 3, 16, 16), ["red"])


def test_a_checkpoint_carries_the_tokenizer():
    model, checkpoint = small(), {}
    model.on_save_checkpoint(checkpoint)
    assert all(isinstance(value, str) for value in checkpoint.values())
    fresh = CLIP(**SMALL)
    with pytest.raises(ValueError, match="no tokenizer yet"):
        fresh.encode_text(["red"])
    fresh.on_load_checkpoint(json.loads(json.dumps(checkpoint)))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.encode_text(["red"]), model.encode_text(["red"]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 7}, "image_size=16 is no multiple of patch_size=7"),
        ({"num_heads": 3}, "width=32 is no multiple of num_heads=3"),
        ({"context_length": 2}, "context_length=2"),
        ({"vocab_size": 10}, "vocab_size=10"),
    ],
)
def test_impossible_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Batch:
        return batch()


@pytest.mark.slow
def test_a_lightning_run_validates_and_leaves_the_folder(tmp_path):
    import pytorch_lightning as pl

    model = small(max_steps=2)
    loader = torch.utils.data.DataLoader(Pairs(), batch_size=None)
    trainer = pl.Trainer(
        max_steps=2, default_root_dir=tmp_path, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, 
        val_check_interval=2, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(model, loader, loader)
    metrics = trainer.callback_metrics
    assert {"train/loss", "train/scale", "val/loss", "val/text_to_image", "val/image_to_text"} <= set(metrics)
    assert 0 <= metrics["val/batch_text_to_image"] <= 1
    assert len(CLIPText(str(tmp_path / "hf"))(["red"]).pooled[0]) == SMALL["embed_dim"]
    assert trainer.global_step == 2


@pytest.mark.parametrize(("change", "words"), [
    (lambda held: held["normalizer"]["normalizers"].append(
        {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 16}), "more than one letter"),
    (lambda held: held.update(normalizer={"type": "Prepend", "prepend": "x" * 1000}), "normalizer 'Prepend'"),
    (lambda held: held["model"]["vocab"].update(zebra=10**6), "has the id 1000000, the text tower"),
    (lambda held: held.pop("model"), "cannot be taken|is damaged"),
])  # fmt: skip
def test_tokenizers_that_a_part_may_not_have(tmp_path, change, words):
    small().export(tmp_path / "hf")
    part = CLIPText(str(tmp_path / "hf")).part()
    held = json.loads(part["files"]["tokenizer.json"])
    change(held)
    part["files"]["tokenizer.json"] = json.dumps(held)
    with pytest.raises(ValueError, match=words):
        CLIPText.from_part(part, "x.ckpt")


@pytest.mark.parametrize(("change", "words"), [
    ({"_attn_implementation": "somebody/kernels"}, "asks for _attn_implementation='somebody/kernels'"),
    ({"quantization_config": {"quant_method": "x"}}, "asks for quantization_config"),
])  # fmt: skip
def test_folders_that_ask_for_code(tmp_path, change, words):
    small().export(tmp_path / "hf")
    file = tmp_path / "hf/config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(ValueError, match=words):
        CLIPText(str(tmp_path / "hf"))
