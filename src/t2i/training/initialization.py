"""What a run starts from beside random numbers: `init=CKPT`, the weights of a checkpoint or an exported folder; and
`freeze=[…]`, parameters that do not train. Optimiser, schedule, step and averages are the run's own.

Names are those of the state dict; a prefix ends where a part of a name ends: gpt.blocks.1 is not gpt.blocks.10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from t2i.checkpoint import building, file_format
from t2i.config.check import near
from t2i.config.messages import shown
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


def start_from(model: nn.Module, path: str, allow: Sequence[str]) -> None:
    """Fills a model that was just built with a checkpoint's weights, averaged where it has some, and with its
    vocabulary.

    ValueError lists what does not fit and begins with nothing in `allow`: weights that are missing, not expected or of
    another shape, and parts (tokenizer, text encoder) that are others than the run's.
    """
    try:
        held = file_format.read(path)
        weights = file_format.weights(held, path)
    except ValueError as error:
        raise ValueError(f"init={shown(path)}: {error}") from error
    own, section = model.state_dict(), held["t2i"]
    faults = building.misfits(own, weights)
    fitting = {name: value for name, value in weights.items() if name not in faults}
    if not fitting:
        raise ValueError(f"init={shown(path)} is a {section['kind']}, of which no weight fits {type(model).__name__}")
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
        raise ValueError(f"init={shown(path)} does not fit: {building.joined(list(refused.values()))};"
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
