"""Emoji as a data set: drawn from a colour font of this machine, captioned by their Unicode names.

Which there are is read from the font: single characters of its cmap, and the sequences that its ligatures join
(keycaps, people with something, flags); without skin tones. Pillow draws bitmap fonts (CBDT, sbix) and layers of one
colour each (COLR version 0), and joins sequences where it has libraqm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

from t2i.checkpoint.registry import register
from t2i.data.emoji_names import INDICATORS, SKIN, captions_for, name_of, name_of_sequence
from t2i.data.image_dataset import ImageDataset, assign_splits
from t2i.data.rows import Row
from t2i.viz.fonts import find_font, fitting_size, open_font

MARGIN = 0.04  # of the canvas, on each side


@register("data", places=("font",))
class Emoji(ImageDataset):
    """Captioned emoji on white: `dataset[index, epoch] -> Example`, key `1f600`, or `1f469-200d-1f4bb`.

    Every twentieth is for validation, by a hash of its key. How many there are depends on the font, on Python's table
    of names, and on whether Pillow has libraqm, without which sequences are left out.

    Args:
        font: a colour emoji font; None looks in the usual places of Linux, macOS and Windows.
        flags: also flags of countries, whose names are not at hand: they are named by their two letters.
        Everything else: see `ImageDataset`.
    """

    def __init__(self, split: Literal["train", "val"], font: str | None = None, image_size: int = 64,
                 load_size: int | None = None, crop: Literal["center", "random"] = "center", flip: bool = False,
                 flags: bool = False, views: int = 1, seed: int = 0, on_error: Literal["raise", "skip"] = "raise",
                 pack: bool = True) -> None:
        self.font, self.flags = find_font(font), flags
        found = read_font(self.font)
        self.size = fitting_size(self.font, found.sizes)
        with self.font.open("rb") as file:
            self.hash = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        rows = list(rows_of(found, flags, self.joins))
        splits = assign_splits([row["key"] for row in rows])
        rows = [row for row, of in zip(rows, splits, strict=True) if of == split]
        super().__init__(split, self.font.parent, rows, [], image_size, load_size, crop, flip, views, seed, on_error,
                         pack)

    def joins(self, codes: Sequence[int]) -> bool:
        """Whether Pillow, too, draws a sequence as one."""
        face = open_font(self.font, self.size)
        text = "".join(map(chr, codes))
        return face.getlength(text) < 1.5 * face.getlength(text[0])

    def name(self, row: Row) -> str:
        return f"the emoji {row['key']} of {self.font}"

    def pixels(self, row: Row) -> UInt8[Tensor, "3 h w"]:
        text = "".join(chr(int(code, 16)) for code in row["key"].split("-"))
        image = draw(text, open_font(self.font, self.size))
        if (image == 255).all():
            raise ValueError(f"{self.name(row)} cannot be drawn: Pillow {Image.__version__} leaves it empty")
        return image

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"font": self.hash, "size": self.size, "margin": MARGIN, "flags": self.flags}


@dataclass
class FontContent:
    """What a font holds: glyph by code point, those in colour, (code points, glyph) of its ligatures, bitmap sizes."""

    cmap: dict[int, str]
    coloured: set[str]
    ligatures: list[tuple[tuple[int, ...], str]]
    sizes: list[int]


def read_font(path: Path) -> FontContent:
    """What is in a font file; ValueError where it is none, or none in colour."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            cmap = font.getBestCmap() or {}
            sizes: list[int] = []
            coloured: set[str] = set()
            if "CBLC" in font:
                for strike in font["CBLC"].strikes:
                    sizes.append(strike.bitmapSizeTable.ppemY)
                    coloured.update(name for part in strike.indexSubTables for name in part.names)
            elif "sbix" in font:
                for size, strike in font["sbix"].strikes.items():
                    sizes.append(size)
                    coloured.update(name for name, glyph in strike.glyphs.items() if glyph.graphicType)
            elif "COLR" in font and font["COLR"].version == 0:
                coloured.update(font["COLR"].ColorLayers)
            ligatures = list(read_ligatures(font["GSUB"].table, cmap)) if "GSUB" in font else []
            tables = [tag for tag in ("COLR", "SVG ") if tag in font]
    except (TTLibError, OSError, AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"data.font={path} cannot be read as a font: {error}") from error
    if not coloured:
        has = f" of the kind {' and '.join(tag.strip() for tag in tables)}" if tables else ""
        raise ValueError(f"data.font={path} has no colours that Pillow draws{has or ' at all'}; wanted is a font with"
                         " bitmaps (CBDT, sbix) or COLR version 0, such as NotoColorEmoji.ttf")
    return FontContent(cmap, coloured, ligatures, sorted(set(sizes), reverse=True))


def read_ligatures(table: Any, cmap: dict[int, str]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Every sequence of code points that a font's GSUB table joins, with its glyph."""
    codes: dict[str, int] = {}
    for code, name in sorted(cmap.items()):
        codes.setdefault(name, code)
    for lookup in table.LookupList.Lookup if table.LookupList is not None else []:
        for part in lookup.SubTable:
            part = getattr(part, "ExtSubTable", part)
            for first, ligatures in getattr(part, "ligatures", {}).items():
                for ligature in ligatures:
                    names = [first, *ligature.Component]
                    if all(name in codes for name in names):
                        yield tuple(codes[name] for name in names), ligature.LigGlyph


def rows_of(found: FontContent, flags: bool, joins: Callable[[Sequence[int]], bool]) -> Iterator[Row]:
    """A row for each emoji of a font, single ones first; a glyph that is drawn for two of them is taken once."""
    taken: set[str] = set()

    def row(codes: tuple[int, ...], name: str, glyph: str) -> Iterator[Row]:
        if name and glyph in found.coloured and glyph not in taken:
            taken.add(glyph)
            yield {"key": "-".join(f"{code:x}" for code in codes), "captions": captions_for(name)}

    for code, glyph in sorted(found.cmap.items()):
        yield from row((code,), name_of(code), glyph)
    if not features.check("raqm"):
        return
    for codes, glyph in sorted(found.ligatures):
        if any(code in SKIN for code in codes) or (codes[0] in INDICATORS and not flags):
            continue
        if (name := name_of_sequence(codes)) and joins(codes):
            yield from row(codes, name, glyph)


def draw(text: str, font: ImageFont.FreeTypeFont) -> UInt8[Tensor, "3 s s"]:
    """One emoji on white, its box in the middle of a square that is as large for small ones."""
    empty = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, top, right, bottom = empty.textbbox((0, 0), text, font=font, embedded_color=True)
    longest = max(right - left, bottom - top, font.getlength(text))
    side = math.ceil(longest / (1 - 2 * MARGIN))
    image = Image.new("RGB", (side, side), (255, 255, 255))
    at = round((side - (right - left)) / 2 - left), round((side - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(at, text, font=font, fill=(0, 0, 0), embedded_color=True)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
