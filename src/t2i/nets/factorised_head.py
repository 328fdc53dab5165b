"""How a transformer predicts codes that have parts (several numbers a place, as `quantizers/product.py` makes).

A code is predicted part by part, each under those before it, as the depth transformer of RQ-Transformer does (arXiv
2203.01941). The first part is an ordinary linear head. The others are of one of two kinds:

"depth": a small network sees the transformer's output and the parts before.

"pointer": the transformer sees no part but the first, and its output only says where to look, among the words of the
caption, the codes of the places around and a few constants, and what is seen there decides. So a colour is the one
that its word names, or the one next to it, and that a shape never had it in training is no reason against it
(docs/log.md has the gains). Pointer networks (arXiv 1506.03134) and copying (arXiv 1603.06393) are the ancestors; here
values are mixed, not probabilities, which learns far more quickly.

Codes of one part are the ordinary case: one norm, one matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.nets.transformer import squared_relu

HEADS = 4  # of the attention to words
CONSTANTS = 2  # values beside words and neighbours
SUMMARY = 2  # numbers in which the others see the first part: which way round, flat or not; not what it shows
NOISE = 0.3  # added to these numbers in training, so that they cannot carry more after all
AROUND = 3  # places whose codes are seen: left, above, above to the right


@dataclass
class Words:
    """A caption as a pointer head sees it: keys and values (b, heads, t, head_dim), and which words are real (b, t)."""

    key: Tensor
    value: Tensor
    mask: Tensor


def around(each: Int[Tensor, "b n f"], columns: int) -> Int[Tensor, "b n 3 f"]:
    """One more than the codes left of, above, and above to the right of every place; 0 where there is none."""
    n = each.shape[1]
    every = torch.arange(n, device=each.device) % columns
    before = F.pad(each + 1, (0, 0, columns + 1, 0))  # (b, columns + 1 + n, f)
    left = before[:, columns : columns + n] * (every > 0)[:, None]
    right = before[:, 2 : 2 + n] * (every < columns - 1)[:, None]
    return torch.stack([left, before[:, 1 : 1 + n], right], 2)


class PointerHead(nn.Module):
    """p(part | what is seen where x looks), as logits.

    Args:
        factors: of the whole code; `index` says which part this one predicts, from 1.
        width: of the transformer. text_dim: of the caption's word states.
    """

    offsets: Tensor

    def __init__(self, factors: tuple[int, ...], index: int, width: int, text_dim: int) -> None:
        super().__init__()
        self.index = index
        self.told = nn.ModuleList(nn.Embedding(k, width) for k in factors[:index])
        self.norm_in = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(3 * text_dim, width, bias=False)
        self.value = nn.Linear(text_dim, width, bias=False)
        sizes = [k + 1 for k in (*factors[1:] * AROUND, *factors[1:index])]  # 0: outside the picture
        self.register_buffer("offsets", torch.tensor([0, *sizes[:-1]]).cumsum(0), persistent=False)
        self.seen = nn.Parameter(torch.zeros(sum(sizes), width))
        self.constants = nn.Parameter(torch.zeros(CONSTANTS, width))
        self.look = nn.Linear(width, len(sizes) + CONSTANTS)
        self.summary = nn.Embedding(factors[0], SUMMARY)
        self.summary_in = nn.Linear(SUMMARY, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 2 * width, bias=False)
        self.mlp_out = nn.Linear(2 * width, width, bias=False)
        self.norm_out = nn.LayerNorm(width, bias=False)
        self.head = nn.Linear(width, factors[index], bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (b, s, width) -> (b, heads, s, head_dim)

    def words(self, states: Float[Tensor, "b t d"], triples: Float[Tensor, "b t d3"], mask: Tensor) -> Words:
        """A caption's word states, the same with those before and after, and which are real (b, t)."""
        return Words(self.heads(self.key(triples)), self.heads(self.value(states)), mask)

    def forward(
        self, x: Float[Tensor, "b n width"], known: Int[Tensor, "b n i"], near: Int[Tensor, "b n 3 f"], words: Words
    ) -> Float[Tensor, "b n k"]:
        for i, table in enumerate(self.told):
            x = x + table(known[..., i])
        x = self.norm_in(x)
        looks = self.heads(self.query(x)) @ words.key.transpose(-1, -2) * words.key.shape[-1] ** -0.5
        of_word = looks.masked_fill(~words.mask[:, None, None], -1e4).softmax(-1)
        share, s = self.look(x).softmax(-1), len(self.offsets)
        codes = torch.cat([near[..., 1:].flatten(2), known[..., 1:] + 1], -1) + self.offsets
        of_code = share.new_zeros(*codes.shape[:2], len(self.seen)).scatter_add(2, codes, share[..., :s])
        y = (of_word @ words.value).transpose(1, 2).flatten(2)
        y = y + of_code @ self.seen + share[..., s:] @ self.constants
        summary = torch.tanh(self.summary(known[..., 0]))
        y = y + self.summary_in(summary + NOISE * torch.randn_like(summary) if self.training else summary)
        return self.head(self.norm_out(y + self.mlp_out(squared_relu(self.mlp_in(self.norm_mlp(y))))))


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

    def words(self, states: Tensor, triples: Tensor, mask: Tensor) -> Words:
        """Nothing: this head does not look at words."""
        return Words(states[:, :0], states[:, :0], mask)

    def forward(
        self, x: Float[Tensor, "b n width"], known: Int[Tensor, "b n i"], near: Int[Tensor, "b n 3 f"], words: Words
    ) -> Float[Tensor, "b n k"]:
        for i, table in enumerate(self.told):
            x = x + table(known[..., i])
        return self.head(self.norm_out(x + self.mlp_out(squared_relu(self.mlp_in(self.norm_in(x))))))


class FactorisedHead(nn.Module):
    """p(part i | the transformer's output, parts before i), as logits."""

    def __init__(
        self, factors: tuple[int, ...], width: int, text_dim: int, kind: Literal["pointer", "depth"] = "pointer"
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, bias=False)
        self.first = nn.Linear(width, factors[0], bias=False)
        later = range(1, len(factors))
        readers = nn.ModuleList(PointerHead(factors, i, width, text_dim) if kind == "pointer"
                                else DepthHead(factors, i, width) for i in later)
        self.readers = cast(Sequence[PointerHead | DepthHead], readers)  # torch's own type forgets what it holds

    def words(self, states: Tensor, triples: Tensor, mask: Tensor) -> list[Words]:
        """The caption as each pointer head sees it, once a caption."""
        return [reader.words(states, triples, mask) for reader in self.readers]

    def forward(
        self, x: Float[Tensor, "b n width"], known: Int[Tensor, "b n i"], near: Int[Tensor, "b n 3 f"],
        words: Sequence[Words],
    ) -> Float[Tensor, "b n k"]:  # fmt: skip
        """Logits of part i, given the i parts before it."""
        i = known.shape[-1]
        return self.readers[i - 1](x, known, near, words[i - 1]) if i else self.first(self.norm(x))

    def matrices(self) -> list[nn.Linear]:
        """The last one of every part."""
        return [self.first, *(reader.head for reader in self.readers)]
