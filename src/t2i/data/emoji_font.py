"""Emoji drawn from a colour font of this machine.

Which there are is read from the font: single characters of its cmap, and the sequences that its ligatures join. Pillow
draws bitmap fonts (CBDT, sbix) and layers of one colour each (COLR version 0), and joins sequences where it has
libraqm.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont, features
from torch import Tensor

from t2i.data.decode import fit
from t2i.data.emoji_names import concepts, key_of
from t2i.viz.fonts import find_font, fitting_size, open_font

MARGIN = 0.04  # of the canvas, on each side


class Undrawable(ValueError):
    """One picture of a style cannot be drawn; what is said of the others is another matter."""



class FontArt:
    """The emoji of a colour font, as `t2i.data.emoji_art.Art` has them.

    Args:
        font: its file; None looks in the usual places of Linux, macOS and Windows.
    """

    def __init__(self, font: str | None) -> None:
        self.path = find_font(font)
        self.content = read_font(self.path)
        self.size = fitting_size(self.path, self.content.sizes)
        with self.path.open("rb") as file:
            code = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        self.version = f"{code} at {self.size}, margin {MARGIN}, {'with' if features.check('raqm') else 'no'} raqm"

    @cached_property
    def texts(self) -> dict[str, str]:
        """What is to be drawn, by key: characters and sequences in colour, of those that are named."""
        known, found = concepts()[0], {}
        for code, glyph in self.content.cmap.items():
            if glyph in self.content.coloured and key_of([code]) in known:
                found[key_of([code])] = chr(code)
        for codes, glyph in self.content.ligatures if features.check("raqm") else []:
            key = key_of(codes)
            if glyph in self.content.coloured and key in known and key not in found and self.joins(codes):
                found[key] = "".join(map(chr, codes))
        return found

    def keys(self) -> set[str]:
        return set(self.texts)

    def joins(self, codes: Sequence[int]) -> bool:
        """Whether Pillow, too, draws a sequence as one."""
        face = open_font(self.path, self.size)
        text = "".join(map(chr, codes))
        return face.getlength(text) < 1.5 * face.getlength(text[0])

    def pixels(self, key: str, side: int, background: str) -> UInt8[Tensor, "3 s s"]:
        image = draw(self.texts[key], open_font(self.path, self.size), background)
        if (image == image[:, :1, :1]).all():
            raise Undrawable(f"the emoji {key} of {self.path} cannot be drawn: Pillow {Image.__version__} leaves it"
                             " empty")
        return fit(image, side, square=True)


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


def draw(text: str, font: ImageFont.FreeTypeFont, background: str) -> UInt8[Tensor, "3 s s"]:
    """One emoji on a background (`#ffffff`), its box in the middle of a square that is as large for small ones."""
    empty = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    left, top, right, bottom = empty.textbbox((0, 0), text, font=font, embedded_color=True)
    longest = max(right - left, bottom - top, font.getlength(text))
    side = math.ceil(longest / (1 - 2 * MARGIN))
    image = Image.new("RGB", (side, side), background)
    at = round((side - (right - left)) / 2 - left), round((side - (bottom - top)) / 2 - top)
    ImageDraw.Draw(image).text(at, text, font=font, fill=(0, 0, 0), embedded_color=True)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
