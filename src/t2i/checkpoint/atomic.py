"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from t2i.config.messages import shown


@contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write that takes `path`'s place once it is safely on the disk, or leaves no trace; an OSError names the
    path and leaves an earlier file as it was."""
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
        kept = " The file that was there is untouched." if path.is_file() else ""
        why = f"{shown(path, 1000)} could not be written: {error.strerror or error}.{kept}"
        raise OSError(error.errno, why) from error
    finally:
        if beside.exists():
            beside.unlink()


class _Sink(io.RawIOBase):
    """Passes bytes on and keeps the first OSError or interruption, which torch's zip writer replaces by its own."""

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


def save_atomic(content: Any, path: str | Path) -> None:
    """`torch.save` through `atomic_write`."""
    import torch

    with atomic_write(path) as file:
        sink = _Sink(file)
        try:
            torch.save(content, cast(BinaryIO, sink))  # of a file it needs `write` alone
        except RuntimeError as error:
            cause: BaseException | None = sink.error or error.__context__
            while cause is not None and not isinstance(cause, OSError | SystemExit | KeyboardInterrupt):
                cause = cause.__context__
            if cause is None:
                raise
            raise cause from error


def write_bytes(path: str | Path, content: bytes) -> Path:
    with atomic_write(path) as file:
        file.write(content)
    return Path(path)


def write_text(path: str | Path, text: str) -> None:
    """In UTF-8."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write into; at the end it takes the place of `folder`, which may be there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as room:
        new, old = Path(room) / "new", Path(room) / "old"
        new.mkdir()
        yield new
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(new, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
