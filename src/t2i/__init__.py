"""Text-to-image experiments. From Python a model is opened by `t2i.load` or `t2i.from_pretrained`; torch is imported by
their first call, not by `import t2i`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t2i.generation.text_to_image_pipeline import TextToImagePipeline


def load(path: str | Path, *, device: str = "auto", trust: Iterable[str] = ()) -> TextToImagePipeline:
    """The model of a checkpoint (`runs/…/last.ckpt`), an exported folder or its safetensors file.

    Args:
        device: auto, cpu, cuda or mps.
        trust: packages whose classes the file may build, and files, folders or hub names that it may open.

    ValueError says what the file is instead, or what is wrong with it.
    """
    from t2i.generation.text_to_image_pipeline import TextToImagePipeline

    return TextToImagePipeline.load(path, device, trust)


def from_pretrained(
    name: str | Path, *, revision: str | None = None, device: str = "auto", trust: Iterable[str] = ()
) -> TextToImagePipeline:
    """The model of an exported folder (`t2i export`), here or on the Hugging Face hub (`owner/name`). Its weights, a
    safetensors file, and its config are read; nothing of it is run.

    Args:
        revision: a branch, tag or commit on the hub.
        device, trust: as of `load`.
    """
    from t2i.generation.text_to_image_pipeline import TextToImagePipeline

    return TextToImagePipeline.from_pretrained(name, revision, device, trust)
