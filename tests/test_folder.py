"""Pictures of one's own: what is read, how they are fitted, and what is said about faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.data.folder import Folder, decode_image


def write(root: Path, *lines: dict | str, pictures: bool = True) -> str:
    root.mkdir(exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (root / "metadata.jsonl").write_text("\n".join(text), encoding="utf-8")
    for number, line in enumerate(lines):
        if pictures and isinstance(line, dict):
            Image.new("RGB", (12, 12), (number, 0, 0)).save(root / line["file_name"])
    return str(root)


def item(name: str, text: object = "a thing", **more: object) -> dict:
    return {"file_name": f"{name}.png", "text": text, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def test_pictures_captions_and_splits(root) -> None:
    where = write(root, item("a", "one", split="train"), item("b", ["é 🙂", "x\u2028y"], split="val"), "", item("c"))
    train, val = Folder("train", where, image_size=8), Folder("val", where, image_size=8)
    assert [train[i, 0].key for i in range(len(train))] == ["a.png", "c.png"]  # no split of its own: training
    example = val[0, 7]
    assert len(val) == 1 and example.captions == val.captions(0) == ("é 🙂", "x\u2028y")
    assert example.image.shape == (3, 8, 8) and example.image.unique().tolist() == [0, 1]
    assert train[0, 0].captions == ("one",)


def test_without_splits_a_hash_of_the_name_decides(root) -> None:
    lines = [item(f"p{i}") for i in range(400)]
    where = write(root, *lines, pictures=False)
    names = {split: {i["file_name"] for i in Folder(split, where).items} for split in ("train", "val")}
    assert names["train"] | names["val"] == {line["file_name"] for line in lines}
    assert not names["train"] & names["val"] and 8 <= len(names["val"]) <= 34
    write(root, *reversed(lines[:200]), pictures=False)  # a picture stays on its side whatever the others are
    assert {i["file_name"] for i in Folder("val", where).items} <= names["val"]


def test_other_splits_are_left_alone_and_an_absent_one_is_named(root) -> None:
    where = write(root, item("a", split="train"), item("b", split="test"))
    assert len(Folder("train", where)) == 1
    with pytest.raises(ValueError, match="no pictures for split='val'; it has test, train"):
        Folder("val", where)
    with pytest.raises(ValueError, match="it has no pictures at all"):
        Folder("train", write(root, ""))


@pytest.mark.parametrize(
    "line, message",
    [
        ("{oops", r"metadata.jsonl, line 2: not JSON"),
        ('["a.png", "b"]', r"line 2: file_name and text missing; wanted are file_name, text, split"),
        ('{"file_name": "b.png"}', r"line 2: text missing"),
        ('{"text": "b"}', r"line 2: file_name missing"),
        ('{"file_name": 3, "text": "b"}', r"line 2: file_name is 3"),
        ('{"file_name": "b.png", "text": 3}', r"line 2: text is 3; a caption or a list of captions is wanted"),
        ('{"file_name": "b.png", "text": []}', r"line 2: text is \[\]"),
        ('{"file_name": "b.png", "text": ["a", " "]}', r"line 2: text is .* none of them empty"),
        ('{"file_name": "b.png", "text": "b", "split": 1}', r"line 2: split is 1; train or val is wanted"),
    ],
)
def test_faults_are_named_with_their_line(root, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder("train", write(root, item("a"), line))


def test_encodings(root) -> None:
    where = write(root, item("a"))
    text = (root / "metadata.jsonl").read_bytes()
    (root / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text + b"\r\n")  # as Windows writes it
    assert len(Folder("train", where)) == 1
    (root / "metadata.jsonl").write_bytes(text + b"\n" + text.replace(b"thing", b"caf\xe9"))
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        Folder("train", where)


def test_missing_folders_lists_and_pictures(root) -> None:
    with pytest.raises(ValueError, match="is not a folder; it must hold pictures and a metadata.jsonl"):
        Folder("train", str(root))
    root.mkdir()
    with pytest.raises(ValueError, match="metadata.jsonl is missing"):
        Folder("train", str(root))
    data = Folder("train", write(root, item("gone"), pictures=False))
    with pytest.raises(ValueError, match="gone.png cannot be read as a picture: .*No such file"):
        data[0, 0]


def test_a_broken_picture_is_named_wherever_the_damage_is(root) -> None:
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    for suffix in ("png", "jpg", "gif", "webp", "bmp"):
        path = root / f"broken.{suffix}"
        Image.fromarray(noise).save(path)
        whole = path.read_bytes()
        for cut in (0, 4, 20, len(whole) // 2):
            path.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match=rf"broken.{suffix} cannot be read as a picture"):
                decode_image(path, 8)
    path = root / "broken.png"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    named = 0
    for at in range(8, len(whole), 7):  # a changed byte is named, or harmless
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            decode_image(path, 8)
        except ValueError as error:
            named += "broken.png cannot be read as a picture" in str(error)
        else:
            named += 1
    assert named == len(range(8, len(whole), 7))


def test_transparency_is_flattened_on_white(root) -> None:
    root.mkdir()
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # red that nobody sees
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    half = Image.new("LA", (8, 8), (0, 128))
    for name, picture in (("rgba.png", image), ("la.png", half), ("p.gif", image)):
        picture.save(root / name)
    for name in ("rgba.png", "p.gif"):
        pixels = decode_image(root / name, 8)
        assert (pixels[:, 7] == 255).all() and (pixels[:, 0] == (0, 0, 255)).all(), name
    assert abs(int(decode_image(root / "la.png", 8)[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "RGBA"])
def test_every_mode_becomes_rgb_bytes(root, mode: str) -> None:
    root.mkdir()
    path = root / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (10, 10), (255, 255, 255)).convert(mode).save(path)
    pixels = decode_image(path, 8)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and (pixels == 255).all()


@pytest.mark.parametrize("size", [(30, 10), (10, 30)])
def test_the_short_side_fits_and_the_middle_is_kept(root, size) -> None:
    root.mkdir()
    image = Image.new("RGB", size, (255, 0, 0))
    left, top = (size[0] - 10) // 2, (size[1] - 10) // 2
    image.paste((0, 255, 0), (left - 3 * (left > 0), top - 3 * (top > 0), left + 10 + 3, top + 10 + 3))
    image.save(root / "x.png")
    for side in (5, 10, 20):
        pixels = decode_image(root / "x.png", side)
        assert pixels.shape == (side, side, 3) and (pixels == (0, 255, 0)).all()


def test_a_photograph_stands_as_the_camera_was_held(root) -> None:
    root.mkdir()
    image = Image.new("RGB", (8, 8), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 4, 8))  # dark on the left, and turned by 90 degrees: dark on top
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / "x.png", exif=exif)
    pixels = decode_image(root / "x.png", 8)
    assert (pixels[:4] == 0).all() and (pixels[4:] == 255).all()


def test_kept_in_memory_or_read_again(root) -> None:
    where = write(root, item("a"))
    kept, fresh = Folder("train", where, 8), Folder("train", where, 8, in_memory=False)
    assert kept[0, 0].image.eq(fresh[0, 0].image).all()
    kept[0, 0].image.fill_(9)  # what a user of the picture does to it
    (root / "a.png").unlink()
    assert kept[0, 1].image.unique().tolist() == [0]
    with pytest.raises(ValueError, match="a.png cannot be read"):
        fresh[0, 1]
