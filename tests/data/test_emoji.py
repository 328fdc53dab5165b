"""Emoji: names in words, what is read from a font (a tiny one made here, and the system's where there is one)."""

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

from t2i.data.emoji import Emoji
from t2i.data.emoji_names import captions_for, name_of, name_of_sequence, with_article
from t2i.viz import fonts
from t2i.viz.fonts import find_font

CODES = range(0x1F600, 0x1F650)  # faces, all with names
CLIP = [0x23, *range(0x30, 0x3A), 0x200D, 0x20E3, 0x1F1EB, 0x1F1F7, 0x1F3FB, 0x1F468, 0x1F4BB]
JOINED = {"joined": "u1f468 u200d u1f4bb", "dark": "u1f468 u1f3fb", "flag": "u1f1eb u1f1f7", "key": "u35 u20e3"}


def tiny_font(path: Path, coloured: bool = True) -> Path:
    """A font with layers of colour: every glyph a red square on its line, four ligatures among them."""
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
        font.setupCOLR({name: [("layer", 0)] for name in glyphs if name not in ("u41", "u1f601", "u200d")}, version=0)
        font.setupCPAL([[(1.0, 0.0, 0.0, 1.0)]])
    rules = "\n".join(f"sub {parts} by {name};" for name, parts in JOINED.items())
    addOpenTypeFeaturesFromString(font.font, f"feature ccmp {{ {rules} }} ccmp;")
    font.save(path)
    return path


def both(font: Path | None, **options: object) -> dict[str, tuple[str, ...]]:
    """Captions by key, of both sides."""
    found: dict[str, tuple[str, ...]] = {}
    for split in ("train", "val"):
        data = Emoji(split, None if font is None else str(font), **options)
        mine = {data.key(i): data.captions(i) for i in range(len(data))}
        assert not mine.keys() & found.keys()
        found |= mine
    return found


def test_only_what_is_in_colour_is_listed(tmp_path: Path) -> None:
    found = both(tiny_font(tmp_path / "tiny.ttf"))
    singles = {key for key in found if "-" not in key}
    assert singles == {f"{code:x}" for code in [*CODES, 0x1F468, 0x1F4BB] if code != 0x1F601}
    assert found["1f600"] == ("grinning face", "an emoji of a grinning face", "grinning face emoji")


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow has no libraqm: it joins no sequences")
def test_sequences_that_the_font_joins(tmp_path: Path) -> None:
    path = tiny_font(tmp_path / "tiny.ttf")
    assert {key: text[0] for key, text in both(path).items() if "-" in key} == {
        "1f468-200d-1f4bb": "man with a laptop", "35-20e3": "keycap five"}  # fmt: skip
    flags = both(path, flags=True)
    assert flags["1f1eb-1f1f7"][:2] == ("flag of fr", "an emoji of the flag of fr")


def test_without_raqm_there_are_no_sequences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    assert not [key for key in both(tiny_font(tmp_path / "tiny.ttf"), flags=True) if "-" in key]


def test_drawn_in_colour_in_the_middle_and_the_same_everywhere(tmp_path: Path) -> None:
    data = Emoji("train", str(tiny_font(tmp_path / "tiny.ttf")), 32)
    image = data[0, 0].image
    assert image.shape == (3, 32, 32) and image.dtype == torch.uint8
    assert image[:, 16, 16].tolist() == [255, 0, 0] and image[:, 0].eq(255).all() and image[:, :, 0].eq(255).all()
    ink = (image[1] < 128).nonzero()
    assert (ink.min(0).values + ink.max(0).values - 31).abs().max() <= 1  # the middle, to a pixel
    assert pickle.loads(pickle.dumps(data))[0, 3].image.equal(image)  # as a worker gets it
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda i: data[i % 5, 0].image, range(60)))
    assert all(picture.equal(data[i % 5, 0].image) for i, picture in enumerate(several))


def test_settings_change_with_the_font(tmp_path: Path) -> None:
    path = tiny_font(tmp_path / "tiny.ttf")
    copy = shutil.copy(path, tmp_path / "copy.ttf")
    one = Emoji("train", str(path)).settings()
    assert one == Emoji("train", copy).settings() and len(one["font"]) == 16
    Path(copy).write_bytes(path.read_bytes() + b"\0\0\0\0")
    assert one != Emoji("train", copy).settings()


def test_a_missing_font_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.font=/nowhere: there is no such file; `apt install fonts-noto"):
        Emoji("train", "/nowhere")
    for places in ((), (str(tmp_path), "/nowhere")):
        monkeypatch.setattr(fonts, "FONT_FOLDERS", places)
        with pytest.raises(ValueError, match=r"data\.font=null: no colour emoji font in .*apt install.*=FILE"):
            Emoji("train")


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
        Emoji("train", str(plain))
    for data in (b"", b"<html></html>" * 9, plain.read_bytes()[:200]):
        (tmp_path / "no.ttf").write_bytes(data)
        with pytest.raises(ValueError, match=r"data\.font=.*no\.ttf cannot be read as a font"):
            Emoji("train", str(tmp_path / "no.ttf"))


@pytest.mark.parametrize("code, name", [
    (0x1F600, "grinning face"), (0x2764, "heart"), (0x25FC, "black medium square"), (0x2B50, "medium star"),
    (0x1F5A4, "black heart"), (0x1F446, "up pointing backhand index"), (0x1F170, "capital letter a in a square"),
    (0x1F550, "clock face showing one o'clock"), (0x1F55C, "clock face showing one-thirty"),
    (0x2755, "exclamation mark"),
    (0x2648, "aries zodiac sign"), (0x1F452, "woman's hat"), (0x1F234, "chinese character in a square"),
    (0x35, ""), (0x1F3FB, ""), (0x1F9B0, ""), (0x1F1E6, ""), (0x200D, ""), (0x61, ""), (0x0378, ""),
])  # fmt: skip
def test_names_in_words(code: int, name: str) -> None:
    assert name_of(code) == name


@pytest.mark.parametrize("codes, name", [
    ("23 20e3", "keycap number sign"), ("1f1eb 1f1f7", "flag of fr"), ("1f469 200d 1f680", "woman astronaut"),
    ("1f9d1 200d 1f680", "astronaut"), ("1f9d1 200d 1f9b0", "person with red hair"), ("1f468 200d 1f9b2", "bald man"),
    ("1f3c3 200d 2640", "woman runner"), ("1f64d 200d 2642", "man frowning"), ("1f43b 200d 2744", "polar bear"),
    ("1f93c 200d 2640", "two women wrestling"), ("2744 200d 1f43b", ""), ("1f469 1f3fb", ""), ("1f469 200d", ""),
    ("1f468 200d 1f466 200d 1f466", ""),
])  # fmt: skip
def test_names_of_sequences(codes: str, name: str) -> None:
    assert name_of_sequence(tuple(int(code, 16) for code in codes.split())) == name


@pytest.mark.parametrize("phrase", [
    "a grinning face", "an umbrella", "a unicorn face", "an hourglass", "an x-ray", "a one-piece swimsuit",
    "two hearts", "grapes", "a cactus", "a glass of milk", "sushi", "woman's boots", "a face with tears of joy",
    "the flag of fr", "a rhinoceros", "a european castle", "an upwards arrow", "glasses",
])  # fmt: skip
def test_articles(phrase: str) -> None:
    name = phrase.partition(" ")[2] if phrase.split()[0] in ("a", "an", "the") else phrase
    assert with_article(name) == phrase and captions_for(name)[1] == f"an emoji of {phrase}"


def system_font() -> Path | None:
    try:
        return find_font(None)
    except ValueError:
        return None


@pytest.mark.skipif(system_font() is None, reason="no colour emoji font here (apt install fonts-noto-color-emoji)")
def test_the_font_of_this_machine() -> None:
    found = both(None)
    assert len(found) > 1000 and "1f600" in found and not any("1f3fb" in key or "1f1eb" in key for key in found)
    assert all(text == text.lower() and text.strip() for captions in found.values() for text in captions)
    data = Emoji("val")
    image = torch.stack([data[i, 0].image for i in range(len(data))]).float()
    assert image.shape[1:] == (3, 64, 64) and image[:, :, [0, -1]].min() > 200  # a margin
    assert (image.amin((1, 2, 3)) < 250).all() and image.std(1).amax() > 50  # something on each, and colours
