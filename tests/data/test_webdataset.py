"""Tar shards: what a sample is, which side a shard is on, and what is said about damage."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from t2i.data.image_dataset import assign_splits, split_named
from t2i.data.webdataset import WebDataset


def picture(grey: int = 0, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (12, 12), (grey, grey, grey)).save(file, kind)
    return file.getvalue()


def shard(path: Path, *members: tuple[str, bytes | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def keys(data: WebDataset) -> list[str]:
    return [data.key(i) for i in range(len(data))]


def test_samples_captions_and_pixels(tmp_path: Path) -> None:
    shard(tmp_path / "train-0.tar", ("a.png", picture(10)), ("a.txt", "one\n\n two \r\n"),
          ("b.JPG", picture(20, "JPEG")), ("b.json", json.dumps({"caption": "three", "width": 12})),
          ("sub.d/c.json", json.dumps({"text": ["é", "f"]})), ("sub.d/c.webp", picture(30, "WEBP")),
          ("d.cls", "7"), ("d.png", picture(40)), ("README", "no ending"), ("sub.d/.hidden.txt", "x"))  # fmt: skip
    shard(tmp_path / "val-0.tar", ("a.seg.png", picture(9)), ("a.png", picture(50)), ("a.json", '{"text": null}'))
    train, val = WebDataset("train", str(tmp_path), 8), WebDataset("val", str(tmp_path), 8)
    assert keys(train) == ["train-0/a", "train-0/b", "train-0/sub.d/c", "train-0/d"] and keys(val) == ["val-0/a"]
    assert [train.captions(i) for i in range(4)] == [("one", "two"), ("three",), ("é", "f"), ()]
    for i, grey in enumerate((10, 20, 30, 40)):
        assert train[i, 0].image.shape == (3, 8, 8) and abs(int(train[i, 0].image[0, 4, 4]) - grey) <= 1
    assert val[0, 0].image.unique().tolist() == [50] and val.captions(0) == ()
    assert set(train.rows[0]) == {"key", "captions", "tar", "offset", "bytes"}


def test_lines_come_before_json_unless_they_say_nothing(tmp_path: Path) -> None:
    shard(tmp_path / "x.tar", ("a.png", picture()), ("a.txt", "line"), ("a.json", '{"text": "object"}'),
          ("c.png", picture()), ("c.txt", " \n"), ("c.json", '{"text": " object "}'))  # fmt: skip
    assert {WebDataset(split, str(tmp_path), 8).captions(0) for split in ("train", "val")} == {("line",), ("object",)}


@pytest.mark.parametrize("name, side", [
    ("train/0.tar", "train"), ("val/0.tar", "val"), ("validation/0.tar", "val"), ("test/0.tar", "test"), ("0.tar", ""),
    ("cc3m-train-0001.tar", "train"), ("coco_val2017_3.tar", "val"), ("valley-0.tar", ""), ("TRAIN/x/0.tar", "train"),
    ("train/val-0.tar", "train"), ("retrain-0.tar", ""),
])  # fmt: skip
def test_what_a_name_says(name: str, side: str) -> None:
    assert split_named(name, "data.root", "shard") == side


def test_folders_say_the_side_and_test_is_left_alone(tmp_path: Path) -> None:
    for folder in ("train", "validation", "test", "more"):
        shard(tmp_path / folder / "0.tar", ("a.png", picture()))
    assert keys(WebDataset("train", str(tmp_path), 8)) == ["more/0/a", "train/0/a"]
    assert keys(WebDataset("val", str(tmp_path), 8)) == ["validation/0/a"]
    shard(tmp_path / "train-val-0.tar", ("a.png", picture()))
    with pytest.raises(ValueError, match=r"is the shard train-val-0\.tar for train or for val\?"):
        WebDataset("train", str(tmp_path), 8)


@pytest.mark.parametrize("name", ["0.tar", "train-0.tar"])
def test_without_a_shard_for_validation_a_hash_decides(tmp_path: Path, name: str) -> None:
    path = shard(tmp_path / name, *((f"{i}.png", picture()) for i in range(200)))
    shard(tmp_path / "test/0.tar", ("a.png", picture()))
    for root in (tmp_path, path):  # one file is a root, too
        sides = {split: keys(WebDataset(split, str(root), 8)) for split in ("train", "val")}
        assert sides["train"] + sides["val"] and 2 <= len(sides["val"]) <= 25
        every = [f"{path.stem}/{i}" for i in range(200)]
        assert [key for key, side in zip(every, assign_splits(every), strict=True) if side == "val"] == sides["val"]
        assert sorted(sides["train"] + sides["val"]) == sorted(f"{path.stem}/{i}" for i in range(200))


@pytest.mark.parametrize("member, message", [
    (("b.txt", "x"), r"0\.tar: sample b has no picture, only \.txt"),
    (("a.png", b"again"), r"0\.tar: a\.png is in it twice"),
    (("a.jpg", b"other"), r"0\.tar: sample a has more than one picture: \.png, \.jpg"),
    (("a.json", "{oops"), r"0\.tar: a\.json is not JSON"),
    (("a.json", "[1]"), r"0\.tar: a\.json is a list; an object"),
    (("a.json", '{"text": [1]}'), r"0\.tar: a\.json: its caption is \[1\]; a string or a list"),
    (("a.txt", b"\xff\xfe"), r"0\.tar: a\.txt is not UTF-8"),
    (("a.json", "[" * 20_000), r"0\.tar: a\.json is not JSON"),
    (("a.json", '{"text": "\\ud83d"}'), r"0\.tar: a\.json: its caption is \['\\ud83d'\]; a string"),
])  # fmt: skip
def test_faults_name_shard_and_member(tmp_path: Path, member: tuple[str, bytes | str], message: str) -> None:
    shard(tmp_path / "train/0.tar", ("a.png", picture()), member, ("whole.png", picture()))
    shard(tmp_path / "val/0.tar", ("a.png", picture()))
    with pytest.raises(ValueError, match=rf"1 fault in the listing.*\n.*train/{message}"):
        WebDataset("train", str(tmp_path), 8)
    data = WebDataset("train", str(tmp_path), 8, on_error="skip")
    assert keys(data)[-1] == "train/0/whole" and len(data.faults) == 1
    assert ("train/0/a" in keys(data)) == (member[0] in ("b.txt", "a.png"))


def test_a_shard_cut_anywhere_is_named_and_its_whole_samples_stay(tmp_path: Path) -> None:
    path = shard(tmp_path / "train.tar", ("a.png", picture()), ("a.txt", "x"), ("b.png", picture()), ("b.txt", "y"))
    shard(tmp_path / "val.tar", ("a.png", picture()))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [member.offset_data for member in tar] + [tar.getmembers()[-1].offset_data + 512]
    # In the last member, in its padding, in its header, in b.png, and at the ends of members
    for cut in (ends[3] + 0, ends[3] + 1, ends[3] - 100, ends[3] - 512, ends[2] + 5, ends[4]):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=rf"train\.tar: .*(cut off|unexpected end).*\b{cut}\b"):
            WebDataset("train", str(tmp_path), 8)
        data = WebDataset("train", str(tmp_path), 8, on_error="skip")
        assert keys(data) == ["train/a"] and data.captions(0) == ("x",)
    path.write_bytes(whole[: ends[2] - 512] + b"\xff" * 512 + whole[ends[2] :])
    with pytest.raises(ValueError, match=r"train\.tar: its header after a\.txt, at byte 2048, is damaged"):
        WebDataset("train", str(tmp_path), 8)
    path.write_bytes(whole[:300])
    with pytest.raises(ValueError, match=r"train\.tar: truncated header after nothing, where the shard has 300 bytes"):
        WebDataset("train", str(tmp_path), 8)
    for data in (b"", b"<html>" * 200):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"train\.tar: it is no tar file"):
            WebDataset("train", str(tmp_path), 8)


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    plain = shard(tmp_path / "train-0.tar", ("a.png", picture()))
    packed = tmp_path / "train-0.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert len(WebDataset("train", str(tmp_path), 8)) == 1  # the plain one lies beside it
    plain.unlink()
    for root in (tmp_path, packed):
        with pytest.raises(ValueError, match=r"train-0\.tar\.gz is compressed: .* needs a plain \.tar"):
            WebDataset("train", str(root), 8)
    packed.rename(plain)
    with pytest.raises(ValueError, match=r"train-0\.tar is compressed, whatever its name says"):
        WebDataset("train", str(tmp_path), 8)


def test_roots_without_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*gone: there is no such folder or tar file"):
        WebDataset("train", str(tmp_path / "gone"), 8)
    with pytest.raises(ValueError, match=r"has no \*\.tar in it"):
        WebDataset("train", str(tmp_path), 8)
    (tmp_path / "x.zip").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"x\.zip is no \.tar"):
        WebDataset("train", str(tmp_path / "x.zip"), 8)


def test_a_broken_picture_or_shard_is_named_on_reading(tmp_path: Path) -> None:
    path = shard(tmp_path / "train.tar", ("a.png", picture()[:30]), ("b.png", picture()))
    shard(tmp_path / "val.tar", ("a.png", picture()))
    data = WebDataset("train", str(tmp_path), 8)
    with pytest.raises(ValueError, match=r"train\.tar, sample a cannot be read as a picture"):
        data[0, 0]
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"train\.tar, sample b cannot be read: the shard is shorter"):
        data[1, 0]
    path.unlink()
    with pytest.raises(ValueError, match=r"train\.tar, sample b cannot be read: No such file"):
        data[1, 0]


def test_shards_behind_links_are_read_once_and_dead_links_told(tmp_path: Path) -> None:
    shard(tmp_path / "far/sub/dev-0.tar", ("a.png", picture()))
    root = tmp_path / "root"
    shard(root / "train-0.tar", ("a.png", picture()))
    for link, to in (("more", "../far"), ("again", "."), ("train-1.tar", "gone")):
        (root / link).symlink_to(to)
    with pytest.raises(ValueError, match=r"1 fault .*\n.*train-1\.tar is a link to gone, which is not there"):
        WebDataset("train", str(root), 8)
    train, val = (WebDataset(split, str(root), 8, on_error="skip") for split in ("train", "val"))
    assert keys(train) == ["train-0/a"] and keys(val) == ["more/sub/dev-0/a"]
    assert len(train.notes) == 1 and "again is a link to" in train.notes[0]


def test_what_leaves_nothing_is_told(tmp_path: Path) -> None:
    shard(tmp_path / "0.tar", *((f"a{i}.v2.png", picture()) for i in range(5)))
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=r"no pictures for split='train'; 5 faults in the listing:\n.*sample a0 has"
                                             r" no picture, only \.v2\.png \(a sample's name ends at its first dot.*"
                                             r"\n.*\n.*\n  and 2 more"):
            WebDataset("train", str(tmp_path), 8, on_error=on_error)
    shard(tmp_path / "0.tar", *((f"{side}/{i}.png", picture()) for side in "ab" for i in range(9)))
    assert len(WebDataset("val", str(tmp_path), 8)) == 1 and len(WebDataset("train", str(tmp_path), 8)) == 17
