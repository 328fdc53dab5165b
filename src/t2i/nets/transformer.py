"""The transformer block of the GPT, and attention as it is fastest on this hardware.

After GPT-2 with QK-norm (LayerNorm on queries and keys, arXiv 2302.05442), squared ReLU (arXiv 2109.08668), no biases;
both branches start at zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from t2i.nets.recompute import Recomputed


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Attention. On a CPU: in bf16 training as plain products (the bf16 kernel takes 6x the time), and for single
    queries over a float32 cache in float32 (the bf16 kernel takes twice the time); measured: docs/log.md.

    `mask` is additive, (b, 1, queries, keys), or (b, t) and says which words of a caption are real: then the keys are
    those of a caption and the codes after it, see `attend_after_caption`.
    """
    if mask.ndim == 2:
        return attend_after_caption(q, k, v, mask)
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.dtype == torch.bfloat16:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask.to(q.dtype)
        return scores.softmax(-1) @ v
    if q.device.type == "cpu" and k.dtype == torch.float32:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k, v.float(), attn_mask=mask.float())
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.to(q.dtype))


def attend_after_caption(
    q: Float[Tensor, "b h r d"], k: Float[Tensor, "b h s d"], v: Float[Tensor, "b h s d"], real: Bool[Tensor, "b t"]
) -> Float[Tensor, "b h r d"]:
    """Attention over a caption's t keys, of which some are padding, and those of the codes after them: words see the
    real words, codes see these and the codes up to themselves. Queries are of all places, or of the codes alone.

    Without a mask of places x places, which would rule out the flash kernels: a channel more, 1 in every query, holds
    a large negative number in the keys of padding, and the codes' attention is causal over all places.
    """
    (b, heads, s, d), t = k.shape, real.shape[1]
    n, spare = s - t, 8 - d % 8  # kernels want multiples of 8 channels
    hidden = F.pad((~real).to(k.dtype) * -3e4, (0, n))[:, None, :, None]  # once scaled still finite in fp16
    k = torch.cat([k, F.pad(hidden, (0, spare - 1)).expand(b, heads, s, spare)], -1)
    q, v, scale = F.pad(q, (0, spare), value=1.0), F.pad(v, (0, spare)), d**-0.5
    before = t - (q.shape[2] - n)  # rows that make the queries as many as the keys, for kernels disagree otherwise
    codes = F.scaled_dot_product_attention(F.pad(q, (0, 0, before, 0)), k, v, is_causal=True, scale=scale)[:, :, t:, :d]
    if before:
        return codes
    words = F.scaled_dot_product_attention(q[:, :, :t], k[:, :, :t], v[:, :, :t], scale=scale)[..., :d]
    return torch.cat([words, codes], 2)


def rotary(prefix: int, grid: tuple[int, int], head_dim: int) -> Float[Tensor, "2 s half"]:
    """Cosines and sines that turn pairs of channels by the place in a grid, half of the pairs by its row and half by
    its column (rotary positions, arXiv 2104.09864, on two axes as in 2403.13298), after `prefix` places not turned."""
    frequencies = 100.0 ** -(torch.arange(head_dim // 4) / (head_dim // 4))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = torch.cat([rows.reshape(-1, 1) * frequencies, columns.reshape(-1, 1) * frequencies], 1)
    angles = F.pad(angles, (0, 0, prefix, 0))
    return torch.stack([angles.cos(), angles.sin()])


def turned(x: Float[Tensor, "... d"], turns: Float[Tensor, "2 ... half"]) -> Float[Tensor, "... d"]:
    """Each pair (channel i, channel i + d / 2) rotated by its angle."""
    (cosine, sine), (a, b) = turns.to(x.dtype), x.chunk(2, -1)
    return torch.cat([a * cosine - b * sine, a * sine + b * cosine], -1)


def wide_turns(turns: Float[Tensor, "2 s half"]) -> Float[Tensor, "2 s d"]:
    """`turns` such that `turned(x)` is x times the first plus x, its halves swapped, times the second, bit for bit."""
    cosine, sine = turns
    return torch.stack([torch.cat([cosine, cosine], -1), torch.cat([-sine, sine], -1)])


@contextmanager
def matrix_vector(x: Tensor) -> Iterator[None]:
    """For one bf16 vector a matrix on a CPU, torch's own kernel: it streams the weights, where oneDNN's strides
    through them at a fraction of the memory's speed (measured: benchmarks/run.py decoding)."""
    one = x.device.type == "cpu" and x.dtype == torch.bfloat16 and len(x) == 1
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = before and not one  # type: ignore[assignment]  # torch types it as a descriptor
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


class _SquaredReLU(torch.autograd.Function):
    """relu(x)², with one elementwise product in the backward where autograd would take four passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        hidden = F.relu(x)
        ctx.save_for_backward(hidden)
        return hidden * hidden  # a product: `square` is several times slower on CPUs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (hidden,) = ctx.saved_tensors
        return (gradient * hidden).mul_(2)


def squared_relu(x: Tensor) -> Tensor:
    return _SquaredReLU.apply(x)


class CaptionAttention(nn.Module):
    """Attention of any places to the states of a caption; its output projection starts at zero."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width, bias=False)
        self.query = nn.Linear(width, width, bias=False)
        self.text_kv = nn.Linear(width, 2 * width, bias=False)
        self.norm_q = nn.LayerNorm(width // num_heads, bias=False)
        self.norm_k = nn.LayerNorm(width // num_heads, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)

    def of_text(self, states: Float[Tensor, "b t width"]) -> tuple[Tensor, Tensor]:
        """Caption states -> k and v, each (b, num_heads, t, head_dim)."""
        k, v = self.text_kv(states).view(*states.shape[:2], 2, self.num_heads, -1).unbind(2)
        return self.norm_k(k).transpose(1, 2).to(v.dtype), v.transpose(1, 2)

    def forward(self, x: Float[Tensor, "b n width"], k: Tensor, v: Tensor, mask: Tensor) -> Float[Tensor, "b n width"]:
        """What x hears of the caption; `mask` is additive, (b, 1, 1, t)."""
        q = self.query(self.norm(x)).view(*x.shape[:2], self.num_heads, -1)
        attended = attend(self.norm_q(q).transpose(1, 2).to(q.dtype), k, v, mask)
        return self.attention_out(attended.to(q.dtype).transpose(1, 2).reshape(x.shape))


class Block(Recomputed):
    """Attention and MLP with residual connections; both output projections start at zero. With `text_dim` the attention
    also sees the states of a caption, through keys and values of this block's own."""

    def __init__(self, width: int, num_heads: int, dropout: float, text_dim: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        if text_dim is not None:
            self.text_kv = nn.Linear(text_dim, 2 * width, bias=False)
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = nn.LayerNorm(width // num_heads, bias=False)
        self.norm_k = nn.LayerNorm(width // num_heads, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.norm_mlp = nn.LayerNorm(width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def heads(self, x: Tensor, turns: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x (b, s, width) -> q, k, v, each (b, heads, s, head_dim), q and k normalised, and turned (`rotary`)."""
        b, s, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(b, s, 3, self.num_heads, width // self.num_heads).unbind(2)
        q, k = self.norm_q(q).transpose(1, 2), self.norm_k(k).transpose(1, 2)
        if turns is not None:
            q, k = turned(q, turns), turned(k, turns)
        return q.to(v.dtype), k.to(v.dtype), v.transpose(1, 2)

    def of_text(self, states: Float[Tensor, "b t d"]) -> tuple[Tensor, Tensor]:
        """Caption states -> k and v, each (b, heads, t, head_dim); k normalised and not turned: words have no place."""
        b, t, _ = states.shape
        k, v = self.text_kv(states).view(b, t, 2, self.num_heads, -1).unbind(2)
        return self.norm_k(k).transpose(1, 2).to(v.dtype), v.transpose(1, 2)

    def keys_and_values(
        self, x: Tensor, turns: Tensor | None, states: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q of x, and k and v of the caption, if there is one, and of x after it."""
        q, k, v = self.heads(x, turns)
        if states is None:
            return q, k, v
        text_k, text_v = self.of_text(states)
        return q, torch.cat([text_k, k], 2), torch.cat([text_v, v], 2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Adds the attention's result (b, heads, s, head_dim) and the MLP to x (b, s, width)."""
        b, s, width = x.shape
        x = x + self.drop(self.attention_out(attended.transpose(1, 2).reshape(b, s, width)))
        return x + self.drop(self.mlp_out(squared_relu(self.mlp_in(self.norm_mlp(x)))))

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout > 0 else x

    def forward(
        self, x: Tensor, mask: Tensor, turns: Tensor | None = None, start: int = 0, states: Tensor | None = None
    ) -> Tensor:
        """Positions from `start` on, which see all that the mask (b, 1, s, s or t + s; or that of a caption, see
        `attend`) lets them see of x and of the t `states`."""
        return self.again(self.run, x, mask, turns, start, states)

    def run(self, x: Tensor, mask: Tensor, turns: Tensor | None, start: int, states: Tensor | None) -> Tensor:
        q, k, v = self.keys_and_values(x, turns, states)
        mask = mask if mask.ndim == 2 else mask[:, :, start:]
        return self.finish(x[:, start:], attend(q[:, :, start:], k, v, mask))

    def step(
        self, x: Tensor, keys: Tensor, values: Tensor, mask: Tensor, turns: Tensor, at: Int[Tensor, "1"] | None = None
    ) -> Tensor:
        """One position a picture, x (b, width), over cached keys and values (b, heads, s, head_dim), of which those at
        index `at`, or the last, are filled in; `turns` are `wide_turns`. As `forward`, in fewer and smaller operations:
        at batch 1, and on a GPU, their number counts."""
        b, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(b, 3, self.num_heads, width // self.num_heads).unbind(1)
        both = torch.stack([self.norm_q(q), self.norm_k(k)])
        q, k = both * turns[0] + both.roll(both.shape[-1] // 2, -1) * turns[1]
        if at is None:
            keys[:, :, -1] = k
            values[:, :, -1] = v
        else:
            keys.index_copy_(2, at, k[:, :, None].to(keys.dtype))
            values.index_copy_(2, at, v[:, :, None].to(values.dtype))
        attended = attend(q[:, :, None], keys, values, mask)
        x = x + self.attention_out(attended.to(v.dtype).view(b, width))
        hidden = F.relu(self.mlp_in(self.norm_mlp(x)))
        return x + self.mlp_out(hidden * hidden)


class CrossBlock(Block):
    """A block whose queries are of one sequence, and whose keys and values are of another (`memory`) and of a caption;
    the queries do not see each other."""

    halves: tuple[nn.Module, nn.Module] | None = None  # of queries and of memory (nets/cpu_linear.py)

    def of_queries(self, x: Float[Tensor, "b s width"], turns: Tensor) -> Tensor:
        """q (b, heads, s, head_dim), normalised and turned."""
        b, s, width = x.shape
        x = self.norm_attention(x)
        q = F.linear(x, self.qkv.weight[:width]) if self.halves is None else self.halves[0](x)
        q = q.view(b, s, self.num_heads, -1)
        return turned(self.norm_q(q).transpose(1, 2), turns).to(q.dtype)

    def of_memory(self, x: Float[Tensor, "b s width"], turns: Tensor) -> tuple[Tensor, Tensor]:
        """k and v, each (b, heads, s, head_dim); k normalised and turned."""
        b, s, width = x.shape
        x = self.norm_attention(x)
        both = F.linear(x, self.qkv.weight[width:]) if self.halves is None else self.halves[1](x)
        k, v = both.view(b, s, 2, self.num_heads, -1).unbind(2)
        return turned(self.norm_k(k).transpose(1, 2), turns).to(v.dtype), v.transpose(1, 2)

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor, turns: Tensor, memory: Tensor, memory_turns: Tensor, states: Tensor | None
    ) -> Tensor:
        """x (b, s, width), which sees what the mask (b, 1, s, m or t + m; or see `attend`) lets it see of the m of
        `memory` and the t of `states`."""
        return self.again(self.across, x, mask, turns, memory, memory_turns, states)

    def across(
        self, x: Tensor, mask: Tensor, turns: Tensor, memory: Tensor, memory_turns: Tensor, states: Tensor | None
    ) -> Tensor:
        k, v = self.of_memory(memory, memory_turns)
        if states is not None:
            text_k, text_v = self.of_text(states)
            k, v = torch.cat([text_k, k], 2), torch.cat([text_v, v], 2)
        return self.finish(x, attend(self.of_queries(x, turns), k, v, mask))
