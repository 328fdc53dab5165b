"""Configs: Hydra's composition of `conf/` and `experiments/`, as plain dictionaries that were checked.

Free text and paths never pass through Hydra's grammar (it breaks more than half of ordinary captions): they are set
aside before, and put in after composing. Nothing heavy is imported here, so that a mistake answers at once.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from t2i.config import aliases
from t2i.config.check import check, near

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
RECIPES = ROOT / "experiments"
TEXTS = {"prompt", "negative", "clip_guided.extras", "clip_guided.excluded", "clip_guided.styles",
         "clip_guided.images"}  # to the letter
# Text, or null.
PATHS = {"ckpt", "out", "data.font", "prompts", "scorer", "resume", "name", "group", "completion.image",
         "text_encoder.vocabulary", "clip_guided.clips", "clip_guided.start_image"}
PATH_ENDINGS = ("path", "root", "runs", "cache", "folder")
HINTS = {
    "ckpt": "the checkpoint to use, for instance runs/<name>/last.ckpt",
    "model.tokenizer.path": "a tokenizer, for instance runs/vqgan-shapes/last.ckpt, or taming-transformers' file",
    "model.stage1.path": "the checkpoint of a stage I (model=stackgan1), for instance runs/stackgan1-shapes/last.ckpt",
    "text_encoder.path": "a CLIP: a Hugging Face folder such as runs/clip-shapes/hf, or a hub name",
    "clip_guided.clips": "the CLIP that guides: a Hugging Face folder such as runs/quickstart/clip/hf, or a hub name",
    "clip_guided.path": "the drawing.json of a clip-guided drawing",
    "data.root": "the folder with the pictures; python prepare.py data=… data.root=… looks it over",
}


HYDRA = {  # what is said of Hydra's own settings, which are not read here
    "hydra/launcher": "sweep.launcher= (basic, joblib, submitit) says how -m runs its jobs",
    "hydra/sweeper": "-m runs every combination of listed values (seed=0,1), and has no other sweeper",
    "hydra.sweep": "a sweep's folder is paths.runs=FOLDER name=NAME-sweep, by name=NAME",
    "hydra": "a run's folder is paths.runs=FOLDER name=NAME, and what is printed goes to the terminal alone",
}


class ConfigError(ValueError):
    """A config that cannot be used; the message says why and what is allowed."""


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: its recipe, the overrides that compose it, and the same as a plain command."""

    name: str
    overrides: list[str]
    command: str


def choices(group: str) -> list[str]:
    """What a group can be set to; recipes with their folders."""
    folder = RECIPES if group == "experiments" else CONF / group
    found = folder.rglob("*.yaml") if group == "experiments" else folder.glob("*.yaml")
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in found)


def groups() -> list[str]:
    inside = {p.parent.relative_to(CONF).as_posix() for p in CONF.rglob("*.yaml")} - {"."}
    return sorted(inside | {"experiments"})


def is_path(key: str) -> bool:
    return key in PATHS or ("." in key and key.rpartition(".")[2].endswith(PATH_ENDINGS))


def set_aside(overrides: list[str]) -> tuple[list[str], dict[str, str]]:
    """Replaces the values of free text and path keys by plain words; returns the words and what they stand for."""
    kept: list[str] = []
    texts: dict[str, str] = {}
    for override in overrides:
        key, equals, value = override.partition("=")
        bare = key.lstrip("+")
        path = is_path(bare) and value not in ("", "null", "???") and not value.startswith("[")
        if equals and (bare in TEXTS or path):
            word = f"__text_{len(texts)}__"
            texts[word] = value
            override = f"{key}={word}"
        elif equals and is_path(bare) and value == "":
            override = f"{key}=null"
        kept.append(override)
    return kept, texts


def imply_model(overrides: list[str]) -> list[str]:
    """`model/quantizer=…` without `model=` means the one model that has a quantizer."""
    keys = [o.partition("=")[0] for o in overrides]
    parts = {key.partition("/")[2] for key in keys if key.startswith("model/")}
    if not parts or "model" in keys or "experiments" in keys:
        return overrides
    fitting = [m for m in choices("model") if all(f"- {p}:" in (CONF / f"model/{m}.yaml").read_text() for p in parts)]
    return [f"model={fitting[0]}", *overrides] if len(fitting) == 1 else overrides


@cache
def _hydra(overrides: tuple[str, ...], config_name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Hydra's composition, not resolved, with the choice made in each group. Treat it as read-only."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    OmegaConf.register_new_resolver("repo", lambda: str(ROOT), replace=True)
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        composed = hydra_compose(config_name, list(overrides), return_hydra_config=True)
    config: dict[str, Any] = OmegaConf.to_container(composed, resolve=False)  # type: ignore[assignment]
    chosen = dict(composed.hydra.runtime.choices)
    del config["hydra"]
    return config, chosen


def _compose_or_explain(overrides: list[str], config_name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Hydra's composition; its exceptions become one ConfigError with every unknown key and the near names."""
    from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    remaining, unknown = list(overrides), []
    while True:
        try:
            config, chosen = _hydra(tuple(remaining), config_name)
            break
        except MissingConfigException as error:
            raise ConfigError(_no_such_choice(str(error.missing_cfg_file), remaining)) from error
        except ConfigCompositionException as error:
            text = str(error)
            if needed := re.search(r"You must specify '(\w+)'", text):
                raise ConfigError(_no_choice(needed[1], remaining)) from error
            key = re.search(r"Could not (?:override|delete|append)[^']*'([^'=]+)", text)
            culprits = [o for o in remaining if key and o.partition("=")[0].lstrip("+~") == key[1].partition("@")[0]]
            if not culprits:
                raise ConfigError(" ".join(text.split())) from error
            unknown.append((culprits[0].partition("=")[0].lstrip("+~"), " ".join(text.split())))
            remaining = [o for o in remaining if o not in culprits]
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_not_parsed(error, remaining)) from error
    if unknown:
        names = list(flat(config))
        raise ConfigError("\n".join(_unknown_key(key, text, names, chosen) for key, text in unknown))
    return config, chosen


def _no_choice(group: str, overrides: list[str]) -> str:
    for override in overrides:  # a typo in the group's own name
        key = override.partition("=")[0]
        if key not in groups() and group in difflib.get_close_matches(key, groups(), 1, 0.7):
            return f"{key}: there is no such key (did you mean {group}?)"
    text = f"{group}= is needed: one of {', '.join(choices(group))}"
    recipes = ", ".join(choices("experiments"))
    return text + (f"; or a recipe, experiments= one of {recipes}" if group == "model" else "")


def _no_such_choice(missing: str, overrides: list[str]) -> str:
    missing = missing.removesuffix(".yaml")
    for override in overrides:
        group, _, choice = override.partition("=")
        if f"{group}/{choice}" == missing:
            break
    else:
        group, _, choice = missing.rpartition("/")
    allowed = choices(group)
    return f"{group}={choice}: there is no such choice{near(choice, allowed)}; allowed are {', '.join(allowed)}"


def _unknown_key(key: str, text: str, names: list[str], chosen: Mapping[str, str]) -> str:
    if "multiple values" in text:
        return text
    if key in groups():
        top = key.partition("/")[0]
        return f"{key}= does not go with {top}={chosen.get(top)}, which has no such part"
    parent, _, last = key.rpartition(".")
    endings = [name for name in names if name.rpartition(".")[2] == last]
    hint = f" (did you mean {' or '.join(endings[:3])}?)" if endings else near(key, names + groups())
    siblings = sorted({n[len(parent) + 1 :].partition(".")[0] for n in names if n.startswith(parent + ".")})
    siblings = siblings or sorted({name.partition(".")[0] for name in names})
    return f"{key}: there is no such key{hint or '; ' + (parent or 'the config') + ' has ' + ', '.join(siblings)}"


def _not_parsed(error: Exception, overrides: list[str]) -> str:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for override in overrides:
        try:
            OverridesParser.create().parse_override(override)
        except HydraException:
            if "=" not in override:
                return f"{override!r} is no setting: write key=value (see --help)"
            return f"{override!r} cannot be read: write key=value, lists as [a,b], text with signs as 'key=\"text\"'"
    return " ".join(str(error).split())


def refuse(overrides: list[str]) -> None:
    """ConfigError for Hydra's own settings, and for taking out what the doors need."""
    lines = []
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        told = next((text for name, text in HYDRA.items() if re.match(rf"{name}\b", key)), None)
        if told:
            lines.append(f"{word}: Hydra's own settings are not read; {told}")
        elif word.startswith("~") and not key.startswith(("callbacks.", "model.", "text_encoder.")):
            instead = "logger=none logs nothing" if key == "logger" else f"{key}= takes another value"
            lines.append(f"{word}: this cannot be taken out; {instead}")
    if lines:
        raise ConfigError("\n".join(lines))


def parse_sweep(overrides: list[str]) -> list[tuple[str, list[str]]]:
    """Each override as its key and the list of its values as whole overrides: one, or several of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    overrides = aliases.current(overrides)
    refuse(overrides)
    words, _ = set_aside(overrides)
    found = []
    for word, original in zip(words, overrides, strict=True):
        key = original.partition("=")[0]
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException as error:
            raise ConfigError(_not_parsed(error, [word])) from error
        if parsed.is_sweep_override():
            found.append((key, [f"{key}={value}" for value in parsed.sweep_string_iterator()]))
        else:
            found.append((key, [original]))
    return found


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys of everything, nodes included."""
    found = {path: config} if path else {}
    items = config.items() if isinstance(config, dict) else []
    for key, value in items:
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def _replace(value: Any, texts: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replace(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [_replace(item, texts) for item in value]
    return texts.get(value, value) if isinstance(value, str) else value


def _mentions(value: Any, name: str) -> bool:
    if isinstance(value, dict | list):
        return any(_mentions(item, name) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and re.search(r"\$\{" + name + r"[.}]", value) is not None


def compose(overrides: list[str], config_name: str = "train", files: bool = True) -> dict[str, Any]:
    """The resolved and checked config of a command line, as a plain dict.

    `files` False leaves out whether named files exist. Raises ConfigError with everything that is wrong.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    words, texts = set_aside(imply_model(aliases.current(overrides)))
    literal = {w: t for w, t in texts.items() if words[[w in o for o in words].index(True)].lstrip("+")
               .partition("=")[0] in TEXTS}
    for key, values in parse_sweep(words):
        if len(values) > 1:
            raise ConfigError(f"{key} has several values: put -m before the settings to run one after the other")
    config, chosen = _compose_or_explain(words, config_name)
    config = _replace(config, {w: t for w, t in texts.items() if w not in literal})
    if config_name == "train":
        if config["stages"] is not None:
            config["name"] = config["name"] or config["group"]
        recipe = chosen.get("experiments")
        if config["name"] is None:
            config["name"] = recipe or f"{chosen.get('model')}-{chosen.get('data')}"
        # An encoder that no part refers to need not be there.
        others = {key: value for key, value in config.items() if key != "text_encoder"}
        if not _mentions(others, "text_encoder"):
            config["text_encoder"] = None
    missing = [key for key, value in flat(config).items() if value == "???"]
    if missing:
        lines = [f"{key}= is needed{': ' + HINTS[key] if key in HINTS else ''}" for key in missing]
        raise ConfigError("\n".join(lines))
    try:
        resolved: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(config), resolve=True)  # type: ignore
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config cannot be resolved: {' '.join(str(error).split())}") from error
    resolved = _replace(resolved, literal)
    problems = check(resolved, files=files and not resolved.get("stages"))
    if problems:
        raise ConfigError("\n".join(problems))
    return resolved


def plan(overrides: list[str]) -> list[Stage]:
    """The stages of a pipeline's recipe. Other overrides go to every stage, but for those of what follows the stages;
    `name=` names the pipeline's folder."""
    stages = compose(overrides, files=False)["stages"]
    own = ("experiments=", "evaluation.", "comparison.")
    others = [o for o in overrides if not o.startswith(own)]
    others = ["group=" + o.partition("=")[2] if o.startswith("name=") else o for o in others]
    found = []
    for stage in stages:
        words = [f"experiments={stage}", *others]
        compose(words, files=False)
        found.append(Stage(stage, words, "python train.py " + shlex.join(words)))
    return found


def difference(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What changed from `a` to `b`, one line a key: `data.batch_size: 32 -> 64`."""
    left = {key: value for key, value in flat(a).items() if not isinstance(value, dict)}
    right = {key: value for key, value in flat(b).items() if not isinstance(value, dict)}
    absent = "(absent)"
    keys = [*left, *(key for key in right if key not in left)]
    # A list that was a tuple before it was written means the same.
    old, new = ({k: list(v) if isinstance(v, tuple) else v for k, v in d.items()} for d in (left, right))
    pairs = [(key, old.get(key, absent), new.get(key, absent)) for key in keys]
    return [f"{key}: {before} -> {after}" for key, before, after in pairs if before != after]


IGNORED = ("resume", "debug", "logger", "stages", "experiments", "estimate", "evaluation", "comparison", "sweep",
           "trust", "usual_monitor")


def compared(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in IGNORED}
