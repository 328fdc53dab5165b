"""What a file from outside is, before and after it is read: web pages, pointers and cut off files under a model's name,
and what a checkpoint holds beside plain values and ordinary tensors."""

from __future__ import annotations

import mmap
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from t2i.checkpoint.plain_files import MAX_DEPTH
from t2i.config.messages import quoted, shown

BYTES = b"bytearray"  # torch lets a pickle make them, of any size; no checkpoint does
MAX_VALUES = 100_000  # in a section, each counted as often as it is reached
MAX_TEXT = 256 * 2**20  # characters of a section: vocabularies are in it
PLAIN = (str, int, float, bool, type(None))


def is_safetensors(path: Path) -> bool:
    """By its content; a file that is named so and begins like one counts too, so that its damage is named."""
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
    fault = None
    if size == 0:
        fault = "is empty"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        fault = "is a web page, not a checkpoint: the download gave an error page or a log-in form"
    elif head.startswith(b"version https://git-lfs"):
        fault = "is a Git LFS pointer, not a checkpoint: fetch the file itself with git lfs pull"
    elif head.startswith(b"PK"):
        fault = _archive_fault(path, size)
    elif head.startswith(b"\x80"):
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            fault = _NO_BYTES if content.find(BYTES) >= 0 else None
    elif not is_safetensors(path):
        fault = f"is no checkpoint: it starts with {head[:16]!r}"
    if fault is not None:
        raise ValueError(f"{path} {fault}")


_NO_BYTES = "is no checkpoint: reading it would need bytearray, which makes memory of any size out of nothing"


def _archive_fault(path: Path, size: int) -> str | None:
    """Where a torch archive is not what its own directory says: sizes first, so that none unpacks to more than the file
    has, then the checksum of every record, which torch does not look at."""
    if not zipfile.is_zipfile(path):
        return f"is cut off after {size:,} bytes: the end of the archive is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            counts = Counter(record.filename for record in records)
            if twice := next((name for name, times in counts.items() if times > 1), None):
                return f"is damaged or made up: it has two records of the name {shown(twice)}"
            unpacked = sum(record.file_size for record in records)
            packed = next((r.filename for r in records if r.compress_type != zipfile.ZIP_STORED), None)
            if packed is not None or unpacked > size:
                return (f"is no checkpoint: its {size:,} bytes unpack to {unpacked:,}"
                        + (f" ({shown(packed)} is compressed, torch compresses nothing)" if packed else ""))
            for record in records:
                with archive.open(record) as opened:
                    try:
                        if record.filename.endswith("data.pkl") and BYTES in opened.read():
                            return _NO_BYTES
                        while opened.read(1 << 20):
                            pass
                    except (zipfile.BadZipFile, EOFError):
                        return (f"is damaged: the record {shown(record.filename)} does not have the checksum that was"
                                " written with it")
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OverflowError, struct.error, UnicodeError) as error:
        return f"is damaged: its directory cannot be read ({shown(error)})"
    return None


def load(path: Path) -> Any:
    """The content of a torch file, without executing anything; ValueError says what it is instead.

    Checks every file that comes from outside: `read` is for checkpoints of ours, `t2i.convert.tensors` for others'.
    """
    check(path)
    if is_safetensors(path):
        raise ValueError(f"{path} is a safetensors file, not one that torch wrote")
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickle protocols; what is unreadable raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch raise a dozen types on damaged files; all become one message
        raise ValueError(_why_unreadable(path, error)) from error
    for table in [content, *content.values()] if isinstance(content, dict) else []:
        for name, value in table.items() if isinstance(table, dict) else ():
            if isinstance(value, Tensor) and value.is_meta:
                raise ValueError(f"{path}: {shown(str(name))} has no numbers: it is a tensor of the meta device")
    return content


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


def plain(value: Any, where: str, source: Any) -> Any:
    """A copy of plain containers and values, without what they share; ValueError names the place of anything else, and
    what is nested too deeply or too much."""
    values = text = 0

    def copy(value: Any, where: str, depth: int) -> Any:
        nonlocal values, text
        values += 1
        if depth > MAX_DEPTH or values > MAX_VALUES or text > MAX_TEXT:
            raise ValueError(f"{source}: {shown(where)} is nested too deeply or too large; nothing of it was built")
        if isinstance(value, Mapping):
            if odd := [key for key in value if not isinstance(key, str | int)]:
                raise ValueError(f"{source}: {shown(where)} has a key of type {type(odd[0]).__name__}; text is wanted")
            return {str(key): copy(item, f"{where}.{key}", depth + 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [copy(item, f"{where}.{i}", depth + 1) for i, item in enumerate(value)]
        if type(value) not in PLAIN:
            raise ValueError(f"{source}: {shown(where)} is a {type(value).__name__}; a config holds plain values only")
        text += len(value) if isinstance(value, str) else 0
        return value

    return copy(value, where, 0)


def tensors(value: Any, where: str, source: Any) -> dict[str, Tensor]:
    """Names and ordinary tensors as a file has them; ValueError names what is no tensor, or not one that lies whole
    and in plain form in the file (sparse, quantised, without numbers, repeated out of fewer numbers)."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{source}: {where} is a {type(value).__name__}; names and tensors are wanted")
    for name, item in value.items():
        fault = None
        if not isinstance(name, str):
            fault = "is no name"
        elif not isinstance(item, Tensor):
            fault = f"is a {type(item).__name__}, not a tensor"
        elif type(item) not in (Tensor, nn.Parameter) or item.layout != torch.strided or item.is_quantized:
            fault = "is sparse, quantised or of another special kind; plain tensors are wanted"
        elif item.device.type != "cpu":
            fault = f"has no numbers (it lies on {item.device.type})"
        elif item.numel() * item.element_size() > item.untyped_storage().nbytes():
            fault = f"claims {item.numel():,} numbers, the file holds fewer"
        if fault is not None:
            raise ValueError(f"{source}: {where}.{shown(name) if isinstance(name, str) else quoted(name)} {fault}")
    return dict(value)
