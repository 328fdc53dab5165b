"""CutMix for a discriminator with a logit a pixel: pictures with a generated box in a real surrounding.

Paper: A U-Net Based Discriminator for Generative Adversarial Networks, arXiv 2002.12655, section 3.2; boxes after
CutMix (arXiv 1905.04899). A mixed picture counts as fake as a whole (the global logit's target is fake), and pixel by
pixel as its mask says: `pixel_loss_by_mask`. Deviations: the box, always the generated part, lies wholly inside the
picture, so that its area is what was drawn (CutMix clips it at the border); it has at least one pixel; the consistency
is a mean over pixels, of logits, where the paper has a squared norm.
No random number is drawn here: the caller draws them for the global batch.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def cutmix_masks(
    shares: Float[Tensor, " b"], corners: Float[Tensor, "b 2"], size: int
) -> Float[Tensor, "b 1 size size"]:
    """Masks of 0 (generated, one square a picture) and 1 (real).

    `shares` in [0, 1]: how much of each picture is real, uniform for the paper's Beta(1, 1); `corners` in [0, 1),
    uniform: the square's (row, column) among the places where it fits. Its side is rounded to whole pixels, at least
    one, since a picture without a generated pixel would be real as a whole.
    """
    side = (size * (1 - shares.float()).sqrt()).round().clamp(min=1)[:, None]  # (b, 1)
    # The product of a number just below 1 may round up to one place too many.
    start = (corners.float() * (size - side + 1)).floor().minimum(size - side)  # (b, 2)
    places = torch.arange(size, device=shares.device)
    within = (places >= start[..., None]) & (places < (start + side)[..., None])  # (b, 2, size)
    box = within[:, 0, :, None] & within[:, 1, None, :]
    return (~box[:, None]).float()


def mix(
    mask: Float[Tensor, "b 1 h w"], real: Float[Tensor, "b c h w"], fake: Float[Tensor, "b c h w"]
) -> Float[Tensor, "b c h w"]:
    """`real` where the mask is 1, `fake` where it is 0; of pictures or of pixel logits."""
    return torch.where(mask.bool(), real, fake)


def consistency(
    mixed_pixels: Float[Tensor, "b 1 h w"],
    real_pixels: Float[Tensor, "b 1 h w"],
    fake_pixels: Float[Tensor, "b 1 h w"],
    mask: Float[Tensor, "b 1 h w"],
) -> Float[Tensor, ""]:
    """Mean squared difference between the logits of mixed pictures and the mixed logits of their two sources.

    The gradient reaches all three; 0 for a discriminator that looks at each pixel alone.
    """
    return F.mse_loss(mixed_pixels.float(), mix(mask, real_pixels.float(), fake_pixels.float()))


def pixel_loss_by_mask(
    pixels: Float[Tensor, "b 1 h w"], mask: Float[Tensor, "b 1 h w"], kind: Literal["hinge", "bce"]
) -> Float[Tensor, ""]:
    """Discriminator loss of pixel logits whose targets stand in the mask (1 real, 0 generated), mean over all pixels.

    1 (hinge) or log 2 (bce) at logits 0, on the scale of `hinge_d` and `vanilla_d`.
    """
    signed = torch.where(mask.bool(), pixels.float(), -pixels.float())
    return (F.relu(1 - signed) if kind == "hinge" else F.softplus(-signed)).mean()


def ramp(step: int, warmup_steps: int, most: float = 0.5) -> float:
    """Probability that a step mixes its batch: from 0 linearly to `most` at `warmup_steps`, `most` from there on."""
    return most if step >= warmup_steps else most * max(step, 0) / warmup_steps
