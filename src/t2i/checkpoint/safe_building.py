"""Building what a config out of a file names: marked classes alone (`t2i.checkpoint.registry`), and nothing larger
than the
weights beside it.

A file is not ours to believe. Its config is looked over before anything is imported for it; a net is made without
memory first (torch's meta device) and held against the file's tensors by name and shape; only then is it made.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from t2i.checkpoint import registry
from t2i.config.check import check_node
from t2i.config.messages import shown

LARGEST = 2**32  # whole numbers in a config; sizes are held against tensors, this keeps 2**n in bounds
MOST_ITEMS = 1000  # of a list of arguments
DEEPEST = 64  # containers in containers
MOST_VALUES = 100_000  # in a section, each counted as often as it is reached
MOST_TEXT = 256 * 2**20  # characters of a section: vocabularies are in it
SHOWN = 8  # faults that a message lists
DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.exponential_, torch.Tensor.bernoulli_,
         torch.nn.functional.normalize}
ROLES = {"parts": "quantizer"}  # keys that are named otherwise than what stands under them
PLAIN = (str, int, float, bool, type(None))
M = TypeVar("M", bound=nn.Module)


def said(value: Any, most: int = 80) -> str:
    """A value of a file's, in quotes where it is text."""
    return f"'{shown(value, most)}'" if isinstance(value, str) else shown(repr(value), most)


def plain(value: Any, where: str, source: Any) -> Any:
    """A copy of plain containers and values, without what they share; ValueError names the place of anything else, and
    what is nested too deeply or too much."""
    values = text = 0

    def copy(value: Any, where: str, depth: int) -> Any:
        nonlocal values, text
        values += 1
        if depth > DEEPEST or values > MOST_VALUES or text > MOST_TEXT:
            raise ValueError(f"{source}: {shown(where)} is nested too deeply or too large; nothing of it was built")
        if isinstance(value, Mapping):
            if odd := [key for key in value if not isinstance(key, str | int)]:
                raise ValueError(f"{source}: {shown(where)} has a key of type {type(odd[0]).__name__}; text is wanted")
            return {str(key): copy(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, f"{where}.{i}", depth + 1) for i, item in enumerate(value)]
        if type(value) not in PLAIN:
            raise ValueError(f"{source}: {shown(where)} is a {type(value).__name__}; a config holds plain values only")
        text += len(value) if isinstance(value, str) else 0
        return value

    return copy(value, where, 0)


def _values(value: Any, where: str) -> Iterator[str]:
    """Faults of an argument's plain values."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _values(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        if len(value) > MOST_ITEMS:
            yield f"{where} has {len(value):,} items; at most {MOST_ITEMS:,} are taken"
        for i, item in enumerate(value[:MOST_ITEMS]):
            yield from _values(item, f"{where}.{i}")
    elif isinstance(value, int) and abs(value) > LARGEST:
        yield f"{where} is a whole number beyond {LARGEST:,}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where}={value} is no finite number"


def _faults(node: Any, where: str, role: str, given: Collection[str]) -> Iterator[str]:
    if not isinstance(node, Mapping) or "_target_" not in node:
        yield f"{where} is {said(node)}; a node with _target_ is wanted"
        return
    name = node["_target_"]
    entry = registry.find(name)
    if entry is None:
        yield (f"{where}._target_={said(name)} is no class that a file may build; if it is yours, trust=[its package]"
               " says so")
        return
    if entry.role not in (None, role):
        yield f"{where}._target_={said(name)} is a {entry.role}; a {role} is wanted"
        return
    arguments = {key: value for key, value in node.items() if key not in given}
    if entry.role is not None:
        yield from check_node(where, arguments, tuple(given))
    for place in entry.places:
        asked = arguments.get(place)
        words = asked if isinstance(asked, list) else [] if asked is None else [asked]
        for word in words:
            if not isinstance(word, str) or not registry.is_trusted_place(word):
                yield (f"{where}.{place}={said(word)} is the file's word, which opens nothing; if it is meant,"
                       f" trust=[{word if isinstance(word, str) and word.isprintable() else '…'}] says so")
    for key, value in arguments.items():
        if key != "_target_":
            yield from _nested(value, f"{where}.{key}", ROLES.get(key, key))


def _nested(value: Any, where: str, role: str) -> Iterator[str]:
    if isinstance(value, Mapping) and "_target_" in value:
        yield from _faults(value, where, role, ())
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _nested(item, f"{where}.{key}", role)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value[:MOST_ITEMS]):
        for i, item in enumerate(value[:MOST_ITEMS]):
            yield from _nested(item, f"{where}.{i}", role)
    else:
        yield from _values(value, where)


def admit(node: Any, where: str, source: Any, role: str, given: Collection[str] = ()) -> None:
    """ValueError, one line, where a file's node names what a file may not build, open or ask for.

    Args:
        where: the node's key in the file, for messages.
        source: the file.
        role: what the node is to be, as `t2i.checkpoint.registry` has it.
        given: arguments that the code gives, and the node need not say.
    """
    faults = [shown(line, 300) for line in _faults(node, where, role, given)]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(f"{source}: {'; '.join(faults[:SHOWN])}{more}")


class _Outline(TorchFunctionMode):
    """Inside, tensors are made on the meta device and no numbers are drawn for them: torch's stand-ins for that on the
    meta device take seconds to import."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init" or func in DRAWS:
            return args[0] if args else given["tensor"]
        if func is torch.mv:  # of spectral norms, as the last of DRAWS
            return args[0].new_empty(args[0].shape[0])
        return func(*args, **given)


class _TooMany(Exception):
    """A net has more parts than the file has tensors for."""


@contextmanager
def outlined(tensors: int) -> Iterator[None]:
    """Inside, nets are made without memory, and those of more parameters, buffers or modules than so many tensors can
    fill are not made."""
    counts = {"tensors": 0, "modules": 0}
    most = {"tensors": 10 * tensors + 200, "modules": 50 * tensors + 2000}

    def count(what: str) -> Callable[..., None]:
        def hook(module: nn.Module, name: str, value: Any) -> None:
            counts[what] += 1
            if counts[what] > most[what]:
                raise _TooMany(f"it asks for more weights than the file's {tensors:,}")

        return hook

    handles = [registration.register_module_parameter_registration_hook(count("tensors")),
               registration.register_module_buffer_registration_hook(count("tensors")),
               registration.register_module_module_registration_hook(count("modules"))]
    try:
        # Sizes of 0 and the like are refused by their shapes, not warned of.
        with torch.device("meta"), _Outline(), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for handle in handles:
            handle.remove()


def misfits(module: nn.Module, weights: Mapping[str, Tensor]) -> list[str]:
    """What of the weights is missing, unexpected, of another shape or another kind of number."""
    own = module.state_dict()
    found = [f"missing {name}" for name in own if name not in weights]
    found += [f"unexpected {shown(name)}" for name in weights if name not in own]
    for name, value in own.items():
        given = weights.get(name)
        if given is None:
            continue
        if given.shape != value.shape:
            found.append(f"{name} has shape {tuple(given.shape)}, {tuple(value.shape)} is wanted")
        elif given.dtype != value.dtype:
            found.append(f"{name} holds {given.dtype}, {value.dtype} is wanted".replace("torch.", ""))
    return found


def refuse(faults: list[str], source: Any, module: nn.Module) -> None:
    """ValueError that lists the first faults, where there are any."""
    if faults:
        more = f" and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise ValueError(f"the weights in {source} do not fit {type(module).__name__}:"
                         f" {'; '.join(faults[:SHOWN])}{more}")


def bounded(make: Callable[[], M], weights: Mapping[str, Tensor], source: Any, what: str,
            wanted: Callable[[str], bool] = lambda name: True) -> M:
    """The module that `make` makes, of the weights' sizes: tried without memory first. It is not filled.

    Args:
        make: is called twice, under the meta device and then not.
        what: the node's key in the file, for messages.
        wanted: names of the module's own weights that `weights` are to hold; others are free.

    ValueError where it cannot be made of what the file says, or the weights do not fit it.
    """
    def tried() -> M:
        try:
            return make()
        except _TooMany:
            raise ValueError(f"{source}: {what} asks for a net with more weights than the file holds"
                             f" ({len(weights):,} tensors)") from None
        except ValueError as error:
            raise ValueError(f"{source}: {what} cannot be built: {shown(error, 300)}") from error
        except Exception as error:  # a file can make constructors fail in every way there is; all become one line
            raise ValueError(f"{source}: {what} cannot be built ({type(error).__name__}:"
                             f" {shown(error)})") from error

    with outlined(len(weights)):
        outline = tried()
    refuse(misfits(outline, weights), source, outline)
    numbers = sum(value.numel() for value in weights.values())
    beside = sum(value.numel() for value in outline.buffers())
    if beside > 16 * numbers + 2**24:
        raise ValueError(f"{source}: {what} asks for tables of {beside:,} numbers beside {numbers:,} weights")
    return tried()


def not_finite(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of weights with NaN or infinite numbers."""
    return [name for name, value in weights.items()
            if value.is_floating_point() and not bool(torch.isfinite(value).all())]


def tensors(held: Any, where: str, source: Any) -> dict[str, Tensor]:
    """Names and ordinary tensors as a file has them; ValueError names what is no tensor, or not one that lies whole
    and in plain form in the file (sparse, quantised, without numbers, repeated out of fewer numbers)."""
    if not isinstance(held, Mapping):
        raise ValueError(f"{source}: {where} is a {type(held).__name__}; names and tensors are wanted")
    for name, value in held.items():
        fault = None
        if not isinstance(name, str):
            fault = "is no name"
        elif not isinstance(value, Tensor):
            fault = f"is a {type(value).__name__}, not a tensor"
        elif type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
            fault = "is sparse, quantised or of another special kind; plain tensors are wanted"
        elif value.device.type != "cpu":
            fault = f"has no numbers (it lies on {value.device.type})"
        elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
            fault = f"claims {value.numel():,} numbers, the file holds fewer"
        if fault is not None:
            raise ValueError(f"{source}: {where}.{shown(name) if isinstance(name, str) else said(name)} {fault}")
    return dict(held)


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], source: Any) -> None:
    """Strict loading; ValueError names what is missing, unexpected, of another shape or kind of number, or not finite.
    """
    refuse(misfits(module, weights), source, module)
    refuse([f"{name} has numbers that are not finite" for name in not_finite(weights)], source, module)
    module.load_state_dict(weights)
