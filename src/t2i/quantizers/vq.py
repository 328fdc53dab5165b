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
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.quantizers.base import CodebookQuantizer, straight_through, to_grid, to_rows
from t2i.quantizers.nearest import nearest
from t2i.types import Quantized


def rotate(z: Float[Tensor, "n d"], q: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The value of `q`, reached from `z` by a rotation and a scale that count as constants in the backward pass.

    So the gradient at z is the gradient at q, turned and scaled as z is to q (arXiv 2410.06424, section 4.2).
    """
    with torch.no_grad():
        norm_z = z.norm(dim=1, keepdim=True).clamp_min(1e-6)
        norm_q = q.norm(dim=1, keepdim=True).clamp_min(1e-6)
        unit_z, unit_q = z / norm_z, q / norm_q
        mirror = F.normalize(unit_z + unit_q, dim=1, eps=1e-6)
        scale = norm_q / norm_z
    reflected = z - 2 * (z * mirror).sum(1, keepdim=True) * mirror
    rotated = scale * (reflected + 2 * (z * unit_z).sum(1, keepdim=True) * unit_q)
    return straight_through(rotated, q)  # q up to rounding (and the clamp at zero length): give exactly its value


@register("quantizer")
class VQ(CodebookQuantizer):
    """Latents (b, dim, h, w) to the nearest of `codebook_size` learned vectors; distances and losses in float32."""

    def __init__(
        self,
        codebook_size: int = 1024,
        dim: int = 256,
        beta: float = 0.25,
        gradient: Literal["ste", "rotation"] = "ste",
        normalize: bool = False,
        legacy_beta: bool = False,
    ) -> None:
        super().__init__(codebook_size, dim)
        if gradient not in ("ste", "rotation"):
            raise ValueError(f"gradient={gradient!r}: one of ste, rotation is needed")
        self.beta, self.gradient, self.normalize, self.legacy_beta = beta, gradient, normalize, legacy_beta
        self.moves_latents = normalize
        bound = 1 / codebook_size
        self.codebook = nn.Parameter(torch.empty(codebook_size, dim).uniform_(-bound, bound))
        if normalize:
            # Only the direction counts; at unit length the optimiser's steps are small against the vector.
            self.codebook.data = F.normalize(self.codebook.data, dim=1)

    def vectors(self) -> Float[Tensor, "k d"]:
        return F.normalize(self.codebook.float(), dim=1) if self.normalize else self.codebook.float()

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return F.normalize(z.float(), dim=1) if self.normalize else z.float()

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            x, codes = to_rows(z), self.vectors()
            if self.normalize:
                x = F.normalize(x, dim=1)
            ids = nearest(x, codes)
            q = F.embedding(ids, codes)
            commitment = F.mse_loss(x, q.detach())
            codebook = F.mse_loss(q, x.detach())
            weighed, other = (codebook, commitment) if self.legacy_beta else (commitment, codebook)
            loss = other + self.beta * weighed
            z_q = straight_through(x, q) if self.gradient == "ste" else rotate(x, q)
        return Quantized(to_grid(z_q, z), ids.view(len(z), *z.shape[2:]), loss, {"commitment": commitment.detach()})
