"""Listings, captions, splits and shards as people have them, and worse, each with what is right to say of it."""

from __future__ import annotations

import csv
import json
import os
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign.data_cases import Case, encoded, put
from campaign.layout_cases import others, shards


def line(name: str, text: Any = "a thing", split: Any = "train", **more: Any) -> str:
    return json.dumps({"file_name": name, "text": text, "split": split, **more}, ensure_ascii=False)


GOOD = [line(f"{i}.png", f"number {i}", "train" if i < 4 else "val") for i in range(5)]


def flat(root: Path, count: int = 5, start: str = "") -> None:
    for i in range(count):
        put(root / f"{start}{i}.png", encoded(seed=i))


def jsonl(*lines: str | bytes, files: tuple[str, ...] = ("x.png",)) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        flat(root)
        for name in files:
            put(root / name, encoded(seed=50))
        put(
            root / "metadata.jsonl",
            b"\n".join(one if isinstance(one, bytes) else one.encode("utf-8", "surrogatepass") for one in lines),
        )

    return build


def texts(given: dict[str, str | bytes], count: int = 5, start: str = "") -> Callable[[Path], None]:
    def build(root: Path) -> None:
        flat(root, count, start)
        for name, text in given.items():
            put(root / name, text)

    return build


def fault(name: str, item: str | bytes, says: str, skips: tuple[int, int] = (4, 1), **more: Any) -> Case:
    """One line among good ones is at fault: it is named with its number, and left out."""
    return Case(name, jsonl(*GOOD, item, **more), None, rf"metadata\.jsonl, line 6: {says}", skips)


def folders(*names: str, lists: bool = False) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for at, name in enumerate(names):
            for i in range(3):
                put(root / name / f"{i}.png", encoded(seed=10 * at + i))
            if lists:
                put(
                    root / name / "metadata.jsonl",
                    "\n".join(json.dumps({"file_name": f"{i}.png", "text": f"n {i}"}) for i in range(3)),
                )

    return build


def metadata_lines() -> Iterator[Case]:
    wrong = [line(f"gone{i}.png") for i in range(9)]
    yield Case(
        "all names wrong",
        jsonl(*wrong),
        None,
        r"no pictures for split='train'; 9 faults in the listing:\nmetadata\.jsonl, line 1: .*gone0\.png is not there"
        r"\n.*line 2.*\n.*line 3.*\nand 6 more",
    )
    yield Case(
        "some names wrong", jsonl(*GOOD, *wrong[:2]), None, r"2 faults .*\n.*line 6: .*gone0\.png is not there", (4, 1)
    )
    for name, listed, lies in (("composed in the list", "NFC", "NFD"), ("decomposed in the list", "NFD", "NFC")):
        names = [unicodedata.normalize(form, "caf\u00e9/\u00fcber.png") for form in (listed, lies)]
        yield Case(f"names {name}", jsonl(*GOOD, line(names[0]), files=(names[1],)), (5, 1))
    yield Case("names with backslashes", jsonl(*GOOD, line("a\\b\\x.png"), files=("a/b/x.png",)), (5, 1))
    yield Case("names that begin with ./", jsonl(*GOOD, line("./x.png")), (5, 1))
    yield Case(
        "names in a linked folder",
        lambda root: (
            jsonl(*GOOD, line("far/x.png"))(root),
            put(root.parent / "elsewhere/x.png", encoded()),
            os.symlink(root.parent / "elsewhere", root / "far"),
        ),
        (5, 1),
    )
    yield Case(
        "a name that is a link to nothing",
        lambda root: (jsonl(*GOOD, line("y.png"))(root), os.symlink("gone", root / "y.png")),
        None,
        r"line 6: .*y\.png is a link to gone, which is not there",
        (4, 1),
    )
    yield fault("an empty caption", line("x.png", ""), "text is ''; a caption")
    yield fault("a blank caption", line("x.png", " \t"), r"text is ' \\t'; a caption")
    yield fault(
        "a blank caption among others",
        line("x.png", ["one", ""]),
        r"text is \['one', ''\]; .* none of them empty",
        (5, 1),
    )
    yield fault("no captions", line("x.png", []), r"text is \[\]")
    for name, text in (("a number", 3), ("null", None), ("an object", {"a": 1}), ("true", True), ("[[]]", [[]])):
        yield fault(f"{name} as a caption", line("x.png", text), "text is .*; a caption")
    yield Case(
        "many faults",
        jsonl(*GOOD, *[line("x.png", "")] * 9),
        None,
        r"9 faults .*\n.*line 6: .*\n.*line 7: .*\n.*line 8: .*\nand 6 more; prepare\.py lists all$",
        (4, 1),
    )
    yield fault(
        "a long list of captions with an empty one", line("x.png", ["word " * 1500, ""]), "text is .{60,300}$", (5, 1)
    )
    yield Case("a caption of 7 kB", jsonl(*GOOD, line("x.png", "word " * 1400)), (5, 1), captions=True)
    yield Case(
        "five lines a picture", jsonl(*[line("0.png", f"caption {i}") for i in range(5)], *GOOD[1:]), (4, 1), each=5
    )
    yield fault("a picture on both sides", line("0.png", split="val"), r"0\.png is for val here, for train in line 1")
    yield fault("nested 20,000 deep", '{"file_name": "x.png", "text": ' + "[" * 20_000 + "]" * 20_000 + "}", "not JSON")
    yield fault(
        "an integer of 5,000 digits", '{"file_name": "x.png", "text": ' + "9" * 5000 + "}", r"not JSON \(Exceeds.*\)$"
    )
    yield fault("split is a list", line("x.png", split=["train"]), r"split is \['train'\]; train or val")
    yield fault("split is an object", line("x.png", split={}), r"split is \{\}; train or val")
    yield fault("split is null", line("x.png", split=None), "split is None; train or val")
    yield fault("split is a typo", line("x.png", split="trian"), "split is 'trian'; train or val")
    for name in ("valid", "validation", "dev", "Val"):
        yield Case(f"split is {name}", jsonl(*GOOD, line("x.png", split=name)), (4, 2))
    for name in ("test", "testing"):
        yield Case(f"split is {name}", jsonl(*GOOD, line("x.png", split=name)), (4, 1))
    yield fault(
        "half a character in a name", '{"file_name": "\\ud800.png", "text": "a"}', r".*\\ud800\.png is not there"
    )
    yield fault(
        "half a character in a caption", '{"file_name": "x.png", "text": "a \\ud83d"}', r"text is 'a \\ud83d', which"
    )
    yield fault("an escape in a name", line("\x1b[31mx.png"), r".*\\x1b\[31mx\.png is not there")
    yield fault("a line feed in a name", line("a\nb.png"), r".*a\\nb\.png is not there")
    yield fault("a name of 10,000 letters", line("x" * 10_000), ".*data/xxx+…x+ is not there$")
    for name, value in (("a number", 1), ("null", None), ("empty", ""), ("a list", [1]), ("an object", {"a": {}})):
        yield fault(f"the name is {name}", line(value), "file_name is .*; the name of a picture is wanted")
    for value in ("/etc/x.png", "../x.png", "a/../../x.png", "..\\x.png"):
        yield fault(f"the name is {value}", line(value), "file_name is .*; a name inside the folder is wanted")
    yield fault("no name", '{"text": "a"}', "file_name missing")
    yield fault("no text", '{"file_name": "x.png"}', "text missing")
    yield fault("a list", "[1, 2]", "file_name and text missing")
    yield fault("a string", '"x.png"', "file_name and text missing")
    yield fault("no JSON", "{oops", "not JSON")
    yield fault("two objects", line("x.png") + line("x.png"), "not JSON")
    yield fault("Latin-1", line("x.png", "cafe").encode().replace(b"cafe", b"caf\xe9"), "not UTF-8")
    yield Case("UTF-16", jsonl("\n".join(GOOD).encode("utf-16")), None, r"metadata\.jsonl is UTF-16; UTF-8 is wanted")
    yield Case("a mark of byte order", jsonl(b"\xef\xbb\xbf" + "\n".join(GOOD).encode()), (4, 1))
    yield Case("lines of Windows", jsonl("\r\n".join(GOOD) + "\r\n"), (4, 1))
    yield Case("a line separator in a caption", jsonl(*GOOD, line("x.png", "a\u2028b\x0bc")), (5, 1))
    yield Case("one array", jsonl(json.dumps([json.loads(one) for one in GOOD], indent=1)), None, r"line 1: not JSON")
    yield Case(
        "an empty list", jsonl(""), None, "it has no pictures at all; .*metadata.jsonl does not list 6 of the pictures"
    )
    yield Case(
        "pictures that are not listed", jsonl(*GOOD), (4, 1), r"does not list 1 of the pictures.* x\.png is the first"
    )


def tables() -> Iterator[Case]:
    def table(text: str | bytes, **more: Any) -> Callable[[Path], None]:
        return texts({"metadata.csv": text, **more})

    rows = [f"{i}.png,number {i},{'train' if i < 4 else 'val'}" for i in range(5)]
    head = "file_name,text,split"
    yield Case("csv", table("\n".join([head, *rows])), (4, 1))
    yield Case("csv with semicolons", table("\n".join([head, *rows]).replace(",", ";")), (4, 1))
    yield Case("csv with tabs", table("\n".join([head, *rows]).replace(",", "\t")), (4, 1))
    yield Case(
        "csv of other columns",
        table("image,caption\n0.png,a"),
        None,
        r"metadata\.csv, line 1: no column file_name and text in 'image, caption'; wanted are",
    )
    yield Case("csv, empty", table(""), None, r"metadata\.csv, line 1: no column file_name and text")
    for name, row, says in (
        ("commas without quotes", "0.png,one, two, three", "not as many cells"),
        ("a cell is missing", "0.png", "not as many cells"),
        ("no caption", "0.png,,train", "text is ''"),
        ("an unknown split", "0.png,a,vall", "split is 'vall'"),
    ):
        yield Case(
            f"csv, {name}", table("\n".join([head, *rows, row])), None, rf"metadata\.csv, line 7: {says}", (4, 1)
        )
    yield Case(
        "csv, a quote without end",
        table("\n".join([head, *rows[:3], '3.png,"oh,train', *rows[3:]])),
        None,
        r"metadata\.csv, line \d: not as many cells",
    )
    yield Case(
        "csv, Latin-1",
        table("\n".join([head, *rows, "0.png,caf#,train"]).encode().replace(b"#", b"\xe9")),
        None,
        r"metadata\.csv, line 7: not UTF-8",
        (4, 1),
    )
    yield Case(
        "csv, a cell of 200 kB",
        table("\n".join([head, *rows, f"0.png,{'x' * 200_000},train"])),
        None,
        rf"metadata\.csv, line 7: field larger than field limit \({csv.field_size_limit()}\)",
    )
    yield Case(
        "csv, five lines a picture",
        table("\n".join([head, *rows, *[f"0.png,more {i},train" for i in range(4)]])),
        (4, 1),
        each=5,
    )


def caption_files() -> Iterator[Case]:
    few = [f"{i}.png,number {i}, or so" for i in range(5)]
    for name, text in (
        ("commas", "\n".join(few)),
        ("a head", "\n".join(["image,caption", *few])),
        ("tabs", "\n".join(one.replace(",", "\t", 1) for one in few)),
        ("quotes", "\n".join(f'{i}.png,"n, {i}"' for i in range(5))),
        ("lines of Windows", "\r\n".join(few)),
    ):
        for file in ("captions.txt", "captions.csv"):
            text = text.replace("\t", ",") if file == "captions.csv" and name != "tabs" else text
            yield Case(f"{file} with {name}", texts({file: text}), (4, 1), captions=True, each=1)
    yield Case(
        "captions.txt beside a folder of pictures",
        texts({"captions.txt": "\n".join(few)}, start="Images/"),
        (4, 1),
        captions=True,
    )
    yield Case(
        "captions.txt, five lines a picture", texts({"captions.txt": "\n".join(few * 5)}), (4, 1), captions=True, each=5
    )
    yield Case(
        "captions.txt with a wrong name",
        texts({"captions.txt": "\n".join([*few, "gone.png,x"])}),
        None,
        r"captions\.txt, line 6: no picture 'gone\.png'",
        (4, 1),
        captions=True,
    )
    yield Case(
        "captions.txt without a caption",
        texts({"captions.txt": "\n".join([*few, "0.png,"])}),
        None,
        r"captions\.txt, line 6: no caption of 0\.png",
        (4, 1),
        captions=True,
    )
    yield Case(
        "captions.txt of other things",
        texts({"captions.txt": "a cat\na dog, too\n"}),
        None,
        r"has no caption; .*captions are read from .*; unread lie there captions\.txt$",
        captions=True,
    )
    yield Case(
        "the same for a tokenizer", texts({"captions.txt": "a cat\na dog, too\n"}), (4, 1), r"captions\.txt is not read"
    )
    yield Case(
        "captions.csv of three columns",
        texts({"captions.csv": "name,text,split\n0.png,a,train"}),
        None,
        r"captions\.csv, line 1: the columns are 'name, text, split'; wanted are a name and a caption",
    )
    beside = {f"{i}.png": f"number {i}" for i in range(5)}
    for folder in ("text", "texts", "captions"):
        given = {f"{folder}/{name[:-4]}.txt": text for name, text in beside.items()}
        yield Case(f"{folder}/ beside images/", texts(given, start="images/"), (4, 1), captions=True, each=1)
    yield Case(
        "train/text/ beside train/images/",
        lambda root: (
            [
                texts({f"{side}/text/{i}.txt": "a" for i in range(2)}, 2, f"{side}/images/")(root)
                for side in ("train", "valid")
            ]
            and None
        ),
        (2, 2),
        captions=True,
    )
    yield Case(
        ".TXT", texts({f"{name[:-4]}.TXT": text for name, text in beside.items()}), (4, 1), captions=True, each=1
    )
    yield Case(
        "texts in the other Unicode form",
        lambda root: (
            [(put(root / f"e\u0301{i}.png", encoded(seed=i)), put(root / f"\u00e9{i}.txt", "a")) for i in range(5)]
            and None
        ),
        (4, 1),
        captions=True,
    )
    yield Case(
        "a text that is Latin-1",
        texts({**{f"{i}.txt": "a" for i in range(5)}, "3.txt": b"a\ncaf\xe9"}),
        None,
        r"3\.txt, line 2: not UTF-8",
        (3, 1),
        captions=True,
    )
    yield Case(
        "half of the pictures have no caption",
        texts({"0.txt": "a", "1.txt": "b", "3.txt": "c"}),
        None,
        r"has no caption; .*; \d of \d have none, data\.on_error=skip leaves them out",
        captions=True,
    )
    for name in ("000.json", "captions.json", "labels.tsv", "data.parquet"):
        yield Case(
            f"only {name}",
            texts({name: "{}"}),
            None,
            rf"captions are read from .*; unread lie there {name}$",
            captions=True,
        )
    yield Case(
        "no captions at all",
        texts({}),
        None,
        r"has no caption; .*captions are read from metadata\.jsonl",
        captions=True,
    )
    yield Case("pictures alone", texts({}), (4, 1))


def splits() -> Iterator[Case]:
    for val in ("val", "valid", "validation", "dev", "Valid", "VAL"):
        for test in ("test", "testing"):
            yield Case(
                f"train, {val}, {test}", folders("train", val, test), (3, 3), rf"{test}/ is left alone: 3 pictures"
            )
    yield Case("training, valid", folders("Training", "valid"), (3, 3))
    yield Case("train, valid with lists", folders("train", "valid", lists=True), (3, 3), captions=True, each=1)
    yield Case(
        "train with a list, test", folders("train", "test", lists=True), (2, 1), "test/ is left alone", captions=True
    )
    yield Case("train and test", folders("train", "test"), (2, 1), "test/ is left alone")
    yield Case("valid and classes", folders("cats", "dogs", "valid"), (6, 3))
    yield Case("test and classes", folders("cats", "dogs", "test"), (5, 1), "test/ is left alone")
    yield Case("within a folder", folders("data/train", "data/valid", "data/test"), (3, 3), "data/test/ is left alone")
    yield Case("images/train", folders("images/train", "images/val"), (3, 3))
    yield Case(
        "train, val and another", folders("train", "val", "extra"), (3, 3), r"3 pictures lie beside .*extra/0\.png"
    )
    for name in ("val_images", "test2017", "trainset", "eval", "holdout"):
        yield Case(f"a folder {name}", folders("cats", name), (5, 1), rf"{name}/ looks like a split and is none")
    yield Case(
        "only test",
        folders("test"),
        None,
        "no pictures for split='train'; it has no pictures at all; test/ is left alone",
    )
    yield Case(
        "a list of folders train, valid",
        lambda root: (
            folders("train", "valid")(root),
            put(
                root / "metadata.jsonl",
                "\n".join(
                    json.dumps({"file_name": f"{side}/{i}.png", "text": "a"})
                    for side in ("train", "valid")
                    for i in range(3)
                ),
            ),
        ),
        (3, 3),
    )
    for count, start in (
        (2, "aa"),
        (5, "aa"),
        (18, "ae"),
        (24, "ae"),
        (30, "af"),
    ):  # none is for validation by its hash
        yield Case(f"{count} pictures", texts({}, count, start), (count - 1, 1))
    yield Case("one picture", texts({}, 1), None, "has no pictures for split='val'; it has train")
    yield Case("no picture", lambda root: root.mkdir(), None, "it has no pictures at all")
    yield Case("no folder", lambda root: None, None, "is not a folder; it must hold pictures")
    yield Case("a file", lambda root: put(root, b"x"), None, "is not a folder; it must hold pictures")


def metadata() -> Iterator[Case]:
    """Listings, captions, splits and shards."""
    for group in (metadata_lines, tables, caption_files, splits, others, shards):
        yield from group()
