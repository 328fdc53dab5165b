"""The ruler of a comparison: captions, real pictures and a judge, and what is measured of one model by them.

`composition` is that of `evaluation.py`. `fd_clip` (`metrics/fd_clip.py`) sets drawings for the first captions of n
validation scenes against the renders of n other scenes of that split; its floor is the distance of the first n scenes'
own renders from those others: what a perfect model would get.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.data.datasets import dataset
from t2i.data.scenes import render
from t2i.data.seeds import derive_seed
from t2i.evaluation.composition import as_bytes, composition, world_of
from t2i.evaluation.generated_images import BATCH
from t2i.metrics.clip_score import CLIPScorer
from t2i.metrics.composition import READER
from t2i.metrics.fd_clip import FEATURES, fd_clip, moments
from t2i.metrics.frechet import Moments, frechet_distance
from t2i.viz.progress import counter

TIMED = 3


class Ruler:
    """What all models are held against: captions, real pictures, a judge. Nothing is drawn before it is needed.

    Args:
        config: of a run on data=shapes; its validation split, made as long as needed, gives captions and pictures.
        n, n_per_task: pictures for fd_clip and, a task, for the composition score.
    """

    def __init__(self, config: dict[str, Any], judge: CLIPScorer, n: int, n_per_task: int, seed: int) -> None:
        self.judge, self.n, self.n_per_task, self.seed = judge, n, n_per_task, seed
        self.scenes = dataset({**config, "data": {**config["data"], "val_size": 2 * n}}, "val")
        self.world = world_of(config["data"])
        self.settings = {"n_per_task": n_per_task, "fd_pictures": n, "seed": seed, "judge": judge.id, "reader": READER,
                         "features": FEATURES, "data": {k: v for k, v in config["data"].items() if k != "workers"}}

    def renders(self, start: int) -> Iterator[np.ndarray]:
        with counter("real pictures", self.n) as progress:
            for i in range(0, self.n, BATCH):
                some = range(start + i, start + min(i + BATCH, self.n))
                yield np.stack([render(self.scenes.scene(k), self.scenes.image_size) for k in some])
                progress(i + len(some))

    @cached_property
    def real(self) -> Moments:
        return moments(self.judge, self.renders(self.n))

    @cached_property
    def text(self) -> list[str]:
        return [self.scenes.captions(i)[0].text for i in range(self.n)]

    def floor(self) -> float:
        return frechet_distance(moments(self.judge, self.renders(0)), self.real)


def drawn(model: Any, text: Sequence[str], seed: int, options: dict[str, Any], label: str) -> Iterator[Tensor]:
    """uint8 (b, h, w, 3) a batch; picture i has the seed f(seed, "comparison", i)."""
    with counter(label, len(text)) as progress:
        for start in range(0, len(text), BATCH):
            part = list(text[start : start + BATCH])
            with torch.no_grad():
                seeds = [derive_seed(seed, "comparison", start + i) for i in range(len(part))]
                yield as_bytes(model.sample(part, seeds=seeds, **options))
            progress(start + len(part))


def speed(model: Any, text: Sequence[str], options: dict[str, Any]) -> float:
    """Pictures a second in batches of 64, warmed up, median of three."""
    some = [text[i % len(text)] for i in range(BATCH)]
    seconds = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        with torch.no_grad():
            as_bytes(model.sample(some, seeds=list(range(BATCH)), **options))  # on the CPU: nothing is still under way
        seconds.append(time.perf_counter() - started)
    return BATCH / median(seconds[1:])


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, torch threads {torch.get_num_threads()}"


def score(label: str, model: Any, ruler: Ruler, options: dict[str, Any]) -> dict[str, Any]:
    """All that is measured of one model."""
    with counter(f"{label}: composition", 0) as progress:
        found = composition(model, ruler.n_per_task, ruler.seed, options, ruler.world, progress)
    for kinds in found.values():
        del kinds["examples"]
    text = ruler.text
    distance = fd_clip(ruler.judge, drawn(model, text, ruler.seed, options, f"{label}: fd_clip"), ruler.real)
    device = next(model.parameters()).device
    return {"composition": found, "fd_clip": distance, "images_per_second": speed(model, text, options),
            "parameters": model.drawing_parameters(), "image_size": model.image_size, "hardware": hardware(device)}
