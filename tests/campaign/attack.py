"""One hostile or damaged file, and the tools that such files are made with: trees, pickles and zip archives by hand."""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch

from campaign import forked

Line = tuple[str, list[str]]  # a door and its words
Expect = Literal["refused", "works", "either"]


@dataclass(frozen=True)
class Attack:
    """`write` lays the files into a folder and returns the command; `names`: what a refusal must name, one of them.

    Expected is that it is refused by one line, that it works, or either of the two (a file whose strange place nothing
    reads; a report on a hostile file): never that anything in it is run.
    """

    name: str
    write: Callable[[Path], Line]
    expect: Expect = "refused"
    names: tuple[str, ...] = ("evil",)
    lines: int = 1


def through(door: str, path: Path, made: Path) -> Line:
    """The command that hands a file to a door."""
    runs, folder = made / "runs", path.parent
    if door == "sample":
        return "sample", [f"ckpt={path}", "prompt=a red circle", "n=1", f"out={folder / 'drawn'}"]
    if door == "nearest":
        return "sample", [f"ckpt={path}", "prompt=a red circle", "n=1", f"out={folder / 'drawn'}", "nearest=true"]
    if door in ("evaluate", "evaluate vqgan"):
        metric = "reconstruction" if "vqgan" in door else "composition"
        return "evaluate", [f"ckpt={path}", "n_per_task=2", f"out={folder / 'scores'}", f"metrics=[{metric}]",
                            f"paths.cache={folder / 'cache'}"]
    if door == "compare":
        beside = folder / "evil_run"
        beside.mkdir()
        (beside / "config.json").write_bytes((runs / "prior/config.json").read_bytes())
        path.rename(beside / "last.ckpt")
        return "compare", [str(beside), str(runs / "vqgan"), f"out={folder / 'page'}", "n=1"]
    if door in ("inspect", "convert", "export", "reconstruct"):
        more = {"inspect": [], "convert": [str(folder / "out.safetensors")], "export": [str(folder / "out")],
                "reconstruct": [str(picture(folder)), str(folder / "out.png")]}[door]
        return "t2i", [door, str(path), *more]
    from campaign.made import words

    if door == "resume":
        return "train", words("vqgan", made, folder / "runs", "name=x", f"resume={path}")
    if door == "tokenizer":
        return "train", words("prior", made, folder / "runs", "name=x", f"model.tokenizer.path={path}")
    if door == "encoder":
        return "train", words("dfgan", made, folder / "runs", "name=x", f"text_encoder.path={path}")
    assert door == "stage1", door
    return "train", ["model=stackgan2", f"model.stage1.path={path}", "data.image_size=64", f"paths.runs={folder / 'r'}",
                     f"paths.cache={folder / 'cache'}", "name=x", "trainer=cpu", "trainer.max_steps=1"]


def picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "in.png"
    Image.new("RGB", (16, 16), "red").save(path)
    return path


def file(name: str, door: str, made: Path, write: Callable[[Path], None], expect: Expect = "refused",
         suffix: str = ".ckpt") -> Attack:
    """An attack that is one file, `evil.ckpt`, handed to a door."""

    def lay(folder: Path) -> Line:
        path = folder / f"evil{suffix}"
        write(path)
        return through(door, path, made)

    return Attack(f"{door}: {name}", lay, "either" if door == "inspect" and expect == "refused" else expect)


@cache
def held(made: Path, model: str) -> dict[str, Any]:
    return torch.load(made / f"runs/{model}/last.ckpt", map_location="cpu", weights_only=True)


def tree(value: Any) -> Any:
    """The containers anew, the tensors as they are."""
    if isinstance(value, dict):
        return {key: tree(item) for key, item in value.items()}
    return [tree(item) for item in value] if isinstance(value, list) else value


def changed(content: dict[str, Any], place: Sequence[Any], value: Any) -> dict[str, Any]:
    """A copy with another value at a place; `DELETE` takes it away."""
    made = tree(content)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    if value is DELETE:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return made


DELETE = object()


def spoilt(made: Path, model: str, place: Sequence[Any], value: Any) -> Callable[[Path], None]:
    """Writes a tiny model's checkpoint with another value at a place; nothing is read before it is called."""
    return lambda path: save(changed(held(made, model), place, value), path)


class Raw:
    """What becomes `opcodes` of a pickle where it stands in a dictionary that is saved."""

    MARK = "@@RAW@@"

    def __init__(self, opcodes: bytes) -> None:
        self.opcodes = opcodes


def save(content: Any, path: Path, opcodes: bytes | None = None, **how: Any) -> None:
    """torch.save; each `Raw.MARK` in it gives way to `opcodes`."""
    torch.save(content, path, **how)
    if opcodes is not None:
        mark = Raw.MARK.encode()
        entries = unzipped(path)
        for entry in entries:
            if entry.name.endswith("data.pkl"):
                wanted = b"X" + struct.pack("<I", len(mark)) + mark
                assert wanted in entry.data
                entry.data = entry.data.replace(wanted, opcodes)
        zipped(path, entries)


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.call = function, given

    def __reduce__(self) -> Any:
        return self.call


def called(module: str, name: str, *given: Any) -> bytes:
    """Opcodes of a call, whether the function exists or not."""
    arguments = pickle.dumps(given, 2)[2:-1]
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n" + arguments + b"R"


@dataclass
class Entry:
    """A member of a zip archive, as it is said to be: `data` as stored, and what its headers claim."""

    name: str
    data: bytes
    method: int = 0
    crc: int | None = None
    size: int | None = None
    flags: int = 0
    at: int | None = None  # offset that the directory claims; None: where it lies

    def header(self) -> tuple[int, int, int]:
        crc = zlib.crc32(self.data) if self.crc is None else self.crc
        return crc, len(self.data), len(self.data) if self.size is None else self.size


def unzipped(path: Path) -> list[Entry]:
    with zipfile.ZipFile(path) as archive:
        return [Entry(info.filename, archive.read(info)) for info in archive.infolist()]


def zipped(path: Path, entries: Sequence[Entry], before: bytes = b"") -> None:
    """A zip archive to the letter, lies included; entries are aligned to 64 bytes, as torch's are."""
    out, directory = bytearray(before), bytearray()
    for entry in entries:
        crc, stored, size = entry.header()
        name = entry.name.encode()
        fill = -(len(out) + 30 + len(name)) % 64
        fill += 64 if fill < 4 else 0
        extra = b"FB" + struct.pack("<H", fill - 4) + b"Z" * (fill - 4)
        common = struct.pack("<HHHHIIIHH", entry.flags, entry.method, 0, 0, crc, stored, size, len(name), len(extra))
        at = len(out) if entry.at is None else entry.at
        out += b"PK\x03\x04" + struct.pack("<H", 20) + common + name + extra + entry.data
        directory += b"PK\x01\x02" + struct.pack("<HH", 20, 20) + common[:-2]
        directory += struct.pack("<HHHHII", 0, 0, 0, 0, 0, at) + name
    start = len(out)
    out += directory
    out += b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, len(entries), len(entries), len(directory), start, 0)
    path.write_bytes(out)


@cache
def zeros(size: int) -> tuple[bytes, int]:
    """That many zero bytes deflated, and their checksum; a bomb is built of one flushed block, not of its zeros."""
    block, squeezer = 1 << 20, zlib.compressobj(9, zlib.DEFLATED, -15)
    first = squeezer.compress(bytes(block)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    crc, zero = 0, bytes(block)
    for _ in range(size // block):
        crc = zlib.crc32(zero, crc)
    return first * (size // block) + b"\x03\x00", crc


def outcome(attack: Attack, folder: Path, made: Path) -> Any:
    """Runs one attack; returns (outcome, detail)."""
    folder.mkdir(parents=True)
    door, given = attack.write(folder)
    ended = forked.run(forked.command(door, given), folder, 10, forked.MEMORY, guarded=True,
                       allowed=[made / "cache"], environment={"HTTPS_PROXY": "http://127.0.0.1:9"})
    found = forked.refusal(ended, attack.names, attack.lines)
    if found[0] == "silent" and door == "compare" and "evil_run made no pictures: " in ended.out:
        found = ("wrong", "control characters reach the terminal") if forked.controls(ended.out) else ("right", "told")
    if attack.expect == "refused":
        return found
    if ended.code == 0 and not ended.events and not ended.over and not ended.traced:
        if forked.controls(ended.out + ended.err):
            return "wrong", "control characters reach the terminal"
        return "right", "works"
    return ("wrong", f"refused: {found[1]}") if attack.expect == "works" and found[0] == "right" else found

