"""The packed cache: decoded, scaled pictures of a data set in one mapped file, read by random access.

A folder with `pixels.bin` (uint8, picture after picture, each 3 x h x w), `shapes.npy` (n, 2) and the rows
(`rows.jsonl`, `rows.npy`). It is made once, on the first use or by `prepare.py`; pictures that cannot be read are
refused or left out and listed in the header, never replaced. Nothing is recompressed: a run with it sees the very
pixels that a run without it decodes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from t2i.data import cache
from t2i.data.image_dataset import ImageDataset, ImageStore
from t2i.data.rows import JsonLines, fault_lines, one_line
from t2i.data.seeds import derive_seed

VERSION = 1
CHUNK = 64  # pictures that are decoded side by side and written together
WHAT = "packed cache"
T = TypeVar("T")


def cache_folder(dataset: ImageDataset, root: Path) -> Path:
    """Where a data set's cache lies: by its class, its split, its settings and where its pictures are."""
    settings = dataset.settings()
    code = derive_seed(json.dumps(settings, sort_keys=True), str(dataset.root.resolve()))
    return root / f"{settings['data'].lower()}-{dataset.split}-{settings['side']}-{code:016x}"


def header(dataset: ImageDataset) -> cache.Header:
    return {"version": VERSION, "settings": dataset.settings(),
            "source": {"pictures": len(dataset.rows), "hash": dataset.rows.hash()}}


def expected_bytes(dataset: ImageDataset) -> int:
    """About how large the cache will be: photographs are a third longer than wide."""
    return int(len(dataset) * 3 * dataset.side**2 * (1 if dataset.crop == "center" else 1.35))


class PackedImages:
    """Reads a packed cache; `pixels(i)` is a view of the mapped file, not to be written to."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.rows = JsonLines.open(self.folder / "rows.jsonl")
        self.shapes = np.load(self.folder / "shapes.npy")
        self.ends = np.cumsum(self.shapes.astype(np.int64).prod(1) * 3)
        size = (self.folder / "pixels.bin").stat().st_size
        if len(self.rows) != len(self.shapes) or size != (int(self.ends[-1]) if len(self.ends) else 0):
            raise ValueError(f"the {WHAT} {self.folder} is damaged: {len(self.rows)} rows, {len(self.shapes)} shapes,"
                             f" {size} bytes of pixels. Delete it to make it anew.")
        # Copy on write, so that torch takes it without a copy; nobody writes.
        self.bytes = np.memmap(self.folder / "pixels.bin", np.uint8, "c")

    def pixels(self, index: int) -> UInt8[Tensor, "3 h w"]:
        height, width = (int(side) for side in self.shapes[index])
        end = int(self.ends[index])
        return torch.from_numpy(self.bytes[end - 3 * height * width : end].reshape(3, height, width))

    def __reduce__(self) -> Any:
        """For worker processes, which map the files themselves."""
        return type(self), (self.folder,)


class StoreSubset:
    """Some of the pictures of a store: those where `keep` is true."""

    def __init__(self, store: ImageStore, keep: np.ndarray) -> None:
        self.store, self.indices, self.rows = store, np.flatnonzero(keep), store.rows.only(keep)

    def pixels(self, index: int) -> UInt8[Tensor, "3 h w"]:
        return self.store.pixels(int(self.indices[index]))


def map_in_threads(function: Callable[[int], T], indices: range, workers: int) -> Iterator[tuple[int, list[T]]]:
    """The first index of each chunk of `indices` and what `function` gives for them, worked on side by side."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pictures are what runs side by side
    try:
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for first in range(indices.start, indices.stop, CHUNK):
                yield first, list(pool.map(function, range(first, min(first + CHUNK, indices.stop))))
    finally:
        torch.set_num_threads(threads)


def read_journal(part: Path) -> list[dict[str, Any]]:
    """What an interrupted call had written for certain; both files are cut to it."""
    path, pixels = part / "journal.jsonl", part / "pixels.bin"
    if not path.is_file() or not pixels.is_file():
        path.write_bytes(b"")
        pixels.write_bytes(b"")
        return []
    found: list[dict[str, Any]] = []
    size, length, have = 0, 0, pixels.stat().st_size
    for line in path.read_bytes().split(b"\n")[:-1]:
        entry = json.loads(line)
        more = 3 * entry["shape"][0] * entry["shape"][1] if "shape" in entry else 0
        if size + more > have:
            break
        found.append(entry)
        size, length = size + more, length + len(line) + 1
    for file, keep in ((path, length), (pixels, size)):
        with file.open("r+b") as opened:
            opened.truncate(keep)
    return found


def build(dataset: ImageDataset, folder: Path, progress: cache.Progress | None = None,
          workers: int = 1) -> cache.Header:
    """Packs `dataset` into `folder`, unless that is done; an interrupted call is continued. Returns its header.

    ValueError names an unreadable picture (on_error=raise), a full or read-only disk, or what does not fit.
    """

    def decode(index: int) -> Tensor | str:
        try:
            return dataset.decoded(dataset.rows[index])
        except ValueError as error:
            return str(error)

    def fill(part: Path) -> cache.Header:
        entries = read_journal(part)
        total = len(dataset.rows)
        left, free = expected_bytes(dataset) * (total - len(entries)) // total, shutil.disk_usage(part).free
        if left > free:
            raise ValueError(f"the {WHAT} {folder} needs about {left / 1e9:.1f} GB more, and {free / 1e9:.1f} GB are"
                             " free there. paths.cache=… puts it elsewhere; data.pack=false does without.")
        with (part / "pixels.bin").open("ab") as pixels, (part / "journal.jsonl").open("ab") as log:
            for first, chunk in map_in_threads(decode, range(len(entries), total), workers):
                for index, image in enumerate(chunk, first):
                    if isinstance(image, str):
                        if dataset.on_error == "raise":
                            raise ValueError(f"{image} ({index} of {total} pictures are packed and kept;"
                                             " data.on_error=skip leaves such pictures out)")
                        entry: dict[str, Any] = {"skipped": dataset.rows[index]["key"], "reason": image}
                    else:
                        entry = {"shape": list(image.shape[1:])}
                        pixels.write(image.numpy().tobytes())
                        pixels.flush()
                    log.write(json.dumps(entry).encode() + b"\n")
                    log.flush()
                    entries.append(entry)
                if progress is not None:
                    progress(len(entries), total)
        kept = [row for row, entry in zip(dataset.rows, entries, strict=True) if "shape" in entry]
        if not kept:
            raise ValueError(f"none of the {total} pictures of {one_line(dataset.root)} can be read:"
                             f"{fault_lines([entry['reason'] for entry in entries])}")
        JsonLines.of(kept).save(part / "rows.jsonl")
        np.save(part / "shapes.npy", np.asarray([e["shape"] for e in entries if "shape" in e], np.int32))
        (part / "journal.jsonl").unlink()
        return {"pictures": len(kept), "skipped": [e for e in entries if "skipped" in e]}

    return cache.build(folder, header(dataset), fill, WHAT)


def attach(dataset: ImageDataset, root: Path, progress: cache.Progress | None = None,
           workers: int = 1) -> list[dict[str, str]]:
    """Packs a data set where that is not done, and lets it read from there; returns the pictures left out."""
    folder = cache_folder(dataset, root)
    skipped = build(dataset, folder, progress, workers)["skipped"]
    if skipped and dataset.on_error == "raise":
        raise ValueError(f"the {WHAT} {folder} leaves out {len(skipped)} unreadable pictures (the first:"
                         f" {skipped[0]['reason']}). data.on_error=skip takes it so; mend the pictures and delete it"
                         " to make it anew.")
    dataset.use(PackedImages(folder))
    return skipped
