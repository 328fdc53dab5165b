"""Disks that are full or read-only while a run trains: the cause is told with its path, what was saved stays, and when
there is room again the same command goes on to the end of an unbroken run.

A disk is a small tmpfs (mounting needs root; without it those cases are skipped in words). It fills, or turns
read-only, at an exact place of the program.
"""

from __future__ import annotations

import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from campaign import forked
from campaign.common import Outcome, Result
from campaign.forked import Ended, Moment
from campaign.kills import PLACES, SECONDS, Whole, differs, end_of, left_over
from campaign.made import make, words

GROUP = "disks, training"
REASONS = ("No space left", "Read-only", "File too large", "free there")


@contextmanager
def disk(folder: Path, size: str = "32m") -> Iterator[Path]:
    """A tmpfs of that size."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "campaign", str(folder)], check=True,
                   capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def mountable(folder: Path) -> str:
    """Why nothing can be mounted here; empty where it can."""
    try:
        with disk(folder):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        why = error.stderr.decode().strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
        return f"no tmpfs can be mounted here: {why}"


def fill(folder: Path, leave: int = 0) -> Callable[[], None]:
    """Writes a file until there is no room but `leave` bytes."""

    def act() -> None:
        with open(folder / "filler", "wb", buffering=0) as file:
            block = bytes(1 << 16)
            try:
                while file.write(block) == len(block):
                    pass
            except OSError:
                pass
            file.truncate(max(0, file.tell() - leave))

    return act


def frozen(folder: Path) -> Callable[[], None]:
    """Lays a read-only mount of the folder over it; remounting is refused while files are open. `umount` undoes it."""

    def act() -> None:
        forked.quietly(["mount", "--bind", str(folder), str(folder)])
        forked.quietly(["mount", "-o", "remount,bind,ro", str(folder)])

    return act


@dataclass(frozen=True)
class Case:
    """A disk under `what` (runs or cache) that fills (`full`, but for `leave` bytes) or is frozen at a place."""

    name: str
    model: str
    place: Moment | None  # None: from the start
    what: str = "runs"
    full: bool = True
    leave: int = 0
    more: tuple[str, ...] = ()


def cases(made: Path) -> Iterator[Case]:
    data = ("data=folder", f"data.root={made / 'pictures'}", "data.image_size=16", "data.batch_size=8")
    grids = ("callbacks.pictures={_target_: t2i.training.callbacks.image_grid.ImageGrid}", "logger=default")
    yield Case("full from the start", "vqgan", None)
    yield Case("full before the first checkpoint", "clip", PLACES["in a step"](1))
    yield Case("full, but for 4 kB, before the first checkpoint", "vqgan", PLACES["in a step"](1), leave=4096)
    yield Case("full before the third checkpoint", "prior", PLACES["in a step"](6))
    yield Case("full while a checkpoint is written", "dfgan", PLACES["while a checkpoint is written"](60))
    yield Case("full before best.ckpt", "vqgan", PLACES["after a validation, before its end"](1))
    yield Case("full at a row of metrics.csv", "clip", PLACES["in a row of metrics.csv"](3))
    yield Case("full at the last save", "vqgan", PLACES["at the end of training"](1))
    yield Case("full before it is called finished", "clip", PLACES["before it is called finished"](3))
    yield Case("full at a picture grid", "vqgan", Moment("save", "grids.py", 2), more=grids)
    yield Case("full before the CLIP is exported", "clip", Moment("export", "clip.py", 1))
    yield Case("full cache, codes", "prior", None, "cache")
    yield Case("full cache while codes are written", "prior", Moment("encode", "", 4), "cache")
    yield Case("full cache, pictures", "vqgan", None, "cache", more=data)
    yield Case("full cache while pictures are packed", "vqgan", Moment("dumps", "json/__init__.py", 9), "cache",
               more=data)
    yield Case("read-only from the start", "clip", None, full=False)
    yield Case("read-only before the second checkpoint", "vqgan", PLACES["in a step"](4), full=False)
    yield Case("read-only in a validation", "prior", PLACES["in a validation"](1), full=False)
    yield Case("read-only cache, codes", "prior", None, "cache", False)
    yield Case("read-only cache, pictures", "vqgan", None, "cache", False, more=data)


def told(ended: Ended, place: Path, past: bool) -> tuple[Outcome, str]:
    """Whether a full disk was told as it should be: the cause first, with its path, in a few lines; `past`: something
    was saved before, which must be said too."""
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    if ended.over:
        return "hung", f"more than {ended.seconds:.0f} s"
    if ended.traced:
        return "traceback", ended.last()
    if ended.code == 0:
        return "silent", "exit code 0"
    if ended.code != 2 or not lines:
        return "wrong", f"code {ended.code}: {ended.last()}"
    after = ended.err[ended.err.index(lines[0]) :]
    if len(after.strip().splitlines()) > 4:
        return "wrong", f"{len(after.splitlines())} lines: {lines[0][:200]}"
    if str(place) not in lines[0] or not any(reason in lines[0] for reason in REASONS):
        return "wrong", f"the first line names no path under {place.name}, or no cause: {lines[0][:300]}"
    if "crash.ckpt" in lines[0]:
        return "wrong", f"speaks of crash.ckpt first: {lines[0][:300]}"
    if past and not (re.search(r"last\.ckpt|step \d+", after) and re.search(r"same command|goes on|continue", after)):
        return "wrong", f"does not say which checkpoint is kept and that the same command goes on: {after[:300]}"
    return "right", ""


def one(case: Case, folder: Path, made: Path, whole: Whole) -> tuple[Outcome, str]:
    with disk(folder / "disk") as place:
        runs, cache = (place, None) if case.what == "runs" else (folder / "runs", place)
        line = words(case.model, made, runs, "name=x", *case.more, cache=cache)
        act = fill(place, case.leave) if case.full else frozen(place)
        if case.place is None:
            act()
        work = forked.command("train", line)
        at = None if case.place is None else (case.place, act)
        ended = forked.run(work, folder, SECONDS, at=at)
        saved = (runs / "x/last.ckpt").is_file() and case.what == "runs"
        if at is not None and not ended.reached:
            return "wrong", f"the moment did not come; code {ended.code}: {ended.last()}"
        found = told(ended, place, saved and not (runs / "x/finished.json").exists())
        if case.full:
            (place / "filler").unlink(missing_ok=True)
        else:
            forked.quietly(["umount", "-l", str(place)])
        again = forked.run(work, folder, SECONDS)
        if found[0] == "right" and again.code:
            return "wrong", f"with room again the same command ends with {again.code}: {again.last()}"
        if found[0] == "right" and (where := differs(whole(case.model, case.more)[0], end_of(runs / "x"))):
            return "silent", f"with room again another end: {where}"
        if found[0] == "right" and (left := [name for name in left_over(runs / "x", place) if name != "filler"]):
            return "wrong", f"left behind: {left}"
        return found


def limited(folder: Path, made: Path, whole: Whole, size: int) -> tuple[Outcome, str]:
    """A limit on the size of files, as a quota or an old file system has."""

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    work = forked.command("train", words("vqgan", made, folder / "runs", "name=x"))
    found = told(forked.run(work, folder, SECONDS, before=before), folder / "runs", False)
    if found[0] != "right":
        return found
    again = forked.run(work, folder, SECONDS)
    where = differs(whole("vqgan")[0], end_of(folder / "runs/x")) if again.code == 0 else f"code {again.code}"
    return ("silent", f"then another end: {where}") if where else ("right", "")


def linked(folder: Path, made: Path, name: str) -> tuple[Outcome, str]:
    """A file of the run that is /dev/full, which takes no byte."""
    (folder / "runs/x").mkdir(parents=True)
    (folder / f"runs/x/{name}").symlink_to("/dev/full")
    work = forked.command("train", words("clip", made, folder / "runs", "name=x"))
    ended = forked.run(work, folder, SECONDS)
    if ended.code == 0 and (folder / "runs/x/last.ckpt").is_file() and not (folder / f"runs/x/{name}").is_symlink():
        return "right", "replaced by a file of its own"
    return told(ended, folder / "runs", False)


def silenced(folder: Path, made: Path, stream: int) -> tuple[Outcome, str]:
    """Output that goes to a full disk: the training is worth more than what it prints, or one line says so."""

    def before() -> None:
        os.dup2(os.open("/dev/full", os.O_WRONLY), stream)

    work = forked.command("train", words("clip", made, folder / "runs", "name=x"))
    ended = forked.run(work, folder, SECONDS, before=before)
    if ended.traced:
        return "traceback", ended.last()
    if (folder / "runs/x/finished.json").is_file() or ended.code == 2:
        return "right", ""
    return "wrong", f"code {ended.code} and no end of the training: {ended.last()}"


def run(folder: Path, part: int = 0, parts: int = 1, every: int = 1) -> list[Result]:
    """Every case, or every `parts`-th from `part` on, of those one in `every`."""
    made = make(folder / "made")
    whole = Whole(folder / f"disks-{part}", made)
    without = mountable(folder / f"disks-{part}/try")
    listed: list[tuple[str, Callable[[Path], tuple[Outcome, str]]]] = [
        (f"{case.model}: {case.name}", lambda at, c=case: ("skipped", without) if without else one(c, at, made, whole))
        for case in cases(made)]
    listed += [(f"vqgan: no file larger than {size:,} bytes", lambda at, s=size: limited(at, made, whole, s))
               for size in (500, 20_000)]
    listed += [(f"clip: {name} is /dev/full", lambda at, n=name: linked(at, made, n))
               for name in ("metrics.csv", "command.txt")]
    listed += [(f"clip: {name} goes to /dev/full", lambda at, s=stream: silenced(at, made, s))
               for stream, name in ((1, "stdout"), (2, "stderr"))]
    found = []
    for k, (name, trial) in enumerate(listed):
        if k % parts == part and k // parts % every == 0:
            found.append(Result(name, GROUP, *trial(folder / f"disks-{part}/{k}")))
    return found
