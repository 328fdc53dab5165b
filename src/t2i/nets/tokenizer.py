"""Pictures to codes and back: an autoencoder with a quantiser between its halves (arXiv 2012.09841).

Two 1x1 convolutions fit the autoencoder's channels to the quantiser's, so that low-dimensional codes need no
other change. Where latent and quantiser have the same parts they work in groups: parts stay what they are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.types import Autoencoder, Quantized, Quantizer


@register("tokenizer")
class ImageTokenizer(nn.Module):
    """A `t2i.types.Tokenizer`.

    Args:
        autoencoder: a module and `t2i.types.Autoencoder`.
        quantizer: a module and `t2i.types.Quantizer`.
        image_size: side of the square pictures, divisible by the autoencoder's factor.
        any_size: `encode` takes pictures of other sizes too, and `decode_ids` their codes where they are a square. For
            nets out of files that do not tell the size they were trained with.
        bounded_latents: a tanh before the quantiser, so that noise or codes of a given size mean something to the net.
            For quantisers that do not bound the latents themselves, as fsq does.
    """

    kind = "tokenizer"

    def __init__(
        self, autoencoder: Autoencoder, quantizer: Quantizer, image_size: int, any_size: bool = False,
        bounded_latents: bool = False,
    ) -> None:
        super().__init__()
        self.bounded_latents = bounded_latents
        if image_size < 1 or image_size % autoencoder.factor:
            raise ValueError(f"image_size={image_size} is not divisible by the autoencoder's factor"
                             f" {autoencoder.factor}")
        self.autoencoder, self.quantizer, self.image_size, self.any_size = autoencoder, quantizer, image_size, any_size
        parts, latents = len(quantizer.factors), autoencoder.parts
        if parts > 1 and latents > 1 and parts != latents:
            raise ValueError(f"the autoencoder's latent has {latents} parts and the quantizer {parts}: one of them must"
                             f" have 1, or both the same")
        groups = latents if parts == latents else 1
        self.quant_conv = nn.Conv2d(autoencoder.z_channels, quantizer.dim, 1, groups=groups)
        self.post_quant_conv = nn.Conv2d(quantizer.dim, autoencoder.z_channels, 1, groups=groups)
        self.dim, self.codebook_size, self.factors = quantizer.dim, quantizer.codebook_size, tuple(quantizer.factors)
        side = image_size // autoencoder.factor
        self.grid = (side, side)
        self.config: dict[str, Any] | None = None  # the node that builds this again; set by whoever loads one

    def encoded(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """What the quantiser is given."""
        z = self.quant_conv(self.autoencoder.encoder(image))
        return torch.tanh(z.float()) if self.bounded_latents else z

    def quantize(self, image: Float[Tensor, "b 3 h w"]) -> Quantized:
        return self.quantizer(self.encoded(image))

    def latents(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]:
        """What `quantize` rounds to codes, not rounded: `decode` takes it. Sides are multiples of the factor."""
        return self.quantizer.unrounded(self.encoded(image))

    def decode(self, z_q: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures, not clamped, of latents or of codes' vectors, on a grid of any size."""
        return self.autoencoder.decoder(self.post_quant_conv(z_q))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b 3 h w"], Quantized]:
        """The reconstruction (not clamped) and the quantiser's result."""
        quantized = self.quantize(image)
        return self.decode(quantized.z_q), quantized

    def with_noise(
        self, image: Float[Tensor, "b 3 h w"], noise: Float[Tensor, "b d gh gw"]
    ) -> tuple[Float[Tensor, "b 3 h w"], Quantized]:
        """The reconstruction from latents with noise in place of codes, and what the quantiser makes of the latents; it
        learns from them, and they do not learn from it."""
        z = self.encoded(image)
        return self.decode(self.quantizer.unrounded(z) + noise), self.quantizer(z.detach())

    @torch.no_grad()
    def encode(self, image: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]:
        """Codes in raster order; images in [-1, 1] of the tokenizer's size."""
        if not self.any_size and image.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(f"images are {tuple(image.shape[-2:])}; this tokenizer takes {(self.image_size,) * 2}")
        return self.quantize(image).ids.flatten(1)

    @torch.no_grad()
    def decode_ids(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 h w"]:
        """Pictures in [-1, 1]; codes out of range raise ValueError."""
        grid, side = self.grid, math.isqrt(ids.shape[1])
        if ids.shape[1] != grid[0] * grid[1] and not (self.any_size and side and side**2 == ids.shape[1]):
            squares = ", or another square number of them" if self.any_size else ""
            raise ValueError(f"{ids.shape[1]} codes a picture: this tokenizer's are {grid[0]} x {grid[1]}{squares}")
        grid = (side, side) if self.any_size else grid
        return self.decode(self.quantizer.decode_ids(ids.unflatten(1, grid))).clamp(-1, 1)

    @torch.no_grad()
    def codebooks(self) -> list[Float[Tensor, "k d"]]:
        """The vectors of every code, a list for each of `factors`."""
        return [vectors.detach().float() for vectors in self.quantizer.codebooks()]
