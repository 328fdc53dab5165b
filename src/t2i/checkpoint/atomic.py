"""Files that are written whole or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch


@contextmanager
def written_whole(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes `path`'s place once it is safely on the disk, or leaves no trace."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        kept = " The file that was there is untouched." if path.exists() else ""
        raise OSError(error.errno, f"{path} could not be written: {error.strerror or error}.{kept}") from error
    finally:
        if beside.exists():
            beside.unlink()


class _Sink(io.RawIOBase):
    """Passes bytes on and keeps the first OSError or interruption, which torch's zip writer would replace by its own
    words."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: BaseException | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        try:
            return self.file.write(data)
        except (OSError, SystemExit, KeyboardInterrupt) as error:
            self.error = self.error or error
            raise


def save_atomic(held: Any, path: str | Path) -> None:
    """Writes with torch.save, whole or not at all; an OSError names the path and leaves an earlier file as it was."""
    with written_whole(path) as file:
        sink = _Sink(file)
        try:
            torch.save(held, cast(BinaryIO, sink))  # of a file it needs `write` alone
        except RuntimeError as error:
            came: BaseException | None = sink.error or error.__context__
            while came is not None and not isinstance(came, OSError | SystemExit | KeyboardInterrupt):
                came = came.__context__
            if came is None:
                raise
            raise came from error


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    with written_whole(path) as file:
        file.write(text.encode("utf-8"))
