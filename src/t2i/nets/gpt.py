"""A GPT over a tokenizer's codes, with caption states as its prefix.

After GPT-2 with the changes that small and bf16 training reward: QK-norm (LayerNorm on queries and keys, arXiv
2302.05442) so that attention logits stay bounded, squared ReLU (arXiv 2109.08668), no biases. The text prefix sees
itself in both directions, codes see the prefix and the codes before them. With `caption="keys"` there is no prefix:
every block has keys and values of its own for the caption's states, and their mean is added to every input. Codes have
two-dimensional rotary positions (arXiv 2403.13298) beside a learned embedding of the cell. Codes of several parts are
predicted part by part (`nets/factorised_head.py`). Embedding and head may start from the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from t2i.nets.factorised_head import FactorisedHead, Heard
from t2i.nets.transformer import Block, attend, matrix_vector, rotary, wide_turns
from t2i.types import unravel_index


@dataclass
class Cache:
    """Keys and values of every layer, allocated once: (layers, b, heads, text + codes, head_dim).

    In float32 on a CPU (see `attend`), elsewhere in the precision of the net. `mask` is additive, (b, 1, 1, text +
    codes), over positions to come too; `turns` are the `wide_turns` of `GPT.turns`; `inputs` (b or 1, codes, width) is
    what is added to the code before each place; `heard` is what `logits` takes; `length` positions are filled, `prefix`
    of them by text.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    turns: Tensor
    inputs: Tensor
    heard: Heard
    prefix: int
    length: int


class CodeTransformer(nn.Module):
    """What a transformer over codes has, whichever their order: how it hears captions, sees codes and predicts them.

    Args:
        factors: the number of codes K, or of each part of a code (`t2i.types.unravel_index`); the start token is an
            embedding of its own, never a code's id.
        grid: (rows, columns) of codes in a picture.
        text_dim: width of the caption states.
        text_length: the longest prefix, in text tokens.
        width, num_layers, num_heads: the transformer; `width` is `num_heads` times a multiple of 4.
        dropout: on both residual branches, in training.
        word_triples: a word's state comes with those of its two neighbours, so that an adjective stands with its noun
            before any attention has learned to look there.
        caption: "prefix", which the blocks carry along, or "keys", see above.
        caption_heads: whether the heads of a code's later parts attend to the caption (`nets/factorised_head.py`).
        masks: whether inputs may be masked (`forward`'s `masked`), by a learned code of their own.

    `dense_mask`: whether training's attention is given a mask of places x places; None: on a CPU, where it is quicker.
    """

    dense_mask: bool | None = None

    def __init__(
        self, factors: Sequence[int], grid: tuple[int, int], text_dim: int, text_length: int, width: int = 256,
        num_layers: int = 6, num_heads: int = 4, dropout: float = 0.0, word_triples: bool = True, masks: bool = False,
        caption: Literal["prefix", "keys"] = "prefix", caption_heads: bool = False,
    ) -> None:
        super().__init__()
        if num_heads < 1 or num_layers < 1:
            raise ValueError(f"num_heads={num_heads} and num_layers={num_layers} must be at least 1")
        if width % num_heads:
            raise ValueError(f"width={width} is not divisible by num_heads={num_heads}: a multiple of"
                             f" {4 * num_heads} is needed")
        if caption not in ("prefix", "keys"):
            raise ValueError(f"caption={caption!r}: one of prefix, keys is needed")
        if width // num_heads % 4:
            raise ValueError(f"width={width} over num_heads={num_heads} gives heads of {width // num_heads} channels; a"
                             " multiple of 4 is needed, as positions turn pairs of channels by row and by column")
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout} is outside [0, 1)")
        self.factors, self.codebook_size = tuple(factors), math.prod(factors)
        rows, columns = grid
        self.grid, self.text_length = (rows, columns), text_length
        self.num_codes = rows * columns
        self.word_triples = word_triples
        self.codes = nn.Embedding(self.factors[0], width)
        part_codes = nn.ModuleList(nn.Embedding(size, width) for size in self.factors[1:])
        self.part_codes = cast(Sequence[nn.Embedding], part_codes)  # torch's own type forgets what it holds
        if masks:
            self.masked_code = nn.Parameter(torch.zeros(width))
        self.start = nn.Parameter(torch.zeros(width))
        self.cell = nn.Parameter(torch.zeros(rows, columns, width))
        self.keys = caption == "keys"
        self.text_in = nn.Linear(text_dim * (3 if word_triples else 1), width)
        self.text_position = nn.Parameter(torch.zeros(text_length, width))
        if self.keys:
            self.mean_in = nn.Linear(width, width)
        self.null = nn.Parameter(torch.zeros(width))  # the caption that says nothing: learned, one position
        of_text = width if self.keys else None
        kinds = self.block_kinds(num_layers)
        blocks = nn.ModuleList(kind(width, num_heads, dropout, of_text) for kind in kinds)
        self.blocks = cast(Sequence[Block], blocks)
        self.predict = FactorisedHead(self.factors, width, num_heads if caption_heads else None)
        self.initialise()

    def block_kinds(self, num_layers: int) -> Iterable[type[Block]]:
        """Of each layer, one at a time: a file may claim a billion."""
        return repeat(Block, num_layers)

    def initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if "norm" in name or name.endswith("bias"):
                continue
            if name.endswith(("attention_out.weight", "mlp_out.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith(("qkv.weight", "mlp_in.weight", "text_in.weight", "text_kv.weight", "query.weight",
                                "mean_in.weight")):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
            elif name.startswith("part_codes."):
                nn.init.zeros_(parameter)
            elif name.endswith(("first.weight", "head.weight")):
                nn.init.normal_(parameter, std=0.02)
            else:
                nn.init.normal_(parameter, std=0.5 if name.startswith("codes.") else 0.1)

    def prefix(
        self, states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], null: Bool[Tensor, " b"]
    ) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]:
        """Caption states for the blocks, projected to their width if they are a prefix, and which of them are real;
        where `null`, the caption gives way to the learned null prefix."""
        if states.shape[1] > self.text_length:
            raise ValueError(f"the prefix has {states.shape[1]} text tokens; at most {self.text_length} are allowed")
        t, x = states.shape[1], F.layer_norm(states.to(self.null.dtype), states.shape[-1:]) * mask[..., None]
        if self.word_triples:
            x = torch.cat([F.pad(x, (0, 0, 1, 0))[:, :-1], x, F.pad(x, (0, 0, 0, 1))[:, 1:]], -1)
        x = self.text_in(x) + self.text_position[:t]
        first = (torch.arange(mask.shape[1], device=mask.device) == 0).expand_as(mask)
        return torch.where(null[:, None, None], self.null.to(x.dtype), x), torch.where(null[:, None], first, mask)

    def inputs(self, text: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b n width"]:
        """What every input has beside codes: the cell that it predicts, and with `keys` the mean of the caption."""
        cells = self.cell.flatten(0, 1)
        if not self.keys:
            return cells[None]
        mean = (text * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return cells + self.mean_in(mean)[:, None]

    def code(self, each: Int[Tensor, "b m f"]) -> Float[Tensor, "b m width"]:
        """Codes as the blocks see them."""
        x = self.codes(each[..., 0])
        for i, table in enumerate(self.part_codes, 1):
            x = x + table(each[..., i])
        return x

    @torch.no_grad()
    def start_from(self, codebooks: Sequence[Float[Tensor, "k d"]]) -> None:
        """Initialises embedding and head by one random projection of each codebook's vectors, so that codes which
        look alike start alike and what is learned of one holds for the others."""
        if self.codes.weight.is_meta:
            return  # only shapes are asked for
        for i, (vectors, head) in enumerate(zip(codebooks, self.predict.matrices(), strict=True)):
            vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp_min(1e-6)
            projection = torch.randn(vectors.shape[1], head.in_features) * vectors.shape[1] ** -0.5
            projected = vectors.float().cpu() @ projection
            head.weight.copy_(0.04 * projected + 0.01 * torch.randn_like(projected))
            table = self.part_codes[i - 1] if i else self.codes
            table.weight.copy_(0.5 * projected + 0.1 * torch.randn_like(projected))

    def mask(self, text: Bool[Tensor, "b t"], num_codes: int, dtype: torch.dtype) -> Tensor:
        """Additive mask (b, 1, t + n, t + n): everyone sees the real text, codes see codes up to themselves."""
        b, t = text.shape
        size = t + num_codes
        allowed = torch.ones(size, size, dtype=torch.bool, device=text.device).tril()
        allowed = allowed.expand(b, size, size).clone()
        allowed[:, :, :t] = text[:, None, :]
        return torch.zeros(b, 1, size, size, dtype=dtype, device=text.device).masked_fill_(~allowed[:, None], -1e4)

    def seen(self, text: Bool[Tensor, "b t"], num_codes: int) -> tuple[Tensor, Tensor]:
        """What every place sees in training, and what the codes do, as `attend` takes it."""
        if not (self.dense_mask if self.dense_mask is not None else text.device.type == "cpu"):
            return text, text
        mask = self.mask(text, num_codes, torch.float32)
        if torch.is_autocast_enabled(text.device.type):
            mask = mask.to(torch.get_autocast_dtype(text.device.type))  # once, not in every block
        return mask, mask[:, :, text.shape[1] :]

    def logits(self, x: Float[Tensor, "r width"], known: Int[Tensor, "r i"], heard: Heard) -> Float[Tensor, "r k"]:
        """Logits of part i of codes, given the i parts before it; `x` has as many rows for every caption that `heard`
        (of the cache) holds."""
        by_caption = len(heard.mask), len(x) // len(heard.mask)
        with matrix_vector(x):
            return self.predict(x.unflatten(0, by_caption), known.unflatten(0, by_caption), heard).flatten(0, 1)


class GPT(CodeTransformer):
    """p(code | codes before it, caption), in raster order."""

    def turns(self, text_length: int, device: torch.device) -> Float[Tensor, "2 s half"]:
        """Cosines and sines for the prefix, which is not turned, and all codes."""
        head_dim = self.start.shape[0] // self.blocks[0].num_heads
        return rotary(0 if self.keys else text_length, self.grid, head_dim).to(device, non_blocking=True)

    def embed(
        self, each: Int[Tensor, "b m f"], inputs: Float[Tensor, "b n width"], masked: Bool[Tensor, "b m"] | None = None
    ) -> Tensor:
        """The start token and m codes, each with its `inputs`: (b, m + 1, width), at most one for each of the grid."""
        (b, m), codes = each.shape[:2], self.code(each)
        if masked is not None:
            codes = torch.where(masked[..., None], self.masked_code.to(codes.dtype), codes)
        return torch.cat([self.start.expand(b, 1, -1), codes], 1)[:, : self.num_codes] + inputs[:, : m + 1]

    def forward(
        self, ids: Int[Tensor, "b n"], states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"],
        null: Bool[Tensor, " b"], shown: Int[Tensor, "b n"] | None = None, masked: Bool[Tensor, "b n"] | None = None,
    ) -> list[Float[Tensor, "b n k"]]:
        """Logits of every code given those before it, a list for each of `factors`; `null` marks pictures whose
        caption is dropped. `shown` are the codes that the net sees instead (the parts of a code itself are true),
        `masked` those that it does not see at all."""
        each = unravel_index(ids, self.factors)
        seen = each if shown is None else unravel_index(shown, self.factors)
        text, mask = self.prefix(states, mask, null)
        x = self.embed(seen[:, :-1], self.inputs(text, mask), None if masked is None else masked[:, :-1])
        t, of_keys = text.shape[1], text if self.keys else None
        x = x if self.keys else torch.cat([text, x], 1)
        turns = self.turns(t, x.device)[:, : x.shape[1]]
        everywhere, of_codes = self.seen(mask, ids.shape[1])
        seen_by_all, start = (of_codes, 0) if self.keys else (everywhere, t)
        for block in self.blocks[:-1]:
            x = block(x, seen_by_all, turns, 0, of_keys)
        x = self.blocks[-1](x, seen_by_all, turns, start, of_keys)
        heard = self.predict.hear(text, mask)
        return [self.predict(x, each[..., :i], heard) for i in range(len(self.factors))]

    def prefill(
        self, states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], null: Bool[Tensor, " b"],
        given: Int[Tensor, "b m"],
    ) -> tuple[Float[Tensor, "b width"], Cache]:
        """Runs the prefix, the start token and `given` codes once; returns what `logits` takes, and the cache."""
        each = unravel_index(given, self.factors)
        text, mask = self.prefix(states, mask, null)
        (b, t), inputs, of_keys = mask.shape, self.inputs(text, mask), text if self.keys else None
        x = self.embed(each, inputs)
        additive, turns, end = self.mask(mask, x.shape[1], torch.float32), self.turns(t, x.device), t + x.shape[1]
        x, additive = (x, additive[:, :, t:]) if self.keys else (torch.cat([text, x], 1), additive)
        cache = None
        for layer, block in enumerate(self.blocks):
            q, k, v = block.keys_and_values(x, turns[:, : x.shape[1]], of_keys)
            if cache is None:
                size = (len(self.blocks), b, block.num_heads, t + self.num_codes, k.shape[-1])
                dtype = torch.float32 if k.device.type == "cpu" else k.dtype
                after = F.pad(additive[:, :, -1:, :t], (0, self.num_codes)).to(dtype)
                empty = k.new_zeros(size, dtype=dtype)
                wide = wide_turns(turns).to(x.dtype)
                heard = self.predict.hear(text, mask).to(dtype)
                cache = Cache(empty, torch.zeros_like(empty), after, wide, inputs, heard, t, end)
            cache.keys[layer, :, :, :end] = k
            cache.values[layer, :, :, :end] = v
            x = block.finish(x, attend(q, k, v, additive))
        assert cache is not None  # there is at least one layer
        return x[:, -1], cache

    def step(self, each: Int[Tensor, "b f"], cache: Cache) -> Float[Tensor, "b width"]:
        """Appends one code a picture, part by part, to the cache; returns what `logits` takes for the next."""
        index = cache.length - cache.prefix  # the cell that this step predicts
        x, end = self.code(each) + cache.inputs[:, index], cache.length + 1
        mask, turn = cache.mask[..., :end], cache.turns[:, index if self.keys else end - 1]
        with matrix_vector(x):
            for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
                x = block.step(x, keys[:, :, :end], values[:, :, :end], mask, turn)
        cache.length = end
        return x

    def static_step(
        self, each: Int[Tensor, "b f"], cache: Cache, index: Int[Tensor, "1"]
    ) -> Float[Tensor, "b width"]:
        """As `step`, for the cell `index`, with shapes that are the same for all cells: attention over the whole
        cache, in which what is not filled yet is masked. `cache.length` is neither read nor moved."""
        x, at = self.code(each) + cache.inputs.index_select(1, index)[:, 0], index + cache.prefix
        columns = torch.arange(cache.mask.shape[-1], device=x.device)
        mask, turn = cache.mask.masked_fill(columns > at, -1e4), cache.turns.index_select(1, index if self.keys else at)
        with matrix_vector(x):
            for block, keys, values in zip(self.blocks, cache.keys, cache.values, strict=True):
                x = block.step(x, keys, values, mask, turn[:, 0], at)
        return x
