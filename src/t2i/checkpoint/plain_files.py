"""JSON and pickles that others may have written or damaged, read as plain values; nothing in them is executed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from t2i.config.messages import shown

MAX_DEPTH = 64  # containers in containers


def read_json(path: Path) -> Any:
    """The value of a JSON file; ValueError where it cannot be read, or is nested too deeply to be gone through."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    return parse_json(data, path)


def parse_json(data: bytes, name: Any) -> Any:
    """As `read_json`, of a file's bytes; `name` is what messages call it."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else shown(error)
        raise ValueError(f"{name} cannot be read: {why}") from error
    level, depth = [found], 0
    while level:
        level = [item for each in level if isinstance(each, dict | list)
                 for item in (each.values() if isinstance(each, dict) else each)]
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(f"{name} cannot be read: it is nested too deeply")
    return found


def read_table(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """A JSON file that holds an object with at least these keys, each of its type; ValueError says what is wrong."""
    found = read_json(path)
    wrong = [key for key, kind in kinds.items() if not isinstance(found, dict) or not isinstance(found.get(key), kind)]
    if wrong or not isinstance(found, dict):
        raise ValueError(f"{path} lacks {', '.join(wrong) or 'a table'}, or holds something of another kind there")
    return found


class Refused(ValueError):
    """What a pickle asks for beside plain values."""


class PlainUnpickler(pickle.Unpickler):
    """Every way from a pickle to code leads through a name that it looks up or a persistent id: both refuse
    (https://docs.python.org/3/library/pickle.html#restricting-globals)."""

    def find_class(self, module: str, name: str) -> Any:
        raise Refused(f"it wants {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused(f"it wants the persistent id {str(pid)[:80]!r}")


def read_pickle(path: str | Path) -> Any:
    """The lists, tuples, dicts, strings and numbers of a metadata pickle; strings of Python 2 are read as Latin-1.

    ValueError names the file, and what it asks for, where it holds anything else, is damaged or is no pickle.
    """
    try:
        with Path(path).open("rb") as file:
            return PlainUnpickler(file, encoding="latin1").load()
    except Refused as error:
        raise ValueError(f"{path} is refused: {error}; only lists, tuples, dicts, strings and numbers are read from a"
                         " pickle, nothing in it is run") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # damaged pickles raise nearly every type there is
        raise ValueError(f"{path} is damaged or is no pickle: {type(error).__name__} ({error})") from error
