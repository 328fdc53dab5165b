"""What a file holds, without its numbers and without running anything: tensors become shapes on the meta device.

A pickle is a program whose every way to code leads through a name that it looks up (`find_class`) or through a
persistent id: here every name is answered by a stand-in that does nothing, and is listed. So files that are refused
elsewhere can be looked at too.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from t2i.checkpoint import file_checks, safetensors_io
from t2i.convert.tensors import Dtype, scalar

MANY = 200_000  # values of a file
DEEP = 20  # containers in containers; a pickle may hold itself
MAGIC = 0x1950A86A20F9469CFC6C  # begins torch's files from before 1.6
STORAGES = {"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
            "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
            "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128}  # fmt: skip
TYPES = {str(kind).removeprefix("torch.") for kind in STORAGES.values()}
NAMES = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
         "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}


class Named:
    """Stands for whatever a name means: it takes everything, does nothing, and says its name."""

    name: str

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *_: Any, **__: Any) -> Named:
        return Named(self.name)

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        pass

    extend = add = append


def _class(name: str) -> type[Named]:
    """A class, since pickles make objects of classes: those are `Named` too."""

    def new(cls: type[Named], *_: Any, **__: Any) -> Named:
        return object.__new__(cls)

    ways = {"__new__": new, "__init__": lambda self, *_, **__: None, "name": name}
    return type(name.rpartition(".")[2] or "Named", (Named,), ways)


class Plain(dict):
    """A dictionary of another kind (ordered, with a default) as an ordinary one."""

    def __init__(self, *items: Any) -> None:
        super().__init__(*(item for item in items if isinstance(item, Mapping | list)))

    def __setstate__(self, state: Any) -> None:
        pass


def _storage(pid: Any) -> torch.dtype:
    """What `persistent_load` gives: of a storage its type alone."""
    kind = pid[1] if isinstance(pid, tuple) and len(pid) > 1 else None
    name = str(getattr(kind, "name", kind)).rpartition(".")[2]
    return STORAGES.get(name.removesuffix("Storage"), torch.uint8)


def _tensor(storage: Any, offset: Any = 0, size: Any = (), *_: Any) -> Tensor:
    kind = storage if isinstance(storage, torch.dtype) else torch.float32
    return torch.empty(tuple(size), dtype=kind, device="meta")


def _inner(data: Any, *_: Any) -> Any:
    return data


def _dtype(name: Any, *_: Any) -> Any:
    return Dtype(name) if name in Dtype.FORMATS else Named(f"numpy.dtype {name}")


def _scalar(dtype: Any, data: Any) -> Any:
    return scalar(dtype, data) if isinstance(dtype, Dtype) else Named("a NumPy value")


def _encode(text: str, *_: Any) -> bytes:
    return text.encode("latin1")


KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Plain, "collections.defaultdict": Plain, "builtins.set": set, "__builtin__.set": set,
    "torch.Size": tuple, "_codecs.encode": _encode, "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor, "torch._utils._rebuild_parameter": _inner,
    "torch._utils._rebuild_parameter_with_state": _inner,
    "numpy.dtype": _dtype, "numpy.core.multiarray.scalar": _scalar, "numpy._core.multiarray.scalar": _scalar,
}  # fmt: skip


class Outline(pickle.Unpickler):
    """Reads a pickle's structure; `foreign` counts the names that stand for code of others."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="latin1")
        self.foreign: Counter[str] = Counter()

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in KNOWN:
            return KNOWN[full]
        own = module in ("torch", "torch.storage") and (name.endswith("Storage") or name in TYPES)
        if not own and full != "torch.device":
            self.foreign[full] += 1
        return _class(full)

    def persistent_load(self, pid: Any) -> torch.dtype:
        return _storage(pid)


@dataclass
class Content:
    """`form` is the kind of file, `held` its structure with tensors on the meta device, `foreign` names of code."""

    form: str
    held: Any
    foreign: dict[str, int]


def _pickled(file: Any, form: str) -> Content:
    reader = Outline(file)
    held = reader.load()
    if held == MAGIC:  # then the format's version, the system's, and what was saved
        reader = Outline(file)
        for _ in range(2):
            reader.load()
            reader = Outline(file)
        form, held = "torch file of the format before 1.6", reader.load()
    return Content(form, held, dict(reader.foreign))


def _safetensors(path: Path) -> Content:
    held: dict[str, Any] = {}
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                kind = NAMES.get(part.get_dtype(), torch.uint8)
                held[name] = torch.empty(part.get_shape(), dtype=kind, device="meta")
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is a damaged safetensors file ({error})") from error
    return Content("safetensors", safetensors_io.to_checkpoint(held, metadata, path), {})


def outline(path: Path) -> Content:
    """A file's structure; ValueError where it is none that could hold weights, or damaged."""
    file_checks.check(path)
    if file_checks.is_safetensors(path):
        return _safetensors(path)
    inside = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            inside = next((name for name in archive.namelist() if name.endswith("data.pkl")), None)
            if inside is None:
                raise ValueError(f"{path} is an archive of other things: {', '.join(archive.namelist()[:8])}")
    try:
        if inside is not None:
            with zipfile.ZipFile(path) as archive:
                return _pickled(io.BytesIO(archive.read(inside)), "torch archive")
        with path.open("rb") as file:
            return _pickled(file, "pickle")
    except Exception as error:  # damaged pickles raise nearly every type there is
        raise ValueError(f"{path} cannot be read; it is damaged ({type(error).__name__}: {error})") from error


def flat(held: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value that is no container, with its keys; lists of plain values whole. ValueError for containers that hold
    one another, or are held so often that there is no end to it."""
    left = [MANY]

    def within(held: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        left[0] -= 1
        if not left[0]:
            raise ValueError(f"more than {MANY:,} values, or containers that hold themselves")
        inner: list[tuple[Any, Any]] = []
        if len(path) < DEEP and isinstance(held, Mapping):
            inner = list(held.items())
        elif len(path) < DEEP and isinstance(held, list | tuple):
            inner = list(enumerate(held)) if any(isinstance(x, Mapping | list | tuple | Tensor) for x in held) else []
        for key, value in inner:
            name = getattr(key, "name", None)
            yield from within(value, (*path, str(key) if name is None else f"<{name}>"))
        if not inner:
            yield path, held

    return within(held, ())
