"""MS COCO captions (arXiv 1504.00325) in the layout of its makers, 2017 or 2014, or in that of AttnGAN and DF-GAN.

- `train2017/`, `val2017/`, `annotations/captions_{train,val}2017.json`, and the same with 2014;
- `{train,test}/filenames.pickle`, `text/KEY.txt`, `images/{train2014,val2014}/KEY.jpg` (test is our val).
Nothing but the standard library reads the JSON: names and captions are all that is kept of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from t2i.checkpoint.registry import register
from t2i.config.messages import quoted
from t2i.data.image_dataset import ImageDataset, Split, find_files
from t2i.data.rows import Listing, ListingError, Row, is_text, read_key_pickle, read_text

YEARS = (2017, 2014)


def _slim(pairs: list[tuple[str, Any]]) -> Any:
    """A JSON object as what is needed of it, so that half a million annotations fit in little memory."""
    item = dict(pairs)
    if "caption" in item and "image_id" in item:
        return item["image_id"], item["caption"]
    if "file_name" in item and "id" in item:
        return item["id"], item["file_name"]
    return item


def read_annotations(path: Path, faults: list[str]) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """(id, file name) of every picture and (picture's id, caption) of every caption; what is neither is a fault."""
    try:
        with path.open(encoding="utf-8") as file:
            held = json.load(file, object_pairs_hook=_slim)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {str(error).partition(';')[0]}") from error
    found = []
    for name, wanted in (("images", "id, file_name"), ("annotations", "image_id, caption")):
        items = held.get(name) if isinstance(held, dict) else None
        good = []
        for number, item in enumerate(items if isinstance(items, list) else []):
            if isinstance(item, tuple) and isinstance(item[0], int | str) and isinstance(item[1], str):
                good.append(item)
            else:
                faults.append(f"{path.name}: {name}[{number}] is {quoted(item)}; wanted are {wanted}")
        if not isinstance(items, list) or (items and not good):
            raise ListingError(f"{path} holds no captions of COCO: wanted are images (id, file_name) and annotations"
                               " (image_id, caption)", faults)
        found.append(good)
    return found[0], found[1]


def read_layout(root: Path, split: Split, year: int) -> Listing:
    path = root / f"annotations/captions_{split}{year}.json"
    faults: list[str] = []
    images, annotations = read_annotations(path, faults)
    folder = f"{split}{year}"
    files = find_files(root / folder)
    captions: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    for identity, name in images:
        known = files.known(name)
        if identity in names:
            faults.append(f"{path.name}: the picture id {identity} is there twice ({names[identity]}, {name})")
        elif known is None:
            faults.append(f"{path.name} names {folder}/{name}, which is not there")
        names.setdefault(identity, known or name)
    for identity, caption in annotations:
        if identity not in names:
            faults.append(f"{path.name}: a caption of picture id {identity}, which is not listed: {quoted(caption)}")
        elif not caption.strip():
            faults.append(f"{path.name}: an empty caption of {names[identity]}")
        elif not is_text(caption):
            faults.append(f"{path.name}: a caption of {names[identity]} holds half a character: {quoted(caption)}")
        else:
            captions.setdefault(identity, []).append(" ".join(caption.split()))
    there = {identity: name for identity, name in names.items() if name in files}
    faults += [f"{path.name} has no caption of {folder}/{name}" for identity, name in there.items()
               if identity not in captions]
    return [{"key": f"{folder}/{name}", "captions": captions[identity], "bytes": files[name]}
            for identity, name in there.items() if identity in captions], faults


def read_attngan_layout(root: Path, split: Split) -> Listing:
    path = root / ("train" if split == "train" else "test") / "filenames.pickle"
    rows: list[Row] = []
    faults: list[str] = []
    seen: set[str] = set()
    listing = f"{path.parent.name}/{path.name}"
    folders = {name: find_files(root / "images" / name) for name in ("train2014", "val2014")
               if (root / "images" / name).is_dir()}
    for key in read_key_pickle(path, faults):
        folder = next((name for name, files in folders.items() if f"{key}.jpg" in files), None)
        text = root / "text" / f"{key}.txt"
        if key in seen:
            faults.append(f"{listing} lists {key} twice")
        elif folder is None:
            faults.append(f"{listing} names {key}, of which images/ has no picture")
        elif not text.is_file() or not (captions := [c for c in read_text(text).split("\n") if c.strip()]):
            faults.append(f"{text} is missing or empty")
        elif not all(map(is_text, captions)):
            faults.append(f"{text} is not UTF-8")
        else:
            rows.append({"key": f"images/{folder}/{key}.jpg", "captions": captions,
                         "bytes": folders[folder][f"{key}.jpg"]})
        seen.add(key)
    return rows, faults


@register("data", places=("root",))
class COCO(ImageDataset):
    """Args beside those of `ImageDataset`: root, the folder; year, 2017 or 2014, None for what is there."""

    def __init__(self, split: Split, root: str, year: Literal[2017, 2014] | None = None, image_size: int = 256,
                 load_size: int | None = None, crop: Literal["center", "random"] = "center", flip: bool = False,
                 views: int = 1, seed: int = 0, on_error: Literal["raise", "skip"] = "raise",
                 pack: bool = True) -> None:
        where = Path(root)
        here = [y for y in YEARS if (where / f"annotations/captions_{split}{y}.json").is_file()
                and (where / f"{split}{y}").is_dir() and year in (y, None)]
        if here:
            rows, faults = read_layout(where, split, here[0])
        elif year is None and (where / "train/filenames.pickle").is_file():
            rows, faults = read_attngan_layout(where, split)
        else:
            years = [year] if year else list(YEARS)
            wanted = " or ".join(f"{split}{y}/ with annotations/captions_{split}{y}.json" for y in years)
            raise ValueError(f"data.root={root} is not laid out as COCO: wanted is {wanted}"
                             + ("" if year else ", or train/filenames.pickle with images/ and text/"))
        self.year = here[0] if here else 2014  # AttnGAN's layout is of that one
        super().__init__(split, where, rows, faults, image_size, load_size, crop, flip, views, seed, on_error, pack)
