"""What emoji show, in words: Unicode's names of characters made natural, and the sequences that a font may join.

Names are those of Python's own table (`unicodedata.name`): newer characters have one with a newer Python only.
"""

from __future__ import annotations

import re
import unicodedata

JOINER, KEYCAP, FEMALE, MALE = 0x200D, 0x20E3, 0x2640, 0x2642
INDICATORS = range(0x1F1E6, 0x1F200)  # two of them make a flag
SKIN = range(0x1F3FB, 0x1F400)
OLD = 0x1F000  # below it stand symbols of older sets, where black and white mean filled and outlined

# Applied in this order.
PLAIN = [
    (r"^(?:negative )?squared (.+)$", r"\1 in a square"),
    (r"^circled (.+)$", r"\1 in a circle"),
    (r"^cjk unified ideograph-\w+", "chinese character"),
    (r"^ideograph (\w+)", r"chinese character for \1"),
    (r"\blatin (capital|small)\b", r"\1"),
    (r"^clock face (\w+) oclock$", r"clock face showing \1 o'clock"),
    (r"^clock face (\w+-thirty)$", r"clock face showing \1"),
    (r"\b(wo|)mans\b", r"\1man's"),
    (r"\b(wo|)mens\b", r"\1men's"),
    (r"\bcars revolving\b", "car's revolving"),
    (r"^lower left | ornament$|\bheavy ", ""),
]
# Old symbols whose black or white is to be seen, and newer ones whose white is not.
COLOURED = re.compile(r"circle$|square$|chess|spade|club|with white cross")
OUTLINED = re.compile(r"backhand|white flower|white sun")

PEOPLE = {0x1F468: "man", 0x1F469: "woman", 0x1F9D1: "person"}
# A person joined with one of these; {} is the person.
PERSONS = {
    0x2695: "{} health worker", 0x2696: "{} judge", 0x2708: "{} pilot", 0x1F33E: "{} farmer", 0x1F373: "{} cook",
    0x1F37C: "{} feeding a baby", 0x1F384: "{} in a christmas hat", 0x1F393: "{} in a graduation cap",
    0x1F3A4: "{} singer", 0x1F3A8: "{} artist", 0x1F3EB: "{} teacher", 0x1F3ED: "{} factory worker",
    0x1F4BB: "{} with a laptop", 0x1F4BC: "{} office worker", 0x1F527: "{} mechanic", 0x1F52C: "{} scientist",
    0x1F680: "{} astronaut", 0x1F692: "{} firefighter", 0x1F9AF: "{} with a white cane", 0x1F9B0: "{} with red hair",
    0x1F9B1: "{} with curly hair", 0x1F9B2: "bald {}", 0x1F9B3: "{} with white hair",
    0x1F9BC: "{} in a motorized wheelchair", 0x1F9BD: "{} in a manual wheelchair",
}  # fmt: skip
# Joined with the sign of a sex, where putting it before the name, or for its `person`, would read badly.
DOING = {
    0x1F46F: "{} with bunny ears", 0x1F470: "{} with a bride's veil", 0x1F473: "{} with a turban",
    0x1F481: "{} at an information desk", 0x1F482: "{} guard", 0x1F486: "{} having a face massage",
    0x1F487: "{} having a haircut", 0x1F575: "{} detective", 0x1F645: "{} with no good gesture",
    0x1F646: "{} with ok gesture", 0x1F6A3: "{} rowing a boat", 0x1F926: "{} facepalming", 0x1F935: "{} in tuxedo",
    0x1F937: "{} shrugging", 0x1F939: "{} juggling", 0x1F93C: "two {}s wrestling", 0x1F93D: "{} playing water polo",
    0x1F93E: "{} playing handball",
}  # fmt: skip
JOINED = {
    (0x1F3F3, 0x1F308): "rainbow flag", (0x1F3F4, 0x2620): "pirate flag", (0x1F408, 0x2B1B): "black cat",
    (0x1F415, 0x1F9BA): "service dog", (0x1F426, 0x2B1B): "black bird", (0x1F426, 0x1F525): "phoenix",
    (0x1F43B, 0x2744): "polar bear", (0x1F441, 0x1F5E8): "eye in a speech bubble",
    (0x1F62E, 0x1F4A8): "face exhaling", (0x1F635, 0x1F4AB): "face with spiral eyes",
    (0x1F636, 0x1F32B): "face in clouds", (0x1F642, 0x2194): "head shaking from side to side",
    (0x1F642, 0x2195): "head shaking up and down", (0x26D3, 0x1F4A5): "broken chain",
    (0x2764, 0x1F525): "heart on fire", (0x2764, 0x1FA79): "bandaged heart", (0x1F34B, 0x1F7E9): "lime",
    (0x1F344, 0x1F7EB): "brown mushroom", (0x1F9D1, 0x1F91D, 0x1F9D1): "two people holding hands",
}  # fmt: skip

# Names whose head takes no article: what cannot be counted, and what there is one of.
UNCOUNTED = {
    "bacon", "billiards", "bowling", "bread", "breast-feeding", "broccoli", "butter", "camping", "candy",
    "christmas", "cooking", "coral", "curry", "custard", "customs", "dango", "fire", "fog", "foggy", "food",
    "fondue", "fuji", "garlic", "handball", "ice", "juggling", "laughing", "liquid", "luggage", "metro", "milk",
    "oden", "polish", "polo", "popcorn", "racing", "rain", "rice", "salad", "shrugging", "soap", "spaghetti",
    "sushi", "wood",
}  # fmt: skip
SINGULAR = re.compile(r"(?:ss|us|is|ceros|wards)$")
HEAD = re.compile(r" (?:with|without|of|in|on|for|behind|over|under|at|and|having|holding|doing|playing|throwing"
                  r"|facing|showing|rowing|feeding|capped|up|down) ")


def name_of(code: int) -> str:
    """A single character's name in natural words; an empty string where it is no picture by itself."""
    name = unicodedata.name(chr(code), "").lower()
    # Letters, digits, marks, modifiers and what is not assigned are no pictures, whatever the font draws for them.
    if not name or code < 0x80 or unicodedata.category(chr(code)) not in ("So", "Sm", "Po", "Pd"):
        return ""
    if name.startswith(("emoji component", "regional indicator")):
        return ""
    for pattern, words in PLAIN:
        name = re.sub(pattern, words, name)
    if (code < OLD and not COLOURED.search(name)) or OUTLINED.search(name):
        name = re.sub(r"\b(?:black|white) ", "", name)
    return f"{name} zodiac sign" if 0x2648 <= code <= 0x2653 or code == 0x26CE else name


def name_of_sequence(codes: tuple[int, ...]) -> str:
    """What a sequence of code points shows that a font draws as one; an empty string where that is not known here."""
    if codes[-1] == KEYCAP and len(codes) == 2:
        return "keycap " + unicodedata.name(chr(codes[0]), "").lower().removeprefix("digit ")
    if len(codes) == 2 and all(code in INDICATORS for code in codes):
        return "flag of " + "".join(chr(ord("a") + code - INDICATORS.start) for code in codes)
    if codes[1::2] != (JOINER,) * (len(codes) // 2) or len(codes) % 2 == 0:
        return ""
    parts = codes[::2]
    if parts in JOINED:
        return JOINED[parts]
    if len(parts) != 2:
        return ""
    first, second = parts
    if first in PEOPLE and second in PERSONS:
        name = PERSONS[second].format(PEOPLE[first])
        words = name.split()
        return " ".join(words[1:]) if words[0] == "person" and words[1] not in ("in", "with", "feeding") else name
    if second in (FEMALE, MALE) and (alone := name_of(first)):
        who = "woman" if second == FEMALE else "man"
        name = DOING[first].format(who) if first in DOING else re.sub(r"\bperson\b", who, alone)
        return name.replace("mans ", "men ") if who in name else f"{who} {name}"  # two women wrestling
    return ""


def with_article(name: str) -> str:
    """`a grinning face`, `an umbrella`, `two hearts`, `the flag of fr`."""
    head = HEAD.split(name)[0].split()
    plural = head[-1].endswith("s") and not SINGULAR.search(head[-1])
    if name.startswith("flag of "):
        return f"the {name}"
    if head[-1] in UNCOUNTED or plural or head[0] in ("two", "mount", "no", "keycap"):
        return name
    vowel = re.match(r"(?!uni[cfv]|eu|one\b|use)[aeiou]|hour|x-ray", name)
    return f"{'an' if vowel else 'a'} {name}"


def captions_for(name: str) -> list[str]:
    return [name, f"an emoji of {with_article(name)}", f"{name} emoji"]
