"""What the training loops share: schedules, the non-finite guard, batches in pieces, and two players counted as one
step a batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from typing import Any, Literal, TypeVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from t2i.models.distributed import first_rank_without, is_distributed


class NonFiniteLoss(ArithmeticError):
    """A loss was NaN or infinite; the message names the step, the terms and the batch's keys. All ranks raise it."""


class NonFiniteLossOnOtherRank(NonFiniteLoss):
    """The same on a rank that has nothing to say about it: another one tells."""


def check_finite(terms: dict[str, Tensor], step: int, keys: list[str]) -> None:
    """Raises NonFiniteLoss, before any optimiser has stepped, if a term is not finite on any rank."""
    culprit = first_rank_without(torch.stack([torch.isfinite(value.detach()).all() for value in terms.values()]).all())
    if culprit is None:
        return
    if is_distributed() and culprit != dist.get_rank():
        raise NonFiniteLossOnOtherRank
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


def clip_by_norm(
    module: Any, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
) -> None:
    """Bounds the norm over all of an optimiser's gradients; None or 0: no bound. Fused optimisers unscale fp16
    gradients themselves, within their step: with them the bound is scaled instead (Lightning's own refuses them)."""
    if not gradient_clip_val:
        return
    scaler = getattr(module.trainer.precision_plugin, "scaler", None)
    raw = getattr(optimizer, "_optimizer", optimizer)
    inside = scaler is not None and getattr(raw, "_step_supports_amp_scaling", False)
    bound = gradient_clip_val * (cast(Any, scaler).get_scale() if inside else 1.0)
    torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], bound)


def frozen_call(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Applies `module` with its parameters detached: gradients reach the inputs, never the parameters."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, parameters, inputs)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Inside, gradients pass through the module and do not reach its parameters."""
    held = [p for p in module.parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


def _nothing(*_: Any, **__: Any) -> None:
    return None


B = TypeVar("B")


def slice_batch(batch: B, where: slice) -> B:
    """Some of a batch's items: every tensor and list of the dataclass, cut alike."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}  # type: ignore[arg-type]
    return type(batch)(**{name: None if value is None else value[where] for name, value in values.items()})


class Divided(pl.LightningModule):
    """A batch worked through in `accumulate` pieces, one after the other: less memory, and a step stays a batch.

    The gradients of the pieces add up to those of the whole batch where the loss is a mean over pictures. What looks at
    a batch as a whole sees a piece: BatchNorm's statistics, the adaptive weight λ, an EMA codebook (it moves once a
    piece, its decay and warm-up count pieces, and k-means starts from one piece). A model that goes through
    `pieces` or `part` says so with `divides`.
    """

    divides = False
    accumulate = 1
    piece, share = 0, 1.0  # the one at work, and how much of the batch it is
    shared_seed = 0  # of this step, the same on every rank; set by `t2i.training.callbacks.checkpointing.StepSeed`

    def part(self, batch: B, size: int) -> tuple[B, slice]:
        """The piece at work out of a batch of `size` pictures, and where in the batch it lies."""
        if self.accumulate == 1:
            return batch, slice(None)
        if self.accumulate > size:
            raise ValueError(f"trainer.accumulate={self.accumulate}: a device's batch has {size} pictures;"
                             f" from 1 to {size} are allowed")
        where = slice(size * self.piece // self.accumulate, size * (self.piece + 1) // self.accumulate)
        self.share = (where.stop - where.start) / size
        return slice_batch(batch, where), where

    def pieces(self, batch: B, size: int) -> Iterator[B]:
        """The pieces of a batch, each at work while it is out."""
        try:
            for number in range(self.accumulate):
                self.piece = number
                yield self.part(batch, size)[0]
        finally:
            self.piece = 0

    @property
    def first(self) -> bool:
        return self.piece == 0

    @property
    def last(self) -> bool:
        return self.piece == self.accumulate - 1

    def quietly(self) -> AbstractContextManager[None]:
        """Between devices gradients are averaged with the last piece, once a batch."""
        return nullcontext() if self.last else getattr(self.trainer.strategy, "block_backward_sync", nullcontext)()


class GradAccumulationModule(Divided):
    """Automatic optimisation, which FSDP needs, with batches in pieces: Lightning's closure (training step, zero_grad,
    backward) runs once a piece, and the optimiser steps after the last."""

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.accumulate == 1:
            optimizer.step(closure=optimizer_closure)
            return

        def every_piece() -> Any:
            try:
                for number in range(self.accumulate):
                    self.piece = number
                    with self.quietly():
                        loss = optimizer_closure()
            finally:
                self.piece = 0
            return loss

        optimizer.step(closure=every_piece)

    configure_gradient_clipping = clip_by_norm

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self.first:
            optimizer.zero_grad()


def set_accumulation_and_compile(model: Any, accumulate: int, compile: bool | str, batch_size: int) -> None:
    """Sets what the trainer's switches ask of a model, or says why it cannot.

    Args:
        accumulate: pieces in which a batch is worked through.
        compile: whether the nets are compiled (in place, so that names in checkpoints stay); a text is the backend.
        batch_size: global.
    """
    if accumulate > 1 and not getattr(model, "divides", False):
        raise ValueError(f"trainer.accumulate={accumulate}: {type(model).__name__} needs every batch whole;"
                         " 1 is allowed (trainer.accumulate=1)")
    if accumulate > batch_size:
        raise ValueError(f"trainer.accumulate={accumulate} is more than data.batch_size={batch_size}: a piece has at"
                         " least one picture")
    if accumulate > 1:
        model.accumulate = accumulate
    if compile:
        from torch._dynamo import config as tracing
        from torch._functorch import config as differentiation

        tracing.recompile_limit = 64  # levels are one piece of code in many shapes
        differentiation.donated_buffer = False  # λ goes back through the discriminator twice
        for net in model.nets():
            net.compile(backend="inductor" if compile is True else compile)


class GANModule(Divided):
    """Manual optimisation of a generator and a discriminator in which a batch is a step.

    Lightning counts every `optimizer.step()` (PITFALLS of manual optimisation); here only the generator's counts,
    so that `max_steps`, logging, checkpoints and schedules all mean batches. fp32 and bf16 use one backward for
    both players (the discriminator is applied with detached parameters for the generator's loss); fp16 alternates,
    because the gradient scale is shared and changes between the two steps.
    """

    def __init__(self, learning_rate: float, warmup_steps: int, max_steps: int, gradient_clip: float | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.waiting: list[Tensor] = []  # the discriminator's losses of this batch that go backward after its pieces
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
        """One step of each player, or the backward of a piece, with the step after the last one.

        `discriminator_loss` is None while the discriminator waits; `keys` are the batch's, for the message of a loss
        that is not finite. Of a piece the losses are means over the piece.

        Returns the discriminator's loss. Everything is checked for NaN by the caller through `check_finite`
        before this is called, but for the discriminator's loss, which is checked here.
        """
        generator, discriminator = self.players()
        if self.first:
            generator.zero_grad(set_to_none=True)
            discriminator.zero_grad(set_to_none=True)
            self.waiting = []
        d_loss = None
        if discriminator_loss is None and self.trainer.world_size > 1:
            # Data-parallel training wants a gradient, if nought, for every parameter.
            idle = cast(nn.Module, self.discriminator).parameters()
            generator_loss = generator_loss + 0.0 * sum(p.sum() for p in idle)
        if discriminator_loss is not None:
            d_loss = discriminator_loss()
            check_finite({"loss/discriminator": d_loss}, self.global_step, keys)
        together = generator_loss if d_loss is None or not self.fused else generator_loss + d_loss
        with self.quietly():
            self.manual_backward(together * self.share if self.accumulate > 1 else together)
        if d_loss is not None and not self.fused:
            self.waiting.append(d_loss * self.share if self.accumulate > 1 else d_loss)
        if self.last:
            generator.step()
            for waiting in self.waiting:
                self.manual_backward(waiting)
            self.waiting = []
            if d_loss is not None:
                discriminator.step()
        return None if d_loss is None else d_loss.detach()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        clip_by_norm(self, optimizer, self.gradient_clip)


Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


def precision(wanted: Literal["auto"] | Precision, accelerator: str) -> Precision:
    """`auto` is bf16-mixed where the hardware multiplies in bf16, else float32."""
    if wanted != "auto":
        if wanted == "16-mixed" and not (torch.cuda.is_available() and accelerator != "cpu"):
            raise ValueError("trainer.precision=16-mixed needs a GPU; here bf16-mixed and 32-true are allowed")
        return wanted
    if torch.cuda.is_available() and accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"
