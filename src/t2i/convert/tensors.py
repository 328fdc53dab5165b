"""Other projects' files as plain containers and tensors, and nets filled from them by the files' own names.

Nothing in a file is executed: torch's files are read with `weights_only=True`, safetensors hold no code. Of foreign
names a few are known, and stand-ins of ours answer to them: NumPy's scalar and dtype become plain numbers, and what
Lightning's checkpoints name beside the weights (callbacks, the arguments of a command line) becomes nothing.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.checkpoint import file_checks, safetensors_io
from t2i.checkpoint.building import not_finite
from t2i.checkpoint.file_checks import tensors

Source = str | Path | Mapping[str, Any]
Rules = Iterable[tuple[str, str]]  # pattern and replacement, from our names to the published ones
SHOWN = 8  # problems that a message lists


class Dtype:
    """What `numpy.dtype` makes in a file that is read: the format of one number."""

    FORMATS = {"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
               "f2": "e", "f4": "f", "f8": "d"}

    def __init__(self, name: Any, align: Any = False, copy: Any = False) -> None:
        if name not in self.FORMATS:
            raise ValueError(f"a NumPy value of type {str(name)[:20]!r}; single numbers are read")
        self.format, self.order = self.FORMATS[name], "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if isinstance(state, tuple) and state[1:2] == (">",) else "<"


def scalar(dtype: Any, data: bytes) -> bool | int | float:
    """What `numpy.core.multiarray.scalar` makes in a file that is read: a plain number."""
    if not isinstance(dtype, Dtype):
        raise ValueError("a NumPy scalar without a dtype")
    return struct.unpack(dtype.order + dtype.format, data)[0]


class Named:
    """Stands for a class or a function of others: it takes everything, does nothing, and has its name."""

    name = ""

    def __new__(cls, *_: Any, **__: Any) -> Named:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __call__(self, *_: Any, **__: Any) -> Named:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    extend = add = append


def named(name: str) -> type[Named]:
    """A class of that name, since pickles make objects of classes."""
    return type(name.rpartition(".")[2] or "Named", (Named,), {"name": name})


# Named by checkpoints of Lightning 1.x (keys of `callbacks`), by taming-transformers' main.py, by LlamaGen's (`args`).
UNWANTED = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.callbacks.lr_logger.LearningRateLogger",
    "pytorch_lightning.callbacks.progress.ProgressBar",
    "main.SetupCallback", "main.ImageLogger", "main.CUDACallback", "argparse.Namespace",
)  # fmt: skip
STANDINS: list[Any] = [
    (Dtype, "numpy.dtype"),
    (scalar, "numpy.core.multiarray.scalar"),
    (scalar, "numpy._core.multiarray.scalar"),
    *((named(name), name) for name in UNWANTED),
]


def tensors_file(path: str | Path) -> Path:
    """The file of weights in a folder that we exported or that diffusers wrote, or the path itself."""
    path = safetensors_io.weights_file(path)
    found = (path / f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "bin"))
    return next((file for file in found if file.is_file()), path)


def read_tensors(path: str | Path) -> Any:
    """What a torch file (of either format) or a .safetensors holds, tensors on the CPU; nothing in it is executed.

    What we exported is read as the checkpoint that it came from.

    ValueError says what else the file is (a web page, a pointer, cut off, another program's classes by name).
    """
    path = tensors_file(path)
    if path.is_file() and file_checks.is_safetensors(path):
        return safetensors_io.read(path)
    with torch.serialization.safe_globals(STANDINS):
        return file_checks.load(path)


def opened(source: Source, label: str | None = None) -> tuple[Any, str]:
    """The content of a file, or what was given; and its name in messages."""
    if isinstance(source, Mapping):
        return source, label or "the state dict"
    return read_tensors(source), label or str(source)


def bare(state: Any, source: str) -> tuple[dict[str, Any], str]:
    """A state dict without the prefix `module.` that data-parallel training leaves on all its names; and the prefix."""
    if not isinstance(state, Mapping) or not state:
        what = "is empty" if isinstance(state, Mapping) else f"holds a {type(state).__name__}"
        raise ValueError(f"{source} {what}; a state dict, names and tensors, is wanted")
    names = [str(name) for name in state]
    prefix = "module." if all(name.startswith("module.") for name in names) else ""
    return {name.removeprefix(prefix): value for name, value in zip(names, state.values(), strict=True)}, prefix


def state_dict_of(path: str | Path) -> dict[str, Tensor]:
    """A file's names and tensors, bare or under `state_dict`, without `module.`; ValueError where it holds others."""
    held = read_tensors(path)
    wrapped = isinstance(held, Mapping) and "state_dict" in held
    return tensors(bare(held["state_dict"] if wrapped else held, str(path))[0], "the state dict", path)


def renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def shape(state: Mapping[str, Any], name: str, dims: int) -> tuple[int, ...] | None:
    """The shape of a tensor of so many dimensions; None where there is none, or it is empty."""
    value = state.get(name)
    if not isinstance(value, Tensor) or value.ndim != dims or min(value.shape, default=1) < 1:
        return None
    return tuple(value.shape)


def size(state: Mapping[str, Any], name: str, dims: int, axis: int) -> int | None:
    found = shape(state, name, dims)
    return None if found is None else found[axis]


def common(values: Iterable[int | None]) -> int | None:
    """The value that most tensors speak for."""
    counted = Counter(value for value in values if value is not None)
    return counted.most_common(1)[0][0] if counted else None


def count(state: Mapping[str, Any], before: str) -> int:
    """How many numbered parts there are: one more than the highest number that follows `before`."""
    tails = (name[len(before) :].partition(".")[0] for name in state if name.startswith(before))
    return max((int(tail) + 1 for tail in tails if tail.isascii() and tail.isdigit() and len(tail) < 3), default=0)


def _problems(net: nn.Module, state: Mapping[str, Any], published: Callable[[str], str], prefix: str) -> list[str]:
    own = {published(name): tuple(value.shape) for name, value in net.state_dict().items()}
    found = [f"missing {prefix}{name}" for name in own if name not in state]
    found += [f"unexpected {prefix}{name}" for name in state if name not in own]
    for name, wanted in own.items():
        value = state.get(name)
        if name in state and not isinstance(value, Tensor):
            found.append(f"{prefix}{name} is no tensor")
        elif isinstance(value, Tensor) and tuple(value.shape) != wanted:
            found.append(f"{prefix}{name} has shape {tuple(value.shape)}, {wanted} is wanted")
    return found


def fill(
    make: Callable[..., nn.Module], choices: Mapping[str, Iterable[Any]], state: Mapping[str, Any],
    published: Callable[[str], str], source: str, what: str, prefix: str = "",
) -> Any:
    """The net of these weights in float32 and eval mode, filled strictly; of tensors on the meta device, which have
    shapes alone, a net that is there too.

    Args:
        make, choices: the constructor, and for each argument the values that some tensors speak for; those are taken
            that most of the tensors fit, so that a message names the tensor that contradicts the others.
        published: from a name of ours to the file's.
        prefix: that the file's names had, for messages.

    ValueError names `source` and what is missing, unexpected or of another shape there, by the file's names.
    """
    best: tuple[list[str], nn.Module] | None = None
    refused = ""
    for values in itertools.product(*(dict.fromkeys(v for v in given if v is not None) for given in choices.values())):
        try:
            with torch.device("meta"):  # no numbers are drawn
                net = make(**dict(zip(choices, values, strict=True)))
        except ValueError as error:
            refused = str(error)
            continue
        problems = _problems(net, state, published, prefix)
        if best is None or len(problems) < len(best[0]):
            best = problems, net
    if best is None:
        raise ValueError(f"{source} is no {what} that can be read: {refused or 'the tensors that tell its sizes lack'}"
                         f" (it has {first(state, prefix)})")
    problems, net = best
    if problems:
        more = f" and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ValueError(f"the weights in {source} are no {what}: {'; '.join(problems[:SHOWN])}{more}")
    if any(isinstance(value, Tensor) and value.is_meta for value in state.values()):
        return net.eval()
    kinds = {name: value.dtype for name, value in net.state_dict().items()}
    read = tensors({published(name): state[published(name)] for name in kinds}, "weights", source)
    bad = [f"{prefix}{name} has numbers that are not finite" for name in not_finite(read)]
    bad += [f"{prefix}{published(name)} holds {read[published(name)].dtype}".replace("torch.", "")
            for name, kind in kinds.items() if read[published(name)].is_floating_point() != kind.is_floating_point
            or read[published(name)].is_complex()]
    if bad:
        raise ValueError(f"the weights in {source} are no {what}: {'; '.join(bad[:SHOWN])}")
    held = {name: state[published(name)].detach().to("cpu", kind, copy=True) for name, kind in kinds.items()}
    net.load_state_dict(held, assign=True)
    return net.eval()


def first(state: Any, prefix: str = "") -> str:
    """The first names of a state dict, or what there is instead."""
    if not isinstance(state, Mapping):
        return f"a {type(state).__name__}"
    names = [f"{prefix}{name}" for name in state]
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "") if names else "nothing"
