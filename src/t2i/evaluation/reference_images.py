"""What pictures are measured against: the captions to draw and the real pictures of a data set's validation split.

Statistics of real pictures are kept under `paths.cache`/statistics, by a hash of all that decides about them: the
listing, the crop, the size and the feature network with its weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from t2i.checkpoint import atomic
from t2i.config.messages import shown
from t2i.data.datasets import data_settings, dataset
from t2i.data.image_dataset import ImageDataset
from t2i.data.scenes import render
from t2i.data.seeds import derive_seed
from t2i.evaluation.generated_images import BATCH
from t2i.evaluation.protocols import SHAPES, Protocol
from t2i.metrics.features import FeatureNet
from t2i.metrics.statistics import Statistics
from t2i.viz.grids import save as save_picture
from t2i.viz.grids import write_bytes
from t2i.viz.progress import counter

LOAD = 304  # DF-GAN's short side before the crop to 256


def lanczos(picture: np.ndarray, side: int) -> np.ndarray:
    """uint8 (h, w, 3) to (side, side, 3): a square about the centre, to_float by PIL's Lanczos filter."""
    image = Image.fromarray(picture)
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def augmented(picture: np.ndarray, side: int, chance: int) -> np.ndarray:
    """uint8 (h, w, 3) to (side, side, 3), as DF-GAN loads pictures in evaluation too: short side 304 for 256, bilinear,
    a crop and a mirroring by chance, here of `chance`."""
    image = Image.fromarray(picture)
    scale = LOAD * side / 256 / min(image.size)
    size = max(side, round(image.width * scale)), max(side, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = chance % (size[0] - side + 1), (chance >> 20) % (size[1] - side + 1)
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(ImageOps.mirror(image) if (chance >> 40) % 2 else image)


class Reference:
    """Captions and real pictures of a protocol.

    Args:
        config: with the data set's node, `paths` and `seed`, as of a run.
        size: side of the real pictures.
        seed: of what chance decides: which captions, which pictures, DF-GAN's crops.
    """

    def __init__(self, config: dict[str, Any], protocol: Protocol, size: int, seed: int) -> None:
        self.protocol, self.size, self.seed, self.cache = protocol, size, seed, Path(config["paths"]["cache"])
        node = {**config["data"], "image_size": size}
        self.scenes = node["_target_"] == SHAPES
        if self.scenes:
            if protocol.n is None:
                raise ValueError("n=null with data=shapes, which has no end: give a number")
            node["val_size"] = 2 * protocol.n
        if "load_size" in node:
            node["load_size"] = None
        if protocol.crop != "data" and "pack" in node:
            node["pack"] = False  # the files themselves are cut and to_float
        self.config = {**config, "data": node}
        self.data = dataset(self.config, "val")
        self.picked = self._picked()

    def _picked(self) -> list[tuple[int, int]]:
        """Picture and caption of each that is to be drawn, (index, number of the caption)."""
        if self.scenes:
            return [(i, 0) for i in range(self.protocol.n or 0)]
        counts = [len(self.data.captions(i)) for i in range(len(self.data))]
        if not sum(counts):
            raise ValueError(f"{self.config['data'].get('root')} has no captions to draw pictures for")
        if self.protocol.captions == "all":
            every = [(i, k) for i, count in enumerate(counts) for k in range(count)]
            return every if self.protocol.n is None else every[: self.protocol.n]
        rounds = max(counts) if self.protocol.captions == "rounds" else 1
        found: list[tuple[int, int]] = []
        for k in range(rounds):
            every = [(i, (derive_seed(self.seed, "caption", i) + k) % count)
                     for i, count in enumerate(counts) if k < count]
            left = None if self.protocol.n is None else self.protocol.n - len(found)
            if left is not None and left < len(every):
                every = sorted(sorted(every, key=lambda pair: derive_seed(self.seed, "pick", pair[0]))[:left])
            found += every
        return found

    def shortfalls(self) -> list[str]:
        """What the data have less, or other, than a named protocol says."""
        name, n = self.protocol.name, len(self.picked)
        found = [f"n={n} instead of {self.protocol.n}: the data have no more"] if name and n < (self.protocol.n or 0) \
            else []
        year = getattr(self.data, "year", None)
        return found + ([f"COCO of {year} instead of 2014"] if name == "coco30k" and year != 2014 else [])

    @property
    def text(self) -> list[str]:
        return [self.data.captions(i)[k] for i, k in self.picked]

    @property
    def numbers(self) -> range:
        """Of the real pictures."""
        return range(len(self.picked), 2 * len(self.picked)) if self.scenes else range(len(self.data))

    def picture(self, index: int) -> np.ndarray:
        """uint8 (size, size, 3)."""
        if self.scenes:
            return render(self.data.scene(index), self.size)
        if self.protocol.crop == "data":
            return self.data[index, 0].image.permute(1, 2, 0).numpy()
        whole = self.data.pixels(self.data.rows[index]).permute(1, 2, 0).numpy()
        if self.protocol.crop == "lanczos":
            return lanczos(whole, self.size)
        return augmented(whole, self.size, derive_seed(self.seed, "augment", index))

    def batches(self, numbers: Sequence[int] | None = None, label: str = "real pictures"
                ) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers (b,) and pictures uint8 (b, h, w, 3) a batch; None takes all real pictures."""
        wanted = self.numbers if numbers is None else numbers
        with counter(label, len(wanted)) as progress:
            for start in range(0, len(wanted), BATCH):
                some = list(wanted[start : start + BATCH])
                yield torch.tensor(some), torch.from_numpy(np.stack([self.picture(i) for i in some]))
                progress(start + len(some))

    @cached_property
    def described(self) -> dict[str, Any]:
        """What decides about the real pictures."""
        shown = data_settings(self.config, self.data) if isinstance(self.data, ImageDataset) else {
            key: value for key, value in self.config["data"].items() if key not in ("batch_size", "workers")}
        return {"data": shown, "crop": self.protocol.crop, "size": self.size, "n": len(self.numbers),
                "first": self.numbers.start, **({"seed": self.seed} if self.protocol.crop == "augmented" else {})}

    def hash(self) -> str:
        return f"{derive_seed(json.dumps(self.described, sort_keys=True, default=str)):016x}"

    def statistics(self, net: FeatureNet, keep: bool) -> Statistics:
        """Of the real pictures' features; from the cache where they were computed before."""
        held = {"reference": self.described, "net": net.protocol, "keep": keep}
        code = derive_seed(json.dumps(held, sort_keys=True, default=str))
        path = self.cache / "statistics" / f"{code:016x}.safetensors"
        if path.is_file():
            try:
                return Statistics.from_state(load_file(path))
            except (SafetensorError, KeyError, RuntimeError) as error:
                print(f"{shown(path)} is damaged ({shown(error)}): made anew", file=sys.stderr)
        found = Statistics(net.dim, keep)
        for numbers, pictures in self.batches(label=f"real pictures, {net.name}"):
            found.update(net(pictures), numbers)
        try:
            write_bytes(path, save({key: value.contiguous() for key, value in found.state().items()}))
        except OSError as error:  # they are of use without being kept
            print(f"{error.strerror}: the statistics of the real pictures are not kept (paths.cache=… elsewhere)",
                  file=sys.stderr)
        return found


def export(folder: Path, total: int, pairs: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes captions with their true pictures for other programs to draw from and to be held against:
    `metadata.jsonl`, `captions.txt` and a PNG each."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"export={folder} is there already, and not empty")
    lines, texts = [], []
    with counter("exporting", total) as progress:
        for i, (text, pixels) in enumerate(pairs):
            name = f"{i:06}.png"
            save_picture(Image.fromarray(pixels), folder / name)
            lines.append(json.dumps({"file_name": name, "text": text}, ensure_ascii=False))
            texts.append(text)
            progress(i + 1)
    atomic.write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    atomic.write_text(folder / "captions.txt", "\n".join(texts) + "\n")
    print(f"Written: {len(lines)} pictures with captions to {folder} (captions.txt: one a line, in the same order)")
