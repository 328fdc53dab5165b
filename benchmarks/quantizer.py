"""Nearest codes and a quantiser step: vectors/s and peak extra memory, against the naive distance matrix.

    python benchmarks/quantizer.py [--vectors 65536] [--codes 16384] [--dims 8 256]

Every row is measured in a process of its own, so that its peak is its own; the naive forms keep all
vectors x codes distances (4 GB at the default sizes).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "src"
METHODS = ("nearest", "cdist", "matrix", "vq step")


def measure(method: str, vectors: int, codes: int, dim: int, repeats: int) -> dict[str, float]:
    """Runs in the child: best time of `repeats`, and how far the peak of the memory rose above the inputs."""
    sys.path.insert(0, str(SOURCE))
    import torch

    from t2i.quantizers.nearest import nearest
    from t2i.quantizers.vq import VQ

    torch.manual_seed(0)
    x, codebook = torch.randn(vectors, dim), torch.randn(codes, dim)
    quantizer = VQ(codes, dim)
    quantizer.codebook.data.copy_(codebook)

    def matrix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.mm(a, b.T).mul_(-2).add_(b.square().sum(1)).argmin(1)

    def step(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        out = quantizer(a.view(1, vectors, 1, dim).permute(0, 3, 1, 2).requires_grad_())
        (out.z_q.sum() + out.loss).backward()
        return out.ids

    run = {
        "nearest": nearest,
        "cdist": lambda a, b: torch.cdist(a, b).argmin(1),
        "matrix": matrix,
        "vq step": step,
    }[method]
    run(x[:64], codebook) if method != "vq step" else quantizer(x[:64].T.reshape(1, dim, 8, 8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        ids = run(x, codebook)
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": min(times), "extra_mb": peak / 1024, "checksum": float(ids.double().mean())}


def run(
    vectors: int = 65536,
    codes: int = 16384,
    dims: tuple[int, ...] = (8, 256),
    repeats: int = 3,
    apart: bool = True,
) -> list[dict[str, object]]:
    """Rows: method, dim, vectors, codes, seconds, vectors_per_second, extra_mb, speedup (over the faster
    naive form). Without `apart` all run in this process, and peaks mean nothing.
    """
    rows: list[dict[str, object]] = []
    for dim in dims:
        found: dict[str, dict[str, float]] = {}
        for method in METHODS:
            if not apart:
                found[method] = measure(method, vectors, codes, dim, repeats)
                continue
            call = [
                sys.executable,
                __file__,
                "--child",
                method,
                str(vectors),
                str(codes),
                str(dim),
                str(repeats),
            ]
            child = subprocess.run(call, capture_output=True, text=True, env=os.environ)
            if child.returncode != 0:
                sys.stderr.write(f"{method}, dim {dim}: failed (out of memory?)\n{child.stderr[-500:]}\n")
                continue
            found[method] = json.loads(child.stdout)
        naive = [found[m]["seconds"] for m in ("cdist", "matrix") if m in found]
        for method, result in found.items():
            rows.append(
                {
                    "method": method,
                    "dim": dim,
                    "vectors": vectors,
                    "codes": codes,
                    "seconds": result["seconds"],
                    "vectors_per_second": vectors / result["seconds"],
                    "extra_mb": result["extra_mb"],
                    "speedup": min(naive) / result["seconds"] if naive else None,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=65536)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--dims", type=int, nargs="+", default=[8, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        method, *numbers = args.child
        print(json.dumps(measure(method, *map(int, numbers))))
        return
    print(f"{args.vectors} vectors, {args.codes} codes")
    print(f"{'method':10} {'dim':>4} {'seconds':>8} {'vectors/s':>10} {'extra MB':>9} {'x naive':>8}")
    for row in run(args.vectors, args.codes, tuple(args.dims), args.repeats):
        speedup = "" if row["speedup"] is None else f"{row['speedup']:.2f}"
        print(
            f"{row['method']:10} {row['dim']:4} {row['seconds']:8.2f} {row['vectors_per_second']:10.0f} "
            f"{row['extra_mb']:9.0f} {speedup:>8}"
        )


if __name__ == "__main__":
    main()
