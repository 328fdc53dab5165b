"""`python -m t2i convert FILE OUT` and `export CHECKPOINT FOLDER`: models in our own format, with their config.

What was written is read wherever the file that it came from is (`t2i.checkpoint.safetensors_io`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from t2i.checkpoint import atomic, building, file_format, safetensors_io
from t2i.convert.model_card import write_card
from t2i.convert.tensors import read_tensors, tensors_file
from t2i.convert.tokenizers import load_tokenizer, read_foreign
from t2i.convert.vq_model import write_vq_model


def held_of(path: str | Path, image_size: int | None = None) -> dict[str, Any]:
    """A checkpoint's dictionary: of ours as it is, of another project's tokenizer as a tokenizer of ours."""
    found = tensors_file(path)
    held = read_tensors(found)
    if isinstance(held, Mapping) and safetensors_io.KEY in held:
        if image_size is not None:
            raise ValueError(f"--image-size {image_size}: {path} is of this project and knows its size; the option is"
                             " for other projects' files")
        building.load(found)  # what is copied on is what can be built
        return file_format.read(found)
    tokenizer = read_foreign(held, found, image_size)
    section = file_format.pack(tokenizer, {"model": tokenizer.config})
    return {"state_dict": tokenizer.state_dict(), safetensors_io.KEY: section}


def convert(path: str | Path, out: str | Path, image_size: int | None = None) -> Path:
    """Writes `out`, which ends with .safetensors or .ckpt, and returns it. Of a checkpoint that training wrote the
    optimiser's state is left out, and averaged weights stand for the last ones."""
    out = Path(out).expanduser()
    if out.suffix not in (".safetensors", ".ckpt"):
        raise ValueError(f"{out}: a name that ends with .safetensors or .ckpt is wanted")
    if out.exists() and out.samefile(safetensors_io.weights_file(path)):
        raise ValueError(f"{out} is the file to convert itself; give the result another name")
    held = held_of(path, image_size)
    section = held[safetensors_io.KEY]
    if section["kind"] == "clip":  # it needs more than weights and config
        raise ValueError(f"{path} is a CLIP of this project: `export` writes it as a Hugging Face folder, as training"
                         " did beside it (hf/)")
    if out.suffix == ".safetensors":
        return file_format.export(held, out)
    atomic.save_atomic({"state_dict": file_format.weights(held, path), safetensors_io.KEY: section}, out)
    return out


def export(
    path: str | Path, folder: str | Path, license: str | None = None, languages: Sequence[str] = (),
    drawings: str | Path | None = None, format: Literal["t2i", "diffusers"] = "t2i",
) -> Path:
    """Writes `folder` with model.safetensors, config.json and a model card, which takes the other arguments
    (`t2i.convert.model_card`); of a CLIP a Hugging Face folder, which has no card; as `format` diffusers the tokenizer
    as a VQModel, without a card either. Returns the folder."""
    folder = Path(folder).expanduser()
    if folder.suffix in (".safetensors", ".ckpt", ".json"):
        raise ValueError(f"{folder}: the name of a folder is wanted; `convert` writes a file")
    if format == "diffusers":
        if license or languages or drawings:
            raise ValueError("format=diffusers writes no card: --license, --language and --drawings go without it")
        if (folder / safetensors_io.WEIGHTS).is_file():
            raise ValueError(f"{folder} has a {safetensors_io.WEIGHTS}, whose config.json would be written over; give"
                             " format=diffusers a folder of its own")
        return write_vq_model(load_tokenizer(path), folder, path)
    held = held_of(path)
    if held[safetensors_io.KEY]["kind"] != "clip":
        folder.mkdir(parents=True, exist_ok=True)
        write_card(folder, held[safetensors_io.KEY], safetensors_io.weights_file(path), license, languages, drawings)
        file_format.export(held, folder)
    elif license or languages or drawings:
        raise ValueError(f"{path} is a CLIP, exported as a Hugging Face folder without a card: --license, --language"
                         " and --drawings go with models that draw, and tokenizers")
    else:
        building.load(path).export(folder)
    return folder
