"""How fast pictures come: decoding, the packed cache, and how long a prior waits for its codes. See `run.py`."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from t2i.data import code_cache, packed
from t2i.data.data_module import DataModule
from t2i.data.decode import decode_image
from t2i.data.folder import Folder
from t2i.data.huggingface import HuggingFace
from t2i.data.rows import JsonLines
from t2i.data.seeds import derive_seed


def photographs(folder: Path, count: int, size: tuple[int, int] = (640, 480)) -> None:
    """JPEGs as large as COCO's, of smooth noise, where there are no real ones."""
    for i in range(count):
        rng = np.random.default_rng(i)
        parts = [Image.fromarray(rng.integers(0, 256, (size[1] // s, size[0] // s, 3), np.uint8)) for s in (40, 8, 2)]
        grown = [np.asarray(part.resize(size, Image.Resampling.BICUBIC), np.float32) for part in parts]
        mixed = 0.6 * grown[0] + 0.3 * grown[1] + 0.1 * grown[2]
        Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).save(folder / f"{i:04}.jpg", quality=92)


def plain(data: bytes, side: int) -> torch.Tensor:
    """The best decode and resize there is in torchvision, and nothing else."""
    from torchvision.io import ImageReadMode
    from torchvision.io import decode_image as decode

    image = decode(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)
    height, width = image.shape[1:]
    scale = side / min(height, width)
    size = max(side, round(height * scale)), max(side, round(width * scale))
    return F.interpolate(image[None], size=size, mode="bicubic", antialias=True)[0]


def parquet(path: Path, pictures: list[bytes]) -> Path:
    """A table of pictures and captions as people publish them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": [{"bytes": data} for data in pictures],
                             "text": [f"picture {i}" for i in range(len(pictures))]}), path)
    return path


def waiting(folder: Path, quick: bool, step: Callable[[Any], object], count: int) -> tuple[float, float]:
    """Seconds in all and seconds spent on waiting for the batch, of training steps fed from a code cache."""
    size = 128 if quick else 20000
    rows = JsonLines.of({"key": f"{i}", "captions": [f"caption {k} of {i}" for k in range(5)]} for i in range(size))
    head = {"views": 2}
    part = folder / "codes"
    part.mkdir()
    np.save(part / "codes.npy", np.random.default_rng(0).integers(0, 1024, (size, 2, count), np.uint16))
    rows.save(part / "rows.jsonl")
    (part / "header.json").write_text('{"views": 2}')
    held = code_cache.CodeDataset(code_cache.CodeCache(part, head), lambda *what: derive_seed(0, *what))
    loader = DataModule(held, held, 32, collate=code_cache.collate).train_dataloader()
    every = iter(loader)
    for _ in range(2):
        step(next(every))
    started, waited = time.perf_counter(), 0.0
    for _ in range(1 if quick else 10):
        before = time.perf_counter()
        batch = next(every)
        waited += time.perf_counter() - before
        step(batch)
    return time.perf_counter() - started, waited


def run(quick: bool, turns: Callable[..., list[float]], step: Callable[[Any], object], num_codes: int,
        pictures: str | None) -> list[tuple[str, str, str, str, float]]:
    """(part, setting, measured, against, ratio); `step` trains a prior on a batch of codes."""
    side, count = (32, 6) if quick else (256, 80)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if pictures is None:
            (folder / "pictures").mkdir()
            photographs(folder / "pictures", count, (96, 64) if quick else (640, 480))
        source = Path(pictures) if pictures else folder / "pictures"
        files = sorted(source.glob("*.jpg"))[:count]
        held = [path.read_bytes() for path in files]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        ours, best = turns(2 if quick else 5, lambda: [decode_image(data, "x", side, False) for data in held],
                           lambda: [plain(data, side) for data in held])
        what = f"{len(held)} {'photographs' if pictures else 'synthetic JPEGs'} to {side} px, 1 thread"
        found.append(("data: decoding", what, f"{len(held) / ours:.0f} images/s",
                      f"torchvision alone: {len(held) / best:.0f} images/s", best / ours))
        raw = Folder("train", str(source), image_size=side)
        kept = Folder("train", str(source), image_size=side, flip=True)
        packed.attach(kept, folder / "cache")
        slow, fast = turns(2 if quick else 5, lambda: [raw[i, 0] for i in range(len(raw))],
                           lambda: [kept[i, k] for i in range(len(kept)) for k in range(4)])
        rates = len(raw) / slow, 4 * len(kept) / fast
        found.append(("data: packed", what, f"{rates[1]:.0f} images/s", f"decoded: {rates[0]:.0f} images/s",
                      rates[1] / rates[0]))
        table = HuggingFace("train", str(parquet(folder / "all.parquet", held)), image_size=side, flip=True,
                            cache=folder / "cache")
        packed.attach(table, folder / "cache")
        theirs, fast = turns(2 if quick else 5, lambda: [table[i, k] for i in range(len(table)) for k in range(4)],
                             lambda: [kept[i, k] for i in range(len(kept)) for k in range(4)])
        rates = 4 * len(table) / theirs, 4 * len(kept) / fast
        found.append(("data: huggingface", f"{what}, after the first epoch", f"{rates[0]:.0f} images/s",
                      f"packed cache of data=folder: {rates[1]:.0f} images/s", rates[0] / rates[1]))
        torch.set_num_threads(threads)
        total, waited = waiting(folder, quick, step, num_codes)
    what = f"steps of a prior 6 x 256, {num_codes} codes, batch 32"
    found.append(("data: waiting", what, f"{1000 * waited:.1f} ms for 10 batches", f"in all {total:.2f} s",
                  waited / total))
    return found
