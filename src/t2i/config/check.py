"""What can be known to be wrong with a config before anything heavy is imported: all faults at once, by name.

Constructors are read with `ast`, never imported: each `_target_` is found as a file of this package, and its
arguments are held against the config's keys, required names and annotations.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from t2i.config.limits import BESIDE, FILES, GIVEN, VALUES
from t2i.config.messages import shown

SOURCE = Path(__file__).resolve().parents[2]


@dataclass
class Constructor:
    """What `ast` saw of a class or function: annotation (None for none) and whether it is required, by argument."""

    arguments: dict[str, tuple[ast.expr | None, bool]]
    open_ended: bool
    aliases: dict[str, ast.expr]


@cache
def _module(name: str) -> ast.Module | None:
    path = SOURCE.joinpath(*name.split(".")).with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else None


@cache
def constructor(target: str) -> Constructor | None:
    """The arguments of `t2i.….Name`; None when there is no such class or function."""
    module_name, _, name = target.rpartition(".")
    module = _module(module_name)
    if module is None:
        return None
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
                found = constructor(f"{module_name}.{ast.unparse(base)}")
                if found is not None:
                    return found
            return Constructor({}, True, aliases)
        if isinstance(node, ast.ImportFrom) and node.module and any((a.asname or a.name) == name for a in node.names):
            original = next(a.name for a in node.names if (a.asname or a.name) == name)
            return constructor(f"{node.module}.{original}")
    return None


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


def check_node(path: str, node: Mapping[str, Any], code_gives: tuple[str, ...] = ()) -> list[str]:
    """What is wrong with a node's arguments; those that `code_gives` need not be there."""
    target = node["_target_"]
    found = constructor(target) if isinstance(target, str) and target.startswith("t2i.") else None
    if found is None:
        return [f"{path}._target_={target!r}: there is no such class in src/t2i"]
    problems = []
    keys = {key: value for key, value in node.items() if key != "_target_" and key not in BESIDE.get(path, ())}
    for key, value in keys.items():
        if key not in found.arguments:
            if not found.open_ended:
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
    missing = [n for n, (_, required) in found.arguments.items() if required and n not in keys and n not in given]
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


def check_files(config: dict[str, Any]) -> list[str]:
    problems = []
    for path, what in FILES.items():
        present, value = at(config, path)
        if not present or not isinstance(value, str) or Path(value).expanduser().exists():
            continue
        others = sorted(str(p) for p in Path("runs").glob("**/*.ckpt")) if value.endswith(".ckpt") else []
        problems.append(f"{path}={value}: no such file or folder ({what} is wanted)"
                        + (near(value, others) or (f"; there is {', '.join(others[:6])}" if others else "")))
    return problems


def check(config: dict[str, Any], files: bool = True) -> list[str]:
    """Everything that is wrong with a resolved config, one line each."""
    problems = [line for path, node in nodes(config) for line in check_node(path, node)]
    problems += check_values(config) + check_names(config) + check_sizes(config)
    # An estimate works out of what is there: it says itself what it needs.
    return problems + (check_files(config) if files and not config.get("estimate") else [])
