"""One process at a time writes a folder of results: a lock in it, which the system frees when its process ends."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from t2i.shown import shown


class Taken(ValueError):
    """Another process has the folder; `holder` is what it says of itself (pid, host, since, work), {} if nothing."""

    def __init__(self, folder: Path, holder: dict[str, Any]) -> None:
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}" if holder else "another process"
        super().__init__(f"out={shown(folder)} is being written by {who}: wait for it, or choose another with out=…")
        self.holder = holder


def _said(path: Path) -> dict[str, Any]:
    """What the holder of a lock wrote into it, which is a moment after it took it."""
    for _ in range(20):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, FileNotFoundError):
            time.sleep(0.05)
            continue
        return found if isinstance(found, dict) and {"pid", "host", "since", "work"} <= found.keys() else {}
    return {}


def _taken(path: Path) -> Any:
    """The open and locked file; Taken where another process has it."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise Taken(path.parent, _said(path)) from error
        except OSError as error:
            print(f"{shown(path)} cannot be locked ({error.strerror}): nothing keeps another process out of"
                  f" {shown(path.parent)}", file=sys.stderr)
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its holder ended, and took it away, between the two lines above


@contextmanager
def alone(folder: Path, name: str, work: str = "") -> Iterator[None]:
    """Inside, no other process is `alone` in `folder` under this `name`.

    `work`: what is done, for who comes meanwhile. Raises Taken, or OSError where nothing can be written there.
    """
    path = folder / f".{name}.lock"
    file = _taken(path)
    try:
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(),
                               "since": time.strftime("%Y-%m-%d %H:%M:%S"), "work": work}))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()
