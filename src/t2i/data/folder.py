"""A folder of pictures with `metadata.jsonl`: one object a line with `file_name`, `text` and `split`.

`text` is a caption or a list of them, `split` is `train` or `val` (a line without one is training data, and if no
line has one every twentieth picture, by a hash of its name, is validation data). Pictures of any size and mode
are flattened on white, scaled so that the short side fits (bicubic, antialiased) and cropped about the centre.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from t2i.types import Example

REQUIRED = ("file_name", "text")


def read_metadata(root: Path) -> list[dict[str, Any]]:
    """The lines of `metadata.jsonl`, checked; ValueError names the file, the line and what is wanted."""
    path = root / "metadata.jsonl"
    if not root.is_dir():
        raise ValueError(f"data.root={root} is not a folder; it must hold pictures and a metadata.jsonl")
    if not path.is_file():
        raise ValueError(f"{path} is missing; each line is an object with file_name, text and split")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error
    items = []
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines(): a caption may hold U+2028
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        missing = [key for key in REQUIRED if not isinstance(item, dict) or key not in item]
        if missing:
            raise ValueError(f"{path}, line {number}: {' and '.join(missing)} missing;"
                             " wanted are file_name, text, split")
        if fault := faulty(item):
            raise ValueError(f"{path}, line {number}: {fault}")
        items.append(item)
    return items


def faulty(item: dict[str, Any]) -> str:
    """What is wrong with a line's values, or an empty string."""
    name, text = item["file_name"], item["text"]
    captions = [text] if isinstance(text, str) else text
    if not isinstance(name, str) or not name:
        return f"file_name is {name!r}; the name of a picture is wanted"
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        return f"text is {text!r}; a caption or a list of captions is wanted, none of them empty"
    if not isinstance(item.get("split", ""), str):
        return f"split is {item['split']!r}; train or val is wanted"
    return ""


def decode_image(path: Path, image_size: int) -> np.ndarray:
    """One picture as uint8 (h, w, 3): flattened on white, short side scaled to `image_size`, centre cropped."""
    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)  # as the camera was held
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                image = image.convert("RGBA")
                white = Image.new("RGBA", image.size, (255, 255, 255, 255))
                image = Image.alpha_composite(white, image)
            image = image.convert("RGB")
    # Damaged pictures raise a handful of types, by their format and by the place of the damage.
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}") from error
    scale = image_size / min(image.size)
    width, height = (max(image_size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
    left, top = (width - image_size) // 2, (height - image_size) // 2
    return np.asarray(image.crop((left, top, left + image_size, top + image_size)))


class Folder:
    """Captioned pictures of one's own.

    Args:
        split: which lines of `metadata.jsonl` to take.
        root: the folder.
        image_size: side of the square pictures.
        in_memory: keep decoded pictures (image_size² · 3 bytes each) after their first use.
    """

    def __init__(self, split: Literal["train", "val"], root: str, image_size: int = 64, in_memory: bool = True) -> None:
        self.root, self.image_size, self.split = Path(root), image_size, split
        items = read_metadata(self.root)
        stated = any("split" in item for item in items)
        self.items = [item for item in items if self.side(item, stated) == split]
        if not self.items:
            present = ", ".join(sorted({self.side(item, stated) for item in items})) or "no pictures at all"
            raise ValueError(f"{self.root}/metadata.jsonl has no pictures for split={split!r}; it has {present}")
        self.memory: dict[int, np.ndarray] | None = {} if in_memory else None

    @staticmethod
    def side(item: dict[str, Any], stated: bool) -> str:
        if stated:
            return item.get("split", "train")
        return "val" if hashlib.sha256(item["file_name"].encode()).digest()[0] % 20 == 0 else "train"

    def __len__(self) -> int:
        return len(self.items)

    def captions(self, index: int) -> tuple[str, ...]:
        text = self.items[index]["text"]
        return (text,) if isinstance(text, str) else tuple(text)

    def __getitem__(self, at: tuple[int, int]) -> Example:
        index = at[0]
        pixels = self.memory.get(index) if self.memory is not None else None
        if pixels is None:
            pixels = decode_image(self.root / self.items[index]["file_name"], self.image_size)
            if self.memory is not None:
                self.memory[index] = pixels
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        return Example(image, self.captions(index), self.items[index]["file_name"])
