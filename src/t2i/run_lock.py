"""A run's folder has one process at a time that trains in it, and nothing left of those that were killed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

_held: dict[Path, int] = {}  # locks that this process holds, which the system would give it twice


def _refused(folder: Path, who: dict[str, Any]) -> ValueError:
    named = f"process {who['pid']} on {who['host']} since {who['since']}" if who else "another process"
    return ValueError(f"{folder} is being trained by {named}: wait for it or stop it, or give this run a name of its"
                      " own (name=…)")


def unwritable(folder: Path, error: OSError) -> ValueError:
    why = str(error.strerror).rstrip(".")
    return ValueError(f"the run folder {folder} cannot be written: {why}. Choose another with paths.runs=…")


def _said(file: BinaryIO) -> dict[str, Any]:
    """What the holder wrote into a lock; {} if it wrote nothing yet."""
    file.seek(0)
    try:
        found = json.loads(file.read())
    except ValueError:
        return {}
    return found if isinstance(found, dict) and {"pid", "host", "since", "job"} <= found.keys() else {}


def _locked(path: Path, folder: Path) -> BinaryIO:
    while True:
        file = cast(BinaryIO, path.open("a+b", buffering=0))  # closing must not try to write again
        try:
            # A record lock: it ends with the process however that ends, and processes that it started do not share it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            with file:
                raise _refused(folder, _said(file)) from error
        except OSError as error:
            print(f"{path} cannot be locked ({error.strerror}): nothing keeps a second process out of {folder}")
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its holder ended, and took it away, between the two lines above


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process trains in `folder`; ValueError if one does, which it names.

    The lock lies beside the folder, so that a folder that is moved or copied takes none along. One of a process that
    was killed is free. One of another machine may not be seen by this one's system: it says what to delete, unless it
    is of the same job, which its scheduler started again elsewhere.
    """
    path = folder.resolve().with_name(f".{folder.name}.lock")
    if _held.get(path) == os.getpid():
        raise _refused(folder, {})
    mine = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "job": os.environ.get("SLURM_JOB_ID")}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path, folder)
    except OSError as error:
        raise unwritable(folder, error) from error
    try:
        who = _said(file)
        if who and who["host"] != mine["host"] and (who["job"] is None or who["job"] != mine["job"]):
            raise ValueError(f"{folder} was being trained by process {who['pid']} on {who['host']} since"
                             f" {who['since']}, and never said that it ended: if it is gone, delete {path}")
        try:
            file.truncate(0)
            file.write(json.dumps(mine).encode())
        except OSError as error:
            raise unwritable(folder, error) from error
        _held[path] = os.getpid()
        try:
            yield
        finally:
            del _held[path]
            with suppress(OSError):  # on a disk that went wrong, of which the caller tells; the next takes what is left
                path.unlink(missing_ok=True)
    finally:
        file.close()


def alive(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def tidy(folder: Path) -> None:
    """Takes away what killed processes left half written in a run's folder; to be called by who is alone in it.

    Checkpoints are written by the one that trains; other files may be an evaluation's that runs now.
    """
    for path in [p for place in (folder, folder / "grids", folder / "plots") for p in place.glob(".*")]:
        begun = re.fullmatch(r"\.(.+)\.(\d+)\.(tmp|part)", path.name)
        ours = path.name in (".previous.tmp", ".metrics.csv.part") or re.match(r"\.(hf|bilstm)\.", path.name)
        if ours or (begun and (begun[1].endswith(".ckpt") or not alive(int(begun[2])))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
