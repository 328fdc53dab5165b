"""Old metadata pickles, read without running anything in them: plain containers only, Python 2's among them.

A pickle is a program whose every way to code leads through a name that it looks up (`find_class`,
https://docs.python.org/3/library/pickle.html#restricting-globals) or through a persistent id: here both refuse.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any


class Refused(ValueError):
    """What a pickle asks for beside plain values."""


class PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise Refused(f"it wants {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise Refused(f"it wants the persistent id {str(pid)[:80]!r}")


def read_plain(path: str | Path) -> Any:
    """The lists, tuples, dicts, strings and numbers of a pickle; strings of Python 2 are read as Latin-1.

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
