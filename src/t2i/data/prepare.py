"""Checks a data set before hours are spent on it: `python prepare.py data=coco data.root=…`.

Every picture is decoded once. Reported are counts and sizes, captions, what cannot be read (by name), pictures smaller
than they will be trained at, duplicates within a split and across, and what the packed cache will take.
"""

from __future__ import annotations

import hashlib
import io
import json
import statistics
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from t2i.checkpoint import atomic, building
from t2i.config.machine import cores
from t2i.data import packed
from t2i.data.datasets import SPLITS, dataset_node, given_arguments
from t2i.data.decode import fit
from t2i.data.image_dataset import ImageDataset
from t2i.data.rows import ListingError, one_line
from t2i.viz import grids
from t2i.viz.progress import clock, counter

LONG = 60  # words of a caption that a text encoder will cut
LISTED = ("faults", "unreadable", "damaged", "notes")  # findings of which every item is printed


@dataclass
class SplitStatistics:
    """What was seen of one split: width and height by key, keys by a hash of the pixels and of their likeness."""

    data: ImageDataset
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    same: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    alike: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    sheet: list[tuple[Tensor, str]] = field(default_factory=list)
    seconds: float = 0.0


def difference_hash(image: Tensor) -> str | None:
    """64 bits, equal for pictures that differ in size, format or quality alone. None for pictures without contrast,
    which would all be alike."""
    grey = F.interpolate(image[None].float().mean(1, keepdim=True), (8, 9), mode="area")[0, 0]
    if float(grey.std()) < 8:
        return None
    bits = (grey[:, 1:] > grey[:, :-1]).flatten().tolist()
    return f"{int(''.join('01'[bit] for bit in bits), 2):016x}"


def collect(data: ImageDataset, sheet: int) -> SplitStatistics:
    """Decodes every picture; `sheet` of them are kept for the contact sheet."""
    seen, every, started = SplitStatistics(data), max(1, len(data) // max(1, sheet)), time.monotonic()

    def read(index: int) -> tuple[Tensor, tuple[int, int] | None] | str:
        row = data.rows[index]
        try:
            image = data.decoded(row)
            if "bytes" not in row:  # pictures are drawn, and no files
                return image, None
            with Image.open(io.BytesIO(data.read(row))) as opened:
                return image, opened.size
        except ValueError as error:
            return str(error)

    with counter(f"reading {data.split}", len(data)) as progress:
        for first, chunk in packed.map_in_threads(read, range(len(data)), cores()):
            for index, found in enumerate(chunk, first):
                if isinstance(found, str):
                    seen.unreadable.append(found)
                    continue
                (image, size), row = found, data.rows[index]
                if size is not None:
                    seen.sizes[row["key"]] = size
                seen.same[hashlib.sha256(image.numpy().tobytes()).hexdigest()].append(row["key"])
                if (code := difference_hash(image)) is not None:
                    seen.alike[code].append(row["key"])
                if index % every == 0 and len(seen.sheet) < sheet:
                    seen.sheet.append((fit(image, 128, square=True), (row["captions"] or [row["key"]])[0]))
            progress(first + len(chunk))
    seen.seconds = time.monotonic() - started
    return seen


def captions_of(data: ImageDataset) -> dict[str, Any]:
    counts, words, long, foreign, repeated = [], [], [], 0, 0
    vocabulary: set[str] = set()
    for row in data.rows:
        counts.append(len(row["captions"]))
        repeated += len(row["captions"]) - len(set(row["captions"]))
        for caption in row["captions"]:
            each = caption.lower().split()
            words.append(len(each))
            vocabulary.update(word.strip(".,;:!?\"'()") for word in each)
            foreign += not caption.isascii()
            if len(each) > LONG:
                long.append(f"{row['key']}: {len(each)} words")
    return {"captions": sum(counts), "a picture": [min(counts), round(statistics.mean(counts), 2), max(counts)],
            "pictures without": sum(not c for c in counts), "twice at one picture": repeated,
            "words (mean, longest)": [round(statistics.mean(words), 1), max(words)] if words else None,
            "different words": len(vocabulary), "beyond ASCII": foreign, f"over {LONG} words": long}


def summary(seen: SplitStatistics) -> dict[str, Any]:
    data, sizes = seen.data, seen.sizes
    sides = sorted(min(size) for size in sizes.values())
    largest = max(sizes.values(), key=lambda s: s[0] * s[1], default=None)
    captions = captions_of(data)
    return {
        "pictures": len(data), "captions": captions, "faults": data.faults,
        "notes": data.notes + ([data.caption_hint] if not captions["captions"] else []),
        "unreadable": seen.unreadable, "damaged": data.damaged,
        "short side (least, median, most)": [sides[0], sides[len(sides) // 2], sides[-1]] if sides else None,
        "largest": list(largest) if largest else None,
        f"smaller than {data.image_size}": sorted(k for k, size in sizes.items() if min(size) < data.image_size),
        "same pixels": sorted(keys for keys in seen.same.values() if len(keys) > 1),
        "look alike": sorted(keys for keys in seen.alike.values() if len(keys) > 1),
        "packed cache": {"megabytes": round(packed.expected_bytes(data) / 1e6, 1),
                         "pictures a second": round(len(data) / max(1e-9, seen.seconds)), "time": clock(seen.seconds)},
    }


def across(train: SplitStatistics, val: SplitStatistics) -> dict[str, Any]:
    """Pictures that are in both splits: by name, by pixels, by likeness."""
    names = {row["key"] for row in train.data.rows} & {row["key"] for row in val.data.rows}
    pairs = {kind: sorted([a[code][0], b[code][0]] for code in a.keys() & b.keys())
             for kind, a, b in (("same pixels", train.same, val.same), ("look alike", train.alike, val.alike))}
    return {"same name": sorted(names), **pairs}


def as_lines(name: str, value: Any, depth: int = 1) -> list[str]:
    """A finding as lines for people: long lists by their number and first items, but what is to be mended whole."""
    indent = "  " * depth
    if isinstance(value, dict):
        return [f"{indent}{name}", *(line for k, v in value.items() for line in as_lines(k, v, depth + 1))]
    if isinstance(value, list) and value and not isinstance(value[0], int | float):
        lines = [one_line(", ".join(item) if isinstance(item, list) else item) for item in value]
        if len(lines) > 5 and name not in LISTED:
            lines = [*lines[:5], f"and {len(lines) - 5} more"]
        return [f"{indent}{name}: {len(value)}", *(f"{indent}  {line}" for line in lines)]
    if isinstance(value, list) and value:
        return [f"{indent}{name}: {', '.join(map(str, value))}"]
    return [f"{indent}{name}: {'none' if value in ([], None) else value}"]


def run(config: dict[str, Any]) -> int:
    """Prints and writes what was found; 1 if anything should be mended (so that scripts can tell), else 0."""
    node, cache = dataset_node(config), Path(config["paths"]["cache"]) / "packed"
    out = Path(config["out"])
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written: {error.strerror}") from error
    if "on_error" not in node:
        name = node["_target_"].rpartition(".")[2].lower()
        raise ValueError(f"data={name} is drawn, not read: there is nothing to look over")
    try:
        made = {split: building.build(node, on_error="skip", pack=True, **given_arguments(config, split))
                for split in SPLITS}
    except ListingError as error:
        raise ValueError(error.full_text) from error
    seen = {split: collect(data, config["sheet"]) for split, data in made.items()}
    result: dict[str, Any] = {split: summary(one) for split, one in seen.items()}
    result["in both splits"] = both = across(seen["train"], seen["val"])
    label = type(made["train"]).__name__.lower()
    if facts := made["train"].facts():
        result = {"data set": facts, **result}
    print(f"{label}: {made['train'].root}")
    for name, value in result.items():
        print("\n".join(as_lines(name, value)))
    for split, one in seen.items():
        if one.sheet:
            images = torch.stack([image for image, _ in one.sheet]).permute(0, 2, 3, 1).numpy()
            path = grids.save(grids.grid(images, [text for _, text in one.sheet]), out / f"{label}-{split}.png")
            print(f"Contact sheet: {path}")
    text = json.dumps(result, indent=1, ensure_ascii=False)  # halves of characters in names become JSON's escapes
    atomic.write_text(out / f"{label}.json", text.encode("utf-8", "backslashreplace").decode())
    print(f"All of it: {out / f'{label}.json'}")
    if config["pack"]:
        for split in SPLITS:
            data = building.build(node, **given_arguments(config, split))
            with counter(f"packing {split}", len(data)) as progress:
                packed.attach(data, cache, progress, cores())
            print(f"Packed: {packed.cache_folder(data, cache)}, {len(data)} pictures")
    return int(any(result[split][key] for split in SPLITS for key in ("faults", "unreadable"))
               or bool(both["same name"] or both["same pixels"]))
