"""`python -m t2i inspect FILE`: whose a file is, its sizes, and what in it is not a tensor. Nothing in it runs.

A pickle is a program whose every way to code leads through a name that it looks up (`find_class`) or through a
persistent id: here every name is answered by a stand-in that does nothing, and is listed, and tensors become shapes on
the meta device. So files that are refused elsewhere can be looked at too.
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
from torch import Tensor, nn

from t2i.checkpoint import file_checks, safetensors_io
from t2i.config.messages import shown
from t2i.convert.dfgan import nets, read_generator
from t2i.convert.kinds import WRAPPERS, kind_of
from t2i.convert.stackgan import read_stage1, read_stage2
from t2i.convert.tensors import STANDINS, Dtype, Named, first, named, scalar, shape, size, tensors_file
from t2i.convert.tokenizers import READERS

MANY = 200_000  # values of a file
DEEP = 20  # containers in containers; a pickle may hold itself
LISTED = 24  # values that are not tensors, and names
UNDER = 4  # of them under one key
SIZES = ("image_size", "noise_dim", "text_dim", "condition_dim")
EXPECTED = {name for _, name in STANDINS}  # of code, that a file may hold
MAGIC = 0x1950A86A20F9469CFC6C  # begins torch's files from before 1.6
STORAGES = {"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
            "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
            "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128}  # fmt: skip
TYPES = {str(kind).removeprefix("torch.") for kind in STORAGES.values()}
SAFETENSORS = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16,
               "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
               "BOOL": torch.bool}  # fmt: skip


class Plain(dict):
    """A dictionary of another kind (ordered, with a default) as an ordinary one."""

    def __init__(self, *items: Any) -> None:
        super().__init__(*(item for item in items if isinstance(item, Mapping | list)))

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any = 0, size: Any = (), *_: Any) -> Tensor:
    kind = storage if isinstance(storage, torch.dtype) else torch.float32
    return torch.empty(tuple(size), dtype=kind, device="meta")


KNOWN: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Plain, "collections.defaultdict": Plain, "builtins.set": set, "__builtin__.set": set,
    "torch.Size": tuple, "_codecs.encode": lambda text, *_: text.encode("latin1"),
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "numpy.dtype": lambda name, *_: Dtype(name) if name in Dtype.FORMATS else named(f"numpy.dtype {name}")(),
}  # fmt: skip
KNOWN["numpy.core.multiarray.scalar"] = KNOWN["numpy._core.multiarray.scalar"] = (
    lambda dtype, data: scalar(dtype, data) if isinstance(dtype, Dtype) else named("a NumPy value")())


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
        return named(full)

    def persistent_load(self, pid: Any) -> torch.dtype:
        """Of a storage its type alone."""
        kind = pid[1] if isinstance(pid, tuple) and len(pid) > 1 else None
        name = str(getattr(kind, "name", kind)).rpartition(".")[2]
        return STORAGES.get(name.removesuffix("Storage"), torch.uint8)


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
                kind = SAFETENSORS.get(part.get_dtype(), torch.uint8)
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
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return _pickled(file, "pickle")
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if inside := next((name for name in names if name.endswith("data.pkl")), None):
                return _pickled(io.BytesIO(archive.read(inside)), "torch archive")
    except Exception as error:  # damaged pickles raise nearly every type there is
        raise ValueError(f"{path} cannot be read; it is damaged ({type(error).__name__}: {error})") from error
    raise ValueError(f"{path} is an archive of other things: {', '.join(names[:8])}")


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


def _nodes(node: Any, name: str) -> Iterator[str]:
    """A line for each node with `_target_`: its class and its plain arguments."""
    if not isinstance(node, Mapping):
        return
    if "_target_" in node:
        plain = [f"{key}={value}" for key, value in node.items()
                 if key != "_target_" and value is not None and not isinstance(value, Mapping)]
        yield f"{name}: {str(node['_target_']).rpartition('.')[2]} {' '.join(plain)}".rstrip()
    for key, value in node.items():
        yield from _nodes(value, f"{name}.{key}")


def _count(net: nn.Module) -> str:
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in net.named_children()}
    listed = ", ".join(f"{name} {number:,}" for name, number in parts.items() if number)
    return f"{sum(p.numel() for p in net.parameters()):,} ({listed})"


def _group(keys: tuple[str, ...]) -> str:
    """Under which heading a tensor is counted: a net, a part, or what beside the weights it belongs to."""
    if keys[:2] == (safetensors_io.KEY, "parts"):
        return f"part {keys[2]}"
    first, second = (key.removeprefix("module.").partition(".")[0] for key in (*keys, "")[:2])
    return f"{keys[0]}.{second}" if keys[0] in WRAPPERS and second else first if len(keys) == 1 else keys[0]


def _groups(held: Any) -> list[str]:
    """Tensors and their numbers by the first part of their names, the largest groups first."""
    tensors: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    kinds: dict[str, set[str]] = {}
    for keys, value in flat(held):
        if isinstance(value, Tensor):
            group = _group(keys) if keys else "the whole file"
            tensors[group] += 1
            numbers[group] += value.numel()
            kinds.setdefault(group, set()).add(str(value.dtype).removeprefix("torch."))
    rows = [f"{group}: {number:,} numbers in {tensors[group]:,} tensor{'s' * (tensors[group] > 1)}"
            f" ({', '.join(sorted(kinds[group]))})" for group, number in numbers.most_common()]
    return rows[:LISTED] + ([f"and {len(rows) - LISTED} more groups"] if len(rows) > LISTED else [])


def _ours(section: Mapping[str, Any]) -> list[str]:
    config = section.get("config")
    lines = list(_nodes(config.get("model") if isinstance(config, Mapping) else None, "model"))
    parts = section.get("parts")
    for name, part in parts.items() if isinstance(parts, Mapping) else ():
        if not isinstance(part, Mapping):
            lines.append(f"part {name}: no table, the file is damaged")
            continue
        carried = "its weights are inside" if "state_dict" in part else "named only, not inside"
        lines += [f"{line} ({carried})" for line in _nodes(part.get("config"), f"part {name}")]
    return lines


def _sizes(system: str, held: Any, path: Path) -> list[str]:
    """What the reader of that system makes of the shapes; ValueError where they do not fit."""
    if system in READERS:
        tokenizer = READERS[system](held, str(path))
        rows, columns = tokenizer.grid
        return [*_nodes(tokenizer.config, "tokenizer"), f"parameters: {_count(tokenizer)}",
                f"a picture is {rows} x {columns} codes at {tokenizer.image_size} pixels, the size it was likely"
                f" trained with; any multiple of {tokenizer.autoencoder.factor} is taken"]
    if system == "damsm":
        words, width = shape(held, "encoder.weight", 2) or (0, 0)
        hidden = size(held, "rnn.weight_hh_l0", 2, 1) or 0
        return [f"words: {words:,} of {width} numbers; sentences: {2 * hidden} numbers"]
    made: tuple[nn.Module, ...] = ()
    if system == "dfgan":
        made = (read_generator(nets(held, str(path))["netG"], str(path)),)
    elif system == "stackgan1":
        made = (read_stage1(held, str(path)),)
    elif system == "stackgan2":
        made = read_stage2(held, str(path))
    return [f"{type(net).__name__} {' '.join(f'{k}={getattr(net, k)}' for k in SIZES if hasattr(net, k))},"
            f" parameters: {_count(net)}" for net in made]


def _whose(content: Content, path: Path) -> tuple[str, list[str]]:
    """Whose it is, in words, and lines on its sizes."""
    held = content.held
    section = held.get(safetensors_io.KEY) if isinstance(held, Mapping) else None
    if isinstance(section, Mapping):
        form = "exported" if content.form == "safetensors" else "a checkpoint"
        return f"this project's: a {section.get('kind')} ({form}, format {section.get('format')})", _ours(section)
    if isinstance(held, list | tuple) and len(held) == 4 and isinstance(held[3], Mapping):
        return f"a vocabulary of DAMSM with {len(held[3]):,} words", []
    kind = kind_of(held)
    if kind is None:
        return f"not known; it holds {first(held)}", []
    if not kind.system:
        return f"{kind.text}; it is not read here", []
    try:
        return kind.text, _sizes(kind.system, held, path)
    except ValueError as error:
        return f"{kind.text}, but not one that can be read", [str(error)]


def _shown(value: Any) -> str:
    text = f"<{value.name}>" if isinstance(value, Named) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}…"


def _others(held: Any) -> list[str]:
    """What is no tensor; of a key with much inside the first, and how many."""
    under: dict[str, list[str]] = {}
    for keys, value in flat(held):
        if not isinstance(value, Tensor) and keys[:1] != (safetensors_io.KEY,):
            line = f"{'.'.join(keys) or 'the whole file'} = {_shown(value)}"
            under.setdefault(keys[0] if keys else "", []).append(line)
    found = [line if i < UNDER - 1 or len(lines) <= UNDER else f"{key}: {len(lines) - UNDER + 1:,} more values"
             for key, lines in under.items() for i, line in enumerate(lines[:UNDER])]
    return found[:LISTED] + ([f"and {len(found) - LISTED:,} more"] if len(found) > LISTED else [])


def _code(content: Content) -> list[str]:
    expected = [f"{name}: known, left out when the file is read" for name in content.foreign if name in EXPECTED]
    strange = [f"{name}: not known; the file is refused, since reading it would need this. Nothing was executed"
               for name in content.foreign if name not in EXPECTED]
    return expected[:LISTED] + strange[:LISTED]


def inspected(path: str | Path) -> str:
    """The report on a file or an exported folder; ValueError where it is no such file, or damaged."""
    found = tensors_file(path)
    content = outline(found)
    try:
        for _ in flat(content.held):
            pass  # that there is an end to it, before anything goes through it
        whose, sizes = _whose(content, found)
        blocks = {"sizes": sizes, "tensors": _groups(content.held), "not tensors": _others(content.held),
                  "names of code": _code(content)}
    except (ValueError, RecursionError) as error:
        what = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{found} cannot be looked through: {what}") from error
    lines = [str(found), f"what: {whose}", f"file: {content.form}, {found.stat().st_size:,} bytes"]
    for title, rows in blocks.items():
        lines += [f"{title}:", *(f"  {row}" for row in rows)] if rows else [f"{title}: none"]
    return "\n".join(shown(line, 400) for line in lines)
