"""Rows of a data set as JSON lines with an index, and what is wrong with a listing of them.

A row is a plain dictionary with at least `key` (unique) and `captions` (a list, maybe empty). A hundred thousand rows
are one block of bytes instead of a million Python objects, and on the disk cost no memory at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t2i.checkpoint.plain_files import read_pickle
from t2i.config.messages import quoted, shown

MAX_FAULTS = 3  # that a message shows
MAX_LINE = 400  # characters of one of them

Row = dict[str, Any]
Listing = tuple[list[Row], list[str]]  # rows, and faults


def encode_row(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


class JsonLines:
    """`lines[i] -> row`. `JsonLines.of(rows)` keeps them in memory, `JsonLines.open(path)` maps a file that `save`
    wrote."""

    def __init__(self, data: Any, ends: np.ndarray, path: Path | None = None) -> None:
        self.data, self.ends, self.path = data, ends, path

    @classmethod
    def of(cls, rows: Iterable[Row]) -> JsonLines:
        return cls._join(encode_row(row) for row in rows)

    @classmethod
    def _join(cls, lines: Iterable[bytes]) -> JsonLines:
        data, ends = bytearray(), []
        for line in lines:
            data += line
            ends.append(len(data))
        return cls(bytes(data), np.asarray(ends, np.int64))

    @classmethod
    def open(cls, path: Path) -> JsonLines:
        ends = np.load(path.with_suffix(".npy"))
        size, indexed = path.stat().st_size, int(ends[-1]) if len(ends) else 0
        if indexed != size:
            raise ValueError(f"{path} is damaged: {size} bytes, its index {path.stem}.npy says {indexed}")
        return cls(np.memmap(path, np.uint8, "r") if size else b"", ends, path)

    @staticmethod
    def index(path: Path) -> None:
        """Writes the index of a file of lines, `<stem>.npy` beside it."""
        with path.open("rb") as file:
            np.save(path.with_suffix(".npy"), np.cumsum([len(line) for line in file], dtype=np.int64))

    def _bytes(self, index: int) -> bytes:
        return bytes(self.data[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])])

    def only(self, keep: np.ndarray) -> JsonLines:
        """The rows where `keep` is true, in memory."""
        return self._join(self._bytes(int(index)) for index in np.flatnonzero(keep))

    def save(self, path: Path) -> None:
        path.write_bytes(bytes(self.data))
        np.save(path.with_suffix(".npy"), self.ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self.ends):
            raise IndexError(f"row {index} of {len(self.ends)}")
        return json.loads(self._bytes(index).decode("utf-8", "surrogatepass"))

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def __reduce__(self) -> Any:
        """For worker processes: a mapped file travels as its name."""
        return (JsonLines, (self.data, self.ends)) if self.path is None else (JsonLines.open, (self.path,))

    def hash(self) -> str:
        """Sixteen hex digits of all rows."""
        return hashlib.sha256(self.data).hexdigest()[:16]


def read_text(path: Path) -> str:
    """A file of UTF-8; bytes that are none become halves of characters (PEP 383), so that their line can be named."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16; UTF-8 is wanted")
    return data.decode("utf-8-sig", "surrogateescape")


def read_key_pickle(path: Path, faults: list[str]) -> list[str]:
    """The names in a `filenames.pickle`; what is none goes to `faults`."""
    keys = read_pickle(path)
    if not isinstance(keys, list | tuple) or not any(isinstance(key, str) for key in keys):
        raise ValueError(f"{path} holds a {type(keys).__name__} that is not a list of keys")
    faults += [f"{path} lists {quoted(key)}, which is no key" for key in keys if not isinstance(key, str)]
    return [key for key in keys if isinstance(key, str)]


def is_text(value: str) -> bool:
    """Whether a string is whole characters: none of the halves that JSON's \\ud800 or undecodable bytes leave."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: object) -> str:
    """A path or a fault as one line of bounded length; what is cut out of its middle is seldom what matters."""
    line, half = shown(text, 1_000_000), MAX_LINE // 2
    return line if len(line) <= MAX_LINE else f"{line[:half]}…{line[-half:]}"


def fault_lines(faults: Sequence[str], most: int | None = MAX_FAULTS) -> str:
    """The first faults, each on a line of its own, and how many more there are; None for all."""
    lines = [one_line(fault) for fault in faults[:most]]
    more = [f"and {len(faults) - len(lines)} more; prepare.py lists all"] if len(faults) > len(lines) else []
    return "".join(f"\n  {line}" for line in lines + more)


class ListingError(ValueError):
    """A listing that cannot be used: a headline, and all its faults, of which the message shows the first."""

    def __init__(self, headline: str, faults: Sequence[str] = ()) -> None:
        super().__init__(headline + fault_lines(faults))
        self.full_text = headline + fault_lines(faults, None)
