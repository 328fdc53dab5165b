"""The cache of codes: equal to encoding, whole or not there, and refused where it does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from t2i.data import code_cache
from t2i.data.rows import JsonLines
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.tokenizer import ImageTokenizer
from t2i.quantizers.fsq import FSQ
from t2i.types import CodeBatch, Example

SETTINGS = {"_target_": "t2i.data.shapes.Shapes", "image_size": 16}


class Pictures:
    """View 1 of a picture is its mirror."""

    def __init__(self, size: int = 7, fails_at: int | None = None) -> None:
        self.size, self.fails_at, self.read = size, fails_at, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: tuple[int, int]) -> Example:
        index, epoch = at
        assert epoch in (0, 1)
        if index == self.fails_at:
            raise ValueError("picture 5 is broken")
        self.read += 1
        image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        image = image.flip(2) if epoch else image
        return Example(image, (f"é {index}", f"two\u2028lines {index}") if index else (), f"k{index}")


def tokenizer(seed: int = 0, levels: tuple[int, ...] = (5, 5)) -> ImageTokenizer:
    torch.manual_seed(seed)
    net = Autoencoder(channels=8, multipliers=[1, 1], num_res_blocks=1, attention_levels=[], z_channels=4,
                      num_groups=4, mid_attention=False)
    return ImageTokenizer(net, FSQ(levels), 16).eval()


def head(made: ImageTokenizer, **changes) -> dict:
    return {**code_cache.header(made, SETTINGS, "train", 7), **changes}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "train"


def test_the_cache_is_what_encoding_gives(folder) -> None:
    made, data, steps = tokenizer(), Pictures(), []
    code_cache.build(folder, data, made, head(made), batch_size=3, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(3, 7), (6, 7), (7, 7)]
    cached = code_cache.CodeCache(folder, head(made))
    image = torch.stack([data[i, 0].image for i in range(7)]) / 127.5 - 1
    expected = made.encode(image)
    assert expected.unique().numel() > 3
    batch = code_cache.collate([code_cache.CodeDataset(cached, lambda what, epoch, index: epoch + index)[i, 1]
                                for i in range(7)])
    assert isinstance(batch, CodeBatch) and batch.ids.dtype == torch.long
    assert torch.equal(batch.ids, expected)
    assert batch.key == [f"k{i}" for i in range(7)]
    assert batch.text == ["", "é 1", "two\u2028lines 2", "é 3", "two\u2028lines 4", "é 5", "two\u2028lines 6"]
    assert cached.codes.dtype == np.uint16 and len(cached) == 7


def test_a_fitting_cache_is_left_as_it_is_and_another_refused(folder) -> None:
    made, data = tokenizer(), Pictures()
    code_cache.build(folder, data, made, head(made))
    code_cache.build(folder, data, made, head(made))
    assert data.read == 7
    other = tokenizer(seed=1)
    with pytest.raises(ValueError, match="does not fit:\n  tokenizer: cache"):
        code_cache.build(folder, data, other, head(other))
    (folder / "header.json").write_text('{"version": 1, "tok')  # damaged: not one to trust
    with pytest.raises(ValueError, match="holds no whole code cache"):
        code_cache.build(folder, data, made, head(made))
    assert data.read == 7


def test_every_view_of_a_picture(folder) -> None:
    made, data = tokenizer(), Pictures()
    wanted = code_cache.header(made, SETTINGS, "train", 7, views=2)
    code_cache.build(folder, data, made, wanted, batch_size=4)
    cached = code_cache.CodeCache(folder, wanted)
    assert cached.codes.shape == (7, 2, 64)
    for view in (0, 1):
        image = torch.stack([data[i, view].image for i in range(7)]) / 127.5 - 1
        assert torch.equal(torch.from_numpy(np.array(cached.codes[:, view])).long(), made.encode(image))
    picked = code_cache.CodeDataset(cached, lambda what, epoch, index: epoch if what == "view" else 0)
    assert [np.array_equal(picked[3, epoch][0], cached.codes[3, epoch % 2]) for epoch in range(3)] == [True] * 3
    with pytest.raises(ValueError, match="views: cache 2, wanted 1"):
        code_cache.CodeCache(folder, head(made))


def test_whole_or_not_at_all_and_continued(folder) -> None:
    made = tokenizer()
    with pytest.raises(ValueError, match="picture 5 is broken"):
        code_cache.build(folder, Pictures(fails_at=5), made, head(made), batch_size=2)
    with pytest.raises(ValueError, match="holds no code cache"):
        code_cache.CodeCache(folder, head(made))
    data = Pictures()
    code_cache.build(folder, data, made, head(made), batch_size=2)
    assert data.read == 3  # four were there
    whole = folder.with_name("whole")
    code_cache.build(whole, Pictures(), made, head(made), batch_size=2)
    assert {p.name for p in folder.iterdir()} == {"codes.npy", "header.json", "rows.jsonl", "rows.npy"}
    assert all((whole / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())


def test_another_tokenizer_or_other_settings_are_refused(folder) -> None:
    made, other = tokenizer(), tokenizer(seed=1)
    code_cache.build(folder, Pictures(), made, head(made))
    with pytest.raises(ValueError, match=r"(?s)does not fit:\n  tokenizer: cache '\w{16}', wanted '\w{16}'.*Delete it"):
        code_cache.CodeCache(folder, head(other))
    for name, value in (("data", {**SETTINGS, "image_size": 32}), ("split", "val"), ("size", 8), ("grid", [4, 4]),
                        ("codebook_size", 36), ("version", code_cache.VERSION + 1)):
        with pytest.raises(ValueError, match=rf"does not fit:\n  {name}(\.image_size)?: cache"):
            code_cache.CodeCache(folder, head(made, **{name: value}))


def test_lost_captions_are_noticed(folder) -> None:
    made = tokenizer()
    code_cache.build(folder, Pictures(), made, head(made))
    lines = (folder / "rows.jsonl").read_bytes().split(b"\n")
    (folder / "rows.jsonl").write_bytes(b"\n".join(lines[:-2]) + b"\n")
    with pytest.raises(ValueError, match="rows.jsonl is damaged"):
        code_cache.CodeCache(folder, head(made))
    JsonLines.index(folder / "rows.jsonl")
    with pytest.raises(ValueError, match="is damaged: 7 rows of codes, 6 of captions"):
        code_cache.CodeCache(folder, head(made))


def test_the_hash_tells_weights_apart_and_survives_json() -> None:
    made = tokenizer()
    before = head(made)
    assert before == head(tokenizer())
    with torch.no_grad():
        made.quant_conv.bias[0] += 1e-3
    assert head(made)["tokenizer"] != before["tokenizer"]
    assert json.loads(json.dumps(head(made))) == head(made)


def test_large_codebooks_fit(folder) -> None:
    made = tokenizer(levels=(257, 257))
    code_cache.build(folder, Pictures(), made, head(made))
    cached = code_cache.CodeCache(folder, head(made))
    assert cached.codes.dtype == np.int32
    image = torch.stack([Pictures()[i, 0].image for i in range(7)]) / 127.5 - 1
    assert torch.equal(torch.from_numpy(np.array(cached.codes[:, 0])).long(), made.encode(image))


def test_codes_out_of_range_are_refused() -> None:
    made = tokenizer()
    ids = torch.zeros(1, 64, dtype=torch.long)
    assert made.decode_ids(ids).shape == (1, 3, 16, 16)
    for wrong in (-1, 25):
        ids[0, 3] = wrong
        with pytest.raises(ValueError, match="24"):
            made.decode_ids(ids)
    with pytest.raises(ValueError, match=r"images are \(32, 32\); this tokenizer takes \(16, 16\)"):
        made.encode(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="image_size=15 is not divisible by the autoencoder's factor 2"):
        ImageTokenizer(made.autoencoder, made.quantizer, 15)
