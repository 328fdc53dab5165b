"""CLIPs from what users name: several at once, of any kind.

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

from t2i.generation.clip_guided.clip_models.base import Precision
from t2i.generation.clip_guided.clip_models.clip import TransformersCLIP
from t2i.generation.clip_guided.clip_models.multilingual import MultilingualCLIP
from t2i.generation.clip_guided.clip_models.open_clip import OpenCLIP
from t2i.types import ClipModel

FORMS = {
    "open_clip": "open_clip:MODEL@FILE",
    "sbert": "sbert:FOLDER@CLIP",
    "sbert_unchecked": "sbert_unchecked:FOLDER@CLIP",
}


def load_clip_models(
    names: Sequence[str], precision: Precision = "32-true", allow_download: bool = False
) -> list[ClipModel]:
    """The CLIPs in that order; ValueError says of every one that cannot be loaded why."""
    if isinstance(names, str) or not names:
        raise ValueError(f"names={names!r}: a list of at least one CLIP is needed")
    found: list[ClipModel] = []
    faults = [f"the CLIP {name!r} is named {n} times" for name, n in Counter(names).items() if n > 1]
    for name in dict.fromkeys(names):
        try:
            found.append(load_clip_model(name, precision, allow_download))
        except ValueError as error:
            faults.append(f"the CLIP {name!r}: {error}")
    if faults:
        raise ValueError("\n".join(faults))
    return found


def load_clip_model(name: str, precision: Precision = "32-true", allow_download: bool = False) -> ClipModel:
    """One CLIP; ValueError says what is wrong with it."""
    kind, colon, rest = name.partition(":")
    if not colon or Path(name).exists():
        return TransformersCLIP(name, precision, allow_download)
    if kind not in FORMS:
        near = get_close_matches(kind, FORMS, 1)
        hint = f"; {near[0]!r} is near" if near else ""
        raise ValueError(f"{kind!r} is no kind of CLIP{hint}; a folder, a hub name, {', '.join(FORMS.values())}")
    places = [i for i, letter in enumerate(rest) if letter == "@"]
    # Of several @, the first that ends the name of a folder that is there.
    folders = [i for i in places if kind != "open_clip" and Path(rest[:i]).is_dir()]
    at = (folders or places or [len(rest)])[0]
    first, second = rest[:at], rest[at + 1 :]
    if not first or not second:
        raise ValueError(f"the form is {FORMS[kind]}")
    if kind == "open_clip":
        return OpenCLIP(first, second, precision, allow_download)
    return MultilingualCLIP(first, second, precision, allow_download, check_pair=kind == "sbert")
