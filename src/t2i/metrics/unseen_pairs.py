"""What is to be had of pictures never seen without a net: floors for pairs of concept and style that no training held.

All are made of seen pairs alone, and judged like drawings:

    other_style     the concept's picture in the next style
    other_concept   a picture of another concept in the style, by chance
    mean            the mean of the concept's pictures in the other styles
    ridge           the style's 16 x 16 averages as a linear function of those of the other styles (ridge regression,
                    Hoerl & Kennard 1970, Technometrics 12); a style's mean for pictures that are missing. Its strength
                    is the one by which most seen pictures, left out in turn, are those nearest to what is predicted for
                    them; that of the least error draws too near the mean and has a third of the right pairs
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from t2i.metrics.nearest_render import SIDE, averages, numbered
from t2i.types import Gallery

FLOORS = ("other_style", "other_concept", "mean", "ridge")
STRENGTHS = tuple(10.0 ** (k / 2) for k in range(-8, 5))  # times the kernel's mean eigenvalue


def ridge(
    inputs: Float[Tensor, "n d"], targets: Float[Tensor, "n k"], asked: Float[Tensor, "m d"]
) -> Float[Tensor, "m k"]:
    """Predictions for `asked`, in float64, by the strength whose leave-one-out predictions (closed form) are nearest to
    their own target most often; of several the one with the least error."""
    if len(inputs) < 3:
        raise ValueError(f"a ridge regression takes at least 3 pictures, there are {len(inputs)}")
    mean, middle = inputs.double().mean(0), targets.double().mean(0)
    x, y, z = inputs.double() - mean, targets.double() - middle, asked.double() - mean
    values, vectors = torch.linalg.eigh(x @ x.T)
    values, rotated = values.clamp_min(0), vectors.T @ y
    best, least = None, (0.0, torch.inf)
    for strength in STRENGTHS:
        weights = 1 / (values + strength * values.mean().clamp_min(1e-12))
        hat = (vectors.square() * (values * weights)).sum(1) + 1 / len(x)  # the mean is fitted, too
        left = (y - vectors @ ((values * weights)[:, None] * rotated)) / (1 - hat).clamp_min(1e-9)[:, None]
        nearest = torch.cdist((y - left).float(), y.float()).argmin(1)
        found = -float((nearest == torch.arange(len(y))).float().mean()), float(left.square().mean())
        if best is None or found < least:
            best, least = vectors @ (weights[:, None] * rotated), found
    assert best is not None
    return (z @ x.T) @ best + middle


def places(gallery: Gallery) -> Int[Tensor, "c k"]:
    """Where in the gallery each concept (rows) stands in each style (columns), -1 for nowhere; ValueError for a pair
    that it has twice."""
    concept, style = numbered(gallery.concepts), numbered(gallery.styles)
    found = torch.full((int(concept.max()) + 1, int(style.max()) + 1), -1)
    found[concept, style] = torch.arange(len(concept))
    if (twice := found[concept, style] != torch.arange(len(concept))).any():
        i = int(twice.nonzero()[0])
        raise ValueError(f"the gallery has {gallery.concepts[i]!r} in the style {gallery.styles[i]!r} twice")
    return found


def floors(gallery: Gallery, truth: Int[Tensor, " n"], seed: int) -> dict[str, UInt8[Tensor, "n 3 s s"]]:
    """For the pairs at these places of the gallery, which no training held, a picture each by every one of `FLOORS`.

    ValueError where one of them is seen, or its concept or its style in no other pair.
    """
    concept, style, at = numbered(gallery.concepts), numbered(gallery.styles), places(gallery)
    seen = (at >= 0) & ~gallery.held_out[at]
    chance = torch.Generator().manual_seed(seed)
    other_style, other_concept, means = [], [], []
    for i in truth.tolist():
        c, s = int(concept[i]), int(style[i])
        after = torch.arange(s + 1, s + at.shape[1]) % at.shape[1]
        siblings, peers = at[c, after][seen[c, after]], at[:, s][seen[:, s]]
        if not gallery.held_out[i] or not len(siblings) or not len(peers):
            raise ValueError(f"{gallery.captions[i]!r}: floors are of held-out pairs whose concept and style were seen"
                             " in others")
        other_style.append(siblings[0])
        other_concept.append(peers[torch.randint(len(peers), (), generator=chance)])
        means.append(gallery.images[siblings].float().mean(0).round().byte())
    return {"other_style": gallery.images[torch.stack(other_style)],
            "other_concept": gallery.images[torch.stack(other_concept)], "mean": torch.stack(means),
            "ridge": _ridge(gallery, truth, at, seen)}


def _ridge(
    gallery: Gallery, truth: Int[Tensor, " n"], at: Int[Tensor, "c k"], seen: Bool[Tensor, "c k"]
) -> UInt8[Tensor, "n 3 s s"]:
    concept, style, small = numbered(gallery.concepts), numbered(gallery.styles), averages(gallery.images)
    known = torch.where(seen[..., None], small[at], 0)  # (c, k, 768)
    filled = torch.where(seen[..., None], known, known.sum(0) / seen.sum(0).clamp_min(1)[:, None])
    found = torch.zeros(len(truth), small.shape[1])
    for s in style[truth].unique().tolist():
        others = [k for k in range(at.shape[1]) if k != s]
        inputs, fit, wanted = filled[:, others].flatten(1), seen[:, s], style[truth] == s
        found[wanted] = ridge(inputs[fit], known[fit, s], inputs[concept[truth[wanted]]]).float()
    pictures = found.view(-1, 3, SIDE, SIDE).clamp(0, 1).mul(255).round()
    return F.interpolate(pictures, gallery.images.shape[-2:], mode="nearest").byte()
