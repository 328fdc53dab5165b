"""Pictures for people: captioned grids and rows for comparison (curves: `t2i.viz.plots`). Files appear whole or not
at all.

Captions have a length here, whatever theirs is; the letters are those of `t2i.viz.fonts`.
"""

from __future__ import annotations

import io
import math
import os
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from t2i.config.messages import shown
from t2i.viz.fonts import JOINERS, TEXT_SIZE, clusters, length, write

SMALLEST = 128  # pixels; smaller pictures are enlarged to at least this side
MARGIN = 8
FRAME = "#d8d8d8"  # white pictures on the white page need one
LINES = 4  # of a caption; longer ones end in an ellipsis
MARKS = 3  # on one letter; more would reach into what is above and below


def to_uint8(images: Float[Tensor, "n 3 h w"]) -> np.ndarray:
    """Pictures in [-1, 1] as bytes (n, h, w, 3), clipped and rounded."""
    scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes beside the target, then replaces it: a reader never sees half a file, a full disk leaves the old one.

    OSError names the file.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise OSError(error.errno, f"{shown(path)} cannot be written: {error.strerror or error}") from error
    finally:
        if beside.exists():
            beside.unlink()
    return path


def save(image: Image.Image, path: Path) -> Path:
    """Writes a PNG whole or not at all."""
    held = io.BytesIO()
    image.save(held, format="PNG")
    return write_bytes(path, held.getvalue())


def legible(text: str, most: int) -> str:
    """At most `most` letters of a text and an ellipsis, on one line; what cannot be seen is escaped."""
    line = " ".join(text.split(maxsplit=most))
    line = line if len(line) <= most else f"{line[:most]}…"
    kept: list[str] = []
    marks = 0
    for letter in line:
        marks = marks + 1 if unicodedata.category(letter)[0] == "M" else 0
        if marks <= MARKS:
            kept.append(letter if letter in JOINERS else shown(letter))
    return "".join(kept)


def wrap(text: str, width: int, lines: int = LINES) -> list[str]:
    """Breaks `text` at spaces (inside words that are too long) into at most `lines` lines of `width` pixels.

    As letters are wider than a pixel, no more than `lines` x `width` of them are looked at.
    """
    broken: list[str] = []
    line = ""
    for word in legible(text, lines * width).split(" "):
        if line and length(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            broken.append(line)
        parts = clusters(word)
        while len(broken) <= lines and (len(parts) > width or length("".join(parts)) > width):
            upto = range(1, min(len(parts), width) + 1)
            fits = bisect_right(upto, width, key=lambda n: math.ceil(length("".join(parts[:n]))))
            broken.append("".join(parts[:fits]) or "…")  # one letter may be wider than all the line
            parts = parts[max(1, fits) :]
        line = "".join(parts)
        if len(broken) > lines:
            break
    if line:
        broken.append(line)
    if len(broken) > lines:
        last = clusters(broken[lines - 1].rstrip("…"))
        while last and length("".join(last) + "…") > width:
            last.pop()
        broken = [*broken[: lines - 1], "".join(last) + "…"]
    return broken


def _enlarged(pixels: np.ndarray, scale: int | None) -> np.ndarray:
    """Bytes (n, h, w, 3), each pixel repeated `scale` times (None: so that the short side reaches SMALLEST)."""
    factor = max(1, math.ceil(SMALLEST / min(pixels.shape[1:3]))) if scale is None else scale
    if factor < 1:
        raise ValueError(f"scale={scale}: allowed are whole numbers from 1")
    return pixels.repeat(factor, 1).repeat(factor, 2)


def to_bytes(images: Tensor | np.ndarray) -> np.ndarray:
    """Bytes (n, h, w, 3) from the same (array or tensor) or from pictures in [-1, 1]."""
    if isinstance(images, Tensor) and images.dtype == torch.uint8:
        images = images.cpu().numpy()
    if isinstance(images, np.ndarray):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images {images.dtype} {images.shape}: bytes must be uint8 (n, h, w, 3)")
        return images
    return to_uint8(images)


def grid(
    images: Tensor | np.ndarray,
    captions: Sequence[str] | None = None,
    columns: int | None = None,
    scale: int | None = None,
) -> Image.Image:
    """Pictures in rows of `columns`, each with its caption wrapped under it.

    Args:
        images: in [-1, 1], (n, 3, h, w), or bytes (n, h, w, 3).
        columns: None for about a square.
        scale: enlargement, whole; None makes the short side at least 128 pixels.
    """
    pixels = _enlarged(to_bytes(images), scale)
    n, height, width, _ = pixels.shape
    if not n:
        raise ValueError("images: none given, a grid takes at least one")
    if captions is not None and len(captions) != n:
        raise ValueError(f"{len(captions)} captions for {n} images: each takes one")
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    row_of = [list(range(start, min(start + columns, n))) for start in range(0, n, columns)]
    texts = [wrap(caption, width) for caption in captions] if captions is not None else [[] for _ in range(n)]
    line_height = TEXT_SIZE + 4
    heights = [height + line_height * max(len(texts[i]) for i in row) + MARGIN for row in row_of]
    page = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, sum(heights) + MARGIN), "white")
    draw = ImageDraw.Draw(page)
    top = MARGIN
    for row, row_height in zip(row_of, heights, strict=True):
        for column, i in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            page.paste(Image.fromarray(pixels[i]), (left, top))
            draw.rectangle((left - 1, top - 1, left + width, top + height), outline=FRAME)
            for k, line in enumerate(texts[i]):
                write(page, left, top + height + 2 + k * line_height, line)
        top += row_height
    return page


def rows(
    labelled: Sequence[tuple[str, Tensor | np.ndarray]],
    captions: Sequence[str] | None = None,
    scale: int | None = None,
) -> Image.Image:
    """One row a label (input, reconstruction; model, model), the same pictures in columns, captions under the last.

    All rows hold the same number of pictures; they may differ in size and are enlarged to a common one.
    """
    if not labelled:
        raise ValueError("rows: none given")
    parts = [to_bytes(images) for _, images in labelled]
    n = len(parts[0])
    if any(len(part) != n for part in parts) or not n:
        found = ", ".join(f"{label}: {len(part)}" for (label, _), part in zip(labelled, parts, strict=True))
        raise ValueError(f"every row must hold the same number of pictures, at least one; found {found}")
    if captions is not None and len(captions) != n:
        raise ValueError(f"{len(captions)} captions for {n} columns: each takes one")
    largest = max((_enlarged(part, scale) for part in parts), key=lambda part: part.shape[1])
    height, width = largest.shape[1:3]
    labels = [wrap(label, 110, lines=6) for label, _ in labelled]
    gutter = MARGIN + max((int(length(line)) + 1 for label in labels for line in label), default=0)
    texts = [wrap(caption, width) for caption in captions] if captions is not None else [[]]
    line_height = TEXT_SIZE + 4
    foot = line_height * max(len(text) for text in texts)
    size = (gutter + n * (width + MARGIN) + MARGIN, len(parts) * (height + MARGIN) + MARGIN + foot)
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    for r, part in enumerate(parts):
        top = MARGIN + r * (height + MARGIN)
        middle = top + (height - line_height * len(labels[r])) // 2
        for k, line in enumerate(labels[r]):
            write(page, MARGIN // 2, middle + k * line_height, line)
        for i in range(n):
            picture = Image.fromarray(part[i]).resize((width, height), Image.Resampling.NEAREST)
            left = gutter + i * (width + MARGIN)
            page.paste(picture, (left, top))
            draw.rectangle((left - 1, top - 1, left + width, top + height), outline=FRAME)
    for i, text in enumerate(texts):
        for k, line in enumerate(text):
            top = len(parts) * (height + MARGIN) + 4 + k * line_height
            write(page, gutter + i * (width + MARGIN), top, line)
    return page
