"""One process at a time writes a folder of results: a lock file, which the system frees when its process ends."""

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


class Taken(ValueError):
    """Another process holds the lock; `holder` is what it says of itself (pid, host, since, …), {} if nothing."""

    def __init__(self, text: str, holder: dict[str, Any]) -> None:
        super().__init__(text)
        self.holder = holder


def _said(file: BinaryIO) -> dict[str, Any]:
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


def _words(who: Mapping[str, Any]) -> str:
    return f"process {who['pid']} on {who['host']} since {who['since']}" if who else "another process"


def _taken(path: Path, busy: Callable[[str], str]) -> BinaryIO:
    """The open and locked file; Taken where another process has it."""
    if path in _held and _held[path]["pid"] == os.getpid():
        raise Taken(busy(_words(_held[path])), _held[path])
    while True:
        file = cast(BinaryIO, path.open("a+b", buffering=0))  # closing must not try to write again
        try:
            # A record lock: it ends with the process however that ends, and processes that it started do not share it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            with file:
                who = _said(file)
            raise Taken(busy(_words(who)), who) from error
        except OSError as error:
            print(f"{shown(path)} cannot be locked ({error.strerror}): nothing keeps another process out of"
                  f" {shown(path.parent)}", file=sys.stderr)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its holder ended, and took it away, between the two lines above


@contextmanager
def locked(path: Path, busy: Callable[[str], str], more: Mapping[str, Any],
           left: Callable[[dict[str, Any]], None] | None = None) -> Iterator[None]:
    """Inside, no other process holds the lock file `path`.

    Args:
        busy: the message where one does, of its holder in words.
        more: what is written into it beside process, host and time.
        left: is asked about what a holder wrote that never said that it ended, and may raise.

    Raises Taken, or OSError where nothing can be written there.
    """
    path = path.absolute()
    file = _taken(path, busy)
    try:
        if left is not None and path.stat().st_size:
            left(_said(file))
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
    finally:
        file.close()


@contextmanager
def alone(folder: Path, name: str, work: str = "") -> Iterator[None]:
    """Inside, no other process is `alone` in `folder` under this `name`.

    `work`: what is done, for who comes meanwhile. Raises Taken, or OSError where nothing can be written there.
    """
    with locked(folder / f".{name}.lock", lambda who: f"out={shown(folder)} is being written by {who}: wait for it, or"
                " choose another with out=…", {"work": work}):
        yield
