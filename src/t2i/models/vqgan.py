"""How a VQGAN trains (Esser et al. 2020, arXiv 2012.09841): reconstruction, perceptual, quantiser and GAN losses.

Deviations: one autoencoder forward a step, and one backward through what looks at pictures, whose gradients at the
reconstruction give λ and go on into the autoencoder; the discriminator starts after a fraction of training; the logits'
hinge is chosen by name; schedules are warm-up and cosine; the commitment weight sits on the commitment term
(see `quantizers`). The perceptual net is frozen and held outside the module's state.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from t2i.checkpoint import building, file_format
from t2i.checkpoint.registry import register
from t2i.losses.gan import adaptive_weight, hinge_d, hinge_g, vanilla_d, vanilla_g
from t2i.models import optimizers
from t2i.models.base import GANModule, frozen_call
from t2i.models.distributed import log_step, shared_rand
from t2i.nets.recompute import set_checkpointing
from t2i.nets.tokenizer import ImageTokenizer
from t2i.types import Autoencoder, Batch, Quantizer

# A VQGAN's arguments that its tokenizer is made of.
TOKENIZER = ("autoencoder", "quantizer", "image_size", "bounded_latents")


@register("model")
class VQGAN(GANModule):
    """A tokenizer, its discriminator, and how the two train.

    Args:
        autoencoder, quantizer, image_size, bounded_latents: see `t2i.nets.tokenizer.ImageTokenizer`.
        discriminator: images -> patch logits, or None for none.
        perceptual: (x, y) in [-1, 1] -> distance a picture, or None for none.
        discriminator_start: fraction of `max_steps` after which the discriminator trains and is heard.
        discriminator_weight: factor on the generator's GAN loss; times λ when `adaptive_weight`.
        max_steps: length of training in batches, for schedules.
        quantizer_start: fraction of `max_steps` in which the decoder is given latents with uniform noise of
            ±`latent_noise` in place of codes: an autoencoder learns faster with no quantiser in its way, and the noise
            spaces the latents as codes will. The quantiser learns beside it from latents that do not learn from it.
            Latents must be bounded, or they outgrow the noise: `bounded_latents`, or fsq.
        checkpointing: the autoencoder's residual blocks and attentions compute their activations again in the
            backward instead of keeping them.
    """

    kind = "vqgan"
    captions = False
    supports_micro_batches = True
    training_only = ("perceptual",)

    def __init__(
        self,
        autoencoder: Autoencoder,
        quantizer: Quantizer,
        image_size: int,
        max_steps: int,
        discriminator: nn.Module | None = None,
        perceptual: nn.Module | None = None,
        learning_rate: float = 4.5e-6,
        discriminator_learning_rate: float | None = None,
        betas: tuple[float, float] = (0.5, 0.9),
        weight_decay: float = 0.0,
        warmup_steps: int = 0,
        gradient_clip: float | None = None,
        pixel_loss: Literal["l1", "l2", "l1+l2"] = "l1",
        perceptual_weight: float = 1.0,
        quantizer_weight: float = 1.0,
        discriminator_weight: float = 0.8,
        discriminator_start: float = 0.5,
        adaptive_weight: bool = True,
        gan_loss: Literal["hinge", "vanilla"] = "hinge",
        optimizer: Literal["adamw", "muon"] = "adamw",
        muon_learning_rate: float = 0.02,
        checkpointing: bool = False,
        bounded_latents: bool = False,
        quantizer_start: float = 0.0,
        latent_noise: float = 0.125,
    ) -> None:
        super().__init__(learning_rate, warmup_steps, max_steps, gradient_clip)
        if not 0 <= discriminator_start <= 1:
            raise ValueError(f"discriminator_start={discriminator_start} is a fraction of training, within [0, 1]")
        if not 0 <= quantizer_start < 1:
            raise ValueError(f"quantizer_start={quantizer_start} is a fraction of training, within [0, 1)")
        if not latent_noise >= 0:
            raise ValueError(f"latent_noise={latent_noise}: a number from 0 is needed")
        self.quantizer_start, self.latent_noise = quantizer_start, latent_noise
        self.tokenizer = ImageTokenizer(autoencoder, quantizer, image_size, bounded_latents=bounded_latents)
        self.tokenizer.to(memory_format=torch.channels_last)
        if perceptual is not None:
            perceptual.to(memory_format=torch.channels_last)
        set_checkpointing(self.tokenizer, checkpointing)
        self.discriminator: nn.Module = discriminator if discriminator is not None else nn.Identity()
        self.has_discriminator = discriminator is not None
        self.frozen_parts = (perceptual,)
        self.discriminator_learning_rate = (
            learning_rate if discriminator_learning_rate is None else discriminator_learning_rate
        )
        self.betas, self.weight_decay = betas, weight_decay
        self.pixel_loss, self.perceptual_weight, self.quantizer_weight = pixel_loss, perceptual_weight, quantizer_weight
        self.discriminator_weight, self.discriminator_start = discriminator_weight, discriminator_start
        self.use_adaptive_weight, self.gan_loss = adaptive_weight, gan_loss
        self.optimizer, self.muon_learning_rate = optimizer, muon_learning_rate

    @property
    def image_size(self) -> int:
        return self.tokenizer.image_size

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The generator's by name, AdamW for the discriminator (Muon is a generator's: a discriminator that learns
        so fast wins)."""
        measured = self.use_adaptive_weight and self.has_discriminator
        if measured and not self.tokenizer.autoencoder.last_layer.requires_grad:
            raise ValueError("freeze= holds the decoder's last layer, where model.adaptive_weight=true measures"
                             " gradients: model.adaptive_weight=false, or leave it out of freeze=")
        generator = optimizers.make(self.tokenizer, self.optimizer, self.learning_rate, self.betas, self.weight_decay,
                                    self.muon_learning_rate)
        unused = nn.ParameterList([nn.Parameter(torch.zeros(()))])  # an optimiser must have something
        discriminator = self.discriminator if self.has_discriminator else unused
        return [generator, optimizers.make(discriminator, "adamw", self.discriminator_learning_rate, self.betas)]

    def nets(self) -> list[nn.Module]:
        halves = [self.tokenizer.autoencoder.encoder, self.tokenizer.autoencoder.decoder]
        return [*halves, self.discriminator] if self.has_discriminator else halves

    def convolutional(self) -> list[nn.Module]:
        return [self.discriminator]  # the tokenizer's always do

    @property
    def discriminator_on(self) -> bool:
        return self.has_discriminator and self.global_step >= self.discriminator_start * self.max_steps

    def reconstruction_terms(self, image: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        with torch.autocast(image.device.type, enabled=False):
            difference = reconstruction.float() - image.float()
            parts = {"l1": difference.abs().mean(), "l2": difference.square().mean()}
            pixel = sum(parts[name] for name in self.pixel_loss.split("+"))
            terms = {"loss/pixel": cast(Tensor, pixel)}  # not 0: there is a name
        if self.frozen_parts[0] is not None:
            terms["loss/perceptual"] = self.frozen_parts[0](reconstruction.float(), image.float()).mean()
        return terms

    def reconstruction_loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The reconstruction loss as it is minimised: pixels, and the perceptual distance where there is one."""
        pixel = terms["loss/pixel"]
        return pixel + self.perceptual_weight * terms["loss/perceptual"] if "loss/perceptual" in terms else pixel

    def training_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        self.set_learning_rates()
        logged: dict[str, Tensor] = {}
        ids, size = [], len(batch.text)
        noise = self.noise(size)
        for _ in self.each_micro_batch():
            part, where = self.slice_micro_batch(batch, size)
            values, codes = self.micro_batch_step(part, None if noise is None else noise[where])
            ids.append(codes)
            logged = {name: logged.get(name, 0) + self.micro_batch_share * value for name, value in values.items()}
        log_step(self, logged, size)
        return {"ids": torch.cat(ids)}

    def noise(self, size: int) -> Tensor | None:
        """What this step's latents get in place of codes; None where they are quantised."""
        if self.global_step >= self.quantizer_start * self.max_steps:
            return None
        shape = self.tokenizer.quantizer.dim, *self.tokenizer.grid
        return self.latent_noise * (2 * shared_rand(self, size, *shape) - 1)

    def micro_batch_step(self, batch: Batch, noise: Tensor | None) -> tuple[dict[str, Tensor], Tensor]:
        """Losses, gradients and, with the last micro-batch, the step; returns what is logged, and the codes."""
        image = batch.image.contiguous(memory_format=torch.channels_last)
        reconstruction, quantized = (self.tokenizer(image) if noise is None else
                                     self.tokenizer.with_noise(image, noise))
        cut = reconstruction.detach().float().requires_grad_()
        seen = cut.view_as(cut)  # what looks at pictures goes backward once, to here; torch counts no FLOPs to a leaf
        terms = self.reconstruction_terms(image, seen)
        rec = self.reconstruction_loss(terms)
        gradient = _gradient(rec, seen)
        terms["loss/quantizer"] = quantized.loss
        total = rec.detach() + self.quantizer_weight * quantized.loss.detach()
        d_loss = None
        logits: dict[str, Tensor] = {}
        if self.discriminator_on:
            gan, gan_gradient, weight = self.adversary(seen, reconstruction, gradient)
            terms |= {"loss/generator": gan, "lambda": weight}
            total = total + self.discriminator_weight * weight * gan
            gradient = gradient + self.discriminator_weight * weight * gan_gradient

            def d_loss() -> Tensor:
                real = self.discriminator(image).float()
                fake = self.discriminator(seen.detach()).float()
                logits.update({"logits/real": real.mean().detach(), "logits/fake": fake.mean().detach()})
                return (hinge_d if self.gan_loss == "hinge" else vanilla_d)(real, fake)

        self.check_finite(terms, batch.key)
        of_picture = (reconstruction.float() * gradient).sum()  # has that gradient, whatever its value
        step_loss = self.backward_and_step(of_picture + self.quantizer_weight * quantized.loss, d_loss, batch.key)
        if step_loss is not None:
            terms["loss/discriminator"] = step_loss
        terms |= {**logits, **quantized.metrics, "loss": total}
        return {f"train/{name}": value.detach() for name, value in terms.items()}, quantized.ids.detach()

    def adversary(self, seen: Tensor, reconstruction: Tensor, rec_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The generator's loss, its gradient at `seen` (the reconstruction, cut off its graph), and λ, for which
        `rec_gradient` is that of the reconstruction loss there."""
        logits = frozen_call(self.discriminator, seen).float()
        gan = (hinge_g if self.gan_loss == "hinge" else vanilla_g)(logits)
        gradient = _gradient(gan, seen)
        weight = torch.ones_like(gan)
        if self.use_adaptive_weight:
            last = self.tokenizer.autoencoder.last_layer
            weight = adaptive_weight(_gradient_through(reconstruction, rec_gradient, last),
                                     _gradient_through(reconstruction, gradient, last))
        return gan.detach(), gradient, weight

    def validation_step(self, batch: Batch, batch_index: int) -> dict[str, Tensor]:
        reconstruction, quantized = self.tokenizer(batch.image.contiguous(memory_format=torch.channels_last))
        terms = self.reconstruction_terms(batch.image, reconstruction)
        terms |= {"loss": self.reconstruction_loss(terms)}
        self.log_dict({f"val/{name}": value for name, value in terms.items()}, batch_size=len(batch.text),
                      sync_dist=True)
        return {"image": batch.image, "reconstruction": reconstruction.float().clamp(-1, 1), "ids": quantized.ids}

    @torch.no_grad()
    def pictures(self, batch: Batch) -> dict[str, Any]:
        """Rows for the grid: input above reconstruction, captions below."""
        image = batch.image[:8]
        reconstruction = self.tokenizer.decode_ids(self.tokenizer.encode(image))
        return {"reconstructions": {"rows": [("input", image), ("reconstruction", reconstruction.float())],
                                    "captions": batch.text[:8]}}


def _gradient(loss: Tensor, picture: Tensor) -> Tensor:
    """Of a mean over pictures, in float32; on the way `_scale` times that, else fp16 could not hold a pixel's."""
    return torch.autograd.grad(loss * _scale(picture), picture)[0].float() / _scale(picture)


def _gradient_through(picture: Tensor, gradient: Tensor, weight: Tensor) -> Tensor:
    """At a weight that the picture comes from, of the loss with that gradient at the picture; the graph is kept."""
    upstream = (gradient * _scale(picture)).to(picture.dtype)
    return torch.autograd.grad(picture, weight, upstream, retain_graph=True)[0].float() / _scale(picture)


def _scale(picture: Tensor) -> float:
    """A power of two, so that nothing else changes."""
    return 2.0 ** int(math.log2(picture.numel()))


def load_tokenizer(path: str | Path, image_size: int | None = None) -> ImageTokenizer:
    """The frozen tokenizer out of a VQGAN's checkpoint, or a prior's, or converted from another project's file; it
    needs neither discriminator nor perceptual net.

    `image_size` is of the pictures it is for, where that is known: a VQGAN takes those that it was trained with.
    """
    held = file_format.read(path, kind=("vqgan", "tokenizer", "prior", "prior_any"))
    model = held["t2i"]["config"]["model"]
    weights, parts = file_format.weights(held, path), held["t2i"]["parts"]
    config: dict[str, Any]
    if "tokenizer" in parts:
        config, weights = dict(parts["tokenizer"]["config"]), parts["tokenizer"].get("state_dict", {})
    elif held["t2i"]["kind"] == "vqgan":
        config = {"_target_": "t2i.nets.tokenizer.ImageTokenizer"}
        config |= {key: model[key] for key in TOKENIZER if key in model}
        weights = {k.removeprefix("tokenizer."): v for k, v in weights.items() if k.startswith("tokenizer.")}
    else:
        config = dict(model)
    if image_size is not None and config.get("any_size"):
        config["image_size"] = image_size
    where = "t2i.parts.tokenizer.config" if "tokenizer" in parts else "t2i.config.model"
    tokenizer = building.build_checked(config, weights, path, where, "tokenizer")
    if image_size not in (None, tokenizer.image_size):
        raise ValueError(f"image_size={image_size} (data.image_size): the tokenizer {path} takes pictures of"
                         f" {tokenizer.image_size} pixels a side")
    tokenizer.config = config
    return cast(ImageTokenizer, tokenizer.eval().requires_grad_(False))
