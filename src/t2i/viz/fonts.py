"""Fonts of this machine, and letters for captions on pictures: matplotlib's DejaVu Sans (Latin, Greek, Cyrillic,
Hebrew, Arabic), and for what it lacks the machine's fonts, letter by letter. One that no font has becomes a box, and is
named once.

Emoji are taken from a colour font where there is one. Pillow joins and orders letters (Arabic, Indian scripts) where it
has libraqm. Where a line mixes fonts, pieces from right to left are put in that order by the line's first letter alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from t2i.config.messages import shown

FONT_FOLDERS = ("~/.fonts", "~/.local/share/fonts", "/usr/local/share/fonts", "/usr/share/fonts", "/Library/Fonts",
                "/System/Library/Fonts", "C:/Windows/Fonts")
SIZES = (136, 109, 128, 160, 96, 64, 32)  # of the bitmaps of known fonts, tried after those that the font states
TEXT_SIZE = 13
STYLES = ("bold", "italic", "oblique", "light", "thin", "black", "medium", "condensed", "mono", "serif")  # taken last
JOINERS = "\u200c\u200d"  # of Persian, of Indian scripts and of emoji
UNSEEN = JOINERS + "\ufe0e\ufe0f"  # the latter choose between a letter and its emoji
PACKAGES = "on Debian and Ubuntu, `apt install fonts-noto-core fonts-noto-cjk fonts-noto-color-emoji` brings most"

_opened = threading.local()  # FreeType's faces must not be shared between threads


def _in_folders(folders: Sequence[str]) -> Iterator[Path]:
    return (path for folder in folders for path in Path(folder).expanduser().rglob("*"))


def _sorted_fonts(paths: Iterable[Path]) -> list[Path]:
    """Font files, those for plain text and Noto's before others."""

    def order(path: Path) -> tuple[bool, bool, str]:
        name = path.name.lower()
        return any(style in name for style in STYLES), "noto" not in name, str(path)

    return sorted({path for path in paths if path.suffix.lower() in (".ttf", ".ttc", ".otf")}, key=order)


def find_font(font: str | None, folders: Sequence[str] | None = None) -> Path:
    """The font file; where none is named the first colour emoji font of `folders`, Noto's before others."""
    how = "`apt install fonts-noto-color-emoji` (Debian, Ubuntu) brings one, and data.font=FILE names any other"
    if font is not None:
        path = Path(font).expanduser()
        if not path.is_file():
            raise ValueError(f"data.font={font}: there is no such file; {how}")
        return path
    folders = FONT_FOLDERS if folders is None else folders
    for path in _sorted_fonts(_in_folders(folders)):
        name = path.name.lower()
        if name == "seguiemj.ttf" or ("emoji" in name and "color" in name):
            return path
    raise ValueError(f"data.font=null: no colour emoji font in {', '.join(folders) or 'no places'}; {how}")


def installed() -> list[Path]:
    """This machine's font files: what fontconfig lists, or what the usual folders hold."""
    if shutil.which("fc-list") is None:
        return _sorted_fonts(_in_folders(FONT_FOLDERS))
    listed = subprocess.run(["fc-list", "--format", "%{file}\n"], capture_output=True, check=False).stdout
    return _sorted_fonts(Path(line) for line in listed.decode("utf-8", "surrogateescape").split("\n") if line)


def open_font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    """The font for this thread."""
    fonts = _opened.__dict__.setdefault("fonts", {})
    if (path, size) not in fonts:
        fonts[path, size] = ImageFont.truetype(str(path), size)
    return fonts[path, size]


def fitting_size(path: Path, sizes: Sequence[int]) -> int:
    """The largest size of a font's bitmaps that can be set; ValueError where none can."""
    for size in (*sizes, *SIZES):
        try:
            open_font(path, size)
        except OSError:  # "invalid pixel size": not one of the bitmaps
            continue
        return size
    raise ValueError(f"data.font={path} cannot be opened by Pillow {Image.__version__} in any of the sizes"
                     f" {', '.join(map(str, (*sizes, *SIZES)))}")


class Face:
    """A font file, opened for drawing; one of bitmaps in the size that it has. OSError, ValueError where it cannot."""

    def __init__(self, path: Path) -> None:
        self.path, self.scale = path, 1.0
        try:
            self.font = ImageFont.truetype(str(path), TEXT_SIZE)
        except OSError:  # "invalid pixel size"
            size = fitting_size(path, ())
            self.font, self.scale = ImageFont.truetype(str(path), size), TEXT_SIZE / size

    @cached_property
    def codes(self) -> frozenset[int]:
        return frozenset(codes_of(self.path))

    def length(self, text: str) -> float:
        return self.font.getlength(text) * self.scale

    def write(self, page: Image.Image, left: float, baseline: int, text: str) -> None:
        if self.scale == 1:
            ImageDraw.Draw(page).text((left, baseline), text, fill="black", font=self.font, anchor="ls",
                                      embedded_color=True)
            return
        ascent, descent = self.font.getmetrics()
        piece = Image.new("RGBA", (max(1, round(self.font.getlength(text))), ascent + descent), (255, 255, 255, 0))
        ImageDraw.Draw(piece).text((0, ascent), text, fill="black", font=self.font, anchor="ls", embedded_color=True)
        small = piece.resize((max(1, round(piece.width * self.scale)), max(1, round(piece.height * self.scale))),
                             Image.Resampling.BOX)
        page.paste(small, (round(left), baseline - round(ascent * self.scale)), small)


@lru_cache(maxsize=1)
def plain() -> Face:
    import matplotlib

    return Face(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


def codes_of(path: Path) -> Sequence[int]:
    """The code points that a font file draws; none where it cannot be read, or only in colours that Pillow does not
    know."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(path, lazy=True, fontNumber=0) as font:
            if "COLR" in font and font["COLR"].version > 0 and "CBLC" not in font:
                return ()
            return tuple(font.getBestCmap() or ())
    except (TTLibError, OSError, AssertionError, KeyError, ValueError):
        return ()


class Letters:
    """Which font draws what. Fonts are read one after the other, until one has the letter that is wanted.

    Args:
        paths: font files in the order in which they are tried.
        emoji: the colour font for emoji; None for none.
    """

    def __init__(self, paths: Sequence[Path], emoji: Path | None) -> None:
        self.plain = plain()
        self.emoji = None if emoji is None else Face(emoji)
        self._opened: list[Face] = []
        self._unread = iter(paths)
        self._where: dict[int, Path] = {}
        self._lacking: set[str] = set()
        self._reported: set[str] = set()
        self._faces: dict[str, Face] = {}

    def _search(self, letter: str) -> Face | None:
        """The first unopened font that has a letter."""
        code = ord(letter)
        while code not in self._where:
            path = next(self._unread, None)
            if path is None:
                return None
            for other in codes_of(path):
                self._where.setdefault(other, path)
        try:
            face = Face(self._where[code])
        except (OSError, ValueError):
            return None
        self._opened.append(face)
        return face

    def face(self, cluster: str) -> Face:
        """The font for a letter with its marks: one that has all of it, or else its first letter; or the plain one."""
        if cluster not in self._faces:
            self._faces[cluster] = self._find(cluster)
        return self._faces[cluster]

    def _find(self, cluster: str) -> Face:
        seen = [letter for letter in cluster if letter not in UNSEEN]
        if not seen or cluster.isascii():
            return self.plain
        colour = [self.emoji] if self.emoji is not None else []
        is_emoji = any(0x1F000 <= ord(letter) < 0x20000 or letter in "\ufe0f\u20e3" for letter in cluster)
        known = [*colour, self.plain, *self._opened] if is_emoji else [self.plain, *self._opened, *colour]
        for wanted in (seen, seen[:1]):
            for face in known:
                if all(ord(letter) in face.codes for letter in wanted):
                    return face
            if seen[0] not in self._lacking and unicodedata.category(seen[0]) not in ("Cn", "Co"):
                if (found := self._search(seen[0])) is not None:
                    return found
                self._report(seen[0])
        return self.plain

    def _report(self, letter: str) -> None:
        """Once a script, by the first word of the letter's name."""
        self._lacking.add(letter)
        script = unicodedata.name(letter, "unnamed").split()[0]
        if script not in self._reported:
            self._reported.add(script)
            print(f"No font of this machine has {shown(letter)} (U+{ord(letter):04X}, {script}): such letters are boxes"
                  f" on grids; {PACKAGES}", file=sys.stderr)


@lru_cache(maxsize=1)
def letters() -> Letters:
    """Those of this machine."""
    try:
        return Letters(installed(), find_font(None))
    except (ValueError, OSError):  # no colour emoji font, or one that Pillow does not open
        return Letters(installed(), None)


def clusters(text: str) -> list[str]:
    """Letters with what belongs to them: marks, joiners and what they join, skin tones."""
    found: list[str] = []
    for letter in text:
        joins = unicodedata.category(letter)[0] == "M" or letter in JOINERS or 0x1F3FB <= ord(letter) <= 0x1F3FF
        if found and (joins or found[-1][-1] == "\u200d"):
            found[-1] += letter
        else:
            found.append(letter)
    return found


def _pieces(line: str) -> Iterator[tuple[Face, str]]:
    """A line in pieces of one font each; spaces go with what is before them, but for emoji, whose are wide."""
    if line.isascii():
        yield plain(), line  # no other font is looked for
        return
    faces: list[tuple[Face, str]] = []
    for cluster in clusters(line):
        before = faces[-1][0] if faces else plain()
        faces.append((before if cluster == " " and before.scale == 1 else letters().face(cluster), cluster))
    for face, group in groupby(faces, key=lambda pair: pair[0]):
        yield face, "".join(cluster for _, cluster in group)


def length(line: str) -> float:
    """Pixels."""
    return sum(face.length(piece) for face, piece in _pieces(line))


def write(page: Image.Image, left: float, top: int, line: str) -> None:
    """Draws a line in black, its upper left corner at (left, top)."""
    baseline = top + plain().font.getmetrics()[0]
    pieces = list(_pieces(line))
    strong = next((kind for kind in map(unicodedata.bidirectional, line) if kind in ("L", "R", "AL")), "L")
    for face, piece in pieces if strong == "L" else reversed(pieces):
        face.write(page, left, baseline, piece)
        left += face.length(piece)
