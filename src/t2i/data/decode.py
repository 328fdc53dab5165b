"""The one way from a file's bytes to pixels: torchvision for plain JPEGs (twice as fast), Pillow for everything else.

Both hand their pixels to one antialiased bicubic filter, and give the same ones (tests/data/test_decode.py).
"""

from __future__ import annotations

import io
import os
import struct
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, ImageOps
from torch import Tensor

T = TypeVar("T")
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


def from_pillow(opened: Image.Image, background: int = 255) -> UInt8[Tensor, "3 h w"]:
    """Any mode and format: turned as the camera was held, flattened on a grey (white), the first frame of several."""
    image = ImageOps.exif_transpose(opened)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (background, background, background, 255)), image)
    elif image.mode in ("I;16", "I;16B", "I;16L", "I"):  # 16 bits: convert() would clip instead of scaling
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def _decode(data: bytes, background: int) -> UInt8[Tensor, "3 h w"]:
    if not data:
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(data)) as opened:
        if opened.format == "EPS":  # Pillow would hand it to Ghostscript
            raise ValueError("PostScript is a program, not a picture")
        if opened.format == "JPEG" and opened.mode in ("RGB", "L") and _decode_jpeg is not None:
            return _decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        return from_pillow(opened, background)


class _Stderr:
    """What C libraries (libjpeg, libtiff) write past Python: file descriptor 2 leads into a pipe while anybody works
    under `capture`.

    Several threads may. Where something was written, each that worked meanwhile does its work once more alone, to know
    who wrote it; what nobody's work writes again goes where it was meant to go.
    """

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.working = self.asking = self.count = 0
        self.lines: list[bytes] = []
        self.ends: tuple[int, int, int] | None = None  # of the pipe, and where descriptor 2 led before

    def capture(self, work: Callable[[], T]) -> tuple[T, str]:
        """What `work()` returns or raises, and what was written meanwhile."""
        with self.condition:
            self.working += 1
            if self.working == 1:
                self.redirect()
            before = self.count
        try:
            result = work()
        finally:
            with self.condition:
                self.listen()
                asks = self.count > before
                self.asking += asks
                self.working -= 1
                if not self.working:
                    self.restore()
                self.condition.notify_all()
            words = self.alone(work) if asks else ""
        return result, words

    def alone(self, work: Callable[[], object]) -> str:
        with self.condition:
            self.condition.wait_for(lambda: not self.working)
            shared, self.lines = self.lines, []
            self.redirect()
            try:
                work()
            except Exception:  # it raised the first time too, and that is on its way
                pass
            finally:
                self.listen()
                self.restore()
            own, self.lines = self.lines, shared
            for line in own:
                if line in self.lines:
                    self.lines.remove(line)
            self.asking -= 1
            if not self.asking and self.lines:
                os.write(2, b"\n".join(self.lines) + b"\n")
                self.lines = []
        return b"; ".join(own).decode("utf-8", "replace")

    def redirect(self) -> None:
        try:
            before = os.dup(2)
        except OSError:  # it is closed: there is nothing to capture
            return
        read, write = os.pipe()
        for end in (read, write):
            os.set_blocking(end, False)
        os.dup2(write, 2)
        self.ends = read, write, before

    def listen(self) -> None:
        while self.ends is not None:
            try:
                lines = os.read(self.ends[0], 65536).splitlines()
            except BlockingIOError:
                return
            self.lines += lines
            self.count += len(lines)

    def restore(self) -> None:
        if self.ends is not None:
            os.dup2(self.ends[2], 2)
            for end in self.ends:
                os.close(end)
            self.ends = None


capture_stderr = _Stderr().capture


def read_pixels(
    data: bytes, name: Any, damaged: list[str] | None = None, background: int = 255
) -> UInt8[Tensor, "3 h w"]:
    """All pixels of a picture file's bytes; ValueError with `name` where it cannot be read whole.

    A picture that can be read although something in it is damaged gives a line with `name`: in `damaged` where that is
    given, else as a warning. What is transparent is laid on `background`: 255 is white.
    """
    try:
        image, words = capture_stderr(lambda: _decode(data, background))
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
