"""Captions of scenes in ordinary English: wishes, questions and statements, synonyms, relative clauses, typing errors.

The clauses are those of `scenes.py`, so that every caption is true of its scene by construction; the words for them are
many. Some sentence forms (`NEW_…`: requests, noun phrases, pairs, relations) and some words are held out: no training
caption has them, and `phrased` draws with them alone. Held-out words share no word with what training names the same.

Nouns are listed as `singular` or `singular|plural`, where the plural is not made by an s.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Literal, get_args

from t2i.data.scenes import (
    INVERSE,
    NUMBERS,
    Caption,
    Clause,
    Described,
    OnBackground,
    Related,
    Scene,
    claims,
    describe,
    pick,
)

Phrasing = Literal["grammar", "english", "plain", "templates", "synonyms", "new_words"]


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(","))


COLOUR_WORDS = {
    "red": _words("crimson, ruby, cherry, vermilion, cardinal, carmine, garnet, tomato, strawberry, cranberry, "
                  "claret, burgundy, oxblood, wine, lava, lobster, pomegranate, chilli, paprika, lipstick, blood, "
                  "beetroot, merlot, radish, ketchup, ladybird, rowanberry, sanguine"),
    "green": _words("jade, fern, moss, pine, clover, malachite, viridian, pea, lawn, spinach, cucumber, olive, sage, "
                    "mint, basil, avocado, kiwi, cactus, ivy, seaweed, parsley, broccoli, pickle, asparagus, frog, "
                    "crocodile, peridot, jungle, grass, leaf, matcha"),
    "blue": _words("ultramarine, cerulean, lapis, cornflower, blueberry, denim, azul, delft, lobelia, bluebell, "
                   "indigo, midnight, royal, prussian, ink, marine, sea, ocean, jeans, larkspur, hyacinth, iris, "
                   "admiral, bluish, kingfisher, sloe"),
    "yellow": _words("golden, gold, mustard, banana, butter, daffodil, dandelion, saffron, corn, citrine, sunflower, "
                     "honey, straw, wheat, blond, maize, pineapple, custard, cheese, sulphur, primrose, flax, sunny, "
                     "brass, buttercup, chick, yolk"),
    "orange": _words("pumpkin, apricot, amber, mango, clementine, mandarin, papaya, persimmon, satsuma, marmalade, "
                     "copper, peach, ginger, turmeric, terracotta, fox, tiger, squash, sweet potato, nectarine, "
                     "kumquat, marigold, rust, cheddar, goldfish"),
    "purple": _words("lavender, plum, amethyst, eggplant, aubergine, mauve, lilac, mulberry, heliotrope, wisteria, "
                     "orchid, thistle, fig, boysenberry, blackcurrant, prune, tyrian, byzantium, crocus, pansy, "
                     "lupin, jacaranda, purplish"),
    "cyan": _words("aqua, teal, azure, lagoon, celeste, sky blue, glacier, robin's egg, tealish, swimming pool, "
                   "peacock, caribbean, arctic, seafoam, frost, baby blue, tropical sea, waterfall, curacao, aquatic, "
                   "tiffany, clear sky"),
    "pink": _words("magenta, bubblegum, flamingo, blush, carnation, peony, raspberry, cerise, candyfloss, salmon, "
                   "cotton candy, blossom, sakura, lotus, watermelon, shrimp, taffy, piglet, azalea, hibiscus, "
                   "camellia, pinkish, rhubarb"),
}  # fmt: skip
NEW_COLOUR_WORDS = {
    "red": _words("scarlet, poppy"), "green": _words("emerald, shamrock"), "blue": _words("sapphire, cobalt"),
    "yellow": _words("lemon, canary"), "orange": _words("tangerine, carrot"), "purple": _words("violet, grape"),
    "cyan": _words("turquoise, opal"), "pink": _words("fuchsia, rose"),
}  # fmt: skip
SHAPE_WORDS = {
    "circle": _words("disc, round spot, ball, orb, sphere, coin, bubble, roundel, button, globe, blob, full moon, "
                     "planet, marble, bead, plate, puck, medallion, balloon, sun, token, bullet point, penny, round "
                     "patch, filled circle, round shape"),
    "square": _words("box|boxes, block, cube, tile, quadrate, carton, brick, dice|dice, regular quadrilateral, "
                     "checker, window, pixel, cardboard box|cardboard boxes, stamp, napkin, cushion, panel, parcel, "
                     "package, slab, four-cornered shape, tetragon, equal-sided rectangle"),
    "triangle": _words("wedge, trigon, tent, cone, arrowhead, delta, three-cornered shape, three-sided figure, peak, "
                       "mountain, roof, pizza slice, slice of cake|slices of cake, warning sign, nacho, sail, gable, "
                       "trilateral, hill, wigwam, fin, spike, party hat"),
    "diamond": _words("rhombus|rhombuses, lozenge, rhomb, kite, gem, tilted square, rotated square, square on its "
                      "tip|squares on their tips, jewel, crystal, harlequin, turned square, brilliant, rhombic tile, "
                      "baseball field, square on a corner|squares on a corner, card suit"),
    "cross": _words("plus sign, plus|pluses, cruciform shape, swiss cross|swiss crosses, addition sign, greek "
                    "cross|greek crosses, first-aid sign, cross shape, hospital sign, crosshair, positive sign, "
                    "medical symbol, plus mark, add symbol, four-armed shape, church sign"),
    "ring": _words("hoop, annulus|annuli, doughnut, loop, band, hollow circle, circle with a hole|circles with a "
                   "hole, tyre, wheel rim, torus|tori, bracelet, washer, halo, wreath, life belt, wheel, letter "
                   "o|letters o, circlet, bangle, round frame, rubber band, hula hoop"),
}  # fmt: skip
NEW_SHAPE_WORDS = {
    "circle": _words("dot, cookie"), "square": _words("crate, quadrangle"), "triangle": _words("pyramid, tepee"),
    "diamond": _words("argyle, pendant"), "cross": _words("crucifix|crucifixes, intersection"),
    "ring": _words("bagel, quoit"),
}  # fmt: skip
SIZE_WORDS = {"small": _words("small, little, tiny"), "large": _words("large, big, huge")}
BACKGROUND_WORDS = {"gray": ("gray", "grey")}
STRESS = ("bright", "vivid", "pure", "plain")  # before a colour; claims nothing

# {x}: what there is; {is}: its verb.
REQUESTS = (
    "{x}", "{x}.", "a picture of {x}", "a drawing of {x}", "an image of {x}", "an illustration of {x}",
    "a sketch of {x}", "a painting of {x}", "a scene with {x}", "a simple graphic of {x}", "there {is} {x}",
    "here {is} {x}", "in this picture there {is} {x}", "we see {x}", "you can see {x}", "the picture shows {x}",
    "the image contains {x}", "draw {x}", "please draw {x}", "draw me {x}, please", "paint {x}", "sketch {x} for me",
    "show me {x}", "give me {x}", "let me see {x}", "make a picture with {x}", "{x}, please", "just {x}",
    "imagine {x}", "could you paint {x}?", "can you draw {x}?", "would you sketch {x} for me?", "may I have {x}?",
    "how about {x}?", "can I see {x}?", "I'd like {x}", "I would like to see {x}", "I want a picture of {x}",
    "I need an image of {x}", "I wish for {x}", "my picture should show {x}", "it should have {x}",
    "there should be {x}", "I am thinking of {x}",
)  # fmt: skip
NEW_REQUESTS = (
    "please create an artwork that depicts {x}", "I was wondering if you could make {x}", "kindly render {x}",
    "it would be lovely to get {x}", "is it possible to see {x}?", "produce a graphic in which one finds {x}",
    "let there be {x}", "generate {x} for my presentation", "my daughter asked for {x}", "what might {x} look like?",
)  # fmt: skip
# {n}: article or number; {s}: size; {c}: colour; {o}: what it is; {is}: its verb.
NOUNS = (
    "{n} {s} {c} {o}", "{n} {s} {c} {o}", "{n} {s} {c} {o}", "{n} {c} {s} {o}", "{n} {s} {o} in {c}",
    "{n} {s} {o} that {is} {c}", "{n} {s} {o} painted {c}", "{n} {s} {c} coloured {o}", "{n} {s} {o} of {c} colour",
)
NEW_NOUNS = ("{n} {s} {o} whose colour is {c}", "{n} {s} {o} filled with {c}", "{n} {s} {o} which {is} {c} all over",
             "{n} {s} {o} with the hue {c}")  # fmt: skip
PAIRS = ("{a} and {b}", "{a} and {b}", "{a} with {b}", "{a}, {b}", "both {a} and {b}", "{a} together with {b}",
         "{a} as well as {b}", "{a} along with {b}", "{a} and also {b}", "{a} & {b}")  # fmt: skip
NEW_PAIRS = ("not only {a} but also {b}", "{a} accompanied by {b}", "besides {a}, also {b}", "{a} in company of {b}")
# {a} lies so with respect to {b}; {ita}, {itb}: their pronouns; {isa}, {isb}: their verbs. What begins with neither is
# a sentence of its own, without a request.
_SIDES = (
    "{a} to the SIDE of {b}", "{a} SIDE of {b}", "{a} on the SIDE of {b}", "{a} on the SIDE side of {b}",
    "{b} with {a} on the SIDE", "{b} and, next to {itb} on the SIDE, {a}", "{a} beside {b}, on the SIDE",
    "{a} on the SIDE and {b} on the OTHER", "on the SIDE {a}, on the OTHER {b}", "to the SIDE of {b} there {isa} {a}",
    "{a} standing SIDE of {b}", "{a} that {isa} SIDE of {b}", "{a} and, to the OTHER of {ita}, {b}",
    "{a} next to {b} on the SIDE", "{a} at the SIDE, {b} at the OTHER",
)  # fmt: skip
_NEW_SIDES = (
    "if you look SIDE of {b}, you find {a}", "{b} with {a} as SIDE neighbour",
    "{a} situated on the SIDE-hand side of {b}", "starting from the SIDE, first {a}, then {b}",
    "the SIDE-hand part shows {a}, the OTHER-hand part {b}",
)  # fmt: skip


def _sided(forms: tuple[str, ...], side: str, other: str) -> tuple[str, ...]:
    return tuple(form.replace("SIDE", side).replace("OTHER", other) for form in forms)


RELATIONS = {
    "left": _sided(_SIDES, "left", "right"),
    "right": _sided(_SIDES, "right", "left"),
    "above": ("{a} above {b}", "{a} over {b}", "{a} on top of {b}", "{a} higher than {b}", "{b} with {a} above {itb}",
              "{a} at the top and {b} at the bottom", "at the top {a}, at the bottom {b}", "above {b} there {isa} {a}",
              "{a} and underneath {ita} {b}", "{a} floating over {b}", "{b} and, on top of {itb}, {a}",
              "{a} that {isa} above {b}", "{a} up top and {b} down below", "{a} with {b} beneath {ita}"),
    "below": ("{a} below {b}", "{a} under {b}", "{a} underneath {b}", "{a} beneath {b}", "{a} lower than {b}",
              "{b} with {a} below {itb}", "{a} at the bottom and {b} at the top", "at the bottom {a}, at the top {b}",
              "below {b} there {isa} {a}", "{a} and on top of {ita} {b}", "{b} and, underneath {itb}, {a}",
              "{a} that {isa} under {b}", "{a} down below and {b} up top", "{a} with {b} over {ita}"),
}  # fmt: skip
NEW_RELATIONS = {
    "left": _sided(_NEW_SIDES, "left", "right"),
    "right": _sided(_NEW_SIDES, "right", "left"),
    "above": ("if you look up from {b}, you find {a}", "{b} with {a} as upper neighbour",
              "{a} situated further up than {b}", "starting from the top, first {a}, then {b}",
              "the upper part shows {a}, the lower part {b}"),
    "below": ("if you look down from {b}, you find {a}", "{b} with {a} as lower neighbour",
              "{a} situated further down than {b}", "starting from the bottom, first {a}, then {b}",
              "the lower part shows {a}, the upper part {b}"),
}  # fmt: skip
GROUNDS = ("{x} on a {c} background", "{x} on a {c} ground", "{x} against a {c} backdrop", "{x} on {c}")
OF_COUNT = {2: ("a pair of", "a couple of"), 3: ("a trio of",), 6: ("half a dozen",)}
GRAMMAR_SHARE = 0.25  # of training captions; and of the others what follows
BARE, TYPED, STRESSED, PLAIN_COLOUR, PLAIN_SHAPE = 0.08, 0.06, 0.1, 0.4, 0.5


@dataclass(frozen=True)
class _Style:
    """Which forms and words a caption is made of."""

    new_forms: bool = False
    words: Literal["any", "plain", "synonyms", "new"] = "any"
    slips: bool = True  # articles left out, letters exchanged


_STYLES = {
    "english": _Style(), "plain": _Style(words="plain", slips=False), "templates": _Style(True, "plain", False),
    "synonyms": _Style(words="synonyms", slips=False), "new_words": _Style(words="new", slips=False),
}  # fmt: skip
PHRASINGS: tuple[Phrasing, ...] = get_args(Phrasing)


def phrased(scene: Scene, rng: Random, phrasing: Phrasing, extras: bool = True) -> Caption:
    """One caption of the scene.

    Args:
        phrasing: grammar: `scenes.describe`. english: what training sees, the grammar's captions among them; plain:
            its sentence forms with the grammar's words alone; templates: held-out sentence forms with those words;
            synonyms: training's forms, colours and shapes by other words of training; new_words: by held-out words.
        extras: whether size and background are spoken of at times.
    """
    if phrasing == "grammar" or (phrasing == "english" and rng.random() < GRAMMAR_SHARE):
        return describe(scene, rng, extras)
    style = _STYLES[phrasing]
    bare = style.slips and rng.random() < BARE
    said = list(claims(scene, rng, extras))
    a = int(rng.random() * 2)
    nouns = [_noun(claim, rng, style, bare) for claim in said]
    clauses: list[Clause] = list(said)
    counts = [claim.count for claim in said]
    if len(nouns) == 1:
        text, first, sentence = nouns[0], counts[0], False
    else:
        forms: tuple[str, ...] = NEW_PAIRS if style.new_forms else PAIRS
        if scene.relation is not None:
            relation = scene.relation if a == 0 else INVERSE[scene.relation]
            forms = (NEW_RELATIONS if style.new_forms else RELATIONS)[relation]
            clauses.append(Related(relation, a, 1 - a))
        b = 1 - a
        form = pick(rng, forms)
        text = form.format(a=nouns[a], b=nouns[b], isa=_is(counts[a]), isb=_is(counts[b]), ita=_it(counts[a]),
                           itb=_it(counts[b]))
        first = counts[b] if form.startswith("{b}") else counts[a]
        sentence = scene.relation is not None and not form.startswith("{")
    if extras and rng.random() < 0.15:
        clauses.append(OnBackground(scene.background))
        ground = pick(rng, BACKGROUND_WORDS.get(scene.background, (scene.background,)))
        text = pick(rng, GROUNDS).format(x=text, c=ground)
    if not sentence:
        text = pick(rng, NEW_REQUESTS if style.new_forms else REQUESTS).format(x=text, **{"is": _is(first)})
    if style.slips and rng.random() < TYPED:
        text = mistyped(text, rng)
    return Caption(text, tuple(clauses), scene.task)


def _noun(claim: Described, rng: Random, style: _Style, bare: bool) -> str:
    """"two small crimson discs" and its variants."""
    colour = ""
    if claim.colour is not None:
        words = {"plain": (), "new": NEW_COLOUR_WORDS[claim.colour]}.get(style.words, COLOUR_WORDS[claim.colour])
        plain = style.words == "plain" or (style.words == "any" and rng.random() < PLAIN_COLOUR)
        colour = claim.colour if plain else pick(rng, words)
        if style.words == "any" and rng.random() < STRESSED:
            colour = f"{pick(rng, STRESS)} {colour}"
    words = {"plain": (), "new": NEW_SHAPE_WORDS[claim.shape]}.get(style.words, SHAPE_WORDS[claim.shape])
    plain = style.words == "plain" or (style.words == "any" and rng.random() < PLAIN_SHAPE)
    noun = (claim.shape + ("|crosses" if claim.shape == "cross" else "")) if plain else pick(rng, words)
    size = "" if claim.size is None else claim.size if style.words == "plain" else pick(rng, SIZE_WORDS[claim.size])
    forms = (NEW_NOUNS if style.new_forms else NOUNS) if colour else ("{n} {s} {o}",)
    form = pick(rng, forms)
    rest = form.format(n="", s=size, c=colour, o=plural(noun, claim.count), **{"is": _is(claim.count)})
    rest = " ".join(rest.split()).replace(" ,", ",")
    return f"{_number(claim, rng, rest, bare)} {rest}".strip()


def plural(noun: str, count: int) -> str:
    """Of a noun as the lists have it, as many as `count`."""
    singular, _, many = noun.partition("|")
    return singular if count == 1 else many or f"{singular}s"


def _number(claim: Described, rng: Random, rest: str, bare: bool) -> str:
    if claim.count > 1:
        number = NUMBERS[claim.count] if rng.random() < 0.6 else str(claim.count)
        groups = OF_COUNT.get(claim.count, ())
        if groups and rng.random() < 0.25:
            return pick(rng, groups)
        return f"exactly {number}" if claim.exact and rng.random() < 0.1 else number
    if bare:
        return ""
    roll = rng.random()
    return ("an" if rest[0] in "aeio" or rest.startswith("ul") else "a") if roll < 0.8 else "one" if roll < 0.9 else (
        "a single" if roll < 0.95 else "1")


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _it(count: int) -> str:
    return "it" if count == 1 else "them"


def mistyped(text: str, rng: Random) -> str:
    """One of its longer words with two letters exchanged, one left out, or one twice; never another word of these
    captions, so that what they claim stays."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha() and word not in NUMBERS]
    for _ in range(8 if long else 0):
        i = pick(rng, long)
        word, at, kind = words[i], 1 + int(rng.random() * (len(words[i]) - 2)), int(rng.random() * 3)
        slip = (word[:at] + word[at + 1] + word[at] + word[at + 2 :], word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:])[kind]
        if slip not in _known():
            return " ".join([*words[:i], slip, *words[i + 1 :]])
    return text


@cache
def _known() -> frozenset[str]:
    """Every word that a caption may have, correctly written."""
    lists = [*COLOUR_WORDS.values(), *NEW_COLOUR_WORDS.values(), *SHAPE_WORDS.values(), *NEW_SHAPE_WORDS.values(),
             *SIZE_WORDS.values(), *RELATIONS.values(), *NEW_RELATIONS.values(), *OF_COUNT.values(), REQUESTS,
             NEW_REQUESTS, NOUNS, NEW_NOUNS, PAIRS, NEW_PAIRS, STRESS, NUMBERS, COLOUR_WORDS, SHAPE_WORDS]
    text = " ".join(plural(word, count) for words in lists for word in words for count in (1, 2))
    return frozenset(re.findall(r"[a-z]+", text.lower()))
