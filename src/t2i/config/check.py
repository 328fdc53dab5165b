"""What can be known to be wrong with a config before anything heavy is imported: all faults at once, by name.

Constructors are read with `ast`, never imported: each `_target_` is found as a file, of this package or of others, and
its arguments are held against the config's keys, required names and annotations.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from t2i.config import aliases
from t2i.config.limits import BESIDE, FILES, GIVEN, VALUES
from t2i.config.messages import shown
from t2i.config.places import CONF

COMPILED = ast.parse("def __getattr__(name): ...")  # a module whose names are not to be read
GROUPS = {"trainer": "trainer/auto.yaml", "paths": "paths/default.yaml", "evaluation": "evaluate.yaml"}
NAMED = ("callbacks", "logger")  # groups that hold nodes of any name
EXTRAS = {"t2i.training.wandb_logger.WandbLogger": "wandb"}  # class -> the package, and t2i's extra, that it needs


@dataclass
class Constructor:
    """What `ast` saw of a class or function: annotation (None for none) and whether it is required, by argument."""

    arguments: dict[str, tuple[ast.expr | None, bool]]
    open_ended: bool
    aliases: dict[str, ast.expr]


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{path}, line {error.lineno}: {error.msg}") from error


@cache
def _module(name: str) -> tuple[Path, ast.Module] | None:
    """A module's file and what it says, found without importing it; None where there is no such module."""
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # of what runs as a script
        spec = None
    if spec is None:
        return None
    roots = [Path(place) for place in spec.submodule_search_locations or ()]
    if not roots and not rest:
        path = Path(spec.origin or "")
        return path, _parsed(path) if path.suffix == ".py" else COMPILED
    for inner in (root.joinpath(*rest) for root in roots):
        for path in (inner / "__init__.py", *([inner.with_suffix(".py")] if rest else [])):
            if path.is_file():
                return path, _parsed(path)
        if rest and any(inner.parent.glob(f"{inner.name}.*.so")):
            return inner, COMPILED
    return None


@cache
def constructor(target: str) -> Constructor | None:
    """The arguments of a class or function by its dotted name; None when there is none of that name.

    Of what cannot be read (compiled modules, names that are made at import) any arguments are taken.
    """
    unread = Constructor({}, True, {})
    module_name, _, name = target.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in target.split(".")):
        return None
    found = _module(module_name)
    if found is None:  # an attribute of a class, perhaps
        return unread if "." in module_name and constructor(module_name) is not None else None
    path, module = found
    aliases = {
        node.targets[0].id: node.value
        for node in module.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    for node in module.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return _arguments(node, aliases, method=False)
        if isinstance(node, ast.ClassDef) and node.name == name:
            for item in node.body:
                if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                    return _arguments(item, aliases, method=True)
            if any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields: dict[str, tuple[ast.expr | None, bool]] = {
                    field.target.id: (field.annotation, field.value is None)
                    for field in node.body
                    if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
                }
                return Constructor(fields, False, aliases)
            for base in node.bases:
                inherited = constructor(f"{module_name}.{ast.unparse(base)}")
                if inherited is not None:
                    return inherited
            return Constructor({}, True, aliases)
        if isinstance(node, ast.ImportFrom):
            package = module_name.split(".")
            above = len(package) - node.level + (path.name == "__init__.py")
            origin = ".".join([*(package[:above] if node.level else []), *filter(None, [node.module])])
            for original in (a.name for a in node.names if a.name == "*" or (a.asname or a.name) == name):
                there = f"{origin}.{name if original == '*' else original}"
                if there == target:
                    return unread
                if original != "*" or constructor(there) is not None:
                    return constructor(there)
    made = {part.id if isinstance(part, ast.Name) else part.name for part in ast.walk(module)
            if isinstance(part, ast.ClassDef | ast.FunctionDef)
            or (isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store))}
    return unread if {name, "__getattr__"} & made else None


def _arguments(function: ast.FunctionDef, aliases: dict[str, ast.expr], method: bool) -> Constructor:
    a = function.args
    plain = a.posonlyargs + a.args
    required = [True] * (len(plain) - len(a.defaults)) + [False] * len(a.defaults)
    listed = list(zip(plain, required, strict=True))[1 if method else 0 :]
    listed += [(arg, default is None) for arg, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)]
    return Constructor({arg.arg: (arg.annotation, need) for arg, need in listed}, a.kwarg is not None, aliases)


def fits(value: Any, annotation: ast.expr | None, aliases: dict[str, ast.expr] | None = None) -> bool:
    """Whether a plain value fits an annotation; what is not understood (modules, protocols) takes anything."""
    aliases = aliases or {}
    match annotation:
        case None:
            return True
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str() as quoted):
            return fits(value, ast.parse(quoted, mode="eval").body, aliases)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id="str" | "Path"):
            return isinstance(value, str)
        case ast.Name(id=name) if name in aliases:
            return fits(value, aliases[name], aliases)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return fits(value, left, aliases) or fits(value, right, aliases)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            allowed = [ast.literal_eval(item) for item in _items(inner)]
            return any(value == item and type(value) is type(item) for item in allowed)
        case ast.Subscript(value=ast.Name(id="tuple"), slice=ast.Tuple(elts=items)):
            if not isinstance(value, list | tuple):
                return False
            if isinstance(items[-1], ast.Constant) and items[-1].value is ...:
                return all(fits(item, items[0], aliases) for item in value)
            return len(value) == len(items) and all(
                fits(v, a, aliases) for v, a in zip(value, items, strict=True)
            )
        case ast.Subscript(value=ast.Name(id="list" | "Sequence"), slice=inner):
            return isinstance(value, list | tuple) and all(fits(item, inner, aliases) for item in value)
        case ast.Subscript(value=ast.Name(id="dict" | "Mapping"), slice=ast.Tuple(elts=[_, inner])):
            return isinstance(value, dict) and all(fits(item, inner, aliases) for item in value.values())
    return True


def _items(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def allowed(annotation: ast.expr, aliases: dict[str, ast.expr] | None = None) -> str:
    """An annotation in a user's words: `one of ste, rotation`, `int or null`."""
    match annotation:
        case ast.Constant(value=None):
            return "null"
        case ast.Name(id=name) if aliases and name in aliases:
            return allowed(aliases[name], aliases)
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return f"{allowed(left, aliases)} or {allowed(right, aliases)}"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inner):
            names = [str(ast.literal_eval(item)) for item in _items(inner)]
            return names[0] if len(names) == 1 else "one of " + ", ".join(names)
        case ast.Subscript(value=ast.Name(id="list" | "Sequence"), slice=inner):
            kind = ast.unparse(inner)
            many = {"str": "names", "int": "whole numbers", "float": "numbers"}.get(kind, kind)
            return f"a list of {many}, as in [a,b],"
    return {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}.get(
        ast.unparse(annotation), ast.unparse(annotation)
    )


def near(word: str, words: list[str]) -> str:
    """` (did you mean a, b?)`, or nothing."""
    close = difflib.get_close_matches(word, sorted(set(words)), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a `_target_`, with its key path."""
    if isinstance(config, dict):
        if "_target_" in config:
            yield path, config
        for key, value in config.items():
            yield from nodes(value, f"{path}.{key}" if path else str(key))
    elif isinstance(config, list):
        for i, value in enumerate(config):
            yield from nodes(value, f"{path}.{i}")


def at(config: dict[str, Any], path: str) -> tuple[bool, Any]:
    """Whether there is such a key, and its value."""
    node: Any = config
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            return False, None
        node = node[key]
    return True, node


HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")  # of nodes, read by hydra.utils.instantiate


def check_node(path: str, node: Mapping[str, Any], code_gives: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with a node's arguments; those that `code_gives` need not be there."""
    target = node["_target_"]
    found = constructor(target) if isinstance(target, str) else None
    if found is None:
        module = str(target).rpartition(".")[0]
        there = module and all(part.isidentifier() for part in module.split(".")) and _module(module)
        return [f"{path}._target_={target}: " + (f"{module} has no such class" if there else
                f"there is no module {module or target} (a module of your own is found in the current folder, or by"
                " PYTHONPATH)")]
    problems = []
    keys = {key: value for key, value in node.items() if key not in HYDRA and key not in BESIDE.get(path, ())}
    for key, value in keys.items():
        if key not in found.arguments:
            if aliases.is_removed(target, key):
                problems.append(removed_option(f"{path}.{key}={_shown(value)}"))
            elif not found.open_ended:
                names = list(found.arguments)
                problems.append(f"{path}.{key}: {target.rpartition('.')[2]} has no such argument"
                                f"{near(key, names) or '; it has ' + ', '.join(names)}")
            continue
        annotation = found.arguments[key][0]
        if annotation is None or (isinstance(value, dict) and "_target_" in value):
            continue
        if not fits(value, annotation, found.aliases):
            problems.append(f"{path}.{key}={_shown(value)}: {allowed(annotation, found.aliases)} is needed")
    given = (*GIVEN.get(path, ()), *code_gives)
    missing = [n for n, (_, required) in found.arguments.items() if required and n not in keys and n not in given
               and not node.get("_partial_") and "_args_" not in node]
    problems += [f"{path}.{name} is needed and has no value" for name in missing]
    return problems


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


PART = re.compile(r"[\w][\w .,+=@%()&'!~^-]*")  # of a name: letters that every file system takes
LONGEST = 200  # bytes of a name


def check_names(config: dict[str, Any]) -> list[str]:
    """Names are folders below `paths.runs`: never it, nothing above it, and of letters that file systems take."""
    problems = []
    for key in ("name", "group"):
        name = config.get(key)
        if not isinstance(name, str):
            continue
        parts = name.split("/")
        fine = all(PART.fullmatch(part) and not part.endswith((" ", ".")) for part in parts)
        if not fine or len(name.encode("utf-8", "surrogatepass")) > LONGEST:
            problems.append(f"{key}={shown(name)}: a folder's name is needed, at most {LONGEST} bytes: letters, digits"
                            " and . _ - + = , @, begun with a letter, a digit or _; / between parts")
    return problems


def check_values(config: dict[str, Any]) -> list[str]:
    problems = []
    for path, (text, least, most) in VALUES.items():
        present, value = at(config, path)
        if not present:
            continue
        annotation = ast.parse(text, mode="eval").body
        number = isinstance(value, int | float) and not isinstance(value, bool)
        low = number and least is not None and value < least
        high = number and most is not None and value > most
        if not fits(value, annotation) or low or high:
            bounds = "" if least is None else f" >= {least:g}" if most is None else f" from {least:g} to {most:g}"
            problems.append(f"{path}={_shown(value)}: {allowed(annotation)}{bounds} is needed")
    if isinstance(config.get("prompt"), str) and not config["prompt"].strip():
        other = "" if "clip_guided" in config else ", or leave prompt= out and give unconditional=true"
        problems.append(f"prompt is empty: say what to draw{other}")
    return problems


def check_sizes(config: dict[str, Any]) -> list[str]:
    """Picture sizes against the factor of the autoencoder that is to take them."""
    problems = []
    for path, node in nodes(config):
        inner = node.get("autoencoder")
        if isinstance(inner, dict) and isinstance(node.get("image_size"), int):
            # A kind of autoencoder that has no such argument has patches of one pixel, or one level.
            arguments = inner.get("patch_size", 1), inner.get("multipliers", [1])
            if not isinstance(arguments[0], int) or not isinstance(arguments[1], list):
                continue  # `check_node` tells
            factor, size = arguments[0] * 2 ** (len(arguments[1]) - 1), node["image_size"]
            if size < factor or size % factor:
                around = [s for s in (size // factor * factor, size // factor * factor + factor) if s > 0]
                problems.append(
                    f"{path}.image_size={size} (data.image_size) is not divisible by the autoencoder's factor {factor}"
                    f" = patch_size {arguments[0]} x 2^{len(arguments[1]) - 1} levels;"
                    f" allowed next to it: {' and '.join(map(str, around))}")
    return problems


def check_start(config: dict[str, Any]) -> list[str]:
    """What of `init`, `init_allow` and `freeze` does not go with the other keys."""
    init, resume, problems = config["init"], config["resume"], []
    if init is not None and resume not in ("auto", "must", "never"):
        problems.append(f"init={shown(init)} and resume={shown(resume)}: a run starts from weights or goes on from a"
                        " checkpoint; give one of the two")
    if config["init_allow"] and init is None:
        problems.append(f"init_allow={_shown(config['init_allow'])} says what need not fit init=, which is not given")
    if config["evaluation"] is not None and not config["stages"]:
        given = [f"evaluation.{key}" for key in config["evaluation"]] if isinstance(config["evaluation"], dict) else []
        problems.append(f"{', '.join(given) or 'evaluation'}= is of recipes with stages, such as"
                        " experiments=quickstart; python evaluate.py ckpt=… scores what one run has trained")
    if config["stages"]:
        problems += [f"{key}={_shown(config[key])} is one stage's: give it to one of"
                     f" experiments={', '.join(config['stages'])}" for key in ("init", "freeze") if config[key]]
    return problems


def trained(drawing: bool) -> list[str]:
    """The last checkpoint of each run below runs/; `drawing`: without what config.json says is no model that draws."""
    found = sorted(Path("runs").glob("**/last.ckpt")) or sorted(Path("runs").glob("**/*.ckpt"))
    return [str(path) for path in found if not drawing or not _cannot_draw(path.with_name("config.json"))]


def _cannot_draw(config: Path) -> bool:
    try:
        held = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    there, target = at(held, "model._target_")
    return there and str(target).startswith(("t2i.models.vqgan.", "t2i.models.clip."))


def check_files(config: dict[str, Any], config_name: str) -> list[str]:
    problems = []
    for path, what in FILES.items():
        present, value = at(config, path)
        if not present or not isinstance(value, str) or Path(value).expanduser().exists():
            continue
        if path == "init" and any((Path(config["paths"]["runs"]) / config["name"]).glob("*.ckpt")):
            continue  # a run that goes on has its own weights
        others = trained(path == "ckpt" and config_name == "sample") if value.endswith(".ckpt") else []
        problems.append(f"{path}={value}: no such file or folder; wanted is {what}"
                        + (near(value, others) or (f"; there is {', '.join(others[:6])}" if others else "")))
    return problems


def check_extras(config: dict[str, Any]) -> list[str]:
    needed = [(path, EXTRAS[node["_target_"]]) for path, node in nodes(config) if node["_target_"] in EXTRAS]
    return [f"{path} needs a package that is not installed: pip install {package} (in t2i's extra {package})"
            for path, package in needed if importlib.util.find_spec(package) is None]


def removed_option(setting: str) -> str:
    return f"{setting}: this option was removed in this version; leave it out, or use the version before"


def unknown_key(key: str, names: list[str]) -> str:
    """The message for a key that nothing reads, of those that there are."""
    if key in aliases.REMOVED_KEYS:
        return removed_option(key)
    if (current := aliases.current_key(key)) != key:
        return f"{key} is called {current} now"
    parent, _, last = key.rpartition(".")
    endings = [name for name in names if name.rpartition(".")[2] == last and name != key]
    others = [name for name in names if name != parent]
    hint = f" (did you mean {' or '.join(endings[:3])}?)" if endings else near(key, others)
    siblings = sorted({n[len(parent) + 1 :].partition(".")[0] for n in names if n.startswith(parent + ".")})
    siblings = siblings or sorted({name.partition(".")[0] for name in names})
    return f"{key}: there is no such key{hint or '; ' + (parent or 'the config') + ' has ' + ', '.join(siblings)}"


@cache
def _keys(name: str) -> dict[str, Any]:
    """The keys of a file of conf/, the groups of its defaults list and what their choices add beside them included."""
    found = yaml.safe_load((CONF / name).read_text(encoding="utf-8"))
    listed = [key for entry in found.pop("defaults", []) if isinstance(entry, dict) for key in entry]
    found.pop("hydra", None)
    texts = [path.read_text(encoding="utf-8") for key in listed for path in sorted((CONF / key).glob("*.yaml"))]
    beside = [key for text in texts if text.startswith("# @package _global_") for key in yaml.safe_load(text)]
    return dict.fromkeys([*(key for key in listed if " " not in key), *beside]) | found


def check_keys(config: dict[str, Any], config_name: str) -> list[str]:
    """Keys that nothing reads, however they came in; of nodes with a `_target_` their constructor knows."""
    known = dict(_keys(f"{config_name}.yaml"))
    known |= {group: _keys(file) for group, file in GROUPS.items() if group in known}
    problems, names = [], [name for name in known if known[name] is not None or name in config]
    for group in NAMED:
        if group in known:
            held = config[group] or {}
            bare = [key for key, value in held.items() if value is not None
                    and not (isinstance(value, dict) and "_target_" in value)]
            problems += [unknown_key(f"{group}.{key}", [f"{group}.{other}" for other in held if other not in bare])
                         for key in bare]
    names += [f"{group}.{key}" for group, inner in known.items() if isinstance(inner, dict) for key in inner]
    for key, value in config.items():
        if key not in known:
            problems.append(unknown_key(key, names))
        elif key not in GROUPS and known[key] and isinstance(known[key], dict) and not isinstance(value, dict):
            inner = ", ".join(f"{key}.{name}=" for name in known[key])
            problems.append(f"{key}={_shown(value)}: its keys take a value each: {inner}")
        elif isinstance(value, dict) and isinstance(known[key], dict) and "_target_" not in value:
            problems += [unknown_key(f"{key}.{inner}", names) for inner in value if inner not in known[key]]
    return problems


def check(config: dict[str, Any], config_name: str, files: bool = True) -> list[str]:
    """Everything that is wrong with a resolved config, one line each."""
    problems = [line for path, node in nodes(config) for line in check_node(path, node)]
    problems += check_keys(config, config_name)
    problems += check_values(config) + check_names(config) + check_sizes(config)
    problems += check_start(config) if config_name == "train" else []
    if files and not config.get("estimate"):  # an estimate works out of what is there: it says itself what it needs
        problems += check_extras(config) + check_files(config, config_name)
    return problems
