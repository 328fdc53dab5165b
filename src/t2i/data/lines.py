"""Rows of a data set as JSON lines with an index: in memory while they are gathered, mapped once they lie on the disk.

A row is a plain dictionary with at least `key` (unique) and `captions` (a list, maybe empty). A hundred thousand rows
are one block of bytes instead of a million Python objects, and on the disk cost no memory at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
Found = tuple[list[Row], list[str]]  # rows of a listing, and its faults


def encoded(row: Row) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass") + b"\n"


class Lines:
    """`lines[i] -> row`. `Lines.of(rows)` keeps them in memory, `Lines.open(path)` maps a file that `save` wrote."""

    def __init__(self, data: Any, ends: np.ndarray, path: Path | None = None) -> None:
        self.data, self.ends, self.path = data, ends, path

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Lines:
        data, ends = bytearray(), []
        for row in rows:
            data += encoded(row)
            ends.append(len(data))
        return cls(bytes(data), np.asarray(ends, np.int64))

    @classmethod
    def open(cls, path: Path) -> Lines:
        ends = np.load(path.with_suffix(".npy"))
        size = path.stat().st_size
        if (int(ends[-1]) if len(ends) else 0) != size:
            raise ValueError(f"{path} is damaged: {size} bytes, its index {path.with_suffix('.npy').name} says"
                             f" {int(ends[-1]) if len(ends) else 0}")
        data = np.memmap(path, np.uint8, "r") if size else b""
        return cls(data, ends, path)

    @staticmethod
    def index(path: Path) -> None:
        """Writes the index of a file of lines, `<stem>.npy` beside it."""
        ends, at = [], 0
        with path.open("rb") as file:
            for line in file:
                at += len(line)
                ends.append(at)
        np.save(path.with_suffix(".npy"), np.asarray(ends, np.int64))

    def only(self, keep: np.ndarray) -> Lines:
        """The rows where `keep` is true, in memory."""
        starts = np.concatenate([[0], self.ends[:-1]]).astype(np.int64)
        found = [bytes(self.data[a:b]) for a, b in zip(starts[keep], self.ends[keep], strict=True)]
        return Lines(b"".join(found), np.cumsum([len(line) for line in found], dtype=np.int64))

    def save(self, path: Path) -> None:
        path.write_bytes(bytes(self.data))
        np.save(path.with_suffix(".npy"), self.ends)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> Row:
        if not 0 <= index < len(self.ends):
            raise IndexError(f"row {index} of {len(self.ends)}")
        start = int(self.ends[index - 1]) if index else 0
        return json.loads(bytes(self.data[start : int(self.ends[index])]).decode("utf-8", "surrogatepass"))

    def __iter__(self) -> Iterator[Row]:
        return (self[i] for i in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        """For worker processes: a mapped file travels as its name."""
        return {"path": self.path} if self.path is not None else {"data": self.data, "ends": self.ends, "path": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(Lines.open(state["path"]).__dict__ if state["path"] is not None else state)

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
