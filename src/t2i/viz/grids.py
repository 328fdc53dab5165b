"""Pictures for people: captioned grids, rows for comparison, animations (curves: `t2i.viz.plots`), written whole or not
at all.

Captions have a length here, whatever theirs is; the letters are those of `t2i.viz.fonts`.
"""

from __future__ import annotations

import io
import math
import subprocess
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from t2i.checkpoint.atomic import write_bytes
from t2i.config.messages import shown
from t2i.viz.fonts import JOINERS, TEXT_SIZE, clusters, length, write

SMALLEST = 128  # pixels; smaller pictures are enlarged to at least this side
MARGIN = 8
LINE_HEIGHT = TEXT_SIZE + 4
FRAME = "#d8d8d8"  # white pictures on the white page need one
STRONG = "#d62728"
LINES = 4  # of a caption; longer ones end in an ellipsis
FRAME_TIME = 120  # milliseconds of an animation's frame
MARKS = 3  # on one letter; more would reach into what is above and below


def to_uint8(images: Float[Tensor, "n 3 h w"]) -> np.ndarray:
    """Pictures in [-1, 1] as bytes (n, h, w, 3), clipped and rounded."""
    scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


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


def write_lines(page: Image.Image, left: int, top: int, lines: Sequence[str]) -> None:
    for k, line in enumerate(lines):
        write(page, left, top + k * LINE_HEIGHT, line)


def paste(page: Image.Image, image: Image.Image, left: int, top: int) -> None:
    """A picture in a thin frame."""
    page.paste(image, (left, top))
    ImageDraw.Draw(page).rectangle((left - 1, top - 1, left + image.width, top + image.height), outline=FRAME)


def _wrapped(captions: Sequence[str] | None, n: int, width: int) -> list[list[str]]:
    if captions is None:
        return [[] for _ in range(n)]
    if len(captions) != n:
        raise ValueError(f"{len(captions)} captions for {n} images: each takes one")
    return [wrap(caption, width) for caption in captions]


def grid(images: Tensor | np.ndarray, captions: Sequence[str] | None = None, columns: int | None = None,
         scale: int | None = None) -> Image.Image:
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
    texts = _wrapped(captions, n, width)
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows_of = [range(start, min(start + columns, n)) for start in range(0, n, columns)]
    heights = [height + LINE_HEIGHT * max(len(texts[i]) for i in row) + MARGIN for row in rows_of]
    page = Image.new("RGB", (columns * (width + MARGIN) + MARGIN, sum(heights) + MARGIN), "white")
    top = MARGIN
    for row, row_height in zip(rows_of, heights, strict=True):
        for column, i in enumerate(row):
            left = MARGIN + column * (width + MARGIN)
            paste(page, Image.fromarray(pixels[i]), left, top)
            write_lines(page, left, top + height + 2, texts[i])
        top += row_height
    return page


def rows(labelled: Sequence[tuple[str, Tensor | np.ndarray]], captions: Sequence[str] | None = None,
         scale: int | None = None) -> Image.Image:
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
    height, width = max((_enlarged(part, scale) for part in parts), key=lambda part: part.shape[1]).shape[1:3]
    texts = _wrapped(captions, n, width)
    labels = [wrap(label, 110, lines=6) for label, _ in labelled]
    gutter = MARGIN + max((int(length(line)) + 1 for label in labels for line in label), default=0)
    bottom = len(parts) * (height + MARGIN)
    foot = LINE_HEIGHT * max(len(text) for text in texts)
    page = Image.new("RGB", (gutter + n * (width + MARGIN) + MARGIN, bottom + MARGIN + foot), "white")
    for r, part in enumerate(parts):
        top = MARGIN + r * (height + MARGIN)
        write_lines(page, MARGIN // 2, top + (height - LINE_HEIGHT * len(labels[r])) // 2, labels[r])
        for i in range(n):
            image = Image.fromarray(part[i]).resize((width, height), Image.Resampling.NEAREST)
            paste(page, image, gutter + i * (width + MARGIN), top)
    for i, text in enumerate(texts):
        write_lines(page, gutter + i * (width + MARGIN), bottom + 4, text)
    return page


def framed_table(pixels: UInt8[np.ndarray, "r c h w 3"], row_labels: Sequence[str], column_labels: Sequence[str],
                 framed: Bool[np.ndarray, "r c"], scale: int | None = None) -> Image.Image:
    """A table of pictures, labelled at the left and above; those of `framed` stand in a strong frame."""
    count, columns = pixels.shape[:2]
    if (len(row_labels), len(column_labels), framed.shape) != (count, columns, (count, columns)) or not count * columns:
        raise ValueError(f"{count}x{columns} pictures, {len(row_labels)} and {len(column_labels)} labels, frames"
                         f" {framed.shape}: one of each a row, a column, a picture is wanted")
    cells = _enlarged(pixels.reshape(-1, *pixels.shape[2:]), scale)
    height, width = cells.shape[1:3]
    labels = [wrap(label, 110) for label in row_labels]
    heads = [wrap(label, width) for label in column_labels]
    left = MARGIN + max(int(length(line)) + 1 for label in labels for line in label) + MARGIN
    top = MARGIN + LINE_HEIGHT * max(map(len, heads))
    page = Image.new("RGB", (left + columns * (width + MARGIN), top + count * (height + MARGIN)), "white")
    for c, head in enumerate(heads):
        write_lines(page, left + c * (width + MARGIN), MARGIN // 2, head)
    for r, label in enumerate(labels):
        y = top + r * (height + MARGIN)
        write_lines(page, MARGIN // 2, y + (height - LINE_HEIGHT * len(label)) // 2, label)
        for c in range(columns):
            x = left + c * (width + MARGIN)
            paste(page, Image.fromarray(cells[r * columns + c]), x, y)
            if framed[r, c]:
                ImageDraw.Draw(page).rectangle((x - 3, y - 3, x + width + 2, y + height + 2), outline=STRONG, width=3)
    return page


def save_animation(frames: Sequence[np.ndarray], path: Path, kind: str) -> Path | None:
    """Frames (h, w, 3) as `<path>.gif` by Pillow or `<path>.mp4` by the program ffmpeg, which stay on their last; None
    for kind none."""
    if kind == "none":
        return None
    images = [Image.fromarray(frame) for frame in _enlarged(np.stack(frames), max(1, 256 // min(frames[0].shape[:2])))]
    target = path.with_name(f"{path.name}.{kind}")
    if kind == "gif":
        durations = [FRAME_TIME] * (len(images) - 1) + [12 * FRAME_TIME]
        held = io.BytesIO()
        images[0].save(held, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
        return write_bytes(target, held.getvalue())
    beside = path.with_name(f".{path.name}.part.mp4")
    height, width = (side // 2 * 2 for side in (images[0].height, images[0].width))
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
               "-r", str(round(1000 / FRAME_TIME)), "-i", "-", "-pix_fmt", "yuv420p", str(beside)]
    content = b"".join(image.crop((0, 0, width, height)).tobytes() for image in images + images[-1:] * 11)
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    if done.returncode:
        beside.unlink(missing_ok=True)
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"{shown(target)} cannot be written by ffmpeg: {shown(last)}")
    return beside.replace(target)
