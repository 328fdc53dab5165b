"""The training pictures that drawn ones are most like: whether a model drew, or remembered.

Likeness is the root mean square difference of 16 x 16 thumbnails in grey levels (0 to 255), a picture's mirror counted
too. It finds copies and near copies; that two pictures show the same thing it does not know.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from t2i.checkpoint import file_format
from t2i.data.datasets import check_data_node, dataset
from t2i.viz import grids
from t2i.viz.progress import counter

THUMB = 16
CHUNK = 256


def thumbnails(images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
    return F.interpolate(images.float(), (THUMB, THUMB), mode="area").flatten(1)


def nearest(
    drawn: np.ndarray, dataset: Any, progress: Any = None, limit: int | None = None
) -> tuple[np.ndarray, list[str], list[float]]:
    """For each of `drawn` (n, h, w, 3) uint8 the training picture most like it: pictures, captions, differences.

    Of the first `limit` training pictures; None: of all.
    """
    images = torch.from_numpy(np.ascontiguousarray(drawn)).permute(0, 3, 1, 2)
    wanted = thumbnails(images)
    best = torch.full((len(drawn),), torch.inf)
    which = torch.zeros(len(drawn), dtype=torch.long)
    total = len(dataset) if limit is None else min(limit, len(dataset))
    for start in range(0, total, CHUNK):
        stop = min(start + CHUNK, total)
        chunk = torch.stack([dataset[i, 0].image for i in range(start, stop)])
        both = torch.stack([torch.cdist(wanted, thumbnails(view)) for view in (chunk, chunk.flip(3))]).amin(0)
        value, index = both.min(1)
        better = value < best
        best, which = torch.where(better, value, best), torch.where(better, index + start, which)
        if progress is not None:
            progress(stop, total)
    found = [dataset[int(i), 0] for i in which]
    pixels = torch.stack([e.image for e in found]).permute(0, 2, 3, 1).numpy()
    captions = [e.captions[0] if e.captions else e.key for e in found]
    return pixels, captions, (best / wanted.shape[1] ** 0.5).tolist()


def training_data(cfg: dict[str, Any]) -> Any:
    """What the checkpoint was trained on; None where nobody asks for `nearest`."""
    if not cfg["nearest"]:
        return None
    if cfg["ckpt"] is None:
        raise ValueError("nearest=true needs ckpt=, which says what was trained on")
    try:
        held = file_format.read(cfg["ckpt"])["t2i"]["config"]
        if "data" not in held:
            raise ValueError(f"{cfg['ckpt']} does not say which")
        config = {"data": held["data"], "paths": cfg["paths"]}
        check_data_node(held["data"], cfg["ckpt"])
        return dataset(config, "train")
    except ValueError as error:
        raise ValueError(f"nearest=true needs the pictures that the checkpoint was trained on: {error}") from error


def beside(data: Any, out: Path, drawn: np.ndarray, entries: list[dict[str, Any]]) -> None:
    """`nearest.png`: under each drawn picture the one of the training data that is most like it."""
    with counter("nearest training pictures", len(data)) as progress:
        found, captions, away = nearest(drawn, data, progress)
    texts = [f"trained on ({far:.0f} away): {text}" for text, far in zip(captions, away, strict=True)]
    pages = []
    for start in range(0, len(drawn), 8):
        pair = slice(start, start + 8)
        mixed = np.concatenate([drawn[pair], found[pair]])
        under = [entry["prompt"] or "(no caption)" for entry in entries[pair]] + texts[pair]
        pages.append(grids.grid(mixed, under, len(drawn[pair])))
    width = max(page.width for page in pages)
    sheet = Image.new("RGB", (width, sum(page.height for page in pages)), "white")
    top = 0
    for page in pages:
        sheet.paste(page, (0, top))
        top += page.height
    print(grids.save(sheet, out / "nearest.png"))
