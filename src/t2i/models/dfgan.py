"""How DF-GAN trains (Tao et al. 2020, arXiv 2008.05865): hinge losses, wrong captions, a penalty on real pairs.

Deviations: captions are a text encoder's pooled states through one linear layer for each net (`projection=none` for
encoders of the net's own width, such as the published BiLSTM); pairs of equal captions are no mismatch; the penalty's
forward is float32 under any precision; an optimiser step that is not finite is skipped and counted.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.losses.text_gan import Kind
from t2i.models.text_gan import TextGAN
from t2i.nets.gan_blocks import text_projection
from t2i.types import GeneratorOutput, TextDiscriminator, TextEncoder, TextGenerator


@register("model")
class DFGAN(TextGAN):
    """One-stage generation.

    Args:
        text_dim: of both nets.
        Others: see `t2i.models.text_gan.TextGAN`.
    """

    kind = "dfgan"

    def __init__(
        self,
        generator: TextGenerator,
        discriminator: TextDiscriminator,
        text_encoder: TextEncoder,
        max_steps: int,
        text_dim: int = 256,
        projection: Literal["linear", "none"] = "linear",
        learning_rate: float = 1e-4,
        discriminator_learning_rate: float = 4e-4,
        betas: tuple[float, float] = (0.0, 0.9),
        halve_every: int | None = None,
        gan_loss: Kind = "hinge",
        penalty_weight: float = 2.0,
        penalty_power: float = 6.0,
        penalty_every: int = 1,
        consistency_weight: float = 1.0,
        cutmix_steps: int = 10000,
        max_skipped: int = 10,
        gradient_clip: float | None = None,
    ) -> None:
        for name, net in (("generator", generator), ("discriminator", discriminator)):
            if net.text_dim != text_dim:
                raise ValueError(f"{name}.text_dim={net.text_dim}: text_dim={text_dim} is needed (model.text_dim)")
        super().__init__(generator, discriminator, text_encoder, max_steps, projection, learning_rate,
                         discriminator_learning_rate, betas, halve_every, gan_loss, penalty_weight, penalty_power,
                         penalty_every, consistency_weight, cutmix_steps, max_skipped, gradient_clip)
        self.noise_dim = generator.noise_dim
        self.discriminator_text = text_projection(projection, text_encoder.pooled_dim, text_dim)

    def optimized_modules(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        generator, discriminator = super().optimized_modules()
        return generator, discriminator.append(self.discriminator_text)

    def condition(self, pooled: Float[Tensor, "b p"], output: GeneratorOutput) -> Float[Tensor, "b t"]:
        return self.discriminator_text(pooled)
