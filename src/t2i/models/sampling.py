"""From logits to codes: temperature, top-k, top-p, classifier-free guidance, and the token loop over a KV cache.

Functions only. Every picture draws from uniform numbers of its own, made beforehand from its own seed, so that a
picture depends on its caption, its seed and the options, and on nothing else in the batch; and no step waits for
the host.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t2i.models.static_decoding import StaticDecoding
from t2i.nets.factorised_head import Heard
from t2i.nets.gpt import GPT, CodeTransformer
from t2i.types import ravel_index

CodeStep = tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]  # all codes by now, and which of them are drawn or given


def check_options(
    factors: Sequence[int], temperature: float, top_k: int | None, top_p: float | None, guidance: float
) -> None:
    """Raises ValueError, with all faults at once, for options outside what sampling allows. `top_k` and `top_p` work
    on each part of a code by itself; `factors` are the sizes of the parts."""
    faults, most = [], max(factors)
    if not 0 <= temperature < math.inf:
        faults.append(f"temperature={temperature}: allowed are numbers >= 0 (0 always takes the likeliest code)")
    if top_k is not None and not 1 <= top_k <= most:
        faults.append(f"top_k={top_k}: allowed are 1 to {most} (the codebook's size), or null")
    if top_p is not None and not 0 < top_p <= 1:
        faults.append(f"top_p={top_p}: allowed are 0 < top_p <= 1, or null")
    if not 0 <= guidance < math.inf:
        faults.append(f"guidance={guidance}: allowed are numbers >= 0 (1 means none)")
    if faults:
        raise ValueError("; ".join(faults))


def filter_logits(
    logits: Float[Tensor, "b k"], temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Float[Tensor, "b k"]:
    """Divides by `temperature` (> 0), then sets all but the `top_k` likeliest, and all outside the smallest set
    with probability >= `top_p` (nucleus, arXiv 1904.09751), to minus infinity. The likeliest always stays."""
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(-1)
        outside = probabilities.cumsum(-1) - probabilities >= top_p
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return logits


def apply_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance on logits (arXiv 2207.12598): scale 1 is the conditional model, 0 the other."""
    return unconditional + scale * (conditional - unconditional)


def pad_together(
    captions: Sequence[tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]], least: int = 0
) -> tuple[Tensor, Tensor]:
    """States and masks of several batches of captions as one batch, filled up to the longest, and to `least`."""
    most = max(least, *(states.shape[1] for states, _ in captions))
    return (torch.cat([F.pad(states, (0, 0, 0, most - states.shape[1])) for states, _ in captions]),
            torch.cat([F.pad(mask, (0, most - mask.shape[1])) for _, mask in captions]))


def choose(logits: Float[Tensor, "b k"], uniform: Float[Tensor, " b"]) -> Int[Tensor, " b"]:
    """The code at which the cumulative probability passes `uniform` in [0, 1)."""
    cumulative = logits.softmax(-1).cumsum(-1)
    target = uniform.to(cumulative.dtype) * cumulative[:, -1]
    return torch.searchsorted(cumulative, target[:, None], right=True).clamp_max(logits.shape[-1] - 1)[:, 0]


def uniforms(seeds: Sequence[int], n: int) -> Float[Tensor, "b n"]:
    """n uniform numbers in [0, 1) a seed, made on the CPU so that every device draws the same picture."""
    return torch.stack([torch.rand(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


@dataclass(frozen=True)
class Sampler:
    """How codes are drawn from logits. `guided`: with guidance, a batch holds every caption with its own states, with
    none, and with a negative one if there is one, in this order."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    guided: bool = False

    def logits(
        self, model: CodeTransformer, x: Float[Tensor, "r width"], each: Int[Tensor, "r i"], heard: Heard, b: int
    ) -> Tensor:
        """(b, k), of the next part of b codes."""
        logits = model.logits(x, each, heard)
        if not self.guided:
            return logits
        conditional, without, *away = logits.float().split(b)
        logits = apply_guidance(conditional, without, self.guidance)
        return logits if not away else logits + (self.guidance - 1) * (conditional - away[0])

    def __call__(
        self, model: CodeTransformer, x: Float[Tensor, "r width"], heard: Heard, uniform: Float[Tensor, "b f"]
    ) -> Int[Tensor, "r f"]:
        """The parts of b codes, as `draw`."""
        return self.draw(model, x, heard, uniform)[0]

    def draw(
        self, model: CodeTransformer, x: Float[Tensor, "r width"], heard: Heard, uniform: Float[Tensor, "b f"]
    ) -> tuple[Int[Tensor, "r f"], list[Float[Tensor, "b k"]]]:
        """Draws b codes part by part: the parts, repeated for every caption of a guided batch, and the logits of each.
        """
        b, each, seen = len(uniform), torch.empty(len(x), 0, dtype=torch.long, device=x.device), []
        for part in range(len(model.factors)):
            logits = self.logits(model, x, each, heard, b)
            if self.temperature == 0:
                chosen = logits.argmax(-1)
            else:
                kept = filter_logits(logits, self.temperature, self.top_k, self.top_p)
                chosen = choose(kept, uniform[:, part])
            each = torch.cat([each, chosen.repeat(len(x) // b)[:, None]], 1)
            seen.append(logits)
        return each, seen

    def captions(
        self, states: Float[Tensor, "b t d"], mask: Bool[Tensor, "b t"], unconditional: bool,
        negative: tuple[Tensor, Tensor] | None,
    ) -> tuple[Float[Tensor, "r t d"], Bool[Tensor, "r t"], Bool[Tensor, " r"]]:
        """States, mask and null of the whole batch."""
        null = torch.full((len(states),), unconditional, dtype=torch.bool, device=states.device)
        if not self.guided:
            return states, mask, null
        others = [(states, mask)] if negative is None else [(states, mask), negative]
        states, mask = pad_together([(states, mask), *others])
        return states, mask, torch.cat([null, ~null, *([null] if negative is not None else [])])


def check_given(given: Int[Tensor, "b m"], codebook_size: int) -> None:
    if given.numel() and (int(given.min()) < 0 or int(given.max()) >= codebook_size):
        raise ValueError(f"given codes reach from {int(given.min())} to {int(given.max())}; "
                         f"allowed are 0 to {codebook_size - 1}")


def drawn(steps: Iterable[CodeStep]) -> Int[Tensor, "b n"]:
    """The codes after the last step."""
    return deque(steps, maxlen=1)[0][0]


@torch.inference_mode()
def generate_steps(
    model: GPT,
    states: Float[Tensor, "b t d"],
    mask: Bool[Tensor, "b t"],
    uniform: Float[Tensor, "b u"],
    *,
    unconditional: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    guidance: float = 1.0,
    given: Int[Tensor, "b m"] | None = None,
    negative: tuple[Float[Tensor, "b u d"], Bool[Tensor, "b u"]] | None = None,
    static: StaticDecoding | None = None,
) -> Iterator[CodeStep]:
    """Draws all codes of a batch of pictures, and yields after each code; both tensors go on being written to.

    Args:
        states, mask: caption states and which of them are real.
        uniform: one number in [0, 1) a picture and part of a code, (b, n * parts).
        unconditional: ignore the captions (the learned null prefix).
        given: the first m codes, kept as they are (completion).
        negative: states and mask of captions to lead away from, beside the null prefix: (guidance - 1) times the
            difference between the logits under the caption and under this one is added.
        static: decodes with static shapes, where it can, and yields at the end alone; the codes are the same but for
            rounding.

    Codes are in raster order, 0 where they are not drawn yet. With guidance other than 1, all prefixes run in one
    batch.
    """
    check_options(model.factors, temperature, top_k, top_p, guidance)
    b, device = states.shape[0], states.device
    given = torch.zeros(b, 0, dtype=torch.long, device=device) if given is None else given
    m, parts = given.shape[1], len(model.factors)
    if given.shape[0] != b or m > model.num_codes:
        raise ValueError(f"given codes have shape {tuple(given.shape)};"
                         f" allowed are ({b}, m), m up to {model.num_codes}")
    check_given(given, model.codebook_size)
    ids = torch.zeros(b, model.num_codes, dtype=torch.long, device=device)
    known = torch.zeros(b, model.num_codes, dtype=torch.bool, device=device)
    ids[:, :m], known[:, :m] = given, True
    if m >= model.num_codes:
        yield ids, known
        return
    sampler = Sampler(temperature, top_k, top_p, guidance, guidance != 1 and not unconditional)
    uniform = uniform.reshape(b, model.num_codes, parts)
    states, mask, null = sampler.captions(states, mask, unconditional, negative)
    if static is not None:
        states, mask = pad_together([(states, mask)], model.text_length)
    x, cache = model.prefill(states, mask, null, given.repeat(len(null) // b, 1))
    if static is not None and static.decode(model, sampler, x, cache, ids, uniform, m):
        yield ids, known.fill_(True)
        return
    for i in range(m, model.num_codes):
        each = sampler(model, x, cache.heard, uniform[:, i])
        ids[:, i], known[:, i] = ravel_index(each[:b], model.factors), True
        yield ids, known
        if i + 1 < model.num_codes:
            x = model.step(each, cache)


def generate(model: GPT, *arguments: Any, **options: Any) -> Int[Tensor, "b n"]:
    """The codes of a batch of pictures; arguments are those of `generate_steps`."""
    return drawn(generate_steps(model, *arguments, **options))


def check_truncation(truncation: float | None) -> None:
    if truncation is not None and not 0 <= truncation <= 1:
        raise ValueError(f"truncation={truncation}: allowed are numbers from 0 to 1, or null")


def normals(seeds: Sequence[int], n: int, truncation: float | None = None) -> Float[Tensor, "b n"]:
    """n standard normal numbers a seed, made on the CPU. With `truncation` t: t times numbers drawn from the normal
    distribution within [-2, 2] (BigGAN's truncation trick, arXiv 1809.11096; DF-GAN samples with t = 0.88)."""
    normal = torch.stack([torch.randn(n, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    if truncation is None:
        return normal
    uniform = torch.special.ndtr(normal.double())
    low, high = torch.special.ndtr(torch.tensor([-2.0, 2.0], dtype=torch.float64))
    return (truncation * torch.special.ndtri(low + uniform * (high - low))).float()
