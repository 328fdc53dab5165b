"""How a transformer predicts codes that have parts (several numbers a place, as `quantizers/product.py` makes).

A code is predicted part by part, each under those before it: the first by a linear head, the others by a small network
that sees the transformer's output and the parts before, as the depth transformer of RQ-Transformer does (arXiv
2203.01941; here an MLP a part). It may attend to the caption, too: which word a part follows can depend on the parts
before it (the colour is that of the thing whose outline was drawn), and the transformer's output was made before they
were. Codes of one part are the ordinary case: one norm, one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from t2i.nets.transformer import CaptionAttention, squared_relu


@dataclass
class Heard:
    """A caption as the heads of a code's later parts hear it: of each its keys and values (b, num_heads, t, head_dim),
    none where heads do not hear it, and an additive mask (b, 1, 1, t)."""

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor

    def tensors(self) -> list[Tensor]:
        return [*self.keys, *self.values, self.mask]

    def to(self, dtype: torch.dtype) -> Heard:
        return Heard([k.to(dtype) for k in self.keys], [v.to(dtype) for v in self.values], self.mask.to(dtype))

    def clone(self) -> Heard:
        return Heard([k.clone() for k in self.keys], [v.clone() for v in self.values], self.mask.clone())

    def copy_(self, other: Heard) -> None:
        for own, theirs in zip(self.tensors(), other.tensors(), strict=True):
            own.copy_(theirs)


class DepthHead(nn.Module):
    """p(part | the transformer's output, parts before), as logits; with `num_heads` also under the caption.

    Args:
        factors: of the whole code; `index` says which part this one predicts, from 1.
        width: of the transformer.
        num_heads: of attention to the caption; None: there is none.
    """

    def __init__(self, factors: tuple[int, ...], index: int, width: int, num_heads: int | None = None) -> None:
        super().__init__()
        self.told = nn.ModuleList(nn.Embedding(k, width) for k in factors[:index])
        self.caption = None if num_heads is None else CaptionAttention(width, num_heads)
        self.norm_in = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 2 * width, bias=False)
        self.mlp_out = nn.Linear(2 * width, width, bias=False)
        self.norm_out = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, factors[index], bias=False)

    def forward(
        self, x: Float[Tensor, "b n width"], known: Int[Tensor, "b n i"], *heard: Tensor
    ) -> Float[Tensor, "b n k"]:
        """`heard`: keys, values and mask of the caption, as `CaptionAttention` takes them."""
        for i, table in enumerate(self.told):
            x = x + table(known[..., i])
        if self.caption is not None:
            x = x + self.caption(x, *heard)
        return self.head(self.norm_out(x + self.mlp_out(squared_relu(self.mlp_in(self.norm_in(x))))))


class FactorisedHead(nn.Module):
    """p(part i | the transformer's output, parts before i), as logits; see `DepthHead`."""

    def __init__(self, factors: tuple[int, ...], width: int, num_heads: int | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.first = nn.Linear(width, factors[0], bias=False)
        readers = nn.ModuleList(DepthHead(factors, i, width, num_heads) for i in range(1, len(factors)))
        self.readers = cast(Sequence[DepthHead], readers)  # torch's own type forgets what it holds

    def hear(self, text: Float[Tensor, "b t width"], mask: Bool[Tensor, "b t"]) -> Heard:
        """Caption states, of which `mask` says which are real, as `forward` takes them."""
        each = [reader.caption.of_text(text) for reader in self.readers if reader.caption is not None]
        hidden = torch.zeros(mask.shape, dtype=text.dtype, device=mask.device).masked_fill_(~mask, -1e4)
        return Heard([k for k, _ in each], [v for _, v in each], hidden[:, None, None])

    def forward(
        self, x: Float[Tensor, "b n width"], known: Int[Tensor, "b n i"], heard: Heard
    ) -> Float[Tensor, "b n k"]:
        """Logits of part i, given the i parts before it."""
        i = known.shape[-1]
        if not i:
            return self.first(self.norm(x))
        listened = (heard.keys[i - 1], heard.values[i - 1], heard.mask) if heard.keys else ()
        return self.readers[i - 1](x, known, *listened)

    def matrices(self) -> list[nn.Linear]:
        """The last one of every part."""
        return [self.first, *(reader.head for reader in self.readers)]
