"""A run's folder has one process at a time that trains in it, and nothing left of those that were killed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from t2i.checkpoint.lock import locked


def unwritable(folder: Path, error: OSError) -> ValueError:
    why = str(error.strerror).rstrip(".")
    return ValueError(f"the run folder {folder} cannot be written: {why}. Choose another with paths.runs=…")


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process trains in `folder`; ValueError if one does, which it names.

    The lock lies beside the folder, so that a folder that is moved or copied takes none along. One of a process that
    was killed is free. One of another machine may not be seen by this one's system: it says what to delete, unless it
    is of the same job, which its scheduler started again elsewhere.
    """
    path, job = folder.resolve().with_name(f".{folder.name}.lock"), os.environ.get("SLURM_JOB_ID")

    def left(who: dict[str, Any]) -> None:
        if who and who["host"] != socket.gethostname() and (who.get("job") is None or who["job"] != job):
            raise ValueError(f"{folder} was being trained by process {who['pid']} on {who['host']} since"
                             f" {who['since']}, and never said that it ended: if it is gone, delete {path}")

    def busy(who: str) -> str:
        return (f"{folder} is being trained by {who}: wait for it or stop it, or give this run a name of its own"
                " (name=…)")

    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(path, busy, {"job": job}, left))
        except OSError as error:
            raise unwritable(folder, error) from error
        yield


def move_away(folder: Path) -> None:
    """Takes an earlier run, if one lies in `folder`, to a folder beside it."""
    if (folder / "config.json").is_file():
        old = folder.with_name(f"{folder.name}.old{int(time.time())}")
        folder.rename(old)
        print(f"The earlier run was moved to {old}")


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
