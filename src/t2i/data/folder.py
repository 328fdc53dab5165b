"""A folder of pictures of one's own, in the forms in which people keep them.

The first that is there counts:
- `metadata.jsonl`: one object a line with `file_name`, `text` (a caption or a list of them) and `split`;
- `metadata.csv`: columns `file_name`, `text` and, if wanted, `split` (the form of the Hugging Face imagefolder);
- pictures with a text file of the same stem beside them, one caption a line;
- pictures alone, which are enough for a tokenizer.
Pictures are then looked for in all folders below. `split` is train or val (validation is taken for val; test is left
alone; a line without one is training data). Where nothing says a split, the folders `train` and `val` (or
`validation`) do if they are there, with a metadata file in each or none, else every twentieth picture, by a hash of its
name, is for validation.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from t2i.data.lines import Row
from t2i.data.pictures import ENDINGS, Pictures, Split, found_files, sided
from t2i.register import register

REQUIRED = ("file_name", "text")
SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
Found = tuple[list[Row], list[str]]  # rows with a key `split` (or None in it), and faults


def read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason})") from error


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines(): a caption may hold U+2028
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error


def read_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    for item in reader:
        extra = item.pop(None, None)  # type: ignore[call-overload]
        if extra or None in item.values():
            raise ValueError(f"{path}, line {reader.line_num}: not as many cells as the first line has"
                             f" ({', '.join(reader.fieldnames or [])}); captions with commas stand in quotes")
        yield reader.line_num, {key: value for key, value in item.items() if key != "split" or value}


def faulty(item: Any) -> str:
    """What is wrong with a line's values, or an empty string."""
    missing = [key for key in REQUIRED if not isinstance(item, dict) or key not in item]
    if missing:
        return f"{' and '.join(missing)} missing; wanted are file_name, text, split"
    name, text = item["file_name"], item["text"]
    captions = [text] if isinstance(text, str) else text
    if not isinstance(name, str) or not name:
        return f"file_name is {name!r}; the name of a picture is wanted"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        return f"file_name is {name!r}; a name inside the folder is wanted"
    if not isinstance(captions, list) or not captions or not all(isinstance(c, str) and c.strip() for c in captions):
        return f"text is {text!r}; a caption or a list of captions is wanted, none of them empty"
    if item.get("split", "train") not in SPLITS:
        return f"split is {item['split']!r}; train or val is wanted (test is left alone)"
    return ""


def listed(root: Path, path: Path, within: str) -> Found:
    """The rows of a metadata file; `within` is the folder that names are relative to, seen from the root."""
    rows, faults, seen = [], [], set()
    files = {folder: found_files(root / folder) for folder in folders(root)} if root.is_dir() else {}
    for number, item in (read_jsonl if path.suffix == ".jsonl" else read_csv)(path):
        if fault := faulty(item):
            raise ValueError(f"{path}, line {number}: {fault}")
        key = PurePosixPath(within, item["file_name"])
        size = files.get(key.parent.as_posix(), {}).get(key.name)
        if size is None:
            faults.append(f"{path.name}, line {number}: {root / key} is not there")
        elif key in seen:
            faults.append(f"{path.name}, line {number}: {key} is listed twice")
        else:
            captions = [item["text"]] if isinstance(item["text"], str) else item["text"]
            rows.append({"key": key.as_posix(), "captions": captions, "bytes": size, "split": item.get("split")})
        seen.add(key)
    return rows, faults


def folders(root: Path) -> list[str]:
    """All folders below and the root itself, in order, seen from the root; hidden ones are left out."""
    found = [p.relative_to(root) for p in root.rglob("*") if p.is_dir()]
    return sorted([".", *(p.as_posix() for p in found if not any(part.startswith(".") for part in p.parts))])


def gathered(root: Path, within: str) -> Found:
    """The pictures of a folder and all folders below, with the captions of text files of the same stem."""
    rows: list[Row] = []
    for folder in folders(root / within):
        files = found_files(root / within / folder)
        for name in sorted(files):
            if not name.lower().endswith(ENDINGS) or name.startswith("."):
                continue
            text = PurePosixPath(name).with_suffix(".txt").name
            lines = read_text(root / within / folder / text).split("\n") if text in files else []
            captions = [line.strip() for line in lines if line.strip()]
            rows.append({"key": PurePosixPath(within, folder, name).as_posix(), "captions": captions,
                         "bytes": files[name], "split": None})
    return rows, []


def read_folder(root: Path, within: str = ".") -> Found:
    """Rows and faults of a folder by whichever form is there."""
    for name in ("metadata.jsonl", "metadata.csv"):
        if (root / within / name).is_file():
            return listed(root, root / within / name, within)
    return gathered(root, within)


@register("data", places=("root",))
class Folder(Pictures):
    """See the module. Args beside those of `Pictures`: root, the folder."""

    def __init__(self, split: Split, root: str, image_size: int = 64, load_size: int | None = None,
                 crop: Literal["center", "random"] = "center", flip: bool = False, views: int = 1, seed: int = 0,
                 on_error: Literal["raise", "skip"] = "raise", pack: bool = True) -> None:
        where = Path(root)
        if not where.is_dir():
            raise ValueError(f"data.root={root} is not a folder; it must hold pictures, best with a metadata.jsonl")
        at_top = any((where / name).is_file() for name in ("metadata.jsonl", "metadata.csv"))
        val = next((name for name in ("val", "validation") if (where / name).is_dir()), None)
        if not at_top and val is not None and (where / "train").is_dir():
            within = "train" if split == "train" else val
            rows, faults = read_folder(where, within)
            present = [within]
        else:
            every, faults = read_folder(where)
            stated = any(row["split"] for row in every)
            sides = [SPLITS[row["split"] or "train"] if stated else sided(row["key"]) for row in every]
            rows = [row for row, side in zip(every, sides, strict=True) if side == split]
            present = sorted(set(sides))
        if not rows and not faults:
            raise ValueError(f"{root} has no pictures for split={split!r};"
                             f" it has {', '.join(present) or 'no pictures at all'}")
        kept = [{key: value for key, value in row.items() if key != "split"} for row in rows]
        super().__init__(split, where, kept, faults, image_size, load_size, crop, flip, views, seed, on_error, pack)
