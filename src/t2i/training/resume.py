"""A run's folder: who may train in it, from which checkpoint a run goes on, and what is taken away before it does.

One process trains in a folder at a time. The same command again goes on from `last.ckpt`, or is told that the run is
finished; another config is refused with the difference, once there is a checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pytorch_lightning.utilities.rank_zero import rank_zero_only

from t2i.checkpoint import atomic, file_format, renames
from t2i.checkpoint.lock import locked
from t2i.checkpoint.plain_files import read_table
from t2i.config import aliases
from t2i.config.compose import compared, difference, flat

# What says where a run lies, and what is written beside it; no weight hangs on it.
BESIDE = ("paths", "name", "group", "data.workers", "data.pack", "callbacks.health", "callbacks.pictures",
          "callbacks.plots", "callbacks.progress", "trainer.log_every_steps", "trainer.checkpoint_every_steps",
          "trainer.checkpoint_every_minutes", "trainer.monitor", "trainer.monitor_mode")


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


def _alive(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def tidy(folder: Path) -> None:
    """Takes away what killed processes left half written in a run's folder; to be called by who is alone in it.

    Checkpoints are written by the one that trains; other files may be an evaluation's that runs now.
    """
    for path in [p for place in (folder, folder / "grids", folder / "plots") for p in place.glob(".*")]:
        begun = re.fullmatch(r"\.(.+)\.(\d+)\.(tmp|part)", path.name)
        ours = path.name in (".previous.tmp", ".metrics.csv.part") or re.match(r"\.(hf|bilstm)\.", path.name)
        if ours or (begun and (begun[1].endswith(".ckpt") or not _alive(int(begun[2])))):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """What a run must share with its folder's, by dotted key; files are named from `paths.` on, wherever that is."""
    places = {name: str(place).rstrip("/") for name, place in config["paths"].items()}

    def placed(value: Any) -> Any:
        for name, place in places.items() if isinstance(value, str) else ():
            if place not in ("", ".") and (value == place or value.startswith(f"{place}/")):
                return f"<paths.{name}>{value[len(place):]}"
        return value

    return {key: placed(value) for key, value in flat(compared(config)).items()
            if not isinstance(value, dict) and not any(f"{key}.".startswith(f"{other}.") for other in BESIDE)}


def is_first() -> bool:
    """Whether this process is the only one, or the first of several."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def _say(text: str) -> None:
    if is_first():
        print(text)


def _read(path: Path, then: str, **kinds: Any) -> dict[str, Any]:
    try:
        return read_table(path, **kinds)
    except ValueError as error:
        why = str(error).removeprefix(f"{path} ")
        raise ValueError(f"{path} is damaged ({why}): delete it, and the run {then}") from error


def finished(run_dir: Path) -> dict[str, Any] | None:
    """What a run that came to its end returned; None for any other."""
    path = run_dir / "finished.json"
    there = path.is_file() and (run_dir / "last.ckpt").is_file()
    return _read(path, "goes on from its checkpoint", steps=int) if there else None


def move_away(folder: Path) -> None:
    """Takes an earlier run, if one lies in `folder`, to a folder beside it."""
    if (folder / "config.json").is_file():
        old = folder.with_name(f"{folder.name}.old{int(time.time())}")
        folder.rename(old)
        print(f"The earlier run was moved to {old}")


def has_checkpoint(run_dir: Path) -> bool:
    return any((run_dir / f"{name}.ckpt").is_file() for name in ("last", "previous", "best"))


def open_run(config: dict[str, Any], run_dir: Path) -> Path | None:
    """Makes or re-opens the run's folder and returns the checkpoint to continue from, if any.

    `resume`: auto continues where there is something to continue; must raises where there is not; never starts
    afresh in an emptied folder; anything else is the path of a checkpoint to begin from. A folder without a checkpoint
    takes any config.
    """
    resume, saved = config["resume"], run_dir / "config.json"
    if resume == "never" and is_first():  # of several processes one makes and moves folders
        move_away(run_dir)
    begun = has_checkpoint(run_dir)
    if begun and saved.is_file() and resume != "never":
        before = renames.current(_read(saved, "goes on under this command's settings", paths=dict))
        if removed := aliases.removed_in(before):
            raise ValueError(f"{run_dir} holds a run with options that were removed in this version"
                             f" ({', '.join(removed)}): name=NEW, resume=never, which moves it away, or the version"
                             " before")
        if differing := difference(decisive(before), decisive(config)):
            lines = "\n  ".join(differing)
            raise ValueError(f"{run_dir} holds a run with another config:\n  {lines}\n"
                             f"On from its checkpoint with these settings: name=NEW resume={run_dir / 'last.ckpt'};"
                             " from the start: name=NEW, or resume=never, which moves the earlier run away.")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if is_first():
            atomic.write_text(run_dir / "config.json", json.dumps(config, indent=1, ensure_ascii=False))
    except OSError as error:
        raise unwritable(run_dir, error) from error
    if resume == "never":
        return None
    given = None if resume in ("auto", "must") else Path(resume)
    if given is not None and (given.resolve().parent == run_dir.resolve() or not begun):
        return given
    damaged = []
    for path in (run_dir / "last.ckpt", run_dir / "previous.ckpt"):  # its own, also of a run that began from another's
        if path.is_file():
            try:
                file_format.read(path)
            except ValueError as error:
                damaged.append(f"{error}.")
                continue
            if damaged:
                _say(f"{damaged[0]} The checkpoint before it is taken.")
            return path
    if resume == "must":
        raise ValueError(" ".join([f"resume=must, but {run_dir} holds no readable checkpoint (last.ckpt,"
                                   " previous.ckpt).", *damaged]))
    if damaged:
        _say("\n".join([*damaged, f"No checkpoint in {run_dir} can be read: training starts "
                        + (f"from {given}." if given else "from the beginning (resume=must stops instead).")]))
    return given


def begin(run_dir: Path, resume: Path | None, command: str | None) -> None:
    """Takes away what an earlier life of the folder left that is no longer so; keeps the command of a run that
    begins."""
    try:
        tidy(run_dir)
        (run_dir / "finished.json").unlink(missing_ok=True)
        if resume == run_dir / "previous.ckpt" and (run_dir / "last.ckpt").is_file():
            (run_dir / "last.ckpt").replace(run_dir / "damaged.ckpt")  # else it replaces the whole one
        anew = resume is None or resume.resolve().parent != run_dir.resolve()
        if anew:
            (run_dir / "metrics.csv").unlink(missing_ok=True)
        if command is not None and (anew or not (run_dir / "command.txt").is_file()):
            atomic.write_text(run_dir / "command.txt", command + "\n")
    except OSError as error:
        raise unwritable(run_dir, error) from error
