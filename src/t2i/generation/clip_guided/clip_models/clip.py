"""Any transformers CLIP as a guide: ours (`model=clip` writes its folder), or a published one by folder or hub name.

CLIP: Radford et al. 2021, arXiv 2103.00020. Views go through tensor operations with a gradient in the place of the
published preprocessing, which works on image files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from t2i.checkpoint.plain_files import read_json
from t2i.generation.clip_guided.clip_models.frozen import Precision, checked, said, seen, weights_hash
from t2i.text_encoders.clip_folder import image_normalisation, image_size, load_clip

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class CLIPGuide:
    """A `t2i.types.Guide`.

    Args:
        path: a folder, or a name on the hub.
        precision: of the image tower; texts are always embedded in float32.
        allow_download: whether a name on the hub may be fetched.
    """

    def __init__(self, path: str, precision: Precision = "32-true", allow_download: bool = False) -> None:
        self.name, self.precision = path, checked(precision)
        if problem := _other_than_clip(Path(path)):
            raise ValueError(f"path={path!r} {problem}")
        model, self.tokenizer = load_clip(path, allow_download)
        self.model: Any = model  # transformers types its modules' `to` as one without self
        try:
            self.mean, self.std = image_normalisation(path, allow_download)
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"path={path!r}: its preprocessor_config.json does not tell image_mean and image_std"
                             f" ({type(error).__name__}: {error})") from error
        self.image_size = image_size(model)
        self.dim = cast(int, model.config.projection_dim)
        self._hash: str | None = None

    @property
    def device(self) -> torch.device:
        return self.model.device

    def to(self, device: torch.device | str) -> CLIPGuide:
        self.model.to(device)
        return self

    @torch.no_grad()
    def embed_text(self, text: list[str]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32."""
        ids, _ = self.tokenizer(said(text))  # causal tower, padding behind: no mask needed
        with torch.autocast(self.device.type, enabled=False):
            found = self.model.get_text_features(input_ids=ids.to(self.device)).pooler_output
        return F.normalize(found, dim=-1)

    def embed_image(self, views: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32, of views in [-1, 1]; the views have a gradient, the weights none."""
        return seen(self._tower, views, self.image_size, self.mean, self.std, self.precision, self.device)

    def _tower(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def hash(self) -> str:
        """Sixteen hex digits over the weights."""
        self._hash = self._hash or weights_hash(self.model)
        return self._hash


def _other_than_clip(path: Path) -> str:
    """What is at `path` where it is known to be no CLIP's folder, and what to name instead; empty elsewhere."""
    if path.is_file():
        return ("is a file; a transformers CLIP is a folder (model=clip writes <run>/hf), and a file of open_clip's"
                " is named open_clip:MODEL@FILE")
    kind = _model_type(path / "config.json")
    if kind == "clip":
        return ""
    if (path / "modules.json").is_file():
        inside = sorted(p.parent.name for p in path.glob("*CLIPModel/config.json"))
        return "is a sentence-transformers folder" + (
            f"; its CLIP is {path / inside[0]}" if inside else
            ", not a CLIP's; a text tower in that format is named sbert:FOLDER@CLIP_FOLDER")
    if kind is not None:
        return f"is the folder of a model of type {kind!r}; a guide's is 'clip'"
    return f"is a run's folder; its CLIP is {path / 'hf'}" if (path / "hf" / "config.json").is_file() else ""


def _model_type(config: Path) -> str | None:
    """None where there is no such file, or one that says nothing; `load_clip` tells what is wrong with it."""
    if not config.is_file():
        return None
    try:
        return str(read_json(config)["model_type"])
    except (ValueError, KeyError, TypeError):
        return None
