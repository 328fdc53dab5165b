"""Pictures as a film, written whole or not at all: a GIF by Pillow, MP4 by the program ffmpeg."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image

from t2i.config.messages import shown
from t2i.viz.grids import write_bytes

FRAME = 120  # milliseconds of a frame


def film(frames: list[np.ndarray], path: Path, kind: str) -> Path | None:
    """The frames as a film that stays on its last; None for kind none."""
    if kind == "none":
        return None
    size = max(1, 256 // min(frames[0].shape[:2]))
    images = [Image.fromarray(frame.repeat(size, 0).repeat(size, 1)) for frame in frames]
    if kind == "gif":
        target = path.with_name(path.name + ".gif")
        durations = [FRAME] * (len(images) - 1) + [12 * FRAME]
        held = io.BytesIO()
        images[0].save(held, "GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
        return write_bytes(target, held.getvalue())
    target, beside = path.with_name(path.name + ".mp4"), path.with_name(f".{path.name}.part.mp4")
    height, width = (side // 2 * 2 for side in (images[0].height, images[0].width))
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}",
               "-r", str(round(1000 / FRAME)), "-i", "-", "-pix_fmt", "yuv420p", str(beside)]
    content = b"".join(image.crop((0, 0, width, height)).tobytes() for image in images + images[-1:] * 11)
    done = subprocess.run(command, input=content, capture_output=True, check=False)
    if done.returncode:
        beside.unlink(missing_ok=True)
        said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise ValueError(f"{shown(target)} cannot be written by ffmpeg: {shown(said)}")
    return beside.replace(target)
