from __future__ import annotations

import math

import pytest

from t2i.generation.clip_guided.prompts import Prompt, parse_prompts, prompt_targets

INF = math.inf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a red circle", [Prompt("a red circle")]),
        ("a cat:2 | a dog :0.5", [Prompt("a cat", 2), Prompt("a dog", 0.5)]),
        ("cat: 2|fog:-1:-0.95", [Prompt("cat", 2), Prompt("fog", -1, -0.95)]),
        ("cat:.5:1e-1", [Prompt("cat", 0.5, 0.1)]),
        ("Star Wars: a new hope", [Prompt("Star Wars: a new hope")]),
        ("Star Wars: a new hope:3", [Prompt("Star Wars: a new hope", 3)]),
        ("to be: infinity", [Prompt("to be: infinity")]),
        ("a 16:9 picture", [Prompt("a 16:9 picture")]),
        ("a clock at 10\\:30", [Prompt("a clock at 10:30")]),
        ("a clock at 10\\:30 :2", [Prompt("a clock at 10:30", 2)]),
        ("route 66:0.5|route 66:-1", [Prompt("route 66", 0.5), Prompt("route 66", -1)]),
        ("either\\|or: a\\:b", [Prompt("either|or: a:b")]),
        ("either\\|or", [Prompt("either|or")]),
        ("a cat\\:two", [Prompt("a cat:two")]),
        ("https://a.b/c", [Prompt("https://a.b/c")]),
        ("قطة حمراء:2", [Prompt("قطة حمراء", 2)]),
        ("image:a/b.png", [Prompt("a/b.png", is_image=True)]),
        ("a cat | image:a b1:0.3:0.2", [Prompt("a cat"), Prompt("a b1", 0.3, 0.2, is_image=True)]),
        ("image:C:\\pics\\1:2", [Prompt("C:\\pics\\1", 2, is_image=True)]),
        ("image: a song", [Prompt("image: a song")]),
    ],
)
def test_texts(text: str, expected: list[Prompt]) -> None:
    assert parse_prompts(text) == expected


def test_lists_and_mappings() -> None:
    given = ["a cat:2 | a dog", {"text": "at 10:30", "weight": -1, "stop": 0.5}, {"image": "a:1.png"}]
    assert parse_prompts(given) == [Prompt("a cat", 2), Prompt("a dog"), Prompt("at 10:30", -1, 0.5),
                              Prompt("a:1.png", is_image=True)]


def test_wish() -> None:
    found = prompt_targets("a cat:2", styles="oil painting | fog:-1", images="a.png:0.3|image:b.png", extras="4k",
                 excluded="text:2")
    assert found.targets == (Prompt("a cat", 2), Prompt("oil painting", 0.5), Prompt("fog", -0.5),
                             Prompt("a.png", 0.3, is_image=True), Prompt("b.png", is_image=True))
    assert found.extras == (Prompt("4k"),) and found.excluded == (Prompt("text", 2),)
    assert prompt_targets(styles=["cubism"]).targets == (Prompt("cubism", 0.5),)
    assert prompt_targets("a").extras == () == prompt_targets("a").excluded


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("", r"prompt: text='' is empty: write what to draw"),
        ("  ", r"prompt: text='' is empty"),
        ("a cat | ", r"text='' is empty"),
        (":2", r"text='' is empty"),
        ("image:", r"image='' is empty: the path of a picture is needed"),
        ("image::2", r"image='' is empty"),
        ("cat:two|dog:1", r"'cat:two': the weight 'two' is no number; if the colon is of the text, write a space"),
        ("cat:1,5", r"the weight '1,5' is no number"),
        ("cat:", r"the weight '' is no number"),
        ("cat:two:1", r"the weight 'two' is no number"),
        ("cat:1:2:3", r"is 2 a weight or of the text"),
        ("image:a.png:two", r"the weight 'two' is no number"),
        ("cat:nan", r"weight=nan of text 'cat': allowed are finite numbers"),
        ("cat:inf", r"weight=inf of text 'cat': allowed are finite numbers"),
        ("cat:1:nan", r"stop=nan of text 'cat'"),
        ("a clock at 10\\:30:2", r"is 2 a weight or of the text"),
        ("a clock at 10:30", r"is 30 a weight or of the text\? For a weight, .* \(a clock at 10 :30\); for the text, "
                             r"write \\: \(a clock at 10\\:30\)"),
        ([{"text": "cat", "weight": "two"}], r"prompt: weight='two' of text 'cat' is no number"),
        ([{"text": "cat", "weight": True}], r"weight=True of text 'cat' is no number"),
        ([{"text": "cat", "weight": None}], r"weight=None of text 'cat' is no number"),
        ([{"text": "cat", "weigth": 1}], r"weigth=1: known are text, image, weight, stop"),
        ([{"weight": 1}], r"either text or image is needed"),
        ([{"text": "a", "image": "b"}], r"either text or image is needed"),
        ([{"text": 3}], r"text=3 is no text: write what to draw"),
        ([{"image": None}], r"image=None is no text: the path"),
        ([7], r"prompt: 7 is neither a text nor a mapping of text, image, weight, stop"),
    ],
)
def test_faults_are_named(given: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        parse_prompts(given)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "prompt: nothing asked for; give a text, a style or an image"),
        ({"prompt": []}, "nothing asked for"),
        ({"prompt": ""}, "text='' is empty"),
        ({"prompt": "cat:0|dog:0"}, r"all weights are 0 \('cat', 'dog'\)"),
        ({"prompt": "cat", "excluded": "dog:-1"}, "excluded: weight=-1.0 of 'dog': .* allowed are numbers from 0"),
        ({"prompt": "cat", "styles": "a | "}, "styles: text='' is empty"),
        ({"prompt": "cat", "extras": "a:1:0.5"}, "extras: stop=0.5 of 'a': only targets have a stop"),
    ],
)
def test_wishes_that_cannot_be(given: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        prompt_targets(**given)
