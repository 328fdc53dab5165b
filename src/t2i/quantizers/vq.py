"""Vector quantisation with a learned codebook.

Papers: arXiv 1711.00937 (VQ-VAE), in the form of VQGAN (arXiv 2012.09841); `normalize` gives the
l2-normalised codes of ViT-VQGAN (arXiv 2110.04627), best with a low `dim`; `gradient="rotation"` the
rotation trick (arXiv 2410.06424). Deviation: beta weighs the commitment term as in the VQ-VAE paper;
VQGAN's first code put it on the codebook term, which `legacy_beta=True` reproduces.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.quantizers.nearest import check_ids, nearest, rotate, straight_through
from t2i.types import Quantized


@register("quantizer")
class VQ(nn.Module):
    """Latents (b, dim, h, w) to the nearest of `codebook_size` learned vectors; distances and losses in
    float32.
    """

    def __init__(
        self,
        codebook_size: int = 1024,
        dim: int = 256,
        beta: float = 0.25,
        gradient: Literal["ste", "rotation"] = "ste",
        normalize: bool = False,
        legacy_beta: bool = False,
    ) -> None:
        super().__init__()
        if codebook_size < 2 or dim < 1:
            raise ValueError(f"codebook_size={codebook_size}, dim={dim}: at least 2 codes of 1 dimension are needed")
        if gradient not in ("ste", "rotation"):
            raise ValueError(f"gradient={gradient!r}: one of ste, rotation is needed")
        self.codebook_size = codebook_size
        self.factors = (self.codebook_size,)
        self.dim = dim
        self.beta = beta
        self.gradient = gradient
        self.normalize = normalize
        self.legacy_beta = legacy_beta
        bound = 1 / codebook_size
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-bound, bound))
        if normalize:
            # Only the direction counts; at unit length the optimiser's steps are small against the vector.
            self.codebook.data = F.normalize(self.codebook.data, dim=1)

    def _codes(self) -> Float[Tensor, "k d"]:
        return F.normalize(self.codebook.float(), dim=1) if self.normalize else self.codebook.float()

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        b, d, h, w = z.shape
        with torch.autocast(z.device.type, enabled=False):
            x = z.float().permute(0, 2, 3, 1).reshape(-1, d)  # (b h w, d)
            if self.normalize:
                x = F.normalize(x, dim=1)
            codes = self._codes()
            ids = nearest(x, codes)
            q = F.embedding(ids, codes)
            commitment = F.mse_loss(x, q.detach())
            codebook = F.mse_loss(q, x.detach())
            weighed, other = (codebook, commitment) if self.legacy_beta else (commitment, codebook)
            loss = other + self.beta * weighed
            passed = straight_through(x, q) if self.gradient == "ste" else rotate(x, q)
        return Quantized(
            z_q=passed.view(b, h, w, d).permute(0, 3, 1, 2),
            ids=ids.view(b, h, w),
            loss=loss,
            metrics={"commitment": commitment.detach()},
        )

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return F.normalize(z.float(), dim=1) if self.normalize else z.float()

    def decode_ids(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        check_ids(ids, self.codebook_size)
        return F.embedding(ids, self._codes()).permute(0, 3, 1, 2)

    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        return [self._codes().detach()]
