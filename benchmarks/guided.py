"""An iteration of guided drawing: decode, views, CLIP, backward; against the views one by one.

`python benchmarks/run.py guided`. A random VQGAN of factor 8 and a random CLIP of ViT-B/32's shape. Ours is
`t2i.generation.clip_guided.optimization.Optimization.update`: the picture is decoded once, all cutouts are made by one
resampling and encoded in one batch, in float32 and, where the processor multiplies in it, in bf16.

The naive form, in float32, decodes the picture once too, but then makes a view, encodes it and takes its loss in a
Python loop, one view a turn, and goes back once from the mean of all losses. Texts are embedded beforehand, frozen
weights keep no gradient, optimiser and loss are the same in both: what differs is the loop (and bf16). On views without
chance both make the same step (`tests/test_benchmarks.py`).

Peak memory, with all views at once and in micro-batches, is taken in a process of its own each.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # the child that measures memory
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch

from t2i.generation.clip_guided.clip_models.clip import TransformersCLIP
from t2i.generation.clip_guided.cutouts import Cutouts
from t2i.generation.clip_guided.image_parameters import LatentParameters
from t2i.generation.clip_guided.optimization import Optimization, embed_targets
from t2i.generation.clip_guided.prompts import prompt_targets
from t2i.losses.guidance import guidance
from t2i.models.clip import CLIP
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.tokenizer import ImageTokenizer
from t2i.quantizers.vq import VQ

TEXT = "a red circle above a blue square"
PARTS = ("decode", "views", "CLIP")
MICRO = 4


class Timed:
    """Something callable, and the seconds that its calls took."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call, self.seconds = call, 0.0

    def __call__(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        found = self.call(*arguments)
        self.seconds += time.perf_counter() - start
        return found


class Drawing:
    """One drawing and two ways to make its next iteration.

    Args:
        mixed: decoder and CLIP in bf16, else float32.
    """

    def __init__(self, quick: bool, mixed: bool = False, micro_batch: int | None = None) -> None:
        torch.manual_seed(0)
        self.size, self.count, self.seen = (16, 5, 16) if quick else (128, 32, 224)
        levels = (1, 1) if quick else (1, 2, 2, 4)
        autoencoder = Autoencoder(channels=8 if quick else 64, multipliers=levels, num_res_blocks=1,
                                  attention_levels=(), z_channels=8 if quick else 64, num_groups=8)
        tokenizer = ImageTokenizer(autoencoder, VQ(64 if quick else 1024, 8 if quick else 64), self.size).eval()
        sizes = {"patch_size": 8, "width": 16, "num_layers": 1, "num_heads": 2} if quick else {
            "patch_size": 32, "width": 768, "num_layers": 12, "num_heads": 12, "embed_dim": 512}
        clip = CLIP(self.seen, text_width=16, text_layers=1, text_heads=2, vocab_size=300, **sizes)
        clip.prepare([TEXT])
        with tempfile.TemporaryDirectory() as folder:
            clip.export(folder)
            self.clip_model = TransformersCLIP(folder, "bf16-mixed" if mixed else "32-true")
        generator = torch.Generator().manual_seed(0)
        canvas = LatentParameters(tokenizer, self.size, self.size, "straight_through", generator=generator)
        views = Cutouts(self.seen, self.count, "cutouts")
        asks = embed_targets(self.clip_model, prompt_targets(TEXT), lambda path, size: torch.empty(0))
        self.drawing = Optimization(canvas, [self.clip_model], [asks], [views], self.count, micro_batch, bf16=mixed,
                                    generator=generator)
        self.timed: dict[str, Timed] = {}
        self.rounds: list[dict[str, float]] = []

    def ours(self) -> None:
        self.drawing.update()

    def split(self) -> None:
        """The same with a clock at each part."""
        drawing = self.drawing
        whole = drawing.canvas, drawing.clip_models, drawing.cutouts
        decode, views = Timed(drawing.canvas.forward), Timed(drawing.cutouts[0])
        drawing.canvas.forward = decode  # type: ignore[method-assign]
        embed = Timed(self.clip_model.embed_image)
        self.clip_model.embed_image = embed  # type: ignore[method-assign]
        drawing.cutouts = [views]
        start = time.perf_counter()
        try:
            drawing.update()
        finally:
            del drawing.canvas.forward, self.clip_model.embed_image
            drawing.canvas, drawing.clip_models, drawing.cutouts = whole
        found = dict(zip(PARTS, (decode.seconds, views.seconds, embed.seconds), strict=True))
        self.rounds.append({**found, "backward": time.perf_counter() - start - sum(found.values())})

    def naive(self) -> None:
        drawing, asks = self.drawing, self.drawing.targets[0]
        drawing.optimizer.zero_grad(set_to_none=True)
        image = drawing.canvas()
        losses = []
        for _ in range(self.count):
            seen = self.clip_model.embed_image(drawing.cutouts[0](image, drawing.generator, 1))
            losses.append(guidance(seen, asks.targets, asks.weights, asks.excluded, asks.excluded_weights, asks.stops,
                                   drawing.text_weight, drawing.negative_weight, drawing.distance))
        torch.stack(losses).mean().backward()
        drawing.optimizer.step()
        drawing.canvas.after_step()

    def parts(self) -> str:
        """Of the fastest round, in seconds. Backward is all the rest: the loss and the optimiser take next to nothing.
        """
        best = min(self.rounds[1:] or self.rounds, key=lambda found: sum(found.values()))
        return ", ".join(f"{name} {seconds:.3f}" for name, seconds in best.items())


def resident(key: str) -> float:
    """MB of this process's memory: VmRSS now, VmHWM at most since it was reset. Of Linux alone; 0 elsewhere."""
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return sum(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak(quick: bool, micro_batch: int | None) -> float:
    """MB by which an iteration's peak is above what the process has with both nets loaded."""
    drawing = Drawing(quick, micro_batch=micro_batch)
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # the export's copies
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = resident("VmRSS")
    drawing.ours()
    return resident("VmHWM") - before


def peak_apart(micro_batch: int | None) -> float:
    words = [sys.executable, __file__, str(micro_batch or 0), str(torch.get_num_threads())]
    child = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=True)
    return float(json.loads(child.stdout.splitlines()[-1]))


def run(
    quick: bool, turns: Callable[..., list[float]], mixed: bool
) -> Iterator[tuple[str, str, str, str, float | None]]:
    """Rows for `benchmarks/run.py`."""
    kinds = {"fp32": Drawing(quick)} | ({"bf16": Drawing(quick, mixed=True)} if mixed else {})
    plain = kinds["fp32"]
    runs = [run for kind in kinds.values() for run in (kind.ours, kind.split)]
    *seconds, naive = turns(1 if quick else 3, *runs, plain.naive)
    setting = f"{plain.size} px latents, {plain.count} views of {plain.seen} px"
    for i, (name, kind) in enumerate(kinds.items()):
        yield (f"guided: iteration, {name}", setting, f"{seconds[2 * i]:.3f} s ({kind.parts()})",
               f"views one by one, fp32: {naive:.3f} s", naive / seconds[2 * i])
    parts = Drawing(quick, micro_batch=MICRO)
    slow, whole = turns(1, parts.ours, plain.ours)
    most, least = [peak(quick, n) if quick else peak_apart(n) for n in (None, MICRO)]
    yield (f"guided: micro_batch={MICRO}, memory", setting + ", fp32", f"{least:,.0f} MB, {slow:.3f} s",
           f"all at once: {most:,.0f} MB, {whole:.3f} s", most / least if least > 0 else 0.0)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    print(json.dumps(peak(False, int(sys.argv[1]) or None)))
