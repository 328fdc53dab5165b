"""Emoji of a font: what is read from it (a tiny one, and the system's where there is one), and drawn."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import features

from t2i.checkpoint import renames
from t2i.data.emoji import Emoji
from t2i.data.emoji_font import FontArt
from t2i.viz import fonts
from t2i.viz.fonts import find_font

CODES = range(0x1F600, 0x1F650)  # faces, all with names
CLIP = [0x23, *range(0x30, 0x3A), 0x200D, 0x20E3, 0x1F1EB, 0x1F1F7, 0x1F3FB, 0x1F9D1, 0x1F33E]
JOINED = {"joined": "u1f9d1 u200d u1f33e", "dark": "u1f9d1 u1f3fb", "flag": "u1f1eb u1f1f7", "key": "u35 u20e3"}


def tiny_font(path: Path, coloured: bool = True) -> Path:
    """A font with layers of colour: every glyph a square of a colour of its own, four ligatures among them."""
    from fontTools.feaLib.builder import addOpenTypeFeaturesFromString

    pen = TTGlyphPen(None)
    for i, point in enumerate([(100, 0), (100, 800), (900, 800), (900, 0)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    square, empty = pen.glyph(), TTGlyphPen(None).glyph()
    names = {code: f"u{code:x}" for code in [0x41, *CODES, *CLIP]}
    glyphs = [".notdef", *names.values(), *JOINED]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([*glyphs, "layer"])
    font.setupCharacterMap(names)
    font.setupGlyf({name: empty if name == "u200d" else square for name in [*glyphs, "layer"]})
    font.setupHorizontalMetrics({name: (1000, 0 if name == "u200d" else 100) for name in [*glyphs, "layer"]})
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": "Tiny", "styleName": "Regular"})
    font.setupOS2(sTypoAscender=900)
    font.setupPost()
    if coloured:
        named = [name for name in glyphs if name not in ("u41", "u1f601", "u200d")]
        font.setupCOLR({name: [("layer", i)] for i, name in enumerate(named)}, version=0)
        font.setupCPAL([[(i // 11 / 10, i % 11 / 10, 0.0, 1.0) for i in range(len(named))]])
    rules = "\n".join(f"sub {parts} by {name};" for name, parts in JOINED.items())
    addOpenTypeFeaturesFromString(font.font, f"feature ccmp {{ {rules} }} ccmp;")
    font.save(path)
    return path


def emoji(split: str, font: Path | str | None, size: int = 64) -> Emoji:
    return Emoji(split, ["font"], font=None if font is None else str(font), image_size=size)


def test_captions_and_splits_of_a_font_alone(tmp_path: Path) -> None:
    path = tiny_font(tmp_path / "tiny.ttf")
    sides = [emoji(split, path) for split in ("train", "val")]
    found = {data.key(i): data.captions(i) for data in sides for i in range(len(data))}
    assert len(found) == sum(map(len, sides)) == len(FontArt(str(path)).keys())
    assert found["font/1f600"][:3] == ("grinning face", "an emoji of a grinning face", "grinning face emoji")


def test_only_what_is_in_colour_is_listed(tmp_path: Path) -> None:
    keys = FontArt(str(tiny_font(tmp_path / "tiny.ttf"))).keys()
    assert {key for key in keys if "-" not in key} == {
        f"{code:x}" for code in [*CODES, 0x1F9D1, 0x1F33E] if code != 0x1F601}  # fmt: skip


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow has no libraqm: it joins no sequences")
def test_sequences_that_the_font_joins(tmp_path: Path) -> None:
    keys = FontArt(str(tiny_font(tmp_path / "tiny.ttf"))).keys()
    assert {key for key in keys if "-" in key} == {"1f9d1-200d-1f33e"}


def test_without_raqm_there_are_no_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    keys = FontArt(str(tiny_font(tmp_path / "tiny.ttf"))).keys()
    assert keys and not [key for key in keys if "-" in key]


def test_drawn_in_colour_in_the_middle_and_the_same_everywhere(tmp_path: Path) -> None:
    data = emoji("train", tiny_font(tmp_path / "tiny.ttf"), 32)
    image = data[0, 0].image
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert image[2, 16, 16] == 0 and image[:, 0].eq(255).all() and image[:, :, 0].eq(255).all()
    ink = (image[2] < 128).nonzero()
    assert (ink.min(0).values + ink.max(0).values - 31).abs().max() <= 1  # the middle, to a pixel
    assert pickle.loads(pickle.dumps(data))[0, 3].image.equal(image)  # as a worker gets it
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda i: data[i % 5, 0].image, range(60)))
    assert all(picture.equal(data[i % 5, 0].image) for i, picture in enumerate(several))


def test_settings_change_with_the_font(tmp_path: Path) -> None:
    path = tiny_font(tmp_path / "tiny.ttf")
    copy = shutil.copy(path, tmp_path / "copy.ttf")
    one = emoji("train", path).settings()
    assert one == emoji("train", copy).settings() and one["art"]["font"]
    Path(copy).write_bytes(path.read_bytes() + b"\0\0\0\0")
    assert one != emoji("train", copy).settings()


def test_a_missing_font_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.font=/nowhere: there is no such file; `apt install fonts-noto"):
        emoji("train", "/nowhere")
    for places in ((), (str(tmp_path), "/nowhere")):
        monkeypatch.setattr(fonts, "FONT_FOLDERS", places)
        with pytest.raises(ValueError, match=r"data\.font=null: no colour emoji font in .*apt install.*=FILE"):
            emoji("train", None)


def test_fonts_are_found_noto_first(tmp_path: Path) -> None:
    for name in ("a/Apple Color Emoji.ttc", "b/seguiemj.ttf", "c/NotoColorEmoji.ttf", "NotoEmoji-Regular.ttf", "x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for name in ("NotoColorEmoji.ttf", "Apple Color Emoji.ttc", "seguiemj.ttf"):
        found = find_font(None, ["/nowhere", str(tmp_path)])
        assert found.name == name
        found.unlink()


def test_files_without_colours_are_refused(tmp_path: Path) -> None:
    plain = tiny_font(tmp_path / "plain.ttf", coloured=False)
    with pytest.raises(ValueError, match=r"data\.font=.*plain\.ttf has no colours that Pillow draws at all; wanted"):
        emoji("train", plain)
    for data in (b"", b"<html></html>" * 9, plain.read_bytes()[:200]):
        (tmp_path / "no.ttf").write_bytes(data)
        with pytest.raises(ValueError, match=r"data\.font=.*no\.ttf cannot be read as a font"):
            emoji("train", tmp_path / "no.ttf")


def system_font() -> Path | None:
    try:
        return find_font(None)
    except ValueError:
        return None


@pytest.mark.skipif(system_font() is None, reason="no colour emoji font here (apt install fonts-noto-color-emoji)")
def test_the_font_of_this_machine() -> None:
    art = FontArt(None)
    keys = art.keys()
    assert len(keys) > 1000 and "1f600" in keys and not any("1f3fb" in key for key in keys)
    image = torch.stack([art.pixels(key, 64, "#ffffff") for key in sorted(keys)[::40]]).float()
    assert image.shape[1:] == (3, 64, 64) and image[:, :, [0, -1]].min() > 200  # a margin
    assert (image.amin((1, 2, 3)) < 250).all() and image.std(1).amax() > 50  # something on each, and colours


def test_configs_from_before_there_were_styles() -> None:
    node = {"_target_": "t2i.data.emoji.Emoji", "font": None, "flags": False}
    assert renames.current({"data": node})["data"] == {"_target_": node["_target_"], "font": None, "styles": ["font"]}
    assert "flags" in renames.current({"data": node | {"flags": True}})["data"]  # refused, as any unknown key
