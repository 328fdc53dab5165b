"""COCO's layouts: what is read, and what is said about a JSON and a folder that do not belong together."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from PIL import Image

from t2i.data.coco import COCO


def write(root: Path, split: str = "train", year: int = 2017, count: int = 3, **changes) -> Path:
    images = [{"id": 10 + i, "file_name": f"{i:012}.jpg", "license": 1, "height": 12} for i in range(count)]
    annotations = [{"id": 100 * i + k, "image_id": 10 + i, "caption": f"caption {k}\nof {i} "}
                   for i in range(count) for k in range(5)]
    held = {"info": {"year": year}, "licenses": [{"id": 1, "name": "x"}], "images": images, "annotations": annotations}
    for key, extra in changes.items():
        held[key] = held[key] + extra
    (root / f"{split}{year}").mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    for image in images:
        Image.new("RGB", (16, 12), (image["id"], 0, 0)).save(root / f"{split}{year}/{image['file_name']}")
    (root / f"annotations/captions_{split}{year}.json").write_text(json.dumps(held))
    return root


@pytest.mark.parametrize("year", [2017, 2014])
def test_both_years(tmp_path, year: int) -> None:
    write(write(tmp_path, year=year), "val", year, count=2)
    train, val = COCO("train", str(tmp_path), image_size=8), COCO("val", str(tmp_path), image_size=8)
    assert (len(train), len(val)) == (3, 2)
    example = train[1, 0]
    assert example.key == f"train{year}/000000000001.jpg" and example.image.shape == (3, 8, 8)
    assert example.captions == tuple(f"caption {k} of 1" for k in range(5))  # on one line each
    assert abs(int(example.image[0].float().mean()) - 11) <= 2


def test_a_year_can_be_asked_for(tmp_path) -> None:
    write(write(tmp_path, year=2017), year=2014, count=2)
    assert [len(COCO("train", str(tmp_path), year=year, image_size=8)) for year in (None, 2017, 2014)] == [3, 3, 2]
    with pytest.raises(ValueError, match=r"is not laid out as COCO: wanted is val2014/ with annotations/captions_"):
        COCO("val", str(tmp_path), year=2014)
    with pytest.raises(ValueError, match=r"wanted is val2017/ .* or val2014/ .*, or train/filenames.pickle"):
        COCO("val", str(tmp_path))


@pytest.mark.parametrize(
    "changes, message, left",
    [({"images": [{"id": 9, "file_name": "gone.jpg"}]}, r"names train2017/gone.jpg, which is not there", 3),
     ({"images": [{"id": 10, "file_name": "000000000001.jpg"}]}, r"picture id 10 is there twice", 3),
     ({"annotations": [{"image_id": 77, "caption": "lost"}]}, r"picture id 77, which is not listed: 'lost'", 3),
     ({"annotations": [{"image_id": 10, "caption": " \n"}]}, r"an empty caption of 000000000000.jpg", 3),
     ({"annotations": [{"image_id": 10, "caption": "\ud83d"}]}, r"000000000000.jpg holds half a character", 3),
     ({"annotations": [{"image_id": [1], "caption": "x"}]}, r"annotations\[15\] is \(\[1\], 'x'\); wanted", 3),
     ({"images": [{"id": 9, "file_name": [1]}]}, r"images\[3\] is \(9, \[1\]\); wanted are id, file_name", 3)],
)  # fmt: skip
def test_faults_are_named_or_left_out(tmp_path, changes, message: str, left: int) -> None:
    root = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=rf"(?s)1 fault in the listing.*{message}"):
        COCO("train", str(root), image_size=8)
    kept = COCO("train", str(root), image_size=8, on_error="skip")
    assert len(kept) == left and len(kept.faults) == 1


def test_a_picture_without_captions_is_a_fault(tmp_path) -> None:
    root = write(tmp_path, images=[{"id": 9, "file_name": "bare.jpg"}])
    Image.new("RGB", (16, 12)).save(root / "train2017/bare.jpg")
    with pytest.raises(ValueError, match="has no caption of train2017/bare.jpg"):
        COCO("train", str(root), image_size=8)
    assert len(COCO("train", str(root), image_size=8, on_error="skip")) == 3


@pytest.mark.parametrize("text", ["{oops", "[" * 20_000, '{"images": ' + "9" * 5000 + "}", "[]",
                                  '{"images": 3}', '{"images": [{"x": 1}], "annotations": []}'])
def test_other_json_is_refused(tmp_path, text: str) -> None:
    root = write(tmp_path)
    (root / "annotations/captions_train2017.json").write_text(text)
    with pytest.raises(ValueError, match="captions_train2017.json (is damaged|holds no captions of COCO)"):
        COCO("train", str(root))


def test_long_and_foreign_captions_are_kept(tmp_path) -> None:
    long, foreign = " ".join(["word"] * 500), "一只猫 🐈 قطة"
    root = write(tmp_path, annotations=[{"image_id": 10, "caption": long}, {"image_id": 10, "caption": foreign}])
    assert COCO("train", str(root), image_size=8)[0, 0].captions[-2:] == (long, foreign)


def test_the_layout_of_attngan(tmp_path) -> None:
    for name, side, keys in (("train", "train2014", ["COCO_a", "COCO_b"]), ("test", "val2014", ["COCO_c"])):
        (tmp_path / name).mkdir()
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "images" / side).mkdir(parents=True)
        (tmp_path / name / "filenames.pickle").write_bytes(pickle.dumps(keys, protocol=2))
        for key in keys:
            Image.new("RGB", (9, 9)).save(tmp_path / "images" / side / f"{key}.jpg")
            (tmp_path / "text" / f"{key}.txt").write_text(f"{key} one\n\n{key} two\n")
    train, val = COCO("train", str(tmp_path), image_size=8), COCO("val", str(tmp_path), image_size=8)
    assert [train.key(i) for i in range(2)] == ["images/train2014/COCO_a.jpg", "images/train2014/COCO_b.jpg"]
    assert val[0, 0].captions == ("COCO_c one", "COCO_c two")
    (tmp_path / "text/COCO_b.txt").write_text("\n")
    (tmp_path / "images/train2014/COCO_a.jpg").unlink()
    with pytest.raises(ValueError, match=r"(?s)COCO_a, of which images/ has no picture.*COCO_b.txt is missing"):
        COCO("train", str(tmp_path))
