"""A folder of pictures of one's own, in the forms in which people keep them.

The first that is there counts:
- `metadata.jsonl`: one object a line with `file_name`, `text` (a caption or a list of them) and `split`;
- `metadata.csv` or `.tsv`: columns `file_name`, `text` and, if wanted, `split` (as of an imagefolder);
- pictures with a text file of the same stem beside them, or in a folder `text`, `texts` or `captions` beside their
  folder `images`, one caption a line;
- `captions.csv`, `.tsv` or `.txt`: lines of a picture's name, a comma or tab, and a caption, or columns of usual names;
  `captions.json` or `annotations.json`: COCO's (`images` with id, file_name; `annotations` with image_id, caption). Any
  other name does where it is the one CSV, TSV or JSON of its folder;
- pictures alone, which are enough for a tokenizer.
Pictures are looked for in all folders below. A picture that stands in several lines has their captions. `split` is
train, val or test (or training; valid, validation, dev; testing); test is left alone, and a line without one is
training data. Where nothing says a split, folders of these names do, with a metadata file in each or none. Where then
nothing is for validation, every twentieth picture is, by a hash of its name, and one of a few.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from t2i.checkpoint.registry import register
from t2i.config.messages import quoted
from t2i.data.coco import read_annotations
from t2i.data.image_dataset import (
    CAPTION_NAMES,
    SPLIT_NAMES,
    Files,
    ImageDataset,
    Split,
    assign_splits,
    find_files,
    is_image,
)
from t2i.data.rows import Listing, Row, is_text, read_text

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.tsv")
CAPTIONS = ("captions.csv", "captions.tsv", "captions.txt", "captions.json", "annotations.json")
LISTS = (".csv", ".tsv", ".json")  # of captions under another name, where there is one
NAME_COLUMNS = ("file_name", "filename", "file", "image", "image_name", "image_path", "path", "name", "img")
TEXTS = ("text", "texts", "captions")  # folders beside `images`
LIKE_TEXT = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".caption", ".xml", ".parquet")
LIKE_SPLIT = re.compile(r"(train|valid|val|test|dev|eval|hold-?out|held-?out)(ing|ation|uation|sets?|data|images|s)?")
FORMS = ("metadata.jsonl, .csv or .tsv (file_name, text, split), NAME.txt beside NAME.jpg or in text/ or captions/"
         " beside images/, captions.csv, .tsv or .txt (name, comma or tab, caption), captions.json (COCO's)")
REQUIRED = ("file_name", "text")
NO_CAPTION = "a caption or a list of captions is wanted, none of them empty"


class Fault(ValueError):
    """What is wrong with a line of a list."""


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Number and value of each line, or the fault in it."""
    for number, line in enumerate(read_text(path).split("\n"), 1):  # not splitlines(): a caption may hold U+2028
        if not line.strip():
            continue
        try:
            yield number, json.loads(line) if is_text(line) else Fault("not UTF-8")
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            yield number, Fault(f"not JSON ({str(error).partition(';')[0]})")


def csv_lines(text: str, path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of the lines of a CSV or TSV; of a CSV the first comma, semicolon or tab parts cells."""
    parts = "\t" if path.suffix.lower() == ".tsv" else next((c for c in text if c in ",;\t"), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=parts)
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}") from error


def read_csv(path: Path) -> Iterator[tuple[int, Any]]:
    """As `read_jsonl`."""
    lines = csv_lines(read_text(path), path)
    columns = [name.strip() for name in next(lines, (0, []))[1]]
    if missing := [name for name in REQUIRED if name not in columns]:
        raise ValueError(f"{path}, line 1: no column {' and '.join(missing)} in {quoted(', '.join(columns))};"
                         " wanted are file_name, text, split")
    for number, row in lines:
        if len(row) != len(columns):
            yield number, Fault(f"not as many cells as the first line has ({', '.join(columns)}); captions with commas"
                                " stand in quotes")
        elif not all(map(is_text, row)):
            yield number, Fault("not UTF-8")
        else:
            yield number, {key: value for key, value in zip(columns, row, strict=True) if key != "split" or value}


def check_item(item: Any) -> tuple[str, list[str], str]:
    """Of a line's values the picture's name, the captions that can be used, and what is wrong, if anything."""
    if isinstance(item, Fault):
        return "", [], str(item)
    if missing := [key for key in REQUIRED if not isinstance(item, dict) or key not in item]:
        return "", [], f"{' and '.join(missing)} missing; wanted are file_name, text, split"
    name, text, split = item["file_name"], item["text"], item.get("split", "train")
    if not isinstance(name, str) or not name:
        return "", [], f"file_name is {quoted(name)}; the name of a picture is wanted"
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
        return "", [], f"file_name is {quoted(name)}; a name inside the folder is wanted"
    if not isinstance(split, str) or split.lower() not in SPLIT_NAMES:
        return "", [], f"split is {quoted(split)}; train or val is wanted (test is left alone)"
    captions = [text] if isinstance(text, str) else text
    if not isinstance(captions, list) or not captions:
        return name, [], f"text is {quoted(text)}; {NO_CAPTION}"
    good = [caption for caption in captions if isinstance(caption, str) and caption.strip() and is_text(caption)]
    if len(good) == len(captions):
        return name, good, ""
    if halves := [caption for caption in captions if isinstance(caption, str) and not is_text(caption)]:
        return name, good, f"text is {quoted(halves[0])}, which holds half a character"
    return name, good, f"text is {quoted(text)}; {NO_CAPTION}"


def read_metadata(root: Path, path: Path, folder: str, files: Files) -> Listing:
    """The rows of a metadata file; `folder`, seen from the root, is what names are relative to."""
    files.forms.append(path.relative_to(root).as_posix())
    rows: dict[str, Row] = {}
    lines: dict[str, int] = {}
    faults: list[str] = []
    named: set[str | None] = set()
    for number, item in (read_jsonl if path.suffix == ".jsonl" else read_csv)(path):
        where = f"{path.relative_to(root)}, line {number}"
        name, captions, fault = check_item(item)
        if fault:
            faults.append(f"{where}: {fault}")
        if not name:
            continue
        wanted = PurePosixPath(folder, name).as_posix()
        key = files.find(wanted)
        named.add(key)
        if key is None:
            faults.append(f"{where}: {files.missing(wanted)}")
        elif captions and key not in rows:
            rows[key] = {"key": key, "captions": captions, "bytes": files[key], "split": item.get("split")}
            lines[key] = number
        elif captions and (one := stated_split(rows[key])) != (other := stated_split(item)):
            faults.append(f"{where}: {key} is for {other} here, for {one} in line {lines[key]}")
        elif captions:
            rows[key]["captions"] += captions
    start = "" if folder == "." else f"{folder}/"
    if unnamed := [p for p in files if p.startswith(start) and is_image(p) and p not in named]:
        files.notes.append(f"{path} does not list {len(unnamed)} of the pictures, which are left alone: {unnamed[0]} is"
                           " the first")
    return list(rows.values()), faults


def stated_split(item: Row) -> str:
    return SPLIT_NAMES[(item.get("split") or "train").lower()]


def text_beside(path: str, files: Files) -> str | None:
    """The text file that belongs to a picture."""
    stem, parts = PurePosixPath(path).with_suffix("").as_posix(), path.split("/")[:-1]
    stems = [stem]
    if at := next((i + 1 for i, part in enumerate(parts) if part.lower() == "images"), 0):
        stems += ["/".join([*parts[: at - 1], name, *stem.split("/")[at:]]) for name in TEXTS]
    names = (files.known(f"{each}{ending}") for each in stems for ending in (".txt", ".TXT"))
    return next((name for name in names if name is not None), None)


def caption_columns(path: Path, first: Sequence[str]) -> tuple[int, int] | None:
    """Where the name and the caption stand, if the first line says it; ValueError where it must and does not."""
    lower = [name.strip().lower() for name in first]
    found = [next((lower.index(name) for name in usual if name in lower), -1)
             for usual in (NAME_COLUMNS, CAPTION_NAMES)]
    if min(found) >= 0:
        return found[0], found[1]
    if len(first) > 2 and not is_image(first[0].strip()):
        raise ValueError(f"{path}, line 1: the columns are {quoted(', '.join(first))}; wanted are a name and a caption"
                         f" ({NAME_COLUMNS[0]}, {CAPTION_NAMES[0]}), or two columns alone")
    return None


def caption_lines(path: Path) -> list[tuple[int, list[str]]]:
    """Number, and the picture's name and what else, of the lines of a list of captions."""
    content = read_text(path)
    if path.suffix.lower() == ".txt":  # quotes are at home in captions, so that each line is taken by itself
        separator = "\t" if "\t" in content.partition("\n")[0] else ","
        texts = (line.rstrip("\r") for line in content.split("\n"))
        return [(number, [*line.partition(separator)[::2]]) for number, line in enumerate(texts, 1) if line.strip()]
    rows = list(csv_lines(content, path))
    columns = caption_columns(path, rows[0][1]) if rows else None
    if columns is None or (columns == (0, 1) and len(rows[0][1]) == 2):  # then captions need no quotes for commas
        return rows
    (name, caption), cells = columns, len(rows[0][1])
    return [(number, [row[name] if name < len(row) else "", row[caption] if len(row) == cells else ""])
            for number, row in rows[1:]]


def coco_lines(path: Path, faults: list[str]) -> list[tuple[int, list[str]]]:
    """The same of COCO's annotations; the numbers count them."""
    images, annotations = read_annotations(path, faults)
    names = dict(images)
    return [(number, [names.get(identity, f"id {identity}"), text])
            for number, (identity, text) in enumerate(annotations, 1)]


def read_captions(root: Path, path: Path, files: Files) -> tuple[dict[str, list[str]], list[str]]:
    """The captions of every picture that a list of captions names, and its faults."""
    faults: list[str] = []
    coco = path.suffix.lower() == ".json"
    rows = coco_lines(path, faults) if coco else caption_lines(path)
    bases: dict[str, str | None] = {}
    for name in filter(is_image, files):  # None where several pictures have the name
        base = name.rpartition("/")[2]
        bases[base] = None if base in bases else name
    captions: dict[str, list[str]] = {}
    for at, (number, row) in enumerate(rows):
        name, text = row[0].strip(), ",".join(row[1:]).strip()
        key = files.known(PurePosixPath(path.relative_to(root).parent, name).as_posix()) or bases.get(name)
        if key is not None and text and is_text(text):
            captions.setdefault(key, []).append(text[1:-1] if re.fullmatch(r'"[^"]*"', text) else text)
        elif key is not None or at or coco or is_image(name):  # the first line may say what the columns are
            why = f"no picture {quoted(name)}" if key is None else "not UTF-8" if text else f"no caption of {key}"
            faults.append(f"{path.relative_to(root)}, {'annotation' if coco else 'line'} {number}: {why}")
    if not captions:
        files.notes.append(f"{path} is not read: none of its "
                           + ("annotations is a caption of a picture that is there" if coco else
                              "lines is a picture's name, a comma or tab, and a caption"))
        return {}, []
    return captions, faults


def lists_of_captions(folder: str, files: Files) -> list[str]:
    """The files that may hold the captions of a folder: those of known names in it and in the root, else the one CSV,
    TSV or JSON in either, if it is no picture's own."""
    start = "" if folder == "." else f"{folder}/"
    places = list(dict.fromkeys(f"{at}{name}" for at in (start, "") for name in CAPTIONS))
    if found := [name for name in places if name in files]:
        return found
    stems = {PurePosixPath(name).with_suffix("") for name in files if is_image(name)}
    for at in dict.fromkeys((start, "")):
        lists = [name for name in files if name.lower().endswith(LISTS) and name.startswith(at)
                 and "/" not in name[len(at) :] and PurePosixPath(name).with_suffix("") not in stems]
        if len(lists) == 1:
            return lists
        if lists:
            files.notes.append(f"{', '.join(sorted(lists)[:3])}: several lists, of which none is read; captions.csv (or"
                               " .tsv, .json) is what the right one is to be called")
    return []


def read_texts(root: Path, folder: str, files: Files, without: Sequence[str] = ()) -> Listing:
    """The pictures of a folder and all folders below but `without`, with the captions of text files."""
    start, faults = "" if folder == "." else f"{folder}/", list[str]()
    rows: list[Row] = []

    def order(path: str) -> tuple[str, str]:
        parent, _, name = path[len(start) :].rpartition("/")
        return parent or ".", name

    apart = tuple(f"{name}/" for name in without)
    mine = [path for path in files if path.startswith(start) and is_image(path) and not path.startswith(apart)]
    for path in sorted(mine, key=order):
        text = text_beside(path, files)
        lines = read_text(root / text).split("\n") if text is not None else []
        if number := next((i for i, line in enumerate(lines, 1) if not is_text(line)), 0):
            faults.append(f"{root / str(text)}, line {number}: not UTF-8")
        else:
            captions = [line.strip() for line in lines if line.strip()]
            rows.append({"key": path, "captions": captions, "bytes": files[path], "split": None})
    faults += [why for path, why in files.gone.items() if path.startswith(start) and is_image(path)]
    if any(row["captions"] for row in rows):
        files.forms.append("text files beside the pictures")
        return rows, faults
    for place in lists_of_captions(folder, files) if rows else []:
        try:
            found, wrong = read_captions(root, root / place, files)
        except ValueError as error:
            if PurePosixPath(place).name in CAPTIONS:
                raise
            files.notes.append(f"not read: {error}")  # it may be a list of something else
            continue
        rows = [{**row, "captions": found.get(row["key"], [])} for row in rows]
        if found:
            files.forms.append(place)
            return rows, faults + wrong
    return rows, faults


def read_folder(root: Path, folder: str = ".", files: Files | None = None) -> Listing:
    """Rows and faults of a folder by whichever form is there."""
    files = find_files(root, deep=True) if files is None else files
    for name in METADATA:
        if (place := PurePosixPath(folder, name).as_posix()) in files:
            return read_metadata(root, root / place, folder, files)
    return read_texts(root, folder, files)


def split_folder(path: str) -> str | None:
    """The outermost folder of a path that has the name of a split."""
    parts = path.split("/")[:-1]
    return next(("/".join(parts[: i + 1]) for i, part in enumerate(parts) if part.lower() in SPLIT_NAMES), None)


def split_of(folder: str) -> str:
    return SPLIT_NAMES[folder.rpartition("/")[2].lower()]


def read_splits(root: Path, files: Files) -> Listing:
    """All rows of a root, each with a key `split`."""
    folders = sorted({folder for path in files if (folder := split_folder(path)) is not None})
    both = {"train", "val"} <= {split_of(folder) for folder in folders}
    faults: list[str] = []
    if any(name in files for name in METADATA):
        rows, faults = read_folder(root, ".", files)
        stated = any(row["split"] for row in rows)
    else:
        own = {name for name in folders if any(f"{name}/{form}" in files for form in METADATA)}
        apart = [name for name in folders if both or name in own or split_of(name) == "val"]
        left = [name for name in folders if split_of(name) == "test"]
        rows, stated = [], False
        for name in apart:
            if name not in left:
                found, wrong = read_folder(root, name, files)
                stated = stated or (not both and any(row["split"] for row in found))
                rows, faults = rows + found, faults + wrong
        if not both:
            rest, wrong = read_texts(root, ".", files, [*apart, *left])
            rows, faults = rows + rest, faults + wrong
        elif beside := [path for path in files if is_image(path) and split_folder(path) is None]:
            files.notes.append(f"{len(beside)} pictures lie beside the folders {', '.join(folders)}, belong to no split"
                               f" and are left alone: {beside[0]} is the first")
        for name in left:
            number = sum(is_image(path) and path.startswith(f"{name}/") for path in files)
            files.notes.append(f"{name}/ is left alone: {number} pictures")
    faults = list(dict.fromkeys(faults))
    for row in rows:
        folder = split_folder(row["key"])
        row["split"] = stated_split(row) if stated else split_of(folder) if folder else "train"
    if stated:
        return rows, faults
    like = {row["key"].split("/")[0] for row in rows if "/" in row["key"] and split_folder(row["key"]) is None}
    for name in sorted(like):
        if any(LIKE_SPLIT.fullmatch(word) for word in re.split(r"[^a-z-]+", name.lower())):
            files.notes.append(f"{name}/ looks like a split and is none: its pictures are training data like any other;"
                               f" folders of splits are called {', '.join(SPLIT_NAMES)}")
    if "val" not in {row["split"] for row in rows}:
        training = [row for row in rows if row["split"] == "train"]
        for row, split in zip(training, assign_splits([row["key"] for row in training]), strict=True):
            row["split"] = split
    return rows, faults


def unread(files: Iterable[str]) -> str:
    """Which files of text lie in a folder that has no captions, for a message."""
    names = sorted(name for name in files if name.lower().endswith(LIKE_TEXT))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"captions are read from {FORMS}" + (f"; unread lie there {', '.join(names[:3])}{more}" if names else "")


@register("data", places=("root",))
class Folder(ImageDataset):
    """See the module. Args beside those of `ImageDataset`: root, the folder."""

    def __init__(self, split: Split, root: str, image_size: int = 64, load_size: int | None = None,
                 crop: Literal["center", "random"] = "center", flip: bool = False, views: int = 1, seed: int = 0,
                 on_error: Literal["raise", "skip"] = "raise", pack: bool = True) -> None:
        where = Path(root)
        if not where.is_dir():
            raise ValueError(f"data.root={root} is not a folder; it must hold pictures, best with a metadata.jsonl")
        files = find_files(where, deep=True)
        rows, faults = read_splits(where, files)
        present = sorted({row["split"] for row in rows})
        kept = [{key: value for key, value in row.items() if key != "split"} for row in rows if row["split"] == split]
        notes = list(dict.fromkeys(files.notes))
        has = f"; it has {', '.join(present) or 'no pictures at all'}" + "".join(f"; {note}" for note in notes)
        notes += [why for path, why in files.gone.items() if not is_image(path)]
        super().__init__(split, where, kept, faults, image_size, load_size, crop, flip, views, seed, on_error, pack,
                         has, notes, unread(files) if not any(row["captions"] for row in kept) else "")
        self.forms = list(dict.fromkeys(files.forms))

    def facts(self) -> dict[str, Any]:
        return {"captions from": ", ".join(self.forms) or "nothing: pictures alone"}
