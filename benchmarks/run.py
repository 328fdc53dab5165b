"""Ratios that were measured in one run, as a Markdown table: what a part gains over the plain way to write it.

    python benchmarks/run.py [quantizer] [vqgan] [gan] [prior] [decoding] [any_order] [data] [guided] [frechet]
                             [--quick] [--every 8] [--pictures FOLDER]

`quantizer`: a step's vectors a second and peak memory, against all distances as one matrix.
`vqgan`: a step of both players on one autoencoder forward, against a second forward for the discriminator.
`gan`: a step of DF-GAN with features reused, against every term by itself, in float32 and in bf16, and the two.
`prior`: training tokens a second, and the share of the speed of a big matrix product that this is.
`data`: decoding against torchvision alone, the packed cache against decoding, and the share of its time that a prior
waits for codes; on the JPEGs of a folder (`--pictures`), or on synthetic ones.
`guided`: an iteration of guided drawing and its parts, against its views one by one; memory with and without
micro-batches.
`frechet`: the distance of two sets of features, against scipy's matrix root.
`decoding`: tokens with the cache against without (of which every 8th is run and counts for its neighbours, unless
`--every 1`); at batch 1 the weight bytes a second against a memory read.
`any_order`: whole pictures with guidance by the prior in any order, against the raster prior.

Both sides of a ratio take turns, and the best round of each counts, so that a machine that is not quite idle harms
both alike. On the CPU, in bf16 where it multiplies in bf16, else in float32. `--quick` shrinks everything until the
figures mean nothing: it shows that the code runs.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from benchmarks import any_order as any_order_rows
from benchmarks import data as data_rows
from benchmarks import frechet as frechet_rows
from benchmarks import gan as gan_rows
from benchmarks import guided as guided_rows
from benchmarks import quantizer as quantizer_rows
from torch import Tensor, nn

from t2i.cli.app import keep_freed_memory
from t2i.losses.cross_entropy import cross_entropy
from t2i.losses.gan import hinge_d, hinge_g
from t2i.models.base import frozen_call
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.gpt import GPT
from t2i.nets.patchgan import PatchGAN
from t2i.nets.tokenizer import ImageTokenizer
from t2i.quantizers.vq import VQ
from t2i.types import CodeBatch

MIXED = torch.cpu._is_avx512_bf16_supported()
DTYPE = torch.bfloat16 if MIXED else torch.float32
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass
class Row:
    """One line of the table: what was measured, its value, what it is held against, and the ratio of the two."""

    part: str
    setting: str
    value: str
    against: str
    ratio: float | None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        return f"| {self.part} | {self.setting} | {self.value} | {self.against} | {ratio} |"


def turns(rounds: int, *runs: Callable[[], object]) -> list[float]:
    """The least seconds of each run; they take turns, after one round that does not count."""
    best = [float("inf")] * len(runs)
    for number in range(rounds + 1):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run()
            if number:
                best[i] = min(best[i], time.perf_counter() - start)
    return best


def quantizer(quick: bool, every: int = 8) -> Iterator[Row]:
    vectors, codes, dims = (1024, 256, (8,)) if quick else (65536, 16384, (8, 256))
    for dim in dims:
        measured = quantizer_rows.run(vectors, codes, (dim,), repeats=1 if quick else 2, apart=not quick)
        found = {str(row["method"]): row for row in measured}
        naive = [row for method, row in found.items() if method in ("cdist", "matrix")]
        fastest = min(naive, key=lambda row: row["seconds"], default=None)
        for method in ("nearest", "vq step"):
            row = found[method]
            held = "no matrix: out of memory" if fastest is None else (
                f"matrix: {fastest['vectors_per_second']:,.0f} vectors/s, {fastest['extra_mb']:,.0f} MB")
            yield Row(f"quantizer: {method}", f"{vectors:,} vectors of {dim}, {codes:,} codes, fp32",
                      f"{row['vectors_per_second']:,.0f} vectors/s, {row['extra_mb']:,.0f} MB", held, row["speedup"])


class Players:
    """A small VQGAN without Lightning around it, and two ways to make the same step."""

    def __init__(self, quick: bool) -> None:
        torch.manual_seed(0)
        self.size, self.batch = (16, 2) if quick else (64, 16)
        width = 8 if quick else 64
        autoencoder = Autoencoder(channels=width, multipliers=[1, 2, 2], num_res_blocks=1, attention_levels=[],
                                  z_channels=16, num_groups=8, patch_size=1)
        self.tokenizer = ImageTokenizer(autoencoder, VQ(256, 16), self.size).to(memory_format=torch.channels_last)
        self.discriminator = PatchGAN(channels=8 if quick else 32, num_layers=2)
        self.image = torch.rand(self.batch, 3, self.size, self.size).mul(2).sub(1)
        self.image = self.image.contiguous(memory_format=torch.channels_last)
        self.g = torch.optim.AdamW(self.tokenizer.parameters(), 1e-4, fused=True)
        self.d = torch.optim.AdamW(self.discriminator.parameters(), 1e-4, fused=True)

    def forward(self) -> tuple[Tensor, Tensor]:
        reconstruction, quantized = self.tokenizer(self.image)
        return reconstruction.float(), quantized.loss

    def judge(self, fake: Tensor) -> Tensor:
        return hinge_d(self.discriminator(self.image), self.discriminator(fake.detach()))

    def fused(self) -> None:
        with torch.autocast("cpu", DTYPE, enabled=MIXED):
            fake, loss = self.forward()
            loss = loss + (fake - self.image).abs().mean() + 0.1 * hinge_g(frozen_call(self.discriminator, fake))
            judged = self.judge(fake)
        self.g.zero_grad()
        self.d.zero_grad()
        (loss + judged).backward()
        self.g.step()
        self.d.step()

    def naive(self) -> None:
        """Each player its own forward, as in code with one `training_step` an optimiser."""
        self.g.zero_grad()
        with torch.autocast("cpu", DTYPE, enabled=MIXED):
            fake, loss = self.forward()
            loss = loss + (fake - self.image).abs().mean() + 0.1 * hinge_g(self.discriminator(fake))
        loss.backward()
        self.g.step()
        self.d.zero_grad()
        with torch.autocast("cpu", DTYPE, enabled=MIXED):
            judged = self.judge(self.forward()[0])
        judged.backward()
        self.d.step()


def vqgan(quick: bool, every: int = 8) -> Iterator[Row]:
    players = Players(quick)
    fused, naive = turns(1 if quick else 6, players.fused, players.naive)
    parameters = sum(p.numel() for p in players.tokenizer.parameters()) / 1e6
    yield Row("VQGAN: step", f"{players.size} px, batch {players.batch}, {parameters:.1f} M, {NAMES[DTYPE]}",
              f"{players.batch / fused:.1f} images/s", f"second forward: {players.batch / naive:.1f} images/s",
              naive / fused)


def gan(quick: bool, every: int = 8) -> Iterator[Row]:
    kinds = {"fp32": gan_rows.Round(quick, False)} | ({"bf16": gan_rows.Round(quick, True)} if MIXED else {})
    runs = [run for kind in kinds.values() for run in (kind.reused, kind.plain)]
    seconds = turns(1 if quick else 4, *runs)
    for i, (name, kind) in enumerate(kinds.items()):
        reused, plain = seconds[2 * i : 2 * i + 2]
        yield Row("DF-GAN: step", f"{kind.size} px, batch {kind.batch}, {name}", f"{kind.batch / reused:.1f} images/s",
                  f"every term by itself: {kind.batch / plain:.1f} images/s", plain / reused)
    if len(kinds) > 1:
        batch = kinds["fp32"].batch
        yield Row("DF-GAN: bf16", f"{kinds['fp32'].size} px, batch {batch}", f"{batch / seconds[2]:.1f} images/s",
                  f"fp32: {batch / seconds[0]:.1f} images/s", seconds[0] / seconds[2])


def prior(quick: bool, every: int = 8) -> Iterator[Row]:
    torch.manual_seed(0)
    batch, text, side, width, layers = (2, 4, 4, 32, 2) if quick else (32, 24, 12, 256, 6)
    gpt = GPT((256,), (side, side), 128, text, width, layers, width // 16 if quick else 4)
    optimizer = torch.optim.AdamW(gpt.parameters(), 3e-4, fused=True)
    ids = torch.randint(0, 256, (batch, side * side))
    states, mask = torch.randn(batch, text, 128), torch.ones(batch, text, dtype=torch.bool)
    null = torch.zeros(batch, dtype=torch.bool)
    n = 128 if quick else 2048
    a, b = torch.randn(n, n, dtype=DTYPE), torch.randn(n, n, dtype=DTYPE)

    def step() -> None:
        with torch.autocast("cpu", DTYPE, enabled=MIXED):
            (logits,) = gpt(ids, states, mask, null)
        loss = cross_entropy(logits.flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    seconds, product = turns(1 if quick else 5, step, lambda: a @ b)
    matrices = sum(p.numel() for block in gpt.blocks for p in block.parameters() if p.ndim == 2)
    positions = batch * (text + side * side)
    # Forward and backward: 6 operations a weight and position, 12 a layer, channel and pair of positions.
    work = 6 * positions * matrices + 12 * layers * width * batch * (text + side * side) ** 2
    peak = 2 * n**3 / product
    yield Row("prior: training step", f"{layers} x {width}, {side * side} codes, batch {batch}, {NAMES[DTYPE]}",
              f"{ids.numel() / seconds:,.0f} tokens/s, {work / seconds / 1e9:.0f} GFLOP/s",
              f"matrix product of {n}: {peak / 1e9:.0f} GFLOP/s", work / seconds / peak)


class Decoder:
    """A 12-layer, 768-wide GPT over 16 x 16 codes, drawing greedily under random captions of 24 tokens."""

    def __init__(self, batch: int, dtype: torch.dtype, quick: bool) -> None:
        torch.manual_seed(0)
        side, width, layers = (4, 32, 2) if quick else (16, 768, 12)
        self.gpt = GPT((1024,), (side, side), 128, 24, width, layers, width // 64 or 1).to(dtype).eval()
        self.text = (torch.randn(batch, 24, 128, dtype=dtype), torch.ones(batch, 24, dtype=torch.bool),
                     torch.zeros(batch, dtype=torch.bool))
        self.batch = batch

    def weight_bytes(self) -> int:
        """What every token must read: the matrices of the blocks and the head."""
        matrices = [m for m in self.gpt.modules() if isinstance(m, nn.Linear) and m is not self.gpt.text_in]
        return sum(m.weight.numel() * m.weight.element_size() for m in matrices)

    @torch.inference_mode()
    def cached(self) -> float:
        """Seconds for all tokens but the first, which comes out of the prefix."""
        no_part = torch.zeros(self.batch, 0, dtype=torch.long)
        x, cache = self.gpt.prefill(*self.text, no_part)
        logits = self.gpt.logits(x, no_part, cache.heard)
        start = time.perf_counter()
        for _ in range(self.gpt.num_codes - 1):
            logits = self.gpt.logits(self.gpt.step(logits.argmax(-1, keepdim=True), cache), no_part,
                                     cache.heard)
        return time.perf_counter() - start

    @torch.inference_mode()
    def uncached(self, every: int) -> float:
        """Seconds for the same tokens, from a whole forward each; of each `every` of them one is run, and counts
        for all of them."""
        ids = torch.zeros(self.batch, self.gpt.num_codes, dtype=torch.long)
        total = 0.0
        self.gpt(ids[:, :2], *self.text)
        for number in range(1, self.gpt.num_codes, every):
            middle = min(number + every // 2, self.gpt.num_codes - 1)
            start = time.perf_counter()
            ids[:, middle] = self.gpt(ids[:, : middle + 1], *self.text)[0][:, -1].argmax(-1)
            total += (time.perf_counter() - start) * min(every, self.gpt.num_codes - number)
        return total


def decoding(quick: bool, every: int = 8) -> Iterator[Row]:
    rounds, every = (1, 1) if quick else (4, every)
    name = NAMES[DTYPE]
    four = Decoder(4, DTYPE, quick)
    four.cached()
    cached = min(four.cached() for _ in range(rounds))
    uncached = four.uncached(every)
    tokens = four.gpt.num_codes - 1
    shape = f"{len(four.gpt.blocks)} x {four.gpt.cell.shape[-1]}, {tokens + 1} tokens"
    note = "" if every == 1 else f" (every {every}th token run)"
    yield Row("decoding: cache", f"{shape}, batch 4, {name}", f"{4 * tokens / cached:.1f} tokens/s",
              f"no cache: {4 * tokens / uncached:.2f} tokens/s{note}", uncached / cached)
    one = Decoder(1, DTYPE, quick)
    big = torch.ones(2**16 if quick else 2**28)  # 1 GB of float32: no cache of the processor holds it
    one.cached()
    seconds, reads = [], []
    for _ in range(rounds):
        reads.append(turns(2, big.sum)[0])
        seconds.append(one.cached() / tokens)
    achieved, read = one.weight_bytes() / min(seconds), big.numel() * 4 / min(reads)
    yield Row("decoding: weights read", f"{shape}, batch 1, {name}",
              f"{1 / min(seconds):.1f} tokens/s, {achieved / 1e9:.1f} GB/s",
              f"memory read (sum of 1 GB): {read / 1e9:.1f} GB/s", achieved / read)


def any_order(quick: bool, every: int = 8) -> Iterator[Row]:
    for row in any_order_rows.rows(quick, turns, DTYPE, NAMES[DTYPE]):
        yield Row(*row)


def data(quick: bool, every: int = 8) -> Iterator[Row]:
    torch.manual_seed(0)
    side, width, layers = (4, 32, 2) if quick else (16, 256, 6)
    gpt = GPT((1024,), (side, side), 128, 24, width, layers, width // 16 if quick else 4)
    optimizer = torch.optim.AdamW(gpt.parameters(), 3e-4, fused=True)

    def step(batch: CodeBatch) -> None:
        text = torch.randn(len(batch.text), 24, 128), torch.ones(len(batch.text), 24, dtype=torch.bool)
        with torch.autocast("cpu", DTYPE, enabled=MIXED):
            (logits,) = gpt(batch.ids, *text, torch.zeros(len(batch.text), dtype=torch.bool))
        loss = cross_entropy(logits.flatten(0, 1), batch.ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for row in data_rows.run(quick, turns, step, side * side, PICTURES[0]):
        yield Row(*row)


def guided(quick: bool, every: int = 8) -> Iterator[Row]:
    for row in guided_rows.run(quick, turns, MIXED):
        yield Row(*row)


def frechet(quick: bool, every: int = 8) -> Iterator[Row]:
    for row in frechet_rows.rows(quick):
        yield Row(*row)


PICTURES: list[str | None] = [None]  # the folder of --pictures
BENCHMARKS: dict[str, Callable[..., Iterator[Row]]] = {
    "quantizer": quantizer, "vqgan": vqgan, "gan": gan, "prior": prior, "decoding": decoding,
    "any_order": any_order, "data": data,
    "guided": guided, "frechet": frechet,
}


def processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"{', '.join(BENCHMARKS)}; none means all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--every", type=int, default=8, help="without cache only every so many-th token is run; 1: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--pictures", help="a folder of JPEGs for data")
    args = parser.parse_args(arguments)
    PICTURES[0] = args.pictures
    keep_freed_memory()  # as the doors do
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"{', '.join(unknown)}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    torch.set_num_threads(args.threads)
    quick = " `--quick`: the figures mean nothing." if args.quick else ""
    print(f"{date.today()}, torch {torch.__version__}, {processor()}, {args.threads} threads.{quick}\n")
    print("| part | setting | measured | against | ratio |\n| --- | --- | --- | --- | --- |", flush=True)
    for name in args.names or BENCHMARKS:
        for row in BENCHMARKS[name](args.quick, args.every):
            print(row, flush=True)


if __name__ == "__main__":
    main()
