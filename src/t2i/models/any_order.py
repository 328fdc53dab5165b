"""The token loop in any order: which codes are drawn in which step, and many of them a step over a KV cache.

Orders: the two-dimensional Halton sequence, which spreads the codes of a step over the picture (arXiv 2503.17076), a
random one a picture, or what the model is surest of (MaskGIT, arXiv 2202.04200). Schedules say how many are known after
each step. Codes of one step do not see each other: fewer steps are quicker, and bind less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t2i.models.sampling import CodeStep, Sampler, check_given, drawn
from t2i.nets.arpg import ARPG
from t2i.types import ravel_index

# Share of the codes that is known after a share of the steps.
SCHEDULES: dict[str, Callable[[float], float]] = {
    "arccos": lambda done: 1 - math.acos(done) / (math.pi / 2),
    "cosine": lambda done: 1 - math.cos(math.pi / 2 * done),
    "linear": lambda done: done,
}
ORDERS = ("halton", "random", "confidence")


def faults_of(num_codes: int, steps: Any, schedule: Any, order: Any) -> list[str]:
    """What is wrong with these options, a line each."""
    faults = []
    if steps is not None and (not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= num_codes):
        faults.append(f"steps={steps}: allowed are whole numbers from 1 to {num_codes} (the codes of a picture), or"
                      " null (a quarter of them)")
    for name, value, choices in (("schedule", schedule, tuple(SCHEDULES)), ("order", order, ORDERS)):
        if value not in choices:
            faults.append(f"{name}={value}: allowed are {', '.join(choices)}")
    return faults


def counts(total: int, steps: int, schedule: str) -> list[int]:
    """How many of `total` codes each of `steps` draws: at least one, and all in the end."""
    known, found = 0, []
    for step in range(1, steps + 1):
        wanted = round(total * SCHEDULES[schedule](step / steps)) if step < steps else total
        after = max(known + 1, min(wanted, total - (steps - step)))
        found.append(after - known)
        known = after
    return found


@cache
def halton_order(grid: tuple[int, int]) -> Int[Tensor, " n"]:
    """All cells in the order of the Halton sequence, of base 2 for rows and 3 for columns; not to be written to."""
    rows, columns = grid
    number = 2 * rows * columns
    while True:
        points = torch.arange(1, number + 1)
        row, column = ((_radical_inverse(points, base) * size).long() for base, size in ((2, rows), (3, columns)))
        cells = dict.fromkeys((row * columns + column).tolist())
        if len(cells) == rows * columns:
            return torch.tensor(list(cells))
        number *= 2


def _radical_inverse(numbers: Int[Tensor, " n"], base: int) -> Float[Tensor, " n"]:
    found, scale = torch.zeros(len(numbers), dtype=torch.float64), 1.0
    while bool(numbers.any()):
        scale /= base
        found += scale * (numbers % base)
        numbers = numbers // base
    return found


def uniforms_needed(num_codes: int, parts: int, steps: int, order: str) -> int:
    """Uniform numbers that `generate` takes a picture."""
    if order == "confidence":
        return steps * num_codes * (parts + 1)
    return num_codes * parts + (num_codes if order == "random" else 0)


@torch.inference_mode()
def generate_steps(
    model: ARPG,
    states: Float[Tensor, "b t d"],
    mask: Bool[Tensor, "b t"],
    uniform: Float[Tensor, "b u"],
    *,
    steps: int,
    schedule: str,
    order: str,
    sampler: Sampler,
    unconditional: bool = False,
    given: Int[Tensor, "b m"] | None = None,
    known: Bool[Tensor, " n"] | None = None,
    negative: tuple[Float[Tensor, "b u d"], Bool[Tensor, "b u"]] | None = None,
) -> Iterator[CodeStep]:
    """Draws all codes of a batch of pictures that are not given, and yields after each step; both tensors go on being
    written to.

    Args:
        states, mask, unconditional, negative: as in `t2i.models.sampling.generate`.
        uniform: numbers in [0, 1) a picture, `uniforms_needed` of them.
        steps: as many as there are codes to draw, if there are fewer.
        given: codes that stay as they are, in raster order.
        known: which cells they are of; None: the first.

    Codes are in raster order, 0 where they are not drawn yet.
    """
    b, n, parts, device = len(states), model.num_codes, len(model.factors), states.device
    given = torch.zeros(b, 0, dtype=torch.long, device=device) if given is None else given
    known = torch.arange(n, device=device) < given.shape[1] if known is None else known.to(device)
    m = int(known.sum())
    if known.shape != (n,) or given.shape != (b, m):
        raise ValueError(f"given codes have shape {tuple(given.shape)}, of {tuple(known.shape)} cells {m} are known;"
                         f" allowed are ({b}, {m}), of ({n},) cells")
    check_given(given, model.codebook_size)
    ids = torch.zeros(b, n, dtype=torch.long, device=device)
    ids[:, known] = given
    there = known.repeat(b, 1)
    if m == n:
        yield ids, there
        return
    if order == "random":
        rank = uniform[:, -n:]
    else:
        rank = halton_order(model.grid).argsort().to(device, torch.float32).expand(b, n)
    cells = rank.masked_fill(~known, torch.inf).argsort(1)[:, :m]
    left = rank.masked_fill(known, torch.inf).argsort(1)[:, : n - m]
    states, mask, null = sampler.captions(states, mask, unconditional, negative)
    times = len(null) // b
    cache = model.prefill(states, mask, null, ids.gather(1, cells).repeat(times, 1), cells.repeat(times, 1))
    plan = counts(n - m, min(steps, n - m), schedule)
    for step, count in enumerate(plan):
        if order == "confidence":
            of_step = uniform.view(b, -1, n, parts + 1)[:, step].take_along_dim(left[..., None], 1)
            asked = left
        else:
            asked = left[:, :count]
            of_step = uniform[:, : n * parts].view(b, n, parts).take_along_dim(asked[..., None], 1)
        x = model.ask(asked.repeat(times, 1), cache)
        each, logits = sampler.draw(model, x.flatten(0, 1), cache.heard, of_step[..., :parts].flatten(0, 1))
        each = each.view(times * b, -1, parts)
        if order == "confidence":
            drawn = each[:b].flatten(0, 1)
            sure = sum_of_logs(logits, drawn).view(b, -1)
            noise = -(-of_step[..., parts].clamp_min(1e-20).log()).clamp_min(1e-20).log()  # Gumbel's
            sure = sure + sampler.temperature * (1 - (step + 1) / len(plan)) * noise
            best = sure.argsort(1, descending=True)
            left = left.gather(1, best)
            each = each.take_along_dim(best[:, :count, None].repeat(times, 1, 1), 1)
        chosen, left = left[:, :count], left[:, count:]
        ids.scatter_(1, chosen, ravel_index(each[:b], model.factors))
        yield ids, there.scatter_(1, chosen, True)
        if step + 1 < len(plan):
            model.append(each, chosen.repeat(times, 1), cache)


def generate(model: ARPG, *arguments: Any, **options: Any) -> Int[Tensor, "b n"]:
    """The codes of a batch of pictures; arguments are those of `generate_steps`."""
    return drawn(generate_steps(model, *arguments, **options))


def sum_of_logs(logits: Sequence[Float[Tensor, "r k"]], each: Int[Tensor, "r f"]) -> Float[Tensor, " r"]:
    """Log-probabilities of codes, over their parts."""
    logs = [part.float().log_softmax(-1).gather(1, each[:, i : i + 1])[:, 0] for i, part in enumerate(logits)]
    return torch.stack(logs).sum(0)
