"""`python -m t2i reconstruct FILE PICTURE… OUT.png`: what a tokenizer, ours or another's, keeps of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from t2i.convert.tokenizers import load_tokenizer
from t2i.data.decode import decode_image
from t2i.metrics.reconstruction import psnr
from t2i.viz import grids


@torch.inference_mode()
def reconstruct(path: str | Path, sources: Sequence[str | Path], out: str | Path, image_size: int | None = None) -> str:
    """Writes a PNG with the pictures, cut to squares of the tokenizer's size, above what their codes give; returns a
    line a picture. ValueError for files that are no tokenizer or no picture."""
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"{out}: a name that ends with .png is wanted, for what is written")
    tokenizer = load_tokenizer(path, image_size)
    found, lines = [], []
    for source in sources:
        try:
            data = Path(source).read_bytes()
        except OSError as error:
            raise ValueError(f"{source} cannot be read: {error.strerror}") from error
        image = decode_image(data, source, tokenizer.image_size)[None].float() / 127.5 - 1
        ids = tokenizer.encode(image)
        back = tokenizer.decode_ids(ids)
        found.append((image, back))
        lines.append(f"{source}: {float(psnr(back, image)):.2f} dB PSNR, {len(ids.unique())} different codes of"
                     f" {ids.shape[1]}")
    each = [torch.cat(images) for images in zip(*found, strict=True)]
    names = [Path(source).name for source in sources]
    grids.save(grids.rows([("input", each[0]), ("reconstruction", each[1])], names), out)
    return "\n".join([*lines, str(out)])
