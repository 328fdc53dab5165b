"""What two cores are there for, against small reimplementations of published steps: Markdown, and JSON in a file.

    python benchmarks/cpu.py [decoding] [vqgan] [quantizer] [--threads 2] [--json cpu.json]
    python benchmarks/cpu.py --tiny         shows that all of it runs; its figures mean nothing

`decoding`: a code, in the middle of 256, 12 x 768, with the weights as trained, in bf16 and in int8 (`sample.py
weights=`), against a net and loop like LlamaGen's; at one picture the share of the memory's rate.
`vqgan`: the step through Lightning, against a step like taming-transformers'.
`quantizer`: the nearest code, against taming's distance matrix.

Each part runs in a process of its own under a limit of its own. Sides of `decoding` take turns, and the best round of
each counts. With one thread seconds are those of the CPU, so that other work on the machine counts little. Ratios
between parts of the project itself: `run.py`. Peers: `gpu_peers.py`; nothing is downloaded.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import torch
from benchmarks.gpu import Bench, Parts, Row, apart, command_line, measured, quantizer, report, row, vqgan
from benchmarks.gpu_peers import Llama
from benchmarks.run import MIXED, processor
from torch import nn

from t2i.cli.app import keep_freed_memory
from t2i.models.sampling import generate_steps, uniforms
from t2i.nets import cpu_linear
from t2i.nets.gpt import GPT


class CPUBench(Bench):
    """As of a GPU, with sizes for two cores."""

    def __init__(self, tiny: bool, threads: int) -> None:
        super().__init__("cpu", tiny)
        torch.set_num_threads(threads)
        self.now = time.process_time if threads == 1 else time.perf_counter  # type: ignore[method-assign]
        if MIXED:
            self.precisions["bf16"], self.of_peer["bf16"] = "bf16-mixed", torch.bfloat16
        if not tiny:
            self.picture, self.vectors = (64, 4, 64), (4096, 16384)

    def of(self, taken: list[float]) -> float:
        """The least: what else the machine does only adds."""
        return min(taken)

    def seconds(self, run: Callable[[], object], rounds: int = 5, warm_up: int = 1) -> float:
        taken = []
        for _ in range(1 + min(rounds, 1 if self.tiny else 3)):
            start = self.now()
            run()
            taken.append(self.now() - start)
        return self.of(taken[1:])

    def turns(self, runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """The least seconds of each; they take turns."""
        best = dict.fromkeys(runs, float("inf"))
        for _ in range(1 if self.tiny else rounds):
            for name, run in runs.items():
                start = self.now()
                run()
                best[name] = min(best[name], self.now() - start)
        return best


STEPS = 4  # measured at once


class Decoding:
    """Steps of the nets in turns, for a batch with or without guidance, from the middle of the picture on."""

    def __init__(self, tiny: bool) -> None:
        self.side, self.prefix, self.top_k = (4, 6, 5) if tiny else (16, 120, 100)
        width, layers = (32, 2) if tiny else (768, 12)
        self.shape, self.codes = f"{layers} x {width}, {self.side**2} codes, prefix {self.prefix}", 32 if tiny else 1024
        kinds: dict[str, torch.dtype] = {"fp32": torch.float32, **({"bf16": torch.bfloat16} if MIXED else {})}
        self.peers = {f"like LlamaGen, {name}": Llama(self.codes, self.side**2, self.prefix, width, layers,
                                                      width // 64 or 1).to(kind).eval() for name, kind in kinds.items()}
        self.nets = {f"as trained, {name}": self.gpt(width, layers).to(kind) for name, kind in kinds.items()}
        for weights in cpu_linear.KINDS:
            if cpu_linear.obstacle(weights, torch.device("cpu")) is None:
                net = self.gpt(width, layers).to(torch.bfloat16 if weights == "bf16" else torch.float32)
                for part in (net.blocks, net.predict):
                    cpu_linear.convert(part, weights)  # type: ignore[arg-type]
                self.nets[f"weights={weights}"] = net
        matrices = [m for m in self.nets["as trained, fp32"].modules() if isinstance(m, nn.Linear) and m.bias is None]
        self.weights = sum(m.weight.numel() for m in matrices)  # that a step reads

    def gpt(self, width: int, layers: int) -> GPT:
        torch.manual_seed(0)
        net = GPT((self.codes,), (self.side, self.side), 512, self.prefix, width, layers, width // 64 or 1).eval()
        for block in net.blocks:  # zero at first, and zeros are quicker than numbers
            nn.init.normal_(block.attention_out.weight, std=0.02)
            nn.init.normal_(block.mlp_out.weight, std=0.02)
        return net

    def of_peer(self, peer: Llama, batch: int, guidance: float) -> Callable[[], None]:
        rows, middle = 2 * batch, self.prefix + self.side**2 // 2
        dtype = peer.codes.weight.dtype
        peer.set_up(torch.zeros(rows, 1, peer.codes.embedding_dim, dtype=dtype))
        peer.cache.normal_()
        logits, at = torch.randn(rows, self.codes), torch.tensor([middle])

        @torch.inference_mode()
        def run() -> None:
            for _ in range(STEPS):
                chosen = peer.chosen(logits, self.top_k, guidance)
                peer.step(peer.codes(torch.cat([chosen, chosen])), at)

        return run

    def of_net(self, net: GPT, batch: int, guidance: float) -> Iterator[object]:
        text = torch.randn(batch, self.prefix, 512), torch.ones(batch, self.prefix, dtype=torch.bool)
        given = torch.randint(0, self.codes, (batch, self.side**2 // 2 - STEPS))
        return generate_steps(net, *text, uniforms(range(batch), self.side**2), top_k=self.top_k, guidance=guidance,
                              given=given)

    def measure(self, bench: CPUBench, batch: int, guidance: float, rounds: int = 8) -> dict[str, float]:
        """Seconds a step."""
        runs: dict[str, Callable[[], object]] = {}
        if guidance != 1:
            runs = {name: self.of_peer(peer, batch, guidance) for name, peer in self.peers.items()}
        for name, net in self.nets.items():
            steps = self.of_net(net, batch, guidance)
            next(steps)  # the prefix, too
            runs[name] = lambda steps=steps: [next(steps) for _ in range(STEPS)]
        return {name: seconds / STEPS for name, seconds in bench.turns(runs, rounds).items()}


def decoding(bench: CPUBench) -> Iterator[Row]:
    made = Decoding(bench.tiny)
    rate = bench.seconds(torch.ones(2**16 if bench.tiny else 2**28).sum)
    rate = (2**18 if bench.tiny else 2**30) / rate
    for batch, guidance in ((4, 2.0), (1, 2.0), (8, 1.0), (2, 1.0), (1, 1.0)):
        found = made.measure(bench, batch, guidance)
        setting = f"{made.shape}, batch {batch}{', guided' if guidance != 1 else ''}"
        plain = f"as trained, {'bf16' if MIXED else 'fp32'}"
        for name in made.nets:
            seconds = found[name]
            held = [] if name == plain else [plain]
            if guidance != 1:
                held.append(next(peer for peer in reversed(made.peers) if not ("fp32" in name and "bf16" in peer)))
            for other in held:
                yield row(f"decoding: {name}", setting, f"{1e3 * seconds:.1f} ms a step",
                          f"{other}: {1e3 * found[other]:.1f} ms", found[other] / seconds, seconds=seconds)
            if (batch, guidance) == (1, 1.0):
                size = made.weights * (1 if "int8" in name else 4 if "fp32" in name else 2)
                yield row(f"decoding: weights read, {name}", setting, f"{size / seconds / 1e9:.1f} GB/s",
                          f"memory read (sum of 1 GB): {rate / 1e9:.1f} GB/s", size / seconds / rate)


# With the seconds that each may take.
PARTS: Parts = {"decoding": (decoding, 600), "vqgan": (vqgan, 400), "quantizer": (quantizer, 200)}


def main(arguments: list[str] | None = None) -> int:
    threads = {"type": int, "default": torch.get_num_threads()}
    parser, args = command_line(__doc__.splitlines()[0], PARTS, arguments, threads=threads)
    if args.threads < 1:
        parser.error(f"--threads {args.threads}: a whole number from 1 is wanted")
    keep_freed_memory()  # as the apps do
    if args.child:
        for found in measured(args.child, CPUBench(args.tiny, args.threads), PARTS):
            print(json.dumps(found), flush=True)
        return 0
    note = " `--tiny`: the figures mean nothing." if args.tiny else ""
    rows = (list(measured(name, CPUBench(True, args.threads), PARTS)) if args.tiny else
            apart(name, PARTS[name][1], "--threads", str(args.threads), file=__file__)
            for name in args.names or PARTS)
    return report(rows, f"{date.today()}, torch {torch.__version__}, {processor()}, {args.threads} threads.{note}",
                  {"device": processor(), "threads": args.threads, "tiny": args.tiny}, args.json)


if __name__ == "__main__":
    sys.exit(main())
