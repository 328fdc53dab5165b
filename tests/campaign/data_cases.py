"""Pictures and listings as people have them, and worse: small data sets, each with what is right to say of it."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import random
import re
import struct
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Case:
    """A data set and what is right of it.

    Args:
        build: makes it in a folder.
        reads: pictures of training and validation; None where it must be refused.
        says: a pattern: of the refusal, or of what is printed beside reading.
        skips: what is read with data.on_error=skip, where that makes a difference.
        either: being read is right too (a flipped bit may do no harm).
        data: of conf/data.
        options: further overrides.
        captions: whether what trains on it reads captions.
        each: captions of training's first picture.
    """

    name: str
    build: Callable[[Path], None]
    reads: tuple[int, int] | None = None
    says: str = ""
    skips: tuple[int, int] | None = None
    either: bool = False
    data: str = "folder"
    options: tuple[str, ...] = ()
    captions: bool = False
    each: int | None = None


@cache
def image(width: int = 24, height: int = 20, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


@cache
def encoded(kind: str = "PNG", seed: int = 0, **options: Any) -> bytes:
    held = io.BytesIO()
    image(seed=seed).save(held, kind, **options)
    return held.getvalue()


def written(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    picture.save(held, kind, **options)
    return held.getvalue()


def put(path: Path | bytes, data: bytes | str = b"") -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))


def sound(root: Path, train: int = 4, val: int = 1) -> None:
    """Folders train and val with pictures and a caption each."""
    for side, count in (("train", train), ("val", val)):
        for i in range(count):
            put(root / side / f"{i}.png", encoded(seed=i + 10 * (side == "val")))
            put(root / side / f"{i}.txt", f"picture {i}")


# ---- pictures ----------------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "jpg": ("JPEG", {"quality": 90}), "progressive.jpg": ("JPEG", {"progressive": True}), "png": ("PNG", {}),
    "webp": ("WEBP", {}), "lossless.webp": ("WEBP", {"lossless": True}), "gif": ("GIF", {}), "bmp": ("BMP", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}), "deflate.tif": ("TIFF", {"compression": "tiff_deflate"}),
    "jpeg.tif": ("TIFF", {"compression": "jpeg"}),
}  # fmt: skip
NO_PICTURE = r"odd\S* cannot be read as a picture: \S+"


def with_odd(root: Path, data: bytes, name: str = "odd.png") -> None:
    sound(root)
    put(root / "train" / name, data)


def odd(name: str, data: bytes, fits: bool, file: str = "odd.png", **more: Any) -> Case:
    """A data set of which one picture is odd: it is read, or named."""
    build = partial(with_odd, data=data, name=file)
    return Case(name, build, (5, 1), **more) if fits else Case(name, build, None, NO_PICTURE, (4, 1), **more)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""))


def declared() -> Iterator[tuple[str, str, bytes]]:
    """Small files that say they are huge."""
    yield "png", "odd.png", png(60_000, 60_000, 8, 2, b"")
    yield "jpeg", "odd.jpg", encoded("JPEG").replace(struct.pack(">HH", 20, 24), struct.pack(">HH", 65_000, 65_000), 1)
    yield "gif", "odd.gif", encoded("GIF")[:6] + struct.pack("<HH", 65_535, 65_535) + encoded("GIF")[10:]
    yield "bmp", "odd.bmp", encoded("BMP")[:18] + struct.pack("<ii", 90_000, 90_000) + encoded("BMP")[26:]
    yield "webp", "odd.webp", b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + b"VP8 \0\0\0\0"
    yield "png with a text of 128 MB", "odd.png", png(
        4, 4, 8, 0, bytes(20), chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(128 << 20))))
    yield "tiff", "odd.tif", (b"II*\0\x08\0\0\0\x03\0" + struct.pack("<HHII", 256, 4, 1, 80_000)
                              + struct.pack("<HHII", 257, 4, 1, 80_000) + struct.pack("<HHII", 273, 4, 1, 8) + bytes(4))


def modes() -> Iterator[tuple[str, str, bytes]]:
    """Pictures of every kind that are in order."""
    whole = image()
    for mode in ("1", "L", "P", "LA", "RGBA", "I;16"):
        made = (Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16) << 8) if mode == "I;16"
                else whole.convert(mode))
        yield f"png {mode}", "odd.png", written(made)
    yield "png of 16 bits a colour", "odd.png", png(4, 4, 16, 2, (b"\0" + bytes(range(24))) * 4)
    yield "png of 2 bits", "odd.png", png(4, 4, 2, 0, b"\0\x1b" * 4)
    yield "palette with transparency", "odd.png", written(whole.convert("P"), transparency=3)
    yield "jpeg L", "odd.jpg", written(whole.convert("L"), "JPEG")
    yield "jpeg CMYK", "odd.jpg", written(whole.convert("CMYK"), "JPEG")
    yield "tiff CMYK", "odd.tif", written(whole.convert("CMYK"), "TIFF")
    yield "tiff of 16 bits", "odd.tif", written(Image.fromarray(np.full((9, 9), 4000, np.uint16)), "TIFF")
    more = [image(seed=i) for i in (1, 2)]
    for kind, file in (("GIF", "odd.gif"), ("WEBP", "odd.webp"), ("PNG", "odd.png"), ("TIFF", "odd.tif")):
        yield f"{kind} of three frames", file, written(whole, kind, save_all=True, append_images=more)
    yield "MPO", "odd.jpg", written(whole, "MPO", save_all=True, append_images=more)
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        yield f"turned {turn}", "odd.jpg", written(whole, "JPEG", exif=exif)
    yield "damaged Exif", "odd.jpg", written(whole, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    yield "damaged colour profile", "odd.png", written(whole, icc_profile=b"none of it")
    yield "unknown number of JFIF", "odd.jpg", encoded("JPEG")[:11] + b"\x05" + encoded("JPEG")[12:]
    for width, height in ((1, 1), (2, 1), (1, 5000), (5000, 1), (3, 700)):
        yield f"{width} x {height}", "odd.png", written(Image.new("RGB", (width, height), (9, 9, 9)))


OTHERS = {
    "nothing": b"", "one byte": b"\x89", "zeros": bytes(5000), "text": b"a picture of a cat\n" * 50,
    "a web page": b"<!doctype html><html><body>404</body></html>", "an svg": b"<svg xmlns='x'><rect/></svg>",
    "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "a zip": b"PK\x05\x06" + bytes(18), "a pdf": b"%PDF-1.7\n%%EOF", "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
    "a head of png": b"\x89PNG\r\n\x1a\n", "a head of jpeg": b"\xff\xd8\xff\xe0", "noise": random.Random(0).randbytes(999),
}  # fmt: skip
NAMES = {
    "composed letters": "\u00e9odd.png", "decomposed letters": "e\u0301odd.png", "emoji": "odd\U0001f469\u200d\U0001f4bb.png",
    "Chinese": "odd一只猫.png", "right to left": "odd\u202egnp.png", "a line feed": "o\nodd.png", "a tab": "o\todd.png",
    "an escape": "odd\x1b[31m.png", "quotes": "odd'\".png", "a blank": "my odd one.png", "a dash": "-odd.png",
    "a percent": "odd%s%20.png", "a backslash": "o\\odd.png", "dots": "my..odd.v2.png", "capitals": "ODDodd.PNG",
    "240 letters": "odd" + "x" * 237 + ".png", "undecodable bytes": os.fsdecode(b"odd\xff\xe9.png"), "braces": "odd{a}$b.png",
}  # fmt: skip


def links() -> Iterator[Case]:
    def made(build: Callable[[Path, Path], None]) -> Callable[[Path], None]:
        def both(root: Path) -> None:
            sound(root)
            elsewhere = root.parent / "elsewhere"
            put(elsewhere / "sub/deep.png", encoded(seed=71))
            put(elsewhere / "far.png", encoded(seed=70))
            build(root, elsewhere)
        return both

    def link(name: str, where: Callable[[Path, Path], Path | str]) -> Callable[[Path], None]:
        return made(lambda root, far: os.symlink(where(root, far), root / "train" / name))

    yield Case("link to a picture elsewhere", link("odd.png", lambda _, far: far / "far.png"), (5, 1))
    yield Case("link to a folder elsewhere", link("odd", lambda _, far: far), (6, 1))
    yield Case("link to the folder above", link("odd", lambda _, far: ".."), (4, 1), r"train/odd is a link .* not followed")
    yield Case("link to the folder itself", link("odd", lambda _, far: "."), (4, 1), r"train/odd is a link .* not followed")
    yield Case("link to far above", link("odd", lambda _, far: far.parent.parent), (4, 1), r"odd is a link .*not followed")
    yield Case("link to the root of all", link("odd", lambda _, far: "/"), (4, 1), r"odd is a link .*not followed")
    yield Case("link to a folder beside", link("odd", lambda root, far: root / "val"), (4, 1), r"is a link .*not followed")
    yield Case("link to nothing", link("odd.png", lambda _, far: "gone.png"), None,
               r"odd\.png is a link to gone\.png, which is not there", (4, 1))
    yield Case("link to nothing, no picture's name", link("odd", lambda _, far: "gone"), (4, 1), r"link to gone, which is not")
    yield Case("link to itself", link("odd.png", lambda _, far: "odd.png"), None, r"odd\.png cannot be looked at: Too many",
               (4, 1))

    def loop(root: Path, far: Path) -> None:
        os.symlink(far, root / "train/odd")
        os.symlink(root, far / "back")

    yield Case("a loop over two folders", made(loop), (6, 1), r"back is a link .*not followed")
    yield Case("a pipe", made(lambda root, far: os.mkfifo(root / "train/odd.png")), None, r"odd\.png is no file", (4, 1))
    yield Case("a folder named like a picture", made(lambda root, far: put(root / "train/odd.png/a.png", encoded())), (5, 1))


def pictures() -> Iterator[Case]:
    """Damaged and odd pictures."""
    for ending, (kind, options) in KINDS.items():
        whole = encoded(kind, **options)
        for part in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95):
            yield odd(f"{ending} cut at {part:.0%}", whole[: int(len(whole) * part)], False, f"odd.{ending}")
        for seed in range(4):
            chance, data = random.Random(seed), bytearray(whole)
            for _ in range(1 + 4 * (seed % 2)):
                data[chance.randrange(8, len(data))] ^= 1 << chance.randrange(8)
            yield odd(f"{ending} with flipped bits, {seed}", bytes(data), False, f"odd.{ending}", either=kind != "PNG")
    scarred = bytearray(encoded("JPEG", quality=90))
    scarred[-40:-30] = b"\xff\x00" * 5
    yield Case("jpeg with scars", partial(with_odd, data=bytes(scarred), name="odd.jpg"), (5, 1),
               r"odd\.jpg is damaged and may look wrong: Corrupt JPEG")
    for name, file, data in declared():
        yield odd(f"declared huge: {name}", data, False, file)
    for name, file, data in modes():
        yield odd(name, data, True, file)
    for name, data in OTHERS.items():
        yield odd(f"{name} named .png", data, False)
    for kind, file in (("PNG", "odd.jpg"), ("JPEG", "odd.png"), ("WEBP", "odd.gif"), ("GIF", "odd.webp"), ("TIFF", "odd.jpg")):
        yield odd(f"{kind} named {file[3:]}", encoded(kind), True, file)
    for name, file in NAMES.items():
        yield odd(f"a name with {name}", encoded(), True, file)
        yield odd(f"damaged, a name with {name}", encoded()[:60], False, file)
    yield from links()


# ---- listings ----------------------------------------------------------------------------------------------------

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
        put(root / "metadata.jsonl", b"\n".join(one if isinstance(one, bytes) else one.encode("utf-8", "surrogatepass")
                                                for one in lines))
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
                put(root / name / "metadata.jsonl", "\n".join(
                    json.dumps({"file_name": f"{i}.png", "text": f"n {i}"}) for i in range(3)))
    return build


def metadata_lines() -> Iterator[Case]:
    wrong = [line(f"gone{i}.png") for i in range(9)]
    yield Case("all names wrong", jsonl(*wrong), None,
               r"no pictures for split='train'; 9 faults in the listing:\n  metadata\.jsonl, line 1: .*gone0\.png is not there"
               r"\n.*line 2.*\n.*line 3.*\n  and 6 more")
    yield Case("some names wrong", jsonl(*GOOD, *wrong[:2]), None, r"2 faults .*\n.*line 6: .*gone0\.png is not there", (4, 1))
    for name, listed, lies in (("composed in the list", "NFC", "NFD"), ("decomposed in the list", "NFD", "NFC")):
        names = [unicodedata.normalize(form, "caf\u00e9/\u00fcber.png") for form in (listed, lies)]
        yield Case(f"names {name}", jsonl(*GOOD, line(names[0]), files=(names[1],)), (5, 1))
    yield Case("names with backslashes", jsonl(*GOOD, line("a\\b\\x.png"), files=("a/b/x.png",)), (5, 1))
    yield Case("names that begin with ./", jsonl(*GOOD, line("./x.png")), (5, 1))
    yield Case("names in a linked folder", lambda root: (jsonl(*GOOD, line("far/x.png"))(root), put(
        root.parent / "elsewhere/x.png", encoded()), os.symlink(root.parent / "elsewhere", root / "far")), (5, 1))
    yield Case("a name that is a link to nothing", lambda root: (jsonl(*GOOD, line("y.png"))(root),
               os.symlink("gone", root / "y.png")), None, r"line 6: .*y\.png is a link to gone, which is not there", (4, 1))
    yield fault("an empty caption", line("x.png", ""), "text is ''; a caption")
    yield fault("a blank caption", line("x.png", " \t"), r"text is ' \\t'; a caption")
    yield fault("a blank caption among others", line("x.png", ["one", ""]), r"text is \['one', ''\]; .* none of them empty",
                (5, 1))
    yield fault("no captions", line("x.png", []), r"text is \[\]")
    for name, text in (("a number", 3), ("null", None), ("an object", {"a": 1}), ("true", True), ("[[]]", [[]])):
        yield fault(f"{name} as a caption", line("x.png", text), "text is .*; a caption")
    yield Case("many faults", jsonl(*GOOD, *[line("x.png", "")] * 9), None,
               r"9 faults .*\n.*line 6: .*\n.*line 7: .*\n.*line 8: .*\n  and 6 more; prepare\.py lists all$", (4, 1))
    yield fault("a long list of captions with an empty one", line("x.png", ["word " * 1500, ""]), "text is .{60,300}$", (5, 1))
    yield Case("a caption of 7 kB", jsonl(*GOOD, line("x.png", "word " * 1400)), (5, 1), captions=True)
    yield Case("five lines a picture", jsonl(*[line("0.png", f"caption {i}") for i in range(5)], *GOOD[1:]), (4, 1), each=5)
    yield fault("a picture on both sides", line("0.png", split="val"), r"0\.png is for val here, for train in line 1")
    yield fault("nested 20,000 deep", '{"file_name": "x.png", "text": ' + "[" * 20_000 + "]" * 20_000 + "}", "not JSON")
    yield fault("an integer of 5,000 digits", '{"file_name": "x.png", "text": ' + "9" * 5000 + "}", r"not JSON \(Exceeds.*\)$")
    yield fault("split is a list", line("x.png", split=["train"]), r"split is \['train'\]; train or val")
    yield fault("split is an object", line("x.png", split={}), r"split is \{\}; train or val")
    yield fault("split is null", line("x.png", split=None), "split is None; train or val")
    yield fault("split is a typo", line("x.png", split="trian"), "split is 'trian'; train or val")
    for name in ("valid", "validation", "dev", "Val"):
        yield Case(f"split is {name}", jsonl(*GOOD, line("x.png", split=name)), (4, 2))
    for name in ("test", "testing"):
        yield Case(f"split is {name}", jsonl(*GOOD, line("x.png", split=name)), (4, 1))
    yield fault("half a character in a name", '{"file_name": "\\ud800.png", "text": "a"}', r".*\\ud800\.png is not there")
    yield fault("half a character in a caption", '{"file_name": "x.png", "text": "a \\ud83d"}', r"text is 'a \\ud83d', which")
    yield fault("an escape in a name", line("\x1b[31mx.png"), r".*\\x1b\[31mx\.png is not there")
    yield fault("a line feed in a name", line("a\nb.png"), r".*a\\nb\.png is not there")
    yield fault("a name of 10,000 letters", line("x" * 10_000), "file_name|.*xxx.*…$")
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
    yield Case("an empty list", jsonl(""), None, "it has no pictures at all; .*metadata.jsonl does not list 6 of the pictures")
    yield Case("pictures that are not listed", jsonl(*GOOD), (4, 1), r"does not list 1 of the pictures.* x\.png is the first")


def tables() -> Iterator[Case]:
    def table(text: str | bytes, **more: Any) -> Callable[[Path], None]:
        return texts({"metadata.csv": text, **more})

    rows = [f"{i}.png,number {i},{'train' if i < 4 else 'val'}" for i in range(5)]
    head = "file_name,text,split"
    yield Case("csv", table("\n".join([head, *rows])), (4, 1))
    yield Case("csv with semicolons", table("\n".join([head, *rows]).replace(",", ";")), (4, 1))
    yield Case("csv with tabs", table("\n".join([head, *rows]).replace(",", "\t")), (4, 1))
    yield Case("csv of other columns", table("image,caption\n0.png,a"), None,
               r"metadata\.csv, line 1: no column file_name and text in 'image, caption'; wanted are")
    yield Case("csv, empty", table(""), None, r"metadata\.csv, line 1: no column file_name and text")
    for name, row, says in (("commas without quotes", "0.png,one, two, three", "not as many cells"),
                            ("a cell is missing", "0.png", "not as many cells"), ("no caption", "0.png,,train", "text is ''"),
                            ("an unknown split", "0.png,a,vall", "split is 'vall'")):
        yield Case(f"csv, {name}", table("\n".join([head, *rows, row])), None, rf"metadata\.csv, line 7: {says}", (4, 1))
    yield Case("csv, a quote without end", table("\n".join([head, *rows[:3], '3.png,"oh,train', *rows[3:]])), None,
               r"metadata\.csv, line \d: not as many cells")
    yield Case("csv, Latin-1", table("\n".join([head, *rows, "0.png,caf#,train"]).encode().replace(b"#", b"\xe9")), None,
               r"metadata\.csv, line 7: not UTF-8", (4, 1))
    yield Case("csv, a cell of 200 kB", table("\n".join([head, *rows, f"0.png,{'x' * 200_000},train"])), None,
               rf"metadata\.csv, line 7: field larger than field limit \({csv.field_size_limit()}\)")
    yield Case("csv, five lines a picture", table("\n".join([head, *rows, *[f"0.png,more {i},train" for i in range(4)]])),
               (4, 1), each=5)


def caption_files() -> Iterator[Case]:
    few = [f"{i}.png,number {i}, or so" for i in range(5)]
    for name, text in (("commas", "\n".join(few)), ("a head", "\n".join(["image,caption", *few])),
                       ("tabs", "\n".join(few).replace(",", "\t", 5)), ("quotes", "\n".join(f'{i}.png,"n, {i}"' for i in range(5))),
                       ("lines of Windows", "\r\n".join(few))):
        for file in ("captions.txt", "captions.csv"):
            text = text.replace("\t", ",") if file == "captions.csv" and name != "tabs" else text
            yield Case(f"{file} with {name}", texts({file: text}), (4, 1), captions=True, each=1)
    yield Case("captions.txt beside a folder of pictures", texts({"captions.txt": "\n".join(few)}, start="Images/"), (4, 1),
               captions=True)
    yield Case("captions.txt, five lines a picture", texts({"captions.txt": "\n".join(few * 5)}), (4, 1), captions=True, each=5)
    yield Case("captions.txt with a wrong name", texts({"captions.txt": "\n".join([*few, "gone.png,x"])}), None,
               r"captions\.txt, line 6: no picture 'gone\.png'", (4, 1), captions=True)
    yield Case("captions.txt without a caption", texts({"captions.txt": "\n".join([*few, "0.png,"])}), None,
               r"captions\.txt, line 6: no caption of 0\.png", (4, 1), captions=True)
    yield Case("captions.txt of other things", texts({"captions.txt": "a cat\na dog, too\n"}), None,
               r"has no caption; .*captions are read from .*; unread lie there captions\.txt$", captions=True)
    yield Case("the same for a tokenizer", texts({"captions.txt": "a cat\na dog, too\n"}), (4, 1), r"captions\.txt is not read")
    yield Case("captions.csv of three columns", texts({"captions.csv": "name,text,split\n0.png,a,train"}), None,
               r"captions\.csv, line 1: the columns are 'name, text, split'; wanted are a name and a caption")
    beside = {f"{i}.png": f"number {i}" for i in range(5)}
    for folder in ("text", "texts", "captions"):
        given = {f"{folder}/{name[:-4]}.txt": text for name, text in beside.items()}
        yield Case(f"{folder}/ beside images/", texts(given, start="images/"), (4, 1), captions=True, each=1)
    yield Case("train/text/ beside train/images/", lambda root: [texts(
        {f"{side}/text/{i}.txt": "a" for i in range(2)}, 2, f"{side}/images/")(root) for side in ("train", "valid")] and None,
        (2, 2), captions=True)
    yield Case(".TXT", texts({f"{name[:-4]}.TXT": text for name, text in beside.items()}), (4, 1), captions=True, each=1)
    yield Case("texts in the other Unicode form", lambda root: [
        (put(root / f"e\u0301{i}.png", encoded(seed=i)), put(root / f"\u00e9{i}.txt", "a")) for i in range(5)] and None,
        (4, 1), captions=True)
    yield Case("a text that is Latin-1", texts({**{f"{i}.txt": "a" for i in range(5)}, "3.txt": b"a\ncaf\xe9"}), None,
               r"3\.txt, line 2: not UTF-8", (3, 1), captions=True)
    yield Case("half of the pictures have no caption", texts({"0.txt": "a", "1.txt": "b", "3.txt": "c"}), None,
               r"has no caption; .*; \d of \d have none, data\.on_error=skip leaves them out", captions=True)
    for name in ("000.json", "captions.json", "labels.tsv", "data.parquet"):
        yield Case(f"only {name}", texts({name: "{}"}), None, rf"captions are read from .*; unread lie there {name}$", captions=True)
    yield Case("no captions at all", texts({}), None, r"has no caption; .*captions are read from metadata\.jsonl", captions=True)
    yield Case("pictures alone", texts({}), (4, 1))


def splits() -> Iterator[Case]:
    for val in ("val", "valid", "validation", "dev", "Valid", "VAL"):
        for test in ("test", "testing"):
            yield Case(f"train, {val}, {test}", folders("train", val, test), (3, 3), rf"{test}/ is left alone: 3 pictures")
    yield Case("training, valid", folders("Training", "valid"), (3, 3))
    yield Case("train, valid with lists", folders("train", "valid", lists=True), (3, 3), captions=True, each=1)
    yield Case("train with a list, test", folders("train", "test", lists=True), (2, 1), "test/ is left alone", captions=True)
    yield Case("train and test", folders("train", "test"), (2, 1), "test/ is left alone")
    yield Case("valid and classes", folders("cats", "dogs", "valid"), (6, 3))
    yield Case("test and classes", folders("cats", "dogs", "test"), (5, 1), "test/ is left alone")
    yield Case("within a folder", folders("data/train", "data/valid", "data/test"), (3, 3), "data/test/ is left alone")
    yield Case("images/train", folders("images/train", "images/val"), (3, 3))
    yield Case("train, val and another", folders("train", "val", "extra"), (3, 3), r"3 pictures lie beside .*extra/0\.png")
    for name in ("val_images", "test2017", "trainset", "eval", "holdout"):
        yield Case(f"a folder {name}", folders("cats", name), (5, 1), rf"{name}/ looks like a split and is none")
    yield Case("only test", folders("test"), None, "no pictures for split='train'; it has no pictures at all; test/ is left alone")
    yield Case("a list of folders train, valid", lambda root: (folders("train", "valid")(root), put(
        root / "metadata.jsonl", "\n".join(json.dumps({"file_name": f"{side}/{i}.png", "text": "a"})
                                           for side in ("train", "valid") for i in range(3)))), (3, 3))
    for count in (2, 5, 18, 24, 30):
        yield Case(f"{count} pictures", texts({}, count), (count - 1, 1) if count < 24 else None, either=count >= 24,
                   says="never said")
    yield Case("one picture", texts({}, 1), None, "has no pictures for split='val'; it has train")
    yield Case("no picture", lambda root: root.mkdir(), None, "it has no pictures at all")
    yield Case("no folder", lambda root: None, None, "is not a folder; it must hold pictures")
    yield Case("a file", lambda root: put(root, b"x"), None, "is not a folder; it must hold pictures")


def coco(**changes: Any) -> Callable[[Path], None]:
    def build(root: Path) -> None:
        for side in ("train", "val"):
            images = [{"id": i, "file_name": f"{i}.jpg"} for i in range(3)]
            held = {"images": images, "annotations": [{"image_id": i % 3, "caption": f"c {i}"} for i in range(9)]}
            for item in images:
                put(root / f"{side}2017" / item["file_name"], encoded("JPEG", seed=item["id"] + 5 * (side == "val")))
            put(root / f"{side}2017/e\u0301.jpg", encoded("JPEG", seed=40))
            if side == "train":
                for key, extra in changes.items():
                    held[key] = held[key] + extra if isinstance(extra, list) else extra
            put(root / f"annotations/captions_{side}2017.json", changes["text"] if side == "train" and "text" in changes
                else json.dumps(held))
    return build


def others() -> Iterator[Case]:
    def case(name: str, says: str, skips: tuple[int, int] | None = (3, 3), **changes: Any) -> Case:
        return Case(f"coco, {name}", coco(**changes), None, says, skips, data="coco", captions=True)

    yield Case("coco", coco(), (3, 3), data="coco", captions=True, each=3)
    for value in ([1], {"a": 1}, 3, None):
        yield case(f"file_name is {value}", rf"images\[3\] is \(9, {re.escape(str(value))}\); wanted are id, file_name",
                   images=[{"id": 9, "file_name": value}])
    yield case("id is a list", r"images\[3\] is \(\[1\], 'x\.jpg'\)", images=[{"id": [1], "file_name": "x.jpg"}])
    yield case("image_id is a list", r"annotations\[9\] is \(\[1\], 'a'\)", annotations=[{"image_id": [1], "caption": "a"}])
    yield case("caption is null", r"annotations\[9\] is \(1, None\)", annotations=[{"image_id": 1, "caption": None}])
    yield case("caption is empty", r"an empty caption of 1\.jpg", annotations=[{"image_id": 1, "caption": " "}])
    yield case("half a character", r"a caption of 1\.jpg holds half a character", annotations=[{"image_id": 1, "caption": "\ud83d"}])
    yield case("a caption of nothing, long", r"picture id 77, which is not listed: 'word.{0,80}\(\d,\d+ characters\)",
               annotations=[{"image_id": 77, "caption": "word " * 1500}])
    yield case("a stray string", r"images\[3\] is 'x'", images=["x"])
    yield case("a picture is not there", r"names train2017/x\.jpg, which is not there", images=[{"id": 9, "file_name": "x.jpg"}])
    yield case("all pictures are elsewhere", r"no pictures for split='train'.*\n.*names train2017/a\.jpg, which is not there\n",
               None, text=json.dumps({"images": [{"id": i, "file_name": f"{c}.jpg"} for i, c in enumerate("abc")],
                                      "annotations": [{"image_id": 0, "caption": "a"}]}))
    yield Case("coco, names composed in the list", coco(images=[{"id": 9, "file_name": "\u00e9.jpg"}], annotations=[
        {"image_id": 9, "caption": "a"}]), (4, 3), data="coco", captions=True)
    for name, text in (("damaged", "{oops"), ("empty", ""), ("nested", "[" * 20_000 + "]" * 20_000), ("Latin-1", b"\xe9"),
                       ("an integer of 5,000 digits", '{"images": ' + "9" * 5000 + "}")):
        yield case(name, r"captions_train2017\.json is damaged: .{1,200}$", None, text=text)
    for text in ("[]", "3", '{"images": 3}', '{"images": [1], "annotations": []}', '{"images": {"a": [1]}}'):
        yield case(text, r"captions_train2017\.json holds no captions of COCO", None, text=text)

    keys = [f"00{c}.Bird/Bird_{i}" for c in range(1, 5) for i in range(2)]

    def cub(change: Callable[[Path], None] = lambda root: None) -> Callable[[Path], None]:
        def build(root: Path) -> None:
            home = root / "CUB_200_2011"
            for number, key in enumerate(keys):
                put(home / f"images/{key}.jpg", encoded("JPEG", seed=number))
                put(root / f"text/{key}.txt", "a bird\nanother")
            put(home / "images.txt", "".join(f"{n} {key}.jpg\n" for n, key in enumerate(keys)))
            put(home / "bounding_boxes.txt", "".join(f"{n} 2 2 9 9\n" for n in range(len(keys))))
            change(root)
        return build

    def append(name: str, text: str) -> Callable[[Path], None]:
        def change(root: Path) -> None:
            with (root / "CUB_200_2011" / name).open("a") as file:
                file.write(text)
        return cub(change)

    bird: dict[str, Any] = {"data": "cub", "captions": True}
    yield Case("cub", cub(), (6, 2), **bird, each=2)
    for box in ("nan 1 1 1", "1 1 inf 1", "a b c d"):
        yield Case(f"cub, a box of {box}", append("bounding_boxes.txt", f"0 {box}\n"), None,
                   rf"the box of picture 0 is '{box}'; four numbers", (6, 2), **bird)
    yield Case("cub, a line of three columns", append("images.txt", "9 x y\n"), None, r"images\.txt, line 9: '9 x y' has not 2",
               (6, 2), **bird)
    yield Case("cub, no captions of a bird", cub(lambda root: put(root / f"text/{keys[0]}.txt", " \n")), None,
               r"Bird_0 has no captions: .* is missing or empty", (5, 2), **bird)
    yield Case("cub, damaged picture", cub(lambda root: put(root / f"CUB_200_2011/images/{keys[0]}.jpg", b"x")), None,
               r"Bird_0\.jpg cannot be read as a picture", (5, 2), **bird)
    for name, keys_of in (("a command", b"cos\nsystem\n(S'true'\ntR."), ("damage", b"\x80\x04"), ("a dict", pickle.dumps({}))):
        yield Case(f"cub, pickles with {name}", cub(lambda root, data=keys_of: [
            put(root / f"birds/{side}/filenames.pickle", data) for side in ("train", "test")] and None), None,
            r"filenames\.pickle (is refused|is damaged|holds a dict)", **bird)
    yield Case("emoji, no font", lambda root: root.mkdir(), None, r"data\.font=gone\.ttf: there is no such file", data="emoji",
               options=("data.font=gone.ttf",))
    yield Case("emoji, a picture as a font", lambda root: root.mkdir(), None, r"cannot be read as a font", data="emoji",
               options=(f"data.font={Path(__file__)}",))


def tar(path: Path, *members: tuple[str, bytes | str]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as file:
        for name, data in members:
            info, data = tarfile.TarInfo(name), data.encode() if isinstance(data, str) else data
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    put(path, held.getvalue())
    return held.getvalue()


def samples(*names: str) -> list[tuple[str, bytes | str]]:
    return [pair for i, name in enumerate(names) for pair in ((f"{name}.png", encoded(seed=i)), (f"{name}.txt", f"n {name}"))]


def shards() -> Iterator[Case]:
    def made(*members: tuple[str, bytes | str], cut: float = 1, name: str = "train-0.tar") -> Callable[[Path], None]:
        def build(root: Path) -> None:
            whole = tar(root / name, *samples("a", "b"), *members)
            end = sum(512 + -(-len(data) // 512) * 512 for _, data in (*samples("a", "b"), *members))
            if cut < 1:
                put(root / name, whole[: int(end * cut)])
            tar(root / "val-0.tar", *samples("v"))
        return build

    def case(name: str, member: tuple[str, bytes | str], says: str, skips: tuple[int, int] = (2, 1)) -> Case:
        return Case(f"shard, {name}", made(*samples("c"), member), None, rf"train-0\.tar: {says}", skips, data="webdataset",
                    captions=True)

    web: dict[str, Any] = {"data": "webdataset", "captions": True}
    yield Case("shard", made(), (2, 1), **web, each=1)
    for cut in (0.1, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97):
        yield Case(f"shard cut at {cut:.0%}", made(*samples("c"), cut=cut), None,
                   r"train-0\.tar: .*(cut off|unexpected end).* \(?\w* ?\d+\b", either=False, **web)
    yield case("a dot before the ending", ("my.photo.png", encoded()),
               r"sample my has no picture, only \.photo\.png \(a sample's name ends at its first dot", (3, 1))
    yield Case("shard, all names with dots", lambda root: (tar(root / "train.tar", *samples("a.x", "b.x")), tar(
        root / "val.tar", *samples("v"))), None, r"no pictures for split='train'; 2 faults in the listing:\n.*sample a has no",
        **web)
    yield case("a caption twice", ("c.txt", "again"), r"c\.txt is in it twice", (3, 1))
    yield case("two pictures", ("c.jpg", encoded("JPEG")), "sample c has more than one picture")
    for name, text in (("nested", "[" * 20_000 + "]" * 20_000), ("no JSON", "{oops"), ("Latin-1", b'{"a": "\xe9"}'),
                       ("an integer of 5,000 digits", '{"a": ' + "9" * 5000 + "}")):
        yield case(f"json, {name}", ("c.json", text), r"c\.json is not JSON \(.{1,120}\)$")
    for name, text in (("a number", '{"text": 3}'), ("half a character", '{"text": "\\ud83d"}'), ("an object", '{"caption": {}}'),
                       ("a long list", json.dumps({"text": ["word " * 2000, 3]}))):
        yield case(f"json, {name} as a caption", ("c.json", text), r"c\.json: its caption is .{1,120}; a string or a list")
    yield Case("shard, no captions", lambda root: [tar(root / f"{side}.tar", ("a.png", encoded(seed=i)), ("a.caption", "x"))
                                                   for i, side in enumerate(("train", "val"))] and None, None,
               r"has no caption; .*captions are read from KEY\.txt and KEY\.json .*; unread lie there \.caption", **web)
    yield Case("shard, a damaged picture", made(("c.png", encoded()[:50]), ("c.txt", "x")), None,
               r"train-0\.tar, sample c cannot be read as a picture", (2, 1), **web)
    yield Case("shard, an escape in a name", made(("c\x1b[31m.png", encoded()[:50]), ("c\x1b[31m.txt", "x")), None,
               r"sample c\\x1b\[31m cannot be read as a picture", (2, 1), **web)
    for name, data in (("nothing", b""), ("a web page", b"<html>" * 200), ("zeros and more", bytes(2048) + b"x" * 512)):
        yield Case(f"shard is {name}", lambda root, data=data: (made()(root), put(root / "train-1.tar", data)), None if name !=
                   "zeros and more" else (2, 1), r"train-1\.tar: it is no tar file" if name != "zeros and more" else "",
                   (2, 1) if name != "zeros and more" else None, **web)
    long = tarfile.TarInfo("x" * 300)
    head = bytearray(long.tobuf(tarfile.GNU_FORMAT)[:512])
    yield Case("shard, long names without end", lambda root: (made()(root), put(root / "train-1.tar", bytes(head) * 3000)), None,
               r"train-1\.tar: .{1,200}$", (2, 1), **web)
    head[124:136] = b"\x80\0\0\0\0\x10\0\0\0\0\0\0"
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    yield Case("shard, a name of a terabyte", lambda root: (made()(root), put(root / "train-1.tar", bytes(head) * 2)), None,
               r"train-1\.tar: .{1,200}$", (2, 1), **web)
    yield Case("shard, compressed", lambda root: (made()(root), put(root / "train-1.tar.gz", b"\x1f\x8b")), None,
               r"train-1\.tar\.gz is compressed", **web)
    yield Case("shard that is a link to nothing", lambda root: (made()(root), os.symlink("gone", root / "train-1.tar")), None,
               r"train-1\.tar is a link to gone, which is not there", (2, 1), **web)
    yield Case("shards in a linked folder", lambda root: (tar(root / "train-0.tar", *samples("a")), tar(
        root.parent / "elsewhere/sub/val-0.tar", *samples("v", "w")), os.symlink(root.parent / "elsewhere", root / "more"),
        os.symlink(root, root / "more/back")), (1, 2), "back is a link .* not followed", **web)
    for side in ("valid", "dev", "validation"):
        yield Case(f"shards of {side} and test", lambda root, side=side: [
            tar(root / f"{name}-0.tar", *samples("a", name)) for name in ("train", side, "test")] and None, (2, 2), **web)
    for count in (2, 24):
        yield Case(f"a shard of {count}", lambda root, count=count: tar(
            root / "0.tar", *samples(*map(str, range(count)))) and None, (count - 1, 1), either=count == 24, **web)
    yield Case("a folder without shards", lambda root: put(root / "x.txt", "x"), None, r"has no \*\.tar in it", **web)


def metadata() -> Iterator[Case]:
    """Listings, captions, splits and shards."""
    for group in (metadata_lines, tables, caption_files, splits, others, shards):
        yield from group()
