"""The checkpoint format, and building from it: Lightning's dictionary plus a section `t2i` that explains it.

    {"state_dict": …, (Lightning's own keys), "t2i": {
        "format": 1, "kind": "prior", "config": the whole resolved config as plain containers,
        "parts": {argument: {"config": node, "state_dict": …, "files": {name: text}}}},  what came from elsewhere
     "ema": {"weights": {parameter: tensor}, "updates": n}}                                where averages were kept

A file says by itself how to build what it holds. Nothing in it is executed: it is read with `weights_only=True`, and
a `_target_` is followed only into this package. Files are written whole or not at all. What was exported
(`t2i.exported`) is read in the same places, but for continuing a run.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from t2i import exported, files

FORMAT = 1
PACKAGE = "t2i."
PLAIN = (str, int, float, bool, type(None))


def target(name: Any) -> Callable[..., Any]:
    """The class or function of a `_target_`; ValueError outside this package or where there is none."""
    parts = str(name).split(".")
    if not isinstance(name, str) or not name.startswith(PACKAGE) or not all(p.isidentifier() for p in parts):
        raise ValueError(f"_target_={name!r}: only targets inside {PACKAGE.rstrip('.')} are built")
    module_name, attribute = ".".join(parts[:-1]), parts[-1]
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(PACKAGE.rstrip(".")):
            raise
        raise ValueError(f"_target_={name!r}: there is no module {module_name}") from error
    found = vars(module).get(attribute)
    # What a module of ours merely imported (os, torch.load) is not ours to call.
    if not callable(found) or getattr(found, "__module__", None) != module_name:
        raise ValueError(f"_target_={name!r}: {module_name} defines no such class or function")
    return found


def build(node: Mapping[str, Any], **given: Any) -> Any:
    """Builds a node with `_target_`, its nested nodes first; `given` replaces or adds arguments of the outermost."""
    if "_target_" not in node:
        raise ValueError(f"a node without _target_ cannot be built; it has {', '.join(map(str, node))}")
    arguments = {key: _built(value) for key, value in node.items() if key != "_target_" and key not in given}
    return target(node["_target_"])(**arguments, **given)


def _built(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if "_target_" in value else {key: _built(item) for key, item in value.items()}
    return [_built(item) for item in value] if isinstance(value, list | tuple) else value


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{path}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{path}.{i}") for i, item in enumerate(value)]
    if type(value) not in PLAIN:
        raise TypeError(f"{path} is a {type(value).__name__}; a checkpoint's config holds plain values only")
    return value


def kind_of(module: Any) -> str:
    return getattr(module, "kind", type(module).__name__.lower())


def pack(module: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """The section `t2i` for a module. It may define `parts()`: what its constructor was given from elsewhere."""
    section: dict[str, Any] = {"format": FORMAT, "kind": kind_of(module), "config": _plain(config, "config")}
    parts = getattr(module, "parts", None)
    section["parts"] = parts() if callable(parts) else {}
    return section


@contextmanager
def _written_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes `path`'s place once it is safely on the disk, or leaves no trace."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        kept = " The file that was there is untouched." if path.exists() else ""
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}.{kept}") from error
    finally:
        if beside.exists():
            beside.unlink()


class _Sink(io.RawIOBase):
    """Passes bytes on and keeps the first OSError, which torch's zip writer would replace by its own words."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise


def save_atomic(held: Any, path: str | Path) -> None:
    """Writes with torch.save, whole or not at all; an OSError names the path and leaves an earlier file as it was."""
    with _written_whole(path) as file:
        sink = _Sink(file)
        try:
            torch.save(held, cast(BinaryIO, sink))  # of a file it needs `write` alone
        except RuntimeError as error:
            if sink.error is None:
                raise
            raise sink.error from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with _written_whole(path) as file:
        file.write(text.encode("utf-8"))


def file_hash(path: str | Path) -> str:
    """The first 16 hex digits of a file's SHA-256; of an exported folder, of its weights'."""
    digest = hashlib.sha256()
    with exported.located(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def load_file(path: Path) -> Any:
    """The content of a torch file, without executing anything; ValueError says what it is instead.

    Checks every file that comes from outside: `read` is for checkpoints of ours, `t2i.interop.tensors` for others'.
    """
    files.check(path)
    if files.is_safetensors(path):
        raise ValueError(f"{path} is a safetensors file, not a checkpoint of this project")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols; what is unreadable raises
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise a dozen types on damaged files; all become one message
        raise ValueError(_why_unreadable(path, error)) from error


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the same dozen: then the file is damaged, or of the old format, whose error names the first
        foreign = re.findall(r"GLOBAL (\S+) was not an allowed global", str(error))
    if foreign:
        return (f"{path} was written by another program: reading it would need {', '.join(sorted(foreign))}."
                " Nothing in it was executed.")
    return f"{path} cannot be read; it is damaged or no checkpoint ({str(error).strip().splitlines()[0][:200]})"


def read(path: str | Path, kind: str | tuple[str, ...] | None = None) -> dict[str, Any]:
    """The whole dictionary of a checkpoint of ours, tensors on the CPU; ValueError says what is wrong with the file."""
    path = exported.located(path)
    held = exported.read(path) if path.is_file() and files.is_safetensors(path) else {}
    held = held if exported.KEY in held else load_file(path)
    section = held.get("t2i") if isinstance(held, dict) else None
    if not isinstance(section, dict) or not isinstance(held.get("state_dict"), dict):
        keys = ", ".join(sorted(map(str, held))[:8]) if isinstance(held, dict) else type(held).__name__
        raise ValueError(f"{path} is no checkpoint of this project: it has no section 't2i' (it holds {keys})")
    if section.get("format") != FORMAT:
        raise ValueError(f"{path} has format {section.get('format')!r}; this version reads format {FORMAT}")
    wanted = (kind,) if isinstance(kind, str) else kind
    if wanted is not None and section["kind"] not in wanted:
        raise ValueError(f"{path} holds a {section['kind']}; a {' or '.join(wanted)} is wanted")
    return held


def weights(held: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint that was read: averaged ones where it has them, the last ones elsewhere."""
    last = held["state_dict"]
    averaged = held["ema"]["weights"] if "ema" in held else {}
    if unknown := [name for name in averaged if name not in last]:
        raise ValueError(f"the checkpoint averages weights that it does not hold: {', '.join(unknown[:8])}")
    return last | {name: value.to(last[name].dtype) for name, value in averaged.items()}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Strict loading; ValueError names what is missing, unexpected or of another shape."""
    own = module.state_dict()
    problems = [f"missing {name}" for name in own if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in own]
    problems += [
        f"{name} has shape {tuple(weights[name].shape)}, {tuple(own[name].shape)} is wanted"
        for name in own
        if name in weights and hasattr(own[name], "shape") and own[name].shape != weights[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"the weights in {path} do not fit {type(module).__name__}: {'; '.join(problems[:8])}{more}")
    module.load_state_dict(weights)


def build_part(part: Mapping[str, Any], path: str | Path) -> Any:
    """A part out of a checkpoint: by its class's `from_part` where it has one, else built and filled."""
    cls = target(part["config"].get("_target_"))
    if hasattr(cls, "from_part"):
        return cls.from_part(part)
    made = build(part["config"])
    if "state_dict" in part:
        load_weights(made, part["state_dict"], path)
    if hasattr(made, "config"):
        made.config = dict(part["config"])
    return made.eval().requires_grad_(False) if isinstance(made, nn.Module) else made


def load(path: str | Path, kind: str | tuple[str, ...] | None = None, ema: bool = True) -> Any:
    """The model of a checkpoint, in eval mode on the CPU, from its path alone.

    `ema`: averaged weights where there are some. What a model needs in training only (its class's `training_only`)
    is left out.
    """
    held = read(path, kind)
    section = held["t2i"]
    node = section["config"]["model"]
    given = {name: build_part(part, path) for name, part in section["parts"].items()}
    given |= {name: None for name in getattr(target(node.get("_target_")), "training_only", ())}
    model = build(node, **given)
    if hasattr(model, "on_load_checkpoint"):
        model.on_load_checkpoint(held)
    load_weights(model, weights(held) if ema else held["state_dict"], path)
    return model.eval()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints through `save_atomic`, read back with `weights_only=True` only."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save_atomic(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        held = read(path)
        if "optimizer_states" not in held:
            raise ValueError(f"{path} holds weights alone: a run is continued from a .ckpt that training wrote")
        return held


def export(held: Mapping[str, Any], path: str | Path) -> Path:
    """Writes a checkpoint's model, averaged weights where it has some, as `t2i.exported` describes: a path that ends
    with .safetensors is the file, any other the folder. Returns the file."""
    content, text = exported.to_bytes(held["t2i"], weights(held))
    file = Path(path) if Path(path).suffix == ".safetensors" else Path(path) / exported.WEIGHTS
    with _written_whole(file) as opened:
        opened.write(content)
    if file != Path(path):
        write_text(file.with_name(exported.CONFIG), text)
    return file
