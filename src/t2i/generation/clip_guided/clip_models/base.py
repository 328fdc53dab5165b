"""What the frozen CLIPs share: views into an image tower with a gradient, unit vectors, the hash of the weights; and
whether two of them are one and the same, so that what scores a picture is not what guided it."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint.weights_hash import weights_hash
from t2i.text_encoders.clip_folder import preprocess
from t2i.types import ClipModel

Precision = Literal["32-true", "bf16-mixed"]
# Cosine from which two image towers count as one. One tower in float32 and in bfloat16 is above 0.999; towers trained
# apart are near 0; neighbouring checkpoints of one training lie between, and from here on do not score each other.
SAME = 0.995


class FrozenClip:
    """A `t2i.types.ClipModel`; a subclass gives `text_features` and `image_features`, which need not be normalised.

    Args:
        modules: all towers.
        image_size: side of the square pictures that the image tower takes.
        mean, std: of its pixels in [0, 1], by channel.
        precision: of the image tower; texts are always embedded in float32.
    """

    def __init__(
        self, name: str, modules: tuple[nn.Module, ...], image_size: int, mean: tuple[float, ...],
        std: tuple[float, ...], precision: Precision,
    ) -> None:
        if precision not in get_args(Precision):
            raise ValueError(f"precision={precision!r}: one of {', '.join(get_args(Precision))} is needed")
        self.name, self.modules, self.image_size = name, modules, image_size
        self.mean, self.std, self.precision = mean, std, precision
        self._hash: str | None = None
        for module in modules:
            module.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.modules[0].parameters()).device

    def to(self, device: torch.device | str) -> FrozenClip:
        for module in self.modules:
            module.to(device)
        return self

    def text_features(self, text: list[str]) -> Float[Tensor, "b d"]:
        raise NotImplementedError

    def image_features(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        raise NotImplementedError

    @torch.no_grad()
    def embed_text(self, text: list[str]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32."""
        if not text:
            raise ValueError("text=[]: give at least one text")
        with torch.autocast(self.device.type, enabled=False):
            return F.normalize(self.text_features(text).float(), dim=-1)

    def embed_image(self, views: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32, of views in [-1, 1]; the views have a gradient, the weights none.

        bf16-mixed covers the tower alone: its normalisation layers and the unit length stay in float32. An autocast
        around the call has no say.
        """
        size = self.image_size
        if tuple(views.shape[-2:]) != (size, size):
            raise ValueError(f"views of {' x '.join(map(str, views.shape[-2:]))} pixels: this CLIP takes {size} x"
                             f" {size}")
        pixels = preprocess(views.to(self.device), size, self.mean, self.std)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
            found = self.image_features(pixels)
        return F.normalize(found.float(), dim=-1)

    def hash(self) -> str:
        """Sixteen hex digits over the weights of all towers."""
        self._hash = self._hash or weights_hash(*self.modules)
        return self._hash


@torch.no_grad()
def same_weights(one: ClipModel, other: ClipModel) -> bool:
    """Whether both see pictures through the same weights: by their hashes, and where those differ by what they make of
    a few pictures, so that another file format or another text tower hides nothing."""
    a, b = one.hash(), other.hash()
    if a[: len(b)] == b[: len(a)]:
        return True
    if one.image_size != other.image_size:
        return False
    coarse = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pictures = F.interpolate(coarse, (one.image_size,) * 2, mode="bilinear")
    left, right = (clip.embed_image(pictures).float().cpu() for clip in (one, other))
    return left.shape == right.shape and bool((left * right).sum(-1).mean() > SAME)
