"""CUB in both layouts: which pictures are on which side, their captions and boxes, and what is said about faults."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data.cub import CUB, crop_to_box

CLASSES = ("001.Auk", "002.Jay", "003.Owl", "004.Tit")
KEYS = [f"{name}/{name[4:]}_{number}" for name in CLASSES for number in (1, 2)]


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def original(root: Path, texts: str = "text") -> Path:
    """CUB as published: red pictures of 40 x 30 with a blue bird of 8 x 6 at (16, 12)."""
    home = root / "CUB_200_2011"
    for number, key in enumerate(KEYS, 1):
        path = home / f"images/{key}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((30, 40, 3), (200, 0, 0), np.uint8)
        pixels[12:18, 16:24] = (0, 0, 200)
        Image.fromarray(pixels).save(path, quality=95)
        write_text(root / texts / f"{key}.txt", f" a bird {number} \n\na   small\ufffd\ufffdbird\r\n")
    lines = {"images.txt": "{n} {key}.jpg", "bounding_boxes.txt": "{n} 16.0 12.0 8.0 6.0",
             "train_test_split.txt": "{n} {odd}"}
    for name, line in lines.items():
        text = [line.format(n=n, key=key, odd=n % 2) for n, key in enumerate(KEYS, 1)]
        write_text(home / name, "\n".join(text) + "\n")
    return root


def pickles(root: Path, train: object, val: object) -> Path:
    for side, keys in (("train", train), ("test", val)):
        path = root / f"birds/{side}/filenames.pickle"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pickle.dumps(keys, 2))
    return root


def keys(data: CUB) -> list[str]:
    return [data.key(i) for i in range(len(data))]


def test_the_original_layout_by_class(tmp_path: Path) -> None:
    root = original(tmp_path)
    for where in (root, root / "CUB_200_2011"):  # with text beside it
        train, val = CUB("train", str(where), 8), CUB("val", str(where), 8)
        assert keys(train) == KEYS[:6] and keys(val) == KEYS[6:]
        assert train.captions(0) == ("a bird 1", "a small bird")
    example = val[1, 0]
    assert example.key == KEYS[7] and example.image.shape == (3, 8, 8) and example.image.dtype == torch.uint8


@pytest.mark.parametrize("texts", ["text", "CUB_200_2011/text", "birds/text", "text_c10"])
def test_captions_are_found_where_they_are_usually_put(tmp_path: Path, texts: str) -> None:
    assert CUB("train", str(original(tmp_path, texts)), 8).captions(1) == ("a bird 2", "a small bird")


def test_the_official_split_has_every_class_on_both_sides(tmp_path: Path) -> None:
    root = str(pickles(original(tmp_path), KEYS[:2], KEYS[2:]))  # which does not matter here
    train, val = (CUB(split, root, 8, splits="official") for split in ("train", "val"))
    assert keys(train) == KEYS[::2] and keys(val) == KEYS[1::2]


@pytest.mark.parametrize("inside", [False, True])
def test_pickles_say_which_split(tmp_path: Path, inside: bool) -> None:
    root = pickles(original(tmp_path, "birds/text"), KEYS[6:], [KEYS[2], KEYS[0], KEYS[1]])
    if inside:  # DF-GAN keeps the pictures in data/birds, too
        (root / "CUB_200_2011").rename(root / "birds/CUB_200_2011")
    for where in (root, root / "birds") if inside else (root,):
        train, val = CUB("train", str(where), 8), CUB("val", str(where), 8)
        assert keys(train) == KEYS[6:] and keys(val) == [KEYS[2], KEYS[0], KEYS[1]]


def test_pickles_do_without_the_lists(tmp_path: Path) -> None:
    root = pickles(original(tmp_path), KEYS[:4], KEYS[4:])
    for name in ("images.txt", "bounding_boxes.txt", "train_test_split.txt"):
        (root / "CUB_200_2011" / name).unlink()
    data = CUB("val", str(root), 8, box=False)
    assert keys(data) == KEYS[4:] and data[0, 0].image.shape == (3, 8, 8)
    with pytest.raises(ValueError, match=r"images\.txt cannot be read: No such file"):
        CUB("val", str(root), 8)


def test_a_class_on_both_sides_is_a_fault(tmp_path: Path) -> None:
    root = str(pickles(original(tmp_path), KEYS[:5], KEYS[5:]))
    with pytest.raises(ValueError, match=r"class 003\.Owl is both in .*train/filenames\.pickle and in test"):
        CUB("train", root, 8)
    train, val = (CUB(split, root, 8, on_error="skip") for split in ("train", "val"))
    assert keys(train) == KEYS[:4] and keys(val) == KEYS[6:] and len(train.faults) == 1


def test_the_box_is_cut_about_its_centre(tmp_path: Path) -> None:
    data, whole = (CUB("val", str(original(tmp_path)), 12, box=box) for box in (True, False))
    image, row = data[0, 0].image, data.rows[0]
    assert row["box"] == [16, 12, 8, 6] and "box" not in whole.rows[0]
    # 12 x 12 pixels about (20, 15), unscaled: the bird at (2, 3) to (10, 9)
    assert (image[2, 4:8, 3:9] > 150).all() and (image[0, 4:8, 3:9] < 50).all()
    assert (image[0, [0, 1, 10, 11]] > 150).all()
    assert whole[0, 0].image[0].float().mean() > image[0].float().mean()
    assert data.settings() != whole.settings()


def test_a_box_at_the_edge_is_clipped_and_one_outside_named() -> None:
    image = torch.arange(3 * 30 * 40).reshape(3, 30, 40).to(torch.uint8)
    assert crop_to_box(image, (16, 12, 8, 6), "x").equal(image[:, 9:21, 14:26])
    assert crop_to_box(image, (0, 0, 4, 20), "x").equal(image[:, :25, :17])
    assert crop_to_box(image, (30, 20, 10, 10), "x").equal(image[:, 18:, 28:])
    for box in ((60, 60, 4, 4), (-60, 0, 4, 4), (3, 3, 0, 0)):
        with pytest.raises(ValueError, match=r"x\.jpg is 40 x 30 pixels, its box .* lies outside"):
            crop_to_box(image, box, "x.jpg")


def test_training_crops_and_flips(tmp_path: Path) -> None:
    data = CUB("train", str(original(tmp_path)), 8, load_size=12, crop="random", flip=True)
    assert data.decoded(data.rows[0]).shape == (3, 12, 12)
    first, second = data[0, 0].image, data[0, 1].image
    assert first.shape == (3, 8, 8) and not first.equal(second) and first.equal(data[0, 0].image)
    assert CUB("val", str(tmp_path), 8, load_size=12, crop="random", flip=True)[0, 0].image.shape == (3, 8, 8)


def test_faults_are_named_by_key(tmp_path: Path) -> None:
    root = original(tmp_path)
    (root / f"text/{KEYS[0]}.txt").unlink()
    write_text(root / f"text/{KEYS[1]}.txt", " \n\n")
    boxes = root / "CUB_200_2011/bounding_boxes.txt"
    boxes.write_text("\n".join(boxes.read_text().splitlines()[:4]))
    with pytest.raises(ValueError, match=r"4 faults.*\n.*Auk_1 has no captions: .*Auk_1\.txt is missing or empty"
                                         r"\n.*Auk_2 has no captions.*\n.*Owl_1 has no box in bounding_boxes"):
        CUB("train", str(root), 8)
    assert keys(CUB("train", str(root), 8, on_error="skip")) == KEYS[2:4]


def test_strange_keys_are_faults(tmp_path: Path) -> None:
    root = pickles(original(tmp_path), [KEYS[0], KEYS[0], "../etc/x", "../x", "alone"], KEYS[2:])
    data = CUB("train", str(root), 8, on_error="skip", box=False)
    assert keys(data) == KEYS[:1]
    assert data.faults == [f"{KEYS[0]} is listed twice",
                           *(f"{key!r} is no key; CLASS/NAME is wanted" for key in ("../etc/x", "../x", "alone"))]


@pytest.mark.parametrize("name, text, message", [
    ("images.txt", "1 a/b.jpg\n2\n", r"images\.txt, line 2: '2' has not 2 columns"),
    ("images.txt", "1 Auk/b.jpg\n", r"Auk/b in images\.txt: the name of a class starts with its number"),
    ("bounding_boxes.txt", "1 0 0 x 3\n", r"bounding_boxes\.txt: the box of picture 1 is '0 0 x 3'"),
    ("bounding_boxes.txt", "1 0 nan 3 3\n", r"bounding_boxes\.txt: the box of picture 1 is '0 nan 3 3'; four numbers"),
])  # fmt: skip
def test_damaged_lists_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    write_text(original(tmp_path) / "CUB_200_2011" / name, text)
    with pytest.raises(ValueError, match=message):
        CUB("train", str(tmp_path), 8)


def test_the_official_list_must_name_every_picture(tmp_path: Path) -> None:
    write_text(original(tmp_path) / "CUB_200_2011/train_test_split.txt", "1 1\n2 2\n")
    with pytest.raises(ValueError, match=r"7 faults.*\n.*does not say on which side 001\.Auk/Auk_2 is"):
        CUB("train", str(tmp_path), 8, splits="official")


def test_other_folders_and_pickles_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.* is no CUB-200-2011: there is no CUB_200_2011/images in it"):
        CUB("train", str(tmp_path), 8)
    root = original(tmp_path, "elsewhere")
    with pytest.raises(ValueError, match="has no captions: a folder text"):
        CUB("train", str(root), 8)
    pickles(original(tmp_path), {"a": 1}, KEYS)
    with pytest.raises(ValueError, match=r"filenames\.pickle holds a dict that is not a list of keys"):
        CUB("train", str(root), 8)
    (root / "birds/train/filenames.pickle").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"train/filenames\.pickle is refused: it wants os\.system"):
        CUB("train", str(root), 8)


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    data = CUB("train", str(original(tmp_path)), 8)
    (tmp_path / f"CUB_200_2011/images/{KEYS[0]}.jpg").unlink()
    with pytest.raises(ValueError, match=r"images/001\.Auk/Auk_1\.jpg cannot be read: No such file"):
        data[0, 0]
    with pytest.raises(ValueError, match=r"1 fault.*\n.*001\.Auk/Auk_1 has no picture: .*Auk_1\.jpg is not there"):
        CUB("train", str(tmp_path), 8)
