"""What the GANs that draw for captions share: two turns a batch, pairs with wrong captions, a guard, sampling.

A batch is one step: the discriminator's turn, then the generator's against the discriminator as it is by then, on the
same pictures. Each turn has a backward of its own, outside of data-parallel training's (which wants one a batch), and
the ranks' gradients are averaged before the optimiser steps; random numbers and wrong captions are those of the global
batch, so that several ranks train as one. A turn whose loss or gradient is not finite is skipped and counted.
"""

from __future__ import annotations

from abc import abstractmethod
from contextlib import nullcontext
from typing import Any, ClassVar, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.losses.cutmix import consistency, cutmix_masks, mix, pixel_loss_by_mask, ramp
from t2i.losses.text_gan import Kind, called_fake, discriminator_loss, generator_loss, gradient_penalty
from t2i.models import optimizers
from t2i.models.base import GANModule, NonFiniteLoss, NonFiniteLossOnOtherRank, frozen
from t2i.models.distributed import StepRandom, all_gather_objects, all_ranks_agree, average_gradients, log, next_rows
from t2i.models.sampling import check_truncation, normals
from t2i.types import Batch, DiscriminatorFeatures, DiscriminatorLogits, GeneratorOutput, TextDiscriminator, TextEncoder


class TextGAN(GANModule):
    """A generator and a discriminator of pictures with captions, and how the two train.

    Args:
        text_encoder: frozen; its pooled states are the captions.
        learning_rate, discriminator_learning_rate, betas: of Adam.
        halve_every: steps after which both learning rates are halved, again and again; null: never.
        gan_loss: hinge or bce (binary cross-entropy).
        penalty_weight, penalty_power: of the gradient penalty on real pairs (MA-GP); weight 0: none. With it the
            discriminator sees real pictures in float32, whatever the precision: that forward is differentiated twice.
        penalty_every: steps; the penalty works in every so many, as many times as strong (arXiv 1912.04958).
        consistency_weight, cutmix_steps: with a discriminator that has logits a pixel: weight of CutMix's consistency,
            and the steps over which its probability rises from 0 to a half; weight 0: no CutMix.
        max_skipped: turns that may be skipped for a loss or gradient that is not finite, before the run stops.
    """

    batch = "images"
    captions = True  # it needs them
    options: ClassVar[dict[str, Any]] = {"truncation": None}

    def __init__(
        self,
        text_encoder: TextEncoder,
        discriminator: TextDiscriminator,
        max_steps: int,
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
        if halve_every is not None and halve_every < 1:
            raise ValueError(f"halve_every={halve_every}: a whole number from 1, or null")
        if penalty_every < 1:
            raise ValueError(f"penalty_every={penalty_every}: a whole number from 1")
        if max_skipped < 0:
            raise ValueError(f"max_skipped={max_skipped}: a whole number from 0")
        self._outside: tuple[Any, ...] = (text_encoder,)  # a tuple: frozen parts stay out of state and optimisers
        self.discriminator = cast(Any, discriminator)
        self.discriminator_learning_rate, self.betas, self.halve_every = discriminator_learning_rate, betas, halve_every
        self.gan_loss: Kind = gan_loss
        self.penalty_weight, self.penalty_power, self.penalty_every = penalty_weight, penalty_power, penalty_every
        self.consistency_weight, self.cutmix_steps = consistency_weight, cutmix_steps
        self.max_skipped = max_skipped
        self.register_buffer("skipped", torch.zeros((), dtype=torch.long))

    generator: nn.Module
    noise_dim: int

    @property
    @abstractmethod
    def image_size(self) -> int: ...

    @abstractmethod
    def draw(self, pooled: Float[Tensor, "b p"], noise: Float[Tensor, "b z"]) -> GeneratorOutput:
        """Pictures for captions; gradients reach the generator's own parts."""

    @abstractmethod
    def told(self, pooled: Float[Tensor, "b p"], drawn: GeneratorOutput) -> Float[Tensor, "b t"]:
        """The captions as the discriminator is told them."""

    @abstractmethod
    def sides(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """What the generator's optimiser moves, and what the discriminator's does."""

    def generator_terms(self, drawn: GeneratorOutput) -> dict[str, Tensor]:
        """Losses of the generator beside the discriminator's word, weighed."""
        return {}

    @property
    def text_encoder(self) -> Any:
        return self._outside[0]

    def nets(self) -> list[nn.Module]:
        """What `trainer.compile` compiles: not the discriminator, whose gradient penalty is differentiated twice."""
        return [self.generator]

    def parts(self) -> dict[str, dict[str, Any]]:
        """What the checkpoint carries beside the weights that train."""
        return {"text_encoder": self.text_encoder.part()}

    def drawing_parameters(self) -> int:
        """Of all that draws, but for the text encoder."""
        return sum(p.numel() for part in self.sides()[0] for p in part.parameters())

    def place(self) -> None:
        """Moves the frozen parts to where the nets are."""
        for part in self._outside:
            part.to(self.device)

    def on_fit_start(self) -> None:
        self.place()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        rates = self.learning_rate, self.discriminator_learning_rate
        return [optimizers.make(nn.ModuleList(side), "adamw", rate, 0.0, self.betas, 0.0)
                for side, rate in zip(self.sides(), rates, strict=True)]

    def schedule(self) -> None:
        factor = 1.0 if self.halve_every is None else 0.5 ** (self.global_step // self.halve_every)
        for optimizer in self.trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor

    def training_step(self, batch: Batch, batch_index: int) -> None:
        size = len(batch.text)
        if size * self.trainer.world_size < 2:
            raise ValueError("data.batch_size=1: a picture needs another one's caption to be mismatched with;"
                             " 2 or more are needed")
        self.schedule()
        draws = StepRandom(self, size)
        generator, discriminator = self.players()
        # Running statistics are no parameters: a skipped turn must not leave what it made of them.
        before = {name: value.clone() for name, value in self.named_buffers()}
        with torch.no_grad():
            pooled = self.text_encoder(batch.text).pooled
        drawn = self.draw(pooled, draws.normal(self.noise_dim))
        terms, named = self.judgement(batch, pooled, drawn, draws)
        d_loss = sum(terms.values(), torch.zeros((), device=self.device))
        fine = self.turn(discriminator, self.sides()[1], d_loss)
        if fine:
            with frozen(nn.ModuleList(self.sides()[1])):
                told = self.told(pooled, drawn).detach()
                fake = self.discriminator.logits(self.discriminator.features(drawn.image), told)
            g_terms = {"loss/generator": generator_loss(fake, self.gan_loss), **self.generator_terms(drawn)}
            terms |= g_terms
            g_loss = sum(g_terms.values(), torch.zeros((), device=self.device))
            fine = self.turn(generator, self.sides()[0], g_loss)
        if not fine:
            self.skip(generator, before, terms, batch.key)
        shown = {f"train/{name}": value.detach().float() for name, value in {**terms, **named}.items()}
        shown["train/skipped"] = cast(Tensor, self.skipped).float()
        log(self, shown, size)

    def judgement(
        self, batch: Batch, pooled: Tensor, drawn: GeneratorOutput, draws: StepRandom
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The discriminator's losses, and what is logged beside them. One look at the real and one at the drawn."""
        net, kind = self.discriminator, self.gan_loss
        told = self.told(pooled, drawn)
        mean = None if drawn.mean is None else next_rows(drawn.mean)
        others = self.told(next_rows(pooled), GeneratorOutput(drawn.image, mean))
        exact = self.penalty_weight > 0 and self.global_step % self.penalty_every == 0
        image = batch.image.requires_grad_().clone() if exact else batch.image  # clones: estimate takes no leaf
        with torch.autocast(self.device.type, enabled=False) if exact else nullcontext():
            told, others = (told.float().requires_grad_().clone(), others.float()) if exact else (told, others)
            seen: DiscriminatorFeatures = net.features(image)
            real: DiscriminatorLogits = net.logits(seen, told)
            wrong: DiscriminatorLogits = net.logits(seen, others)
        fake_image = drawn.image.detach()
        fake: DiscriminatorLogits = net.logits(net.features(fake_image), told)
        loss = discriminator_loss(real, wrong, fake, kind, self.mismatched(batch.text))
        terms = {"loss/discriminator": loss}
        if exact:
            with torch.autocast(self.device.type, enabled=False):
                terms["loss/penalty"] = gradient_penalty(
                    real.conditional, image, told, self.penalty_weight * self.penalty_every, self.penalty_power)
        if real.pixels is not None and self.consistency_weight > 0:
            terms |= self.cutmix(batch.image.detach(), fake_image, told, real.pixels, cast(Tensor, fake.pixels), draws)
        named = {f"logits/{name}": one.conditional.float().mean()
                 for name, one in (("real", real), ("wrong", wrong), ("fake", fake))}
        return terms, named

    def cutmix(
        self, real: Tensor, fake: Tensor, told: Tensor, real_pixels: Tensor, fake_pixels: Tensor, draws: StepRandom
    ) -> dict[str, Tensor]:
        """CutMix of real and drawn pictures (arXiv 2002.12655, section 3.2), in this step or not."""
        chance, numbers = draws.one(), draws.uniform(3)
        if chance >= ramp(self.global_step, self.cutmix_steps):
            return {}
        mask = cutmix_masks(numbers[:, 0], numbers[:, 1:], real.shape[-1])
        seen = self.discriminator.features(mix(mask, real, fake.to(real.dtype)))
        mixed: DiscriminatorLogits = self.discriminator.logits(seen, told)
        pixels = cast(Tensor, mixed.pixels)
        whole = called_fake(mixed.conditional, self.gan_loss).mean()
        return {"loss/cutmix": (whole + pixel_loss_by_mask(pixels, mask, self.gan_loss)) / 2,
                "loss/consistency": self.consistency_weight * consistency(pixels, real_pixels, fake_pixels, mask)}

    def mismatched(self, text: list[str]) -> Float[Tensor, " b"]:
        """Weights of the wrong pairs: 0 where the other caption is the same words, mean 1 over the global batch."""
        every = all_gather_objects([caption.lower() for caption in text])
        differs = torch.tensor([a != b for a, b in zip(every, every[1:] + every[:1], strict=True)], dtype=torch.float32)
        weights = differs / differs.mean().clamp(min=1 / len(every))
        return weights[self.global_rank :: len(every) // len(text)].to(self.device)

    def turn(self, optimizer: Any, side: list[nn.Module], loss: Tensor) -> bool:
        """Backward and step of one player; False, with nothing moved, if loss or gradient is not finite anywhere."""
        if not all_ranks_agree(bool(torch.isfinite(loss)), self.device):
            return False
        optimizer.zero_grad(set_to_none=True)
        with getattr(self.trainer.strategy, "block_backward_sync", nullcontext)():
            self.manual_backward(loss)
        parameters = [p for part in side for p in part.parameters() if p.requires_grad]
        average_gradients(cast(list[Tensor], parameters))
        if self.trainer.precision != "16-mixed":  # whose scaler skips such a step and halves its scale
            norms = torch._foreach_norm([p.grad for p in parameters if p.grad is not None])
            if not bool(torch.isfinite(torch.stack(norms)).all()):
                optimizer.zero_grad(set_to_none=True)
                return False
        optimizer.step()
        return True

    def skip(self, generator: Any, before: dict[str, Tensor], terms: dict[str, Tensor], keys: list[str]) -> None:
        """Counts a skipped turn and undoes what it left in the buffers; NonFiniteLoss after too many."""
        with torch.no_grad():
            for name, value in self.named_buffers():
                value.copy_(before[name])
            cast(Tensor, self.skipped).add_(1)
        generator._on_before_step()  # the batch counts as a step: Lightning counts the generator's
        generator._on_after_step()
        if int(cast(Tensor, self.skipped)) > self.max_skipped:
            if self.global_rank:
                raise NonFiniteLossOnOtherRank
            listed = ", ".join(f"{name}={float(value.detach()):g}" for name, value in terms.items())
            raise NonFiniteLoss(
                f"{int(cast(Tensor, self.skipped))} turns had a loss or gradient that is not finite, the last at step"
                f" {self.global_step}: {listed}. The batch: {', '.join(keys[:8])}. model.max_skipped={self.max_skipped}"
                " are allowed. Try smaller learning rates (model.learning_rate, model.discriminator_learning_rate) or"
                " trainer.precision=32-true.")

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Mean logits, and the share of pictures that get a higher one with their own caption than with a wrong one."""
        pooled, net = self.text_encoder(batch.text).pooled, self.discriminator
        rank, world = self.global_rank, self.trainer.world_size
        every = torch.stack(all_gather_objects(list(pooled.float().cpu())))  # ranks' shares may differ by one
        numbers = torch.randn(len(every), self.noise_dim, generator=torch.Generator().manual_seed(batch_index))
        noise = numbers[rank::world].to(self.device)
        others = every.roll(-1, 0)[rank::world].to(self.device)
        drawn, wrongly = self.draw(pooled, noise), self.draw(others, noise)
        told, seen = self.told(pooled, drawn), net.features(batch.image)
        real, wrong = net.logits(seen, told).conditional, net.logits(seen, self.told(others, wrongly)).conditional
        fake = net.logits(net.features(drawn.image), told).conditional
        named = {"val/logits/real": real.mean(), "val/logits/wrong": wrong.mean(), "val/logits/fake": fake.mean(),
                 "val/matching": (real > wrong).float().mean()}
        self.log_dict(named, batch_size=len(batch.text), sync_dist=True)

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
        if len(seeds) != len(text):
            raise ValueError(f"{len(text)} captions but {len(seeds)} seeds; each picture takes one")
        self.place()
        was_training = self.training
        self.eval()
        try:
            noise = normals(seeds, self.noise_dim, truncation).to(self.device)
            return self.draw(self.text_encoder(text).pooled, noise).image.float()
        finally:
            self.train(was_training)

    def pictures(self, batch: Batch) -> dict[str, Any]:
        """Drawn for the batch's first captions, under the real ones."""
        text = batch.text[:8]
        rows = [("real", batch.image[:8]), ("drawn", self.sample(text, seeds=list(range(len(text)))))]
        return {"samples": {"rows": rows, "captions": text}}
