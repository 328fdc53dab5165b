"""Data sets of the library `datasets`: which columns and splits are read, what is refused, and the packed cache."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from t2i.config.compose import compose
from t2i.data import packed, prepare
from t2i.data.datasets import SPLITS, dataset
from t2i.data.decode import read_pixels
from t2i.data.huggingface import Cursor, HuggingFace


def png(seed: int, side: int = 12) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(held, "PNG")
    return held.getvalue()


def write(path: Path, pictures: list[Any], captions: Any = None, **columns: Any) -> Path:
    """A Parquet file as the library writes it: pictures as bytes, or records of bytes and path."""
    records = [{"bytes": held, "path": None} if isinstance(held, bytes) else held for held in pictures]
    captions = [f"caption {i}" for i in range(len(records))] if captions is None else captions
    made = datasets.Dataset.from_dict({"picture": records, "text": captions, **columns})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made.cast_column("picture", datasets.Image()).data.table, path, row_group_size=5)
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself the library's tables lie in `cache/` of the current folder."""
    monkeypatch.chdir(tmp_path)


def opened(path: Path | str, split: str = "train", **options: Any) -> HuggingFace:
    return HuggingFace(split, str(path), **{"image_size": 8, **options})  # type: ignore[arg-type]


def test_parquet_by_the_splits_in_its_names(tmp_path) -> None:
    for name, count in (("train-00000-of-00002", 3), ("train-00001-of-00002", 2), ("validation-0", 2), ("test-0", 4)):
        write(tmp_path / f"set/data/{name}.parquet", [png(i) for i in range(count)])
    (tmp_path / "set/README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: http://x/y\n---\n")
    train, val = opened(tmp_path / "set"), opened(tmp_path / "set", "val")
    assert [train.key(i) for i in range(len(train))] == [f"train/{i}" for i in range(5)] and len(val) == 2
    assert val[1, 0].captions == ("caption 1",) and val[1, 0].image.shape == (3, 8, 8)
    assert train.facts() == {"splits": ["test", "train", "val"], "training": "train", "image column": "picture",
                             "caption column": "text"}
    alone = opened(tmp_path / "set/data/test-0.parquet", "train", val_split="train[75%:]", train_split="train[:75%]")
    assert [alone.key(i) for i in range(len(alone))] == [f"train[:75%]/{i}" for i in range(3)]
    with pytest.raises(ValueError, match=r"^data\.val_split=tast: data\.path='.*' has no split 'tast'; it has"):
        opened(tmp_path / "set", val_split="tast")
    with pytest.raises(ValueError, match="data.train_split and data.val_split are both train"):
        opened(tmp_path / "set", val_split="train")


def test_what_is_held_out_is_disjoint_and_equal_pictures_are_on_one_side(tmp_path) -> None:
    """Every picture stands in two rows."""
    path = write(tmp_path / "all.parquet", [png(i % 60) for i in range(120)])
    sides = {split: {row["index"] for row in opened(path, split).rows} for split in SPLITS}
    assert not sides["train"] & sides["val"] and len(sides["train"] | sides["val"]) == 120
    assert 2 <= len(sides["val"]) <= 16 and {(i + 60) % 120 for i in sides["val"]} == sides["val"]
    assert opened(path).facts()["training"] == "train, every twentieth row held out"


def test_columns_are_guessed_by_type_and_usual_names_or_given(tmp_path) -> None:
    images = [png(i) for i in range(4)]
    labels = datasets.ClassLabel(names=["red_fox", "cat"])
    held = datasets.Dataset.from_dict(
        {"img": images, "Caption": [["a", None, " "], ["b", "c"], [], None], "kind": [0, 1, 1, 0], "note": list("wxyz"),
         "size": [1, 2, 3, 4]},
        features=datasets.Features({"img": datasets.Value("binary"), "Caption": datasets.List(datasets.Value("string")),
                                    "kind": labels, "note": datasets.Value("string"),
                                    "size": datasets.Value("int64")}))
    held.to_parquet(tmp_path / "a.parquet")
    guessed = opened(tmp_path / "a.parquet", train_split="train", val_split="train[:1]")
    assert [row["captions"] for row in guessed.rows] == [["a"], ["b", "c"], [], []]
    assert (guessed.image_column, guessed.caption_column) == ("img", "Caption")
    assert torch.equal(guessed.pixels(guessed.rows[2]), guessed.pixels(guessed.rows[2])) and guessed[2, 0].image.any()
    for column, wanted in (("kind", ["red fox", "cat"]), ("note", ["w", "x"])):
        given = opened(tmp_path / "a.parquet", val_split="train[:1]", caption_column=column)
        assert [caption for row in given.rows for caption in row["captions"]][:2] == wanted
    for options, message in (
        ({"caption_column": "size"}, r"^data\.caption_column=size holds int64; strings, lists of strings or class labe"
                                     r"ls are wanted; it has img \(binary\), Caption \("),
        ({"caption_column": "texts"}, r"^data\.caption_column=texts: data\.path='.*' has no such column; it has img"),
        ({"image_column": "note"}, r"^data\.image_column=note holds string; pictures or their bytes are wanted"),
    ):
        with pytest.raises(ValueError, match=message):
            opened(tmp_path / "a.parquet", **options)


def test_tables_without_pictures_with_two_or_without_captions(tmp_path) -> None:
    pq.write_table(pa.table({"text": ["a"], "url": ["b"]}), tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=r"none\.parquet' has no column of pictures; data\.image_column= names one; it "
                                         r"has text \(string\), url \(string\)$"):
        opened(tmp_path / "none.parquet")
    both = write(tmp_path / "two.parquet", [png(0), png(1)], mask=[{"bytes": png(2), "path": None}] * 2)
    held = pq.read_table(both)
    pq.write_table(held.replace_schema_metadata(None), tmp_path / "two.parquet")
    with pytest.raises(ValueError, match=r"has several columns of pictures \(picture, mask\); data\.image_column="):
        opened(both)
    bare = opened(both, image_column="mask", val_split="train[:1]")
    assert bare.caption_column == "text" and torch.equal(bare[0, 0].image, bare[1, 0].image)
    pq.write_table(held.rename_columns(["picture", "title", "m"]).drop_columns("m"), tmp_path / "bare.parquet")
    bare = opened(tmp_path / "bare.parquet", image_column="picture")
    assert bare.caption_column is None and bare.caption_hint == "data.caption_column= names a column of captions; it" \
        " has title"


def test_an_imagefolder_and_no_script_is_run(tmp_path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for i in range(3):
        (folder / f"{i}.PNG").write_bytes(png(i))
        lines.append(json.dumps({"file_name": f"{i}.PNG", "caption": f"photo {i}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    (folder / "photos.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    rows = [row for split in SPLITS for row in opened(folder, split).rows]
    assert sorted(row["captions"][0] for row in rows) == ["photo 0", "photo 1", "photo 2"]
    assert opened(folder)[0, 0].image.shape == (3, 8, 8)
    alone = tmp_path / "alone"
    alone.mkdir()
    (folder / "photos.py").rename(alone / "alone.py")
    with pytest.raises(ValueError, match=r"holds no Parquet file and no picture; there is a script, alone\.py"):
        opened(alone)
    with pytest.raises(ValueError, match=r"alone\.py' is no Parquet file"):
        opened(alone / "alone.py")
    assert not (tmp_path / "ran").exists()


def test_a_row_opens_no_file_outside_of_the_data_set(tmp_path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(0))
    (tmp_path / "set").mkdir()
    (tmp_path / "set/own.png").write_bytes(png(7))
    paths = ["own.png", str(secret), "../secret.png", "http://127.0.0.1:9/x.png", "gone.png", None, "own.png"]
    path = write(tmp_path / "set/a.parquet", [{"bytes": None, "path": each} for each in paths])
    whole = {"train_split": "train", "val_split": "train[:1]"}
    with pytest.raises(ValueError, match=r"5 faults in the listing.*\n  train, row 1: it names '.*secret\.png', which "
                                         r"lies outside of the data set: not opened\n  train, row 2: .*not opened\n"):
        opened(path, **whole)
    kept = opened(path, on_error="skip", **whole)
    assert [row["index"] for row in kept.rows] == [0, 6] and kept.faults[-1] == "train, row 5: it has no picture"
    assert kept.faults[2].endswith("x.png is not there") and kept.faults[3].endswith("gone.png is not there")
    assert torch.equal(kept.pixels(kept.rows[1]), read_pixels(png(7), "x"))


def test_a_table_without_rows_is_named(tmp_path) -> None:
    write(tmp_path / "data" / "train-0.parquet", [png(0), png(1)])
    write(tmp_path / "data" / "train-1.parquet", [])
    for path in (tmp_path / "data", tmp_path / "data" / "train-1.parquet"):
        with pytest.raises(ValueError, match=r"^data\.path='\S+': train-1\.parquet has no rows$"):
            opened(path)


def test_damaged_files_and_pictures(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", [png(0), b"no picture", png(1), png(2)])
    made = opened(path, train_split="train[:3]", val_split="train[3:]")
    with pytest.raises(ValueError, match=r", train\[:3\], row 1 cannot be read as a picture: it is none, or of an"):
        made.pixels(made.rows[1])
    content = path.read_bytes()
    for cut, streaming in ((content[:-20], False), (content[:-20], True), (b"", False), (content[:50] + content, True)):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=r"^data\.path='.*a\.parquet': it cannot be read: .+") as error:
            opened(path, streaming=streaming)
        assert "\n" not in str(error.value)


def test_names_on_the_hub_are_looked_up_offline(tmp_path) -> None:
    for options, message in (
        ({}, r"^data\.path='owner/name': there is no such file or folder, and no data set of that name was fetched to"
             r" .*; data\.allow_download=true fetches it"),
        ({"allow_download": True}, r"^data\.path='owner/name': the hub cannot be reached"),
    ):
        with pytest.raises(ValueError, match=message):
            opened("owner/name", **options)
    with pytest.raises(ValueError, match=r"^data\.path='nowhere': .* a name on the hub is OWNER/NAME"):
        opened("nowhere")
    with pytest.raises(ValueError, match=r"^data\.revision=main is of a data set on the hub"):
        opened(tmp_path, revision="main")
    table = write(tmp_path / "data/train.parquet", [png(i) for i in range(40)])
    builder = datasets.load_dataset_builder("parquet", data_files=str(table), cache_dir=str(tmp_path / "there"))
    builder.download_and_prepare()
    there = tmp_path / "cache/huggingface/owner___name/default"  # as a fetched one lies
    shutil.copytree(Path(builder.cache_dir).parents[1], there)
    for file in there.rglob("parquet-*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet-", "name-")))
    both = [opened("owner/name", split) for split in SPLITS]
    assert sum(map(len, both)) == 40 and both[0][0, 0].captions == ("caption 0",)


def test_each_table_has_a_cache_of_its_own(tmp_path) -> None:
    for name in ("one", "two"):
        write(tmp_path / f"set/{name}.parquet", [png(i) for i in range(30)])
    found = {packed.cache_folder(opened(tmp_path / f"set/{name}.parquet", streaming=streaming), tmp_path)
             for name in ("one", "two") for streaming in (False, True)}
    assert len(found) == 4


def test_without_the_library_one_line_says_what_to_install(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"^data=huggingface needs the package datasets .*: pip install datasets$"):
        opened(tmp_path / "a.parquet")


def test_a_stream_packs_the_same_pictures_and_leaves_no_table(tmp_path) -> None:
    pictures = [png(i) for i in range(100)]
    pictures[17] = b"no picture"
    path = write(tmp_path / "set/train.parquet", pictures)
    write(tmp_path / "set/val.parquet", [png(i) for i in range(200, 203)])
    plain = opened(path.parent, on_error="skip")
    packed.attach(plain, tmp_path / "packed", workers=3)
    shutil.rmtree(tmp_path / "cache")  # from here on the packed cache alone is read
    streamed = opened(path.parent, on_error="skip", streaming=True)
    assert packed.attach(streamed, tmp_path / "streamed", workers=3)[0]["skipped"] == "train/17"
    assert not list(tmp_path.rglob("*.arrow")) and len(plain) == len(streamed) == 99
    for i in range(99):
        one, other = plain[i, 0], streamed[i, 0]
        assert one.key == other.key and one.captions == other.captions and torch.equal(one.image, other.image)
    halves = [opened(path, split, streaming=True) for split in SPLITS]
    assert {row["index"] for half in halves for row in half.rows} == set(range(100)) and len(halves[1]) < 20
    assert halves[1].pixels(halves[1].rows[0]).shape == (3, 12, 12)
    with pytest.raises(ValueError, match="data.streaming=true needs data.pack=true"):
        opened(path, streaming=True, pack=False)


def test_a_cursor_goes_on_keeps_some_and_begins_anew() -> None:
    begun = []

    def begin() -> Any:
        begun.append(True)
        return iter(range(0, 2000, 2))

    cursor = Cursor(begin, range(0, 1000, 3))
    assert [cursor[i] for i in (0, 9, 3, 30)] == [0, 18, 6, 60] and len(begun) == 1
    assert cursor[999] == 1998 and len(cursor.held) <= 256 and cursor[900] == 1800 and len(begun) == 1
    assert cursor[3] == 6 and len(begun) == 2
    with pytest.raises(ValueError, match="the stream is shorter than it was"):
        cursor[1001]


def test_prepare_prints_what_was_guessed_and_training_reads_it(tmp_path, capsys) -> None:
    path = write(tmp_path / "a.parquet", [png(i, 40) for i in range(30)])
    words = ["data=huggingface", f"data.path={path}", "data.image_size=32"]
    assert prepare.run(compose(words, "prepare")) == 0
    printed = capsys.readouterr().out
    assert "image column: picture" in printed and "caption column: text" in printed
    assert "training: train, every twentieth row held out" in printed and "median, most): 40, 40, 40" in printed
    config = compose(["model=vqgan", *words])
    made = {split: dataset(config, split) for split in SPLITS}
    assert made["train"].store is not None and sum(map(len, made.values())) == 30
    assert (tmp_path / "cache/huggingface").is_dir() and torch.equal(
        made["train"][0, 0].image, made["train"].decoded(made["train"].rows[0]))
