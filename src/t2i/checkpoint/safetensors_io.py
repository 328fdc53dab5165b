"""Models as safetensors: weights under their own names, and in the file's metadata, under `t2i`, the JSON that explains
them. A file is enough by itself; `config.json` beside it says the same for people and other programs.

    {"format": 1, "kind": …, "config": …, "parts": {argument: {"config": node, "files": {name: text}}}}

is the section `t2i` of a checkpoint (`t2i.checkpoint.file_format`) without the parts' weights, which lie in the file as
`parts/<argument>/<name>`. A model's own names have no slash.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from t2i.config.messages import shown

KEY = "t2i"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
PARTS = "parts/"


def weights_file(path: str | Path) -> Path:
    """The file of weights in an exported folder, or the path itself."""
    path = Path(path).expanduser()
    return path / WEIGHTS if (path / WEIGHTS).is_file() else path


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; ValueError for a damaged file."""
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file ({shown(error)})") from error


def to_bytes(section: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[bytes, str]:
    """A file's content, and `config.json`."""
    tensors = dict(weights)
    bare = {**section, "parts": {}}
    for name, part in section["parts"].items():
        if "state_dict" in part:  # a part that is public by name travels without its weights
            tensors |= {f"{PARTS}{name}/{key}": value for key, value in part["state_dict"].items()}
        bare["parts"][name] = {key: value for key, value in part.items() if key != "state_dict"}
    apart = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    metadata = {"format": "pt", KEY: json.dumps(bare, ensure_ascii=False)}
    return save(apart, metadata), json.dumps(bare, ensure_ascii=False, indent=1)


def to_checkpoint(tensors: Mapping[str, Any], metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """A file of ours as a checkpoint's dictionary, without what training needs; any other file's tensors by name.

    ValueError where the metadata is damaged, or `config.json` beside it, in a folder of ours, says something else.
    """
    if KEY not in metadata:
        return dict(tensors)
    try:
        section = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the metadata {KEY!r} is no JSON ({shown(error)})") from error
    kinds = {"format": int, "kind": str, "config": dict, "parts": dict}
    if not isinstance(section, dict) or not all(isinstance(section.get(k), kind) for k, kind in kinds.items()):
        raise ValueError(f"{path}: the metadata {KEY!r} does not hold {', '.join(kinds)}")
    beside = path.with_name(CONFIG)
    if path.name == WEIGHTS and beside.is_file():
        try:
            same = json.loads(beside.read_text(encoding="utf-8")) == section
        except (ValueError, RecursionError):
            same = False
        if not same:
            raise ValueError(f"{beside} was changed: it does not say what {path} says itself. The weights' own words"
                             f" count; delete {CONFIG}, or export the model again")
    for name, part in section["parts"].items():
        if not isinstance(part, dict):
            raise ValueError(f"{path}: the metadata {KEY!r} has a part {shown(name)} that is no table")
        prefix = f"{PARTS}{name}/"
        held = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        part |= {"state_dict": held} if held else {}
    return {"state_dict": {key: value for key, value in tensors.items() if not key.startswith(PARTS)}, KEY: section}


def read(path: Path) -> dict[str, Any]:
    """`to_checkpoint` of a file."""
    return to_checkpoint(*read_safetensors(path), path)
