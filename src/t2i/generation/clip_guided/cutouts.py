"""Many small views of one picture, as clip-guided drawing shows them to CLIP.

Three schemes: "crops", random crops of a turned picture on a wide black ground; "cutouts", random squares inside the
picture (VQGAN-CLIP, Crowson et al. 2022, arXiv 2204.08583); "whole", the whole picture, moved a little: for CLIPs of 32
or 64 pixels, whose captions speak of everything in the picture and would not be true of a crop.

Every view is one affine map of the picture, so that all are made by one resampling, in a batch; views that shrink the
picture look at a copy of it, halved often enough by averaging. Deviations from the published crops: flip and turn are
drawn for every view, not once a step; a picture is resampled once, not twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Scheme:
    """flip: probability; degrees and shift (a share of the ground's side) to both sides; noise: times U(0, 1) N(0, 1),
    in brightness from 0 to 1."""

    flip: float
    degrees: float
    shift: float
    noise: float


SCHEMES = {
    "crops": Scheme(flip=0.5, degrees=30, shift=0.2, noise=0.22),
    "cutouts": Scheme(flip=0.5, degrees=0, shift=0, noise=0.1),
    "whole": Scheme(flip=0, degrees=0, shift=0.05, noise=0),
}
LUMA = (0.299, 0.587, 0.114)


class Cutouts:
    """A picture in [-1, 1] to `n` views of `size` pixels a side; the gradient reaches the picture.

    Args:
        scheme: of the above. crops: sides clip(N(1.2, 0.3), 0.43, 1.9) times the picture's shorter side, anywhere on
            a ground of twice its size. cutouts: sides between `size` (or half the shorter side, where that is less) and
            the shorter side. whole: the largest square, anywhere along the longer side.
        flip, degrees, shift, noise: in the scheme's place, see `Scheme`; null takes its own.
        jitter: brightness, contrast and saturation are multiplied by 1 ± at most this.
        power: of cutouts; above 1 more of them are small.
        fill: the ground of crops, in [-1, 1]. Outside the picture the other schemes repeat its edge.
    """

    def __init__(
        self, size: int, n: int = 32, scheme: str = "crops", flip: float | None = None, degrees: float | None = None,
        shift: float | None = None, noise: float | None = None, jitter: float = 0.0, power: float = 1.0,
        fill: float = -1.0,
    ) -> None:
        if scheme not in SCHEMES:
            raise ValueError(f"scheme={scheme!r}: one of {', '.join(SCHEMES)} is needed")
        own = SCHEMES[scheme]
        self.size, self.n, self.scheme = size, n, scheme
        self.flip = own.flip if flip is None else flip
        self.degrees = own.degrees if degrees is None else degrees
        self.shift = own.shift if shift is None else shift
        self.noise = own.noise if noise is None else noise
        self.jitter, self.power, self.fill = jitter, power, fill
        for name, low, high in (("size", 1, 4096), ("n", 1, 65536), ("flip", 0, 1), ("degrees", 0, 180),
                                ("shift", 0, 1), ("noise", 0, 10), ("jitter", 0, 1), ("power", 0.01, 100),
                                ("fill", -1, 1)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: allowed are numbers from {low} to {high}")

    def __call__(
        self, image: Float[Tensor, "1 3 h w"], generator: torch.Generator, n: int | None = None
    ) -> Float[Tensor, "n 3 s s"]:
        """Clamps the picture and shows it `n` times (None: as often as the constructor says). Not clamped again."""
        if image.ndim != 4 or image.shape[:2] != (1, 3):
            raise ValueError(f"image {tuple(image.shape)}: views are of one picture, (1, 3, h, w)")
        n = self.n if n is None else n
        with torch.autocast(image.device.type, enabled=False):
            image = image.float().clamp(-1, 1)
            seen = self._look(image, *self._places(n, image.shape[2], image.shape[3], generator))
            if self.jitter:
                seen = self._jittered(seen, generator)
            if self.noise:
                amount = 2 * self.noise * _uniform((n, 1, 1, 1), generator)  # brightness from 0 to 1 is -1 to 1 here
                grain = torch.randn(seen.shape, generator=generator, device=generator.device)
                seen = seen + (amount * grain).to(seen)
            return seen

    def _places(self, n: int, h: int, w: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """In pixels from the picture's middle, x before y: centres (n, 2) and sides (n) of the views; and the matrices
        (n, 2, 2) that turn and flip them."""
        short = min(h, w)
        room = torch.tensor([w, h], dtype=torch.float32, device=generator.device)
        if self.scheme == "crops":
            normal = torch.randn(n, generator=generator, device=generator.device)
            side, room = (1.2 + 0.3 * normal).clamp(0.43, 1.9) * short, 2 * room
        elif self.scheme == "cutouts":
            low = min(self.size, short / 2)
            side = low + (short - low) * _uniform((n,), generator) ** self.power
        else:
            side = torch.full((n,), float(short), device=generator.device)
        centre = (_uniform((n, 2), generator) - 0.5) * (room - side[:, None])
        drawn = _uniform((n, 4), generator)
        angle = (2 * drawn[:, 0] - 1) * math.radians(self.degrees)
        mirror = torch.where(drawn[:, 1] < self.flip, -1.0, 1.0)
        centre = centre + (2 * drawn[:, 2:] - 1) * self.shift * room
        cos, sin = angle.cos(), angle.sin()
        turn = torch.stack([cos * mirror, -sin, sin * mirror, cos], -1).view(n, 2, 2)
        return (turn @ centre[..., None])[..., 0], side, turn

    def _look(self, image: Tensor, centre: Tensor, side: Tensor, turn: Tensor) -> Tensor:
        centre, side, turn = centre.to(image), side.to(image), turn.to(image)
        h, w = image.shape[-2:]
        half = torch.tensor([w, h], device=image.device, dtype=torch.float32) / 2
        # grid_sample counts from -1 to 1 over the picture in both directions, and over the view.
        maps = torch.cat([turn * (side / 2)[:, None, None] / half[:, None], (centre / half)[..., None]], -1)
        halvings = (side / self.size).log2().round().clamp(0, math.floor(math.log2(min(h, w)))).long()
        levels = sorted(set(halvings.tolist()))
        padding, ground = ("zeros", self.fill) if self.scheme == "crops" else ("border", 0.0)
        found, order, level = [], [], 0
        picture = image - ground
        for wanted in levels:
            while level < wanted:
                rows, columns = picture.shape[-2:]
                picture = F.adaptive_avg_pool2d(picture, ((rows + 1) // 2, (columns + 1) // 2))
                level += 1
            which = (halvings == wanted).nonzero()[:, 0]
            grid = F.affine_grid(maps[which], [len(which), 3, self.size, self.size], align_corners=False)
            found.append(F.grid_sample(picture.expand(len(which), -1, -1, -1), grid, "bilinear", padding, False))
            order.append(which)
        seen = found[0] if len(found) == 1 else torch.cat(found)[torch.cat(order).argsort()]
        return seen + ground

    def _jittered(self, seen: Tensor, generator: torch.Generator) -> Tensor:
        drawn = (1 + self.jitter * (2 * _uniform((3, len(seen), 1, 1, 1), generator) - 1)).to(seen)
        grey = (seen * seen.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
        seen = grey + drawn[0] * (seen - grey)
        mean = grey.mean((2, 3), keepdim=True)
        return (mean + drawn[1] * (seen - mean) + 1) * drawn[2] - 1


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)
