"""The JSON of one picture of the page: everything it was drawn from, so that the page draws it again byte for byte.

Numbers and texts alone: files are known by their hashes, an edited picture lies in it whole. Nothing that it names is
opened. Pictures of one request are drawn in one batch, and again so: a decoder's sums hang on the batch's size.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2i.checkpoint.plain_files import parse_json
from t2i.config.messages import quoted, shown
from t2i.data.decode import read_pixels
from t2i.generation.editing import LARGEST
from t2i.version import version

FORMAT = "t2i picture 1"
WAYS = ("draw", "edit", "guided")
MOST = 16  # pictures of one request, a batch of sample.py
LONGEST = 2000  # letters of a prompt


@dataclass(frozen=True)
class Request:
    """What one press of a button asks for.

    way: draw, edit or guided. options: of `model.sample`; of guided drawing settings of `clip_guided`.
    edit: vary, extend or mask, and image; pictures as PNG in base64.
    """

    way: str
    prompt: str
    seed: int = 0
    n: int = 1
    negative: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    edit: dict[str, Any] | None = None


@dataclass(frozen=True)
class Record:
    """A picture's request, its number in it, its own seed, the hashes of the models that drew it, and of its pixels."""

    request: Request
    number: int
    picture_seed: int
    checkpoint: str | None
    hash: str | None
    clip_hash: str | None
    pixels: str

    def to_json(self) -> bytes:
        held = {"format": FORMAT, **asdict(self), "t2i": version(), "torch": torch.__version__}
        return json.dumps(held, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")


def digest(pixels: np.ndarray) -> str:
    """The first 16 hex digits of the SHA-256 of a picture (h, w, 3) of bytes, and of its shape."""
    return hashlib.sha256(repr(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()[:16]


def png(pixels: np.ndarray) -> bytes:
    """The bytes that `sample.py` writes for a picture."""
    held = io.BytesIO()
    Image.fromarray(pixels).save(held, format="PNG")
    return held.getvalue()


def packed(pixels: np.ndarray) -> str:
    return base64.b64encode(png(pixels)).decode()


def unpacked(text: Any, name: str) -> torch.Tensor:
    """A picture (3, h, w) of bytes out of base64; ValueError calls it `name`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is no picture in base64") from error
    return checked_pixels(data, name)


def checked_pixels(data: bytes, name: str) -> torch.Tensor:
    """A picture file's bytes as (3, h, w); its size is looked at before it is decoded."""
    try:
        with Image.open(io.BytesIO(data)) as opened:
            width, height = opened.size
    except Image.DecompressionBombError as error:  # more than twice what the server allows
        raise ValueError(f"{name} is too large: at most {LARGEST:,} pixels in all are taken") from error
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"{name} is no picture, or of an unknown format") from error
    if width * height > LARGEST:
        raise ValueError(f"{name} is too large, {width} x {height}: at most {LARGEST:,} pixels in all are taken")
    return read_pixels(data, name)


def read_record(data: bytes) -> Record:
    """The record of a picture's JSON; ValueError says in a line what of it is not as the page wrote it."""
    name = "the JSON"
    held = parse_json(data, name)
    if not isinstance(held, dict) or held.get("format") != FORMAT:
        raise ValueError(f"{name} is none of a picture of this page: format={quoted(FORMAT)} is missing")
    forms: dict[str, Any] = {"request": dict, "number": int, "picture_seed": int, "checkpoint": str | None,
                             "hash": str | None, "clip_hash": str | None, "pixels": str}
    _check(held, forms, name, ("format", "t2i", "torch"))
    inner: dict[str, Any] = {"way": str, "prompt": str, "seed": int, "n": int, "negative": str | None,
                             "options": dict, "edit": dict | None}
    _check(held["request"], inner, name, inside="request.")
    for key, value in held["request"]["options"].items():
        if not isinstance(value, bool | int | float | str | None):
            raise ValueError(f"{name} was changed: request.options.{shown(key, 40)} is {quoted(value)}; a number or a"
                             " word is wanted")
    request = Request(**held["request"])
    if request.way not in WAYS:
        raise ValueError(f"{name} was changed: request.way={quoted(request.way)}; allowed are {', '.join(WAYS)}")
    if not 0 <= held["number"] < request.n <= MOST:
        raise ValueError(f"{name} was changed: number={held['number']} of n={request.n} pictures, at most {MOST}")
    return Record(request, *(held[key] for key in list(forms)[1:]))


def _check(
    held: dict[str, Any], forms: dict[str, Any], name: str, beside: tuple[str, ...] = (), inside: str = ""
) -> None:
    """ValueError unless it has just these keys, each of its type."""
    if strange := [key for key in held if key not in forms and key not in beside]:
        raise ValueError(f"{name} was changed: {inside}{shown(strange[0], 40)} is no key of it; they are"
                         f" {', '.join(forms)}")
    for key, form in forms.items():
        if key not in held or not isinstance(held[key], form) or isinstance(held[key], bool):
            found = quoted(held[key]) if key in held else "missing"
            wanted = {int: "a whole number", str: "a text", dict: "a table"}.get(form, "a text or null")
            raise ValueError(f"{name} was changed: {inside}{key} is {found}; {wanted} is wanted")
