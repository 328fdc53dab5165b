"""Vector quantisation whose codebook is frozen: one linear map that is learned moves all codes together.

Paper: Addressing Representation Collapse in Vector Quantized Models with One Linear Layer, arXiv 2411.02038. A learned
codebook moves only by the codes that are chosen, and the others die; here a chosen code moves the map, and with it
every code. Deviations: the map starts as the identity (the codebook's distribution looks alike from all sides, so that
a random rotation would be no other start; torch's own start can be almost singular in few dimensions) and has no bias,
as in the paper's equations; its code has one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.quantizers.base import CodebookQuantizer, straight_through, to_grid, to_rows
from t2i.quantizers.nearest import nearest
from t2i.types import Quantized


@register("quantizer")
class SimVQ(CodebookQuantizer):
    """Latents (b, dim, h, w) to the nearest of `codebook_size` vectors; distances and losses in float32.

    beta: weight of the commitment term beside the codebook's. seed: of the frozen codebook, N(0, 1 / dim), which is
    in the weights all the same: a file says all of its codes.
    """

    codebook: Tensor

    def __init__(self, codebook_size: int = 1024, dim: int = 256, beta: float = 0.25, seed: int = 0) -> None:
        super().__init__(codebook_size, dim)
        self.beta = beta
        codebook = torch.empty(codebook_size, dim)
        self.register_buffer("codebook", codebook.normal_(0, dim**-0.5, generator=torch.Generator().manual_seed(seed)))
        self.codebook_map = nn.Linear(dim, dim, bias=False)
        nn.init.eye_(self.codebook_map.weight)

    def vectors(self) -> Float[Tensor, "k d"]:
        return F.linear(self.codebook.float(), self.codebook_map.weight.float())

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            x, codes = to_rows(z), self.vectors()
            ids = nearest(x, codes)
            q = F.embedding(ids, codes)
            commitment = F.mse_loss(x, q.detach())
            loss = F.mse_loss(q, x.detach()) + self.beta * commitment
            z_q = straight_through(x, q)
        return Quantized(to_grid(z_q, z), ids.view(len(z), *z.shape[2:]), loss, {"commitment": commitment.detach()})
