"""The packed cache: the pixels of decoding, one file, continued bit for bit, faults named or left out by name."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data import cache, packed
from t2i.data.folder import Folder
from t2i.data.rows import JsonLines

COUNT = 150


def write(root: Path, count: int = COUNT, **broken: bytes) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "train").mkdir()
    (root / "val").mkdir()
    for i in range(count):
        rng = np.random.default_rng(i)
        size = (int(rng.integers(8, 20)), int(rng.integers(8, 20)), 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(root / f"train/{i:03}.png")
        (root / f"train/{i:03}.txt").write_text(f"picture {i}\nzweitens é {i}", encoding="utf-8")
    Image.new("RGB", (8, 8)).save(root / "val/0.png")
    for name, content in broken.items():
        (root / f"train/{name}.png").write_bytes(content)
    return root


def data(root: Path, split="train", **options) -> Folder:
    return Folder(split, str(root), **{"image_size": 8, "load_size": 10, "crop": "random", "flip": True, **options})


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write(tmp_path / "pictures")


def test_the_same_examples_as_without(root, tmp_path) -> None:
    raw, kept, steps = data(root), data(root), []
    assert packed.attach(kept, tmp_path / "cache", lambda *s: steps.append(s), workers=2) == []
    assert steps == [(64, COUNT), (128, COUNT), (150, COUNT)]
    for epoch in range(3):
        for i in range(COUNT):
            a, b = raw[i, epoch], kept[i, epoch]
            assert torch.equal(a.image, b.image) and a.captions == b.captions and a.key == b.key
    kept[0, 0].image.fill_(7)  # what a user of the picture does to it
    assert torch.equal(kept[0, 0].image, raw[0, 0].image)
    again = data(root)
    packed.attach(again, tmp_path / "cache", lambda *s: pytest.fail("packed twice"))
    folders = [p.name for p in (tmp_path / "cache").iterdir() if p.is_dir()]
    assert folders == [packed.cache_folder(data(root), Path()).name]


def test_worker_processes_map_it_themselves(root, tmp_path) -> None:
    kept = data(root)
    packed.attach(kept, tmp_path / "cache")
    travelled = pickle.dumps(kept)
    assert len(travelled) < 1500  # names, not pixels
    assert torch.equal(pickle.loads(travelled)[5, 1].image, kept[5, 1].image)


@pytest.mark.parametrize("cut", ["none", "pixels", "journal", "both"])
def test_interrupted_packing_goes_on_to_the_same_bytes(root, tmp_path, cut: str) -> None:
    whole = tmp_path / "whole"
    packed.build(data(root), whole)

    def stop(done: int, total: int) -> None:
        if done >= 128:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed.build(data(root), tmp_path / "broken", stop)
    part = tmp_path / "broken.part"
    for name in ("pixels.bin", "journal.jsonl"):  # as a crash may leave them: cut off in mid-write
        if cut in (name.split(".")[0], "both"):
            os.truncate(part / name, (part / name).stat().st_size - 11)
    done = []
    packed.build(data(root), tmp_path / "broken", lambda *s: done.append(s[0]))
    assert done[-1] == 150 and len(done) <= 2  # went on, not over
    assert digest(whole) == digest(tmp_path / "broken")


def test_unreadable_pictures_are_refused_or_left_out_by_name(tmp_path) -> None:
    root = write(tmp_path / "pictures", 3, **{"001x": b"", "001y": b"\x89PNG nothing"})
    with pytest.raises(ValueError, match=r"001x.png cannot be read .*empty \(2 of 5 pictures are packed and kept; "
                                         r"data.on_error=skip"):
        packed.attach(data(root), tmp_path / "cache")
    kept = data(root, on_error="skip")
    skipped = packed.attach(kept, tmp_path / "cache")
    assert [entry["skipped"] for entry in skipped] == ["train/001x.png", "train/001y.png"]
    assert [kept.key(i) for i in range(len(kept))] == [f"train/00{i}.png" for i in range(3)]
    assert [kept[i, 0].captions[0] for i in range(3)] == [f"picture {i}" for i in range(3)]
    with pytest.raises(ValueError, match="leaves out 2 unreadable pictures .*001x.png"):
        packed.attach(data(root), tmp_path / "cache")
    for path in (root / "train").glob("00?.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="none of the 5 pictures .* can be read:\n.*000.png.*\n.*\n.*\n  and 2 more"):
        packed.attach(data(root, on_error="skip"), tmp_path / "other")


def test_changed_pictures_and_settings(root, tmp_path) -> None:
    place = tmp_path / "cache"
    packed.attach(data(root), place)
    packed.attach(data(root, load_size=12), place)  # other settings lie beside it
    assert len([p for p in place.iterdir() if p.is_dir()]) == 2
    Image.new("RGB", (9, 9)).save(root / "train/new.png")
    with pytest.raises(ValueError, match=r"does not fit:\n  source.pictures: cache 150, wanted 151\n  source.hash"):
        packed.attach(data(root), place)
    (root / "train/new.png").unlink()
    (root / "train/000.txt").write_text("another caption")
    with pytest.raises(ValueError, match=r"source.hash: cache '\w{16}', wanted '\w{16}'"):
        packed.attach(data(root), place)
    other = packed.cache_folder(data(root, load_size=12), place)
    shutil.rmtree(packed.cache_folder(data(root), place))
    other.rename(packed.cache_folder(data(root), place))  # a cache of another size under this one's name
    with pytest.raises(ValueError, match="settings.side: cache 12, wanted 10"):
        packed.attach(data(root), place)


def test_a_damaged_cache_is_named(root, tmp_path) -> None:
    folder = packed.cache_folder(data(root), tmp_path)
    packed.build(data(root), folder)
    os.truncate(folder / "pixels.bin", 1000)
    with pytest.raises(ValueError, match="is damaged: 150 rows, 150 shapes, 1000 bytes of pixels"):
        packed.PackedImages(folder)
    os.truncate(folder / "rows.jsonl", 100)
    with pytest.raises(ValueError, match="rows.jsonl is damaged: 100 bytes"):
        packed.PackedImages(folder)


def test_a_place_that_cannot_be_written_is_named(root, tmp_path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=r"cannot be written: (Not a directory|File exists)\. paths.cache="):
        packed.attach(data(root), tmp_path / "file" / "deep")


def test_a_disk_too_small_is_told_before_anything_is_decoded(root, tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ValueError, match=r"needs about 0.0 GB more, and 0.0 GB are free .*data.pack=false"):
        packed.build(data(root), tmp_path / "cache", lambda *s: pytest.fail("decoded"))


def test_lines_keep_any_text(tmp_path) -> None:
    rows = [{"key": "a\u2028b", "captions": ["é 🙂", "", "x" * 5000, "\ud800"]}, {"key": "b", "captions": []}]
    held = JsonLines.of(rows)
    held.save(tmp_path / "rows.jsonl")
    mapped = JsonLines.open(tmp_path / "rows.jsonl")
    assert list(held) == list(mapped) == rows and held.hash() == mapped.hash() and len(mapped) == 2
    for wrong in (-1, 2):
        with pytest.raises(IndexError):
            mapped[wrong]
    JsonLines.of([]).save(tmp_path / "none.jsonl")
    assert len(JsonLines.open(tmp_path / "none.jsonl")) == 0
    assert cache.read_header(tmp_path) is None
