"""Vector quantisation by drawing: a 1x1 convolution gives a logit a code, Gumbel noise chooses, a softmax passes the
gradient.

Papers: Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144; as the tokenizer of DALL-E, arXiv
2102.12092, and of VQGAN's code (GumbelVQ). The loss is the divergence of the probabilities from uniform ones.
Deviations: in evaluation the likeliest code is taken, without noise, so that a picture has one encoding (VQGAN's code
draws there too); the temperature is constant.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.quantizers.base import CodebookQuantizer
from t2i.types import Quantized


@register("quantizer")
class Gumbel(CodebookQuantizer):
    """Latents (b, dim, h, w) to one of `codebook_size` learned vectors, which are of another space than the latents;
    logits and losses in float32.

    temperature: of the softmax in training. kl_weight: on the loss. straight_through: in training one code is passed
    on, with the gradient of the soft choice; without it a mixture of codes.
    """

    moves_latents = True

    def __init__(
        self,
        codebook_size: int = 8192,
        dim: int = 256,
        kl_weight: float = 5e-4,
        temperature: float = 1.0,
        straight_through: bool = True,
    ) -> None:
        super().__init__(codebook_size, dim)
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: a number above 0 is needed")
        self.kl_weight, self.temperature, self.straight_through = kl_weight, temperature, straight_through
        self.proj = nn.Conv2d(dim, codebook_size, 1)
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def vectors(self) -> Float[Tensor, "k d"]:
        return self.codebook.float()

    def _logits(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b k h w"]:
        return self.proj(z.float())

    def _mixed(self, shares: Float[Tensor, "b k h w"]) -> Float[Tensor, "b d h w"]:
        return torch.einsum("bkhw,kd->bdhw", shares, self.vectors())

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            logits = self._logits(z)
            soft = logits.softmax(1)
            if self.training:
                shares = F.gumbel_softmax(logits, self.temperature, self.straight_through, dim=1)
                ids = shares.argmax(1)
                z_q = self._mixed(shares)
            else:
                ids = logits.argmax(1)
                # The codes themselves; their gradient is that of the mixture, which is not made without one.
                z_q = self.decode_ids(ids)
                if soft.requires_grad:
                    mixed = self._mixed(soft)
                    z_q = z_q + (mixed - mixed.detach())
            # The divergence of the probabilities from 1 / codebook_size, in nats.
            divergence = (soft * (soft * self.codebook_size + 1e-10).log()).sum(1).mean()
        return Quantized(z_q, ids, self.kl_weight * divergence, {"divergence": divergence.detach()})

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """The mixture of codes by their probabilities."""
        with torch.autocast(z.device.type, enabled=False):
            return self._mixed(self._logits(z).softmax(1))
