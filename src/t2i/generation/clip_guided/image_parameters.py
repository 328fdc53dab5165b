"""Pictures as parameters, which clip-guided drawing moves: pixels, a spectrum, or the latents of a tokenizer.

Pixels and spectrum: Olah, Mordvintsev and Schubert 2017, Feature Visualization, doi 10.23915/distill.00007 (there with
decorrelated colours and a sigmoid, left out here). Latents: VQGAN-CLIP, Crowson et al. 2022, arXiv 2204.08583
(straight-through codes, clamped to the codebook's range); Gumbel-softmax, arXiv 1611.01144. Deviation: latents are
measured in units of the codebook (its root mean square, channel by channel), since codebooks differ a hundredfold in
scale and one learning rate should serve them all; `unit="raw"` takes them as they are.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from t2i.types import Tokenizer, unravel_index

START = 0.1  # standard deviation of a new picture's pixels around grey
ROWS = 1024  # latents compared with a codebook at once
KEPT = 0.99  # probability that a code given to Gumbel's logits is drawn again


def normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Standard normal numbers, drawn where the generator is."""
    return torch.randn(shape, generator=generator, device=generator.device)


class ParametersBase(nn.Module):
    """What all `t2i.types.ImageParameters` have in common: a size, and nothing to do after a step."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        if height < 1 or width < 1:
            raise ValueError(f"height={height}, width={width}: whole numbers from 1 are needed")
        self.height, self.width = height, width

    def after_step(self) -> None:
        """Every value of the parameters is a picture."""

    def start_from(self, image: Float[Tensor, "1 3 h w"]) -> None:
        raise NotImplementedError

    def checked(self, image: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 h w"]:
        """In float32; ValueError for another size."""
        if tuple(image.shape) != (1, 3, self.height, self.width):
            raise ValueError(f"image {tuple(image.shape)}: the start takes one of shape"
                             f" {(1, 3, self.height, self.width)}")
        return image.detach().float()


class PixelParameters(ParametersBase):
    """Every pixel a parameter. The start is grey with faint noise."""

    def __init__(self, height: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__(height, width)
        self.pixels = nn.Parameter(START * normal((1, 3, height, width), generator))

    def forward(self) -> Float[Tensor, "1 3 h w"]:
        return self.pixels

    @torch.no_grad()
    def start_from(self, image: Float[Tensor, "1 3 h w"]) -> None:
        self.pixels.copy_(self.checked(image))


class FourierParameters(ParametersBase):
    """The picture's spectrum, each coefficient in units that fall with its frequency f as 1 / f^decay.

    A step of the optimiser then moves large forms more than fine ones, as natural pictures have it (decay 1). Scaled so
    that coefficients of variance 1 make a picture of variance 1. The start is grey with faint noise.
    """

    scale: Tensor

    def __init__(self, height: int, width: int, decay: float = 1.0, *, generator: torch.Generator) -> None:
        super().__init__(height, width)
        if not 0 <= decay <= 4:
            raise ValueError(f"decay={decay}: allowed are numbers from 0 (all frequencies alike) to 4")
        every = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
        scale = every.clamp_min(1 / max(height, width)) ** -decay
        scale = scale / scale.square().mean().mul(2).sqrt()  # real and imaginary part: twice the variance
        self.register_buffer("scale", scale[:, : width // 2 + 1, None].clone(), persistent=False)
        self.spectrum = nn.Parameter(START * normal((1, 3, height, width // 2 + 1, 2), generator))

    def forward(self) -> Float[Tensor, "1 3 h w"]:
        with torch.autocast(self.spectrum.device.type, enabled=False):
            coefficients = torch.view_as_complex(self.spectrum * self.scale)
            return torch.fft.irfft2(coefficients, s=(self.height, self.width), norm="ortho")

    @torch.no_grad()
    def start_from(self, image: Float[Tensor, "1 3 h w"]) -> None:
        coefficients = torch.fft.rfft2(self.checked(image).to(self.scale), norm="ortho")
        self.spectrum.copy_(torch.view_as_real(coefficients) / self.scale)


class LatentParameters(ParametersBase):
    """The latents of a tokenizer, decoded by it; on the tokenizer's device, which is frozen and stays outside.

    Args:
        codes: "none" decodes the latents as they are and starts from sin(N(0, 1) / 2) of the unit; "straight_through"
            decodes the nearest codes, with the gradient of the latents, which `after_step` clamps to the codebook's
            range, channel by channel, and starts from random codes; "gumbel" moves logits over the codes, of which one
            a place is drawn anew at every call in training mode (`train()`) and the likeliest taken otherwise
            (`eval()`). Where codes have parts, each part has its own; those of a residual quantiser add up.
        temperature: of Gumbel's softmax; may be lowered while drawing.
        unit: "codebook" or "raw", see above.
        generator: of the start; the draws of "gumbel" come from another one, seeded from it.
    """

    def __init__(
        self, tokenizer: Tokenizer, height: int, width: int,
        codes: Literal["none", "straight_through", "gumbel"] = "none", temperature: float = 1.0,
        unit: Literal["codebook", "raw"] = "codebook", *, generator: torch.Generator,
    ) -> None:
        super().__init__(height, width)
        factor = tokenizer.image_size // tokenizer.grid[0]
        if height % factor or width % factor:
            near = [max(1, round(side / factor)) * factor for side in (height, width)]
            raise ValueError(f"height={height}, width={width}: both must be divisible by the tokenizer's factor"
                             f" {factor}, such as {near[0]}, {near[1]}")
        for name, value, allowed in (("codes", codes, ("none", "straight_through", "gumbel")),
                                     ("unit", unit, ("codebook", "raw"))):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: one of {', '.join(allowed)} is needed")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature={temperature}: a number above 0 is needed")
        for weight in tokenizer.parameters():
            weight.requires_grad_(False)
        self._frozen = (tokenizer,)  # in a tuple: no module of this one, neither in its parameters nor in its state
        self._books = [book.detach().float() for book in tokenizer.codebooks()]
        widths = [book.shape[1] for book in self._books]
        self._add_up = len(widths) > 1 and set(widths) == {tokenizer.dim}
        if not self._add_up and sum(widths) != tokenizer.dim:
            raise ValueError(f"codes of parts of {', '.join(map(str, widths))} channels for latents of {tokenizer.dim}:"
                             " parts must stand side by side (product) or add up (residual)")
        self.grid = (height // factor, width // factor)
        self.codes, self.temperature = codes, temperature
        device = self._books[0].device
        # (d, 1, 1); a channel that is the same in all codes still has some unit.
        rms = self._joined([book.square().mean(0) for book in self._books]).sqrt().view(-1, 1, 1)
        self._unit = rms.clamp_min(1e-3 * float(rms.max())) if unit == "codebook" else torch.ones_like(rms)
        self._low = self._joined([book.amin(0) for book in self._books]).view(-1, 1, 1) / self._unit
        self._high = self._joined([book.amax(0) for book in self._books]).view(-1, 1, 1) / self._unit
        channels = sum(len(book) for book in self._books) if codes == "gumbel" else len(rms)
        noise = normal((1, channels, *self.grid), generator).to(device)
        self.z = nn.Parameter(torch.sin(0.5 * noise) if codes == "none" else noise)
        if codes == "straight_through":
            uniform = torch.rand((1, *self.grid, len(self._books)), generator=generator, device=generator.device)
            sizes = torch.tensor(tokenizer.factors, device=device)
            self._set((uniform.to(device) * sizes).long().clamp(max=sizes - 1))
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        self._draws = torch.Generator().manual_seed(seed)

    def _joined(self, parts: list[Float[Tensor, "... part"]]) -> Float[Tensor, "... d"]:
        """What the parts of a code make together."""
        return torch.stack(parts).sum(0) if self._add_up else torch.cat(parts, -1)

    def forward(self) -> Float[Tensor, "1 3 h w"]:
        with torch.autocast(self.z.device.type, enabled=False):
            if self.codes == "gumbel":
                z_q = self._mixed()
            else:
                z_q = self.z * self._unit
                if self.codes == "straight_through":
                    z_q = self._vectors(self._nearest(z_q)) + (z_q - z_q.detach())
        return self._frozen[0].decode(z_q)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.codes == "straight_through":
            self.z.copy_(self.z.clamp(self._low, self._high))

    @torch.no_grad()
    def start_from(self, image: Float[Tensor, "1 3 h w"]) -> None:
        """The picture's latents ("none"), or its codes: the tokenizer's own where it is of the tokenizer's size, the
        nearest to its latents otherwise (a Gumbel tokenizer may choose others)."""
        tokenizer, image = self._frozen[0], self.checked(image).to(self.z.device)
        # A sum of residual codes need not be rounded to these codes again; the latents are.
        as_they_are = self.codes == "none" or (self.codes == "straight_through" and self._add_up)
        if not as_they_are and (self.height, self.width) == (tokenizer.image_size,) * 2:
            self.start_from_ids(tokenizer.encode(image))
            return
        latents = tokenizer.latents(image).float()
        if as_they_are:
            self.z.copy_(latents / self._unit)
        else:
            self._set(self._nearest(latents))

    def start_from_ids(self, ids: Int[Tensor, "1 n"]) -> None:
        """Codes in raster order, such as a prior's; ValueError for another number of them or codes out of range.
        Straight-through codes of a residual quantiser may give way to others that come nearer to the same sum."""
        rows, columns = self.grid
        size = self._frozen[0].codebook_size
        if tuple(ids.shape) != (1, rows * columns):
            raise ValueError(f"ids {tuple(ids.shape)}: there are {rows} x {columns} codes, (1, {rows * columns})")
        if int(ids.min()) < 0 or int(ids.max()) >= size:
            raise ValueError(f"ids from {int(ids.min())} to {int(ids.max())}: this tokenizer's are 0..{size - 1}")
        self._set(unravel_index(ids.to(self.z.device).view(1, rows, columns), self._frozen[0].factors))

    @torch.no_grad()
    def _set(self, each: Int[Tensor, "1 gh gw f"]) -> None:
        """Latents at these codes, or logits that favour them."""
        if self.codes != "gumbel":
            self.z.copy_(self._vectors(each) / self._unit)
            return
        hot = [F.one_hot(each[..., i], len(book)) * math.log(KEPT / (1 - KEPT) * (len(book) - 1))
               for i, book in enumerate(self._books)]
        self.z.copy_(torch.cat(hot, -1).permute(0, 3, 1, 2))

    def _vectors(self, each: Int[Tensor, "1 gh gw f"]) -> Float[Tensor, "1 d gh gw"]:
        parts = [F.embedding(each[..., i], book) for i, book in enumerate(self._books)]
        return self._joined(parts).permute(0, 3, 1, 2)

    @torch.no_grad()
    def _nearest(self, z: Float[Tensor, "1 d gh gw"]) -> Int[Tensor, "1 gh gw f"]:
        """The nearest code of every part. Where codes have one length it is the one nearest in direction."""
        rest, found = z.permute(0, 2, 3, 1).flatten(0, 2), []
        for book in self._books:
            x = rest if self._add_up else rest[:, : book.shape[1]]
            # argmin |x - e|^2 = argmax x.e - |e|^2 / 2
            bias = book.square().sum(1).mul(-0.5)
            found.append(torch.cat([torch.addmm(bias, rows, book.T).max(1).indices for rows in x.split(ROWS)]))
            rest = rest - F.embedding(found[-1], book) if self._add_up else rest[:, book.shape[1] :]
        return torch.stack(found, -1).view(1, *self.grid, -1)

    def _mixed(self) -> Float[Tensor, "1 d gh gw"]:
        """One code a place, with the gradient of the softmax."""
        logits = self.z.permute(0, 2, 3, 1)  # (1, gh, gw, k)
        if self.training:
            uniform = torch.rand(logits.shape, generator=self._draws).to(logits)
            logits = logits - uniform.clamp(1e-20, 1 - 1e-7).log().neg().log()
        parts = logits.split([len(book) for book in self._books], -1)
        z_q = []
        for part, book in zip(parts, self._books, strict=True):
            soft = (part / self.temperature).softmax(-1)
            hard = F.embedding(part.argmax(-1), book)
            mixture = soft @ book
            z_q.append(hard + (mixture - mixture.detach()))
        return self._joined(z_q).permute(0, 3, 1, 2)
