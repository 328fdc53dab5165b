"""Configs: Hydra's composition of `conf/` and `experiments/`, as plain dictionaries that were checked.

Values of free text and paths are quoted before Hydra's grammar reads them (it breaks more than half of ordinary
captions). Nothing heavy is imported here, so that a mistake answers at once.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from t2i.config import aliases
from t2i.config.check import check, near, unknown_key
from t2i.config.places import CONF, RECIPES, ROOT, program

TEXTS = {"prompt", "negative", "clip_guided.extras", "clip_guided.excluded", "clip_guided.styles",
         "clip_guided.images"}  # to the letter
# Text, or null; interpolations in it are followed.
PATHS = {"ckpt", "out", "clip_model", "inception", "vgg", "data.font", "data.icons", "prompts", "scorer", "init",
         "resume", "name", "group",
         "completion.image", "edit.image", "edit.mask", "text_encoder.vocabulary", "clip_guided.clips",
         "clip_guided.start_image"}
PATH_ENDINGS = ("path", "root", "runs", "cache", "folder")
HINTS = {
    "ckpt": "the checkpoint to use, for instance runs/<name>/last.ckpt",
    "model.tokenizer.path": "a tokenizer, for instance runs/vqgan-shapes/last.ckpt, or taming-transformers' file",
    "model.stage1.path": "the checkpoint of a stage I (model=stackgan1), for instance runs/stackgan1-shapes/last.ckpt",
    "text_encoder.path": "a CLIP: a Hugging Face folder such as runs/clip-shapes/hf, or a hub name; or"
                         " text_encoder=sentence, which needs none",
    "clip_guided.clips": "the CLIP that guides: a Hugging Face folder such as runs/quickstart/clip/hf, or a hub name",
    "clip_guided.path": "the drawing.json of a clip-guided drawing",
    "data.root": f"the folder with the pictures; {program('prepare')} data=… data.root=… looks it over",
}
PLUGINS = {"hydra/launcher=joblib": "hydra-joblib-launcher", "hydra/launcher=submitit_local": "hydra-submitit-launcher",
           "hydra/launcher=submitit_slurm": "hydra-submitit-launcher", "hydra/sweeper=optuna": "hydra-optuna-sweeper"}
SWEEP = {  # keys of earlier versions -> what replaces them
    "launcher": "hydra/launcher=joblib, submitit_local or submitit_slurm", "jobs": "hydra.launcher.n_jobs=",
    "objective": "trainer.monitor=", "objective_mode": "trainer.monitor_mode=",
    "submitit": "hydra/launcher=submitit_slurm and its keys, hydra.launcher.timeout_min= and others (docs/sweeps.md)"}
REMOVABLE = re.compile(r"(callbacks|logger)(\..*)?|(model|text_encoder|hydra)[./@].*")  # by ~


QUOTED = re.compile(r"""(["'])(?:\\.|(?!\1)[^\\])*\1""", re.DOTALL)  # a quoted string of Hydra's


class ConfigError(ValueError):
    """A config that cannot be used; the message says why and what is allowed."""


@dataclass(frozen=True)
class Stage:
    """One stage of a pipeline: its recipe, the overrides that compose it, and the same as a plain command."""

    name: str
    overrides: list[str]
    command: str


def run_name(*, _root_: Any) -> str:
    """`name` by itself: the pipeline's group, the recipe's name, or model-data."""
    chosen = (_root_.hydra if "hydra" in _root_ else HydraConfig.get()).runtime.choices
    if _root_.stages is not None and _root_.group is not None:
        return str(_root_.group)
    return str(chosen.get("experiments") or f"{chosen.get('model')}-{chosen.get('data')}")


def tag(key: str, value: str, keys: Sequence[str]) -> str:
    """A swept setting as a piece of a folder's name: quantizer-vq."""
    last = re.split(r"[./]", key)[-1]
    unique = sum(re.split(r"[./]", other)[-1] == last for other in keys) == 1
    return re.sub(r"[^A-Za-z0-9.-]+", "-", f"{last if unique else key}-{value}").strip("-.")


def swept(overrides: Sequence[str], fixed: Sequence[str]) -> dict[str, str]:
    """The settings of a sweep's job that differ from job to job."""
    pairs = (word.partition("=")[::2] for word in overrides)
    return {key: value for key, value in pairs if key not in fixed}


def job_folder(overrides: Any, fixed: Any) -> str:
    """The folder of a sweep's job below the sweep's."""
    settings = swept(*(OmegaConf.to_container(words, resolve=False) for words in (overrides, fixed)))  # type: ignore
    name = "_".join(tag(key, value, list(settings)) for key, value in settings.items()) or "only"
    if len(name) <= 120:
        return name
    import hashlib

    return f"{name[:100]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def keys_of(config_name: str) -> str:
    """An app's groups and keys, these with their comments, for --help."""
    text = (CONF / f"{config_name}.yaml").read_text(encoding="utf-8")
    defaults, _, keys = text[text.index("\ndefaults:"):].partition("\n\n")
    own = set(re.findall(r"- (\w+):", defaults))
    lines = [f"  {group}={'|'.join(choices(group))}" for group in groups() if group.partition("/")[0] in own]
    return "\n".join([*lines, "", f"Keys (conf/{config_name}.yaml):", *(f"  {line}" for line in keys.splitlines())])


def beside_init(init: Any) -> Any:
    """What config.json beside a checkpoint or in its folder holds; None where there is none that can be read."""
    place = Path(str(init)).expanduser()
    try:
        return json.loads(((place if place.is_dir() else place.parent) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def of_init(key: Any, default: Any, *, _root_: Any) -> Any:
    """A setting of the training that made `init=`, as config.json beside it or in it says; `default` where that says
    nothing, or something that is no short word or number (and for an `init=` that is not there, which is told)."""
    held = beside_init(_root_.init)
    node = held["config"] if isinstance(held, dict) and "t2i" not in held and "config" in held else held
    for part in str(key).split("."):
        node = node.get(part) if isinstance(node, dict) else None
    known = type(node) in (bool, float) or (type(node) is int and 0 <= node < 2**16)
    return node if known or (isinstance(node, str) and node.isidentifier()) else default


for resolver in (run_name, job_folder, keys_of, of_init, program):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
OmegaConf.register_new_resolver("repo", lambda: str(ROOT), replace=True)


def choices(group: str) -> list[str]:
    """What a group can be set to; recipes with their folders."""
    folder = RECIPES if group == "experiments" else CONF / group
    found = folder.rglob("*.yaml") if group == "experiments" else folder.glob("*.yaml")
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in found)


@cache
def groups() -> list[str]:
    inside = {p.parent.relative_to(CONF).as_posix() for p in CONF.rglob("*.yaml")} - {"."}
    return sorted(inside | {"experiments"})


def is_path(key: str) -> bool:
    return key in PATHS or ("." in key and key.rpartition(".")[2].endswith(PATH_ENDINGS))


def quoted(overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra's grammar takes them: values of free text are quoted to the letter, paths but for
    interpolations; a value that is a quoted string of Hydra's as a whole stays as it is."""
    found = []
    for override in aliases.current(overrides):
        key, equals, value = override.partition("=")
        if key == "experiment":  # as in other Hydra projects
            key = "experiments"
        if override == "data.batch_size=auto":
            key, value = "trainer.scale_batch_size", "auto"
        if key.partition(".")[0] == "evaluation":  # a recipe says some of evaluate.py's keys, a command any of them
            key = f"++{key}"
        bare = key.lstrip("+~")
        if bare == "name" and equals and value in ("", "null"):
            continue
        path = is_path(bare)
        if not equals or not (path or bare in TEXTS) or QUOTED.fullmatch(value):
            pass
        elif path and value in ("", "null"):
            value = "null"
        elif not path or (value != "???" and not value.startswith("[")):
            # Backslashes before ${ are doubled, as OmegaConf reads them, and one more makes it text.
            literal = value if path else re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
            value = QuotedString(literal, Quote.double).with_quotes()
        found.append(f"{key}{equals}{value}")
    return found


def plain(override: str) -> str:
    """The inverse of `quoted`: as a person types it."""
    if override.startswith("++evaluation"):
        return override.removeprefix("++")
    key, _, value = override.partition("=")
    if value[:1] != '"' or not (is_path(key) or key in TEXTS):
        return override
    text = str(parsed(override).value())
    text = text if is_path(key) else re.sub(r"(\\*)\\\$\{", lambda m: m[1][: len(m[1]) // 2] + "${", text)
    return f"{key}={text}" if quoted([f"{key}={text}"]) == [override] else override


def imply_model(overrides: list[str]) -> list[str]:
    """`model/quantizer=…` without `model=` means the one model that has a quantizer."""
    keys = [o.partition("=")[0] for o in overrides]
    parts = {key.partition("/")[2] for key in keys if key.startswith("model/")}
    if not parts or "model" in keys or "experiments" in keys:
        return overrides
    fitting = [m for m in choices("model") if all(f"- {p}:" in (CONF / f"model/{m}.yaml").read_text() for p in parts)]
    return [f"model={fitting[0]}", *overrides] if len(fitting) == 1 else overrides


@cache  # a command line is composed three times
def parsed(override: str) -> Override:
    """ConfigError where it cannot be read."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        if "=" not in override:
            raise ConfigError(f"{override!r} is no setting: write key=value (see --help)") from error
        raise ConfigError(f"{override!r} cannot be read: write key=value, lists as [a,b], text with signs as"
                          " 'key=\"text\"'") from error


def refuse(overrides: Sequence[str]) -> None:
    """ConfigError for keys of earlier versions, and for taking out what is needed."""
    lines = []
    for word in overrides:
        key = word.partition("=")[0].lstrip("+~")
        if key == "sweep" or key.startswith("sweep."):
            now = SWEEP.get(key.split(".")[1] if "." in key else "", "hydra/launcher= and hydra/sweeper=")
            lines.append(f"{word}: -m is Hydra's own now; instead of {key}= write {now}")
        elif word.startswith("~") and not REMOVABLE.fullmatch(key):
            lines.append(f"{word}: this cannot be taken out; {key}= takes another value")
    if lines:
        raise ConfigError("\n".join(lines))


@contextmanager
def _loader(config_dir: str | None) -> Iterator[Hydra]:
    """The running app's Hydra, or one of its own beside it."""
    running = GlobalHydra.instance()
    if running.hydra is not None:
        yield running.hydra
        return
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        if config_dir is not None:
            if not Path(config_dir).is_dir():
                raise ConfigError(f"--config-dir {config_dir}: there is no such folder")
            path = hydra.config_loader.get_search_path()
            path.prepend("command-line", f"file://{Path(config_dir).resolve()}", SearchPathQuery(provider="schema"))
        yield hydra


def composed(overrides: Sequence[str], config_name: str, config_dir: str | None = None,
             mode: RunMode = RunMode.RUN) -> DictConfig:
    """Hydra's composition of overrides that are `quoted`, the node `hydra` included; ConfigError names every unknown
    key and the near names."""
    for override in overrides:
        parsed(override)
    remaining, unknown = list(overrides), []
    while True:
        try:
            with _loader(config_dir) as hydra:
                config = hydra.compose_config(config_name, remaining, run_mode=mode, from_shell=False,
                                              with_log_configuration=False)
            break
        except MissingConfigException as error:
            raise ConfigError(no_such_choice(error, remaining)) from error
        except ConfigCompositionException as error:
            text = str(error)
            key = re.search(r"Could not (?:override|delete|append)[^']*'([^'=@]+)|"
                            r"verride ([^\s=@]+)\S* looks like a config group", text)
            culprits = [o for o in remaining if key and re.split("[=@]", o)[0].lstrip("+~") == (key[1] or key[2])]
            if not culprits:
                cause = f": {error.__cause__}" if not text.strip() or error.__cause__ else ""
                raise ConfigError(" ".join(f"{text}{cause}".split()).lstrip(": ")) from error
            unknown.append((culprits[0].partition("=")[0].lstrip("+~"), " ".join(text.split())))
            remaining = [o for o in remaining if o not in culprits]
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(" ".join(str(error).split())) from error
    if unknown:
        names, chosen = list(flat(OmegaConf.to_container(config))), config.hydra.runtime.choices
        stages = config.get("stages") or []
        raise ConfigError("\n".join(
            f"{key} is a stage's own: give it to one of experiments={', '.join(stages)}"
            if stages and key.partition(".")[0] in ("model", "data", "text_encoder") and "." in key
            else _unknown_key(key, text, names, chosen) for key, text in unknown))
    return config


def no_such_choice(error: MissingConfigException, overrides: Sequence[str]) -> str:
    missing = str(error.missing_cfg_file).removesuffix(".yaml")
    group, _, choice = missing.rpartition("/")
    for override in overrides:
        key, _, value = override.partition("=")
        if f"{key.lstrip('+')}/{value}" == missing:
            group, choice = key.lstrip("+"), value
    if not group:
        return f"--config-name {choice}: there is no such file in conf/ or in --config-dir"
    if package := PLUGINS.get(f"{group}={choice}"):
        return f"{group}={choice} needs a package that is not installed: pip install {package} (in t2i's extra sweeps)"
    if group == "experiments" and choice in aliases.RECIPES:
        return f"experiments={choice} is no longer there: experiments={aliases.RECIPES[choice]} takes its place"
    allowed = sorted({*choices(group), *(error.options or ())})
    return f"{group}={choice}: there is no such choice{near(choice, allowed)}; allowed are {', '.join(allowed)}"


def _unknown_key(key: str, text: str, names: list[str], chosen: Mapping[str, str]) -> str:
    if "multiple values" in text or "Could not append" in text:
        return text
    if key in groups() and (inner := [name for name in names if name.startswith(f"{key}.")]):
        return f"{key}= takes no choice here, its keys take a value each: give {'=…, '.join(inner)}=…"
    if key in groups():
        top = key.partition("/")[0]
        return f"{key}= does not go with {top}={chosen.get(top)}, which has no such part"
    own = [name for name in names if name.startswith("hydra") == key.startswith("hydra")]
    return unknown_key(key, own + [group for group in groups() if group not in own])


def flat(config: Any, path: str = "") -> dict[str, Any]:
    """Dotted keys of everything, nodes included."""
    found = {path: config} if path else {}
    items = config.items() if isinstance(config, dict) else []
    for key, value in items:
        found |= flat(value, f"{path}.{key}" if path else str(key))
    return found


def _mentions(value: Any, name: str) -> bool:
    if isinstance(value, dict | list):
        return any(_mentions(item, name) for item in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, str) and re.search(r"\$\{" + name + r"[.}]", value) is not None


def resolved(config: DictConfig, config_name: str, files: bool = True) -> dict[str, Any]:
    """A composed config as a plain dict, without interpolations and the node `hydra`, and checked; ConfigError says
    everything that is wrong. `files` False leaves out whether named files exist."""
    config = deepcopy(config)
    bare: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    bare.pop("hydra", None)
    try:
        with open_dict(config):
            if bare.get("stages") == []:
                raise ConfigError("stages=[]: one or more recipes are wanted, as in [pictures/clip,pictures/vqgan];"
                                  " experiments=pictures/vqgan is a stage by itself")
            needed = {"train": "model", "prepare": "data"}.get(config_name)
            if needed and needed not in bare and not bare.get("stages"):
                recipe = f"; or a recipe, experiments= one of {', '.join(choices('experiments'))}"
                raise ConfigError(f"{needed}= is needed: one of {', '.join(choices(needed))}"
                                  f"{recipe if needed == 'model' else ''}")
            if config_name == "train":
                config.name = config.name
                for group in ("callbacks", "logger"):
                    config.setdefault(group, {})
                # An encoder that no part refers to need not be there.
                if not _mentions({key: value for key, value in bare.items() if key != "text_encoder"}, "text_encoder"):
                    config.text_encoder = bare["text_encoder"] = None
            config.pop("hydra", None)
        missing = [key for key, value in flat(bare).items() if value == "???" and key not in TEXTS]
        if missing:
            lines = [f"{key}= is needed{': ' + HINTS[key] if key in HINTS else ''}" for key in missing]
            raise ConfigError("\n".join(lines))
        found: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        read = [key for key, value in flat(bare).items() if isinstance(value, str) and "${of_init:" in value]
        if read and files and Path(str(found["init"])).expanduser().exists() and beside_init(found["init"]) is None:
            raise ConfigError(f"init={found['init']}: there is no config.json beside it or in it that can be read, for"
                              f" {', '.join(read)}: copy it from the run's folder, or give all of these")
    except OmegaConfBaseException as error:
        raise ConfigError(f"the config cannot be resolved: {' '.join(str(error).split())}") from error
    if problems := check(found, config_name, files and not found.get("stages")):
        raise ConfigError("\n".join(problems))
    return found


def compose(overrides: Sequence[str], config_name: str = "train", files: bool = True) -> dict[str, Any]:
    """The resolved and checked config of a command line, as a plain dict; `files` as in `resolved`."""
    refuse(overrides)
    words = imply_model(quoted(overrides))
    for word in words:
        if parsed(word).is_sweep_override():
            raise ConfigError(f"{word.partition('=')[0].lstrip('+')} has several values: put -m before the settings to"
                              " run one after the other")
    return resolved(composed(words, config_name), config_name, files)


def plan(overrides: Sequence[str]) -> list[Stage]:
    """The stages of a pipeline's recipe. Other overrides go to every stage, but for those of what follows the stages;
    `name=` names the pipeline's folder."""
    stages = compose(overrides, files=False)["stages"]
    own = re.compile(r"\+*(experiments?=|(evaluation|comparison)[.=]|hydra[./])")
    others = [o for o in overrides if not own.match(o)]
    others = ["group=" + o.partition("=")[2] if o.startswith("name=") else o for o in others]
    found = []
    for stage in stages:
        words = [f"experiments={stage}", *others]
        compose(words, files=False)
        found.append(Stage(stage, words, f"{program('train')} {shlex.join(words)}"))
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
