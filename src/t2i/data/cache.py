"""Folders that are made once, whole or not at all, and go on where they were interrupted.

What is being made lies in `<folder>.part` with a `plan.json`; the finished folder gets a `header.json` that says what
it was made from, and takes its name in one step. A folder with another header is refused with the difference, never
used and never overwritten. A lock beside it lets the first of several processes work and the others wait.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Header = dict[str, Any]
Progress = Callable[[int, int], None]  # is told how many of how many are done


def read_header(folder: Path) -> Header | None:
    try:
        found = json.loads((folder / "header.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a damaged header is one that does not fit
        return None
    return found if isinstance(found, dict) else None


def differences(found: Header, wanted: Header) -> list[str]:
    """What of `wanted` the header says otherwise, a line each; nested keys with dots."""
    lines = []
    for key, value in wanted.items():
        have = found.get(key)
        if isinstance(value, dict) and isinstance(have, dict):
            lines += [f"{key}.{line}" for line in differences(have, value)]
        elif have != value:
            lines.append(f"{key}: cache {have!r}, wanted {value!r}")
    return lines


def check_header(folder: Path, wanted: Header, what: str) -> Header | None:
    """The folder's header, None where there is no folder; ValueError if it was made from something else, or its header
    cannot be read."""
    if not folder.exists():
        return None
    found = read_header(folder)
    if found is None:
        raise ValueError(f"{folder} holds no whole {what} (its header.json is missing or damaged)."
                         " Delete it to make it anew.")
    if wrong := differences(found, wanted):
        raise ValueError(f"the {what} {folder} does not fit:\n  " + "\n  ".join(wrong)
                         + "\nIts source or its settings changed. Delete it to make it anew.")
    return found


def sync_files(folder: Path) -> None:
    """All files of a folder are on the disk before it gets its name."""
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())


def build(folder: Path, wanted: Header, fill: Callable[[Path], Header], what: str) -> Header:
    """Makes `folder` unless it is there and fits; returns its header.

    `fill(part)` writes the files into the part folder, where an interrupted call with the same `wanted` may have left
    some, and returns what the header says beside `wanted`.
    """
    part, plan = folder.with_name(f"{folder.name}.part"), json.dumps(wanted)
    try:
        if found := check_header(folder, wanted, what):
            return found
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if found := check_header(folder, wanted, what):  # another process was quicker
                return found
            path = part / "plan.json"
            if part.exists() and (not path.is_file() or path.read_text(encoding="utf-8") != plan):
                shutil.rmtree(part)  # begun for something else, or not begun
            part.mkdir(exist_ok=True)
            if not path.is_file():
                beside = part / "plan.json.tmp"
                beside.write_text(plan, encoding="utf-8")
                beside.rename(path)
            header = {**wanted, **fill(part)}
            (part / "header.json").write_text(json.dumps(header, indent=1), encoding="utf-8")
            path.unlink()
            sync_files(part)
            os.replace(part, folder)
            return header
    except OSError as error:
        kept = f" What is done is kept in {part}; the same command goes on." if part.exists() else ""
        raise ValueError(f"the {what} {folder} cannot be written: {error.strerror or error}.{kept}"
                         " paths.cache=… puts it elsewhere.") from error
