"""Letters on pictures: fonts of the machine (tiny ones made here), boxes that are told, and captions without end."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from tests.data.test_emoji_font import tiny_font

from t2i.viz import fonts, grids
from t2i.viz.fonts import Letters, clusters


def black_font(path: Path, codes: list[int]) -> Path:
    """A font whose every letter is a black square on the line."""
    pen = TTGlyphPen(None)
    for i, point in enumerate([(100, 0), (100, 700), (900, 700), (900, 0)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{code:x}" for code in codes)]
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({code: f"u{code:x}" for code in codes})
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 100)))
    font.setupHorizontalHeader(ascent=900, descent=-100)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=900)
    font.setupPost()
    font.save(path)
    return path


def use(monkeypatch: pytest.MonkeyPatch, paths: list[Path], emoji: Path | None = None) -> Letters:
    made = Letters(paths, emoji)
    monkeypatch.setattr(fonts, "letters", lambda: made)
    return made


def caption(text: str) -> np.ndarray:
    """What a grid shows below a white picture."""
    return np.asarray(grids.grid(torch.ones(1, 3, 128, 128), [text]))[138:155, 8:]


def test_letters_that_the_plain_font_lacks_come_from_the_machines(tmp_path, monkeypatch, capsys) -> None:
    chinese = black_font(tmp_path / "chinese.ttf", [0x4E2D, 0x20])
    indian = black_font(tmp_path / "indian.ttf", [0x928, 0x93F])
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    made = use(monkeypatch, [tmp_path / "broken.ttf", chinese, indian])
    assert made.face("a") is made.plain and made.face("é") is made.plain and made.face("م") is made.plain
    assert made.face("中").path == chinese and made.face("नि").path == indian and made.face("中") is made.face("中")
    square = caption("中")
    assert (square[4:13, 1:11] == 0).all() and (square[:, 14:] == 255).all()
    assert fonts.length("a中") == fonts.length("a") + 13
    assert not capsys.readouterr().err
    for text in ("한국", "한", "ก", "\u0378\ue000"):  # two scripts, and what is no letter at all
        assert (caption(text) < 255).any()  # a box
    assert [line.partition(" has ")[2][:18] for line in capsys.readouterr().err.splitlines()] == [
        "한 (U+D55C, HANGUL)", "ก (U+0E01, THAI): "]


def test_emoji_are_in_colour_and_as_high_as_the_line(tmp_path, monkeypatch) -> None:
    use(monkeypatch, [], tiny_font(tmp_path / "tiny.ttf"))
    green = (np.abs(caption("\U0001f600") - np.array([0, 25.5, 0])) <= 1).all(-1)  # the tiny font's second colour
    assert green.sum() > 50 and not green[:, 14:].any()
    assert clusters("e\u0301x\U0001f44d\U0001f3fd\U0001f468\u200d\U0001f4bb") == [
        "e\u0301", "x", "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f4bb"]


def test_pieces_from_right_to_left_stand_in_that_order(tmp_path, monkeypatch) -> None:
    use(monkeypatch, [black_font(tmp_path / "chinese.ttf", [0x4E2D])])
    assert (caption("א中")[4:13, 1:11] == 0).all()  # the Chinese letter is second, so left
    assert (caption("a中")[4:13, 9:19] == 0).all()


@pytest.mark.parametrize("lister", [pytest.param("fc-list", marks=pytest.mark.skipif(
    shutil.which("fc-list") is None, reason="no fontconfig here")), "folders"])  # fmt: skip
def test_the_machines_fonts_are_found_plain_ones_first(tmp_path, monkeypatch, lister) -> None:
    names = ["A-Bold.ttf", "Plain.ttf", "NotoSans-Regular.ttf"]
    for name in names:
        black_font(tmp_path / name, [0x4E2D])
    (tmp_path / "x.txt").write_text("")
    if lister == "folders":
        monkeypatch.setattr(fonts, "FONT_FOLDERS", ("/nowhere", str(tmp_path)))
        monkeypatch.setenv("PATH", "")
    else:
        (tmp_path / "fonts.conf").write_text(f"<fontconfig><dir>{tmp_path}</dir>"
                                             f"<cachedir>{tmp_path / 'cache'}</cachedir></fontconfig>")
        monkeypatch.setenv("FONTCONFIG_FILE", str(tmp_path / "fonts.conf"))
    assert [path.name for path in fonts.installed()] == [names[2], names[1], names[0]]


@pytest.mark.parametrize("text", ["x", "x ", "e\u0301\u0302\u0303\u0304\u0305", "\u0301", "\u200d", "ש", "م", "क", "\t",
                                  "\U0001f44d\U0001f3fd", "\x00", "\udcff", "﷽", "\u202e\u200b", "中"])
def test_a_caption_without_end_is_drawn_at_once(text: str) -> None:
    grids.wrap(text * 10, 128)
    started = time.process_time()
    lines = grids.wrap(text * 20_000, 128)
    assert time.process_time() - started < 1
    assert len(lines) <= 4 and all(fonts.length(line) <= 128 for line in lines)
    assert not text.strip() or lines[-1].endswith("…") or text == "\u0301"


def test_what_cannot_be_seen_is_escaped() -> None:
    assert grids.wrap("\x1b[31m\u202ered\x07\u200b", 400) == ["\\x1b[31m\\u202ered\\x07\\u200b"]
    assert grids.wrap("می\u200cخواهم", 400) == ["می\u200cخواهم"]
    assert grids.wrap("a" + "\u0301" * 9, 400) == ["a" + "\u0301" * grids.MARKS]
