"""Precision and recall of a set of drawn features against real ones.

Kynkäänniemi et al. 2019, arXiv 1904.06991: a set's manifold is the union of balls about its features, each out to its
k-th neighbour. Precision is the share of drawn features inside the real manifold, recall of real ones inside the drawn.
torch-fidelity gives the same two shares, but not feature by feature, as the interval needs them.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from t2i.metrics.intervals import Interval, bootstrap

_SAME = 1e-10  # of the squared lengths: copies of a feature, far from 0, come out as far apart as that


def _squares(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return torch.addmm(x.square().sum(1)[:, None] + y.square().sum(1), x, y.T, alpha=-2).clamp_min_(0)


def _radii(features: Float[Tensor, "n d"], k: int, rows: int) -> Float[Tensor, " n"]:
    """Squared. The nearest of all is the feature itself."""
    return torch.cat([_squares(part, features).kthvalue(k + 1, dim=1).values for part in features.split(rows)])


def _inside(
    points: Float[Tensor, "n d"], centres: Float[Tensor, "m d"], radii: Float[Tensor, " m"], rows: int
) -> Bool[Tensor, " n"]:
    reach = radii + _SAME * centres.square().sum(1)
    return torch.cat([(_squares(part, centres) <= reach).any(1) for part in points.split(rows)])


def precision_recall(
    fake: Float[Tensor, "n d"], real: Float[Tensor, "m d"], seed: int, k: int = 3, rows: int = 1024
) -> dict[str, Interval]:
    """`precision` and `recall` in [0, 1]; the intervals bootstrap over the features that are asked about.

    `rows` distances at a time are held, as (rows, m) in float64. ValueError for sets of k or fewer.
    """
    if min(len(fake), len(real)) <= k:
        raise ValueError(f"{len(fake)} drawn and {len(real)} real features: more than k={k} of each are needed")
    x, y = fake.detach().cpu().double(), real.detach().cpu().double()
    hits = {"precision": _inside(x, y, _radii(y, k, rows), rows), "recall": _inside(y, x, _radii(x, k, rows), rows)}
    return {name: bootstrap(hit.double(), seed) for name, hit in hits.items()}
