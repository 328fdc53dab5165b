"""How near a reconstruction is to its picture, and how much of the codebook a tokenizer uses.

PSNR; SSIM after Wang et al. 2004 (Image Quality Assessment: From Error Visibility to Structural Similarity): 11x11
Gaussian window of sigma 1.5, k1 0.01, k2 0.03, borders without full window left out, mean over the channels. Both are
torchmetrics'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from t2i.types import unravel_index

_MAX_PSNR = 100.0


@torch.no_grad()
def psnr(image: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], one a picture; 100 where they are equal or nearly."""
    found = peak_signal_noise_ratio(image.float(), target.float(), data_range=2.0, reduction="none", dim=(1, 2, 3))
    return found.clamp_max(_MAX_PSNR)


@torch.no_grad()
def ssim(image: Float[Tensor, "b c h w"], target: Float[Tensor, "b c h w"]) -> Float[Tensor, "b"]:
    """Structural similarity of pictures in [-1, 1], one a picture; 1 for equal ones. At least 11 pixels a side."""
    if min(image.shape[-2:]) < 11:
        raise ValueError(f"image of {image.shape[-2]}x{image.shape[-1]}: SSIM needs at least 11 pixels a side")
    with torch.autocast(image.device.type, enabled=False):
        _, full = structural_similarity_index_measure(image.float() * 0.5 + 0.5, target.float() * 0.5 + 0.5,
                                                      data_range=1.0, reduction="none", return_full_image=True)
    return full[..., 5:-5, 5:-5].mean((1, 2, 3))  # torchmetrics' own mean takes reflected borders in


class CodebookUsage:
    """Counts codes over an epoch; not a module, so that it enters no state dict.

    usage: share of the codes seen at least once. perplexity: exp of the entropy of their frequencies, from 1 (one code)
    to their number. Counts are whole numbers: the result does not depend on the order. Codes of several parts are
    counted part by part: usage_1, usage_2 and so on.
    """

    def __init__(self, factors: Sequence[int]) -> None:
        self.factors = tuple(factors)
        self.counts = [torch.zeros(factor, dtype=torch.long) for factor in factors]

    def update(self, ids: Int[Tensor, "..."]) -> None:
        each = unravel_index(ids.detach().reshape(-1), self.factors)
        for i in range(len(self.factors)):
            here = self.counts[i].to(ids.device)
            self.counts[i] = here.scatter_add(0, each[:, i], torch.ones_like(each[:, i]))  # bincount waits for a GPU

    def compute(self) -> dict[str, float]:
        """`usage` and `perplexity` over all ranks (every rank must call it); zeros if nothing was counted."""
        found: dict[str, float] = {}
        for i, counts in enumerate(self.counts, 1):
            counts = counts.clone()
            if dist.is_available() and dist.is_initialized():
                dist.all_reduce(counts)
            share = counts[counts > 0].cpu().double() / counts.sum().cpu().clamp_min(1)
            ending = f"_{i}" if len(self.factors) > 1 else ""
            found[f"usage{ending}"] = share.numel() / self.factors[i - 1]
            found[f"perplexity{ending}"] = float(torch.exp(-(share * share.log()).sum())) if share.numel() else 0.0
        return found
