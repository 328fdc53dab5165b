"""Any transformers CLIP: ours (`model=clip` writes its folder), or a published one by folder or hub name.

CLIP: Radford et al. 2021, arXiv 2103.00020. Views go through tensor operations with a gradient in the place of the
published preprocessing, which works on image files.
"""

from __future__ import annotations

from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from t2i.checkpoint.plain_files import read_json
from t2i.generation.clip_guided.clip_models.base import FrozenClip, Precision
from t2i.text_encoders.clip_folder import image_normalisation, image_size
from t2i.text_encoders.dual_encoder import MODEL_TYPE, load_towers, text_features


class TransformersCLIP(FrozenClip):
    """A `t2i.types.ClipModel`.

    Args:
        path: a folder, or a name on the hub.
        precision: of the image tower.
        allow_download: whether a name on the hub may be fetched.
    """

    def __init__(self, path: str, precision: Precision = "32-true", allow_download: bool = False) -> None:
        if problem := _other_than_clip(Path(path)):
            raise ValueError(f"path={path!r} {problem}")
        self.model, self.tokenizer = load_towers(path, allow_download)
        self.dim: int = self.model.visual_projection.out_features
        normalisation = image_normalisation(path, allow_download)
        super().__init__(path, (self.model,), image_size(self.model), *normalisation, precision)

    def text_features(self, text: list[str]) -> Float[Tensor, "b d"]:
        return text_features(self.model, self.tokenizer, text)

    def image_features(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return self.model.get_image_features(pixel_values=pixels).pooler_output


def _other_than_clip(path: Path) -> str:
    """What is at `path` where it is known to be no CLIP's folder, and what to name instead; empty elsewhere."""
    if path.is_file():
        return ("is a file; a transformers CLIP is a folder (model=clip writes <run>/hf), and a file of open_clip's"
                " is named open_clip:MODEL@FILE")
    kind = _model_type(path / "config.json")
    if kind in ("clip", MODEL_TYPE):
        return ""
    if (path / "modules.json").is_file():
        inside = sorted(p.parent.name for p in path.glob("*CLIPModel/config.json"))
        return "is a sentence-transformers folder" + (
            f"; its CLIP is {path / inside[0]}" if inside else
            ", not a CLIP's; a text tower in that format is named sbert:FOLDER@CLIP_FOLDER")
    if kind is not None:
        return f"is the folder of a model of type {kind!r}; 'clip' is wanted"
    return f"is a run's folder; its CLIP is {path / 'hf'}" if (path / "hf" / "config.json").is_file() else ""


def _model_type(config: Path) -> str | None:
    """None where there is no such file, or one that says nothing; `load_clip` tells what is wrong with it."""
    if not config.is_file():
        return None
    try:
        return str(read_json(config)["model_type"])
    except (ValueError, KeyError, TypeError):
        return None
