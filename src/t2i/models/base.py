"""What every LightningModule here has: the contract with training and checkpoints, micro-batches, clipping, and the
non-finite guard; and how a generator and a discriminator train in one step a batch."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NoReturn, TypeVar, cast

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor, nn

from t2i.models.distributed import first_rank_without, is_distributed, rank_without
from t2i.models.optimizers import warmup_cosine

B = TypeVar("B")
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


class NonFiniteLoss(ArithmeticError):
    """A loss was NaN or infinite; the message names the step, the terms and the batch's keys. All ranks raise it."""


class NonFiniteLossOnOtherRank(NonFiniteLoss):
    """Raised, without a message, on the ranks whose own losses are finite: another one has the message."""


def format_losses(terms: dict[str, Tensor], keys: list[str]) -> str:
    """The terms of a loss and the batch that they are of, for messages."""
    values = ", ".join(f"{name}={float(value.detach()):g}" for name, value in terms.items())
    more = f" and {len(keys) - 8} more" if len(keys) > 8 else ""
    return f"{values}. The batch: {', '.join(keys[:8])}{more}"


def are_finite(terms: dict[str, Tensor]) -> Tensor:
    """Whether all are, as a tensor."""
    return torch.stack([torch.isfinite(value.detach()).all() for value in terms.values()]).all()


def raise_non_finite(terms: dict[str, Tensor], step: int, keys: list[str], rank: int, more: str = "") -> NoReturn:
    """What the rank that has such a loss tells; the others say nothing."""
    if is_distributed() and rank != dist.get_rank():
        raise NonFiniteLossOnOtherRank
    raise NonFiniteLoss(f"a loss is not finite at step {step}: {format_losses(terms, keys)}. No optimiser stepped on"
                        f" this batch. {more}Try a smaller learning rate (model.learning_rate) or"
                        " trainer.precision=32-true.")


def check_finite(terms: dict[str, Tensor], step: int, keys: list[str]) -> None:
    """Raises NonFiniteLoss, before any optimiser has stepped, if a term is not finite on any rank."""
    if (rank := first_rank_without(are_finite(terms))) is not None:
        raise_non_finite(terms, step, keys, rank)


@dataclass
class Unread:
    """The losses of a step, whether they are finite not read yet: `rank` as `distributed.rank_without` has it."""

    step: int
    terms: dict[str, Tensor]
    keys: list[str]
    rank: Tensor


def frozen_call(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Applies `module` with its parameters detached: gradients reach the inputs, never the parameters."""
    parameters = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return torch.func.functional_call(module, parameters, inputs)


def slice_batch(batch: B, where: slice) -> B:
    """Some of a batch's items: every tensor and list of the dataclass, sliced alike."""
    values = {f.name: getattr(batch, f.name) for f in fields(batch)}  # type: ignore[arg-type]
    return type(batch)(**{name: None if value is None else value[where] for name, value in values.items()})


class BaseModule(pl.LightningModule):
    """Automatic optimisation, which FSDP needs, of batches that may be cut into micro-batches.

    With `num_micro_batches` a batch goes through in so many, one after the other: less memory, and a step stays a
    batch. Lightning's closure (training step, zero_grad, backward) runs once a micro-batch, and the optimiser steps
    after the last. The gradients add up to those of the whole batch where the loss is a mean over pictures. What looks
    at a batch as a whole sees a micro-batch: BatchNorm's statistics, the adaptive weight λ, an EMA codebook (its decay
    and warm-up count micro-batches, and k-means starts from one).
    """

    kind: ClassVar[str]  # its name in checkpoints
    batch: ClassVar[Literal["images", "codes"]] = "images"  # what it trains on
    captions: ClassVar[bool] = True  # whether it needs them
    supports_micro_batches: ClassVar[bool] = False
    training_only: ClassVar[tuple[str, ...]] = ()  # constructor arguments not needed to use a checkpoint
    options: ClassVar[dict[str, Any]] = {}  # of `sample`, as sample.py and evaluate.py have them unless asked otherwise

    checks_later: bool | None = None  # whether non-finite losses are read in the logging steps alone; None: on a GPU
    unread: Sequence[Unread] = ()
    channels_last: bool | None = None  # whether convolutions' weights lie with channels last; None: on a GPU
    num_micro_batches = 1
    micro_batch, micro_batch_share = 0, 1.0  # the one at work, and how much of the batch it is
    shared_seed = 0  # of this step, the same on every rank; set by `t2i.training.callbacks.checkpointing.StepSeed`
    frozen_parts: tuple[Any, ...] = ()  # a tuple, so that frozen weights stay out of state dict, optimisers and DDP

    def nets(self) -> list[nn.Module]:
        """What `trainer.compile` compiles."""
        return []

    def parts(self) -> dict[str, dict[str, Any]]:
        """What the checkpoint carries beside the weights that train, by constructor argument."""
        return {}

    def pictures(self, batch: Any) -> dict[str, Any]:
        """Grids of pictures for a batch of validation, by name: rows of pictures, and captions."""
        return {}

    def place(self) -> None:
        """Moves the frozen parts to where the module is."""
        for part in self.frozen_parts:
            if part is not None:
                part.to(self.device)

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def convolutional(self) -> list[nn.Module]:
        """The nets whose weights may lie with channels last."""
        return []

    def setup(self, stage: str) -> None:  # before data-parallel training lays out gradients
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        if stage == "fit" and (on_gpu if self.channels_last is None else self.channels_last):
            for net in self.convolutional():
                net.to(memory_format=torch.channels_last)

    def on_fit_start(self) -> None:
        self.place()

    @property
    def reads_later(self) -> bool:
        """See `check_finite`; optimisers of weights in shares take no such order."""
        wanted = self.on_gpu if self.checks_later is None else self.checks_later
        return wanted and self.device_mesh is None

    def check_finite(self, terms: dict[str, Tensor], keys: list[str]) -> None:
        """NonFiniteLoss, before any optimiser has stepped, if a term is not finite on any rank.

        On a GPU reading would make the host wait for it in every step. There the optimisers skip the batch on the
        device, and it is told in the next step that is logged, at a validation or before a checkpoint is written.
        """
        if not self.reads_later:
            check_finite(terms, self.global_step, keys)
            return
        rank = rank_without(are_finite(terms))
        same = self.unread[-1].rank if self.unread and self.unread[-1].step == self.global_step else rank
        self.skip_on_device(torch.minimum(rank, same))  # whatever of a batch is not finite, all of it is skipped
        self.told_later(self.global_step, terms, keys, torch.minimum(rank, same))

    def skip_on_device(self, rank: Tensor) -> None:
        """Lets the optimisers' next steps change nothing where `rank` is one; fp16's loss scale does that by itself."""
        for optimizer in cast(list[Any], self.trainer.optimizers):
            optimizer.found_inf = (rank < self.trainer.world_size).float()  # as a loss scale tells fused optimisers

    def told_later(self, step: int, terms: dict[str, Tensor], keys: list[str], rank: Tensor) -> None:
        held = Unread(step, {name: value.detach() for name, value in terms.items()}, keys, rank)
        self.unread = [*self.unread, held]
        if self.trainer._logger_connector.should_update_logs:
            self.read_checks()

    def read_checks(self) -> None:
        """What is to be told of losses since the last reading, which waits for the device."""
        unread, self.unread = self.unread, ()
        ranks = torch.stack([one.rank for one in unread]).tolist() if unread else []
        wrong = [(one, rank) for one, rank in zip(unread, ranks, strict=True) if rank < self.trainer.world_size]
        if wrong:
            self.stop_for(wrong)

    def stop_for(self, wrong: list[tuple[Unread, int]]) -> None:
        """Ends the training for the first step whose losses were not finite."""
        (first, rank), now = wrong[0], self.global_step
        more = f"It was skipped, and read at step {now}. " if now > first.step else ""
        raise_non_finite(first.terms, first.step, first.keys, rank, more)

    def on_validation_start(self) -> None:
        self.read_checks()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.read_checks()

    def on_train_end(self) -> None:
        self.read_checks()

    @contextmanager
    def sampling(self, text: list[str], seeds: list[int]) -> Iterator[None]:
        """Inside, everything is in its place and in evaluation mode; ValueError unless each caption has a seed."""
        if len(seeds) != len(text):
            raise ValueError(f"{len(text)} captions but {len(seeds)} seeds; each picture takes one")
        self.place()
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Bounds the norm over all of an optimiser's gradients; None or 0: no bound. Fused optimisers unscale fp16
        gradients themselves, within their step: with them the bound is scaled instead (Lightning's own refuses them).
        """
        if not gradient_clip_val:
            return
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        raw = getattr(optimizer, "_optimizer", optimizer)
        if scaler is not None and getattr(raw, "_step_supports_amp_scaling", False):
            gradient_clip_val *= scaler.get_scale()
        torch.nn.utils.clip_grad_norm_([p for group in raw.param_groups for p in group["params"]], gradient_clip_val)

    def slice_micro_batch(self, batch: B, size: int) -> tuple[B, slice]:
        """The micro-batch at work out of a batch of `size` pictures, and where in the batch it lies."""
        n = self.num_micro_batches
        if n == 1:
            return batch, slice(None)
        if n > size:
            raise ValueError(f"trainer.accumulate_grad_batches={n}: a device's batch has {size} pictures; from 1 to"
                             f" {size} are allowed")
        where = slice(size * self.micro_batch // n, size * (self.micro_batch + 1) // n)
        self.micro_batch_share = (where.stop - where.start) / size
        return slice_batch(batch, where), where

    def each_micro_batch(self) -> Iterator[int]:
        """Counts through the micro-batches, each at work while its number is out."""
        try:
            for index in range(self.num_micro_batches):
                self.micro_batch = index
                yield index
        finally:
            self.micro_batch = 0

    @property
    def is_first_micro_batch(self) -> bool:
        return self.micro_batch == 0

    @property
    def is_last_micro_batch(self) -> bool:
        return self.micro_batch == self.num_micro_batches - 1

    def no_sync(self) -> AbstractContextManager[None]:
        """Inside, data-parallel training does not average gradients."""
        return getattr(self.trainer.strategy, "block_backward_sync", nullcontext)()

    def sync_with_last(self) -> AbstractContextManager[None]:
        """Between devices gradients are averaged with the last micro-batch, once a batch."""
        return nullcontext() if self.is_last_micro_batch else self.no_sync()

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        def closure() -> Any:
            for _ in self.each_micro_batch():
                with self.sync_with_last():
                    loss = optimizer_closure()
            return loss

        optimizer.step(closure=closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if self.is_first_micro_batch:
            optimizer.zero_grad()


class GANModule(BaseModule):
    """Manual optimisation of a generator and a discriminator in which a batch is a step.

    Lightning counts every `optimizer.step()`; here only the generator's counts, so that `max_steps`, logging,
    checkpoints and schedules all mean batches. fp32 and bf16 use one backward for both nets (the discriminator is
    applied with detached parameters for the generator's loss); fp16 alternates, because the gradient scale is shared
    and changes between the two steps.
    """

    discriminator: nn.Module

    def __init__(self, learning_rate: float, warmup_steps: int, max_steps: int, gradient_clip: float | None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.pending: list[Tensor] = []  # the discriminator's losses that go backward after all micro-batches
        self.learning_rate, self.warmup_steps, self.max_steps = learning_rate, warmup_steps, max_steps
        self.gradient_clip = gradient_clip

    def gan_optimizers(self) -> tuple[Any, Any]:
        """The generator's and the discriminator's Lightning optimiser, of which the second counts no steps."""
        generator, discriminator = cast(list[Any], self.optimizers())
        discriminator._on_before_step = discriminator._on_after_step = lambda: None
        return generator, discriminator

    def learning_rate_factor(self) -> float:
        return warmup_cosine(self.global_step, self.warmup_steps, self.max_steps, floor=0.05)

    def set_learning_rates(self) -> None:
        """For this batch; Lightning steps no scheduler in manual optimisation."""
        factor = self.learning_rate_factor()
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    @property
    def fused(self) -> bool:
        return self.trainer.precision != "16-mixed"

    def backward_and_step(
        self, generator_loss: Tensor, discriminator_loss: Callable[[], Tensor] | None, keys: list[str]
    ) -> Tensor | None:
        """The backward of a micro-batch and, after the last one, a step of each optimiser.

        Args:
            generator_loss: mean over the micro-batch, checked by `check_finite`.
            discriminator_loss: likewise, not checked yet; None while the discriminator does not train.
            keys: the batch's, for the message of a loss that is not finite.

        Returns the discriminator's loss.
        """
        generator, discriminator = self.gan_optimizers()
        if self.is_first_micro_batch:
            generator.zero_grad(set_to_none=True)
            discriminator.zero_grad(set_to_none=True)
            self.pending = []
        d_loss, total = None, generator_loss
        if discriminator_loss is not None:
            d_loss = discriminator_loss()
            self.check_finite({"loss/discriminator": d_loss}, keys)
            if self.fused:
                total = generator_loss + d_loss
            else:
                self.pending.append(d_loss * self.micro_batch_share)
        elif self.trainer.world_size > 1:
            # Data-parallel training wants a gradient, if nought, for every parameter.
            total = generator_loss + 0.0 * sum(p.sum() for p in self.discriminator.parameters())
        with self.sync_with_last():
            self.manual_backward(total * self.micro_batch_share)
        if self.is_last_micro_batch:
            generator.step()
            for loss in self.pending:
                self.manual_backward(loss)
            self.pending = []
            if d_loss is not None:
                discriminator.step()
        return None if d_loss is None else d_loss.detach()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.configure_gradient_clipping(optimizer, self.gradient_clip)


def compilers() -> list[str]:
    """The C and C++ compilers of which torch.compile needs one, as it looks for them."""
    return [name for name in (os.environ.get("CC"), os.environ.get("CXX"), "gcc", "g++", "clang", "cl") if name]


def set_accumulation_and_compile(model: Any, accumulate: int, compile: bool | str, batch_size: int) -> None:
    """Sets what the trainer's keys ask of a model, or says why it cannot.

    Args:
        accumulate: micro-batches in a batch.
        compile: whether the nets are compiled (in place, so that names in checkpoints stay); a text is the backend.
        batch_size: global.
    """
    if accumulate > 1:
        if not model.supports_micro_batches:
            raise ValueError(f"trainer.accumulate_grad_batches={accumulate}: {type(model).__name__} needs every batch"
                             " whole; 1 is allowed (trainer.accumulate_grad_batches=1)")
        if accumulate > batch_size:
            raise ValueError(f"trainer.accumulate_grad_batches={accumulate} is more than data.batch_size={batch_size}:"
                             " a piece has at least one picture")
        model.num_micro_batches = accumulate
    if compile is True and not any(shutil.which(name) for name in compilers()):
        warnings.warn("trainer.compile=true: nothing is compiled, for want of a C compiler (gcc or clang, or one named"
                      " by CC and CXX); the run goes on without, slower, with the same results", stacklevel=2)
    elif compile:
        from torch._dynamo import config as dynamo
        from torch._functorch import config as functorch

        dynamo.recompile_limit = 64  # levels are one piece of code in many shapes
        functorch.donated_buffer = False  # λ goes back through the discriminator twice
        for net in model.nets():
            net.compile(backend="inductor" if compile is True else compile)


def precision(wanted: Literal["auto"] | Precision, accelerator: str, key: str = "trainer.precision") -> Precision:
    """`auto` is bf16-mixed where the hardware multiplies in bf16, else float32."""
    on_gpu = torch.cuda.is_available() and accelerator != "cpu"
    if wanted == "16-mixed" and not on_gpu:
        raise ValueError(f"{key}=16-mixed needs a GPU; here bf16-mixed and 32-true are allowed")
    fast = (torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu
            else torch.cpu._is_avx512_bf16_supported())
    if wanted == "bf16-mixed" and on_gpu and not fast:
        raise ValueError(f"{key}=bf16-mixed: {torch.cuda.get_device_name()} has no bf16; 16-mixed and"
                         " 32-true are allowed, or auto")
    if wanted == "bf16-mixed" and not fast:
        warnings.warn(f"{key}=bf16-mixed: this CPU has no AVX512-BF16, so products in bf16 take many times as"
                      " long as in float32; 32-true is allowed, or auto, which takes it here", stacklevel=2)
    if wanted != "auto":
        return wanted
    return "bf16-mixed" if fast else "32-true"
