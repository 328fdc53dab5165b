"""Which emoji are concepts, their names, second names and captions."""

from __future__ import annotations

import pytest

from t2i.data.emoji_names import (
    MOST_CONCEPTS,
    asked_style,
    captions_for,
    concepts,
    in_languages,
    key_of_hex,
    phrases,
    unseen_words,
    with_article,
)


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
    assert concepts()[0]["1f9d1-200d-1f33e"].aliases == () and concepts()[0]["2600"].aliases == ("sunny",)


def test_unseen_words_stand_in_no_caption_and_name_few_concepts() -> None:
    known, words = concepts()[0], unseen_words()
    captions = {text for concept in known.values() for style in (None, "openmoji line")
                for text in captions_for(concept, style)}
    seen = {phrase for caption in captions for phrase in phrases(caption)}
    assert len(words) > 200 and not seen & words.keys()
    assert all(1 <= len(keys) <= MOST_CONCEPTS and set(keys) <= known.keys() for keys in words.values())
    assert words["poop"] == ("1f4a9",) and set(words["email"]) == {"1f4e7", "2709"}
    assert not {"shit", "tux", "fu", "black scissors", "panda"} & words.keys()


def test_phrases_are_runs_of_whole_words() -> None:
    assert phrases("A Rolled-up hat.") == {"a", "rolled", "up", "hat", "a rolled", "rolled up", "up hat", "a rolled up",
                                           "rolled up hat", "a rolled up hat"}  # fmt: skip


def test_names_in_other_languages() -> None:
    pretzel = in_languages(concepts()[0], ["en", "de", "zh"])["1f968"]
    assert pretzel.foreign == ("brezel", "椒盐卷饼")
    assert captions_for(pretzel, "noto")[-4:] == ["brezel", "noto brezel", "椒盐卷饼", "noto 椒盐卷饼"]
    found = captions_for(pretzel, "noto")
    assert found.count("a noto drawing of a pretzel") == len(found) / 2
    assert captions_for(pretzel) == ["pretzel", "an emoji of a pretzel", "pretzel emoji", *pretzel.foreign]
    for languages, message in ((["en", "xx"], r"^data.languages=\[en, xx\]: no names in xx; there are ar, de, en, "),
                               (["de"], r"^data.languages=\[de\]: en comes first"), ([], "en comes first")):
        with pytest.raises(ValueError, match=message):
            in_languages(concepts()[0], languages)


def test_captions_with_and_without_a_style() -> None:
    pretzel, sun = concepts()[0]["1f968"], concepts()[0]["2600"]
    assert captions_for(pretzel, "openmoji line") == [
        *["an openmoji line drawing of a pretzel"] * 4, "pretzel in the style of openmoji line",
        "openmoji line pretzel", "pretzel", "a pretzel"]  # fmt: skip
    assert captions_for(concepts()[0]["1f363"], "noto")[-2:] == ["noto sushi", "sushi"]  # each once
    assert captions_for(pretzel) == ["pretzel", "an emoji of a pretzel", "pretzel emoji"]
    assert captions_for(sun, "noto")[-4:-2] == ["sunny in the style of noto", "noto sunny"]


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
