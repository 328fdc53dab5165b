"""What the training loops share: schedules, the non-finite guard, and two players counted as one step a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn


class NonFiniteLoss(ArithmeticError):
    """A loss was NaN or infinite; the message names the step, the terms and the batch's keys."""


def check_finite(terms: dict[str, Tensor], step: int, keys: list[str]) -> None:
    """Raises NonFiniteLoss, before any optimiser has stepped, if a term is not finite."""
    if all(bool(torch.isfinite(value).all()) for value in terms.values()):
        return
    listed = ", ".join(f"{name}={float(value.detach()):g}" for name, value in terms.items())
    shown = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    raise NonFiniteLoss(
        f"a loss is not finite at step {step}: {listed}. The batch: {shown}. No optimiser stepped on this batch."
        " Try a smaller learning rate (model.learning_rate) or trainer.precision=32-true."
    )


def warmup_cosine(step: int, warmup_steps: int, max_steps: int, floor: float = 0.0) -> float:
    """Factor on the learning rate: linear from 0 to 1 over the warm-up, then a half cosine down to `floor`."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


def frozen_call(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Applies `module` with its parameters detached: gradients reach the inputs, never the parameters."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, parameters, inputs)


def _nothing(*_: Any, **__: Any) -> None:
    return None


class TwoPlayers(pl.LightningModule):
    """Manual optimisation of a generator and a discriminator in which a batch is a step.

    Lightning counts every `optimizer.step()` (PITFALLS of manual optimisation); here only the generator's counts,
    so that `max_steps`, logging, checkpoints and schedules all mean batches. fp32 and bf16 use one backward for
    both players (the discriminator is applied with detached parameters for the generator's loss); fp16 alternates,
    because the gradient scale is shared and changes between the two steps.
    """

    def __init__(self, learning_rate: float, warmup_steps: int, max_steps: int, gradient_clip: float | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.learning_rate, self.warmup_steps, self.max_steps = learning_rate, warmup_steps, max_steps
        self.gradient_clip = gradient_clip

    def players(self) -> tuple[Any, Any]:
        """The two Lightning optimisers; the discriminator's no longer counts steps."""
        generator, discriminator = cast(list[Any], self.optimizers())
        discriminator._on_before_step = discriminator._on_after_step = _nothing
        return generator, discriminator

    def schedule(self) -> None:
        """Sets this batch's learning rates; Lightning steps no scheduler in manual optimisation."""
        factor = warmup_cosine(self.global_step, self.warmup_steps, self.max_steps, floor=0.05)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    @property
    def fused(self) -> bool:
        return self.trainer.precision != "16-mixed"

    def step_both(
        self, generator_loss: Tensor, discriminator_loss: Callable[[], Tensor] | None, keys: list[str]
    ) -> Tensor | None:
        """One step of each player. `discriminator_loss` is None while the discriminator waits;
        `keys` are the batch's, for the message of a loss that is not finite.

        Returns the discriminator's loss. Everything is checked for NaN by the caller through `check_finite`
        before this is called, but for the discriminator's loss, which is checked here.
        """
        generator, discriminator = self.players()
        generator.zero_grad(set_to_none=True)
        discriminator.zero_grad(set_to_none=True)
        if discriminator_loss is None:
            self.manual_backward(generator_loss)
            generator.step()
            return None
        if self.fused:
            d_loss = discriminator_loss()
            check_finite({"loss/discriminator": d_loss}, self.global_step, keys)
            self.manual_backward(generator_loss + d_loss)
            generator.step()
            discriminator.step()
        else:
            d_loss = discriminator_loss()
            check_finite({"loss/discriminator": d_loss}, self.global_step, keys)
            self.manual_backward(generator_loss)
            generator.step()
            self.manual_backward(d_loss)
            discriminator.step()
        return d_loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.gradient_clip is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, self.gradient_clip)
