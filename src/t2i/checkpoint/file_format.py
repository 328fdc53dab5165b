"""The checkpoint format: Lightning's dictionary plus a section `t2i` that explains it.

    {"state_dict": …, (Lightning's own keys), "t2i": {
        "format": 1, "kind": "prior", "config": the whole resolved config as plain containers,
        "parts": {argument: {"config": node, "state_dict": …, "files": {name: text}}}},  what came from elsewhere
     "ema": {"weights": {parameter: tensor}, "updates": n}}                                where averages were kept

A file says by itself how to build what it holds (`t2i.checkpoint.building`). Nothing in it is executed: it is read with
`weights_only=True`, once the archive's own checksums hold. Files are written whole or not at all. What was exported
(`t2i.checkpoint.safetensors_io`) is read in the same places, but for continuing a run.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from t2i.checkpoint import file_checks, renames, safetensors_io
from t2i.checkpoint.atomic import write_bytes, write_text
from t2i.checkpoint.file_checks import plain, tensors
from t2i.config.messages import quoted, shown

FORMAT = 1


def kind_of(module: Any) -> str:
    """What a module, or a class of modules, calls itself."""
    cls = module if isinstance(module, type) else type(module)
    return getattr(module, "kind", cls.__name__.lower())


def pack(module: nn.Module, config: Mapping[str, Any]) -> dict[str, Any]:
    """The section `t2i` for a module. It may define `parts()`: what its constructor was given from elsewhere."""
    parts = getattr(module, "parts", None)
    return {"format": FORMAT, "kind": kind_of(module), "config": plain(config, "config", "the checkpoint"),
            "parts": parts() if callable(parts) else {}}


def file_hash(path: str | Path) -> str:
    """The first 16 hex digits of a file's SHA-256; of an exported folder, of its weights'."""
    with safetensors_io.weights_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read(path: str | Path, kind: str | tuple[str, ...] | None = None) -> dict[str, Any]:
    """The whole dictionary of a checkpoint of ours, tensors on the CPU; ValueError says what is wrong with the file.

    Its section is a plain copy, and its weights and averages are ordinary tensors: what reads them need not ask.
    """
    path = safetensors_io.weights_file(path)
    safe = path.is_file() and file_checks.is_safetensors(path)
    held = safetensors_io.read(path) if safe else file_checks.load(path)
    section = held.get("t2i") if isinstance(held, dict) else None
    if not isinstance(section, dict) or not isinstance(held.get("state_dict"), dict):
        keys = ", ".join(sorted(map(str, held))[:8]) if isinstance(held, dict) else type(held).__name__
        form = "safetensors file" if safe else "checkpoint"
        raise ValueError(f"{path} is no {form} of this project: it has no section 't2i' (it holds {shown(keys)})")
    if section.get("format") != FORMAT:
        raise ValueError(f"{path} has format {quoted(section.get('format'))}; this version reads format {FORMAT}")
    held["t2i"] = _section(section, path)
    if isinstance(held.get("callbacks"), dict):
        held["callbacks"] = renames.callback_states(held["callbacks"])
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

    def need(fine: bool, fault: str) -> None:
        if not fine:
            raise ValueError(f"{path}: {fault}")

    found = plain({key: value for key, value in section.items() if key != "parts"}, "t2i", path)
    kind, config, parts = found.get("kind"), found.get("config"), section.get("parts")
    need(isinstance(kind, str) and kind.isidentifier() and len(kind) <= 40, "t2i.kind is missing or no name")
    need(isinstance(config, dict), "t2i.config is missing or no table of settings")
    need(isinstance(config.get("model"), dict),
         f"t2i.config.model is {quoted(config.get('model'))}; a node with _target_ is wanted")
    need(isinstance(parts, dict), "t2i.parts is missing or no table of parts")
    found |= {"config": renames.current(config), "parts": {}}
    for name, part in cast(dict[Any, Any], parts).items():
        where = f"t2i.parts.{shown(name)}"
        need(isinstance(name, str) and name.isidentifier(), f"{where} is no name of a part")
        need(isinstance(part, dict) and isinstance(part.get("config"), dict), f"{where} has no config")
        files = part.get("files", {})
        need(isinstance(files, dict) and all(isinstance(word, str) for pair in files.items() for word in pair),
             f"{where}.files are no texts")
        bare = {key: value for key, value in part.items() if key != "state_dict"}
        found["parts"][name] = renames.renamed(plain(bare, where, path))
        if "state_dict" in part:
            found["parts"][name]["state_dict"] = tensors(part["state_dict"], f"{where}.state_dict", path)
    return cast(dict[str, Any], found)


def progress(held: Mapping[str, Any], path: str | Path) -> tuple[int, float]:
    """The steps and the minutes that a checkpoint of training was trained for."""
    steps, callbacks = held.get("global_step"), held.get("callbacks")
    timer = callbacks.get("Timer") if isinstance(callbacks, Mapping) else None
    elapsed = timer.get("time_elapsed") if isinstance(timer, Mapping) else None
    seconds = elapsed.get("train") if isinstance(elapsed, Mapping) else None
    if type(steps) is not int or type(seconds) not in (int, float) or not math.isfinite(cast(float, seconds)):
        raise ValueError(f"{path} does not say how long it was trained: global_step or callbacks.Timer is missing or"
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


def export(held: Mapping[str, Any], path: str | Path) -> Path:
    """Writes a checkpoint's model, averaged weights where it has some, as `t2i.checkpoint.safetensors_io` describes:
    a path that ends with .safetensors is the file, any other the folder. Returns the file."""
    content, text = safetensors_io.to_bytes(held["t2i"], weights(held))
    path = Path(path)
    if path.suffix == ".safetensors":
        return write_bytes(path, content)
    file = write_bytes(path / safetensors_io.WEIGHTS, content)
    write_text(path / safetensors_io.CONFIG, text)
    return file
