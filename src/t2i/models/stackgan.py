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
from t2i.nets.gan_blocks import text_projection
from t2i.types import GeneratorOutput, TextDiscriminator, TextEncoder


class StackGAN(TextGAN):
    """What the two stages share.

    Args:
        generator: `t2i.nets.stackgan.StageOne` or `StageTwo`, or one like it.
        kl_weight: of conditioning augmentation's divergence from N(0, 1).
        discriminator_text: how the discriminator is told the caption: by the mean of the generator's conditioning
            augmentation, as published, which the divergence can take to nothing; or by a linear layer of its own.
        Others: see `t2i.models.text_gan.TextGAN`.
    """

    def __init__(
        self,
        generator: Any,
        discriminator: TextDiscriminator,
        text_encoder: TextEncoder,
        max_steps: int,
        projection: Literal["linear", "none"] = "linear",
        kl_weight: float = 2.0,
        discriminator_text: Literal["generator", "own"] = "generator",
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
        if discriminator_text not in ("generator", "own"):
            raise ValueError(f"discriminator_text={discriminator_text!r}: one of generator, own is needed")
        if discriminator.text_dim != generator.condition_dim:
            raise ValueError(f"discriminator.text_dim={discriminator.text_dim}: the generator's condition_dim,"
                             f" {generator.condition_dim}, is needed, the width of the augmented condition's mean")
        super().__init__(generator, discriminator, text_encoder, max_steps, projection, learning_rate,
                         discriminator_learning_rate, betas, halve_every, gan_loss, penalty_weight, penalty_power,
                         penalty_every, consistency_weight, cutmix_steps, max_skipped, gradient_clip)
        self.kl_weight = kl_weight
        self.noise_dim = generator.noise_dim
        self.discriminator_text: nn.Module | None = None
        if discriminator_text == "own":
            self.discriminator_text = text_projection("linear", text_encoder.pooled_dim, discriminator.text_dim)

    def optimized_modules(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        generator, discriminator = super().optimized_modules()
        if self.discriminator_text is not None:
            discriminator.append(self.discriminator_text)
        return generator, discriminator

    def condition(self, pooled: Float[Tensor, "b p"], output: GeneratorOutput) -> Float[Tensor, "b c"]:
        if self.discriminator_text is not None:
            return self.discriminator_text(pooled)
        return cast(Tensor, output.mean).detach()

    def generator_terms(self, output: GeneratorOutput) -> dict[str, Tensor]:
        return {"loss/kl": self.kl_weight * gaussian_kl(cast(Tensor, output.mean), cast(Tensor, output.log_var))}


@register("model")
class StackGAN1(StackGAN):
    """Stage I; arguments as `StackGAN`."""

    kind = "stackgan1"


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
        self._frozen = (text_encoder,)  # a tuple: no submodule
        self.generator_text = text_projection(projection, pooled_dim, generator.text_dim)
        self.config: dict[str, Any] = {}

    @property
    def text_encoder(self) -> Any:
        return self._frozen[0]

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
        discriminator_text: Literal["generator", "own"] = "generator",
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
        super().__init__(generator, discriminator, encoder, max_steps, projection, kl_weight, discriminator_text,
                         learning_rate, discriminator_learning_rate, betas, halve_every, gan_loss, penalty_weight,
                         penalty_power, penalty_every, consistency_weight, cutmix_steps, max_skipped, gradient_clip)
        self.frozen_parts = (encoder, stage1)
        self.noise_dim += stage1.generator.noise_dim

    @property
    def stage1(self) -> Any:
        return self.frozen_parts[1]

    def parts(self) -> dict[str, dict[str, Any]]:
        weights = {name: value.detach().cpu() for name, value in self.stage1.state_dict().items()}
        return {**super().parts(), "stage1": {"config": self.stage1.config, "state_dict": weights}}

    def drawing_parameters(self) -> int:
        return super().drawing_parameters() + sum(p.numel() for p in self.stage1.parameters())

    def draw_stage1(self, pooled: Float[Tensor, "b p"], noise: Float[Tensor, "b z"]) -> Float[Tensor, "b 3 h w"]:
        with torch.no_grad():
            return self.stage1(pooled, noise[:, : self.stage1.generator.noise_dim])

    def draw(self, pooled: Float[Tensor, "b p"], noise: Float[Tensor, "b z"]) -> GeneratorOutput:
        own = noise[:, self.stage1.generator.noise_dim :]
        return self.generator(self.draw_stage1(pooled, noise), own, self.generator_text(pooled))

    def pictures(self, batch: Any) -> dict[str, Any]:
        """Samples for the batch's first captions, under the real pictures and what stage I made of them."""
        found = super().pictures(batch)
        text = batch.text[:8]
        noise = normals(list(range(len(text))), self.noise_dim).to(self.device)
        coarse = self.draw_stage1(self.text_encoder(text).pooled, noise)
        found["samples"]["rows"].insert(1, ("stage I", coarse.float()))
        return found
