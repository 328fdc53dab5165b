"""CUB-200-2011: birds of 200 kinds, one box and ten captions each, in the original layout or DF-GAN's.

    CUB_200_2011/{images.txt, bounding_boxes.txt, train_test_split.txt, images/KEY.jpg}    the pictures, as published
    text/KEY.txt                                                                           ten captions, a line each
    birds/{train,test}/filenames.pickle, birds/text/KEY.txt                                the usual split by class

(https://www.vision.caltech.edu/datasets/cub_200_2011/; captions: Reed et al., arXiv 1605.05395). A key is
`002.Laysan_Albatross/Laysan_Albatross_0002_1027`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxtyping import UInt8
from torch import Tensor

from t2i.checkpoint.registry import register
from t2i.config.messages import quoted
from t2i.data.image_dataset import Files, ImageDataset, find_files
from t2i.data.rows import Row, read_key_pickle, read_text

KEY = re.compile(r"[^/\\]+/[^/\\]+")
VAL_CLASSES = 4  # where no pickles say otherwise, every class whose number this divides is for validation


@register("data", places=("root",))
class CUB(ImageDataset):
    """Captioned birds: `dataset[index, epoch] -> Example`.

    With `splits=class` no kind of bird is on both sides: `birds/{train,test}/filenames.pickle` say which (test is
    val), and where there are none every class whose number is divisible by 4 is val (50 of 200: 004, 008, …, 200).
    That is *not* the published list of 150 and 50 classes, which comes only with the pickles: figures of the two
    cannot be compared.

    Args:
        root: the folder that holds `CUB_200_2011` (and `birds` or `text`), or `CUB_200_2011` itself.
        box: cut each picture to the square about the centre of the bird's box, of 1.5 times its longer side.
        splits: `class`, or `official` for `train_test_split.txt`, which has every class on both sides.
        Everything else: see `ImageDataset`.
    """

    def __init__(self, split: Literal["train", "val"], root: str, image_size: int = 256, load_size: int | None = None,
                 crop: Literal["center", "random"] = "center", flip: bool = False, box: bool = True,
                 splits: Literal["class", "official"] = "class", views: int = 1, seed: int = 0,
                 on_error: Literal["raise", "skip"] = "raise", pack: bool = True) -> None:
        base = Path(root).expanduser()
        places = [base, base / "CUB_200_2011", base / "birds", base / "birds/CUB_200_2011"]
        home = next((place for place in places if (place / "images").is_dir()), None)
        if home is None:
            raise ValueError(f"data.root={root} is no CUB-200-2011: there is no CUB_200_2011/images in it; it must be"
                             " the folder that holds CUB_200_2011, or that folder")
        places += [home.parent, home.parent / "birds"]
        folders = [place / name for place in places for name in ("text", "text_c10")]
        texts = next((folder for folder in folders if folder.is_dir()), None)
        if texts is None:
            raise ValueError(f"data.root={root} has no captions: a folder text with CLASS/NAME.txt in it is wanted in"
                             f" {base}, {home} or {base / 'birds'}")
        faults: list[str] = []
        keys = keys_of(split, splits, home, places, faults)
        boxes = read_boxes(home, faults) if box else None
        rows = list(rows_of(keys, home / "images", texts, boxes, faults))
        self.images, self.box, self.splits = home / "images", box, splits
        super().__init__(split, base, rows, faults, image_size, load_size, crop, flip, views, seed, on_error, pack)

    def path(self, row: Row) -> Path:
        return self.images / f"{row['key']}.jpg"

    def pixels(self, row: Row) -> UInt8[Tensor, "3 h w"]:
        image = super().pixels(row)
        return crop_to_box(image, row["box"], self.name(row)) if self.box else image

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"box": self.box, "splits": self.splits}


def crop_to_box(image: UInt8[Tensor, "3 h w"], box: Sequence[float], name: str) -> UInt8[Tensor, "3 h2 w2"]:
    """The square of side 2r about the centre of a box (x, y, width, height), r = 0.75 of the longer side (StackGAN,
    arXiv 1612.03242), as far as it lies in the picture; ValueError with `name` where nothing of it does."""
    x, y, width, height = box
    across, down, r = int(x + width / 2), int(y + height / 2), int(0.75 * max(width, height))
    cut = image[:, max(0, down - r) : max(0, down + r), max(0, across - r) : max(0, across + r)]
    if not cut.numel():
        raise ValueError(f"{name} is {image.shape[2]} x {image.shape[1]} pixels, its box {list(box)} (x, y, width,"
                         " height) lies outside (data.box=false leaves boxes alone)")
    return cut


def table(path: Path, columns: int, faults: list[str]) -> Iterator[list[str]]:
    """The lines of one of CUB's lists; one that has not so many columns is a fault."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if len(line.split()) == columns:
            yield line.split()
        elif line.strip():
            faults.append(f"{path}, line {number}: {quoted(line.strip())} has not {columns} columns")


def read_images(home: Path, faults: list[str]) -> dict[str, str]:
    """Every picture's key by its id in CUB's lists."""
    return {number: name.removesuffix(".jpg") for number, name in table(home / "images.txt", 2, faults)}


def read_boxes(home: Path, faults: list[str]) -> dict[str, list[float]]:
    """The box of every key: x, y, width, height in pixels."""
    path, images, boxes = home / "bounding_boxes.txt", read_images(home, []), {}
    for number, *box in table(path, 5, faults):
        try:
            sides = [float(side) for side in box]
        except ValueError:
            sides = [math.nan]
        if all(map(math.isfinite, sides)):
            boxes[images.get(number, "")] = sides
        else:
            faults.append(f"{path}: the box of picture {number} is {quoted(' '.join(box))}; four numbers are wanted"
                          " (data.box=false does without)")
    return boxes


def keys_of(split: str, splits: str, home: Path, places: Iterable[Path], faults: list[str]) -> list[str]:
    """The keys of one side, in the order of the list that names them."""
    if splits == "official":
        path, images = home / "train_test_split.txt", read_images(home, faults)
        side = {number: {"1": "train", "0": "val"}.get(flag) for number, flag in table(path, 2, faults)}
        faults += [f"{path} does not say on which side {images[n]} is" for n in images if side.get(n) is None]
        return [images[number] for number in images if side.get(number) == split]
    names = [f"{side}/filenames.pickle" for side in ("train", "test")]
    pickles = next((place for place in places if all((place / name).is_file() for name in names)), None)
    if pickles is None:
        if not (home / "images.txt").is_file():
            raise ValueError(f"{home} has no images.txt, and there are no birds/{{train,test}}/filenames.pickle beside"
                             " it: one of them must say which pictures there are")
        found: dict[str, list[str]] = {"train": [], "val": []}
        for key in read_images(home, faults).values():
            if number := re.match(r"\d+", key):
                found["train" if int(number[0]) % VAL_CLASSES else "val"].append(key)
            else:
                faults.append(f"{key} in images.txt: the name of a class starts with its number")
        return found[split]
    train, val = (read_key_pickle(pickles / name, faults) for name in names)
    both = {key.partition("/")[0] for key in train} & {key.partition("/")[0] for key in val}
    faults += [f"class {name} is both in {pickles / names[0]} and in {names[1]}; it must be on one side (or"
               " data.splits=official)" for name in sorted(both)]
    return [key for key in (train if split == "train" else val) if key.partition("/")[0] not in both]


def rows_of(keys: Iterable[str], images: Path, texts: Path, boxes: dict[str, list[float]] | None,
            faults: list[str]) -> Iterator[Row]:
    """A row for each key that is whole; a fault for each other."""
    seen: set[str] = set()
    files: dict[str, Files] = {}  # by class
    for key in keys:
        folder, _, stem = key.partition("/")
        if folder not in files:
            files[folder] = find_files(images / folder) if (images / folder).is_dir() else Files(images)
        if not KEY.fullmatch(key) or ".." in key.split("/"):
            faults.append(f"{key!r} is no key; CLASS/NAME is wanted")
        elif key in seen:
            faults.append(f"{key} is listed twice")
        elif f"{stem}.jpg" not in files[folder]:
            faults.append(f"{key} has no picture: {images / key}.jpg is not there")
        elif not (captions := read_captions(texts / f"{key}.txt")):
            faults.append(f"{key} has no captions: {texts / key}.txt is missing or empty")
        elif boxes is not None and key not in boxes:
            faults.append(f"{key} has no box in bounding_boxes.txt (data.box=false does without)")
        else:
            row = {"key": key, "captions": captions, "bytes": files[folder][f"{stem}.jpg"]}
            yield row if boxes is None else row | {"box": boxes[key]}
        seen.add(key)


def read_captions(path: Path) -> list[str]:
    """The lines of a caption file; what the published files hold of undecodable characters becomes a space."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError:
        return []
    return [" ".join(line.replace("\ufffd", " ").replace("\ufeff", "").split()) for line in text.split("\n")
            if line.strip("\ufffd\ufeff \t\r")]
