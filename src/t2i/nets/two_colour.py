"""An autoencoder whose latent separates colour from form: each patch as two colours, and where which of them is.

As in block truncation coding (Delp and Mitchell 1979, doi 10.1109/TCOM.1979.1094560) and the texture formats after
it, the pixels of a patch are laid on the line through RGB along which they differ most: its two ends are the colours,
the place of each pixel between them is the form. One small net encodes the form and another each colour, into a third
of the latent each, so that with a quantiser of three parts (`quantizers/product.py`) a form has the same code in every
colour and a colour the same in every form: a prior can then draw a shape in a colour that it never had. The form comes
first, so that a prior knows where the colours will go when it chooses them (it learns faster so: docs/log.md).

The decoder paints every patch from form and colours, as its codes say them, and adds what VQGAN's convolutional
decoder, which sees the neighbours, makes of the same latent: seams and soft edges.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.nets.autoencoder import Decoder, TwoHalves, check_positive, check_sides

LEAST_RANGE = 0.25  # of two ends in RGB of [-1, 1]: a form of less contrast is left fainter, not stretched to noise
POWER_STEPS = 8


def two_colours(
    image: Float[Tensor, "b 3 h w"], patch_size: int
) -> tuple[Float[Tensor, "b 6 gh gw"], Float[Tensor, "b n gh gw"]]:
    """The two colours of every patch (RGB of the first, then of the second), and the share of the second in each of
    its n = patch_size² pixels (raster order), in [0, 1].

    Which colour is the first is decided by the form alone (more of it lies near a fixed point of the patch), so that
    other colours in the same places give the same form.
    """
    b, _, h, w = image.shape
    grid = h // patch_size, w // patch_size
    x = F.pixel_unshuffle(image, patch_size).view(b, 3, patch_size**2, *grid)
    mean = x.mean(2, keepdim=True)
    centred = x - mean
    covariance = torch.einsum("bcnij,bdnij->bijcd", centred, centred)
    # Power iteration from the channel that varies most: the longest column, which is never orthogonal to the answer.
    start = covariance.diagonal(dim1=-2, dim2=-1).argmax(-1)
    axis = covariance.gather(-1, start[..., None, None].expand(*covariance.shape[:-1], 1))
    for _ in range(POWER_STEPS):
        axis = covariance @ F.normalize(axis, dim=-2, eps=1e-12)
    axis = F.normalize(axis, dim=-2, eps=1e-12)[..., 0].permute(0, 3, 1, 2)  # (b, 3, gh, gw)
    along = (centred * axis[:, :, None]).sum(1)  # (b, n, gh, gw)
    side = torch.arange(patch_size, device=image.device, dtype=image.dtype)
    far = torch.hypot(side[:, None] - 0.29 * patch_size, side[None, :] - 0.21 * patch_size).flatten()
    sign = torch.where(torch.einsum("bnij,n->bij", along, far - far.mean()) < 0, -1.0, 1.0)[:, None]
    axis, along = axis * sign, along * sign
    low, high = along.amin(1, keepdim=True), along.amax(1, keepdim=True)
    form = (along - low) / (high - low).clamp_min(LEAST_RANGE)
    return torch.cat([mean[:, :, 0] + axis * low, mean[:, :, 0] + axis * high], 1), form


def _pointwise_net(inputs: int, channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, channels, 1), nn.SiLU(), nn.Conv2d(channels, channels, 1), nn.SiLU(),
                         nn.Conv2d(channels, outputs, 1))  # fmt: skip


class TwoColourEncoder(nn.Module):
    """Pictures (b, 3, h, w) to latents (b, z_channels, h / patch_size, w / patch_size): the channels say
    the form, the first colour and the second, a third each."""

    def __init__(self, channels: int = 64, z_channels: int = 48, patch_size: int = 8) -> None:
        super().__init__()
        check_positive(channels=channels, patch_size=patch_size)
        if z_channels < 3 or z_channels % 3:
            raise ValueError(f"z_channels={z_channels}: a multiple of 3 is needed: form, first and second colour")
        self.factor, self.z_channels = patch_size, z_channels
        self.form_stem = _pointwise_net(patch_size**2, channels, z_channels // 3)
        self.colour_stem = _pointwise_net(3, channels, z_channels // 3)

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b z gh gw"]:
        check_sides(image, self.factor)
        with torch.no_grad(), torch.autocast(image.device.type, enabled=False):
            colours, form = two_colours(image.float(), self.factor)
        first, second = colours.split(3, 1)
        return torch.cat([self.form_stem(2 * form - 1), self.colour_stem(first), self.colour_stem(second)], 1)


class TwoColourDecoder(nn.Module):
    """Latents (b, z_channels, h, w) in thirds, as the encoder makes them, to pictures (b, 3, h · patch_size, …)."""

    def __init__(self, channels: int = 64, num_res_blocks: int = 1, z_channels: int = 48, patch_size: int = 8) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.form_out = _pointwise_net(z_channels // 3, channels, patch_size**2)
        self.colour_out = _pointwise_net(z_channels // 3, channels, 3)
        self.refine = Decoder(channels, [1], num_res_blocks, [], z_channels, 3, 0, patch_size, False)
        for parameter in self.refine.head.parameters():  # it starts from what is painted
            nn.init.zeros_(parameter)

    @property
    def last_layer(self) -> Tensor:
        """The weight on which the adaptive weight of the adversarial loss is measured."""
        return self.refine.last_layer

    def compile(self, *args: Any, **options: Any) -> None:
        """All but the last layer; see `Decoder.compile`."""
        self.painted = torch.compile(self.painted, *args, **options)  # type: ignore[method-assign]
        self.refine.compile(*args, **options)

    def painted(self, z: Float[Tensor, "b z gh gw"]) -> Float[Tensor, "b 3 h w"]:
        """Each patch from its form and its two colours."""
        form, first, second = z.chunk(3, 1)
        share = self.form_out(form)[:, None]
        a, b = self.colour_out(first)[:, :, None], self.colour_out(second)[:, :, None]
        pixels = a + share * (b - a)  # (b, 3, patch_size², gh, gw)
        return F.pixel_shuffle(pixels.flatten(1, 2), self.patch_size)

    def forward(self, z: Float[Tensor, "b z gh gw"]) -> Float[Tensor, "b 3 h w"]:
        return self.painted(z) + self.refine(z)


@register("autoencoder")
class TwoColourAutoencoder(TwoHalves):
    """The encoder and the decoder above.

    Args:
        channels: of every net in them.
        num_res_blocks: of the decoder's convolutional part, beside the two of its middle and one more.
        z_channels: of the latent, a third each for form, first and second colour.
        patch_size: pixels a side of a patch, the factor.
    """

    def __init__(self, channels: int = 64, num_res_blocks: int = 1, z_channels: int = 48, patch_size: int = 8) -> None:
        super().__init__(TwoColourEncoder(channels, z_channels, patch_size),
                         TwoColourDecoder(channels, num_res_blocks, z_channels, patch_size),
                         z_channels, patch_size, parts=3)
