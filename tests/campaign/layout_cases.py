"""COCO, CUB, fonts and tar shards, damaged and odd, each with what is right to say of it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from campaign.data_cases import Case, encoded, put


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
            put(
                root / f"annotations/captions_{side}2017.json",
                changes["text"] if side == "train" and "text" in changes else json.dumps(held),
            )

    return build


def others() -> Iterator[Case]:
    def case(name: str, says: str, skips: tuple[int, int] | None = (3, 3), **changes: Any) -> Case:
        return Case(f"coco, {name}", coco(**changes), None, says, skips, data="coco", captions=True)

    yield Case("coco", coco(), (3, 3), data="coco", captions=True, each=3)
    for value in ([1], {"a": 1}, 3, None):
        yield case(
            f"file_name is {value}",
            rf"images\[3\] is \(9, {re.escape(str(value))}\); wanted are id, file_name",
            images=[{"id": 9, "file_name": value}],
        )
    yield case("id is a list", r"images\[3\] is \(\[1\], 'x\.jpg'\)", images=[{"id": [1], "file_name": "x.jpg"}])
    yield case(
        "image_id is a list", r"annotations\[9\] is \(\[1\], 'a'\)", annotations=[{"image_id": [1], "caption": "a"}]
    )
    yield case("caption is null", r"annotations\[9\] is \(1, None\)", annotations=[{"image_id": 1, "caption": None}])
    yield case("caption is empty", r"an empty caption of 1\.jpg", annotations=[{"image_id": 1, "caption": " "}])
    yield case(
        "half a character",
        r"a caption of 1\.jpg holds half a character",
        annotations=[{"image_id": 1, "caption": "\ud83d"}],
    )
    yield case(
        "a caption of nothing, long",
        r"picture id 77, which is not listed: 'word.{0,80}\(\d,\d+ characters\)",
        annotations=[{"image_id": 77, "caption": "word " * 1500}],
    )
    yield case("a stray string", r"images\[3\] is 'x'", images=["x"])
    yield case(
        "a picture is not there",
        r"names train2017/x\.jpg, which is not there",
        images=[{"id": 9, "file_name": "x.jpg"}],
    )
    yield case(
        "all pictures are elsewhere",
        r"no pictures for split='train'.*\n.*names train2017/a\.jpg, which is not there\n",
        None,
        text=json.dumps(
            {
                "images": [{"id": i, "file_name": f"{c}.jpg"} for i, c in enumerate("abc")],
                "annotations": [{"image_id": 0, "caption": "a"}],
            }
        ),
    )
    yield Case(
        "coco, names composed in the list",
        coco(images=[{"id": 9, "file_name": "\u00e9.jpg"}], annotations=[{"image_id": 9, "caption": "a"}]),
        (4, 3),
        data="coco",
        captions=True,
    )
    for name, text in (
        ("damaged", "{oops"),
        ("empty", ""),
        ("nested", "[" * 20_000 + "]" * 20_000),
        ("Latin-1", b"\xe9"),
        ("an integer of 5,000 digits", '{"images": ' + "9" * 5000 + "}"),
    ):
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
        yield Case(
            f"cub, a box of {box}",
            append("bounding_boxes.txt", f"0 {box}\n"),
            None,
            rf"the box of picture 0 is '{box}'; four numbers",
            (6, 2),
            **bird,
        )
    yield Case(
        "cub, a line of three columns",
        append("images.txt", "9 x y\n"),
        None,
        r"images\.txt, line 9: '9 x y' has not 2",
        (6, 2),
        **bird,
    )
    yield Case(
        "cub, no captions of a bird",
        cub(lambda root: put(root / f"text/{keys[0]}.txt", " \n")),
        None,
        r"Bird_0 has no captions: .* is missing or empty",
        (5, 2),
        **bird,
    )
    yield Case(
        "cub, damaged picture",
        cub(lambda root: put(root / f"CUB_200_2011/images/{keys[0]}.jpg", b"x")),
        None,
        r"Bird_0\.jpg cannot be read as a picture",
        (5, 2),
        **bird,
    )
    for name, keys_of in (
        ("a command", b"cos\nsystem\n(S'true'\ntR."),
        ("damage", b"\x80\x04"),
        ("a dict", pickle.dumps({})),
    ):
        yield Case(
            f"cub, pickles with {name}",
            cub(
                lambda root, data=keys_of: (
                    [put(root / f"birds/{side}/filenames.pickle", data) for side in ("train", "test")] and None
                )
            ),
            None,
            r"filenames\.pickle (is refused|is damaged|holds a dict)",
            **bird,
        )
    yield Case(
        "emoji, no font",
        lambda root: root.mkdir(),
        None,
        r"data\.font=gone\.ttf: there is no such file",
        data="emoji",
        options=("data.styles=[font]", "data.font=gone.ttf"),
    )
    yield Case(
        "emoji, a picture as a font",
        lambda root: root.mkdir(),
        None,
        r"cannot be read as a font",
        data="emoji",
        options=("data.styles=[font]", f"data.font={Path(__file__)}"),
    )


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
    return [
        pair
        for i, name in enumerate(names)
        for pair in ((f"{name}.png", encoded(seed=i)), (f"{name}.txt", f"n {name}"))
    ]


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
        return Case(
            f"shard, {name}",
            made(*samples("c"), member),
            None,
            rf"train-0\.tar: {says}",
            skips,
            data="webdataset",
            captions=True,
        )

    web: dict[str, Any] = {"data": "webdataset", "captions": True}
    yield Case("shard", made(), (2, 1), **web, each=1)
    for cut in (0.1, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97):
        yield Case(
            f"shard cut at {cut:.0%}",
            made(*samples("c"), cut=cut),
            None,
            r"train-0\.tar: .*(cut off|unexpected end).* \(?\w* ?\d+\b",
            either=False,
            **web,
        )
    yield case(
        "a dot before the ending",
        ("my.photo.png", encoded()),
        r"sample my has no picture, only \.photo\.png \(a sample's name ends at its first dot",
        (3, 1),
    )
    yield Case(
        "shard, all names with dots",
        lambda root: (tar(root / "train.tar", *samples("a.x", "b.x")), tar(root / "val.tar", *samples("v"))),
        None,
        r"no pictures for split='train'; 2 faults in the listing:\n.*sample a has no",
        **web,
    )
    yield case("a caption twice", ("c.txt", "again"), r"c\.txt is in it twice", (3, 1))
    yield case("two pictures", ("c.jpg", encoded("JPEG")), "sample c has more than one picture")
    for name, text in (
        ("nested", "[" * 20_000 + "]" * 20_000),
        ("no JSON", "{oops"),
        ("Latin-1", b'{"a": "\xe9"}'),
        ("an integer of 5,000 digits", '{"a": ' + "9" * 5000 + "}"),
    ):
        yield case(f"json, {name}", ("c.json", text), r"c\.json is not JSON \(.{1,120}\)$")
    for name, text in (
        ("a number", '{"text": 3}'),
        ("half a character", '{"text": "\\ud83d"}'),
        ("an object", '{"caption": {}}'),
        ("a long list", json.dumps({"text": ["word " * 2000, 3]})),
    ):
        yield case(
            f"json, {name} as a caption", ("c.json", text), r"c\.json: its caption is .{1,120}; a string or a list"
        )
    yield Case(
        "shard, no captions",
        lambda root: (
            [
                tar(root / f"{side}.tar", ("a.png", encoded(seed=i)), ("a.caption", "x"))
                for i, side in enumerate(("train", "val"))
            ]
            and None
        ),
        None,
        r"has no caption; .*captions are read from KEY\.txt and KEY\.json .*; unread lie there \.caption",
        **web,
    )
    yield Case(
        "shard, a damaged picture",
        made(("c.png", encoded()[:50]), ("c.txt", "x")),
        None,
        r"train-0\.tar, sample c cannot be read as a picture",
        (2, 1),
        **web,
    )
    yield Case(
        "shard, an escape in a name",
        made(("c\x1b[31m.png", encoded()[:50]), ("c\x1b[31m.txt", "x")),
        None,
        r"sample c\\x1b\[31m cannot be read as a picture",
        (2, 1),
        **web,
    )
    for name, data in (("nothing", b""), ("a web page", b"<html>" * 200), ("zeros and more", bytes(2048) + b"x" * 512)):
        yield Case(
            f"shard is {name}",
            lambda root, data=data: (made()(root), put(root / "train-1.tar", data)),
            None if name != "zeros and more" else (2, 1),
            r"train-1\.tar: it is no tar file" if name != "zeros and more" else "",
            (2, 1) if name != "zeros and more" else None,
            **web,
        )
    long = tarfile.TarInfo("x" * 300)
    head = bytearray(long.tobuf(tarfile.GNU_FORMAT)[:512])
    yield Case(
        "shard, long names without end",
        lambda root: (made()(root), put(root / "train-1.tar", bytes(head) * 3000)),
        None,
        r"train-1\.tar: .{1,200}$",
        (2, 1),
        **web,
    )
    head[124:136] = b"\x80\0\0\0\0\x10\0\0\0\0\0\0"
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:]))
    yield Case(
        "shard, a name of a terabyte",
        lambda root: (made()(root), put(root / "train-1.tar", bytes(head) * 2)),
        None,
        r"train-1\.tar: .{1,200}$",
        (2, 1),
        **web,
    )
    yield Case(
        "shard, compressed",
        lambda root: (made()(root), put(root / "train-1.tar.gz", b"\x1f\x8b")),
        None,
        r"train-1\.tar\.gz is compressed",
        **web,
    )
    yield Case(
        "shard that is a link to nothing",
        lambda root: (made()(root), os.symlink("gone", root / "train-1.tar")),
        None,
        r"train-1\.tar is a link to gone, which is not there",
        (2, 1),
        **web,
    )
    yield Case(
        "shards in a linked folder",
        lambda root: (
            tar(root / "train-0.tar", *samples("a")),
            tar(root.parent / "elsewhere/sub/val-0.tar", *samples("v", "w")),
            os.symlink(root.parent / "elsewhere", root / "more"),
            os.symlink(root, root / "more/back"),
        ),
        (1, 2),
        "back is a link .* not followed",
        **web,
    )
    for side in ("valid", "dev", "validation"):
        yield Case(
            f"shards of {side} and test",
            lambda root, side=side: (
                [tar(root / f"{name}-0.tar", *samples("a", name)) for name in ("train", side, "test")] and None
            ),
            (2, 2),
            **web,
        )
    for count, name in ((2, "aa.tar"), (24, "ad.tar")):
        yield Case(
            f"a shard of {count}",
            lambda root, count=count, name=name: tar(root / name, *samples(*map(str, range(count)))) and None,
            (count - 1, 1),
            **web,
        )
    yield Case("a folder without shards", lambda root: put(root / "x.txt", "x"), None, r"has no \*\.tar in it", **web)
