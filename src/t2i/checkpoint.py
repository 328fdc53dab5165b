"""The checkpoint format, and building from it: Lightning's dictionary plus a section `t2i` that explains it.

    {"state_dict": …, (Lightning's own keys), "t2i": {
        "format": 1, "kind": "prior", "config": the whole resolved config as plain containers,
        "parts": {argument: {"config": node, "state_dict": …, "files": {name: text}}}},  what came from elsewhere
     "ema": {"weights": {parameter: tensor}, "updates": n}}                                where averages were kept

A file says by itself how to build what it holds. Nothing in it is executed: it is read with `weights_only=True`, once
the archive's own checksums hold, and of what its config names only marked classes are built (`t2i.from_file`), which
open nothing that the user did not name. Files are written whole or not at all. What was exported (`t2i.exported`) is
read in the same places, but for continuing a run.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from t2i import exported, files, from_file, register
from t2i.from_file import PLAIN, admit, bounded, load_weights, misfits, not_finite, plain, refuse, tensors
from t2i.shown import shown

FORMAT = 1
PACKAGE = "t2i."
LOADERS = ("t2i.interop.tokenizers.load_tokenizer", "t2i.models.vqgan.load_tokenizer",
           "t2i.models.stackgan.load_stage1")


def target(name: Any) -> Callable[..., Any]:
    """The class or function of a `_target_` in the user's own config; ValueError outside this package or where there
    is none."""
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
    # What a module of ours merely imported (os, torch.load) is not ours to call; of functions those that load alone.
    if not callable(found) or getattr(found, "__module__", None) != module_name or (
            not isinstance(found, type) and name not in LOADERS):
        raise ValueError(f"_target_={name!r}: {module_name} defines no such class")
    return found


def build(node: Mapping[str, Any], **given: Any) -> Any:
    """Builds a node with `_target_` of the user's own config, or one that was admitted (`t2i.from_file`), its nested
    nodes first; `given` replaces or adds arguments of the outermost."""
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
    """What a module, or a class of modules, calls itself."""
    cls = module if isinstance(module, type) else type(module)
    return getattr(module, "kind", cls.__name__.lower())


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
    """Passes bytes on and keeps the first OSError or interruption, which torch's zip writer would replace by its own
    words."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: BaseException | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except (OSError, SystemExit, KeyboardInterrupt) as error:
            self.error = self.error or error
            raise


def save_atomic(held: Any, path: str | Path) -> None:
    """Writes with torch.save, whole or not at all; an OSError names the path and leaves an earlier file as it was."""
    with _written_whole(path) as file:
        sink = _Sink(file)
        try:
            torch.save(held, cast(BinaryIO, sink))  # of a file it needs `write` alone
        except RuntimeError as error:
            came: BaseException | None = sink.error or error.__context__
            while came is not None and not isinstance(came, OSError | SystemExit | KeyboardInterrupt):
                came = came.__context__
            if came is None:
                raise
            raise came from error


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


def read(path: str | Path, kind: str | tuple[str, ...] | None = None) -> dict[str, Any]:
    """The whole dictionary of a checkpoint of ours, tensors on the CPU; ValueError says what is wrong with the file.

    Its section is a plain copy, and its weights and averages are ordinary tensors: what reads them need not ask.
    """
    path = exported.located(path)
    held = exported.read(path) if path.is_file() and files.is_safetensors(path) else {}
    held = held if exported.KEY in held else files.load(path)
    section = held.get("t2i") if isinstance(held, dict) else None
    if not isinstance(section, dict) or not isinstance(held.get("state_dict"), dict):
        keys = ", ".join(sorted(map(str, held))[:8]) if isinstance(held, dict) else type(held).__name__
        raise ValueError(f"{path} is no checkpoint of this project: it has no section 't2i' (it holds {shown(keys)})")
    if section.get("format") != FORMAT:
        raise ValueError(f"{path} has format {from_file.said(section.get('format'))}; this version reads format"
                         f" {FORMAT}")
    held["t2i"] = _section(section, path)
    held["state_dict"] = tensors(held["state_dict"], "state_dict", path)
    if "ema" in held:
        if not isinstance(held["ema"], dict) or "weights" not in held["ema"]:
            raise ValueError(f"{path}: ema is a {type(held['ema']).__name__} without weights; averages are wanted")
        held["ema"]["weights"] = tensors(held["ema"]["weights"], "ema.weights", path)
    wanted = (kind,) if isinstance(kind, str) else kind
    if wanted is not None and held["t2i"]["kind"] not in wanted:
        raise ValueError(f"{path} holds a {held['t2i']['kind']}; a {' or '.join(wanted)} is wanted")
    return held


def _section(section: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A copy of the section `t2i`, of the form that the head of this module shows."""
    def need(fine: bool, what: str) -> None:
        if not fine:
            raise ValueError(f"{path}: {what}")

    found = plain({key: value for key, value in section.items() if key not in ("parts",)}, "t2i", path)
    kind, config, parts = found.get("kind"), found.get("config"), section.get("parts")
    need(isinstance(kind, str) and kind.isidentifier() and len(kind) <= 40, "t2i.kind is missing or no name")
    need(isinstance(config, dict), "t2i.config is missing or no table of settings")
    need(isinstance(config.get("model"), dict), f"t2i.config.model is {from_file.said(config.get('model'))}; a node"
                                                " with _target_ is wanted")
    need(isinstance(parts, dict), "t2i.parts is missing or no table of parts")
    found["parts"] = {}
    for name, part in cast(dict[Any, Any], parts).items():
        where = f"t2i.parts.{shown(name)}"
        need(isinstance(name, str) and name.isidentifier(), f"{where} is no name of a part")
        need(isinstance(part, dict) and isinstance(part.get("config"), dict), f"{where} has no config")
        files_of = part.get("files", {})
        need(isinstance(files_of, dict) and all(isinstance(k, str) and isinstance(v, str) for k, v in files_of.items()),
             f"{where}.files are no texts")
        bare = {key: value for key, value in part.items() if key != "state_dict"}
        found["parts"][name] = plain(bare, where, path)
        if "state_dict" in part:
            found["parts"][name]["state_dict"] = tensors(part["state_dict"], f"{where}.state_dict", path)
    return cast(dict[str, Any], found)


def progress(held: Mapping[str, Any], path: str | Path) -> tuple[int, float]:
    """The steps and the minutes that a checkpoint of training was trained for."""
    steps, callbacks = held.get("global_step"), held.get("callbacks")
    minutes = callbacks.get("Minutes") if isinstance(callbacks, Mapping) else None
    seconds = minutes.get("seconds") if isinstance(minutes, Mapping) else None
    if type(steps) is not int or type(seconds) not in (int, float) or not math.isfinite(cast(float, seconds)):
        raise ValueError(f"{path} does not say how long it was trained: global_step or callbacks.Minutes is missing or"
                         " damaged")
    return steps, cast(float, seconds) / 60


def weights(held: Mapping[str, Any], path: str | Path = "the checkpoint") -> dict[str, Tensor]:
    """The weights of a checkpoint that was read: averaged ones where it has them, the last ones elsewhere; ValueError
    where averages are of something else."""
    last = held["state_dict"]
    averaged = held["ema"]["weights"] if "ema" in held else {}
    if unknown := [shown(name) for name in averaged if name not in last]:
        raise ValueError(f"{path} averages weights that it does not hold: {', '.join(unknown[:8])}")
    if odd := [shown(name) for name, value in averaged.items() if value.dtype != torch.float32]:
        raise ValueError(f"{path} has averages that are no float32 numbers: {', '.join(odd[:8])}")
    return last | {name: value.to(last[name].dtype) for name, value in averaged.items()}


def build_checked(
    node: Mapping[str, Any], weights: Mapping[str, Tensor], path: str | Path, where: str, role: register.Role,
    **given: Any,
) -> Any:
    """The module that a file's node describes, filled with the file's weights; `given` as in `build`.

    Args:
        where: the node's key in the file, for messages.
        role: what it is to be (`t2i.register`).
    """
    admit(node, where, path, role, given)
    made = bounded(lambda: _from_file(node, **given), weights, path, where)
    load_weights(made, weights, path)
    return made


def _from_file(node: Mapping[str, Any], **given: Any) -> Any:
    """Builds an admitted node: as `build`, but classes of packages that the user trusts too."""
    entry = register.find(node["_target_"])
    if entry is None:
        raise ValueError(f"_target_={from_file.said(node['_target_'])} is no class that a file may build")
    arguments = {key: _nested(value) for key, value in node.items() if key != "_target_" and key not in given}
    return entry.cls(**arguments, **given)


def _nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return _from_file(value) if "_target_" in value else {key: _nested(item) for key, item in value.items()}
    return [_nested(item) for item in value] if isinstance(value, list | tuple) else value


def build_part(part: Mapping[str, Any], path: str | Path, name: str) -> Any:
    """A part out of a checkpoint: by its class's `from_part` where it has one, else built and filled.

    Args:
        name: of the part, which is the argument that it is given as.
    """
    where, config = f"t2i.parts.{name}.config", part["config"]
    cls = _marked(config, where, path).cls
    role = cast(register.Role, name)
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


def _marked(node: Mapping[str, Any], where: str, path: str | Path) -> register.Entry:
    entry = register.find(node.get("_target_"))
    if entry is None:
        raise ValueError(f"{path}: {where}._target_={from_file.said(node.get('_target_'))} is no class that a file may"
                         " build; if it is yours, trust=[its package] says so")
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
    model = build_checked(node, weights(held, path) if ema else held["state_dict"], path, "t2i.config.model",
                          cast(register.Role, role), **given)
    if hasattr(model, "on_load_checkpoint"):
        try:
            model.on_load_checkpoint(held)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: what a {section['kind']} keeps beside its weights is missing or damaged"
                             f" ({type(error).__name__}: {shown(error)})") from error
    return model.eval()


# What Lightning writes beside the weights, and reads when a run goes on.
LIGHTNING = {"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list,
             "lr_schedulers": list}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints through `save_atomic`, read back with `weights_only=True` only.

    Args:
        model: what is trained; a checkpoint of another kind or of other sizes is refused before anything is restored.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save_atomic(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        held = read(path)
        if "optimizer_states" not in held:
            raise ValueError(f"{path} holds weights alone: a run is continued from a .ckpt that training wrote")
        if wrong := [key for key, kind in LIGHTNING.items() if not isinstance(held.get(key), kind)]:
            raise ValueError(f"{path} is no checkpoint that training wrote: {', '.join(wrong)} missing or damaged")
        if self.model is not None:
            if kind_of(self.model) != held["t2i"]["kind"]:
                raise ValueError(f"{path} holds a {held['t2i']['kind']}; this run trains a {kind_of(self.model)}")
            refuse(misfits(self.model, held["state_dict"]), path, self.model)
            bad = [f"{name} has numbers that are not finite" for name in not_finite(held["state_dict"])]
            refuse(bad, path, self.model)
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
