"""Which emoji are concepts, their names, second names and captions."""

from __future__ import annotations

import pytest

from t2i.data.emoji_names import asked_style, captions_for, concepts, key_of_hex, with_article


@pytest.mark.parametrize("key, name", [
    ("1f968", "pretzel"), ("2764", "red heart"), ("1f452", "woman's hat"), ("1f9d1-200d-1f33e", "farmer"),
    ("1f9d1-200d-1f9b0", "person with red hair"), ("2648", "aries zodiac sign"), ("1f469", "woman"),
])  # fmt: skip
def test_names_in_words(key: str, name: str) -> None:
    assert concepts()[0][key].name == name


@pytest.mark.parametrize("key, why", [
    ("1f44b-1f3fb", "skin tones"), ("1f3fb", "skin tones"), ("1f9b0", "components"), ("1f1eb-1f1f7", "flags"),
    ("1f3f4-200d-2620", "flags"), ("35-20e3", "keycaps"), ("1f170", "letters"), ("1f7e5", "geometric shapes"),
    ("1f550", "clocks"), ("1f3c3-200d-27a1", "facing right"), ("1f469-200d-1f33e", "gender variants"),
    ("1f3c3-200d-2640", "gender variants"),
])  # fmt: skip
def test_what_metadata_leaves_out(key: str, why: str) -> None:
    kept, left_out = concepts()
    assert left_out[key] == why and key not in kept


def test_names_and_second_names_name_one_emoji() -> None:
    names = [name for concept in concepts()[0].values() for name in (concept.name, *concept.aliases)]
    assert len(names) == len(set(names)) > 1400
    assert all(name == name.lower().strip() for name in names)
    assert concepts()[0]["1f4a9"].aliases == ("poop", "hankey")


def test_captions_with_and_without_a_style() -> None:
    pretzel, imp = concepts()[0]["1f968"], concepts()[0]["1f608"]
    assert captions_for(pretzel, "openmoji line") == [
        *["an openmoji line drawing of a pretzel"] * 4, "pretzel in the style of openmoji line",
        "openmoji line pretzel", "pretzel", "a pretzel"]  # fmt: skip
    assert captions_for(concepts()[0]["1f363"], "noto")[-2:] == ["noto sushi", "sushi"]  # each once
    assert captions_for(pretzel) == ["pretzel", "an emoji of a pretzel", "pretzel emoji"]
    assert captions_for(imp, "noto")[-4:-2] == ["smiling imp in the style of noto", "noto smiling imp"]


@pytest.mark.parametrize("phrase", [
    "a grinning face", "an umbrella", "a unicorn", "an hourglass done", "an x-ray", "a one-piece swimsuit", "a ewe",
    "two hearts", "grapes", "a cactus", "a glass of milk", "sushi", "woman's clothes", "a face with tears of joy",
    "a rhinoceros", "a euro banknote", "glasses", "a face savoring food", "people wrestling", "mount fuji",
])  # fmt: skip
def test_articles(phrase: str) -> None:
    name = phrase.partition(" ")[2] if phrase.split()[0] in ("a", "an") else phrase
    assert with_article(name) == phrase


def test_keys_of_file_names() -> None:
    assert key_of_hex("0023-FE0F-20E3") == "23-20e3" and key_of_hex("1f9d1_200d_1f33e") == "1f9d1-200d-1f33e"
    assert key_of_hex("icon") is None


@pytest.mark.parametrize("caption, style", [
    ("a pretzel in the style of apple", "apple"), ("An openmoji line drawing of a pretzel", "openmoji line"),
    ("a twemoji drawing of a pretzel.", "twemoji"), ("a pretzel", None), ("drawing of a pretzel", None),
])  # fmt: skip
def test_the_style_that_a_caption_asks_for(caption: str, style: str | None) -> None:
    assert asked_style(caption) == style
