"""A folder of pictures of one's own, in the forms in which people keep them.

The first that is there counts:
- `metadata.jsonl`: one object a line with `file_name`, `text` (a caption or a list of them) and `split`;
- `metadata.csv`: columns `file_name`, `text` and, if wanted, `split` (the form of the Hugging Face imagefolder);
- pictures with a text file of the same stem beside them, or in a folder `text`, `texts` or `captions` beside their
  folder `images`, one caption a line;
- `captions.csv` or `captions.txt`: lines of a picture's name, a comma or tab, and a caption;
- pictures alone, which are enough for a tokenizer.
Pictures are looked for in all folders below. A picture that stands in several lines has their captions. `split` is
train, val or test (or training; valid, validation, dev; testing); test is left alone, and a line without one is
training data. Where nothing says a split, folders of these names do, with a metadata file in each or none. Where then
nothing is for validation, every twentieth picture is, by a hash of its name, and one of a few.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from t2i.checkpoint.registry import register
from t2i.data.faults import is_text, quoted
from t2i.data.images import SIDES, Files, Pictures, Split, found_files, is_picture, sided
from t2i.data.lines import Found, Row, read_text
from t2i.data.listing import cells, listed, side_stated

LISTS = ("metadata.jsonl", "metadata.csv")
CAPTIONS = ("captions.csv", "captions.txt")
TEXTS = ("text", "texts", "captions")  # folders beside `images`
LIKE_TEXT = (".txt", ".json", ".jsonl", ".csv", ".tsv", ".caption", ".xml", ".parquet")
LIKE_SPLIT = re.compile(r"(train|valid|val|test|dev|eval|hold-?out|held-?out)(ing|ation|uation|sets?|data|images|s)?")
FORMS = ("metadata.jsonl or metadata.csv (file_name, text, split), NAME.txt beside NAME.jpg or in text/ or captions/"
         " beside images/, captions.csv or captions.txt (name, comma or tab, caption)")


def text_beside(path: str, files: Files) -> str | None:
    """The text file that belongs to a picture."""
    stem, parts = PurePosixPath(path).with_suffix("").as_posix(), path.split("/")[:-1]
    stems = [stem]
    if at := next((i + 1 for i, part in enumerate(parts) if part.lower() == "images"), 0):
        stems += ["/".join([*parts[: at - 1], name, *stem.split("/")[at:]]) for name in TEXTS]
    names = (files.known(f"{each}{ending}") for each in stems for ending in (".txt", ".TXT"))
    return next((name for name in names if name is not None), None)


def read_captions(root: Path, path: Path, files: Files) -> tuple[dict[str, list[str]], list[str]]:
    """The captions of every picture that a captions.csv or .txt names, and its faults."""
    whole = read_text(path)
    if path.suffix == ".csv":
        rows = list(cells(whole, path))
        if rows and len(columns := rows[0][1]) > 2 and not is_picture(columns[0].strip()):
            raise ValueError(f"{path}, line 1: the columns are {quoted(', '.join(columns))}; wanted are a name and a"
                             " caption (more belong into a metadata.csv: file_name, text, split)")
    else:  # quotes are at home in captions, so that each line is taken by itself
        part = "\t" if "\t" in whole.partition("\n")[0] else ","
        texts = (line.rstrip("\r") for line in whole.split("\n"))
        rows = [(number, [*line.partition(part)[::2]]) for number, line in enumerate(texts, 1) if line.strip()]
    bases: dict[str, str | None] = {}
    for name in filter(is_picture, files):  # None where several pictures have the name
        base = name.rpartition("/")[2]
        bases[base] = None if base in bases else name
    captions: dict[str, list[str]] = {}
    faults = []
    for at, (number, row) in enumerate(rows):
        name, text = row[0].strip(), ",".join(row[1:]).strip()
        key = files.known(PurePosixPath(path.relative_to(root).parent, name).as_posix()) or bases.get(name)
        if key is not None and text and is_text(text):
            captions.setdefault(key, []).append(text[1:-1] if re.fullmatch(r'"[^"]*"', text) else text)
        elif key is not None or at or is_picture(name):  # the first line may say what the columns are
            why = f"no picture {quoted(name)}" if key is None else "not UTF-8" if text else f"no caption of {key}"
            faults.append(f"{path.relative_to(root)}, line {number}: {why}")
    if not captions:
        files.notes.append(f"{path} is not read: none of its lines is a picture's name, a comma or tab, and a caption")
        return {}, []
    return captions, faults


def gathered(root: Path, within: str, files: Files, without: Sequence[str] = ()) -> Found:
    """The pictures of a folder and all folders below but `without`, with the captions of text files."""
    start, faults = "" if within == "." else f"{within}/", list[str]()
    rows: list[Row] = []

    def order(path: str) -> tuple[str, str]:
        folder, _, name = path[len(start) :].rpartition("/")
        return folder or ".", name

    apart = tuple(f"{name}/" for name in without)
    mine = [path for path in files if path.startswith(start) and is_picture(path) and not path.startswith(apart)]
    for path in sorted(mine, key=order):
        text = text_beside(path, files)
        lines = read_text(root / text).split("\n") if text is not None else []
        captions = [line.strip() for line in lines if line.strip()]
        if all(map(is_text, captions)):
            rows.append({"key": path, "captions": captions, "bytes": files[path], "split": None})
        else:
            number = next(i for i, line in enumerate(lines, 1) if not is_text(line))
            faults.append(f"{root / str(text)}, line {number}: not UTF-8")
    faults += [why for path, why in files.gone.items() if path.startswith(start) and is_picture(path)]
    if not any(row["captions"] for row in rows):
        places = [f"{start}{name}" for name in CAPTIONS] + list(CAPTIONS)
        for place in dict.fromkeys(name for name in places if name in files):
            found, wrong = read_captions(root, root / place, files)
            rows = [{**row, "captions": found.get(row["key"], [])} for row in rows]
            if found:
                return rows, faults + wrong
    return rows, faults


def read_folder(root: Path, within: str = ".", files: Files | None = None) -> Found:
    """Rows and faults of a folder by whichever form is there."""
    files = found_files(root, deep=True) if files is None else files
    for name in LISTS:
        if (place := PurePosixPath(within, name).as_posix()) in files:
            return listed(root, root / place, within, files)
    return gathered(root, within, files)


def split_folder(path: str) -> str | None:
    """The outermost folder of a path that has the name of a split."""
    parts = path.split("/")[:-1]
    return next(("/".join(parts[: i + 1]) for i, part in enumerate(parts) if part.lower() in SIDES), None)


def side_of(folder: str) -> str:
    return SIDES[folder.rpartition("/")[2].lower()]


def read_splits(root: Path, files: Files) -> Found:
    """All rows of a root, each with a key `split`."""
    folders = sorted({folder for path in files if (folder := split_folder(path)) is not None})
    told = {side_of(folder) for folder in folders}
    faults: list[str] = []
    if any(name in files for name in LISTS):
        rows, faults = read_folder(root, ".", files)
        stated = any(row["split"] for row in rows)
    else:
        both = {"train", "val"} <= told
        own = {name for name in folders if any(f"{name}/{form}" in files for form in LISTS)}
        apart = [name for name in folders if both or name in own or side_of(name) == "val"]
        left = [name for name in folders if side_of(name) == "test"]
        rows, stated = [], False
        for name in apart:
            if name not in left:
                found, wrong = read_folder(root, name, files)
                stated = stated or (not both and any(row["split"] for row in found))
                rows, faults = rows + found, faults + wrong
        if not both:
            rest, wrong = gathered(root, ".", files, [*apart, *left])
            rows, faults = rows + rest, faults + wrong
        elif beside := [path for path in files if is_picture(path) and split_folder(path) is None]:
            files.notes.append(f"{len(beside)} pictures lie beside the folders {', '.join(folders)}, belong to no split"
                               f" and are left alone: {beside[0]} is the first")
        for name in left:
            number = sum(is_picture(path) and path.startswith(f"{name}/") for path in files)
            files.notes.append(f"{name}/ is left alone: {number} pictures")
    faults = list(dict.fromkeys(faults))
    if stated:
        for row in rows:
            row["split"] = side_stated(row)
        return rows, faults
    for row in rows:
        folder = split_folder(row["key"])
        row["split"] = side_of(folder) if folder else "train"
    like = {row["key"].split("/")[0] for row in rows if "/" in row["key"] and split_folder(row["key"]) is None}
    for name in sorted(like):
        if any(LIKE_SPLIT.fullmatch(word) for word in re.split(r"[^a-z-]+", name.lower())):
            files.notes.append(f"{name}/ looks like a split and is none: its pictures are training data like any other;"
                               f" folders of splits are called {', '.join(SIDES)}")
    if "val" not in {row["split"] for row in rows}:
        open_to = [row for row in rows if row["split"] == "train"]
        for row, side in zip(open_to, sided([row["key"] for row in open_to]), strict=True):
            row["split"] = side
    return rows, faults


def unread(files: Iterable[str]) -> str:
    """Which files of text lie in a folder that has no captions, for a message."""
    names = sorted(name for name in files if name.lower().endswith(LIKE_TEXT))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"captions are read from {FORMS}" + (f"; unread lie there {', '.join(names[:3])}{more}" if names else "")


@register("data", places=("root",))
class Folder(Pictures):
    """See the module. Args beside those of `Pictures`: root, the folder."""

    def __init__(self, split: Split, root: str, image_size: int = 64, load_size: int | None = None,
                 crop: Literal["center", "random"] = "center", flip: bool = False, views: int = 1, seed: int = 0,
                 on_error: Literal["raise", "skip"] = "raise", pack: bool = True) -> None:
        where = Path(root)
        if not where.is_dir():
            raise ValueError(f"data.root={root} is not a folder; it must hold pictures, best with a metadata.jsonl")
        files = found_files(where, deep=True)
        rows, faults = read_splits(where, files)
        present = sorted({row["split"] for row in rows})
        kept = [{key: value for key, value in row.items() if key != "split"} for row in rows if row["split"] == split]
        files.notes = list(dict.fromkeys(files.notes))
        has = f"; it has {', '.join(present) or 'no pictures at all'}" + "".join(f"; {note}" for note in files.notes)
        super().__init__(split, where, kept, faults, image_size, load_size, crop, flip, views, seed, on_error, pack,
                         has)
        self.notes = files.notes + [why for path, why in files.gone.items() if not is_picture(path)]
        self.bare = unread(files) if not any(row["captions"] for row in rows) else ""
