"""Font files of this machine, and opening them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageFont

PLACES = ("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts", "/Library/Fonts",
          "/System/Library/Fonts", "C:/Windows/Fonts")


SIZES = (136, 109, 128, 160, 96, 64, 32)  # of the bitmaps of known fonts, tried after those that the font states


_opened = threading.local()  # FreeType's faces must not be shared between threads


def find_font(font: str | None, places: Sequence[str] | None = None) -> Path:
    """The font file; where none is named the first colour emoji font of `places`, Noto's before others."""
    how = "`apt install fonts-noto-color-emoji` (Debian, Ubuntu) brings one, and data.font=FILE names any other"
    if font is not None:
        path = Path(font).expanduser()
        if not path.is_file():
            raise ValueError(f"data.font={font}: there is no such file; {how}")
        return path
    places = PLACES if places is None else places
    found = sorted(
        ("noto" not in path.name.lower(), str(path))
        for place in places if Path(place).expanduser().is_dir()
        for path in Path(place).expanduser().rglob("*") if path.suffix.lower() in (".ttf", ".ttc", ".otf")
        if path.name.lower() == "seguiemj.ttf" or all(word in path.name.lower() for word in ("emoji", "color"))
    )  # fmt: skip
    if not found:
        raise ValueError(f"data.font=null: no colour emoji font in {', '.join(places) or 'no places'}; {how}")
    return Path(found[0][1])


def opened(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """The font for this thread."""
    fonts = _opened.__dict__.setdefault("fonts", {})
    if (path, size) not in fonts:
        fonts[path, size] = ImageFont.truetype(str(path), size)
    return fonts[path, size]


def fitting_size(path: Path, sizes: Sequence[int]) -> int:
    """The largest size of a font's bitmaps that can be set; ValueError where none can."""
    for size in (*sizes, *SIZES):
        try:
            opened(path, size)
        except OSError:  # "invalid pixel size": not one of the bitmaps
            continue
        return size
    raise ValueError(f"data.font={path} cannot be opened by Pillow {Image.__version__} in any of the sizes"
                     f" {', '.join(map(str, (*sizes, *SIZES)))}")
