"""Captions in ordinary English are read back by a parser that knows no sentence form of the generator's."""

from __future__ import annotations

import re
from random import Random

import pytest

from t2i.data import shapes
from t2i.data.english import (
    COLOUR_WORDS,
    NEW_COLOUR_WORDS,
    NEW_SHAPE_WORDS,
    PHRASINGS,
    SHAPE_WORDS,
    mistyped,
    phrased,
    plural,
)
from t2i.data.scenes import NUMBERS, Caption, Described, OnBackground, Related

OTHER = {"left": "right", "right": "left", "above": "below", "below": "above"}
ONE = ("a single", "an", "a", "one", "1")
COUNTS = {"a pair of": 2, "a couple of": 2, "a trio of": 3, "half a dozen": 6, **dict.fromkeys(ONE, 1),
          **{word: i for i, word in enumerate(NUMBERS) if i > 1}, **{str(i): i for i in range(2, 7)}}  # fmt: skip
SIZES = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large", "huge": "large"}
GROUNDS = {"white": "white", "black": "black", "gray": "gray", "grey": "gray", "beige": "beige", "navy": "navy",
           "brown": "brown"}  # fmt: skip
COLOURS = {word: name for words in (COLOUR_WORDS, NEW_COLOUR_WORDS) for name, listed in words.items()
           for word in (name, *listed)}  # fmt: skip
NOUNS = {plural(word, count): name for words in (SHAPE_WORDS, NEW_SHAPE_WORDS) for name, listed in words.items()
         for word in (f"{name}|crosses" if name == "cross" else name, *listed) for count in (1, 2)}  # fmt: skip


def any_of(words) -> str:
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


COLOUR, NOUN = any_of(COLOURS), any_of(NOUNS)
THING = re.compile(
    rf"(?:\b(?:exactly )?(?P<count>{any_of(COUNTS)}) )?"
    rf"(?P<before>(?:(?:{any_of(SIZES)}|{COLOUR}|bright|vivid|pure|plain|coloured)\b ?)*)\b(?P<noun>{NOUN})\b"
    rf"(?P<after>,? (?:in|that (?:is|are)|which (?:is|are)|painted|of|filled with|whose colour is)"
    rf" (?:(?:bright|vivid|pure|plain) )?{COLOUR}\b(?: colour\b| all over\b)?| with the hue {COLOUR}\b)?"
)
ABOVE = "(?:above|over|on top of|higher than|further up than)"
BELOW = "(?:below|under|underneath|beneath|lower than|further down than)"


def read(text: str) -> tuple[list[Described], tuple[str, int] | None, str | None]:
    """Things in the order of the text, (relation, which of them is its subject), and the background."""
    text = text.lower()
    ground = re.search(r"(?: on| against)(?: a)? (white|black|gr[ae]y|beige|navy|brown)"
                       r"(?: background| ground| backdrop)?", text)  # fmt: skip
    if ground:
        text = text[: ground.start()] + text[ground.end() :]
    things, rest, at = [], "", 0
    for match in THING.finditer(text):
        said = f"{match['before']} {match['after'] or ''}"
        colours = [COLOURS[word] for word in re.findall(rf"\b{COLOUR}\b", said)]
        sizes = [SIZES[word] for word in re.findall(rf"\b{any_of(SIZES)}\b", said)]
        assert len(colours) <= 1 and len(sizes) <= 1, (text, match)
        things.append(Described(NOUNS[match["noun"]], *(colours or [None]), *(sizes or [None]),
                                COUNTS[match["count"]] if match["count"] else 1))  # fmt: skip
        rest += text[at : match.start()] + "XY"[len(things) - 1]
        at = match.end()
    rest += text[at:]
    return things, relation(re.sub(r"[,.?]", "", rest)) if len(things) == 2 else None, (
        GROUNDS[ground[1]] if ground else None)


def relation(rest: str) -> tuple[str, int] | None:
    for side, other in (("left", "right"), ("right", "left")):
        if re.search(rf"X (?:on|at) the {side}(?: and)? Y (?:on|at) the {other}|on the {side} X on the {other} Y"
                     rf"|{side}-hand part shows X the {other}-hand part Y|from the {side} first X then Y",
                     rest):  # fmt: skip
            return side, 0
        if re.search(rf"X (?:standing |that (?:is|are) |situated )?(?:to the |on the )?{side}(?:-hand)?(?: side)? of Y"
                     rf"|X (?:next to|beside) Y on the {side}", rest):  # fmt: skip
            return side, 0
        if re.search(rf"X with Y on the {side}|X and next to (?:it|them) on the {side} Y|to the {side} of X there"
                     rf" (?:is|are) Y|look {side} of X you find Y|X with Y as {side} neighbour"
                     rf"|X and to the {side} of (?:it|them) Y", rest):  # fmt: skip
            return side, 1
    for up, way, down, part, edge in (("above", ABOVE, BELOW, "upper", "top"),
                                      ("below", BELOW, ABOVE, "lower", "bottom")):
        if re.search(rf"X (?:that (?:is|are) |floating |situated )?{way} Y|X at the {edge} and Y at"
                     rf"|at the {edge} X at the|X and {down} (?:it|them) Y|X with Y {down} (?:it|them)"
                     rf"|from the {edge} first X then Y|the {part} part shows X the \w+ part Y", rest):  # fmt: skip
            return up, 0
        if re.search(rf"{way} X there (?:is|are) Y|X with Y as {part} neighbour"
                     rf"|look {'up' if up == 'above' else 'down'} from X you find Y", rest):  # fmt: skip
            return up, 1
    if re.search("X up top and Y down below", rest):
        return "above", 0
    return ("below", 0) if re.search("X down below and Y up top", rest) else None


def claims_of(caption: Caption):
    things = [clause for clause in caption.clauses if isinstance(clause, Described)]
    related = next((clause for clause in caption.clauses if isinstance(clause, Related)), None)
    ground = next((clause.background for clause in caption.clauses if isinstance(clause, OnBackground)), None)
    return things, related, ground


def plain(thing: Described) -> tuple:
    return thing.shape, thing.colour, thing.size, thing.count


@pytest.mark.parametrize("phrasing", [name for name in PHRASINGS if name not in ("grammar", "english")])
@pytest.mark.parametrize("task", shapes.KINDS)
def test_what_a_caption_claims_is_what_it_says(phrasing, task):
    rng = Random(f"{phrasing} {task}")
    scenes = [scene for _, scene in shapes.prompted("val", task, 8)]
    for turn in range(120):
        caption = phrased(scenes[turn % len(scenes)], rng, phrasing)
        things, related, ground = claims_of(caption)
        found, said, on = read(caption.text)
        assert sorted(map(plain, found), key=repr) == sorted(map(plain, things), key=repr), caption
        assert on == ground, caption
        if related is None:
            assert said is None, caption
        else:
            assert said is not None, caption
            name, subject = said
            first, second = found[subject], found[1 - subject]
            stated = plain(things[related.subject]), plain(things[related.object])
            assert (name, plain(first), plain(second)) in ((related.relation, *stated),
                                                           (OTHER[related.relation], *stated[::-1])), caption


@pytest.mark.parametrize("task", shapes.TASKS)
def test_evaluation_says_the_same_in_other_words(task):
    names = "plain", "templates", "synonyms", "new_words"
    wordings = [shapes.prompted("val", task, 20, phrasing=name) for name in names]
    for plain_one, *others in zip(*wordings, strict=True):
        assert all((caption.clauses, scene) == (plain_one[0].clauses, plain_one[1]) for caption, scene in others)
    assert len({caption.text for found in wordings for caption, _ in found}) > 40


def test_the_parser_tells_a_false_caption():
    things, said, ground = read("could you paint two crimson discs and, next to them on the left, a tiny box on navy?")
    assert [plain(thing) for thing in things] == [("circle", "red", None, 2), ("square", None, "small", 1)]
    assert said == ("left", 1) and ground == "navy"


@pytest.mark.parametrize("task", shapes.KINDS)
def test_english_has_ten_times_the_grammars_phrasings(task):
    scene = shapes.prompted("val", task, 1)[0][1]
    rng = Random(0)
    grammar = {phrased(scene, rng, "grammar").text for _ in range(3000)}
    english = {phrased(scene, rng, "english").text for _ in range(3000)}
    assert len(english) >= min(10 * len(grammar), 1400), (len(grammar), len(english))


def test_what_is_held_out_stands_in_no_training_caption():
    new = [plural(word, count) for words in (NEW_COLOUR_WORDS, NEW_SHAPE_WORDS) for listed in words.values()
           for word in listed for count in (1, 2)]
    signs = ["whose colour", "filled with", "all over", "the hue", "not only", "accompanied", "besides", "in company",
             "if you look", "neighbour", "situated", "starting from", "part shows", "create an artwork", "wondering",
             "kindly", "lovely", "possible", "produce", "let there be", "generate", "my daughter", "might"]
    pattern = re.compile(rf"\b{any_of(new + signs)}\b")
    data = shapes.Shapes("train", size=1500, phrasing="english")
    for index in range(len(data)):
        for text in data.captions(index):
            assert not pattern.search(text.lower()), text
    for phrasing, signs_of in (("templates", signs), ("new_words", new)):
        marked = re.compile(rf"\b{any_of(signs_of)}\b")
        for task in ("attribution", "position"):
            for caption, _ in shapes.prompted("val", task, 20, phrasing=phrasing):
                assert marked.search(caption.text), caption


def test_words_name_one_thing_each():
    both = [{word for table in tables for listed in table.values() for word in listed}
            for tables in ((COLOUR_WORDS, NEW_COLOUR_WORDS), (SHAPE_WORDS, NEW_SHAPE_WORDS))]
    assert not both[0] & both[1]
    for seen, new in ((COLOUR_WORDS, NEW_COLOUR_WORDS), (SHAPE_WORDS, NEW_SHAPE_WORDS)):
        every = [word for table in (seen, new) for listed in table.values() for word in listed]
        assert len(every) == len(set(every))
        for name, listed in new.items():  # a held-out word shares none with what training calls the same
            known = {part for word in (name, *seen[name]) for part in word.replace("|", " ").split()}
            assert not known & {part for word in listed for part in word.replace("|", " ").split()}


def test_mistyped_changes_one_word_by_one_slip():
    rng = Random(0)
    for _ in range(200):
        text = "please draw three crimson triangles"
        changed = [(a, b) for a, b in zip(text.split(), mistyped(text, rng).split(), strict=True) if a != b]
        assert len(changed) <= 1  # two equal letters exchanged are no change
        for a, b in changed:
            assert abs(len(a) - len(b)) <= 1 and set(b) <= set(a) and a[0] == b[0]
    assert mistyped("a red box", rng) == "a red box"
    for seed in range(300):  # nor does a slip make another word of it, or a number
        assert "blush" not in mistyped("one bluish ring", Random(seed))
        assert "three" not in mistyped("there are 2 rings", Random(seed))
        assert mistyped("three dots", Random(seed)) == "three dots"


def test_grammar_is_what_it_was():
    a, b = (shapes.Shapes("train", size=50, **given) for given in ({}, {"phrasing": "grammar"}))
    assert [a.captions(i) for i in range(50)] == [b.captions(i) for i in range(50)]


def test_phrasing_is_checked():
    with pytest.raises(ValueError, match="data.phrasing=french is none of grammar, english, plain, templates, "):
        shapes.Shapes("train", phrasing="french")
