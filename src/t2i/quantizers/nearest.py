"""The nearest codebook entry in bounded memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

# Tiles of (vectors, codes). 8 MB on the CPU: it stays in the last cache, which is what makes this faster than
# the whole matrix (benchmarks/quantizer.py). 128 MB on a GPU, where fewer and larger products are better.
_CPU_TILE = (1024, 2048)
_GPU_TILE = (16384, 2048)
_GROUP = 64


@torch.no_grad()
def nearest(x: Float[Tensor, "n d"], codebook: Float[Tensor, "k d"]) -> Int[Tensor, "n"]:
    """Index of the codebook entry nearest to each vector (Euclidean distance); the first one on a tie.

    Computed in float32 whatever autocast says. The n x k matrix never exists: it is reduced tile by tile.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, codebook = x.detach().float(), codebook.detach().float()
        size = codebook.shape[0]
        # argmin |x - e|^2 = argmax x.e - |e|^2 / 2; without |x|^2 there is also less to cancel.
        bias = codebook.square().sum(1).mul_(-0.5)
        spare = -size % _GROUP
        if spare:
            codebook, bias = F.pad(codebook, (0, 0, 0, spare)), F.pad(bias, (0, spare), value=-torch.inf)
        rows, columns = _CPU_TILE if x.device.type == "cpu" else _GPU_TILE
        scores = x.new_empty(min(rows, x.shape[0]) * min(columns, codebook.shape[0]))
        ids = torch.empty(x.shape[0], dtype=torch.long, device=x.device)
        for start in range(0, x.shape[0], rows):
            ids[start : start + rows] = _best(x[start : start + rows], codebook, bias, columns, scores)
        # Only a non-finite vector can land on the padding; the trainer stops on non-finite losses.
        return ids.clamp_(max=size - 1)


def _best(x: Tensor, codebook: Tensor, bias: Tensor, columns: int, scores: Tensor) -> Tensor:
    n = x.shape[0]
    row = torch.arange(n, device=x.device)
    best = x.new_full((n,), -torch.inf)
    ids = torch.zeros(n, dtype=torch.long, device=x.device)
    for start in range(0, codebook.shape[0], columns):
        part = codebook[start : start + columns]
        tile = scores[: n * part.shape[0]].view(n, part.shape[0])
        torch.addmm(bias[start : start + columns], x, part.T, out=tile)
        # argmax over a row is slow on the CPU, a plain maximum is not: maxima of groups first, then the
        # argmax over the groups and inside the best one.
        groups = tile.view(n, -1, _GROUP)
        value, group = groups.amax(2).max(1)
        index = groups[row, group].argmax(1) + group * _GROUP + start
        better = value > best
        ids = torch.where(better, index, ids)
        best = torch.where(better, value, best)
    return ids
