"""From a config to what a model trains on: packed pictures, cached codes and caption states, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data import code_cache, datasets, text_embedding_cache
from t2i.data.rows import JsonLines
from t2i.models.prior import Prior
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.tokenizer import ImageTokenizer
from t2i.quantizers.fsq import FSQ
from t2i.types import TextEmbedding


class Words:
    """A frozen text encoder: a caption's states are its words' lengths and first letters."""

    dim, pooled_dim, max_length = 4, 4, 12

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, text: list[str]) -> TextEmbedding:
        self.calls += 1
        each = [[[len(w), ord(w[0]) / 50, i, 1.0] for i, w in enumerate(f"<s> {caption}".split())] for caption in text]
        longest = max(map(len, each))
        states = torch.zeros(len(text), longest, 4)
        mask = torch.zeros(len(text), longest, dtype=torch.bool)
        for row, found in enumerate(each):
            states[row, : len(found)], mask[row, : len(found)] = torch.tensor(found), True
        return TextEmbedding(states, mask, states[:, 0])

    states = __call__

    def to(self, device: Any) -> Words:
        return self

    def hash(self) -> str:
        return "words"


def tokenizer() -> ImageTokenizer:
    torch.manual_seed(0)
    net = Autoencoder(channels=8, multipliers=[1, 1], num_res_blocks=1, attention_levels=[], z_channels=4,
                      num_groups=4, mid_attention=False)
    return ImageTokenizer(net, FSQ((5, 5)), 8).eval()


def write(root: Path, captions: bool = True) -> Path:
    root.mkdir()
    lines = []
    for i in range(12):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (10, 9, 3), np.uint8)).save(root / f"{i}.png")
        lines.append({"file_name": f"{i}.png", "text": [f"picture {i}", f"one more {i} of them"][: 1 + i % 2],
                      "split": "val" if i > 8 else "train"})
    if captions:
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def config(root: Path, **data: Any) -> dict[str, Any]:
    node = {"_target_": "t2i.data.folder.Folder", "root": str(root), "image_size": 8, "flip": True, "views": 2,
            "batch_size": 3, "workers": 0, **data}
    return {"data": node, "seed": 0, "paths": {"cache": str(root.parent / "cache")}, "trainer": {"accelerator": "cpu"},
            "model": {"_target_": "t2i.models.prior.Prior"}}


def prior(cache_text: bool) -> Prior:
    torch.manual_seed(1)
    return Prior(tokenizer(), Words(), max_steps=10, width=16, num_layers=1, num_heads=2, cache_text=cache_text)


def test_a_prior_trains_alike_with_and_without_cached_states(tmp_path) -> None:
    root = write(tmp_path / "pictures")
    losses = []
    for cached in (False, True):
        model = prior(cached)
        loader = datasets.data_module(config(root), model).train_dataloader()
        model.text_encoder.calls = 0
        for _ in range(2):
            for batch in loader:
                assert (batch.states is not None) == cached
                losses.append(model.loss(batch, torch.zeros(3, dtype=torch.bool)))
        assert model.text_encoder.calls == (0 if cached else 6)
    assert len(losses) == 12 and torch.equal(torch.stack(losses[:6]), torch.stack(losses[6:]))
    names = sorted(p.parent.name + "/" + p.name.split("-")[0] for p in (tmp_path / "cache").glob("*/*") if p.is_dir())
    assert names == ["codes/train", "codes/val", "packed/folder", "packed/folder", "states/train", "states/val"]


def test_views_and_captions_change_with_the_epoch(tmp_path) -> None:
    module = datasets.data_module(config(write(tmp_path / "pictures")), prior(False))
    held = module.train_set
    for index in range(9):
        seen = {(bytes(held[index, epoch][0]), held[index, epoch][1]) for epoch in range(40)}
        views = {bytes(held.codes[index, view][0]) for view in (0, 1)}
        assert len(seen) == len(views) * (1 + index % 2)
    val = module.val_set
    assert val.codes.views == 1 and val[0, 0][2] == "9.png"


def test_pictures_alone_are_for_tokenizers(tmp_path) -> None:
    root = write(tmp_path / "pictures", captions=False)
    with pytest.raises(ValueError, match=r"\d+.png \(data, \w+\) has no caption; model=vqgan trains on pictures alone, "
                                         "Prior needs captions"):
        datasets.data_module(config(root), prior(False))


def test_which_captions_are_read_and_which_texts_lie_there_unread(tmp_path) -> None:
    root = write(tmp_path / "pictures", captions=False)
    (root / "000.json").write_text("{}")
    with pytest.raises(ValueError, match=r"Prior needs captions; captions are read from metadata\.jsonl, .*; unread"
                                         r" lie there 000\.json$"):
        datasets.data_module(config(root), prior(False))


def test_pictures_without_captions_are_left_out_by_name_or_number(tmp_path, capsys) -> None:
    root = write(tmp_path / "pictures", captions=False)
    for i in range(12):
        if i != 5:
            (root / f"{i}.txt").write_text(f"picture {i}")
    with pytest.raises(ValueError, match=r"^5\.png \(data, train\) has no caption; .*; 1 of \d+ have none, data\."
                                         "on_error=skip leaves them out"):
        datasets.data_module(config(root), prior(False))
    module = datasets.data_module(config(root, on_error="skip"), prior(False))
    made = {split: datasets.dataset(config(root, on_error="skip"), split) for split in datasets.SPLITS}
    assert len(module.train_set) + len(module.val_set) == 11 and len(made["train"]) + len(made["val"]) == 12
    assert "data.on_error=skip: 1 without captions left out of train" in capsys.readouterr().out
    pixels = {made["train"].key(i): made["train"].store.pixels(i).clone() for i in range(len(made["train"]))}
    datasets.need_captions(config(root), made)
    kept = {made["train"].key(i): made["train"].store.pixels(i) for i in range(len(made["train"]))}
    assert set(pixels) - set(kept) == {"5.png"} and all(torch.equal(image, pixels[key]) for key, image in kept.items())


def test_a_picture_in_both_splits_is_refused(tmp_path) -> None:
    root = write(tmp_path / "pictures")
    made = {split: datasets.dataset(config(root), split) for split in datasets.SPLITS}
    made["val"].rows = JsonLines.of([*made["val"].rows, made["train"].rows[3]])
    with pytest.raises(ValueError, match="1 pictures are in training and in validation, for instance 3.png"):
        datasets.disjoint(made)


def test_what_is_left_out_is_told(tmp_path, capsys) -> None:
    root = write(tmp_path / "pictures")
    (root / "3.png").write_bytes(b"")
    with pytest.raises(ValueError, match="3.png cannot be read as a picture: the file is empty"):
        datasets.dataset(config(root), "train")
    assert len(datasets.dataset(config(root, on_error="skip"), "train")) == 8
    assert "1 left out of train:\n  " in capsys.readouterr().out


def test_states_are_those_of_the_encoder_without_padding(tmp_path) -> None:
    rows = JsonLines.of([{"key": "a", "captions": ["one", "two three é"]}, {"key": "b", "captions": []},
                     {"key": "c", "captions": ["x " * 9, "one"]}])
    head = text_embedding_cache.header("words", rows)
    text_embedding_cache.build(tmp_path / "s", rows, Words(), head, batch_size=2)
    held = text_embedding_cache.TextEmbeddingCache(tmp_path / "s", head)
    assert len(held.ends) == 3  # "one" stands there once
    for index, caption in ((0, 0), (0, 1), (2, 0), (2, 1)):
        text = rows[index]["captions"][caption]
        assert np.array_equal(held[index, caption], Words()([text]).states[0].numpy())
    for wrong in ((0, 2), (1, 0)):
        with pytest.raises(IndexError):
            held[wrong]
    with pytest.raises(ValueError, match="does not fit:\n  encoder: cache 'words', wanted 'other'"):
        text_embedding_cache.TextEmbeddingCache(tmp_path / "s", text_embedding_cache.header("other", rows))
    batch = code_cache.collate([(np.zeros(4, np.uint16), "t", "k", held[0, i]) for i in (1, 0)])
    assert batch.mask.sum(1).tolist() == [4, 2] and torch.equal(batch.states[0], torch.tensor(held[0, 1]))
