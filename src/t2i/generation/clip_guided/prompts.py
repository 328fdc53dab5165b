"""What clip-guided drawing is asked for, as people write it: `text:weight | text:weight:stop | image:PATH:weight`.

A part is a text with, behind colons, its weight (1 where there is none; below 0 it pushes away) and its stop (a
distance below which it has no say). A colon followed by words after a space belongs to the text; `\\:` and `\\|` always
do. Where it cannot be told (`at 10:30`, `cat:two`), the message says how to write either. Weights as in VQGAN-CLIP,
Crowson et al. 2022, arXiv 2204.08583. The same as a mapping: {text: …, weight: …, stop: …} or {image: …}.
"""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from t2i.config.messages import shown

STYLE = 0.5  # weight of a style beside a prompt
IMAGE = "image:"
KEYS = ("text", "image", "weight", "stop")
ESCAPES = {"\\:": "\ue000", "\\|": "\ue001"}  # private letters stand for what is escaped
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
NOT_FINITE = re.compile(r"[+-]?(inf|infinity|nan)", re.IGNORECASE)

Given = str | Mapping[str, Any]


def brief(value: object) -> str:
    """A value as Python writes it, of bounded length, for a message."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = 200
    return short.repr(value)


@dataclass(frozen=True)
class Prompt:
    """A text, or the path of a picture where `is_image`."""

    text: str
    weight: float = 1.0
    stop: float = -math.inf
    is_image: bool = False

    def __post_init__(self) -> None:
        what = "image" if self.is_image else "text"
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"{what}={brief(self.text)} is {'empty' if self.text == '' else 'no text'}: "
                             + ("the path of a picture is needed" if self.is_image else "write what to draw"))
        for name, value in (("weight", self.weight), ("stop", self.stop)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name}={brief(value)} of {what} {brief(self.text)} is no number")
            if not math.isfinite(value) and (name, value) != ("stop", -math.inf):
                raise ValueError(f"{name}={value} of {what} {brief(self.text)}: allowed are finite numbers")


@dataclass(frozen=True)
class PromptTargets:
    """What one picture should be like: the targets (prompts and styles), extras, which every target leans towards, and
    what is excluded."""

    targets: tuple[Prompt, ...]
    extras: tuple[Prompt, ...] = ()
    excluded: tuple[Prompt, ...] = ()


def prompt_targets(
    prompt: str | Sequence[Given] = (),
    *,
    styles: str | Sequence[Given] = (),
    images: str | Sequence[Given] = (),
    extras: str | Sequence[Given] = (),
    excluded: str | Sequence[Given] = (),
) -> PromptTargets:
    """Everything asked for one picture. Styles count half; `images` are paths (`PATH:weight`).

    ValueError for an empty text, a weight that is no number, and where there is no target or none with a weight.
    """
    targets = parse_prompts(prompt, "prompt") if prompt != () else []
    targets += [replace(style, weight=STYLE * style.weight)
                for style in (parse_prompts(styles, "styles") if styles else [])]
    targets += parse_prompts(images, "images", is_image=True) if images else []
    if not targets:
        raise ValueError("prompt: nothing asked for; give a text, a style or an image")
    if not any(target.weight for target in targets):
        raise ValueError(f"prompt: all weights are 0 ({', '.join(repr(target.text) for target in targets)});"
                         " one other than 0 is needed")
    beside = parse_prompts(extras, "extras") if extras else []
    away = parse_prompts(excluded, "excluded") if excluded else []
    for one in away:
        if one.weight < 0:
            raise ValueError(f"excluded: weight={one.weight} of {brief(one.text)}: what is excluded is pushed away by"
                             " itself; allowed are numbers from 0")
    for name, found in (("extras", beside), ("excluded", away)):
        if stopped := [one for one in found if one.stop > -math.inf]:
            raise ValueError(f"{name}: stop={stopped[0].stop} of {brief(stopped[0].text)}: only targets have a stop")
    return PromptTargets(tuple(targets), tuple(beside), tuple(away))


def parse_prompts(given: str | Sequence[Given], name: str = "prompt", is_image: bool = False) -> list[Prompt]:
    """The parts of a text with `|`, or of a list of texts and mappings. `name` is the argument's, for messages."""
    found: list[Prompt] = []
    for item in [given] if isinstance(given, str) else given:
        try:
            if isinstance(item, str):
                for escaped, letter in ESCAPES.items():
                    item = item.replace(escaped, letter)
                found += [_part(part, is_image) for part in item.split("|")]
            elif isinstance(item, Mapping):
                found.append(_structured(item))
            else:
                raise ValueError(f"{brief(item)} is neither a text nor a mapping of {', '.join(KEYS)}")
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return found


def _unescaped(text: str) -> str:
    for escaped, letter in ESCAPES.items():
        text = text.replace(letter, escaped[1])
    return text.strip()


def _structured(item: Mapping[str, Any]) -> Prompt:
    if strange := [key for key in item if key not in KEYS]:
        raise ValueError(f"{strange[0]}={brief(item[strange[0]])}: known are {', '.join(KEYS)}")
    if ("text" in item) == ("image" in item):
        raise ValueError(f"{dict(item)}: either text or image is needed")
    numbers = {key: item[key] for key in ("weight", "stop") if key in item}
    return Prompt(item["image"] if "image" in item else item["text"], is_image="image" in item, **numbers)


def _part(part: str, is_image: bool) -> Prompt:
    text = part.strip()
    if text.lower().startswith(IMAGE) and not text[len(IMAGE) :].startswith(" "):
        text, is_image = text[len(IMAGE) :], True
    numbers: list[float] = []
    last = ""
    while len(numbers) < 2 and ":" in text:
        head, tail = text.rsplit(":", 1)
        if not NUMBER.fullmatch(tail.strip()) and not NOT_FINITE.fullmatch(tail):
            break
        text, last, numbers = head, tail, [float(tail), *numbers]
    whole, head = brief(_unescaped(part)), shown(_unescaped(text))
    # A time or a ratio ends like a text with a weight.
    if not is_image and text[-1:].isdigit() and last.isdigit():
        raise ValueError(f"{whole}: is {last} a weight or of the text? For a weight, write a space before its colon"
                         f" ({head} :{last}); for the text, write \\: ({head}\\:{last})")
    head, colon, tail = text.rpartition(":")
    # A path or an address (C:\…, https://…) goes on after its colon with a slash.
    if colon and head.strip() and not re.search(r"\s", tail) and not tail.startswith(("/", "\\")):
        raise ValueError(f"{whole}: the weight {brief(_unescaped(tail))} is no number; if the colon is of the text,"
                         " write a space behind it, or \\:")
    weight, stop = [*numbers, *(1.0, -math.inf)[len(numbers) :]]
    return Prompt(_unescaped(text), weight, stop, is_image)
