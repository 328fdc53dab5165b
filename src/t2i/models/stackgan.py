"""How StackGAN trains (Zhang et al. 2016, arXiv 1612.03242): stage I draws coarsely, stage II refines what it drew.

Deviations: captions are a text encoder's pooled states through one linear layer before conditioning augmentation
(`projection=none` for the paper's way); learning rates halve by steps; pairs of equal captions are no mismatch; stage I
is frozen in evaluation mode inside stage II, whose checkpoint carries it and its text encoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint import building, file_format
from t2i.checkpoint.registry import register
from t2i.losses.text_gan import Kind, gaussian_kl
from t2i.models.sampling import normals
from t2i.models.text_gan import TextGAN
from t2i.nets.projection import text_projection
from t2i.types import GeneratorOutput, TextDiscriminator, TextEncoder


class StackGAN(TextGAN):
    """What the two stages share; arguments as theirs."""

    def __init__(
        self,
        generator: Any,
        discriminator: TextDiscriminator,
        text_encoder: TextEncoder,
        max_steps: int,
        projection: Literal["linear", "none"],
        kl_weight: float,
        **training: Any,
    ) -> None:
        super().__init__(text_encoder, discriminator, max_steps, **training)
        if discriminator.text_dim != generator.condition_dim:
            raise ValueError(f"discriminator.text_dim={discriminator.text_dim}: the generator's condition_dim,"
                             f" {generator.condition_dim}, is needed: it is told the mean of the augmented condition")
        if generator.image_size != discriminator.image_size:
            raise ValueError(f"generator.image_size={generator.image_size} and discriminator.image_size="
                             f"{discriminator.image_size}: they must be equal (data.image_size)")
        self.generator = generator
        self.kl_weight = kl_weight
        self.generator_text = text_projection(projection, text_encoder.pooled_dim, generator.text_dim)

    @property
    def image_size(self) -> int:
        return cast(Any, self.generator).image_size

    def sides(self) -> tuple[list[nn.Module], list[nn.Module]]:
        return [self.generator, self.generator_text], [self.discriminator]

    def told(self, pooled: Float[Tensor, "b p"], drawn: GeneratorOutput) -> Float[Tensor, "b c"]:
        return cast(Tensor, drawn.mean).detach()

    def generator_terms(self, drawn: GeneratorOutput) -> dict[str, Tensor]:
        return {"loss/kl": self.kl_weight * gaussian_kl(cast(Tensor, drawn.mean), cast(Tensor, drawn.log_var))}


@register("model")
class StackGAN1(StackGAN):
    """Stage I.

    Args:
        generator: `t2i.nets.stackgan.StageOne` or one like it.
        kl_weight: of conditioning augmentation's divergence from N(0, 1).
        Others: see `t2i.models.text_gan.TextGAN`.
    """

    kind = "stackgan1"

    def __init__(
        self,
        generator: Any,
        discriminator: TextDiscriminator,
        text_encoder: TextEncoder,
        max_steps: int,
        projection: Literal["linear", "none"] = "linear",
        kl_weight: float = 2.0,
        learning_rate: float = 2e-4,
        discriminator_learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        halve_every: int | None = None,
        gan_loss: Kind = "bce",
        penalty_weight: float = 0.0,
        penalty_power: float = 6.0,
        penalty_every: int = 1,
        consistency_weight: float = 1.0,
        cutmix_steps: int = 10000,
        max_skipped: int = 10,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__(
            generator, discriminator, text_encoder, max_steps, projection, kl_weight, learning_rate=learning_rate,
            discriminator_learning_rate=discriminator_learning_rate, betas=betas, halve_every=halve_every,
            gan_loss=gan_loss, penalty_weight=penalty_weight, penalty_power=penalty_power,
            penalty_every=penalty_every, consistency_weight=consistency_weight, cutmix_steps=cutmix_steps,
            max_skipped=max_skipped, gradient_clip=gradient_clip,
        )
        self.noise_dim = generator.noise_dim

    def draw(self, pooled: Float[Tensor, "b p"], noise: Float[Tensor, "b z"]) -> GeneratorOutput:
        return self.generator(noise, self.generator_text(pooled))


@register("stage1")
class Coarse(nn.Module):
    """A frozen stage I: captions' pooled states and noise to coarse pictures.

    `text_encoder` is the one it was trained under (None only while it is rebuilt from a stage II's checkpoint, which
    has it as a part of its own).
    """

    def __init__(
        self, generator: Any, pooled_dim: int, projection: Literal["linear", "none"],
        text_encoder: TextEncoder | None = None,
    ) -> None:
        super().__init__()
        self.generator, self.pooled_dim = generator, pooled_dim
        self._outside = (text_encoder,)
        self.generator_text = text_projection(projection, pooled_dim, generator.text_dim)
        self.config: dict[str, Any] = {}

    @property
    def text_encoder(self) -> Any:
        return self._outside[0]

    @property
    def image_size(self) -> int:
        return self.generator.image_size

    def forward(self, pooled: Float[Tensor, "b p"], noise: Float[Tensor, "b z"]) -> Float[Tensor, "b 3 h w"]:
        return self.generator(noise, self.generator_text(pooled)).image


def load_stage1(path: str | Path) -> Coarse:
    """Stage I out of a checkpoint of model=stackgan1, averaged weights where it has them, with its text encoder."""
    held = file_format.read(path, kind="stackgan1")
    model, parts = held["t2i"]["config"]["model"], held["t2i"]["parts"]
    if "text_encoder" not in parts:
        raise ValueError(f"{path}: t2i.parts has no text_encoder, under which stage I was trained")
    encoder = building.build_part(parts["text_encoder"], path, "text_encoder")
    config = {"_target_": "t2i.models.stackgan.Coarse", "pooled_dim": encoder.pooled_dim}
    config |= {key: model[key] for key in ("generator", "projection") if key in model}
    own = ("generator.", "generator_text.")
    weights = {name: value for name, value in file_format.weights(held, path).items() if name.startswith(own)}
    made = building.build_checked(config, weights, path, "t2i.config.model", "stage1", text_encoder=encoder)
    made.config = config
    return made.eval().requires_grad_(False)


@register("model")
class StackGAN2(StackGAN):
    """Stage II over a frozen stage I.

    Args:
        stage1: of a quarter of the generator's picture size.
        generator: `t2i.nets.stackgan.StageTwo`.
        text_encoder: None for stage I's own; another must be the same.
        Others: see `StackGAN1`.
    """

    kind = "stackgan2"

    def __init__(
        self,
        stage1: Coarse,
        generator: Any,
        discriminator: TextDiscriminator,
        max_steps: int,
        text_encoder: TextEncoder | None = None,
        projection: Literal["linear", "none"] = "linear",
        kl_weight: float = 2.0,
        learning_rate: float = 2e-4,
        discriminator_learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        halve_every: int | None = None,
        gan_loss: Kind = "bce",
        penalty_weight: float = 0.0,
        penalty_power: float = 6.0,
        penalty_every: int = 1,
        consistency_weight: float = 1.0,
        cutmix_steps: int = 10000,
        max_skipped: int = 10,
        gradient_clip: float | None = None,
    ) -> None:
        if stage1.image_size * 4 != generator.image_size:
            raise ValueError(f"stage1 draws {stage1.image_size} pixels, generator.image_size={generator.image_size}"
                             f" (data.image_size): {4 * stage1.image_size}, four times as many, is needed")
        encoder = stage1.text_encoder if text_encoder is None else text_encoder
        if encoder.pooled_dim != stage1.pooled_dim:
            raise ValueError(f"text_encoder has sentences of {encoder.pooled_dim} numbers, stage1 was trained on"
                             f" {stage1.pooled_dim}: leave model.text_encoder out, stage I brings its own")
        own = stage1.text_encoder
        if own is not None and encoder is not own and cast(Any, encoder).hash() != own.hash():
            raise ValueError("text_encoder is not the one that stage1 was trained under: leave model.text_encoder out,"
                             " stage I brings its own")
        super().__init__(
            generator, discriminator, encoder, max_steps, projection, kl_weight, learning_rate=learning_rate,
            discriminator_learning_rate=discriminator_learning_rate, betas=betas, halve_every=halve_every,
            gan_loss=gan_loss, penalty_weight=penalty_weight, penalty_power=penalty_power,
            penalty_every=penalty_every, consistency_weight=consistency_weight, cutmix_steps=cutmix_steps,
            max_skipped=max_skipped, gradient_clip=gradient_clip,
        )
        self._outside = (encoder, stage1)
        self.noise_dim = stage1.generator.noise_dim + generator.noise_dim

    @property
    def stage1(self) -> Any:
        return self._outside[1]

    def parts(self) -> dict[str, dict[str, Any]]:
        weights = {name: value.detach().cpu() for name, value in self.stage1.state_dict().items()}
        return {**super().parts(), "stage1": {"config": self.stage1.config, "state_dict": weights}}

    def drawing_parameters(self) -> int:
        return super().drawing_parameters() + sum(p.numel() for p in self.stage1.parameters())

    def draw(self, pooled: Float[Tensor, "b p"], noise: Float[Tensor, "b z"]) -> GeneratorOutput:
        own = self.stage1.generator.noise_dim
        with torch.no_grad():
            coarse = self.stage1(pooled, noise[:, :own])
        return cast(Any, self.generator)(coarse, noise[:, own:], self.generator_text(pooled))

    def pictures(self, batch: Any) -> dict[str, Any]:
        """Drawn for the batch's first captions, under the real ones and what stage I made of them."""
        found = super().pictures(batch)
        text = batch.text[:8]
        pooled = self.text_encoder(text).pooled
        noise = normals(list(range(len(text))), self.noise_dim).to(self.device)
        coarse = self.stage1(pooled, noise[:, : self.stage1.generator.noise_dim])
        found["samples"]["rows"].insert(1, ("stage I", coarse.float()))
        return found
