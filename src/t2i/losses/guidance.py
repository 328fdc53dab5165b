"""What CLIP-guided generation minimises: how far the cutouts of a picture are from its prompts, in a CLIP's space.

Cosine: Radford et al. 2021, arXiv 2103.00020. Spherical, 2 arcsin(|a - b| / 2)^2 (half the squared angle), with prompts
of weights and stops: VQGAN-CLIP, Crowson et al. 2022, arXiv 2204.08583. Deviation: embeddings are made unit vectors
before they are added, so that weights mean the same for every CLIP.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]

NEAR = 1e-12  # of a squared chord in [0, 4]: nearer to either end the gradient is 0


def target(
    prompts: Float[Tensor, "p d"], extras: Float[Tensor, "e d"] | None = None, prompt_share: float = 1.0,
    extra_share: float = 0.1, weights: Float[Tensor, " e"] | None = None,
) -> Float[Tensor, "p d"]:
    """normalise(prompt_share E(prompt) + extra_share sum_e weight_e E(extra_e)) for every prompt; embeddings of any
    length, weights of 1."""
    found = prompt_share * F.normalize(prompts.float(), dim=-1)
    if extras is not None and len(extras):
        each = F.normalize(extras.float(), dim=-1)
        found = found + extra_share * (each if weights is None else each * weights.to(each)[:, None]).sum(0)
    return F.normalize(found, dim=-1)


def cosine(views: Float[Tensor, "n d"], targets: Float[Tensor, "p d"]) -> Float[Tensor, "p n"]:
    """Minus the cosine, in [-1, 1]; -1 for equal directions."""
    return -F.normalize(targets.float(), dim=-1) @ F.normalize(views.float(), dim=-1).T


def spherical(views: Float[Tensor, "n d"], targets: Float[Tensor, "p d"]) -> Float[Tensor, "p n"]:
    """Half the squared angle, in [0, pi^2 / 2], with a gradient of 0 at equal directions and at opposite ones."""
    a, b = F.normalize(targets.float(), dim=-1), F.normalize(views.float(), dim=-1)
    chord = (a[:, None] - b[None]).square().sum(-1)  # squared, (p, n)
    return chord.clamp(NEAR, 4 - 1e-6).sqrt().div(2).arcsin().square().mul(2)


def guidance(
    views: Float[Tensor, "n d"],
    targets: Float[Tensor, "p d"],
    weights: Float[Tensor, " p"] | None = None,
    excluded: Float[Tensor, "e d"] | None = None,
    excluded_weights: Float[Tensor, " e"] | None = None,
    stops: Float[Tensor, " p"] | None = None,
    text_weight: float = 1.0,
    negative_weight: float = 0.5,
    distance: Distance = cosine,
) -> Float[Tensor, ""]:
    """text_weight sum_p weight_p d(target_p, view) - negative_weight sum_e weight_e d(excluded_e, view), the mean over
    the views; weights are 1 where none are given.

    With `cosine`: -text_weight cos(target, view) + negative_weight cos(excluded, view). A negative weight pushes away.
    A target whose distance (with the sign of its weight) is below its stop in a view has no gradient there.
    """
    with torch.autocast(views.device.type, enabled=False):
        loss = _weighed(views, targets, weights, stops, distance) * text_weight
        if excluded is not None and len(excluded):
            loss = loss - _weighed(views, excluded, excluded_weights, None, distance) * negative_weight
        return loss


def _weighed(
    views: Tensor, targets: Tensor, weights: Tensor | None, stops: Tensor | None, distance: Distance
) -> Float[Tensor, ""]:
    each = distance(views, targets)  # (p, n)
    weights = each.new_ones(len(each)) if weights is None else weights.to(each)
    if weights.shape != (len(each),):
        raise ValueError(f"weights {tuple(weights.shape)} for {len(each)} targets: each takes one")
    each = each * weights.sign()[:, None]
    if stops is not None:
        each = torch.where(each < stops.to(each)[:, None], each.detach(), each)
    return (weights.abs()[:, None] * each).mean(1).sum()
