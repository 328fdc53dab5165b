"""What a GPU is there for, in one command of at most nine minutes: Markdown on the screen, the same as JSON in a file.

    python benchmarks/gpu.py [--json gpu.json] [PART …]        of: decoding prior compile vqgan quickstart quantizer
                                                               amp_vqgan amp_prior amp_dfgan trace fp16
    python benchmarks/gpu.py --device cpu --tiny         shows that all of it runs; its figures mean nothing

`decoding`: 256 codes, eagerly and as a CUDA graph, against a net and loop like LlamaGen's.
`prior`: training steps of 306 M, their share of a matrix product's rate, memory, and the same with a mask of places x
places; `compile`: what it gains there.
`vqgan`: the step of 256 pixels through Lightning, against a step like taming-transformers'; with channels last in the
discriminator, or not.
`quickstart`: images a second of its three stages.
`quantizer`: the nearest code and its memory, against taming's distance matrix.
`amp_…`: 300 steps in fp32, TF32, fp16, bf16 and compiled: images a second, memory, and the loss against fp32's.
`fp16`, only where it is named: 2,000 steps of the nets of `amp_…` in fp16; losses and weights that are not finite.
`trace`: kernels and waits of the host a step of the VQGAN, losses read in every step or in those that are logged, and a
code drawn.

On a GPU each part runs in a process of its own under a limit of its own; one that fails or runs over says so in its
row, and keeps the rows that it had. Peers are small reimplementations of the published steps, random weights, in
`gpu_peers.py` beside this file; nothing is downloaded. VGG is random in both sides of `vqgan`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from datetime import date
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from benchmarks.gpu_peers import Llama, RandomLPIPS, TamingStep, taming_argmin
from torch import Tensor

from t2i.losses.cross_entropy import cross_entropy
from t2i.models.base import set_accumulation_and_compile
from t2i.models.sampling import generate, uniforms
from t2i.models.static_decoding import StaticDecoding
from t2i.models.vqgan import VQGAN
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.gpt import GPT
from t2i.nets.patchgan import PatchGAN
from t2i.quantizers.nearest import nearest
from t2i.quantizers.vq import VQ
from t2i.types import Batch, CodeBatch

Row = dict[str, Any]  # part, setting, measured, against, ratio; and `seconds`, for machines


def row(part: str, setting: str, measured: str, against: str = "", ratio: float | None = None, **more: Any) -> Row:
    return {"part": part, "setting": setting, "measured": measured, "against": against, "ratio": ratio, **more}


class Bench:
    """Where and how large, and how seconds and bytes are taken there."""

    def __init__(self, device: str, tiny: bool) -> None:
        self.device, self.tiny, self.cuda = torch.device(device), tiny, device == "cuda"
        self.dtype = torch.bfloat16 if self.cuda else torch.float32
        self.name = "bf16" if self.cuda else "fp32"
        self.backend = "inductor" if self.cuda else "eager"  # on a CPU only that it runs is shown
        self.precisions = {"fp32": "32-true", **({"fp16": "16-mixed", "bf16": "bf16-mixed"} if self.cuda else {})}
        self.of_peer: dict[str, torch.dtype | None] = {"fp32": None, **({"fp16": torch.float16} if self.cuda else {})}
        self.picture = (32, 2, 8) if tiny else (256, 8, 128)  # side, batch and channels of `vqgan`
        self.vectors = (64, 32) if tiny else (16384, 16384)  # and codes, of `quantizer`

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def of(self, taken: list[float]) -> float:
        """One figure of several rounds: the median."""
        return sorted(taken)[len(taken) // 2]

    def seconds(self, run: Callable[[], object], rounds: int = 5, warm_up: int = 2) -> float:
        taken = []
        for i in range((1 if self.tiny else rounds) + warm_up):
            start = self.now()
            run()
            if i >= warm_up:
                taken.append(self.now() - start)
        return self.of(taken)

    def peak(self, run: Callable[[], object]) -> float | None:
        """MB at most allocated meanwhile; None without a GPU."""
        if not self.cuda:
            run()
            return None
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() / 1e6

    def autocast(self, dtype: torch.dtype = torch.bfloat16) -> Any:
        return torch.autocast("cuda", dtype) if self.cuda else nullcontext()

    def flops(self) -> float:
        """Operations a second of a big matrix product."""
        n = 8192 if self.cuda else 256
        a = torch.randn(n, n, device=self.device, dtype=self.dtype)
        return 2 * n**3 / self.seconds(lambda: a @ a, 10)


def megabytes(value: float | None) -> str:
    return "" if value is None else f", {value:,.0f} MB"


def decoding(bench: Bench) -> Iterator[Row]:
    side, text_length = (3, 6) if bench.tiny else (16, 120)
    wide, small, large = ((32, 2, 2),) * 3 if bench.tiny else ((768, 12, 12), (768, 12, 12), (1024, 24, 16))
    codes, top_k = (32, 5) if bench.tiny else (1024, 100)
    for batch, (width, layers, heads) in ((4, wide), (64, small), (1, large)):
        batch = min(batch, 2) if bench.tiny else batch
        torch.manual_seed(0)
        gpt = GPT((codes,), (side, side), 512, text_length, width, layers, heads).to(bench.device, bench.dtype).eval()
        text = (torch.randn(batch, text_length, 512, device=bench.device, dtype=bench.dtype),
                torch.ones(batch, text_length, dtype=torch.bool, device=bench.device))
        uniform = uniforms(range(batch), gpt.num_codes).to(bench.device)
        guidance = 2.0

        def draw(static: StaticDecoding | None) -> Tensor:
            return generate(gpt, *text, uniform, top_k=top_k, guidance=guidance, static=static)

        static = StaticDecoding(capture=bench.cuda)
        start = bench.now()
        draw(static)
        first = bench.now() - start
        steady = bench.seconds(lambda: draw(static), 3, 1)
        if bench.cuda and not any(decoder.graph is not None for decoder in static.decoders.values()):
            raise RuntimeError("no CUDA graph was recorded; the warning above says why")
        eager = bench.seconds(lambda: draw(None), 1, 1)
        same = float((draw(static) == draw(None)).float().mean())
        setting = (f"{gpt.num_codes} codes, {layers} x {width}, prefix {text_length}, batch {batch}, guided,"
                   f" {bench.name}")
        yield row("decoding: static", setting, f"{steady:.3f} s, the first {first:.2f} s", f"eager: {eager:.3f} s",
                  eager / steady, seconds=steady, first_seconds=first, same_codes=same)
        peer = Llama(codes, gpt.num_codes, text_length, width, layers, heads).to(bench.device, bench.dtype).eval()
        prefix = torch.randn(2 * batch, text_length, width, device=bench.device, dtype=bench.dtype)
        peer.set_up(prefix)
        loop = bench.seconds(lambda: peer.draw(prefix, top_k, guidance), 1, 1)
        yield row("decoding: static", setting, f"{steady:.3f} s", f"like LlamaGen, eager: {loop:.3f} s", loop / steady)
        peer.compile_step("reduce-overhead" if bench.cuda else None, bench.backend)
        loop = bench.seconds(lambda: peer.draw(prefix, top_k, guidance), 3, 2)
        yield row("decoding: static", setting, f"{steady:.3f} s", f"like LlamaGen, compiled: {loop:.3f} s",
                  loop / steady)
        if batch == 1:
            weights = sum(p.numel() * p.element_size() for p in gpt.blocks.parameters())
            yield row("decoding: weights read", setting, f"{weights * gpt.num_codes / steady / 1e9:,.0f} GB/s")


class PriorStep:
    """A training step of the 306 M prior, 77 + 256 positions, AdamW, under autocast."""

    def __init__(self, bench: Bench) -> None:
        torch.manual_seed(0)
        self.bench = bench
        self.batch, text, side, shape = (2, 5, 3, (32, 2, 2)) if bench.tiny else (64, 77, 16, (1024, 24, 16))
        self.gpt = GPT((1024,), (side, side), 512, text, *shape).to(bench.device)
        self.optimizer = torch.optim.AdamW(self.gpt.parameters(), 3e-4, fused=True)
        self.ids = torch.randint(0, 1024, (self.batch, side * side), device=bench.device)
        self.text = (torch.randn(self.batch, text, 512, device=bench.device),
                     torch.ones(self.batch, text, dtype=torch.bool, device=bench.device),
                     torch.zeros(self.batch, dtype=torch.bool, device=bench.device))
        self.positions = text + side * side
        matrices = sum(p.numel() for block in self.gpt.blocks for p in block.parameters() if p.ndim == 2)
        self.work = (6 * self.batch * self.positions * matrices
                     + 12 * shape[1] * shape[0] * self.batch * self.positions**2)
        count = sum(p.numel() for p in self.gpt.parameters()) / 1e6
        self.setting = f"{count:.0f} M, batch {self.batch}, {self.positions} positions, {bench.name}"

    def nets(self) -> list[Any]:
        return list(self.gpt.blocks)

    def __call__(self) -> None:
        with self.bench.autocast():
            (logits,) = self.gpt(self.ids, *self.text)
        loss = cross_entropy(logits.flatten(0, 1), self.ids.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def prior(bench: Bench) -> Iterator[Row]:
    step, peak = PriorStep(bench), bench.flops()
    step.gpt.dense_mask = True
    dense, dense_memory = bench.seconds(step), bench.peak(step)
    step.gpt.dense_mask = False
    seconds, memory = bench.seconds(step), bench.peak(step)
    yield row("prior: without a mask", step.setting, f"{step.batch / seconds:,.0f} images/s{megabytes(memory)}",
              f"with one: {step.batch / dense:,.0f} images/s{megabytes(dense_memory)}", dense / seconds)
    yield row("prior: training step", step.setting,
              f"{step.batch / seconds:,.0f} images/s, {step.work / seconds / 1e12:.3g} TFLOP/s{megabytes(memory)}",
              f"matrix product: {peak / 1e12:.3g} TFLOP/s", step.work / seconds / peak, seconds=seconds, mb=memory)


def compile(bench: Bench) -> Iterator[Row]:
    step = PriorStep(bench)
    eager = bench.seconds(step)
    set_accumulation_and_compile(step, 1, bench.backend, step.batch)
    start = bench.now()
    step()
    first = bench.now() - start
    seconds, memory = bench.seconds(step), bench.peak(step)
    yield row("prior: compiled blocks", step.setting,
              f"{step.batch / seconds:,.0f} images/s{megabytes(memory)}, the first step {first:.0f} s",
              f"eager: {step.batch / eager:,.0f} images/s", eager / seconds, seconds=seconds, mb=memory)


class Steps:
    """Training steps through Lightning: their seconds, losses, and what `torch.profiler` saw of the last few."""

    def __init__(self, bench: Bench, model: Any, data: list[Any], steps: int, precision: str, loss: str = "",
                 traced: int = 0, timed: bool = True) -> None:
        import pytorch_lightning as pl
        from torch.utils.data import DataLoader

        from t2i.config.quiet import quiet

        quiet()
        warnings.filterwarnings("ignore", ".*no `val_dataloader`")  # there is none to time
        self.bench, self.loss, self.traced, self.steps, self.timed = bench, loss, traced, steps, timed
        self.losses: list[Tensor] = []
        self.times = [bench.now()]
        watch = pl.Callback()
        watch.on_train_batch_start, watch.on_train_batch_end = self.before, self.after  # type: ignore[method-assign]
        trainer = pl.Trainer(accelerator="gpu" if bench.cuda else "cpu", devices=1, precision=precision,  # type: ignore[arg-type]
                             max_steps=steps, callbacks=[watch], logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10 * steps)
        loader: Any = DataLoader([data[i % len(data)] for i in range(steps)], batch_size=None)  # type: ignore[arg-type]
        self.memory = bench.peak(lambda: trainer.fit(model, loader))
        taken = [b - a for a, b in pairwise(self.times[-1 - steps * 2 // 3 :])]
        self.seconds = bench.of(taken) if taken else 0.0

    def before(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        if index == 0:
            self.began = self.bench.now()
        if self.traced and index == self.steps - self.traced:
            self.profiler = torch.profiler.profile()
            self.profiler.__enter__()

    def after(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if self.timed:
            self.times.append(self.bench.now())
        if self.loss:
            self.losses.append(trainer.callback_metrics[self.loss].detach())
        if index == self.steps - 1:
            self.whole = self.bench.now() - self.began
            if self.traced:
                self.profiler.__exit__(None, None, None)


def vqgan_net(bench: Bench) -> tuple[dict[str, Any], tuple[int, int]]:
    """The autoencoder of 72 M, and how many codes of how many dimensions."""
    if bench.tiny:
        return {"channels": 8, "multipliers": [1, 2], "num_res_blocks": 1, "attention_levels": [], "z_channels": 8,
                "num_groups": 4}, (64, 8)
    return {"channels": bench.picture[2], "multipliers": [1, 1, 2, 2, 4], "num_res_blocks": 2, "attention_levels": [4],
            "z_channels": 256}, (1024, 256)


def vqgan_of(bench: Bench, size: int) -> VQGAN:
    torch.manual_seed(0)
    net, codes = vqgan_net(bench)
    return VQGAN(Autoencoder(**net), VQ(*codes), size, max_steps=1000, discriminator_start=0.0,
                 discriminator=PatchGAN(channels=8 if bench.tiny else 64), perceptual=RandomLPIPS())


def vqgan(bench: Bench) -> Iterator[Row]:
    size, batch, _ = bench.picture
    image = torch.rand(batch, 3, size, size) * 2 - 1
    net, codes = vqgan_net(bench)
    data = [Batch(image, ["x"] * batch, ["x"] * batch)]
    found: dict[str, float] = {}
    for name, dtype in bench.of_peer.items():
        torch.manual_seed(0)
        step = TamingStep(Autoencoder(**net), codes, PatchGAN(channels=8 if bench.tiny else 64), RandomLPIPS(), dtype)
        step.to(bench.device)
        there = image.to(bench.device)
        found[name] = bench.seconds(lambda: step(there))
        memory = bench.peak(lambda: step(there))
        found[f"{name} MB"] = memory or 0.0
        yield row("VQGAN: like taming's step", f"{size} px, batch {batch}, {name}",
                  f"{found[name]:.3f} s{megabytes(memory)}", seconds=found[name], mb=memory)
        del step

    count = 3 if bench.tiny else 15 if bench.cuda else 6
    for name, precision in bench.precisions.items():
        steps = Steps(bench, vqgan_of(bench, size), data, count, precision)
        seconds, memory, held = steps.seconds, steps.memory, name if name in found else "fp32"
        against = f"taming's in {held}: {found[held]:.3f} s{megabytes(found[held + ' MB'] or None)}"
        yield row("VQGAN: step", f"{size} px, batch {batch}, {name}", f"{seconds:.3f} s{megabytes(memory)}", against,
                  found[held] / seconds, seconds=seconds, mb=memory)


def vqgan_and_layout(bench: Bench) -> Iterator[Row]:
    """`vqgan`, and what channels last in the discriminator gain."""
    yield from vqgan(bench)
    (name, precision), (size, batch, _) = list(bench.precisions.items())[-1], bench.picture
    data, taken = [Batch(torch.rand(batch, 3, size, size) * 2 - 1, ["x"] * batch, ["x"] * batch)], []
    for last in (False, True):
        model = vqgan_of(bench, size)
        model.channels_last = last
        taken.append(Steps(bench, model, data, 3 if bench.tiny else 15, precision).seconds)
    yield row("VQGAN: channels last in the discriminator", f"{size} px, batch {batch}, {name}", f"{taken[1]:.3f} s",
              f"not so: {taken[0]:.3f} s", taken[0] / taken[1])


def quickstart(bench: Bench) -> Iterator[Row]:
    from t2i.config.compose import compose as composed
    from t2i.config.compose import plan
    from t2i.config.quiet import quiet
    from t2i.training.profiling import measure

    quiet()
    asked = ["experiments=quickstart", f"trainer={'gpu' if bench.cuda else 'cpu'}"]
    stages = [composed(stage.overrides, files=False) for stage in plan(asked)]
    for i, stage in enumerate(stages[:1] if bench.tiny else stages):
        if bench.tiny:
            stage["data"]["batch_size"] = 2
        _, figures = measure(stage, stages[:i])
        size, steps = stage["data"]["batch_size"], stage["trainer"]["max_steps"]
        yield row(f"quickstart: {stage['name'].rpartition('/')[2]}", f"batch {size}, {steps:,} steps at most",
                  f"{size / figures['seconds_a_step']:,.0f} images/s", seconds=figures["seconds_a_step"],
                  hours=figures["hours"])


def quantizer(bench: Bench) -> Iterator[Row]:
    vectors, codes = bench.vectors
    for dim in (256, 8):
        torch.manual_seed(0)
        x, codebook = (torch.randn(n, dim, device=bench.device) for n in (vectors, codes))
        times, peaks = [], []
        for run in (nearest, taming_argmin):
            times.append(bench.seconds(lambda run=run: run(x, codebook), 20))
            peaks.append(bench.peak(lambda run=run: run(x, codebook)))
        yield row("quantizer: nearest", f"{vectors:,} vectors of {dim}, {codes:,} codes, fp32",
                  f"{1e3 * times[0]:.2f} ms{megabytes(peaks[0])}",
                  f"taming's argmin: {1e3 * times[1]:.2f} ms{megabytes(peaks[1])}", times[1] / times[0],
                  seconds=times[0], mb=peaks[0])


def learnable(bench: Bench, name: str) -> tuple[Callable[[], Any], list[Any], str]:
    """A model of its YAML, made anew by each call, batches that it can learn, and the name of the loss that falls."""
    from t2i.checkpoint import building
    from t2i.config.compose import compose as composed
    from t2i.data.data_module import CaptionedDataset, collate_images, to_float
    from t2i.data.datasets import dataset
    from t2i.nets.tokenizer import ImageTokenizer

    tiny = bench.tiny
    side, size, count = (16, 2, 2) if tiny else (64, 32, 16)
    small = {
        "vqgan": ["model.autoencoder.channels=8", "model.autoencoder.multipliers=[1,2]", "model.quantizer.dim=4",
                  "model.autoencoder.z_channels=8", "model.autoencoder.num_groups=4",
                  "model.autoencoder.num_res_blocks=1", "model.quantizer.codebook_size=16",
                  "model.discriminator.channels=4", "model.discriminator.num_layers=1"],
        "dfgan": ["model.generator.channels=2", "model.discriminator.channels=2", "model.text_dim=8"],
        "prior": ["model.width=32", "model.num_layers=2", "model.num_heads=2"],
    } if tiny else {
        "vqgan": ["model.autoencoder.channels=64", "model.autoencoder.multipliers=[1,2,4]"], "dfgan": [],
        "prior": ["model.width=512", "model.num_layers=8", "model.num_heads=8"],
    }
    words = [f"model={name}", f"data.image_size={side}", "data.size=512", "trainer.max_steps=300", *small[name]]
    words += {"vqgan": ["model.discriminator_start=0", "model.autoencoder.attention_levels=[]",
                        "model.learning_rate=2e-4"],
              "dfgan": ["text_encoder=sentence"], "prior": ["text_encoder=sentence", "model.tokenizer.path=none"]}[name]
    config = composed(words, files=False)
    given = {}
    if name == "prior":
        net, codes = vqgan_net(bench)
        torch.manual_seed(0)
        given["tokenizer"] = ImageTokenizer(Autoencoder(**net), VQ(*codes), side if tiny else 256).eval()
        n, k = given["tokenizer"].grid[0] ** 2, given["tokenizer"].codebook_size
        first = torch.arange(count * size).view(count, size, 1)
        ids = (first * 37 + torch.arange(n) * (1 + first % 7)) % k  # each code is the one before it and some more
        text = [f"{number} steps" for number in ("one", "two", "three", "four", "five", "six", "seven")]
        data: list[Any] = [CodeBatch(part, [text[int(i) % 7] for i in at[:, 0]], ["x"] * size)
                           for part, at in zip(ids, first, strict=True)]
    else:
        scenes = CaptionedDataset(dataset(config, "train"), 0)
        data = [to_float(collate_images([scenes[b * size + i, 0] for i in range(size)])) for b in range(count)]

    def make() -> Any:
        torch.manual_seed(0)
        return building.build(config["model"], at="model", **given)

    return make, data, {"vqgan": "train/loss/pixel", "prior": "train/loss", "dfgan": "train/loss/discriminator"}[name]


def amp(name: str, bench: Bench) -> Iterator[Row]:
    """300 steps in each precision, from equal weights over equal batches."""
    make, data, loss = learnable(bench, name)
    steps, size = 4 if bench.tiny else 300, len(data[0].text)
    kinds = {"fp32": ("32-true", False), "TF32": ("32-true", False), "fp16": ("16-mixed", False),
             "bf16": ("bf16-mixed", False), "bf16, compiled": ("bf16-mixed", True)}
    if not bench.cuda:
        kinds = {"fp32": ("32-true", False), "bf16": ("bf16-mixed", False)}
    plain: Tensor | None = None
    for kind, (precision, compiled) in kinds.items():
        if bench.cuda:
            torch.set_float32_matmul_precision("highest" if kind == "fp32" else "high")
            torch.backends.cudnn.allow_tf32 = kind != "fp32"
        model = make()
        set_accumulation_and_compile(model, 1, bench.backend if compiled else False, size)
        found = Steps(bench, model, data, steps, precision, loss, timed=compiled)  # unless it waits for kernels' making
        seconds = found.seconds if compiled else found.whole / steps
        losses = torch.stack(found.losses).float().cpu()
        last = losses[-max(2, steps // 10) :]
        end, wrong = float(last.mean()), int((~losses.isfinite()).sum())
        plain = losses if plain is None else plain
        held = plain[-len(last) :]
        off = (losses - plain).unfold(0, len(last), 1).mean(1).abs().max()  # of running means
        yield row(f"AMP: {name}", f"batch {size}, {steps} steps, {kind}",
                  f"{size / seconds:,.0f} images/s{megabytes(found.memory)}, {loss} {end:.4g} at the end,"
                  f" {wrong} not finite", f"fp32: {held.mean():.4g} ± {held.std():.2g}, at most {off:.2g} apart",
                  seconds=seconds, mb=found.memory, not_finite=wrong,
                  losses=[float(f"{value:.5g}") for value in losses[:: max(1, steps // 60)]])


def fp16(bench: Bench) -> Iterator[Row]:
    for name in ("vqgan", "prior", "dfgan"):
        make, data, loss = learnable(bench, name)
        model, steps = make(), 4 if bench.tiny else 2000
        precision = bench.precisions.get("fp16", "32-true")
        found = Steps(bench, model, data, steps, precision, loss, timed=False)
        losses = torch.stack(found.losses).float()
        weights = torch.cat([weight.detach().flatten() for weight in model.parameters()])
        end = float(losses[-max(2, steps // 10) :].mean())
        wrong = [int((~values.isfinite()).sum()) for values in (losses, weights)]
        yield row(f"fp16: {name}", f"batch {len(data[0].text)}, {steps:,} steps, {precision}",
                  f"{loss} {losses[0]:.4g} to {end:.4g}, {wrong[0]} losses and {wrong[1]} weights not finite",
                  not_finite=sum(wrong))


WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")


def counted(profiler: Any, cuda: bool) -> tuple[int, int]:
    """Kernels (on a CPU: operations) and waits of the host that a profiler saw."""
    events = profiler.events()
    on_device = [one for one in events if one.device_type == torch.autograd.DeviceType.CUDA]
    waits = [one for one in events if one.name in (WAITS[:3] if cuda else WAITS[3:])]
    return len(on_device if cuda else [one for one in events if one.name.startswith("aten::")]), len(waits)


def trace(bench: Bench) -> Iterator[Row]:
    size, batch, steps = (32, 2, 1) if bench.tiny else (256, 8, 3)
    data = [Batch(torch.rand(batch, 3, size, size) * 2 - 1, ["x"] * batch, ["x"] * batch)]
    found: dict[bool, tuple[int, int]] = {}
    for later in (False, True):
        model = vqgan_of(bench, size)
        model.checks_later = later
        run = Steps(bench, model, data, 3 + steps, "bf16-mixed" if bench.cuda else "32-true", traced=steps, timed=False)
        found[later] = counted(run.profiler, bench.cuda)
    (kernels, waits), (before, waited) = found[True], found[False]
    what = "kernels" if bench.cuda else "operations"
    yield row("trace: VQGAN's step", f"{size} px, batch {batch}, {bench.name}, a step of {steps}",
              f"{kernels / steps:,.0f} {what}, {waits / steps:.2g} waits",
              f"losses read in every step: {before / steps:,.0f} {what}, {waited / steps:.2g} waits",
              kernels=kernels / steps, waits=waits / steps)
    side, shape = (3, (32, 2, 2)) if bench.tiny else (16, (768, 12, 12))
    gpt = GPT((1024,), (side, side), 512, 20, *shape).to(bench.device, bench.dtype).eval()
    text = (torch.randn(4, 20, 512, device=bench.device, dtype=bench.dtype),
            torch.ones(4, 20, dtype=torch.bool, device=bench.device))
    uniform = uniforms(range(4), gpt.num_codes).to(bench.device)
    static, drawn = StaticDecoding(capture=bench.cuda), {}
    for name, used in (("static", static), ("eager", None)):
        generate(gpt, *text, uniform, top_k=100, guidance=2.0, static=used)
        with torch.profiler.profile() as profiler:
            generate(gpt, *text, uniform, top_k=100, guidance=2.0, static=used)
        drawn[name] = [value / gpt.num_codes for value in counted(profiler, bench.cuda)]
    yield row("trace: a code drawn", f"{shape[1]} x {shape[0]}, batch 4, guided, {bench.name}",
              f"{drawn['static'][0]:,.0f} {what}, {drawn['static'][1]:.2g} waits", f"eager: {drawn['eager'][0]:,.0f}"
              f" {what}, {drawn['eager'][1]:.2g} waits", kernels=drawn["static"][0], waits=drawn["static"][1])


# With the seconds that each may take: nine minutes together.
Parts = dict[str, tuple[Callable[..., Iterator[Row]], int]]
PARTS: Parts = {
    "decoding": (decoding, 110), "prior": (prior, 45), "compile": (compile, 70), "vqgan": (vqgan_and_layout, 75),
    "quickstart": (quickstart, 60), "quantizer": (quantizer, 20), "amp_vqgan": (partial(amp, "vqgan"), 60),
    "amp_prior": (partial(amp, "prior"), 40), "amp_dfgan": (partial(amp, "dfgan"), 40), "trace": (trace, 20),
    "fp16": (fp16, 240),
}
ON_REQUEST = {"fp16"}  # beside the nine minutes


def measured(name: str, bench: Bench, parts: Parts = PARTS) -> Iterator[Row]:
    """A part's rows; what ends it is the last one."""
    try:
        yield from parts[name][0](bench)
    except Exception as error:  # reported with its name, so that the other parts' rows are not lost
        traceback.print_exc()
        yield row(name, "", f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def apart(name: str, limit: int, *words: str, file: str = __file__) -> list[Row]:
    """The rows of a part that runs in a process of its own, within its time."""
    command = [sys.executable, file, "--child", name, *words]
    with tempfile.TemporaryFile("w+") as out:
        try:
            code = subprocess.run(command, stdout=out, timeout=limit).returncode
            end = None if code == 0 else f"failed: exit status {code}"
        except subprocess.TimeoutExpired:
            end = f"stopped after its {limit} s"
        out.seek(0)
        rows = [json.loads(line) for line in out if line.startswith('{"part"')]
    return rows if end is None else [*rows, row(name, "", end)]


def line(found: Row) -> str:
    ratio = "" if found["ratio"] is None else f"{found['ratio']:.2f}"
    return f"| {found['part']} | {found['setting']} | {found['measured']} | {found['against']} | {ratio} |"


def report(rows: Iterable[list[Row]], head: str, held: dict[str, Any], path: str | None) -> int:
    """Prints the rows as they come, and keeps them in a file; 1 if a part failed or was stopped."""
    print(f"{head}\n\n| part | setting | measured | against | ratio |\n| --- | --- | --- | --- | --- |", flush=True)
    seen: list[Row] = []
    for found in rows:
        seen += found
        print("\n".join(map(line, found)), flush=True)
        if path:
            known = {"date": str(date.today()), "torch": torch.__version__, **held, "rows": seen}
            Path(path).expanduser().write_text(json.dumps(known, indent=1) + "\n")
    return int(any(str(found["measured"]).startswith(("failed", "stopped")) for found in seen))


def command_line(
    about: str, parts: Parts, words: list[str] | None, **own: dict[str, Any]
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The arguments of a benchmark of these parts, also of `cpu.py`; `own` are its further options, as
    `add_argument` takes them."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(parts)}; none means all")
    for name, options in own.items():
        parser.add_argument(f"--{name}", **options)
    parser.add_argument("--tiny", action="store_true", help="sizes whose figures mean nothing, to see that it runs")
    parser.add_argument("--json", help="a file for the same rows as JSON")
    parser.add_argument("--child", choices=list(parts), help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if unknown := [name for name in args.names if name not in parts]:
        parser.error(f"{', '.join(unknown)}: no such part; there are {', '.join(parts)}")
    if args.json and not (folder := Path(args.json).expanduser().resolve().parent).is_dir():
        parser.error(f"--json {args.json}: there is no folder {folder}")
    return parser, args


def main(arguments: list[str] | None = None) -> int:
    device = {"choices": ["cuda", "cpu"], "default": "cuda"}
    parser, args = command_line(__doc__.splitlines()[0], PARTS, arguments, device=device)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use; --device cpu --tiny shows that the benchmark runs")
    if args.device == "cpu" and not args.tiny:
        parser.error("--device cpu goes with --tiny; benchmarks/cpu.py measures a CPU")
    if args.child:
        for found in measured(args.child, Bench(args.device, args.tiny)):
            print(json.dumps(found), flush=True)
        return 0
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    note = " `--tiny`: the figures mean nothing." if args.tiny else ""
    rows = (apart(name, PARTS[name][1], *(["--tiny"] if args.tiny else [])) if args.device == "cuda" else
            list(measured(name, Bench(args.device, args.tiny)))  # one import of torch
            for name in args.names or [name for name in PARTS if name not in ON_REQUEST])
    return report(rows, f"{date.today()}, torch {torch.__version__}, {card}.{note}",
                  {"device": card, "tiny": args.tiny}, args.json)


if __name__ == "__main__":
    sys.exit(main())
