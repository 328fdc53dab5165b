"""Pictures and listings as people have them, and worse: small data sets, each with what is right to say of it."""

from __future__ import annotations

import io
import os
import random
import struct
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
    image(seed=seed).copy().save(held, kind, **options)  # saving as JPEG leaves its settings in a picture
    return held.getvalue()


def written(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    held = io.BytesIO()
    picture.copy().save(held, kind, **options)
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
NO_PICTURE = r"odd.* cannot be read as a picture: \S+"


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
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def declared() -> Iterator[tuple[str, str, bytes]]:
    """Small files that say they are huge."""
    yield "png", "odd.png", png(60_000, 60_000, 8, 2, b"")
    yield "jpeg", "odd.jpg", encoded("JPEG").replace(struct.pack(">HH", 20, 24), struct.pack(">HH", 65_000, 65_000), 1)
    yield "gif", "odd.gif", encoded("GIF")[:6] + struct.pack("<HH", 65_535, 65_535) + encoded("GIF")[10:]
    yield "bmp", "odd.bmp", encoded("BMP")[:18] + struct.pack("<ii", 90_000, 90_000) + encoded("BMP")[26:]
    yield "webp", "odd.webp", b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2 + b"VP8 \0\0\0\0"
    yield (
        "png with a text of 128 MB",
        "odd.png",
        png(4, 4, 8, 0, bytes(20), chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(128 << 20)))),
    )
    yield (
        "tiff",
        "odd.tif",
        (
            b"II*\0\x08\0\0\0\x03\0"
            + struct.pack("<HHII", 256, 4, 1, 80_000)
            + struct.pack("<HHII", 257, 4, 1, 80_000)
            + struct.pack("<HHII", 273, 4, 1, 8)
            + bytes(4)
        ),
    )


def modes() -> Iterator[tuple[str, str, bytes]]:
    """Pictures of every kind that are in order."""
    whole = image()
    for mode in ("1", "L", "P", "LA", "RGBA", "I;16"):
        made = (
            Image.fromarray(np.asarray(whole.convert("L")).astype(np.uint16) << 8)
            if mode == "I;16"
            else whole.convert(mode)
        )
        yield f"png {mode}", "odd.png", written(made)
    yield "png of 16 bits a colour", "odd.png", png(4, 4, 16, 2, (b"\0" + bytes(range(24))) * 4)
    yield "png of 2 bits", "odd.png", png(4, 4, 2, 0, b"\0\x1b" * 4)
    yield "palette with transparency", "odd.png", written(whole.convert("P"), transparency=3)
    yield "jpeg L", "odd.jpg", written(whole.convert("L"), "JPEG")
    yield "jpeg CMYK", "odd.jpg", written(whole.convert("CMYK"), "JPEG")
    yield "tiff CMYK", "odd.tif", written(whole.convert("CMYK"), "TIFF")
    yield "tiff of 16 bits", "odd.tif", written(Image.fromarray(np.full((9, 9), 4000, np.uint16)), "TIFF")
    more = [image(seed=i).copy() for i in (1, 2)]
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
    "a head of png": b"\x89PNG\r\n\x1a\n", "a head of jpeg": b"\xff\xd8\xff\xe0",
    "noise": random.Random(0).randbytes(999),
}  # fmt: skip
NAMES = {
    "composed letters": "\u00e9odd.png", "decomposed letters": "e\u0301odd.png",
    "emoji": "odd\U0001f469\u200d\U0001f4bb.png",
    "Chinese": "odd一只猫.png", "right to left": "odd\u202egnp.png", "a line feed": "o\nodd.png", "a tab": "o\todd.png",
    "an escape": "odd\x1b[31m.png", "quotes": "odd'\".png", "a blank": "my odd one.png", "a dash": "-odd.png",
    "a percent": "odd%s%20.png", "a backslash": "o\\odd.png", "dots": "my..odd.v2.png", "capitals": "ODDodd.PNG",
    "240 letters": "odd" + "x" * 237 + ".png", "undecodable bytes": os.fsdecode(b"odd\xff\xe9.png"),
    "braces": "odd{a}$b.png",
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
    yield Case(
        "link to the folder above", link("odd", lambda _, far: ".."), (4, 1), r"train/odd is a link .* not followed"
    )
    yield Case(
        "link to the folder itself", link("odd", lambda _, far: "."), (4, 1), r"train/odd is a link .* not followed"
    )
    yield Case(
        "link to far above", link("odd", lambda _, far: far.parent.parent), (4, 1), r"odd is a link .*not followed"
    )
    yield Case("link to the root of all", link("odd", lambda _, far: "/"), (4, 1), r"odd is a link .*not followed")
    yield Case(
        "link to a folder beside", link("odd", lambda root, far: root / "val"), (4, 1), r"is a link .*not followed"
    )
    yield Case(
        "link to nothing",
        link("odd.png", lambda _, far: "gone.png"),
        None,
        r"odd\.png is a link to gone\.png, which is not there",
        (4, 1),
    )
    yield Case(
        "link to nothing, no picture's name", link("odd", lambda _, far: "gone"), (4, 1), r"link to gone, which is not"
    )
    yield Case(
        "link to itself",
        link("odd.png", lambda _, far: "odd.png"),
        None,
        r"odd\.png cannot be looked at: Too many",
        (4, 1),
    )

    def loop(root: Path, far: Path) -> None:
        os.symlink(far, root / "train/odd")
        os.symlink(root, far / "back")

    yield Case("a loop over two folders", made(loop), (6, 1), r"back is a link .*not followed")
    yield Case(
        "a pipe", made(lambda root, far: os.mkfifo(root / "train/odd.png")), None, r"odd\.png is no file", (4, 1)
    )
    yield Case(
        "a folder named like a picture", made(lambda root, far: put(root / "train/odd.png/a.png", encoded())), (5, 1)
    )


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
    yield Case(
        "jpeg with scars",
        partial(with_odd, data=bytes(scarred), name="odd.jpg"),
        (5, 1),
        r"odd\.jpg is damaged and may look wrong: Corrupt JPEG",
    )
    for name, file, data in declared():
        yield odd(f"declared huge: {name}", data, False, file)
    for name, file, data in modes():
        yield odd(name, data, True, file)
    for name, data in OTHERS.items():
        yield odd(f"{name} named .png", data, False)
    for kind, file in (
        ("PNG", "odd.jpg"),
        ("JPEG", "odd.png"),
        ("WEBP", "odd.gif"),
        ("GIF", "odd.webp"),
        ("TIFF", "odd.jpg"),
    ):
        yield odd(f"{kind} named {file[3:]}", encoded(kind), True, file)
    for name, file in NAMES.items():
        yield odd(f"a name with {name}", encoded(), True, file)
        yield odd(f"damaged, a name with {name}", encoded()[:60], False, file)
    yield from links()
