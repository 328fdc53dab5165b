"""R-precision: whether a drawn picture's own caption is the nearest among captions of other pictures.

Xu et al. 2018 (AttnGAN), arXiv 1711.10485: the caption among 99 mismatched ones, top-1. Deviations: a CLIP stands in
the place of their encoders; mismatched captions are distinct texts other than the picture's own, so that no
equal caption counts against it.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from t2i.metrics.intervals import Interval, bootstrap

_TIE = 1e-6  # of the cosine: one text in another batch, or elsewhere in a product, comes out as different as that


def r_precision(
    image: Float[Tensor, "n d"], text: Float[Tensor, "n d"], groups: Int[Tensor, " n"], seed: int, candidates: int = 100
) -> Interval:
    """The share of pictures whose caption beats `candidates` - 1 others, drawn by f(seed, picture).

    A tie, to 1e-6 of the cosine, is a miss. Rows of `image` and `text` belong together; equal `groups` are equal
    captions. ValueError where there are fewer than `candidates` different captions, or fewer than two, and for features
    that are not finite.
    """
    if not len(image) == len(text) == len(groups):
        raise ValueError(f"{len(image)} pictures, {len(text)} captions, {len(groups)} groups: one each is wanted")
    kinds, first = np.unique(groups.cpu().numpy(), return_index=True)
    if not 2 <= candidates <= len(kinds):
        raise ValueError(f"candidates={candidates}: allowed are 2 to {len(kinds)}, the number of different captions")
    image, text = F.normalize(image.cpu().double(), dim=-1), F.normalize(text.cpu().double(), dim=-1)
    if wrong := int((~(image.isfinite().all(1) & text.isfinite().all(1))).sum()):
        raise ValueError(f"features: {wrong} of {len(image)} pictures or captions have some that are not finite")
    hits = torch.zeros(len(image), dtype=torch.float64)
    for i in range(len(image)):
        others = np.flatnonzero(kinds != int(groups[i]))
        picked = np.random.default_rng((seed, i)).choice(others, candidates - 1, replace=False)
        similar = text[torch.from_numpy(first[picked])] @ image[i]
        hits[i] = float(text[i] @ image[i] > similar.max() + _TIE)
    return bootstrap(hits, seed)
