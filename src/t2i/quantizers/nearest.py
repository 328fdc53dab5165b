"""What the quantisers share: the nearest codebook entry in bounded memory, the check of ids, the gradients
past the lookup.

Straight-through: Neural Discrete Representation Learning, arXiv 1711.00937. Rotation trick: Restructuring
Vector Quantization with the Rotation Trick, arXiv 2410.06424.
"""

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


def check_ids(ids: Int[Tensor, "..."], codebook_size: int) -> None:
    """ValueError naming the first id outside [0, codebook_size)."""
    wrong = (ids < 0) | (ids >= codebook_size)
    if bool(wrong.any()):
        raise ValueError(
            f"code id {int(ids[wrong][0])} is out of range: this codebook has {codebook_size} entries, "
            f"ids 0..{codebook_size - 1}"
        )


def refused(x: Tensor) -> Float[Tensor, ""]:
    """0, or NaN where a number of `x` is not finite: a loss on which training stops, told without asking the device."""
    return (x.detach() * 0).sum()


def straight_through(z: Float[Tensor, "n d"], q: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The value of `q` with the gradient of `z`."""
    return z + (q - z).detach()


def rotate(z: Float[Tensor, "n d"], q: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The value of `q`, reached from `z` by a rotation and a scale that count as constants in the backward
    pass.

    So the gradient at z is the gradient at q, turned and scaled as z is to q (arXiv 2410.06424, section 4.2).
    """
    with torch.no_grad():
        norm_z = z.norm(dim=1, keepdim=True).clamp_min(1e-6)
        norm_q = q.norm(dim=1, keepdim=True).clamp_min(1e-6)
        unit_z, unit_q = z / norm_z, q / norm_q
        mirror = F.normalize(unit_z + unit_q, dim=1, eps=1e-6)
        scale = norm_q / norm_z
    reflected = z - 2 * (z * mirror).sum(1, keepdim=True) * mirror
    turned = scale * (reflected + 2 * (z * unit_z).sum(1, keepdim=True) * unit_q)
    # The product above is q up to rounding (and up to the clamp at zero length): give exactly its value.
    return turned + (q - turned).detach()
