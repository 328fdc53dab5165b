"""Losses of GANs that draw for captions: real pictures under their own and under wrong captions, and drawn ones.

The matching-aware discriminator: Reed et al. 2016, arXiv 1605.05396. Hinge with one head: DF-GAN, arXiv 2008.05865,
equation 3. Binary cross-entropy with one or two heads: StackGAN, arXiv 1612.03242, and its code's weights. Logits a
pixel: U-Net GAN, arXiv 2002.12655, where both halves of the loss weigh the same. Everything in float32.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from t2i.losses.gan import hinge_g, vanilla_g
from t2i.types import DiscriminatorLogits

Kind = Literal["hinge", "bce"]


def real_loss(logits: Float[Tensor, "..."], kind: Kind) -> Float[Tensor, "..."]:
    """A discriminator's loss on each logit that ought to be high."""
    return F.relu(1 - logits.float()) if kind == "hinge" else F.softplus(-logits.float())


def fake_loss(logits: Float[Tensor, "..."], kind: Kind) -> Float[Tensor, "..."]:
    """A discriminator's loss on each logit that ought to be low."""
    return F.relu(1 + logits.float()) if kind == "hinge" else F.softplus(logits.float())


def discriminator_loss(
    real: DiscriminatorLogits, wrong: DiscriminatorLogits, fake: DiscriminatorLogits, kind: Kind,
    weight: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Real pictures up; those under wrong captions, and drawn ones, down.

    One head: real + (wrong + fake) / 2. Two: (real + real without caption) / 2 + (fake + wrong + fake without
    caption) / 3. With logits a pixel: the mean of that and of the pixels' real + fake (a wrong caption says nothing
    about pixels). `weight` of the wrong pairs has mean 1, or is 0 where a caption is the picture's own after all.
    """
    mismatched = fake_loss(wrong.conditional, kind)
    mismatched = mismatched.mean() if weight is None else (weight * mismatched).mean()
    up, down = real_loss(real.conditional, kind).mean(), fake_loss(fake.conditional, kind).mean()
    if real.unconditional is not None and fake.unconditional is not None:
        free_up, free_down = real_loss(real.unconditional, kind).mean(), fake_loss(fake.unconditional, kind).mean()
        loss = (up + free_up) / 2 + (down + mismatched + free_down) / 3
    else:
        loss = up + (mismatched + down) / 2
    if real.pixels is not None and fake.pixels is not None:
        loss = (loss + real_loss(real.pixels, kind).mean() + fake_loss(fake.pixels, kind).mean()) / 2
    return loss


def generator_loss(fake: DiscriminatorLogits, kind: Kind) -> Float[Tensor, ""]:
    """Every logit of a drawn picture up: minus their mean (hinge), or as if real (bce, non-saturating)."""

    loss_of = hinge_g if kind == "hinge" else vanilla_g
    loss = loss_of(fake.conditional)
    if fake.unconditional is not None:
        loss = loss + loss_of(fake.unconditional)
    return loss if fake.pixels is None else (loss + loss_of(fake.pixels)) / 2


def gradient_penalty(
    logits: Float[Tensor, " b"],
    image: Float[Tensor, "b ..."],
    text: Float[Tensor, "b t"],
    weight: float = 2.0,
    power: float = 6.0,
    eps: float = 1e-12,
) -> Float[Tensor, ""]:
    """The matching-aware zero-centred gradient penalty (MA-GP) of arXiv 2008.05865, equation 4, on real pairs:
    weight * mean(norm ** power), the norm over a picture's and its sentence's gradients together, as its code has it.

    `eps` stands under the root: the norm's own gradient at 0 is not a number. Give float32 logits of a float32
    forward; both inputs must be part of its graph.
    """
    from_image, from_text = torch.autograd.grad(logits.sum(), (image, text), create_graph=True)
    squares = from_image.float().flatten(1).square().sum(1) + from_text.float().flatten(1).square().sum(1)
    return weight * (squares + eps).sqrt().pow(power).mean()


def gaussian_kl(mean: Float[Tensor, "b c"], log_var: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
    """Divergence of N(mean, exp(log_var)) from N(0, 1), the mean over all numbers (arXiv 1612.03242, equation 2)."""
    mean, log_var = mean.float(), log_var.float()
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
