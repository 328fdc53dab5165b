"""Pictures that the user names, as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from t2i.data.decode import fit, from_pillow, read_pixels
from t2i.text_encoders.clip_folder import resize_and_crop


def read_bytes(path: str | Path, key: str, background: int = 255) -> UInt8[Tensor, "3 h w"]:
    """All of a picture, on that grey where it is transparent; ValueError names the key that it was given by."""
    if not isinstance(path, str | Path) or not str(path):
        raise ValueError(f"{key}={path!r}: the path of a picture is wanted")
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{key}={path} cannot be read: {error.strerror}") from error
    return read_pixels(data, f"{key}={path}", background=background)


def pixels_of(picture: Any, key: str, background: int = 255) -> UInt8[Tensor, "3 h w"]:
    """All of a picture that is a file or PIL's."""
    if isinstance(picture, Image.Image):
        return from_pillow(picture, background)
    return read_bytes(picture, key, background)


def called(picture: Any) -> str:
    """A picture, or another value of a key, in messages."""
    return "the picture" if isinstance(picture, Image.Image) else str(picture)


def read_square(path: str | Path, key: str, size: int) -> Float[Tensor, "1 3 s s"]:
    """In [-1, 1], cut to a square about the middle."""
    return fit(read_bytes(path, key), size, square=True)[None].float().div(127.5).sub(1)


def read_shaped(path: str | Path, key: str, height: int, width: int) -> Float[Tensor, "1 3 h w"]:
    """In [-1, 1], cut about the middle to that shape."""
    pixels = read_bytes(path, key).float()[None]
    return resize_and_crop(pixels, height, width).clamp(0, 255).div(127.5).sub(1)
