"""Decoding with static shapes: every code is the same operations on the same memory, so that a GPU records them once.

Eagerly a small GPT's step is bound by the launches of its few hundred kernels, whatever the batch. Here a step takes
its place as a tensor, writes keys and values by index, attends over the whole cache under a mask, draws the code from
uniform numbers that were made beforehand, and waits for the host nowhere: one CUDA graph, replayed once a code.

The codes are those of the loop in `sampling.py` but for rounding: what is masked has a weight of exp(-1e4) = 0, and
only the order in which a kernel sums over more columns can differ.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Hashable
from contextlib import nullcontext
from typing import Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from t2i.nets.factorised_head import Heard
from t2i.nets.gpt import GPT, Cache
from t2i.types import ravel_index

_COLUMNS = 8  # a multiple of so many: what the kernels of attention under a mask need on a GPU


class Sampler(Protocol):
    def __call__(
        self, model: GPT, x: Float[Tensor, "w width"], heard: Heard, uniform: Float[Tensor, "b f"]
    ) -> Int[Tensor, "w f"]: ...

    def __hash__(self) -> int: ...


class StaticDecoder:
    """The memory of one shape of drawing, and the step that works on it.

    Args:
        sampler: see `t2i.models.sampling.Sampler`.
        cache, uniform: of a drawing of this shape; `load` takes their values.
    """

    def __init__(self, model: GPT, sampler: Sampler, cache: Cache, uniform: Float[Tensor, "b n f"]) -> None:
        spare = -cache.mask.shape[-1] % _COLUMNS
        self.model, self.sampler = model, sampler
        self.cache = Cache(F.pad(cache.keys, (0, 0, 0, spare)), F.pad(cache.values, (0, 0, 0, spare)),
                           F.pad(cache.mask, (0, spare), value=-1e4), cache.turns, cache.inputs.clone(),
                           cache.heard.clone(), cache.prefix, cache.length)
        self.uniform = uniform.clone()
        self.ids = torch.zeros(uniform.shape[:2], dtype=torch.long, device=uniform.device)
        self.each = torch.zeros(cache.keys.shape[1], uniform.shape[2], dtype=torch.long, device=uniform.device)
        self.index = torch.zeros(1, dtype=torch.long, device=uniform.device)  # the cell to draw next
        self.graph: torch.cuda.CUDAGraph | None = None

    def load(self, cache: Cache, uniform: Tensor, ids: Tensor, each: Tensor, index: int) -> None:
        """Takes over a drawing whose cells before `index` are drawn; `each` is the last of them."""
        size = cache.keys.shape[3]
        self.cache.keys[:, :, :, :size] = cache.keys
        self.cache.values[:, :, :, :size] = cache.values
        self.cache.mask[..., :size] = cache.mask
        self.cache.inputs.copy_(cache.inputs)
        self.cache.heard.copy_(cache.heard)
        self.uniform.copy_(uniform)
        self.ids.copy_(ids)
        self.each.copy_(each)
        self.index.fill_(index)

    def step(self) -> None:
        """Appends the last code to the cache and draws the next."""
        x = self.model.static_step(self.each, self.cache, self.index)
        self.each.copy_(self.sampler(self.model, x, self.cache.heard, self.uniform.index_select(1, self.index)[:, 0]))
        self.ids.index_copy_(1, self.index, ravel_index(self.each[: len(self.ids)], self.model.factors)[:, None])
        self.index.add_(1)

    def capture(self) -> None:
        """Records a step, after some that let the libraries set themselves up; `load` has to follow."""
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(2):
                self.index.zero_()  # a cell that there is
                self.step()
        current.wait_stream(aside)
        self.index.zero_()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # loaders' threads may pin memory meanwhile
            self.step()
        self.graph = graph

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.step() if self.graph is None else self.graph.replay()


class StaticDecoding:
    """Static decoders, the latest `keep` of them, by shape, options and the weights' place in memory.

    Args:
        capture: whether a step is recorded as a CUDA graph; otherwise it runs as it stands (for tests on a CPU).
    """

    def __init__(self, capture: bool = True, keep: int = 4) -> None:
        self.capture, self.keep = capture, keep
        self.decoders: OrderedDict[Hashable, StaticDecoder] = OrderedDict()
        self.refused: set[str] = set()  # reasons, each said once
        self.failed: str | None = None  # why recording failed, after which it is not tried again

    def __reduce__(self) -> tuple[type[StaticDecoding], tuple[bool, int]]:
        return StaticDecoding, (self.capture, self.keep)  # copies, and other processes, record their own

    def release(self) -> None:
        """Gives the graphs and their memory back."""
        self.decoders.clear()

    def obstacle(self, model: GPT) -> str | None:
        """Why a step cannot be recorded; None if it can."""
        if not self.capture:
            return None
        if self.failed is not None:
            return self.failed
        if torch.is_autocast_enabled(model.start.device.type):
            return "autocast casts the weights anew at every step"
        from torch.distributed.tensor import DTensor  # slow to import

        if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
            return "the weights are sharded"
        return None

    def refuse(self, reason: str) -> None:
        if reason not in self.refused:
            self.refused.add(reason)
            warnings.warn(f"drawing runs without a CUDA graph, some times slower, the codes are the same: {reason}",
                          stacklevel=2)

    def decode(
        self, model: GPT, sampler: Sampler, x: Float[Tensor, "w width"], cache: Cache, ids: Int[Tensor, "b n"],
        uniform: Float[Tensor, "b n f"], first: int,
    ) -> bool:
        """Fills `ids` from cell `first` on, whose output of the GPT is `x`; `cache` is only read. False, with a
        warning, where nothing could be recorded: then `ids` is as it was."""
        if (reason := self.obstacle(model)) is not None:
            self.refuse(reason)
            return False
        key = (tuple(cache.keys.shape), tuple(uniform.shape), cache.prefix, cache.keys.dtype, sampler,
               tuple(parameter.data_ptr() for parameter in model.parameters()))
        with torch.cuda.device(x.device) if self.capture and x.is_cuda else nullcontext():
            decoder = self.decoders.pop(key, None) or self.decoder(model, sampler, cache, uniform)
            if decoder is None:
                return False
            each = sampler(model, x, cache.heard, uniform[:, first])
            decoder.load(cache, uniform, ids, each, first + 1)
            decoder.ids[:, first] = ravel_index(each[: len(ids)], model.factors)
            decoder.run(model.num_codes - first - 1)
            ids.copy_(decoder.ids)
        self.decoders[key] = decoder
        while len(self.decoders) > self.keep:
            self.decoders.popitem(last=False)
        return True

    def decoder(self, model: GPT, sampler: Sampler, cache: Cache, uniform: Tensor) -> StaticDecoder | None:
        """A new one, or None, with a warning, where its step could not be recorded."""
        made = StaticDecoder(model, sampler, cache, uniform)
        try:
            if self.capture:
                made.capture()
        except RuntimeError as error:  # CUDA's own errors are subclasses
            self.failed = f"recording one failed ({str(error).splitlines()[0]})"
            self.release()
            self.refuse(self.failed)
            return None
        return made
