"""Lookup-free quantisation: the signs of a latent's numbers are its code.

Paper: Language Model Beats Diffusion -- Tokenizer is Key to Visual Generation, arXiv 2310.05737, section 3.2. The
entropy term is E[H(p)] - H(E[p]), where p is a softmax over minus the squared distances to all codes: each latent
should be sure, and all codes be used. Over the numbers of a latent p factorises, so the first part is a sum over
bits, and the mean of p over latents one product of two matrices, each of half the bits. Beyond `GROUP` bits they are
taken in groups, whose entropies add up to an upper bound. Deviation: each rank takes the mean over its own latents.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.quantizers.base import check_ids, straight_through, to_grid, to_rows
from t2i.types import Quantized

GROUP = 18  # bits: 512 probabilities of each half, 262,144 of both
MOST_BITS = 24


def entropy(p: Float[Tensor, "... k"]) -> Float[Tensor, "..."]:
    """Of probabilities over the last axis, in nats."""
    return -(p * p.clamp_min(1e-10).log()).sum(-1)


def joint(each: Float[Tensor, "n bits 2"]) -> Float[Tensor, "n k"]:
    """Of independent bits, k = 2 ** bits."""
    found = each.new_ones(len(each), 1)
    for i in range(each.shape[1]):
        found = (found[:, :, None] * each[:, i, None]).flatten(1)
    return found


@register("quantizer")
class LFQ(nn.Module):
    """Latents (b, dim, h, w) to one of 2 ** dim codes of numbers -1 and 1; the first number is the lowest bit.

    beta: weight of the commitment. entropy_weight: of the entropy term. diversity: of its second part, H(E[p]).
    temperature: of p.
    """

    _basis: Tensor

    def __init__(
        self, dim: int = 10, beta: float = 0.25, entropy_weight: float = 0.1, diversity: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        if not 1 <= dim <= MOST_BITS:
            raise ValueError(f"dim={dim}: a code has from 1 to {MOST_BITS} bits")
        if not temperature > 0:
            raise ValueError(f"temperature={temperature}: a number above 0 is needed")
        self.dim, self.codebook_size, self.factors = dim, 2**dim, (2**dim,)
        self.beta, self.entropy_weight, self.diversity, self.temperature = beta, entropy_weight, diversity, temperature
        self.register_buffer("_basis", 2 ** torch.arange(dim), persistent=False)

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        if z.shape[1] != self.dim:
            raise ValueError(f"latent of {z.shape[1]} channels: dim={self.dim}")
        with torch.autocast(z.device.type, enabled=False):
            x = to_rows(z)
            bits = x > 0
            q = bits.to(x.dtype) * 2 - 1
            commitment = F.mse_loss(x, q)
            sure, spread = self.entropies(x)
            loss = self.beta * commitment + self.entropy_weight * (sure - self.diversity * spread)
            z_q, ids = straight_through(x, q), (bits * self._basis).sum(1)
        metrics = {"commitment": commitment, "entropy": sure, "codebook_entropy": spread}
        return Quantized(to_grid(z_q, z), ids.view(len(z), *z.shape[2:]), loss,
                         {name: value.detach() for name, value in metrics.items()})

    def entropies(self, x: Float[Tensor, "n d"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """E[H(p)] and H(E[p]) in nats."""
        up = torch.sigmoid(4 * x / self.temperature)  # |x + 1|² - |x - 1|² = 4 x
        each = torch.stack([1 - up, up], -1)  # (n, d, 2)
        spread = x.new_zeros(())
        for group in each.split(GROUP, 1):
            first, second = group.tensor_split(2, 1)
            spread = spread + entropy((joint(first).T @ joint(second) / len(x)).flatten())
        return entropy(each).sum(1).mean(), spread

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        return z.float()

    def decode_ids(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        check_ids(ids, self.codebook_size)
        return ((ids[..., None] // self._basis % 2) * 2 - 1).float().permute(0, 3, 1, 2)

    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        every = torch.arange(self.codebook_size, device=self._basis.device)
        return [self.decode_ids(every.view(1, 1, -1))[0, :, 0].T]
