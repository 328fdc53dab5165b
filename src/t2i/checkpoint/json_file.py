"""JSON that others may have written or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from t2i.config.messages import shown

DEEPEST = 64  # containers in containers


def parsed(text: str | bytes, source: Any) -> Any:
    """The value of a JSON text; ValueError names `source` where it is none, or nested too deeply to be gone through."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else shown(error)
        raise ValueError(f"{source} cannot be read: {why}") from error
    level, depth = [found], 0
    while level:
        level = [item for each in level if isinstance(each, dict | list)
                 for item in (each.values() if isinstance(each, dict) else each)]
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"{source} cannot be read: it is nested too deeply")
    return found


def read_json(path: Path) -> Any:
    """`parsed` of a file; ValueError where it cannot be read."""
    try:
        return parsed(path.read_bytes(), path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def read_table(path: Path, **kinds: type | tuple[type, ...]) -> dict[str, Any]:
    """A JSON file that holds a table with at least these keys, each of its kind; ValueError says what is wrong."""
    found = read_json(path)
    wrong = [key for key, kind in kinds.items() if not isinstance(found, dict) or not isinstance(found.get(key), kind)]
    if wrong or not isinstance(found, dict):
        raise ValueError(f"{path} lacks {', '.join(wrong) or 'a table'}, or holds something of another kind there")
    return found
