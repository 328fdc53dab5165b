"""Adversarial losses on logits, and the adaptive weight that balances them against the reconstruction.

Hinge: Geometric GAN, arXiv 1705.02894. Vanilla: arXiv 1406.2661, in the non-saturating form. Adaptive
weight: Taming Transformers, arXiv 2012.09841, equation 7. Deviation: the weight is computed from float32
gradients and lies in [0, max_weight].
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def hinge_d(real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Discriminator loss from the logits of real and generated pictures; 1 when it tells nothing apart
    (logits 0).
    """
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean())


def vanilla_d(real: Float[Tensor, "..."], fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Binary cross-entropy of the discriminator, mean of both halves; log 2 at logits 0."""
    return 0.5 * (F.softplus(-real.float()).mean() + F.softplus(fake.float()).mean())


def hinge_g(fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Generator loss that goes with `hinge_d`: minus the mean logit."""
    return -fake.float().mean()


def vanilla_g(fake: Float[Tensor, "..."]) -> Float[Tensor, ""]:
    """Non-saturating generator loss that goes with `vanilla_d`."""
    return F.softplus(-fake.float()).mean()


def adaptive_weight(
    rec_grad: Float[Tensor, "..."],
    gan_grad: Float[Tensor, "..."],
    eps: float = 1e-4,
    max_weight: float = 1e4,
) -> Float[Tensor, ""]:
    """How much longer the reconstruction's gradient on the decoder's last layer is than the adversary's.

    Both are of losses that are not scaled (fp16). Detached; with several ranks the gradients are those of the global
    batch.
    """
    rec_grad, gan_grad = rec_grad.detach().float(), gan_grad.detach().float()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        both = torch.stack([rec_grad, gan_grad])
        dist.all_reduce(both)
        rec_grad, gan_grad = both / dist.get_world_size()
    return (rec_grad.norm() / (gan_grad.norm() + eps)).clamp(0.0, max_weight)
