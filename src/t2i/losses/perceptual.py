"""LPIPS, the learned perceptual distance on VGG16 features.

Paper: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924, version 0.1
with VGG16. Deviations: nothing is downloaded: VGG's weights come from a local file in torchvision's format
and the linear heads from the installed `lpips` package's data file, both read whole and strictly, so that
random heads cannot go unnoticed; the normalisation has its epsilon under the root too, so that its gradient
is finite where every feature is zero.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.checkpoint import building, file_checks

_VGG_FILE = "vgg16-397923af.pth"
_OFF = "(or train without it: model.perceptual=null)"
_TAPS = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}  # the last ReLU before each pool, and its channels
# Constants of LPIPS: ImageNet's mean and deviation, moved to pictures in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class VGG16Features(nn.Module):
    """torchvision's convolutions of VGG16 (arXiv 1409.1556); gives the last ReLU of each stage."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers  # slow to import

        self.features = make_layers(cfgs["D"])[:-1]

    def forward(self, x: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        found = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _TAPS:
                found.append(x)
        return found


class LPIPS(nn.Module):
    """Distance of two pictures in [-1, 1], one number a picture: 0 for equal ones.

    Frozen and computed in float32. The owner must hold it outside its own modules (a plain list or dict), so that 58
    MB of public weights do not enter its checkpoints, its optimiser and its DDP buckets.

    Args:
        vgg_path: VGG16's weights as torchvision saves them; by default in the torch hub cache.
        heads_path: the linear heads as `lpips` ships them (v0.1/vgg.pth); by default those of the installed package.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg_path: str | None = None, heads_path: str | None = None) -> None:
        super().__init__()
        self.vgg = VGG16Features()
        path = _find_vgg(vgg_path)
        weights = {name: value for name, value in _load(path).items() if not name.startswith("classifier.")}
        building.load_weights(self.vgg, weights, path)
        self.heads = nn.ParameterList(_heads(_find_heads(heads_path)))
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1))
        self.eval().requires_grad_(False)

    def _features(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        found = self.vgg((image.float() - self.shift) / self.scale)
        return [f / (f.square().sum(1, keepdim=True) + 1e-20).sqrt().add(1e-10) for f in found]

    def forward(self, image: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """The gradient reaches `image` only."""
        if image.shape != target.shape:
            raise ValueError(f"image {tuple(image.shape)} and target {tuple(target.shape)} must have one shape")
        if min(image.shape[-2:]) < 16:
            raise ValueError(f"image of {image.shape[-2]}x{image.shape[-1]}: LPIPS needs at least 16 pixels a side")
        with torch.autocast(image.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._features(target)
            total = image.new_zeros(image.shape[0], dtype=torch.float32)
            for f, g, head in zip(self._features(image), wanted, self.heads, strict=True):
                total = total + F.conv2d((f - g).square(), head).mean((1, 2, 3))
        return total


def _find_vgg(path: str | None) -> Path:
    found = Path(path or Path(torch.hub.get_dir()) / "checkpoints" / _VGG_FILE)
    if not found.is_file():
        where = "the torch hub cache" if path is None else f"vgg_path={path}"
        raise ValueError(f"LPIPS needs VGG16's weights; there is no file {found} ({where}). Put torchvision's"
                         f" {_VGG_FILE} there, or give its place as vgg_path {_OFF}")
    return found


def _find_heads(path: str | None) -> Path:
    if path is None:
        spec = importlib.util.find_spec("lpips")  # its data file alone: importing it costs seconds
        if spec is None or spec.origin is None:
            raise ValueError(f"LPIPS needs its linear heads: pip install lpips, or give heads_path {_OFF}")
        path = str(Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth")
    if not Path(path).is_file():
        raise ValueError(f"heads_path={path}: no such file {_OFF}")
    return Path(path)


def _load(path: Path) -> Mapping[str, Tensor]:
    loaded = file_checks.load(path)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not named weights")
    return loaded


def _heads(path: Path) -> list[Float[Tensor, "1 c 1 1"]]:
    loaded = _load(path)
    wanted = {f"lin{i}.model.1.weight": (1, channels, 1, 1) for i, channels in enumerate(_TAPS.values())}
    shapes = {key: tuple(value.shape) for key, value in loaded.items()}
    if shapes != wanted:
        raise ValueError(f"{path} does not hold the LPIPS heads for VGG16: has {shapes}, needs {wanted}")
    if any(bool((value < 0).any()) for value in loaded.values()):
        raise ValueError(f"{path}: LPIPS heads must be >= 0, these are not trained heads")
    return [loaded[key].float() for key in wanted]
