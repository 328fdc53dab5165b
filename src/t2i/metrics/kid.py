"""Kernel distance of two sets of features: KID's formula on any features.

Bińkowski et al. 2018, arXiv 1801.01401: the unbiased squared maximum mean discrepancy under the kernel (x.y / d + 1)^3,
averaged over random subsets. Unlike the Fréchet distance it has no bias of small numbers, and may be below 0. The
discrepancy is torchmetrics'; its metric around it draws the subsets from the global generator and has no interval, so
that is here: in float64, from a generator of its own.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.image.kid import poly_mmd

from t2i.metrics.intervals import Interval


def kernel_distance(
    fake: Float[Tensor, "n d"], real: Float[Tensor, "m d"], seed: int, subsets: int = 100, size: int = 1000
) -> Interval:
    """The mean over subsets of `size` of either set, and the middle 95 % of the subsets' values.

    ValueError for a size that is larger than a set, or below 2.
    """
    most = min(len(fake), len(real))
    if not 2 <= size <= most:
        raise ValueError(f"size={size}: allowed are 2 to {most}, the smaller of the two sets")
    generator = torch.Generator().manual_seed(seed)
    x, y = fake.detach().cpu().double(), real.detach().cpu().double()
    found = torch.tensor([
        poly_mmd(x[torch.randperm(len(x), generator=generator)[:size]],
                 y[torch.randperm(len(y), generator=generator)[:size]])
        for _ in range(subsets)], dtype=torch.float64)
    low, high = found.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(float(found.mean()), low, high)
