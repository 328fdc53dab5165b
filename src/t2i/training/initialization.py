"""What a run starts from beside random numbers: `init=CKPT`, the weights of a checkpoint, an exported folder or another
project's file; and `freeze=[…]`, parameters that do not train. Optimiser, schedule, step and averages are its own.

Names are those of the state dict; a prefix ends where a part of a name ends: gpt.blocks.1 is not gpt.blocks.10.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.checkpoint import building, file_format, safetensors_io
from t2i.config.check import near
from t2i.config.compose import flat
from t2i.config.messages import shown
from t2i.convert import dfgan
from t2i.convert.kinds import kind_of
from t2i.convert.tensors import first, read_tensors, tensors_file
from t2i.convert.tokenizers import READ, READERS
from t2i.training.resume import is_first


def _begins(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _unknown(setting: str, prefix: str, names: Sequence[str], what: str) -> ValueError:
    starts = sorted({name.rsplit(".", i)[0] for name in names for i in range(name.count(".") + 1)})
    listed = near(prefix, starts) or f"; there are {', '.join(dict.fromkeys(n.partition('.')[0] for n in names))}"
    return ValueError(f"{setting}={shown(prefix)}: no {what} has a name that begins so{listed}")


def _same_part(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two parts are one tokenizer or text encoder: by what both configs say, but where it lies, and by their
    weights, or by all of it where neither has weights."""
    if ("state_dict" in a) != ("state_dict" in b):
        return False
    weights, others = a.get("state_dict", {}), b.get("state_dict", {})
    left, right = file_format.plain(a["config"], "", ""), file_format.plain(b["config"], "", "")
    skipped = {"path"} if weights else set()
    return (all(left[key] == right[key] for key in left.keys() & right.keys() - skipped)
            and weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)
            and a.get("files") == b.get("files"))


def opened(path: str) -> dict[str, Any]:
    """A checkpoint's dictionary; of another project's file, or a tokenizer by itself, with the names that its weights
    have in the model that trains it."""
    file = tensors_file(path)
    if file.is_dir():
        raise ValueError(f"{path} is a folder without weights that are read; one that `t2i export` wrote has"
                         f" {safetensors_io.WEIGHTS}")
    try:
        held = file_format.read(file)
    except ValueError:
        foreign = read_tensors(file)  # what cannot be read at all is told here, in the same words
        if isinstance(foreign, Mapping) and safetensors_io.KEY in foreign:
            raise
        return _foreign(foreign, file)
    if held["t2i"]["kind"] == "tokenizer":
        held["state_dict"] = _under("tokenizer", held["state_dict"])
    return held


def _foreign(held: Any, path: Path) -> dict[str, Any]:
    kind = kind_of(held)
    if kind is not None and kind.system in READERS:
        weights = _under("tokenizer", READERS[kind.system](held, str(path)).state_dict())
    elif kind is not None and kind.system == "dfgan":
        nets = dfgan.nets(held, str(path))
        weights = _under("generator", dfgan.read_generator(nets["netG"], f"{path}: netG").state_dict())
        if "netD" in nets:
            discriminator = dfgan.read_discriminator(nets["netD"], nets["netC"], f"{path}: netD, netC")
            weights |= _under("discriminator", discriminator.state_dict())
        weights["skipped"] = torch.tensor(0)  # steps, of training
    else:
        what = f"{path} is {kind.text}" if kind else f"{path} is no checkpoint of this project (it holds {first(held)})"
        raise ValueError(f"{what}, and none that a run starts from: those are ours, {READ}, DF-GAN")
    return {"state_dict": weights, "t2i": {"kind": kind.text.removeprefix("a "), "parts": {}, "config": {}}}


def _under(name: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in weights.items()}


# Of a model's settings, those that no weight hangs on.
TRAINING = re.compile(r"learning_rate|steps|weight|decay|beta|dropout|clip|optimizer|start|loss|checkpointing|kmeans"
                      r"|seed|text_encoder|tokenizer|cache_text|discriminator|perceptual|noise|image_size|threshold")


def _other_settings(node: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    """What the checkpoint's model was built with otherwise than `node`, as settings to give; at most eight."""
    before = flat(section["config"].get("model", {}))
    now = flat(dict(node))
    other = [f"model.{key}={before[key]}".replace(" ", "") for key, value in now.items()
             if key in before and before[key] != value and type(before[key]) in (bool, int, str, list)
             and not TRAINING.search(key)]
    return f" (its model had {' '.join(other[:8])})" if other else ""


def start_from(model: nn.Module, path: str, allow: Sequence[str], node: Mapping[str, Any] | None = None) -> None:
    """Fills a model that was just built with a checkpoint's weights, averaged where it has some, and with its
    vocabulary. `node` is the model's config, for messages.

    ValueError lists what does not fit and begins with nothing in `allow`: weights that are missing, not expected or of
    another shape, and parts (tokenizer, text encoder) that are others than the run's.
    """
    try:
        held = opened(path)
        weights = file_format.weights(held, path)
    except ValueError as error:
        said = str(error).removeprefix(path)  # which most of them begin with
        raise ValueError(f"init={shown(path)}{': ' if said == str(error) else ''}{said}") from error
    own, section = model.state_dict(), held["t2i"]
    faults = building.misfits(own, weights)
    fitting = {name: value for name, value in weights.items() if name not in faults}
    settings = _other_settings(node or {}, section)
    if not fitting:
        raise ValueError(f"init={shown(path)} is a {section['kind']}, of which no weight fits {type(model).__name__}"
                         f"{settings}")
    if odd := building.not_finite(fitting):
        raise ValueError(f"init={shown(path)} has numbers that are not finite: {building.joined(odd)}")
    parts = file_format.pack(model, {})["parts"]
    faults |= {name: f"the {name} of training is another" for name in parts.keys() & section["parts"].keys()
               if not _same_part(parts[name], section["parts"][name])}
    names = [*own, *weights, *parts]
    for prefix in allow:
        if not any(_begins(name, prefix) for name in names):
            raise _unknown("init_allow", prefix, names, "weight or part")
    if refused := {name: line for name, line in faults.items() if not any(_begins(name, each) for each in allow)}:
        starts = dict.fromkeys(".".join(name.split(".")[:2]) for name in refused)
        raise ValueError(f"init={shown(path)} does not fit: {building.joined(list(refused.values()))}{settings};"
                         f" init_allow=[{shown(','.join(starts))}] starts without what does not fit")
    model.load_state_dict({**own, **fitting})
    building.load_beside(model, held, path)
    if is_first():
        left = f"; not taken: {building.joined(list(faults.values()))}" if faults else ""
        print(f"Starting from {path}: {len(fitting)} of {len(own)} weights{left}")


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Takes parameters out of training; ValueError for a prefix that none has, and where nothing is left.

    Buffers (BatchNorm's statistics, an EMA codebook) are no parameters, and go on changing.
    """
    named = dict(model.named_parameters())
    for prefix in prefixes:
        found = [value for name, value in named.items() if _begins(name, prefix)]
        if not found:
            raise _unknown("freeze", prefix, list(named), "parameter")
        for value in found:
            value.requires_grad_(False)
    if prefixes and not any(value.requires_grad for value in named.values()):
        raise ValueError(f"freeze=[{','.join(prefixes)}] leaves no parameter of {type(model).__name__} to train")
