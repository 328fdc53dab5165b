"""What all data sets of picture files have in common: rows, decoding, crops and flips, and what to do with faults.

A data set lists its rows (`JsonLines`: key, captions, and what `read` needs); here a row becomes an `Example`. Crops
and flips are functions of (seed, epoch, index): a run that goes on sees what an unbroken one would have seen. With a
packed cache (`packed.py`) the pixels come from there, and are the same.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from jaxtyping import UInt8
from torch import Tensor

from t2i.data.decode import fit, read_pixels
from t2i.data.rows import MAX_FAULTS, JsonLines, ListingError, Row, one_line
from t2i.data.seeds import derive_seed
from t2i.types import Example

Split = Literal["train", "val"]
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
               "test": "test", "testing": "test"}
# Columns of captions as people name them, the likelier first.
CAPTION_NAMES = ("text", "caption", "captions", "texts", "prompt", "description", "sentence", "sentences", "comment",
                 "alt_text", "raw")


class ImageStore(Protocol):
    """Decoded pictures of a data set, and the rows of those that it has."""

    rows: JsonLines

    def pixels(self, index: int) -> UInt8[Tensor, "3 h w"]: ...


class ImageDataset:
    """Captioned pictures: `dataset[index, epoch] -> Example`.

    Args:
        split: train or val; validation is never cropped by chance or flipped.
        root: what keys are relative to.
        rows: one a picture, in the order of the data set.
        faults: what is wrong with the listing, a line each: raised, or left out and kept in `faults`.
        image_size: side of the square pictures.
        load_size: short side before the crop, in training; None for image_size.
        crop: where training pictures are cut.
        flip: whether every other epoch sees a training picture mirrored (which of them is chance).
        views: how many crops and flips of a training picture the code cache holds.
        seed: of crops and flips.
        on_error: what is done about pictures that cannot be read and listings with faults. `skip` needs `pack`.
        pack: whether training builds and uses the packed cache.
        has: what there is instead, for the message where there are no rows.
        notes: what people should know of the listing, without being a fault.
        caption_hint: what captions can be read from, for where there are none.
    """

    def __init__(self, split: Split, root: str | Path, rows: Iterable[Row], faults: Sequence[str], image_size: int,
                 load_size: int | None = None, crop: Literal["center", "random"] = "center", flip: bool = False,
                 views: int = 1, seed: int = 0, on_error: Literal["raise", "skip"] = "raise", pack: bool = True,
                 has: str = "", notes: Sequence[str] = (), caption_hint: str = "") -> None:
        if image_size < 1 or views < 1:
            raise ValueError(f"data.image_size={image_size} and data.views={views} must be at least 1")
        if load_size is not None and load_size < image_size:
            raise ValueError(f"data.load_size={load_size} is less than data.image_size={image_size}")
        if on_error == "skip" and not pack:
            raise ValueError("data.on_error=skip needs data.pack=true: which pictures can be read is only known once"
                             " all of them were")
        training = split == "train"
        if load_size is not None and load_size > image_size and crop == "center" and training:
            raise ValueError(f"data.load_size={load_size} with data.crop=center would only zoom in;"
                             " data.crop=random is meant, or load_size=null")
        self.split, self.root, self.image_size, self.on_error, self.pack = split, Path(root), image_size, on_error, pack
        self.crop = crop if training else "center"
        self.flip, self.views, self.seed = flip and training, views if training else 1, seed
        self.side = load_size if load_size is not None and training else image_size
        self.rows = rows if isinstance(rows, JsonLines) else JsonLines.of(rows)
        self.faults, self.notes, self.caption_hint = list(faults), list(notes), caption_hint
        found = f"{len(self.faults)} fault{'s' * (len(self.faults) != 1)}"
        if not len(self.rows):
            why = f"; {found} in the listing:" if self.faults else has
            raise ListingError(f"{self.root} has no pictures for split={split!r}{why}", self.faults)
        if self.faults and on_error == "raise":
            raise ListingError(f"{self.root}: {found} in the listing (data.on_error=skip leaves them"
                               " out):", self.faults)
        self.damaged: list[str] = []  # pictures that were read although something in them is wrong
        self.store: ImageStore | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def key(self, index: int) -> str:
        return self.rows[index]["key"]

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.rows[index]["captions"])

    def path(self, row: Row) -> Path:
        """The file of a row's picture."""
        return self.root / row["key"]

    def name(self, row: Row) -> str:
        """What to call a row's picture in a message."""
        return one_line(self.path(row))

    def read(self, row: Row) -> bytes:
        """The bytes of a row's picture file; ValueError names it where there are none."""
        try:
            return self.path(row).read_bytes()
        except OSError as error:
            raise ValueError(f"{self.name(row)} cannot be read: {error.strerror}") from error

    def pixels(self, row: Row) -> UInt8[Tensor, "3 h w"]:
        """All of a row's picture, in its own size."""
        return read_pixels(self.read(row), self.name(row), self.damaged)

    def decoded(self, row: Row) -> UInt8[Tensor, "3 h w"]:
        """A row's picture as it is packed: short side `side`, square unless it is cropped by chance."""
        return fit(self.pixels(row), self.side, self.crop == "center")

    def settings(self) -> dict[str, Any]:
        """What decides about the stored pixels, beside the files."""
        return {"data": type(self).__name__, "split": self.split, "side": self.side, "square": self.crop == "center"}

    def facts(self) -> dict[str, Any]:
        """What `prepare.py` is to show of the data set beside what it finds in every one."""
        return {}

    def use(self, store: ImageStore) -> None:
        """From here on rows and pixels come from a packed cache."""
        self.store, self.rows = store, store.rows

    def __getitem__(self, at: tuple[int, int]) -> Example:
        index, epoch = at
        row = self.rows[index]
        known = len(self.damaged)
        image = self.store.pixels(index) if self.store is not None else self.decoded(row)
        if known < len(self.damaged) <= MAX_FAULTS:  # packing lists all of them at once
            warnings.warn(self.damaged[-1], stacklevel=2)
        size = self.image_size
        down, right = image.shape[1] - size, image.shape[2] - size
        if down or right:
            seed = derive_seed(self.seed, "crop", epoch, index)
            top, left = seed % (down + 1), (seed >> 24) % (right + 1)
            image = image[:, top : top + size, left : left + size]
        if self.flip and (derive_seed(self.seed, "flip", index) + epoch) % 2:
            image = image.flip(2)
        elif self.store is not None:
            image = image.clone(memory_format=torch.contiguous_format)  # the cache's own pixels are nobody's to change
        return Example(image.contiguous(), tuple(row["captions"]), row["key"])


class Files(dict[str, int]):
    """Files by their path seen from `root`, and their sizes in bytes.

    `gone` are links that lead nowhere and files that cannot be looked at, with the reason; `notes` say which links
    were not followed; `forms`, in what captions were found.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root, self.gone, self.notes, self.forms = root, dict[str, str](), list[str](), list[str]()

    @cached_property
    def _normalized(self) -> dict[str, str]:
        return {_normalize(name): name for name in self if not name.isascii()}

    def known(self, name: str) -> str | None:
        """The path of a file that a list may write in another Unicode form or with backslashes."""
        if name in self:
            return name
        name = _normalize(name)
        return name if name in self else self._normalized.get(name)

    def find(self, name: str) -> str | None:
        """The same, also where links or hidden folders lead to it."""
        known = self.known(name)
        if known is None and os.path.isfile(path := self.root / name):
            self[name], known = path.stat().st_size, name
        return known

    def missing(self, name: str) -> str:
        """Why a name was not found."""
        return self.gone.get(name) or f"{self.root / name} is not there"


def _normalize(name: str) -> str:
    """NFC, as lists mostly are, whereas macOS wrote names in NFD; slashes, whereas Windows writes backslashes."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).removeprefix("./")


def find_files(root: Path, deep: bool = False) -> Files:
    """The files of a folder; with `deep` also of all folders below but hidden ones. A link to a folder is followed
    where that was not read yet and is none above."""
    files = Files(root)
    top = os.path.realpath(root)
    read, waiting, links = {top}, [""], list[str]()
    while waiting or links:
        folder = waiting.pop() if waiting else links.pop(0)
        real = os.path.realpath(root / folder)
        if folder and (real in read or f"{top}/".startswith(f"{real.rstrip('/')}/")):
            files.notes.append(f"{root / folder} is a link to {real}, which is above it or read already: not followed")
            continue
        read.add(real)
        try:
            with os.scandir(root / folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"{root / folder} cannot be read: {error.strerror}") from error
        below: list[str] = []
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_file():
                    files[path] = entry.stat().st_size
                elif deep and entry.is_dir() and not entry.name.startswith("."):
                    (links if entry.is_symlink() else below).append(path)
                elif entry.is_symlink() and not os.path.exists(entry.path):
                    files.gone[path] = f"{entry.path} is a link to {os.readlink(entry.path)}, which is not there"
                elif not entry.is_dir():
                    files.gone[path] = f"{entry.path} is no file"  # but a pipe, say
            except OSError as error:
                files.gone[path] = f"{entry.path} cannot be looked at: {error.strerror}"
        waiting += reversed(below)
    return files


def is_image(path: str) -> bool:
    return path.lower().endswith(EXTENSIONS) and not path.rpartition("/")[2].startswith(".")


def split_named(name: str, where: str, what: str = "file") -> str:
    """What the path of a table or shard says of its split: train, val, test or nothing; the outermost folder that says
    anything."""
    for part in name.lower().split("/"):
        words = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", part) if word in SPLIT_NAMES}
        if len(words) > 1:
            raise ValueError(f"{where}: is the {what} {name} for {' or for '.join(sorted(words))}? A {what} is on one"
                             " side")
        if words:
            return words.pop()
    return ""


def assign_splits(keys: Sequence[str]) -> list[Split]:
    """The splits of pictures whose data set names none: every twentieth, by a hash of its key, is for validation. Of a
    few, where none or all would be, it is the first by that hash."""
    hashes = [hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in keys]
    splits: list[Split] = ["train" if each[0] % 20 else "val" for each in hashes]
    if len(set(splits)) == 1 and len(keys) > 1:
        first = hashes.index(min(hashes))
        splits = ["val" if i == first else "train" for i in range(len(keys))]
    return splits
