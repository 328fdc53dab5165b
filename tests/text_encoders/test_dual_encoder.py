"""A CLIP over a sentence encoder as transformers' own folder: read by all that takes a CLIP, nothing executed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tests.text_encoders.test_sentence import CAPTIONS, SIZES, write
from transformers import (
    AutoTokenizer,
    BertConfig,
    CLIPVisionConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from t2i.checkpoint import building
from t2i.generation.clip_guided.clip_models.base import same_weights
from t2i.generation.clip_guided.clip_models.loading import load_clip_model
from t2i.metrics.clip_score import CLIPScorer, text_hash
from t2i.models.clip import CLIP
from t2i.text_encoders.clip import CLIPText
from t2i.text_encoders.dual_encoder import POOLER_SCALE, load_dual, mean_features, with_mean_pooling
from t2i.text_encoders.sentence import SentenceEncoder

SMALL = {"image_size": 32, "patch_size": 16, "width": 16, "num_layers": 1, "num_heads": 2, "embed_dim": 12,
         "text_tower": "sentence"}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sentence") / "bert")


def clip(bert: Path, **changes: Any) -> CLIP:
    torch.manual_seed(0)
    return CLIP(**{**SMALL, **changes}, text_encoder=SentenceEncoder(str(bert), max_length=12)).eval()


@pytest.fixture(scope="module")
def made(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CLIP, Path]:
    model, path = clip(bert), tmp_path_factory.mktemp("dual") / "hf"
    model.export(path)
    return model, path


@pytest.fixture
def folder(made: tuple[CLIP, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[1], tmp_path / "hf"))


def change(file: Path, part: str | None = None, **values: Any) -> None:
    held = json.loads(file.read_text())
    (held if part is None else held[part]).update(values)
    file.write_text(json.dumps(held))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_pooler_is_the_mean_over_the_tokens(kind: str, tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(write(tmp_path / kind, kind)), max_length=12)
    ids, mask = encoder.tokenizer(CAPTIONS)
    with torch.no_grad():
        output = with_mean_pooling(encoder.tower, 12)(input_ids=ids, attention_mask=mask.long(),
                                                      output_hidden_states=True)
    got, found = encoder(CAPTIONS), output.pooler_output / POOLER_SCALE
    torch.testing.assert_close(found, mean_features(got.pooled), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.hidden_states[2][mask], got.states[mask], atol=1e-6, rtol=0)
    assert encoder.tower.config.num_hidden_layers == 2  # a copy


@pytest.mark.parametrize("image_tower", ["vit", "efficientnet"])
def test_transformers_reads_the_folder_to_the_same_embeddings(
    image_tower: str, bert: Path, tmp_path: Path, made: tuple[CLIP, Path]
) -> None:
    model, path = made
    if image_tower == "efficientnet":
        model, path = clip(bert, image_tower="efficientnet"), tmp_path / "hf"
        model.prepare([])
        model.export(path)
    theirs, tokenizer = VisionTextDualEncoderModel.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    pixels = ((images + 1) / 2 - torch.tensor(model.mean).view(3, 1, 1)) / torch.tensor(model.std).view(3, 1, 1)
    with torch.no_grad():
        want = theirs(**tokenizer(CAPTIONS, padding=True, return_tensors="pt"), pixel_values=pixels)
        text, image = F.normalize(model.encode_text(CAPTIONS)), F.normalize(model.encode_image(images))
    torch.testing.assert_close(text, want.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(image, want.image_embeds, atol=1e-5, rtol=0)
    assert theirs.logit_scale == model.clip.logit_scale
    scorer, guide = CLIPScorer(str(path)), load_clip_model(str(path))
    for got_text, got_image in ((scorer.embed_text(CAPTIONS), scorer.embed_image(images)),
                                (guide.embed_text(CAPTIONS), guide.embed_image(images))):
        torch.testing.assert_close(got_text, text, atol=1e-5, rtol=0)
        torch.testing.assert_close(got_image, image, atol=1e-5, rtol=0)
    assert same_weights(guide, scorer) and scorer.image_size == 32
    assert {p.name for p in path.iterdir()} == {"config.json", "model.safetensors", "preprocessor_config.json",
                                                "tokenizer.json", "tokenizer_config.json"}


def test_as_a_text_encoder_it_gives_the_sentence_encoders_states(bert: Path, folder: Path, tmp_path: Path) -> None:
    encoder = CLIPText(str(folder))
    assert (encoder.dim, encoder.pooled_dim, encoder.max_length) == (8, 12, 12)
    for layer in (-1, 0, 1, -2):
        got, want = CLIPText(str(folder), layer)(CAPTIONS), SentenceEncoder(str(bert), layer, 12)(CAPTIONS)
        torch.testing.assert_close(got.states, want.states, atol=1e-5, rtol=0)
        assert torch.equal(got.mask, want.mask)
    torch.testing.assert_close(encoder(CAPTIONS).pooled, clip(bert).encode_text(CAPTIONS), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="layer=3: the text tower has 2 layers, allowed are -3 to 2"):
        CLIPText(str(folder), 3)
    assert text_hash(encoder.tower) == CLIPScorer(str(folder)).text_id
    torch.save(encoder.part(), tmp_path / "part.pt")
    shutil.rmtree(folder)
    part = torch.load(tmp_path / "part.pt", weights_only=True)
    again = building.build_part(part, "x.ckpt", "text_encoder")
    assert torch.equal(again(CAPTIONS).states, encoder(CAPTIONS).states)
    assert torch.equal(again(CAPTIONS).pooled, encoder(CAPTIONS).pooled) and again.hash() == encoder.hash()
    held = json.loads(part["files"]["config.json"])
    for values, message in (({"model_type": "gpt2"}, "do not fit"), ({"hidden_size": 2**20}, "x.ckpt"),
                            ({"num_hidden_layers": 10**6}, "more weights than the file holds")):
        hostile = {**part, "files": {**part["files"], "config.json": json.dumps({**held, **values})}}
        with pytest.raises(ValueError, match=message) as raised:
            building.build_part(hostile, "x.ckpt", "text_encoder")
        assert "\n" not in str(raised.value)


def test_published_folders_of_such_towers_are_read(bert: Path, folder: Path) -> None:
    """Of transformers' own making, with BERT's own pooler."""
    torch.manual_seed(0)
    model = VisionTextDualEncoderModel(VisionTextDualEncoderConfig(
        text_config=BertConfig(**SIZES, initializer_range=0.5).to_dict(), projection_dim=6,
        vision_config=CLIPVisionConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                       image_size=32, patch_size=16).to_dict())).eval()
    model.save_pretrained(folder)
    ids, mask = load_dual(str(folder))[1](CAPTIONS)
    with torch.no_grad():
        want = model.get_text_features(input_ids=ids, attention_mask=mask.long()).pooler_output
        images = torch.rand(2, 3, 32, 32) * 2 - 1
        seen = model.get_image_features(pixel_values=images).pooler_output
    scorer = CLIPScorer(str(folder))
    torch.testing.assert_close(scorer.embed_text(CAPTIONS), F.normalize(want), atol=1e-5, rtol=0)
    torch.testing.assert_close(scorer.embed_image(images), F.normalize(seen), atol=1e-5, rtol=0)
    encoder = CLIPText(str(folder))
    assert encoder.tower.config.num_hidden_layers == 2 and encoder.max_length == 40
    torch.testing.assert_close(encoder(CAPTIONS).pooled, want, atol=1e-5, rtol=0)


def test_weights_of_transformers_4_are_read(folder: Path) -> None:
    want = CLIPScorer(str(folder)).id
    weights = load_file(folder / "model.safetensors")
    old = {name.replace("vision_model.", "vision_model.vision_model.", 1) if name.startswith("vision_model.") else name:
           value for name, value in weights.items() if "vision_model.vision_model." not in name}
    old |= {name: value for name, value in weights.items() if "vision_model.vision_model." in name}
    save_file(old | {"text_model.embeddings.position_ids": torch.arange(40)[None]}, folder / "model.safetensors")
    assert CLIPScorer(str(folder)).id == want


def test_what_is_wrong_with_a_folder_is_told_and_nothing_is_run(folder: Path) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    good, bytes_ = config.read_text(), weights.read_bytes()
    timm = {"model_type": "timm_wrapper", "architecture": "hf-hub:somebody/net"}
    for part, values, message in (
        ("text_config", {"model_type": "distilbert"}, "model_type='distilbert' of a CLIP's text tower; bert, rob"),
        ("vision_config", {"model_type": "resnet"}, "model_type='resnet' of a CLIP's image tower; clip_vision_"),
        ("vision_config", timm, "architecture='hf-hub:somebody/net' of timm; tf_efficientnet_lite0 is taken"),
        ("text_config", {"hidden_act": "os.system"}, "hidden_act='os.system' is no activation"),
        ("text_config", {"vocab_size": 13}, r"word_embeddings.weight has shape \(12, 8\), \(13, 8\) is wanted"),
        ("text_config", {"num_hidden_layers": 10**6}, "more weights than the file holds"),
        ("text_config", {"context_length": 99}, "context_length=99; allowed are 3 to 40"),
        ("text_config", {"context_length": "long"}, "context_length='long'; allowed are 3 to 40"),
        ("vision_config", {"_attn_implementation": "x/kernels"}, "asks for _attn_implementation='x/kernels'"),
        (None, {"quantization_config": {}}, "asks for quantization_config={}, which would be fetched"),
        (None, {"text_config": None}, "does not tell text_config and vision_config"),
        (None, {"model_type": "siglip"}, "type '?siglip'?; 'clip' is wanted"),
    ):  # fmt: skip
        change(config, part, **values)
        for reader in (CLIPScorer, CLIPText, load_clip_model):
            with pytest.raises(ValueError, match=message) as raised:
                reader(str(folder))
            assert "\n" not in str(raised.value) and "hf" in str(raised.value)
        config.write_text(good)
    change(config, auto_map={"AutoModel": "x--y.Z"})  # the name of code counts for nothing
    CLIPScorer(str(folder))
    config.write_text(good)
    weights.write_bytes(bytes_[:-100])
    with pytest.raises(ValueError, match="model.safetensors is damaged or cut off"):
        CLIPScorer(str(folder))
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has no model.safetensors"):
        CLIPScorer(str(folder))
