"""Emoji in styles: pairs, splits by pair, gallery, what is kept, and faults; on art that is made here."""

from __future__ import annotations

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from t2i.config.compose import compose
from t2i.data import packed
from t2i.data.datasets import dataset
from t2i.data.emoji import Emoji
from t2i.data.emoji_names import concepts
from t2i.data.emoji_splits import HELD_OUT, group_concepts, held_out_pairs, near_duplicates

KEYS = [key for key in concepts()[0] if "-" not in key][300:330]
STYLES = ("noto", "fluent")


def icons(folder: Path, broken: str = "", alike: tuple[str, ...] = ()) -> str:
    """Icon sets of two styles: discs and squares, of a colour a concept, but for those that are `alike`."""
    for prefix, shape in (("noto", '<circle cx="4" cy="4" r="3"'), ("fluent-emoji-flat", '<path d="M1 1h6v6h-6"')):
        bodies = {key: f'{shape} fill="#{i % 6 * 40:02x}{i // 6 * 40:02x}80"/>' for i, key in enumerate(KEYS)}
        bodies |= {key: f'{shape} fill="#102030"/>' for key in alike} | ({broken: "<g>"} if broken else {})
        (folder / prefix).mkdir(parents=True)
        found = {"prefix": prefix, "width": 8, "height": 8, "icons": {k: {"body": v} for k, v in bodies.items()}}
        (folder / prefix / "icons.json").write_text(json.dumps(found))
        toned = {"1f44b-1f3fb": KEYS[0], "41": KEYS[0]}  # no concepts
        (folder / prefix / "chars.json").write_text(json.dumps({key: key for key in KEYS} | toned))
    return str(folder)


def pairs_of(data: Emoji) -> set[tuple[str, str]]:
    return {(key, style) for style, _, key in (data.key(i).partition("/") for i in range(len(data)))}


def test_the_rule_of_the_splits() -> None:
    keys, styles = [f"{code:x}" for code in range(1000, 3000)], ["a", "b", "c"]
    within = [((keys[i], "a"), (keys[i + 7], "a")) for i in range(0, 400, 20)]
    across = [((key, "a"), (key, "b")) for key in keys[500:560]] + [((keys[600], "c"), (keys[601], "b"))]
    found = held_out_pairs(keys, styles, within + across)
    out = dict(found)
    assert len(out) == len(found)  # one style of a concept: it is seen in all others
    assert abs(len(out) / len(keys) - HELD_OUT) < 0.04
    each = Counter(out.values())
    assert set(each) == set(styles) and max(each.values()) < len(keys) / 5  # a style is seen with other concepts
    for (left, _), (right, _) in within:
        assert out.get(left) == out.get(right)  # near duplicates lie in one split
    assert {out.get(key) for key in keys[500:560]} == {None, "c"}
    assert {out.get(keys[600]), out.get(keys[601])} <= {None, "a"}
    assert held_out_pairs(keys[::-1], styles[::-1], (within + across)[::-1]) == found  # no order matters
    alone = held_out_pairs(keys, ["a"], within)
    assert 0.03 < len(alone) / len(keys) < 0.08
    assert all(((left, "a") in alone) == ((right, "a") in alone) for (left, _), (right, _) in within)


def test_near_duplicates_in_exact_numbers() -> None:
    images = torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 5, 11, 250, 255)])
    assert near_duplicates(images) == [(0, 1), (3, 4)]  # 5 / 255 is less than 0.02, 6 / 255 more
    assert group_concepts(["b", "c", "a", "d"], [(("b", "x"), ("a", "y")), (("c", "x"), ("b", "x"))]) == {
        "a": "a", "b": "a", "c": "a", "d": "d"}  # fmt: skip


def test_pairs_captions_and_a_gallery(tmp_path: Path) -> None:
    folder = icons(tmp_path / "icons", alike=(KEYS[3], KEYS[8]))
    sides = {split: Emoji(split, STYLES, folder, image_size=16, cache=tmp_path) for split in ("train", "val")}
    train, val = map(pairs_of, sides.values())
    assert not train & val and train | val == {(key, style) for key in KEYS for style in STYLES}
    assert {key for key, _ in val} <= {key for key, _ in train} and {style for _, style in train} == set(STYLES)
    assert all(((KEYS[3], style) in val) == ((KEYS[8], style) in val) for style in STYLES)
    name = concepts()[0][KEYS[0]].name
    first = next(data.captions(i) for data in sides.values() for i in range(len(data))
                 if data.key(i) == f"fluent/{KEYS[0]}")  # fmt: skip
    assert first[0].startswith("a fluent drawing of ") and f"{name} in the style of fluent" in first and name in first
    gallery = Emoji("train", STYLES, folder, image_size=16, load_size=20, crop="random", cache=tmp_path).gallery()
    assert gallery.images.shape == (60, 3, 16, 16) and gallery.images.dtype == torch.uint8
    assert gallery.concepts[:2] == [name, name] and gallery.styles[:2] == list(STYLES)
    assert gallery.held_out.tolist() == [(key, style) in val for key in KEYS for style in STYLES]
    assert gallery.captions[1] == first[0]
    captions = {text for data in sides.values() for i in range(len(data)) for text in data.captions(i)}
    assert gallery.unseen_words and not any(
        re.search(rf"\b{word.word}\b", text) for word in gallery.unseen_words for text in captions)
    for word in gallery.unseen_words:
        assert word.concepts and set(word.concepts) <= set(gallery.concepts)
        assert word.captions["fluent"] == f"a fluent drawing of {word.plain_caption}"
        assert word.word in word.plain_caption
    for data in sides.values():
        packed.attach(data, tmp_path / "packed")
        for i in range(len(data)):
            style, _, key = data.key(i).partition("/")
            assert data[i, 0].image.equal(gallery.images[2 * KEYS.index(key) + STYLES.index(style)])
    settings = sides["val"].settings()
    assert settings["styles"] == list(STYLES)
    for change in ({"background": "red"}, {"languages": ["en", "de"]}):
        assert settings != Emoji("val", STYLES, folder, image_size=16, cache=tmp_path, **change).settings()


def test_near_duplicates_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose(["model=vqgan", "data=emoji", "data.styles=[noto,fluent]", "data.image_size=16",
                      f"data.icons={icons(tmp_path / 'icons')}", f"paths.cache={tmp_path / 'cache'}"])  # fmt: skip
    one = dataset(config, "train")
    monkeypatch.setattr("t2i.data.emoji_splits._compare", None)  # kept, with what it was made from
    again = dataset(config, "train")
    assert len(one) == len(again) and again[0, 0].image.equal(one[0, 0].image)
    facts = again.facts()
    assert facts["pairs"] == 60 == facts["seen"] + facts["held out"] and facts["left out"]["skin tones"] == 1
    assert facts["left out"]["without a name"] == 1 and facts["concepts joined by them"] == []


def test_what_does_not_render_is_a_fault(tmp_path: Path) -> None:
    folder = icons(tmp_path / "icons", broken=KEYS[5])
    with pytest.raises(ValueError, match=rf"1 fault in .*\n  the SVG of {KEYS[5]} in .* cannot be rendered"):
        Emoji("train", STYLES, folder)
    both = [Emoji(split, STYLES, folder, on_error="skip") for split in ("train", "val")]
    assert sum(map(len, both)) == 58 and len(both[0].faults) == 1


def test_what_is_missing_for_all_is_no_fault_of_a_picture_and_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"icons": icons(tmp_path / "icons"), "image_size": 16, "cache": tmp_path / "cache"}
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "resvg_py" else there(name, *of))
    with pytest.raises(ValueError, match=r"^data=emoji needs the package resvg-py, .*: pip install resvg-py$"):
        Emoji("train", STYLES, **options)
    monkeypatch.undo()
    assert len(Emoji("train", STYLES, **options)) > 40
    cut = next(Path(icons(tmp_path / "cut")).rglob("icons.json"))
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"^data\.icons: .*icons\.json cannot be read: [^\n]*$"):
        Emoji("train", STYLES, **options | {"icons": str(tmp_path / "cut")})


@pytest.mark.parametrize("options, message", [
    ({"styles": ["noto", "fluent", "noto"]}, r"data\.styles=\[noto, fluent, noto\] lists noto twice"),
    ({"styles": []}, r"data\.styles=\[\]: at least one"),
    ({"styles": ["notos"]}, r"data\.styles=notos: there is no such style \(did you mean noto\?\)"),
    ({"background": "nocolour"}, r"data\.background=nocolour: a colour is needed"),
])  # fmt: skip
def test_bad_input_is_one_line(options: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Emoji("train", **{"styles": STYLES, "icons": icons(tmp_path / "icons")} | options)
    assert "\n" not in str(caught.value)


def test_styles_that_share_nothing(tmp_path: Path) -> None:
    folder = Path(icons(tmp_path / "icons"))
    (folder / "noto/chars.json").write_text('{"41": "x"}')
    with pytest.raises(ValueError, match=r"data\.styles=\[noto, fluent\] share no concept: noto has 0, fluent has 30"):
        Emoji("train", STYLES, str(folder))
