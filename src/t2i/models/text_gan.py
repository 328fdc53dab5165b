"""What the GANs that draw for captions share: two optimiser steps a batch, wrong captions, a guard, sampling.

A batch is one step: the discriminator's, then the generator's against the discriminator as it is by then, on the same
pictures. Each has a backward of its own, outside of data-parallel training's (which wants one a batch), and the ranks'
gradients are averaged before the optimiser steps; random numbers and wrong captions are those of the global batch, so
that several ranks train as one. An optimiser step whose loss or gradient is not finite is skipped and counted.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from t2i.losses.cutmix import consistency, cutmix_masks, mix, pixel_loss_by_mask, ramp
from t2i.losses.text_gan import Kind, discriminator_loss, fake_loss, generator_loss, gradient_penalty
from t2i.models import optimizers
from t2i.models.base import GANModule, NonFiniteLoss, NonFiniteLossOnOtherRank, Unread, format_losses
from t2i.models.distributed import (
    StepRandom,
    all_gather_objects,
    average_gradients,
    first_rank_without,
    log_step,
    next_rows,
    rank_without,
)
from t2i.models.sampling import check_truncation, normals
from t2i.nets.gan_blocks import text_projection
from t2i.types import Batch, GeneratorOutput, TextDiscriminator, TextEncoder


class TextGAN(GANModule):
    """A generator and a discriminator of pictures with captions, and how the two train.

    Args:
        generator, discriminator: nets of one picture size.
        text_encoder: frozen; its pooled states are the captions.
        projection: from these to the nets' `text_dim`: one linear layer, or none.
        learning_rate, discriminator_learning_rate, betas: of Adam.
        halve_every: steps after which both learning rates are halved, again and again; null: never.
        gan_loss: hinge or bce (binary cross-entropy).
        penalty_weight, penalty_power: of the gradient penalty on real pairs (MA-GP); weight 0: none. With it the
            discriminator sees real pictures in float32, whatever the precision: that forward is differentiated twice.
        penalty_every: steps; the penalty works in every so many, as many times as strong (arXiv 1912.04958).
        consistency_weight, cutmix_steps: with a discriminator that has logits a pixel: weight of CutMix's consistency,
            and the steps over which its probability rises from 0 to a half; weight 0: no CutMix.
        max_skipped: optimiser steps that may be skipped before the run stops.
    """

    options: ClassVar[dict[str, Any]] = {"truncation": None}
    noise_dim: int

    def __init__(
        self,
        generator: Any,
        discriminator: TextDiscriminator,
        text_encoder: TextEncoder,
        max_steps: int,
        projection: Literal["linear", "none"],
        learning_rate: float,
        discriminator_learning_rate: float,
        betas: tuple[float, float],
        halve_every: int | None,
        gan_loss: Kind,
        penalty_weight: float,
        penalty_power: float,
        penalty_every: int,
        consistency_weight: float,
        cutmix_steps: int,
        max_skipped: int,
        gradient_clip: float | None,
    ) -> None:
        super().__init__(learning_rate, 0, max_steps, gradient_clip)
        if gan_loss not in ("hinge", "bce"):
            raise ValueError(f"gan_loss={gan_loss!r}: one of hinge, bce is needed")
        for name, value, least in (("halve_every", halve_every, 1), ("penalty_every", penalty_every, 1),
                                   ("cutmix_steps", cutmix_steps, 0), ("max_skipped", max_skipped, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name}={value}: a whole number from {least} is needed")
        if generator.image_size != discriminator.image_size:
            raise ValueError(f"generator.image_size={generator.image_size} and discriminator.image_size="
                             f"{discriminator.image_size}: they must be equal (data.image_size)")
        self.frozen_parts = (text_encoder,)
        self.discriminator: Any = discriminator
        self.discriminator_learning_rate, self.betas, self.halve_every = discriminator_learning_rate, betas, halve_every
        self.gan_loss: Kind = gan_loss
        self.penalty_weight, self.penalty_power, self.penalty_every = penalty_weight, penalty_power, penalty_every
        self.consistency_weight, self.cutmix_steps = consistency_weight, cutmix_steps
        self.max_skipped = max_skipped
        self.skipped: Tensor
        self.register_buffer("skipped", torch.zeros((), dtype=torch.long))
        self.generator = generator
        self.generator_text = text_projection(projection, text_encoder.pooled_dim, generator.text_dim)

    @abstractmethod
    def condition(self, pooled: Float[Tensor, "b p"], output: GeneratorOutput) -> Float[Tensor, "b t"]:
        """The captions as the discriminator takes them."""

    def draw(self, pooled: Float[Tensor, "b p"], noise: Float[Tensor, "b z"]) -> GeneratorOutput:
        """Pictures for captions; gradients reach the generator's own parts."""
        return self.generator(noise, self.generator_text(pooled))

    def optimized_modules(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        """What the generator's optimiser moves, and what the discriminator's does."""
        return nn.ModuleList([self.generator, self.generator_text]), nn.ModuleList([self.discriminator])

    def generator_terms(self, output: GeneratorOutput) -> dict[str, Tensor]:
        """Losses of the generator beside the adversarial one, weighed."""
        return {}

    @property
    def image_size(self) -> int:
        return self.generator.image_size

    @property
    def text_encoder(self) -> Any:
        return self.frozen_parts[0]

    def nets(self) -> list[nn.Module]:
        return [self.generator]  # not the discriminator, whose gradient penalty is differentiated twice

    def convolutional(self) -> list[nn.Module]:
        return [self.generator, self.discriminator]

    def parts(self) -> dict[str, dict[str, Any]]:
        return {"text_encoder": self.text_encoder.part()}

    def drawing_parameters(self) -> int:
        """Parameters of all that draws, but for the text encoder."""
        return sum(p.numel() for p in self.optimized_modules()[0].parameters())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = self.learning_rate, self.discriminator_learning_rate
        return [optimizers.make(modules, "adamw", rate, self.betas)
                for modules, rate in zip(self.optimized_modules(), rates, strict=True)]

    def learning_rate_factor(self) -> float:
        return 1.0 if self.halve_every is None else 0.5 ** (self.global_step // self.halve_every)

    def training_step(self, batch: Batch, batch_index: int) -> None:
        size = len(batch.text)
        if size * self.trainer.world_size < 2:
            raise ValueError("data.batch_size=1: a picture needs another one's caption to be mismatched with;"
                             " 2 or more are needed")
        self.set_learning_rates()
        random = StepRandom(self, size)
        generator, discriminator = self.gan_optimizers()
        later, step = self.later, self.global_step
        # Running statistics are no parameters: a skipped step must not leave what it made of them.
        before = {name: value.clone() for name, value in self.named_buffers()}
        with torch.no_grad():
            pooled = self.text_encoder(batch.text).pooled
        output = self.draw(pooled, random.normal(self.noise_dim))
        terms, logged = self.discriminator_terms(batch, pooled, output, random)
        fine = self.step_if_finite(discriminator, terms)
        if later or bool(fine):
            with self.toggled_optimizer(generator):
                features = self.discriminator.features(output.image)
                fake = self.discriminator.logits(features, self.condition(pooled, output).detach())
            g_terms = {"loss/generator": generator_loss(fake, self.gan_loss), **self.generator_terms(output)}
            terms |= g_terms
            fine = self.step_if_finite(generator, g_terms, fine)
        if later:
            self.undo(before, ~fine)
            self.told_later(step, terms, batch.key, fine.long() * self.trainer.world_size)
        elif not bool(fine):
            self.skip_step(generator, before, terms, batch.key)
        values = {f"train/{name}": value.detach().float() for name, value in {**terms, **logged}.items()}
        log_step(self, {**values, "train/skipped": self.skipped.float()}, size)

    def discriminator_terms(
        self, batch: Batch, pooled: Tensor, output: GeneratorOutput, random: StepRandom
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The discriminator's losses, and what is logged beside them; one forward each of real and drawn pictures."""
        net, kind = self.discriminator, self.gan_loss
        condition = self.condition(pooled, output)
        mean = None if output.mean is None else next_rows(output.mean)
        mismatched = self.condition(next_rows(pooled), GeneratorOutput(output.image, mean))
        penalized = self.penalty_weight > 0 and self.global_step % self.penalty_every == 0
        in_float32 = torch.autocast(self.device.type, enabled=False) if penalized else nullcontext()
        image = batch.image
        if penalized:
            image, condition = image.requires_grad_().clone(), condition.float().requires_grad_().clone()
            mismatched = mismatched.float()
        with in_float32:
            features = net.features(image)
            real, wrong = net.logits(features, condition), net.logits(features, mismatched)
        fake_image = output.image.detach()
        fake = net.logits(net.features(fake_image), condition)
        terms = {"loss/discriminator": discriminator_loss(real, wrong, fake, kind, self.mismatched(batch.text))}
        if penalized:
            with in_float32:
                terms["loss/penalty"] = gradient_penalty(
                    real.conditional, image, condition, self.penalty_weight * self.penalty_every, self.penalty_power)
        if real.pixels is not None and self.consistency_weight > 0:
            terms |= self.cutmix_terms(batch.image.detach(), fake_image, condition, real.pixels, fake.pixels, random)
        logged = {f"logits/{name}": one.conditional.float().mean()
                  for name, one in (("real", real), ("wrong", wrong), ("fake", fake))}
        return terms, logged

    def cutmix_terms(
        self, real: Tensor, fake: Tensor, condition: Tensor, real_pixels: Tensor, fake_pixels: Tensor,
        random: StepRandom,
    ) -> dict[str, Tensor]:
        """CutMix of real and drawn pictures (arXiv 2002.12655, section 3.2), in this step or not."""
        chance, numbers = random.shared(), random.uniform(3)
        if chance >= ramp(self.global_step, self.cutmix_steps):
            return {}
        mask = cutmix_masks(numbers[:, 0], numbers[:, 1:], real.shape[-1])
        features = self.discriminator.features(mix(mask, real, fake.to(real.dtype)))
        mixed = self.discriminator.logits(features, condition)
        whole = fake_loss(mixed.conditional, self.gan_loss).mean()
        return {"loss/cutmix": (whole + pixel_loss_by_mask(mixed.pixels, mask, self.gan_loss)) / 2,
                "loss/consistency": self.consistency_weight * consistency(mixed.pixels, real_pixels, fake_pixels, mask)}

    def mismatched(self, text: list[str]) -> Float[Tensor, " b"]:
        """Weights of the wrong pairs: 0 where the other caption is the same words, mean 1 over the global batch."""
        every = all_gather_objects([caption.lower() for caption in text])
        differs = torch.tensor([a != b for a, b in zip(every, every[1:] + every[:1], strict=True)], dtype=torch.float32)
        weights = differs / differs.mean().clamp(min=1 / len(every))
        return weights[self.global_rank :: len(every) // len(text)].to(self.device, non_blocking=True)

    @property
    def later(self) -> bool:
        """Whether a step is skipped on the device, as in `check_finite`; fp16's loss scale is in the way of it."""
        return self.fused and self.reads_later

    def step_if_finite(
        self, optimizer: Any, terms: dict[str, Tensor], fine: Bool[Tensor, ""] | None = None
    ) -> Bool[Tensor, ""]:
        """Backward and step of one net; False, with nothing moved, if loss or gradient is not finite on any rank, or
        `fine` is False."""
        loss, later = torch.stack(list(terms.values())).sum(), self.later
        here = torch.isfinite(loss.detach())
        if not later and first_rank_without(here) is not None:
            return torch.zeros_like(here)
        optimizer.zero_grad(set_to_none=True)
        with self.no_sync():
            self.manual_backward(loss)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters)
        if self.fused:  # fp16's scaler skips such a step and halves its scale
            norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
            here = here & torch.isfinite(torch.stack(norms)).all()
        if later:
            here = here if fine is None else here & fine
            rank = rank_without(here)
            optimizer.optimizer.found_inf = (rank < self.trainer.world_size).float()
            here = rank >= self.trainer.world_size
        elif not bool(here):
            optimizer.zero_grad(set_to_none=True)
            return here
        optimizer.step()
        return here

    @torch.no_grad()
    def undo(self, before: dict[str, Tensor], wrong: Bool[Tensor, ""]) -> None:
        """Counts a step that was skipped, and gives the buffers back what they were before it."""
        for name, value in self.named_buffers():
            value.copy_(torch.where(wrong, before[name], value))
        self.skipped.add_(wrong)

    def skip_step(self, generator: Any, before: dict[str, Tensor], terms: dict[str, Tensor], keys: list[str]) -> None:
        """Undoes and counts a step; NonFiniteLoss after too many."""
        self.undo(before, torch.ones_like(self.skipped, dtype=torch.bool))
        skipped = Unread(self.global_step, terms, keys, self.skipped)
        generator._on_before_step()  # the batch counts as a step: Lightning counts the generator's
        generator._on_after_step()
        self.stop_for([(skipped, 0)])

    def stop_for(self, wrong: list[tuple[Unread, int]]) -> None:
        if int(self.skipped) > self.max_skipped:
            if self.global_rank:
                raise NonFiniteLossOnOtherRank
            last = wrong[-1][0]
            raise NonFiniteLoss(
                f"{int(self.skipped)} optimiser steps had a loss or gradient that is not finite, the last at step"
                f" {last.step}: {format_losses(last.terms, last.keys)}. model.max_skipped={self.max_skipped} are"
                " allowed. Try smaller learning rates (model.learning_rate, model.discriminator_learning_rate) or"
                " trainer.precision=32-true.")

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Mean logits, and the share of pictures that get a higher one with their own caption than with a wrong one."""
        pooled, net = self.text_encoder(batch.text).pooled, self.discriminator
        rank, world = self.global_rank, self.trainer.world_size
        every = torch.stack(all_gather_objects(list(pooled.float().cpu())))  # ranks' shares may differ by one
        numbers = torch.randn(len(every), self.noise_dim, generator=torch.Generator().manual_seed(batch_index))
        noise = numbers[rank::world].to(self.device)
        others = every.roll(-1, 0)[rank::world].to(self.device)
        output, features = self.draw(pooled, noise), net.features(batch.image)
        condition = self.condition(pooled, output)
        real = net.logits(features, condition).conditional
        wrong = net.logits(features, self.condition(others, self.draw(others, noise))).conditional
        fake = net.logits(net.features(output.image), condition).conditional
        values = {"val/logits/real": real.mean(), "val/logits/wrong": wrong.mean(), "val/logits/fake": fake.mean(),
                  "val/matching": (real > wrong).float().mean()}
        self.log_dict(values, batch_size=len(batch.text), sync_dist=True)

    def check_options(self, truncation: float | None = None) -> None:
        """ValueError for options of `sample` that are outside what is allowed."""
        check_truncation(truncation)

    @torch.no_grad()
    def sample(
        self, text: list[str], *, seeds: list[int], truncation: float | None = None, **unknown: object
    ) -> Float[Tensor, "b 3 h w"]:
        """Draws one picture a caption, in [-1, 1]; `truncation` as in `t2i.models.sampling.normals`."""
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no option of a {self.kind}; it has truncation")
        check_truncation(truncation)
        with self.sampling(text, seeds):
            noise = normals(seeds, self.noise_dim, truncation).to(self.device)
            return self.draw(self.text_encoder(text).pooled, noise).image.float()

    def pictures(self, batch: Batch) -> dict[str, Any]:
        """Samples for the batch's first captions, under the real pictures."""
        text = batch.text[:8]
        rows = [("real", batch.image[:8]), ("drawn", self.sample(text, seeds=list(range(len(text)))))]
        return {"samples": {"rows": rows, "captions": text}}
