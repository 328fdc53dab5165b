"""A transformer that predicts codes in any order, many at a time: ARPG (arXiv 2503.10568).

The first half of the layers sees the codes that are known, in the order in which they became known, each at its own
place, causally: its keys and values are cached. The second half asks for the codes of any other places: its queries are
the start token at the wanted place, its keys and values are of what the first half made of the known codes, and no
query sees another. Trained on random orders, it gives p(code at any place | any set of codes, caption).

Deviations: the second half's layers have keys and values of their own, places are rotary positions by row and column
beside a learned embedding of the cell, and captions are heard as in `nets/gpt.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t2i.nets.gpt import Cache, CodeTransformer
from t2i.nets.transformer import Block, CrossBlock, attend, rotary
from t2i.types import unravel_index


class ARPG(CodeTransformer):
    """p(code at a place | codes at other places, caption). Its layers, at least two, are half of one kind and half of
    the other; of an odd number the first half has one more."""

    def block_kinds(self, num_layers: int) -> Iterable[type[Block]]:
        if num_layers < 2:
            raise ValueError(f"num_layers={num_layers}: at least 2 are needed, one for the known codes and one that"
                             " asks for the others")
        second = num_layers // 2
        return chain(repeat(Block, num_layers - second), repeat(CrossBlock, second))

    @property
    def first_half(self) -> Sequence[Block]:
        return self.blocks[: len(self.blocks) - len(self.blocks) // 2]

    @property
    def second_half(self) -> Sequence[CrossBlock]:
        return cast(Sequence[CrossBlock], self.blocks[len(self.blocks) - len(self.blocks) // 2 :])

    def turns(self, device: torch.device) -> Float[Tensor, "2 n half"]:
        """Cosines and sines: first of what has no place, then of every cell."""
        return rotary(1, self.grid, self.start.shape[0] // self.blocks[0].num_heads).to(device, non_blocking=True)

    def items(
        self, each: Int[Tensor, "b m f"], cells: Int[Tensor, "b m"], inputs: Float[Tensor, "_ n width"],
        masked: Bool[Tensor, "b m"] | None = None,
    ) -> Float[Tensor, "b m width"]:
        """Codes at their cells, as the first half takes them."""
        x = self.code(each)
        if masked is not None:
            x = torch.where(masked[..., None], self.masked_code.to(x.dtype), x)
        return x + torch.take_along_dim(inputs, cells[..., None], 1)

    def queries(
        self, cells: Int[Tensor, "b m"], inputs: Float[Tensor, "_ n width"]
    ) -> Float[Tensor, "b m width"]:
        """The places of which the codes are wanted, as the second half takes them."""
        return self.start + torch.take_along_dim(inputs, cells[..., None], 1)

    def begin(
        self, x: Float[Tensor, "b m width"], cells: Int[Tensor, "b m"], text: Float[Tensor, "b t width"],
        table: Float[Tensor, "2 n half"],
    ) -> tuple[Float[Tensor, "b s width"], Float[Tensor, "2 b 1 s half"]]:
        """What the first half begins with, the caption's states as a prefix, the start token and codes at their cells,
        and how each is turned."""
        before = [self.start.expand(len(x), 1, -1)] if self.keys else [text, self.start.expand(len(x), 1, -1)]
        sequence = torch.cat([*before, x], 1)
        places = F.pad(cells + 1, (sequence.shape[1] - cells.shape[1], 0))
        return sequence, table[:, places][:, :, None]

    def forward(
        self, ids: Int[Tensor, "b n"], states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"],
        null: Bool[Tensor, " b"], shown: Int[Tensor, "b n"] | None = None, masked: Bool[Tensor, "b n"] | None = None,
        order: Int[Tensor, "b n"] | None = None,
    ) -> list[Float[Tensor, "b n k"]]:
        """Logits of every code given those that stand before it in `order` (cells; None: raster), in raster order, a
        list for each of `factors`; `null`, `shown` and `masked` as in `GPT.forward`."""
        order = torch.arange(ids.shape[1], device=ids.device).expand_as(ids) if order is None else order
        each = unravel_index(ids, self.factors)
        seen = (each if shown is None else unravel_index(shown, self.factors)).take_along_dim(order[..., None], 1)
        hidden = None if masked is None else masked.gather(1, order)[:, :-1]
        text, mask = self.prefix(states, mask, null)
        table, inputs, of_keys = self.turns(ids.device), self.inputs(text, mask), text if self.keys else None
        known = order[:, :-1]
        x, turns = self.begin(self.items(seen[:, :-1], known, inputs, hidden), known, text, table)
        everywhere, of_codes = self.seen(mask, ids.shape[1])
        for block in self.first_half:
            x = block(x, of_codes if self.keys else everywhere, turns, 0, of_keys)
        y, wanted = self.queries(order, inputs), table[:, order + 1][:, :, None]
        for cross in self.second_half:
            y = cross(y, of_codes, wanted, x, turns, of_keys)
        y = y.take_along_dim(order.argsort(1)[..., None], 1)
        heard = self.predict.hear(text, mask)
        return [self.predict(y, each[..., :i], heard) for i in range(len(self.factors))]

    def prefill(
        self, states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], null: Bool[Tensor, " b"],
        given: Int[Tensor, "b m"], cells: Int[Tensor, "b m"],
    ) -> Cache:
        """Runs the caption, the start token and `given` codes at their `cells`, in that order; returns the cache."""
        text, mask = self.prefix(states, mask, null)
        (b, t), inputs, table = mask.shape, self.inputs(text, mask), self.turns(mask.device)
        x, turns = self.begin(self.items(unravel_index(given, self.factors), cells, inputs), cells, text, table)
        additive, total = self.mask(mask, 1 + given.shape[1], torch.float32), t + 1 + self.num_codes
        dtype = torch.float32 if x.device.type == "cpu" else self.blocks[0].qkv.weight.dtype
        if torch.is_autocast_enabled(x.device.type) and x.device.type != "cpu":
            dtype = torch.get_autocast_dtype(x.device.type)
        size = (len(self.blocks), b, self.blocks[0].num_heads, total, 2 * table.shape[-1])
        keys = torch.zeros(size, dtype=dtype, device=x.device)
        after = F.pad(additive[:, :, -1:, :t], (0, total - t)).to(dtype)
        cache = Cache(keys, torch.zeros_like(keys), after, table, inputs, self.predict.hear(text, mask).to(dtype), t,
                      t if self.keys else 0)
        if self.keys:
            for layer, block in enumerate(self.blocks):
                cache.keys[layer, :, :, :t], cache.values[layer, :, :, :t] = block.of_text(text)
        self.remember(x, turns, additive[:, :, t:] if self.keys else additive, cache)
        return cache

    def remember(self, x: Tensor, turns: Tensor, mask: Float[Tensor, "b 1 s all"], cache: Cache) -> None:
        """Adds a sequence to the cache, of the first half's layers and, of what they made of it, of the second's."""
        start, end = cache.length, cache.length + x.shape[1]
        for layer, block in enumerate(self.first_half):
            q, cache.keys[layer, :, :, start:end], cache.values[layer, :, :, start:end] = block.heads(x, turns)
            attended = attend(q, cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end], mask)
            x = block.finish(x, attended.to(x.dtype))
        for layer, cross in enumerate(self.second_half, len(self.first_half)):
            cache.keys[layer, :, :, start:end], cache.values[layer, :, :, start:end] = cross.of_memory(x, turns)
        cache.length = end

    def append(self, each: Int[Tensor, "b m f"], cells: Int[Tensor, "b m"], cache: Cache) -> None:
        """Adds codes at their cells, in that order, to those that are known."""
        m = cells.shape[1]
        causal = torch.full((m, m), -1e4, dtype=cache.mask.dtype, device=cells.device).triu(1)
        seen = cache.mask[..., : cache.length].expand(-1, -1, m, -1)
        mask = torch.cat([seen, causal.expand(len(seen), 1, m, m)], -1)
        x = self.items(each, cells, cache.inputs)
        self.remember(x, cache.turns[:, cells + 1][:, :, None], mask, cache)

    def ask(self, cells: Int[Tensor, "b m"], cache: Cache) -> Float[Tensor, "b m width"]:
        """What `logits` takes for the codes at these cells, given all that are known."""
        y, turns, end = self.queries(cells, cache.inputs), cache.turns[:, cells + 1][:, :, None], cache.length
        for layer, cross in enumerate(self.second_half, len(self.first_half)):
            keys, values = cache.keys[layer, :, :, :end], cache.values[layer, :, :, :end]
            attended = attend(cross.of_queries(y, turns), keys, values, cache.mask[..., :end])
            y = cross.finish(y, attended.to(y.dtype))
        return y
