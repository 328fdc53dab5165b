"""The command that trains a run again, found from its config: a recipe or groups, and what was set beside them.

A command is told only if it composes to the very config it was found from, but for settings that this version has
and the run's did not; those are named.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from t2i.config import CONF, ConfigError, choices, compose, difference, flat, groups
from t2i.engine import compared

NEEDED = ("model.tokenizer.path", "model.stage1.path", "text_encoder.path", "data.root", "data.font")
TRIES = 12  # compositions; more would cost more than the command is worth


def _target(file: str) -> Any:
    return yaml.safe_load((CONF / f"{file}.yaml").read_text(encoding="utf-8")).get("_target_")


def _bases(config: Mapping[str, Any]) -> Iterator[list[str]]:
    """Groups, or a recipe, that the config may have come from."""
    name, keys = config["name"], flat(dict(config))
    if name in choices("experiments"):
        yield [f"experiments={name}"]
        return
    fitting = []
    for group in ("model", "data", *(g for g in groups() if g.startswith("model/"))):
        wanted = keys.get(f"{group.replace('/', '.')}._target_")
        found = [f"{group}={c}" for c in choices(group) if wanted is not None and _target(f"{group}/{c}") == wanted]
        if found:
            fitting.append(found)
    fitting.append(["callbacks=default", "callbacks=gan"] if config["callbacks"].get("ema") else ["callbacks=default"])
    yield from (list(words) for words in itertools.product(*fitting))


def _word(value: Any) -> str:
    if isinstance(value, str) and not re.fullmatch(r"[\w./:+-]+", value):
        return "'" + value.replace("'", "\\'") + "'"
    return value if isinstance(value, str) else json.dumps(value).replace('"', "")


def _settled(config: Mapping[str, Any], base: list[str]) -> tuple[list[str], list[str]] | None:
    """The overrides that make `base` into the config, and the keys that are newer than it; None where overrides alone
    cannot."""
    known = {key: value for key, value in flat(dict(config)).items() if not isinstance(value, dict)}
    words = list(base)
    try:
        try:
            compose(words, files=False)
        except ConfigError:  # what has no default
            words += [f"{key}={known[key]}" for key in NEEDED if isinstance(known.get(key), str)]
        for late in (False, True):  # a model's numbers mostly follow from what is set elsewhere
            before = flat(compose(words, files=False))
            words += [f"{key}={_word(value)}" for key, value in known.items()
                      if key in before and before[key] != value and (late or not key.startswith("model."))
                      and not (isinstance(value, list) and list(before[key] or ()) == value)]
        changed = difference(compared(compose(words, files=False)), compared(dict(config)))
    except ConfigError:
        return None
    newer = [line.partition(":")[0] for line in changed if line.endswith("-> (absent)")]
    return (words, newer) if len(newer) == len(changed) else None


def training_command(config: Mapping[str, Any]) -> str | None:
    """The shortest command found that composes to this config, or None."""
    tried = (_settled(config, base) for base in itertools.islice(_bases(config), TRIES))
    found = [words for words in tried if words is not None]
    if not found:
        return None
    words, newer = min(found, key=lambda pair: (len(pair[1]), len(pair[0])))
    command = "python train.py " + shlex.join(word for word in words if word != "callbacks=default")
    return command + (f"  # by today's {', '.join(newer)}, which the run did not have" if newer else "")
