"""The cache of codes: equal to encoding, whole or not there, and refused where it does not fit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from t2i.data import codes
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.tokenizer import ImageTokenizer
from t2i.quantizers.fsq import FSQ
from t2i.types import CodeBatch, Example

SETTINGS = {"_target_": "t2i.data.shapes.Shapes", "image_size": 16}


class Pictures:
    def __init__(self, size: int = 7, fails_at: int | None = None) -> None:
        self.size, self.fails_at, self.read = size, fails_at, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: tuple[int, int]) -> Example:
        index, epoch = at
        assert epoch == 0
        if index == self.fails_at:
            raise ValueError("picture 5 is broken")
        self.read += 1
        image = torch.randint(0, 256, (3, 16, 16), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        return Example(image, (f"é {index}", f"two\u2028lines {index}") if index else (), f"k{index}")


def tokenizer(seed: int = 0, levels: tuple[int, ...] = (5, 5)) -> ImageTokenizer:
    torch.manual_seed(seed)
    net = Autoencoder(channels=8, multipliers=[1, 1], num_res_blocks=1, attention_levels=[], z_channels=4,
                      num_groups=4, mid_attention=False)
    return ImageTokenizer(net, FSQ(levels), 16).eval()


def head(made: ImageTokenizer, **changes) -> dict:
    return {**codes.header(made, SETTINGS, "train", 7), **changes}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache" / "train"


def test_the_cache_is_what_encoding_gives(folder) -> None:
    made, data, steps = tokenizer(), Pictures(), []
    codes.build(folder, data, made, head(made), batch_size=3, progress=lambda done, of: steps.append((done, of)))
    assert steps == [(3, 7), (6, 7), (7, 7)]
    cached = codes.Codes(folder, head(made))
    image = torch.stack([data[i, 0].image for i in range(7)]) / 127.5 - 1
    expected = made.encode(image)
    assert expected.unique().numel() > 3
    batch = codes.collate([codes.PickedCodes(cached, lambda epoch, index: epoch + index)[i, 1] for i in range(7)])
    assert isinstance(batch, CodeBatch) and batch.ids.dtype == torch.long
    assert torch.equal(batch.ids, expected)
    assert batch.key == [f"k{i}" for i in range(7)]
    assert batch.text == ["", "é 1", "two\u2028lines 2", "é 3", "two\u2028lines 4", "é 5", "two\u2028lines 6"]
    assert cached.codes.dtype == np.uint16 and len(cached) == 7


def test_a_fitting_cache_is_left_as_it_is_and_another_is_written_anew(folder) -> None:
    made, data = tokenizer(), Pictures()
    codes.build(folder, data, made, head(made))
    codes.build(folder, data, made, head(made))
    assert data.read == 7
    other = tokenizer(seed=1)
    codes.build(folder, data, other, head(other))
    assert data.read == 14
    codes.Codes(folder, head(other))
    (folder / "header.json").write_text('{"version": 1, "tok')  # damaged: not one to trust
    codes.build(folder, data, other, head(other))
    assert data.read == 21 and len(codes.Codes(folder, head(other))) == 7


def test_whole_or_not_at_all(folder) -> None:
    made = tokenizer()
    with pytest.raises(ValueError, match="picture 5 is broken"):
        codes.build(folder, Pictures(fails_at=5), made, head(made), batch_size=2)
    assert list(folder.parent.iterdir()) == []
    with pytest.raises(ValueError, match=r"holds no code cache \(header.json is missing\)"):
        codes.Codes(folder, head(made))
    codes.build(folder, Pictures(), made, head(made))
    with pytest.raises(ValueError, match="picture 5 is broken"):
        codes.build(folder, Pictures(fails_at=5), made, head(made, split="val"), batch_size=2)
    assert [path.name for path in folder.parent.iterdir()] == ["train"]
    assert len(codes.Codes(folder, head(made))) == 7  # the one that was there stays


def test_another_tokenizer_or_other_settings_are_refused(folder) -> None:
    made, other = tokenizer(), tokenizer(seed=1)
    codes.build(folder, Pictures(), made, head(made))
    with pytest.raises(ValueError, match=r"does not fit: tokenizer: cache '\w{16}', expected '\w{16}'. Delete it"):
        codes.Codes(folder, head(other))
    for name, value in (("data", {**SETTINGS, "image_size": 32}), ("split", "val"), ("size", 8), ("grid", [4, 4]),
                        ("codebook_size", 36), ("version", codes.VERSION + 1)):
        with pytest.raises(ValueError, match=f"does not fit: {name}: cache"):
            codes.Codes(folder, head(made, **{name: value}))


def test_lost_captions_are_noticed(folder) -> None:
    made = tokenizer()
    codes.build(folder, Pictures(), made, head(made))
    lines = (folder / "captions.jsonl").read_text(encoding="utf-8").split("\n")
    (folder / "captions.jsonl").write_text("\n".join(lines[:-2]), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged: 7 rows of codes, 6 captions"):
        codes.Codes(folder, head(made))


def test_the_hash_tells_weights_apart_and_survives_json() -> None:
    made = tokenizer()
    assert codes.tokenizer_hash(made.state_dict()) == codes.tokenizer_hash(tokenizer().state_dict())
    before = codes.tokenizer_hash(made.state_dict())
    with torch.no_grad():
        made.quant_conv.bias[0] += 1e-3
    assert codes.tokenizer_hash(made.state_dict()) != before
    assert codes.tokenizer_hash({"a": torch.tensor(3)}) != codes.tokenizer_hash({"a": torch.tensor(4)})
    assert json.loads(json.dumps(head(made))) == head(made)


def test_large_codebooks_fit(folder) -> None:
    made = tokenizer(levels=(257, 257))
    codes.build(folder, Pictures(), made, head(made))
    cached = codes.Codes(folder, head(made))
    assert cached.codes.dtype == np.int32
    image = torch.stack([Pictures()[i, 0].image for i in range(7)]) / 127.5 - 1
    assert torch.equal(torch.from_numpy(np.array(cached.codes)).long(), made.encode(image))


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
