"""Building what a config names: the user's own (`build`), and one out of a file (`load`), which is not ours to believe.

A file's config is checked before anything is imported for it: registered classes alone (`t2i.checkpoint.registry`), and
no place that the user did not name. A net is then made without memory (torch's meta device) and held against the file's
tensors by name and shape; only then is it made.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from t2i.checkpoint import registry
from t2i.checkpoint.file_format import kind_of, read
from t2i.checkpoint.file_format import weights as weights_of
from t2i.config import aliases
from t2i.config.check import check_node
from t2i.config.messages import quoted, shown


def build(node: Mapping[str, Any], /, at: str | None = None, **given: Any) -> Any:
    """Builds a node with `_target_` of the user's own config, any class that can be imported, by Hydra's `instantiate`;
    `given` replaces or adds arguments of the outermost. Never for a node out of a file: `build_registered`.

    `at`: the node's key, which messages about one of its arguments then begin with.
    """
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
        if at is not None and isinstance(cause, ValueError) and (inner := FULL_KEY.search(str(error))):
            part: Any = node
            for key in inner[1].split("."):
                part = part.get(key) if isinstance(part, Mapping) else None
            if isinstance(part, Mapping) and str(cause).partition("=")[0] in part:
                raise ValueError(f"{at}.{inner[1]}.{cause}") from error
        raise cause from None  # what a constructor says of its arguments
    try:
        return made if node.get("_partial_") else made(**given)
    except ValueError as error:
        if at is None or str(error).partition("=")[0] not in node:
            raise
        raise ValueError(f"{at}.{error}") from error


def build_model(config: Mapping[str, Any], /, **given: Any) -> Any:
    """The model of a run's config; messages name an argument as one types it, `text_encoder.path` where `model` takes
    that group over."""
    try:
        return build(config["model"], at="model", **given)
    except ValueError as error:
        if config.get("text_encoder") is None or not str(error).startswith("model.text_encoder."):
            raise
        raise ValueError(str(error).removeprefix("model.")) from error


def _escaped(value: Any) -> Any:
    """A resolved value as `instantiate` leaves it: text stays text, whatever it looks like to OmegaConf."""
    if isinstance(value, Mapping):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_escaped(item) for item in value]
    if isinstance(value, str) and "${" in value:  # how often Hydra unescapes it depends on where it stands
        return {"_target_": "urllib.parse.unquote", "string": quote(value)}
    return value


FULL_KEY = re.compile(r"^full_key: (\S+)$", re.M)  # of an InstantiationException
MAX_INTEGER = 2**32  # in a file's config; sizes are held against tensors, this keeps 2**n in bounds
MAX_ITEMS = 1000  # of a list of arguments
MAX_FAULTS = 8  # that a message lists
SKIPPED = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.exponential_, torch.Tensor.bernoulli_,
           torch.nn.functional.normalize}
# Weights of options that were removed, by the ends of their names.
REMOVED_WEIGHTS = re.compile(r"(?:^|\.)(?:gpt\.(?:row|column|above|above_right|tally\.weight|tally_in\.weight"
                             r"|position_in_caption)|predict\.readers\.\d+\.seen)$")
REMOVED = "removed in this version: train again, or use the version before"
ROLES = {"parts": "quantizer"}  # keys that are named otherwise than what stands under them
M = TypeVar("M", bound=nn.Module)


def joined(faults: list[str]) -> str:
    more = f"; and {len(faults) - MAX_FAULTS} more" if len(faults) > MAX_FAULTS else ""
    return "; ".join(faults[:MAX_FAULTS]) + more


def check_file_node(node: Any, where: str, source: Any, role: str, given: Collection[str] = ()) -> None:
    """ValueError, one line, where a file's node names what a file may not build, open or ask for.

    Args:
        where: the node's key in the file, for messages.
        source: the file.
        role: what the node is to be, as `t2i.checkpoint.registry` has it.
        given: arguments that the code gives, and the node need not say.
    """
    if faults := [shown(line, 300) for line in _faults(node, where, role, given)]:
        raise ValueError(f"{source}: {joined(faults)}")


def _faults(node: Any, where: str, role: str, given: Collection[str] = ()) -> Iterator[str]:
    if not isinstance(node, Mapping) or "_target_" not in node:
        yield f"{where} is {quoted(node)}; a node with _target_ is wanted"
        return
    name = node["_target_"]
    entry = registry.find(name)
    if entry is None:
        yield (f"{where}._target_={quoted(name)} is no class that a file may build; if it is yours, trust=[its package]"
               " says so")
        return
    if entry.role not in (None, role):
        yield f"{where}._target_={quoted(name)} is a {entry.role}; a {role} is wanted"
        return
    arguments = {key: value for key, value in node.items() if key not in given}
    if removed := [f"{key}={quoted(arguments.pop(key))}" for key in list(arguments) if aliases.is_removed(name, key)]:
        yield f"{where} has {', '.join(removed)}, which {'was' if len(removed) == 1 else 'were'} {REMOVED}"
    if entry.role is not None:
        yield from check_node(where, arguments, tuple(given))
    for place in entry.places:
        asked = arguments.get(place)
        for word in asked if isinstance(asked, list) else [] if asked is None else [asked]:
            if not isinstance(word, str) or not registry.is_trusted_place(word):
                yield (f"{where}.{place}={quoted(word, 200)} is the file's word, which opens nothing; if it is meant,"
                       f" trust=[{word if isinstance(word, str) and word.isprintable() else '…'}] says so")
    for key, value in arguments.items():
        if key != "_target_":
            yield from _value_faults(value, f"{where}.{key}", ROLES.get(key, key))


def _value_faults(value: Any, where: str, role: str) -> Iterator[str]:
    if isinstance(value, Mapping) and "_target_" in value:
        yield from _faults(value, where, role)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _value_faults(item, f"{where}.{key}", role)
    elif isinstance(value, list | tuple):
        if len(value) > MAX_ITEMS:
            yield f"{where} has {len(value):,} items; at most {MAX_ITEMS:,} are taken"
        for i, item in enumerate(value[:MAX_ITEMS]):
            yield from _value_faults(item, f"{where}.{i}", role)
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        yield f"{where} is a whole number beyond {MAX_INTEGER:,}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where}={value} is no finite number"


def places(node: Any) -> list[str]:
    """What the classes that a config names would open: files, folders, names on the hub."""
    if isinstance(node, list | tuple):
        return [place for item in node for place in places(item)]
    if not isinstance(node, Mapping):
        return []
    entry, found = registry.find(node.get("_target_")), []
    for asked in (node.get(place) for place in (entry.places if entry is not None else ())):
        found += [word for word in (asked if isinstance(asked, list | tuple) else [asked]) if isinstance(word, str)]
    return found + [place for item in node.values() for place in places(item)]


class _NoInit(TorchFunctionMode):
    """Inside, no numbers are drawn for tensors of the meta device: torch's own stand-ins for that take seconds to
    import."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in SKIPPED:
            return args[0] if args else given["tensor"]
        if func is torch.mv:  # of spectral norms, as the last of SKIPPED
            return args[0].new_empty(args[0].shape[0])
        return func(*args, **given)


class _TooMany(Exception):
    """A net has more parts than the file has tensors for."""


@contextmanager
def on_meta_device(tensors: int) -> Iterator[None]:
    """Inside, nets are made without memory, and those of more parameters, buffers or modules than so many tensors can
    fill are not made."""

    def limit(most: int) -> Callable[..., None]:
        count = 0

        def hook(module: nn.Module, name: str, value: Any) -> None:
            nonlocal count
            count += 1
            if count > most:
                raise _TooMany(f"it asks for more weights than the file's {tensors:,}")

        return hook

    tensor_hook = limit(10 * tensors + 200)
    handles = [registration.register_module_parameter_registration_hook(tensor_hook),
               registration.register_module_buffer_registration_hook(tensor_hook),
               registration.register_module_module_registration_hook(limit(50 * tensors + 2000))]
    try:
        # Sizes of 0 and the like are refused by their shapes, not warned of.
        with torch.device("meta"), _NoInit(), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def misfits(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, str]:
    """What of the weights is missing, unexpected, of another shape or kind of number, in words, by name."""
    found = {name: f"missing {name}" for name in own if name not in weights}
    found |= {name: f"unexpected {shown(name)}" for name in weights if name not in own}
    for name, value in own.items():
        given = weights.get(name, value)
        if given.shape != value.shape:
            found[name] = f"{name} has shape {tuple(given.shape)}, {tuple(value.shape)} is wanted"
        elif given.dtype != value.dtype:
            found[name] = f"{name} holds {given.dtype}, {value.dtype} is wanted".replace("torch.", "")
    return found


def check_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Any, values: bool = True) -> None:
    """ValueError names what of the weights is missing, unexpected, of another shape or kind of number, or, with
    `values`, not finite."""
    own = module.state_dict()
    if removed := [shown(name) for name in weights if name not in own and REMOVED_WEIGHTS.search(name)]:
        raise ValueError(f"the weights in {source} are of options that were {REMOVED} ({joined(removed)})")
    faults = list(misfits(own, weights).values())
    if values and not faults:
        faults = [f"{name} has numbers that are not finite" for name in not_finite(weights)]
    if faults:
        raise ValueError(f"the weights in {source} do not fit {type(module).__name__}: {joined(faults)}")


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of weights with NaN or infinite numbers."""
    return [name for name, value in weights.items()
            if value.is_floating_point() and not bool(torch.isfinite(value).all())]


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Any) -> None:
    """Strict loading of what `check_weights` finds no fault with."""
    check_weights(module, weights, source)
    module.load_state_dict(weights)


def build_to_fit(make: Callable[[], M], weights: Mapping[str, Tensor], source: Any, where: str) -> M:
    """The module that `make` makes, of the weights' sizes: tried without memory first. It is not filled.

    Args:
        make: is called twice, under the meta device and then not.
        where: the node's key in the file, for messages.

    ValueError where it cannot be made of what the file says, or the weights do not fit it.
    """

    def attempt() -> M:
        try:
            return make()
        except _TooMany:
            raise ValueError(f"{source}: {where} asks for a net with more weights than the file holds"
                             f" ({len(weights):,} tensors)") from None
        except Exception as error:  # a file can make constructors fail in every way there is; all become one line
            kind = "" if isinstance(error, ValueError) else f" ({type(error).__name__})"
            raise ValueError(f"{source}: {where} cannot be built{kind}: {shown(error, 300)}") from error

    with on_meta_device(len(weights)):
        empty = attempt()
    check_weights(empty, weights, source, values=False)
    numbers, buffers = (sum(value.numel() for value in each) for each in (weights.values(), empty.buffers()))
    if buffers > 16 * numbers + 2**24:
        raise ValueError(f"{source}: {where} asks for tables of {buffers:,} numbers beside {numbers:,} weights")
    return attempt()


def build_checked(
    node: Mapping[str, Any], weights: Mapping[str, Tensor], path: str | Path, where: str, role: registry.Role,
    **given: Any,
) -> Any:
    """The module that a file's node describes, filled with the file's weights; `given` as in `build`.

    Args:
        where: the node's key in the file, for messages.
        role: what it is to be (`t2i.checkpoint.registry`).
    """
    check_file_node(node, where, path, role, given)
    made = build_to_fit(lambda: build_registered(node, **given), weights, path, where)
    load_weights(made, weights, path)
    return made


def build_registered(node: Mapping[str, Any], **given: Any) -> Any:
    """Builds a node out of a file that was checked (`check_file_node`), or that our own code made after a file:
    registered classes, and those of packages that the user trusts."""

    def nested(value: Any) -> Any:
        if isinstance(value, Mapping):
            return build_registered(value) if "_target_" in value else {k: nested(item) for k, item in value.items()}
        return [nested(item) for item in value] if isinstance(value, list | tuple) else value

    arguments = {key: nested(value) for key, value in node.items() if key != "_target_" and key not in given}
    return registry.get(node["_target_"], "").cls(**arguments, **given)


def build_part(part: Mapping[str, Any], path: str | Path, name: str) -> Any:
    """A part out of a checkpoint: by its class's `from_part` where it has one, else built and filled.

    Args:
        name: of the part, which is the argument that it is given as.
    """
    where, config, role = f"t2i.parts.{name}.config", part["config"], cast(registry.Role, name)
    cls = registry.get(config.get("_target_"), f"{path}: {where}.").cls
    if hasattr(cls, "from_part"):
        # What it carries whole needs no place: the path is the name of where it came from.
        check_file_node(config, where, path, role, ("path", "allow_download") if "files" in part else ())
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


def load_part(path: str | Path, name: str) -> Any:
    """A part by itself, frozen, out of a checkpoint or an exported folder: the text encoder or the tokenizer of a
    prior."""
    section = read(path)["t2i"]
    parts = section["parts"]
    if name not in parts:
        raise ValueError(f"{name}.path={path} is a {section['kind']}, which carries no {name}; a prior's checkpoint"
                         " does")
    return build_part(parts[name], path, name)


def load(path: str | Path, kind: str | tuple[str, ...] | None = None, ema: bool = True) -> Any:
    """The model of a checkpoint, in eval mode on the CPU, from its path alone.

    `ema`: averaged weights where there are some. What a model needs in training only (its class's `training_only`)
    is left out.
    """
    held = read(path, kind)
    section, where = held["t2i"], "t2i.config.model"
    node = section["config"]["model"]
    entry = registry.get(node.get("_target_"), f"{path}: {where}.")
    if kind_of(entry.cls) != section["kind"]:
        raise ValueError(f"{path} calls itself a {section['kind']} and holds a {kind_of(entry.cls)}")
    given = {name: build_part(part, path, name) for name, part in section["parts"].items()}
    given |= {name: None for name in getattr(entry.cls, "training_only", ())}
    weights = weights_of(held, path) if ema else held["state_dict"]
    model = build_checked(node, weights, path, where, "tokenizer" if entry.role == "tokenizer" else "model", **given)
    load_beside(model, held, path)
    return model.eval()


def load_beside(model: Any, held: dict[str, Any], path: str | Path) -> None:
    """What a model keeps in a checkpoint beside its weights, such as a CLIP's words."""
    if hasattr(model, "on_load_checkpoint"):
        try:
            model.on_load_checkpoint(held)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: what a {held['t2i']['kind']} keeps beside its weights is missing or damaged"
                             f" ({type(error).__name__}: {shown(error)})") from error
