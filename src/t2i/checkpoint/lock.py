"""One process at a time writes a folder of results: a lock file, which the system frees when its process ends.

Record locks (`fcntl.lockf`), not those of `filelock` (`flock`): they end with the process even while workers that it
forked live on, and the file keeps what its last holder wrote.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from t2i.config.messages import shown

# What this process wrote into the locks that it holds, which the system would give it twice.
_held: dict[Path, dict[str, Any]] = {}


class LockTaken(ValueError):
    """Another process holds the lock; `holder` is what it wrote into it (pid, host, since, …), {} if nothing."""

    def __init__(self, message: Callable[[str], str], holder: dict[str, Any]) -> None:
        super().__init__(message("process {pid} on {host} since {since}".format(**holder) if holder else
                                 "another process"))
        self.holder = holder


def _read_holder(file: BinaryIO) -> dict[str, Any]:
    """What a holder wrote into its lock, which is a moment after it took it."""
    for _ in range(20):
        file.seek(0)
        try:
            found = json.loads(file.read())
        except ValueError:
            time.sleep(0.05)
            continue
        return found if isinstance(found, dict) and {"pid", "host", "since"} <= found.keys() else {}
    return {}


def _acquire(path: Path, message: Callable[[str], str]) -> BinaryIO:
    """The open and locked file."""
    if path in _held and _held[path]["pid"] == os.getpid():
        raise LockTaken(message, _held[path])
    while True:
        file = cast(BinaryIO, path.open("a+b", buffering=0))  # closing must not try to write again
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            with file:
                raise LockTaken(message, _read_holder(file)) from error
        except OSError as error:
            print(f"{shown(path)} cannot be locked ({error.strerror}): nothing keeps another process out of"
                  f" {shown(path.parent)}", file=sys.stderr)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its holder ended, and took it away, between the two lines above


@contextmanager
def locked(path: Path, message: Callable[[str], str], more: Mapping[str, Any],
           on_stale: Callable[[dict[str, Any]], None] | None = None) -> Iterator[None]:
    """Inside, no other process holds the lock file `path`.

    Args:
        message: of the error where one does, from its holder in words.
        more: what is written into it beside process, host and time.
        on_stale: is given what a holder wrote that never said that it ended, and may raise.

    Raises LockTaken, or OSError where nothing can be written there.
    """
    path = path.absolute()
    with _acquire(path, message) as file:
        if on_stale is not None and path.stat().st_size:
            on_stale(_read_holder(file))
        mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), **more}
        file.truncate(0)
        file.write(json.dumps(mine).encode())
        _held[path] = mine
        try:
            yield
        finally:
            del _held[path]
            with suppress(OSError):  # of a disk that turned read-only; the lock ends with the file all the same
                path.unlink()


@contextmanager
def exclusive(folder: Path, name: str, work: str = "") -> Iterator[None]:
    """Inside, no other process is `exclusive` in `folder` under this `name`; raises as `locked` does.

    `work`: what is done, for who comes meanwhile.
    """
    with locked(folder / f".{name}.lock", lambda holder: f"out={shown(folder)} is being written by {holder}: wait for"
                " it, or choose another with out=…", {"work": work}):
        yield
