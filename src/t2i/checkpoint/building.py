"""Building what a config names: the user's own, and one out of a checkpoint, of which registered classes alone are
built."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor

from t2i.checkpoint import registry, safe_building
from t2i.checkpoint.file_format import kind_of, read
from t2i.checkpoint.file_format import weights as weights_of
from t2i.checkpoint.safe_building import (
    admit,
    bounded,
    load_weights,
)
from t2i.config.messages import shown


def build(node: Mapping[str, Any], **given: Any) -> Any:
    """Builds a node with `_target_` of the user's own config, any class that can be imported, by Hydra's `instantiate`;
    `given` replaces or adds arguments of the outermost. Never for a node out of a file: `build_admitted`."""
    if "_target_" not in node:
        raise ValueError(f"a node without _target_ cannot be built; it has {', '.join(map(str, node))}")
    arguments = {key: _escaped(value) for key, value in node.items() if key not in given}
    try:
        made = instantiate({**arguments, "_partial_": True, "_convert_": "all"})
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if str(error).startswith("Error locating target"):
            raise ValueError(f"_target_={node['_target_']} cannot be imported: {shown(cause)}") from error
        raise cause from None  # what a constructor says of its arguments
    return made if node.get("_partial_") else made(**given)


def _escaped(value: Any) -> Any:
    """A resolved value as `instantiate` leaves it: text stays text, whatever it looks like to OmegaConf."""
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


def build_checked(
    node: Mapping[str, Any], weights: Mapping[str, Tensor], path: str | Path, where: str, role: registry.Role,
    **given: Any,
) -> Any:
    """The module that a file's node describes, filled with the file's weights; `given` as in `build`.

    Args:
        where: the node's key in the file, for messages.
        role: what it is to be (`t2i.checkpoint.registry`).
    """
    admit(node, where, path, role, given)
    made = bounded(lambda: build_admitted(node, **given), weights, path, where)
    load_weights(made, weights, path)
    return made


def build_admitted(node: Mapping[str, Any], **given: Any) -> Any:
    """Builds a node out of a file that was admitted (`t2i.checkpoint.safe_building.admit`), or one that our own code
    made after a file: marked classes and those of packages that the user trusts alone."""
    entry = registry.find(node.get("_target_"))
    if entry is None:
        raise ValueError(f"_target_={safe_building.said(node.get('_target_'))} is no class that a file may build; if it"
                         " is yours, trust=[its package] says so")
    arguments = {key: _nested(value) for key, value in node.items() if key != "_target_" and key not in given}
    return entry.cls(**arguments, **given)


def _nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build_admitted(value) if "_target_" in value else {key: _nested(item) for key, item in value.items()}
    return [_nested(item) for item in value] if isinstance(value, list | tuple) else value


def build_part(part: Mapping[str, Any], path: str | Path, name: str) -> Any:
    """A part out of a checkpoint: by its class's `from_part` where it has one, else built and filled.

    Args:
        name: of the part, which is the argument that it is given as.
    """
    where, config = f"t2i.parts.{name}.config", part["config"]
    cls = _marked(config, where, path).cls
    role = cast(registry.Role, name)
    if hasattr(cls, "from_part"):
        # What it carries whole needs no place: the path is the name of where it came from.
        told = {key: None for key in ("path", "allow_download") if "files" in part}
        admit(config, where, path, role, told)
        try:
            return cls.from_part(part, path)
        except ValueError as error:
            if str(path) in str(error):
                raise
            raise ValueError(f"{path}: t2i.parts.{name}: {error}") from error
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: t2i.parts.{name} is not whole ({type(error).__name__}: {shown(error)})"
                             ) from error
    if "state_dict" not in part:
        raise ValueError(f"{path}: t2i.parts.{name} has no weights")
    made = build_checked(config, part["state_dict"], path, where, role)
    if hasattr(made, "config"):
        made.config = dict(config)
    return made.eval().requires_grad_(False)


def _marked(node: Mapping[str, Any], where: str, path: str | Path) -> registry.Entry:
    entry = registry.find(node.get("_target_"))
    if entry is None:
        raise ValueError(f"{path}: {where}._target_={safe_building.said(node.get('_target_'))} is no class that a"
                         " file may build; if it is yours, trust=[its package] says so")
    return entry


def load(path: str | Path, kind: str | tuple[str, ...] | None = None, ema: bool = True) -> Any:
    """The model of a checkpoint, in eval mode on the CPU, from its path alone.

    `ema`: averaged weights where there are some. What a model needs in training only (its class's `training_only`)
    is left out.
    """
    held = read(path, kind)
    section = held["t2i"]
    node = section["config"]["model"]
    entry = _marked(node, "t2i.config.model", path)
    cls, role = entry.cls, "tokenizer" if entry.role == "tokenizer" else "model"
    if kind_of(cls) != section["kind"]:
        raise ValueError(f"{path} calls itself a {section['kind']} and holds a {kind_of(cls)}")
    given = {name: build_part(part, path, name) for name, part in section["parts"].items()}
    given |= {name: None for name in getattr(cls, "training_only", ())}
    model = build_checked(node, weights_of(held, path) if ema else held["state_dict"], path, "t2i.config.model",
                          cast(registry.Role, role), **given)
    if hasattr(model, "on_load_checkpoint"):
        try:
            model.on_load_checkpoint(held)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: what a {section['kind']} keeps beside its weights is missing or damaged"
                             f" ({type(error).__name__}: {shown(error)})") from error
    return model.eval()
