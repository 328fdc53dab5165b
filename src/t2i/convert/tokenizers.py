"""The tokenizer in a file, whoever wrote it: `model.tokenizer.path=…`.

Ours (checkpoints of model=vqgan, what `python -m t2i convert` and `export` wrote, as file or folder),
taming-transformers' VQGAN and LlamaGen's VQ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from t2i.checkpoint import safetensors_io
from t2i.convert.kinds import kind_of
from t2i.convert.llamagen import read_llamagen
from t2i.convert.taming import read_taming
from t2i.convert.tensors import first, read_tensors
from t2i.models import vqgan
from t2i.nets.tokenizer import ImageTokenizer

READERS: dict[str, Callable[..., ImageTokenizer]] = {"taming": read_taming, "llamagen": read_llamagen}
READ = "VQGAN of taming-transformers, VQ of LlamaGen"


def read_foreign(held: Any, path: str | Path, image_size: int | None = None) -> ImageTokenizer:
    """The frozen tokenizer of another project's file, of which `held` is the content."""
    kind = kind_of(held)
    if kind is not None and kind.system in READERS:
        return READERS[kind.system](held, str(path), image_size)
    what = f"{path} is {kind.text}, not a tokenizer with codes" if kind else (
        f"{path} is no tokenizer of this project (it has no section 't2i')")
    raise ValueError(f"{what} nor one that is read: {READ}. It holds {first(held)}")


def _folder(path: Path) -> None:
    """ValueError for a folder that is none of ours."""
    if (path / "model_index.json").is_file() or (path / "diffusion_pytorch_model.safetensors").is_file():
        raise ValueError(f"{path} is a Diffusers folder, which is not read: {READ}, each as one file")
    raise ValueError(f"{path} is a folder without {safetensors_io.WEIGHTS}, which `python -m t2i export`"
                         " writes")


def load_tokenizer(path: str | Path, image_size: int | None = None) -> ImageTokenizer:
    """The frozen tokenizer of a file, with the `config` that builds it again.

    `image_size` is of the pictures it is for. Other projects' nets take any multiple of their factor; None is the size
    that they were likely trained with. ValueError says what the file is instead, or what in it does not fit.
    """
    found = safetensors_io.weights_file(path)
    if found.is_dir():
        _folder(found)
    try:
        return vqgan.load_tokenizer(found, image_size)
    except ValueError:
        held = read_tensors(found)  # what cannot be read at all is told here, in the same words
        if isinstance(held, Mapping) and safetensors_io.KEY in held:
            raise
    return read_foreign(held, path, image_size)
