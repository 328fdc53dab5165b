"""How the prior that draws in any order trains and draws: as `models/prior.py`, half of the pictures in the order that
drawing takes.

ARPG, arXiv 2503.10568: see `nets/arpg.py` for the net and `models/any_order.py` for the token loop. The paper
trains in random orders alone; RAR (arXiv 2411.00776) goes from random orders to the one that it draws in.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t2i.checkpoint.registry import register
from t2i.models.any_order import faults_of, generate_steps, halton_order, uniforms_needed
from t2i.models.distributed import LocalRandom, StepRandom
from t2i.models.prior import Prior
from t2i.models.sampling import CodeStep, Sampler, uniforms
from t2i.nets.arpg import ARPG
from t2i.nets.gpt import CodeTransformer
from t2i.types import CodeBatch


@register("model")
class PriorAny(Prior):
    """A prior that draws any codes of a picture given any others, many a step.

    Arguments are those of `Prior`; half of `num_layers` see the known codes, half ask for the others.
    """

    kind = "prior_any"
    net: ClassVar[type[CodeTransformer]] = ARPG
    options: ClassVar[dict[str, Any]] = {**Prior.options, "steps": None, "schedule": "cosine", "order": "halton"}

    def check_options(  # type: ignore[override]
        self, *, steps: int | None = None, schedule: str = "cosine", order: str = "halton", **options: Any
    ) -> None:
        """ValueError for options of `sample` that are outside what is allowed."""
        faults = faults_of(self.gpt.num_codes, steps, schedule, order)
        try:
            super().check_options(**options)
        except ValueError as error:
            faults.append(str(error))
        if faults:
            raise ValueError("; ".join(faults))

    def shown(self, ids: Int[Tensor, "b n"], random: StepRandom | LocalRandom) -> tuple[Tensor | None, ...]:
        codes = super().shown(ids, random)
        return *codes, self.orders(random.uniform(1), random.uniform(1), random.uniform(ids.shape[1]))

    def orders(
        self, which: Float[Tensor, "b 1"], share: Float[Tensor, "b 1"], numbers: Float[Tensor, "b n"]
    ) -> Int[Tensor, "b n"]:
        """The order of each picture's cells in training, of numbers drawn from U(0, 1): of one half Halton's, in which
        pictures are drawn; of a quarter Halton's after any `share` of the cells, as in edits; of a quarter any."""
        rank = halton_order(self.gpt.grid).argsort().to(numbers, non_blocking=True)
        edit = rank + len(rank) * (numbers >= share)
        return torch.where(which < 0.5, rank, torch.where(which < 0.75, edit, numbers)).argsort(1)

    def loss(self, batch: CodeBatch, null: Tensor, *shown: Tensor | None) -> Float[Tensor, ""]:
        """As of `Prior`; in validation each row has an order of its own, always the same."""
        if not shown:
            drawn = torch.rand(batch.ids.shape, generator=torch.Generator().manual_seed(0))
            shown = None, None, drawn.argsort(1).to(batch.ids.device)
        return super().loss(batch, null, *shown)

    def code_steps(  # type: ignore[override]
        self,
        text: list[str],
        *,
        seeds: list[int],
        unconditional: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        given: Int[Tensor, "b m"] | None = None,
        negative: list[str] | None = None,
        steps: int | None = None,
        schedule: str = "cosine",
        order: str = "halton",
        known: Bool[Tensor, " n"] | None = None,
        **unknown: object,
    ) -> Iterator[CodeStep]:
        """Draws the codes of one picture a caption, and yields after each step; options as in
        `t2i.models.any_order.generate_steps`, but `negative` has a caption a picture, and `steps` is a quarter of the
        codes that are drawn where it is None."""
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no option of the prior; allowed are unconditional, temperature,"
                             " top_k, top_p, guidance, given, negative, steps, schedule, order, known")
        self.check_options(temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance, steps=steps,
                           schedule=schedule, order=order)
        n, parts = self.gpt.num_codes, len(self.gpt.factors)
        steps = math.ceil((n if given is None else n - given.shape[1]) / 4) if steps is None else steps
        with self.sampling(text, seeds):
            captions = self.caption_states(text)
            uniform = uniforms(seeds, uniforms_needed(n, parts, steps, order)).to(self.device)
            sampler = Sampler(temperature, top_k, top_p, guidance, guidance != 1 and not unconditional)
            yield from generate_steps(
                cast(ARPG, self.gpt), *captions, uniform, steps=steps, schedule=schedule, order=order, sampler=sampler,
                unconditional=unconditional, given=given, known=known,
                negative=None if negative is None else self.caption_states(negative))
