"""Inception features, as FID and KID are defined on them (arXiv 1706.08500, 1801.01401).

`fidelity`: TensorFlow's Inception of 2015-12-05 as torch-fidelity builds it, the 2,048 features before the last layer;
torchmetrics takes the same. How a picture comes to 299 pixels moves the figure more than most models do:

    clean       PIL's bicubic filter with antialiasing on each channel in float32, not rounded (arXiv 2104.11222)
    tensorflow  bilinear without antialiasing, as torch-fidelity and the first FID have it
    antialias   bilinear with antialiasing, torchmetrics' default since 1.8

`torchvision`: torchvision's Inception, as DF-GAN's own figures take it: pictures in [0, 1], bilinear to 299 without
antialiasing, then to [-1, 1] (tobran/DF-GAN, code/lib/modules.py, with the normalisation of pytorch-fid's wrapper).
Deviation: theirs are the generator's floats, ours the pictures' bytes. `transforms.Resize` has antialiased tensors by
default since torchvision 0.17: their code gives other figures there.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
import torch_fidelity
import torchvision
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from t2i.checkpoint import file_checks
from t2i.metrics.features import checked

SIDE = 299
ROWS = 32
Resize = Literal["clean", "tensorflow", "antialias"]
# Of each kind: names under which the file is known, its sha256 or the beginning of it, and where it is published.
FILES = {
    "fidelity": (("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth"),
                 "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
                 "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"),
    "torchvision": (("inception_v3_google-0cc3c7bd.pth",), "0cc3c7bd", "https://download.pytorch.org/models/"),
}
SKIPPED = ("AuxLogits", "dropout", "fc")  # the children before them, in order, lead to the 2,048 features


def find_weights(path: str | Path | None, kind: str, sha256: str | None, allow_download: bool) -> tuple[Path, str]:
    """The file and its sha256. ValueError names file, hash and places where there is none, or another one."""
    names, known, url = FILES[kind]
    wanted = sha256 or known
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = Path(path) if path is not None else next((folder / n for n in names if (folder / n).is_file()), None)
    if found is None and allow_download:
        folder.mkdir(parents=True, exist_ok=True)
        found = folder / names[0]
        try:
            torch.hub.download_url_to_file(url + names[0], str(found), hash_prefix=wanted)
        except (OSError, RuntimeError) as error:  # no network, or another file than wanted
            raise ValueError(f"{url}{names[0]} cannot be fetched ({error}); bring the file (sha256 {wanted}) and give"
                             " inception=FILE") from error
    if found is None or not found.is_file():
        looked = f"inception={path}" if path is not None else f"{folder} (torch hub's cache)"
        raise ValueError(f"FID and KID need Inception's weights: {' or '.join(names)}, sha256 {wanted}; there is none"
                         f" at {looked}. Fetch it from {url}{names[0]} and give inception=FILE, or allow_download=true;"
                         " fd_clip and kd_clip do without")
    digest = hashlib.sha256(found.read_bytes()).hexdigest()
    if not digest.startswith(wanted):
        raise ValueError(f"{found} is not the Inception that FID is defined by ({names[0]}): its sha256 is {digest},"
                         f" wanted is {wanted}")
    return found, digest


def clean_resize(picture: np.ndarray) -> np.ndarray:
    """uint8 (h, w, 3) to float32 (299, 299, 3), each channel by itself, in [0, 255]."""
    channels = [Image.fromarray(picture[..., c].astype(np.float32)).resize(
        (SIDE, SIDE), Image.Resampling.BICUBIC) for c in range(3)]
    return np.clip(np.stack([np.asarray(channel) for channel in channels], -1), 0, 255)


class Inception:
    """A `t2i.metrics.features.FeatureNet`.

    Args:
        path: the weights' file; None looks in torch hub's cache.
        kind, resize: see the module; `resize` is of `fidelity` alone.
        sha256: of another file in the same format; None: of the published one.
    """

    dim = 2048

    def __init__(
        self, path: str | Path | None = None, kind: Literal["fidelity", "torchvision"] = "fidelity",
        resize: Resize = "clean", sha256: str | None = None, allow_download: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        if resize not in get_args(Resize):
            raise ValueError(f"resize={resize}: allowed are {', '.join(get_args(Resize))}")
        self.kind, self.resize, self.device = kind, resize, torch.device(device)
        self.file, self.sha256 = find_weights(path, kind, sha256, allow_download)
        self.name = "inception" if kind == "fidelity" else "inception_torchvision"
        weights = file_checks.load(Path(self.file))  # refuses more than tensors: fidelity's class unpickles
        net: nn.Module
        if kind == "fidelity":
            net = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(self.file))
        else:
            net = torchvision.models.inception_v3(weights=None, aux_logits=True, transform_input=False,
                                                  init_weights=False)
            net.load_state_dict(weights)
        self.net = net.to(self.device).eval().requires_grad_(False)
        self.features = nn.Sequential(*(part for name, part in net.named_children() if name not in SKIPPED),
                                      nn.Flatten())

    @torch.no_grad()
    def __call__(self, pictures: UInt8[Tensor, "n h w 3"] | np.ndarray) -> Float[Tensor, "n 2048"]:
        # cuDNN would round the products of float32 convolutions to TF32.
        with torch.autocast(self.device.type, enabled=False), torch.backends.cudnn.flags(allow_tf32=False):
            parts = [self._part(part).float().cpu() for part in checked(pictures).split(ROWS)]
        return torch.cat(parts) if parts else torch.zeros(0, self.dim)

    def _part(self, part: UInt8[Tensor, "b h w 3"]) -> Tensor:
        images = part.permute(0, 3, 1, 2)
        if self.kind == "torchvision":
            scaled = F.interpolate(images.to(self.device).float().div(255), (SIDE, SIDE), mode="bilinear")
            return self.features(scaled * 2 - 1)
        if self.resize == "tensorflow":
            return self.net(images.to(self.device))[0]
        if self.resize == "antialias":
            x = F.interpolate(images.to(self.device).float(), (SIDE, SIDE), mode="bilinear", antialias=True)
        else:
            resized = np.stack([clean_resize(picture) for picture in part.cpu().numpy()])
            x = torch.from_numpy(resized).permute(0, 3, 1, 2).to(self.device)
        return self.features((x - 128) / 128)

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides about the features."""
        if self.kind == "torchvision":
            return {"network": f"torchvision {torchvision.__version__} inception_v3", "sha256": self.sha256,
                    "size": SIDE, "resize": "bilinear, not antialiased, not rounded", "dim": self.dim}
        return {"network": f"torch-fidelity {torch_fidelity.__version__} inception-v3-compat", "sha256": self.sha256,
                "size": SIDE, "resize": self.resize, "quantised": False, "dim": self.dim}
