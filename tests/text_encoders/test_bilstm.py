"""The BiLSTM over words: DAMSM's shape and files, our folder, and its training as a CLIP's text side."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from t2i.checkpoint import atomic, building, file_format
from t2i.convert.damsm import read_damsm
from t2i.models.clip import CLIP
from t2i.models.optimizers import is_hidden_matrix
from t2i.text_encoders.bilstm import BiLSTMText
from t2i.text_encoders.bilstm_folder import BiLSTM, WordTokenizer, from_weights, load_folder, save_folder
from t2i.text_encoders.clip import CLIPText
from t2i.types import Batch, TextEncoder

CAPTIONS = ["a red bird", "a blue bird with a red head", "blue", "the small yellow bird has a long pointed bill"]
SMALL = {
    "image_size": 16, "patch_size": 8, "width": 32, "num_layers": 1, "num_heads": 2, "text_width": 32,
    "text_heads": 5, "embed_dim": 16, "vocab_size": 40, "context_length": 16, "warmup_steps": 1, "max_steps": 20,
    "learning_rate": 3e-3, "text_tower": "bilstm",
}  # fmt: skip


def made(max_length: int = 18) -> tuple[BiLSTM, WordTokenizer]:
    torch.manual_seed(0)
    tokenizer = WordTokenizer.train(CAPTIONS, 40, max_length)
    return BiLSTM(len(tokenizer.words), 12, 8).eval(), tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_folder(*made(), tmp_path / "bilstm")
    return tmp_path / "bilstm"


def test_names_and_shapes_are_those_of_damsm() -> None:
    shapes = {name: tuple(value.shape) for name, value in BiLSTM(5450).state_dict().items()}
    one = {"weight_ih_l0": (512, 300), "weight_hh_l0": (512, 128), "bias_ih_l0": (512,), "bias_hh_l0": (512,)}
    expected = {f"rnn.{name}{side}": shape for name, shape in one.items() for side in ("", "_reverse")}
    assert shapes == {"encoder.weight": (5450, 300), **expected}
    states, sentence = BiLSTM(9)(torch.tensor([[1, 2, 3], [4, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]]).bool())
    assert states.shape == (2, 3, 256) and sentence.shape == (2, 256)


def test_one_caption_is_what_torchs_lstm_makes_of_it() -> None:
    model, tokenizer = made()
    ids, mask = tokenizer(CAPTIONS[1:2])
    lstm = nn.LSTM(12, 8, bidirectional=True)
    lstm.load_state_dict(model.rnn.state_dict())
    output, (last, _) = lstm(model.encoder.weight[ids[0]][:, None])
    states, sentence = model(ids, mask)
    torch.testing.assert_close(states[0], output[:, 0])
    torch.testing.assert_close(sentence[0], torch.cat([last[0, 0], last[1, 0]]))
    # The sentence: forward at the last word, backward at the first.
    torch.testing.assert_close(sentence[0], torch.cat([states[0, -1, :8], states[0, 0, 8:]]))


def test_a_caption_does_not_depend_on_its_batch_nor_on_autocast(folder: Path) -> None:
    encoder = BiLSTMText(str(folder))
    assert isinstance(encoder, TextEncoder) and (encoder.dim, encoder.pooled_dim, encoder.max_length) == (16, 16, 18)
    texts = [*CAPTIONS, ""]
    together = encoder(texts)
    assert together.states.shape == (*together.mask.shape, 16) and together.mask.sum(1).tolist() == [3, 7, 1, 9, 1]
    assert not together.states[~together.mask].any()
    assert together.states.dtype == torch.float32 and not together.states.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(encoder(texts).states, together.states)
    for i, text in enumerate(texts):
        alone = encoder([text])
        n = alone.states.shape[1]
        torch.testing.assert_close(together.states[i, :n], alone.states[0], atol=1e-6, rtol=0)
        torch.testing.assert_close(together.pooled[i], alone.pooled[0], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"text=\[\]"):
        encoder([])


def test_dropout_is_for_training_only() -> None:
    model, ids, mask = BiLSTM(9, 12, 8, dropout=0.5), torch.tensor([[1, 2]]), torch.ones(1, 2).bool()
    assert not torch.equal(model(ids, mask)[1], model(ids, mask)[1])
    assert torch.equal(model.eval()(ids, mask)[1], model(ids, mask)[1])


def test_words_by_frequency_then_alphabet() -> None:
    tokenizer = WordTokenizer.train(["b a", "c B", "É c_1"], 5)
    assert tokenizer.words == ["<end>", "b", "a", "c", "c_1"]
    assert WordTokenizer.train(["b a", "c B"], 3).words == ["<end>", "b", "a"]
    again = WordTokenizer.from_json(tokenizer.to_json())
    assert (again.words, again.max_length) == (tokenizer.words, 18)
    with pytest.raises(ValueError, match="vocab_size=1: at least 2"):
        WordTokenizer.train(["a"], 1)
    with pytest.raises(ValueError, match="no words"):
        WordTokenizer.train(["?", ""], 9)
    with pytest.raises(ValueError, match="'a' more than once"):
        WordTokenizer(["<end>", "a", "a"])
    with pytest.raises(ValueError, match="the first word is 'a'"):
        WordTokenizer(["a"])


def test_ids_unknown_words_and_captions_without_words() -> None:
    tokenizer = WordTokenizer(["<end>", "red", "caf", "cat"], 3)
    ids, mask = tokenizer(["RED, zebra-cat!", "", "<end>", "Café"])  # DAMSM drops what is not ASCII
    assert ids.tolist() == [[1, 3], [0, 0], [0, 0], [2, 0]] and ids.dtype == torch.long
    assert mask.tolist() == [[True, True], [True, False], [True, False], [True, False]]
    with pytest.warns(UserWarning, match=r"has 5 known words.*takes 3.*not seen: 'cat red'"):
        assert tokenizer(["red cat red cat red"[:11] + " cat red"])[0].tolist() == [[1, 3, 1]]


def test_unknown_words_are_told_once(folder: Path, recwarn: pytest.WarningsRecorder) -> None:
    encoder = BiLSTMText(str(folder))
    for _ in range(2):
        encoder(["a red zebra"])
    assert [str(w.message) for w in recwarn if "zebra" in str(w.message)] == [
        "the text encoder does not know the word 'zebra': it is left out"]
    assert encoder.not_seen("a red") is None
    assert encoder.not_seen("zebra and yak") == (
        "the text encoder does not know the words 'zebra', 'and', 'yak': they are left out")
    assert "known words, the text encoder takes 18" in str(encoder.not_seen("red " * 19))


def test_the_folder_holds_what_was_saved_and_replaces_an_older_one(folder: Path) -> None:
    model, tokenizer = made()
    again, words = load_folder(folder)
    assert words.to_json() == tokenizer.to_json() and not any(p.requires_grad for p in again.parameters())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    before = BiLSTMText(str(folder)).hash()
    model.encoder.weight.data.zero_()
    save_folder(model, tokenizer, folder)
    assert not load_folder(folder)[0].encoder.weight.any() and BiLSTMText(str(folder)).hash() != before
    assert [p.name for p in folder.parent.iterdir()] == ["bilstm"]


def test_a_failed_save_leaves_the_older_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def fails(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            raise OSError("no room")
        real(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="no room"):
        save_folder(*made(), folder)
    assert load_folder(folder) and [p.name for p in folder.parent.iterdir()] == ["bilstm"]


def test_a_part_replaces_the_folder(folder: Path, tmp_path: Path) -> None:
    encoder = BiLSTMText(str(folder))
    torch.save(encoder.part(), tmp_path / "part.pt")
    shutil.rmtree(folder)
    part = torch.load(tmp_path / "part.pt", weights_only=True)
    assert set(part["files"]) == {"config.json", "vocabulary.json"}
    again = building.build_part(part, tmp_path, "text_encoder")
    expected, got = encoder(CAPTIONS), again(CAPTIONS)
    assert torch.equal(expected.states, got.states) and torch.equal(expected.pooled, got.pooled)
    assert again.hash() == encoder.hash() and again.part()["config"] == encoder.part()["config"]


def test_what_is_no_such_folder_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere.*no folder of that name.*model.text_tower=bilstm"):
        BiLSTMText(str(tmp_path / "nowhere"))
    (folder / "vocabulary.json").rename(tmp_path / "words")
    with pytest.raises(ValueError, match=r"path='.*bilstm' is no folder.*it has no vocabulary.json$"):
        BiLSTMText(str(folder))
    (folder / "vocabulary.json").write_text("[]")
    with pytest.raises(ValueError, match=r"vocabulary.json: this is no vocabulary.json"):
        BiLSTMText(str(folder))
    (folder / "vocabulary.json").write_text(json.dumps({"max_length": 9, "words": ["<end>", *map(str, range(99))]}))
    with pytest.raises(ValueError, match=r"the vocabulary has 100 words, the embedding \d+ rows"):
        BiLSTMText(str(folder))
    (folder / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read"):
        BiLSTMText(str(folder))
    (folder / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="text_encoder=clip reads"):
        BiLSTMText(str(folder))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="it has no config.json, no vocabulary.json, no model.safetensors"):
        BiLSTMText(str(empty))


def damsm(tmp_path: Path, protocol: int, **changes: torch.Tensor) -> tuple[Path, Path]:
    model, tokenizer = made()
    ixtoword = dict(enumerate(tokenizer.words))
    held = [[[1, 2]], [[3]], ixtoword, {word: i for i, word in ixtoword.items()}]
    (tmp_path / "captions_DAMSM.pickle").write_bytes(pickle.dumps(held, protocol))
    torch.save({**model.state_dict(), **changes}, tmp_path / "text_encoder100.pth",
               _use_new_zipfile_serialization=protocol != 2)
    return tmp_path / "text_encoder100.pth", tmp_path / "captions_DAMSM.pickle"


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_damsms_files_are_read(tmp_path: Path, protocol: int) -> None:
    model, tokenizer = made()
    encoder = read_damsm(*damsm(tmp_path, protocol))
    states, sentence = model(*tokenizer(CAPTIONS))
    embedding = encoder(CAPTIONS)
    torch.testing.assert_close(embedding.states, states)
    torch.testing.assert_close(embedding.pooled, sentence)
    encoder.save(tmp_path / "bilstm")
    assert BiLSTMText(str(tmp_path / "bilstm")).hash() == encoder.hash()


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path) -> None:
    n = len(made()[1].words)
    files = damsm(tmp_path, 2, **{"encoder.weight": torch.zeros(n + 3, 12)})
    with pytest.raises(ValueError, match=rf"captions_DAMSM.pickle has {n} words with ids up to {n - 1}.*"
                       rf"text_encoder100.pth has {n + 3} rows"):
        read_damsm(*files)
    files = damsm(tmp_path, 2, **{"rnn.weight_hh_l1": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"text_encoder100.pth.*unexpected rnn.weight_hh_l1"):
        read_damsm(*files)
    files = damsm(tmp_path, 2, **{"rnn.bias_hh_l0": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"rnn.bias_hh_l0 has shape \(1,\), \(32,\) is wanted"):
        read_damsm(*files)
    files = damsm(tmp_path, 2)
    files[1].write_bytes(pickle.dumps([[], [], {}, {"<end>": 0, **{str(i): 2 for i in range(1, n - 1)}, "z": n - 1}]))
    with pytest.raises(ValueError, match="are not 0 .* each once"):
        read_damsm(*files)
    files[1].write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"no vocabulary of DAMSM.*it holds 2 items"):
        read_damsm(*files)
    files[0].write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"text_encoder100.pth is a web page"):
        read_damsm(*files)


def test_weights_of_other_shapes_are_refused_by_name() -> None:
    state = made()[0].state_dict()
    with pytest.raises(ValueError, match="weights in there are.*missing encoder.weight; missing rnn.bias_hh_l0$"):
        from_weights({k: v for k, v in state.items() if k not in ("encoder.weight", "rnn.bias_hh_l0")}, "there")
    with pytest.raises(ValueError, match=r"encoder.weight has shape \(5,\)"):
        from_weights({**state, "encoder.weight": torch.zeros(5)}, "there")
    with pytest.raises(ValueError, match="encoder.weight is no tensor"):
        from_weights({**state, "encoder.weight": 3}, "there")


class Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_nothing_in_the_files_is_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    weights, vocabulary = damsm(tmp_path, 2)
    vocabulary.write_bytes(pickle.dumps([[], [], {}, Command(f"touch {mark}")], 2))
    with pytest.raises(ValueError, match=r"captions_DAMSM.pickle is refused: it wants (posix|nt)\.system"):
        read_damsm(weights, vocabulary)
    for zipped in (True, False):
        torch.save({"encoder.weight": Command(f"touch {mark}")}, weights, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match="text_encoder100.pth"):
            read_damsm(weights, vocabulary)
    assert not mark.exists()


def clip(**changes: object) -> CLIP:
    torch.manual_seed(0)
    model = CLIP(**{**SMALL, **changes})
    model.prepare(CAPTIONS)
    return model


def pairs() -> Batch:
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Batch(images, list(CAPTIONS), list(CAPTIONS))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_clip_trains_it_and_exports_its_folder(tmp_path: Path, optimizer: str) -> None:
    model, batch = clip(optimizer=optimizer), pairs()
    set_up = model.configure_optimizers()
    stepper, losses = set_up["optimizer"], []
    for _ in range(6):
        loss = model._loss(model.encode_image(batch.image), model.encode_text(batch.text), batch.text)
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        set_up["lr_scheduler"]["scheduler"].step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05
    assert all(parameter.grad is not None for parameter in model.parameters())  # no unused tower
    model.export(tmp_path / "bilstm")
    assert sorted(p.name for p in (tmp_path / "bilstm").iterdir()) == [
        "config.json", "model.safetensors", "vocabulary.json"]
    encoder = BiLSTMText(str(tmp_path / "bilstm"))
    assert (encoder.dim, encoder.max_length) == (32, 16)
    red, blue = encoder(["a red bird", "a blue bird"]).pooled
    assert (red - blue).abs().max() > 1e-4
    torch.testing.assert_close(model.clip.text_projection(encoder(CAPTIONS).pooled), model.encode_text(CAPTIONS))
    with pytest.raises(ValueError, match="could not be read"):
        CLIPText(str(tmp_path / "bilstm"))


def test_muon_moves_no_weight_of_the_recurrence() -> None:
    moved = [name for name, p in clip().clip.named_parameters() if is_hidden_matrix(name, p)]
    assert "text_projection.weight" in moved and not [name for name in moved if name.startswith("words.")]


def test_the_image_tower_has_the_transformers_modes_names() -> None:
    other = CLIP(**{**SMALL, "text_tower": "transformer", "text_heads": 2, "vocab_size": 300})
    theirs = {k for k in other.state_dict() if "text" not in k}
    assert {k for k in clip().state_dict() if "words" not in k and "text" not in k} == theirs
    assert len(other.nets()) == 2 and len(clip().nets()) == 1


def test_a_checkpoint_carries_the_words(tmp_path: Path) -> None:
    model = clip()
    node = {"_target_": "t2i.models.clip.CLIP", **SMALL}
    held = {"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": node})}
    model.on_save_checkpoint(held)
    atomic.save_atomic(held, tmp_path / "last.ckpt")
    again = building.load(tmp_path / "last.ckpt", "clip")
    assert torch.equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    assert again.clip.words.vocab_size == SMALL["vocab_size"] > len(again.tokenizer.words)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"text_tower": "gru"}, "text_tower='gru': one of transformer, bilstm"),
     ({"text_width": 31}, "text_width=31 is odd")],
)
def test_impossible_towers_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clip(**change)


class Pairs(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> Batch:
        return pairs()


def test_a_lightning_run_resumes_and_leaves_the_folder(tmp_path: Path) -> None:
    import pytorch_lightning as pl

    loader = torch.utils.data.DataLoader(Pairs(), batch_size=None)
    options = {"default_root_dir": tmp_path, "accelerator": "cpu", "logger": False, "enable_progress_bar": False,
               "enable_checkpointing": False, "enable_model_summary": False, "precision": "bf16-mixed"}  # fmt: skip
    first = pl.Trainer(max_steps=2, **options)
    first.fit(clip(), loader, loader)
    first.save_checkpoint(tmp_path / "last.ckpt")
    fresh = CLIP(**SMALL)
    second = pl.Trainer(max_steps=4, **options)
    second.fit(fresh, loader, loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert second.global_step == 4 and {"train/loss", "val/text_to_image"} <= set(second.callback_metrics)
    assert not (tmp_path / "hf").exists()
    fresh.eval()
    expected = fresh.clip.text_projection(BiLSTMText(str(tmp_path / "bilstm"))(CAPTIONS).pooled)
    torch.testing.assert_close(fresh.encode_text(CAPTIONS), expected)
