"""Guides from what users name: several at once, of any kind.

    PATH or hub name                    a transformers CLIP
    open_clip:MODEL@FILE                a model of open_clip's list with its weights
    sbert:FOLDER@CLIP                   a multilingual text tower with the image tower of a CLIP (folder or hub name)
    sbert_unchecked:FOLDER@CLIP         the same without the check that the two belong together
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from t2i.generation.clip_guided.clip_models.clip import CLIPGuide
from t2i.generation.clip_guided.clip_models.frozen import Precision
from t2i.generation.clip_guided.clip_models.multilingual import MultilingualGuide
from t2i.generation.clip_guided.clip_models.open_clip import OpenCLIPGuide
from t2i.types import Guide

FORMS = {
    "open_clip": "open_clip:MODEL@FILE",
    "sbert": "sbert:FOLDER@CLIP",
    "sbert_unchecked": "sbert_unchecked:FOLDER@CLIP",
}


def open_guides(
    specs: Sequence[str], precision: Precision = "32-true", allow_download: bool = False
) -> list[Guide]:
    """The guides that `specs` name, in that order; ValueError names every entry that cannot be opened, and why."""
    if isinstance(specs, str) or not specs:
        raise ValueError(f"specs={specs!r}: a list of at least one CLIP is needed")
    guides: list[Guide] = []
    faults = [f"the guide {spec!r} is named {n} times" for spec, n in Counter(specs).items() if n > 1]
    for spec in dict.fromkeys(specs):
        try:
            guides.append(open_guide(spec, precision, allow_download))
        except ValueError as error:
            faults.append(f"the guide {spec!r}: {error}")
    if faults:
        raise ValueError("\n".join(faults))
    return guides


def open_guide(spec: str, precision: Precision = "32-true", allow_download: bool = False) -> Guide:
    """One guide; ValueError says what is wrong with it."""
    kind, colon, rest = spec.partition(":")
    if not colon or Path(spec).exists():
        return CLIPGuide(spec, precision, allow_download)
    if kind not in FORMS:
        near = get_close_matches(kind, FORMS, 1)
        hint = f"; {near[0]!r} is near" if near else ""
        raise ValueError(f"{kind!r} is no kind of guide{hint}; a folder, a hub name, {', '.join(FORMS.values())}")
    first, second = _halves(rest, is_folder=kind != "open_clip")
    if not first or not second:
        raise ValueError(f"the form is {FORMS[kind]}")
    if kind == "open_clip":
        return OpenCLIPGuide(first, second, precision, allow_download)
    return MultilingualGuide(first, second, precision, allow_download, check_pair=kind == "sbert")


def _halves(rest: str, is_folder: bool) -> tuple[str, str]:
    """What stands before and behind the @; of several, the first that ends the name of a folder that is there."""
    places = [i for i, letter in enumerate(rest) if letter == "@"]
    there = [i for i in places if is_folder and Path(rest[:i]).is_dir()]
    at = (there or places or [len(rest)])[0]
    return rest[:at], rest[at + 1 :]
