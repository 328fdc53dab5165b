"""What a file from outside is, before it is read: web pages, pointers and cut off files under a model's name."""

from __future__ import annotations

import mmap
import re
import struct
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from t2i.config.messages import shown

BYTES = b"bytearray"  # torch lets a pickle make them; no checkpoint does


def is_safetensors(path: Path) -> bool:
    """By its content; a file that is named so and begins like one counts too, so that its damage is told."""
    with path.open("rb") as file:
        head = file.read(10)
    return head[8:] == b'{"' or (head[8:9] == b"{" and path.suffix == ".safetensors")


def check(path: Path) -> None:
    """ValueError says what a file is instead of a checkpoint, as far as its first bytes and its end tell."""
    if not path.is_file():
        what = ("is a folder, not a file" if path.is_dir() else "is no ordinary file" if path.exists() else
                "does not exist")
        others = ", ".join(sorted(p.name for p in path.parent.glob("*.ckpt"))[:8]) if path.parent.is_dir() else ""
        raise ValueError(f"the checkpoint {path} {what}" + (f"; beside it there is {others}" if others else ""))
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if size == 0:
        raise ValueError(f"{path} is empty")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise ValueError(f"{path} is a web page, not a checkpoint: the download gave an error page or a log-in form")
    if head.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not a checkpoint: fetch the file itself with git lfs pull")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off after {size:,} bytes: the end of the archive is missing")
    if not head.startswith((b"PK", b"\x80")) and not is_safetensors(path):
        raise ValueError(f"{path} is no checkpoint: it starts with {head[:16]!r}")
    if head.startswith(b"PK"):
        check_archive(path)
    elif head.startswith(b"\x80"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            if whole.find(BYTES) >= 0:
                raise ValueError(_makes_memory(path))


def _makes_memory(path: Path) -> str:
    return f"{path} is no checkpoint: reading it would need bytearray, which makes memory of any size out of nothing"


def check_archive(path: Path) -> None:
    """ValueError where a torch archive is not what its own directory says: sizes first, so that none unpacks to more
    than the file has, then the checksum of every record, which torch does not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename for record in records]
            if twice := next((name for name, times in Counter(names).items() if times > 1), None):
                raise ValueError(f"{path} is damaged or made up: it has two records of the name {shown(twice)}")
            unpacked, size = sum(record.file_size for record in records), path.stat().st_size
            packed = next((r.filename for r in records if r.compress_type != zipfile.ZIP_STORED), None)
            if packed is not None or unpacked > size:
                raise ValueError(f"{path} is no checkpoint: its {size:,} bytes unpack to {unpacked:,}"
                                 + (f" ({shown(packed)} is compressed, torch compresses nothing)" if packed else ""))
            for record in records:
                with archive.open(record) as opened:
                    try:
                        if record.filename.endswith("data.pkl") and BYTES in opened.read():
                            raise ValueError(_makes_memory(path))
                        while opened.read(1 << 20):
                            pass
                    except (zipfile.BadZipFile, EOFError) as error:
                        raise ValueError(f"{path} is damaged: the record {shown(record.filename)} does not have the"
                                         " checksum that was written with it") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError, struct.error, UnicodeError) as error:
        raise ValueError(f"{path} is damaged: its directory cannot be read ({shown(error)})") from error


def load(path: Path) -> Any:
    """The content of a torch file, without executing anything; ValueError says what it is instead.

    Checks every file that comes from outside: `read` is for checkpoints of ours, `t2i.convert.tensors` for others'.
    """
    check(path)
    if is_safetensors(path):
        raise ValueError(f"{path} is a safetensors file, not one that torch wrote")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols; what is unreadable raises
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise a dozen types on damaged files; all become one message
        raise ValueError(_why_unreadable(path, error)) from error
    if name := _without_numbers(held):
        raise ValueError(f"{path}: {shown(name)} has no numbers: it is a tensor of the meta device")
    return held


def _why_unreadable(path: Path, error: Exception) -> str:
    try:
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # the same dozen: then the file is damaged, or of the old format, whose error names the first
        foreign = re.findall(r"GLOBAL (\S+) was not an allowed global", str(error))
    if foreign:
        named = shown(", ".join(sorted(foreign)), 400)
        return f"{path} was written by another program: reading it would need {named}. Nothing in it was executed."
    first = (str(error).strip() or type(error).__name__).partition("\n")[0]
    return f"{path} cannot be read; it is damaged or no checkpoint ({shown(first)})"


def _without_numbers(held: Any) -> str | None:
    """The name of a tensor on the meta device, in the file's table or one in it; None where there is none."""
    tables = [held, *held.values()] if isinstance(held, dict) else []
    return next((str(name) for table in tables if isinstance(table, dict) for name, value in table.items()
                 if isinstance(value, torch.Tensor) and value.is_meta), None)
