"""The lists beside people's pictures, `metadata.jsonl` and `metadata.csv`: their rows, and every fault by its line."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from t2i.data.faults import is_text, quoted
from t2i.data.images import SIDES, Files, is_picture
from t2i.data.lines import Found, Row, read_text

REQUIRED = ("file_name", "text")
Line = tuple[int, Any]  # number, and what is said there or, as a string, what is wrong with it


def read_jsonl(path: Path) -> Iterator[Line]:
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines(): a caption may hold U+2028
        if not line.strip():
            continue
        if not is_text(line):
            yield number, "not UTF-8"
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            yield number, f"not JSON ({str(error).partition(';')[0]})"
        else:
            yield number, f"{' and '.join(REQUIRED)} missing" if isinstance(item, str) else item


def cells(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of the lines of a CSV; the first comma, semicolon or tab says which of them parts cells."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=next((c for c in text if c in ",;\t"), ","))
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def read_csv(path: Path) -> Iterator[Line]:
    lines = cells(read_text(path), path)
    columns = [name.strip() for name in next(lines, (0, []))[1]]
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ValueError(f"{path}, line 1: no column {' and '.join(missing)} in {quoted(', '.join(columns))};"
                         " wanted are file_name, text, split")
    for number, row in lines:
        if len(row) != len(columns):
            yield number, (f"not as many cells as the first line has ({', '.join(columns)}); captions with commas stand"
                           " in quotes")
        elif not all(map(is_text, row)):
            yield number, "not UTF-8"
        else:
            yield number, {key: value for key, value in zip(columns, row, strict=True) if key != "split" or value}


def looked_at(item: Any) -> tuple[str, list[str], str]:
    """Of a line's values the picture's name, the captions that can be used, and what is wrong, if anything."""
    missing = [key for key in REQUIRED if not isinstance(item, dict) or key not in item]
    if missing:
        return "", [], f"{' and '.join(missing)} missing; wanted are file_name, text, split"
    name, text, split = item["file_name"], item["text"], item.get("split", "train")
    if not isinstance(name, str) or not name:
        return "", [], f"file_name is {quoted(name)}; the name of a picture is wanted"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return "", [], f"file_name is {quoted(name)}; a name inside the folder is wanted"
    if not isinstance(split, str) or split.lower() not in SIDES:
        return "", [], f"split is {quoted(split)}; train or val is wanted (test is left alone)"
    captions = [text] if isinstance(text, str) else text
    if not isinstance(captions, list) or not captions:
        return name, [], f"text is {quoted(text)}; a caption or a list of captions is wanted, none of them empty"
    good = [caption for caption in captions if isinstance(caption, str) and caption.strip() and is_text(caption)]
    if len(good) == len(captions):
        return name, good, ""
    if halves := [caption for caption in captions if isinstance(caption, str) and not is_text(caption)]:
        return name, good, f"text is {quoted(halves[0])}, which holds half a character"
    return name, good, f"text is {quoted(text)}; a caption or a list of captions is wanted, none of them empty"


def listed(root: Path, path: Path, within: str, files: Files) -> Found:
    """The rows of a metadata file; `within` is the folder that names are relative to, seen from the root."""
    rows: dict[str, Row] = {}
    lines: dict[str, int] = {}
    faults, named = [], set()
    for number, item in (read_jsonl if path.suffix == ".jsonl" else read_csv)(path):
        where = f"{path.relative_to(root)}, line {number}"
        name, captions, fault = ("", [], item) if isinstance(item, str) else looked_at(item)
        if fault:
            faults.append(f"{where}: {fault}")
        if not name:
            continue
        wanted = PurePosixPath(within, name).as_posix()
        key = files.find(wanted)
        named.add(key)
        if key is None:
            faults.append(f"{where}: {files.missing(wanted)}")
        elif not captions:
            pass
        elif key not in rows:
            rows[key] = {"key": key, "captions": captions, "bytes": files[key], "split": item.get("split")}
            lines[key] = number
        elif (one := side_stated(rows[key])) != (other := side_stated(item)):
            faults.append(f"{where}: {key} is for {other} here, for {one} in line {lines[key]}")
        else:
            rows[key]["captions"] += captions
    start = "" if within == "." else f"{within}/"
    if unnamed := [p for p in files if p.startswith(start) and is_picture(p) and p not in named]:
        files.notes.append(f"{path} does not list {len(unnamed)} of the pictures, which are left alone: {unnamed[0]} is"
                           " the first")
    return list(rows.values()), faults


def side_stated(item: Row) -> str:
    return SIDES[(item.get("split") or "train").lower()]
