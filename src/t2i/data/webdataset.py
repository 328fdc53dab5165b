"""WebDataset's tar shards, by an offset index: only headers and captions are read at the start, pictures by seeking.

The members of one sample share their path up to the first dot of the base name (https://github.com/webdataset/webdataset);
what comes after it says what they are: a picture, `.txt` with one caption a line, or `.json` with `text` or `caption`.
Unlike a stream, an index gives random access, so that order and resumption are exact.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from t2i.checkpoint.registry import register
from t2i.config.messages import quoted
from t2i.data.image_dataset import EXTENSIONS, ImageDataset, assign_splits, find_files, is_image, split_named
from t2i.data.rows import JsonLines, ListingError, Row, is_text, one_line

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")  # of the same
MEMBER = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)")
BLOCK = 512
Place = tuple[int, int]  # offset and size in bytes


@register("data", places=("root",))
class WebDataset(ImageDataset):
    """Captioned pictures in tar shards: `dataset[index, epoch] -> Example`, key `SHARD/SAMPLE`.

    A folder (train/, val/, valid/, validation/, dev/) or such a word in its name says a shard's split; one that says
    nothing is for training, and one for test is left alone. Where no shard is for validation every twentieth sample is,
    by a hash of its key, and one of a few.

    Args:
        root: a folder with *.tar in it or below, or one such file.
        Everything else: see `ImageDataset`.
    """

    def __init__(self, split: Literal["train", "val"], root: str, image_size: int = 256, load_size: int | None = None,
                 crop: Literal["center", "random"] = "center", flip: bool = False, views: int = 1, seed: int = 0,
                 on_error: Literal["raise", "skip"] = "raise", pack: bool = True) -> None:
        base = Path(root).expanduser()
        folder = base if base.is_dir() else base.parent
        faults: list[str] = []
        notes: list[str] = []
        splits = {name: split_named(name, "data.root", "shard") for name in find_shards(base, faults, notes)}
        stated = "val" in splits.values()
        mine = [name for name, of in splits.items() if of != "test" and (not stated or (of or "train") == split)]
        keys: list[str] = []
        others: set[str] = set()
        rows = JsonLines.of(row for name in mine for row in samples(folder, name, keys, others, faults))
        if not stated and keys:
            rows = rows.only(np.asarray(assign_splits(keys)) == split)
        self.shards = base.name if base.is_file() else "*"
        shown = [f"{name} ({of or 'train'})" for name, of in list(splits.items())[:3]]
        has = f"; the shards are {', '.join(shown)}" + (f" and {len(splits) - 3} more" if len(splits) > 3 else "")
        hint = "captions are read from KEY.txt and KEY.json (text, caption)" + (
            f"; unread lie there .{', .'.join(sorted(others)[:5])}" if others else "")
        super().__init__(split, folder, rows, faults, image_size, load_size, crop, flip, views, seed, on_error, pack,
                         has, notes, hint)

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"shards": self.shards}

    def path(self, row: Row) -> Path:
        return self.root / row["tar"]

    def name(self, row: Row) -> str:
        return one_line(f"{self.path(row)}, sample {row['key'].removeprefix(shard_key(row['tar']))}")

    def read(self, row: Row) -> bytes:
        try:
            with self.path(row).open("rb") as file:
                data = read_at(file, (row["offset"], row["bytes"]))
        except OSError as error:
            raise ValueError(f"{self.name(row)} cannot be read: {error.strerror}") from error
        if len(data) != row["bytes"]:
            raise ValueError(f"{self.name(row)} cannot be read: the shard is shorter than it was when it was listed")
        return data


def read_at(file: IO[bytes], place: Place) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


def shard_key(name: str) -> str:
    return name.removesuffix(".tar") + "/"


def find_shards(base: Path, faults: list[str], notes: list[str]) -> list[str]:
    """The tar files of a root, sorted, seen from it; ValueError where there are none, or compressed ones."""
    if not base.exists():
        raise ValueError(f"data.root={base}: there is no such folder or tar file")
    folder, names = base.parent, [base.name]
    if base.is_dir():
        files = find_files(base, deep=True)
        folder, names = base, sorted(files, key=lambda name: name.split("/"))
        for name, why in files.gone.items():
            (faults if name.endswith(".tar") else notes).append(why)
        notes += files.notes
    shards = [name for name in names if name.endswith(".tar")]
    for name in names:
        ending = next((ending for ending in COMPRESSED if name.endswith(ending)), None)
        if ending and name.removesuffix(ending) + ".tar" not in shards:
            raise ValueError(f"{folder / name} is compressed: pictures are read by their offsets, which needs a plain"
                             " .tar (gunzip, or its like, makes one)")
    if not shards:
        raise ListingError(f"data.root={base} " + ("has no *.tar in it" if base.is_dir() else "is no .tar"), faults)
    return shards


def samples(folder: Path, name: str, keys: list[str], others: set[str], faults: list[str]) -> Iterator[Row]:
    """The rows of one shard, without what is wrong with it, which goes to `faults`; their keys go to `keys`, endings of
    what is not read to `others`."""
    path = folder / name
    try:
        with path.open("rb") as file:
            if file.read(8).startswith(MAGIC):
                raise ValueError(f"{path} is compressed, whatever its name says: offsets need a plain tar (gunzip)")
            found = members(file, path, faults)
            for key, parts in found.items():
                pictures = [ending for ending in parts if f".{ending}" in EXTENSIONS]
                if len(pictures) != 1:
                    wrong = f"more than one picture: .{', .'.join(pictures)}" if pictures else "no picture"
                    has = "" if pictures else f", only .{', .'.join(parts)}"
                    if not pictures and any(is_image(f"_.{ending}") for ending in parts):
                        has += " (a sample's name ends at its first dot; give it another letter there)"
                    faults.append(f"{path}: sample {key} has {wrong}{has}")
                    continue
                try:
                    captions = captions_of(file, parts)
                except ValueError as error:
                    faults.append(f"{path}: {key}{error}")
                    continue
                others.update(set(parts) - {pictures[0], "txt", "json"})
                keys.append(shard_key(name) + key)
                offset, size = parts[pictures[0]]
                yield {"key": shard_key(name) + key, "captions": captions, "tar": name, "offset": offset,
                       "bytes": size}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from error


def members(file: IO[bytes], path: Path, faults: list[str]) -> dict[str, dict[str, Place]]:
    """Where each sample's members lie, by their lower-case ending. Of a shard that is cut off or damaged the last
    sample is left out: nobody knows what else belonged to it."""
    found: dict[str, dict[str, Place]] = {}
    total = file.seek(0, 2)
    file.seek(0)
    key, last, wrong = "", "nothing", ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                last = member.name
                if not member.isreg() or not (named := MEMBER.fullmatch(member.name)):
                    continue
                key, ending = named[1], named[2].lower()
                if member.size < 0 or member.offset_data + member.size > total:
                    wrong = (f"{last} is cut off: it would end at byte {member.offset_data + member.size}, the shard"
                             f" ends at byte {total}")
                    break
                parts = found.setdefault(key, {})
                if ending in parts:
                    faults.append(f"{path}: {last} is in it twice (the first is used)")
                else:
                    parts[ending] = member.offset_data, member.size
            if not wrong and (rest := read_at(file, (tar.offset, BLOCK))) != bytes(BLOCK):
                # tarfile takes both for the end of the archive
                wrong = f"its header after {last}, at byte {tar.offset}, is damaged" if len(rest) == BLOCK else \
                    f"it is cut off after {last}, at byte {total}"
    except (tarfile.TarError, ValueError, OverflowError, EOFError, RecursionError, MemoryError) as error:
        # numbers in damaged headers, long names without end
        if found or read_at(file, (257, 5)) == b"ustar":  # the mark of a header
            wrong = f"{error} after {last}, where the shard has {total} bytes"
        else:
            wrong = f"it is no tar file ({error})"
    if wrong:
        found.pop(key, None)
        faults.append(f"{path}: {wrong}; what comes before it is whole" if found else f"{path}: {wrong}")
    return found


def captions_of(file: IO[bytes], parts: dict[str, Place]) -> list[str]:
    """The captions of a sample, of its .txt before its .json; ValueError says what is wrong with which of them."""
    lines = []
    if "txt" in parts:
        try:
            lines = read_at(file, parts["txt"]).decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            raise ValueError(f".txt is not UTF-8 ({error.reason})") from error
    if "json" in parts:
        try:
            item = json.loads(read_at(file, parts["json"]))
        except (ValueError, RecursionError) as error:
            raise ValueError(f".json is not JSON ({str(error).partition(';')[0]})") from error
        if not isinstance(item, dict):
            raise ValueError(f".json is a {type(item).__name__}; an object with text or caption is wanted")
        text: Any = item.get("text") if item.get("text") is not None else item.get("caption", [])
        text = [text] if isinstance(text, str) else [] if text is None else text
        if not isinstance(text, list) or not all(isinstance(caption, str) and is_text(caption) for caption in text):
            raise ValueError(f".json: its caption is {quoted(text)}; a string or a list of strings is wanted")
        lines = lines if any(map(str.strip, lines)) else text
    return [line.strip() for line in lines if line.strip()]
