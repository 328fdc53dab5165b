"""How a transformer reads and writes codes that have parts (several numbers a place, as `quantizers/product.py` makes).

A code's embedding is the sum of its parts' embeddings. A code is predicted part by part, each under those before it,
by a small net on the transformer's output: the idea of the depth transformer of RQ-Transformer (arXiv 2203.01941),
with an MLP in the transformer's place. Codes of one part are the ordinary case: one table, one norm, one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class CodeEmbedding(nn.Module):
    """Codes as digits (..., f) -> vectors (..., dim)."""

    def __init__(self, factors: Sequence[int], dim: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(k, dim) for k in factors)

    def forward(self, each: Int[Tensor, "... f"]) -> Float[Tensor, "... dim"]:
        total = self.tables[0](each[..., 0])
        for i, table in enumerate(self.tables[1:], 1):
            total = total + table(each[..., i])
        return total


class Refine(nn.Module):
    """What is known before the next part: the part just drawn, and an MLP on all of it."""

    def __init__(self, factor: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(factor, width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 2 * width, bias=False)
        self.mlp_out = nn.Linear(2 * width, width, bias=False)

    def forward(self, x: Float[Tensor, "... width"], part: Int[Tensor, "..."]) -> Float[Tensor, "... width"]:
        x = x + self.embedding(part)
        hidden = F.relu(self.mlp_in(self.norm(x)))
        return x + self.mlp_out(hidden * hidden)


class CodeHead(nn.Module):
    """p(part i | the transformer's output, parts before i), as logits."""

    def __init__(self, factors: Sequence[int], width: int) -> None:
        super().__init__()
        self.refine = nn.ModuleList(Refine(k, width) for k in factors[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in factors)
        self.heads = nn.ModuleList(nn.Linear(width, k, bias=False) for k in factors)

    def forward(self, x: Float[Tensor, "... width"], known: Int[Tensor, "... i"]) -> Float[Tensor, "... k"]:
        """Logits of part i, given the i parts before it."""
        count = known.shape[-1]
        for i in range(count):
            x = self.refine[i](x, known[..., i])
        return self.heads[count](self.norms[count](x))

    def every(self, x: Float[Tensor, "... width"], each: Int[Tensor, "... f"]) -> list[Float[Tensor, "... k"]]:
        """Logits of all parts, each under the true ones before it."""
        found = [self.heads[0](self.norms[0](x))]
        for i, refine in enumerate(self.refine):
            x = refine(x, each[..., i])
            found.append(self.heads[i + 1](self.norms[i + 1](x)))
        return found
