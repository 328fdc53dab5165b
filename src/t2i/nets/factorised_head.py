"""How a transformer predicts codes that have parts (several numbers a place, as `quantizers/product.py` makes).

A code is predicted part by part, each under those before it: the first by a linear head, the others by a small network
that sees the transformer's output and the parts before, as the depth transformer of RQ-Transformer does (arXiv
2203.01941; here an MLP a part). Codes of one part are the ordinary case: one norm, one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.nets.transformer import squared_relu


class DepthHead(nn.Module):
    """p(part | the transformer's output, parts before), as logits.

    Args:
        factors: of the whole code; `index` says which part this one predicts, from 1.
        width: of the transformer.
    """

    def __init__(self, factors: tuple[int, ...], index: int, width: int) -> None:
        super().__init__()
        self.told = nn.ModuleList(nn.Embedding(k, width) for k in factors[:index])
        self.norm_in = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 2 * width, bias=False)
        self.mlp_out = nn.Linear(2 * width, width, bias=False)
        self.norm_out = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, factors[index], bias=False)

    def forward(self, x: Float[Tensor, "b n width"], known: Int[Tensor, "b n i"]) -> Float[Tensor, "b n k"]:
        for i, table in enumerate(self.told):
            x = x + table(known[..., i])
        return self.head(self.norm_out(x + self.mlp_out(squared_relu(self.mlp_in(self.norm_in(x))))))


class FactorisedHead(nn.Module):
    """p(part i | the transformer's output, parts before i), as logits."""

    def __init__(self, factors: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.first = nn.Linear(width, factors[0], bias=False)
        readers = nn.ModuleList(DepthHead(factors, i, width) for i in range(1, len(factors)))
        self.readers = cast(Sequence[DepthHead], readers)  # torch's own type forgets what it holds

    def forward(self, x: Float[Tensor, "b n width"], known: Int[Tensor, "b n i"]) -> Float[Tensor, "b n k"]:
        """Logits of part i, given the i parts before it."""
        i = known.shape[-1]
        return self.readers[i - 1](x, known) if i else self.first(self.norm(x))

    def matrices(self) -> list[nn.Linear]:
        """The last one of every part."""
        return [self.first, *(reader.head for reader in self.readers)]
