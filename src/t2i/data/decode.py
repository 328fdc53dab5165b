"""The one way from a file's bytes to pixels: torchvision for plain JPEGs (twice as fast), Pillow for everything else.

Both hand their pixels to one antialiased bicubic filter, and give the same ones (tests/data/test_decode.py).
"""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

from t2i.data.stderr import capture_stderr

MAX_ASPECT = 2  # what is longer than twice its width is cut about the centre before it is scaled

warnings.filterwarnings("ignore", module=r"PIL\.")  # about Exif and sizes, without the name of the file

_decode_jpeg: Callable[..., Tensor] | None
try:
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_image as _torchvision

    _decode_jpeg = partial(_torchvision, mode=ImageReadMode.RGB, apply_exif_orientation=True)
except (ImportError, RuntimeError, OSError):  # a torchvision without its codecs, or one that has given them up
    _decode_jpeg = None

# Damaged pictures raise a handful of types, by their format and by the place of the damage.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError, RuntimeError)


def _by_pillow(opened: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """Any mode and format: turned as the camera was held, flattened on white, the first frame of several."""
    image = ImageOps.exif_transpose(opened)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    elif image.mode in ("I;16", "I;16B", "I;16L", "I"):  # 16 bits: convert() would clip instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _decode(data: bytes) -> UInt8[Tensor, "3 h w"]:
    if not data:
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(data)) as opened:
        if opened.format == "EPS":  # Pillow would hand it to Ghostscript
            raise ValueError("PostScript is a program, not a picture")
        if opened.format == "JPEG" and opened.mode in ("RGB", "L") and _decode_jpeg is not None:
            return _decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return _by_pillow(opened)


def read_pixels(data: bytes, name: Any, damaged: list[str] | None = None) -> UInt8[Tensor, "3 h w"]:
    """All pixels of a picture file's bytes; ValueError with `name` where it cannot be read whole.

    A picture that can be read although something in it is damaged gives a line with `name`: in `damaged` where that is
    given, else as a warning.
    """
    try:
        image, words = capture_stderr(lambda: _decode(data))
    except UNREADABLE as error:
        reason = str(error).split("\n")[0]
        if "cannot identify image file" in reason:  # it names an object in memory
            reason = "it is none, or of an unknown format"
        if "decode_jpeg" in reason:  # its message is a place in a C++ file
            reason = "the JPEG is cut off or damaged"
        raise ValueError(f"{name} cannot be read as a picture: {reason}") from error
    if words and not words.startswith("Warning"):  # of an unknown number of JFIF's version, say
        line = f"{name} is damaged and may look wrong: {words}"
        if damaged is None:
            warnings.warn(line, stacklevel=2)
        else:
            damaged.append(line)
    return image


def center_crop(image: UInt8[Tensor, "3 h w"], height: int, width: int) -> UInt8[Tensor, "3 h2 w2"]:
    """The middle of a picture, at most `height` x `width` (torchvision's rounds odd margins otherwise)."""
    top, left = max(0, image.shape[1] - height) // 2, max(0, image.shape[2] - width) // 2
    return image[:, top : top + height, left : left + width]


def fit(image: UInt8[Tensor, "3 h w"], side: int, square: bool) -> UInt8[Tensor, "3 h2 w2"]:
    """Scaled so that the short side is `side`; cut about the centre to a square, else to no longer than twice."""
    longest = MAX_ASPECT * min(image.shape[1:])
    image = center_crop(image, longest, longest)
    height, width = image.shape[1:]
    scale = side / min(height, width)
    size = max(side, round(height * scale)), max(side, round(width * scale))
    if size != (height, width):
        image = F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]
    return (center_crop(image, side, side) if square else image).contiguous()


def decode_image(data: bytes, name: Any, side: int, square: bool = True) -> UInt8[Tensor, "3 h w"]:
    """A picture file's bytes as pixels of the wanted size; see `read_pixels` and `fit`."""
    return fit(read_pixels(data, name), side, square)
