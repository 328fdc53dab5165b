"""Pictures of one's own: what is read, how they are fitted, and what is said about faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data.folder import Folder
from t2i.data.image_dataset import assign_splits, find_files


def write(root: Path, *lines: dict | str, pictures: bool = True) -> str:
    root.mkdir(exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (root / "metadata.jsonl").write_text("\n".join(text), encoding="utf-8")
    for number, line in enumerate(lines):
        if pictures and isinstance(line, dict):
            Image.new("RGB", (12, 12), (number, 0, 0)).save(root / line["file_name"])
    return str(root)


def item(name: str, text: object = "a thing", **more: object) -> dict:
    return {"file_name": f"{name}.png", "text": text, **more}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def test_pictures_captions_and_splits(root) -> None:
    where = write(root, item("a", "one", split="train"), item("b", ["é 🙂", "x\u2028y"], split="val"), "", item("c"))
    train, val = Folder("train", where, image_size=8), Folder("val", where, image_size=8)
    assert [train[i, 0].key for i in range(len(train))] == ["a.png", "c.png"]  # no split of its own: training
    example = val[0, 7]
    assert len(val) == 1 and example.captions == val.captions(0) == ("é 🙂", "x\u2028y")
    assert example.image.shape == (3, 8, 8) and example.image.unique().tolist() == [0, 1]
    assert train[0, 0].captions == ("one",)


def test_without_splits_a_hash_of_the_name_decides(root) -> None:
    lines = [item(f"p{i}") for i in range(400)]
    where = write(root, *lines, pictures=False)
    for line in lines:
        (root / line["file_name"]).write_bytes(b"x")
    names = {split: {row["key"] for row in Folder(split, where).rows} for split in ("train", "val")}
    assert names["train"] | names["val"] == {line["file_name"] for line in lines}
    assert not names["train"] & names["val"] and 8 <= len(names["val"]) <= 34
    write(root, *reversed(lines[:200]), pictures=False)  # a picture stays on its side whatever the others are
    assert {row["key"] for row in Folder("val", where).rows} <= names["val"]


def test_other_splits_are_left_alone_and_an_absent_one_is_named(root) -> None:
    where = write(root, item("a", split="train"), item("b", split="test"))
    assert len(Folder("train", where)) == 1
    with pytest.raises(ValueError, match="no pictures for split='val'; it has test, train"):
        Folder("val", where)
    with pytest.raises(ValueError, match="it has no pictures at all"):
        Folder("train", write(root, ""))


@pytest.mark.parametrize(
    "line, message",
    [
        ("{oops", r"metadata.jsonl, line 2: not JSON"),
        ('["a.png", "b"]', r"line 2: file_name and text missing; wanted are file_name, text, split"),
        ('{"file_name": "b.png"}', r"line 2: text missing"),
        ('{"text": "b"}', r"line 2: file_name missing"),
        ('{"file_name": 3, "text": "b"}', r"line 2: file_name is 3"),
        ('{"file_name": "b.png", "text": 3}', r"line 2: text is 3; a caption or a list of captions is wanted"),
        ('{"file_name": "b.png", "text": []}', r"line 2: text is \[\]"),
        ('{"file_name": "b.png", "text": ["a", " "]}', r"line 2: text is .* none of them empty"),
        ('{"file_name": "b.png", "text": "b", "split": 1}', r"line 2: split is 1; train or val is wanted"),
    ],
)
def test_faults_are_named_with_their_line(root, line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder("train", write(root, item("a"), line))


def test_encodings(root) -> None:
    where = write(root, item("a"))
    text = (root / "metadata.jsonl").read_bytes()
    (root / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + text + b"\r\n")  # as Windows writes it
    assert len(Folder("train", where)) == 1
    (root / "metadata.jsonl").write_bytes(text + b"\n" + text.replace(b"thing", b"caf\xe9"))
    with pytest.raises(ValueError, match="line 2: not UTF-8"):
        Folder("train", where)


def test_missing_folders_lists_and_pictures(root) -> None:
    with pytest.raises(ValueError, match="is not a folder; it must hold pictures"):
        Folder("train", str(root))
    root.mkdir()
    with pytest.raises(ValueError, match="it has no pictures at all"):
        Folder("train", str(root))
    where = write(root, item("gone"), item("here"), item("here"), pictures=False)
    Image.new("RGB", (12, 12)).save(root / "here.png")
    with pytest.raises(ValueError, match=r"1 fault .*\n  metadata.jsonl, line 1: .*gone.png is not there"):
        Folder("train", where)
    kept = Folder("train", where, on_error="skip")
    assert len(kept) == 1 and len(kept.faults) == 1 and kept.captions(0) == ("a thing", "a thing")
    (root / "here.png").unlink()
    with pytest.raises(ValueError, match=r"here.png cannot be read: No such file"):
        kept[0, 0]


def test_a_typo_in_a_split_is_no_split(root) -> None:
    with pytest.raises(ValueError, match="line 2: split is 'vall'; train or val is wanted"):
        Folder("train", write(root, item("a"), item("b", split="vall")))
    assert len(Folder("val", write(root, item("a"), item("b", split="validation")))) == 1


def test_names_stay_inside_the_folder(root) -> None:
    for name in ("../x.png", "/etc/x.png"):
        with pytest.raises(ValueError, match="a name inside the folder is wanted"):
            Folder("train", write(root, {"file_name": name, "text": "x"}, pictures=False))


def test_csv(root) -> None:
    root.mkdir()
    for name in "abc":
        Image.new("RGB", (12, 12)).save(root / f"{name}.png")
    lines = ["file_name,text,split", 'a.png,"one, two",train', "b.png,three,val", "c.png,four,"]
    (root / "metadata.csv").write_text("\n".join(lines))
    train = Folder("train", str(root))
    assert [train.captions(i) for i in range(len(train))] == [("one, two",), ("four",)]
    assert Folder("val", str(root)).captions(0) == ("three",)
    (root / "metadata.csv").write_text("file_name,text\na.png,one, two")
    with pytest.raises(ValueError, match="line 2: not as many cells as the first line has.*stand in quotes"):
        Folder("train", str(root))


def test_text_files_beside_the_pictures_and_pictures_alone(root) -> None:
    (root / "deep/er").mkdir(parents=True)
    for i in range(60):
        Image.new("RGB", (12, 12)).save(root / f"deep/er/{i}.PNG")
        if i % 2:
            (root / f"deep/er/{i}.txt").write_text(f"first {i}\n\n second é {i} \n", encoding="utf-8")
    (root / ".hidden.png").write_bytes(b"")
    rows = [row for split in ("train", "val") for row in Folder(split, str(root), on_error="skip").rows]
    assert len(rows) == 60 and {row["key"] for row in rows} == {f"deep/er/{i}.PNG" for i in range(60)}
    found = {row["key"]: row["captions"] for row in rows}
    assert found["deep/er/7.PNG"] == ["first 7", "second é 7"] and found["deep/er/8.PNG"] == []


@pytest.mark.parametrize("val", ["val", "validation"])
def test_folders_named_like_splits(root, val: str) -> None:
    for folder, count in (("train", 3), (val, 2)):
        (root / folder / "sub").mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (12, 12)).save(root / folder / f"sub/{i}.png")
    write(root / "train", {"file_name": "sub/1.png", "text": "only this"}, pictures=False)
    train, held = Folder("train", str(root)), Folder("val", str(root))
    assert [train.key(i) for i in range(len(train))] == ["train/sub/1.png"] and train.captions(0) == ("only this",)
    assert [held.key(i) for i in range(len(held))] == [f"{val}/sub/0.png", f"{val}/sub/1.png"]
    assert train[0, 0].image.shape == (3, 64, 64)


def keys(split: str, root: Path, **options: object) -> list[str]:
    return [row["key"] for row in Folder(split, str(root), **options).rows]


def pictures(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


@pytest.mark.parametrize("count, start", [(2, "aa"), (18, "ae"), (30, "af")])
def test_a_few_pictures_have_one_for_validation(root, count: int, start: str) -> None:
    """Names of which none falls to validation by its own hash: it is the first by hash, whatever the order."""
    names = [f"{start}{i}.png" for i in range(count)]
    pictures(root, *names)
    val = keys("val", root)
    assert len(val) == 1 and keys("train", root) == sorted(set(names) - set(val))
    assert [name for name, side in zip(names[::-1], assign_splits(names[::-1]), strict=True) if side == "val"] == val
    assert assign_splits(["one"]) == ["train"] and assign_splits([]) == []


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
@pytest.mark.parametrize("within", ["", "data/"])
def test_known_names_of_folders_are_splits_and_test_is_left_alone(root, val: str, within: str) -> None:
    pictures(root, *(f"{within}{side}/{i}.png" for side in ("train", val, "testing") for i in range(3)), "aside/0.png")
    assert keys("train", root) == [f"{within}train/{i}.png" for i in range(3)]
    assert keys("val", root) == [f"{within}{val}/{i}.png" for i in range(3)]
    beside, left = Folder("train", str(root)).notes
    assert "1 pictures lie beside the folders" in beside and "aside/0.png is the first" in beside
    assert left == f"{within}testing/ is left alone: 3 pictures"


def test_test_alone_takes_no_training_pictures_away_and_likely_splits_are_told(root) -> None:
    pictures(root, *(f"{side}/{i}.png" for side in ("cats", "test", "val_images") for i in range(30)))
    both = keys("train", root) + keys("val", root)
    assert len(both) == 60 and not any(key.startswith("test/") for key in both)
    assert any(note.startswith("val_images/ looks like a split and is none") for note in Folder("val", str(root)).notes)


def test_a_list_that_says_no_split_leaves_it_to_the_folders(root) -> None:
    lines = [{"file_name": f"{side}/{i}.png", "text": "x"} for side in ("train", "valid", "test") for i in range(3)]
    pictures(root, *(line["file_name"] for line in lines))
    write(root, *lines, pictures=False)
    assert [len(keys(split, root)) for split in ("train", "val")] == [3, 3]


def test_several_lines_of_a_picture_are_its_captions(root) -> None:
    where = write(root, item("a", "one"), item("b"), item("a", ["two", "three"]), item("a", "one"))
    found = {row["key"]: row["captions"] for split in ("train", "val") for row in Folder(split, where).rows}
    assert found == {"a.png": ["one", "two", "three", "one"], "b.png": ["a thing"]}
    where = write(root, item("a", split="train"), item("b", split="val"), item("a", split="val"))
    with pytest.raises(ValueError, match=r"line 3: a\.png is for val here, for train in line 1"):
        Folder("train", where)


def test_names_in_another_unicode_form_or_with_backslashes_are_found(root) -> None:
    pictures(root, "e\u0301/\u00fc.png", "a/b.png", "c.png", "v.png")
    names = ("\u00e9/u\u0308.png", "a\\b.png", "./c.png")
    write(root, *({"file_name": name, "text": name, "split": "train"} for name in names), item("v", split="val"),
          pictures=False)
    assert keys("train", root) == ["e\u0301/\u00fc.png", "a/b.png", "c.png"]


def test_every_fault_is_told_three_are_shown_and_skipping_leaves_only_them_out(root) -> None:
    bad = ['{"file_name": "c.png", "text": ""}', "{oops", '{"file_name": "c.png", "text": ["good", " "]}',
           '{"file_name": "c.png", "text": ' + "[" * 20_000 + "]" * 20_000 + "}", item("gone")]
    where = write(root, item("a"), item("c"), item("v", split="val"), pictures=True)
    write(root, item("a"), *bad, item("v", split="val"), pictures=False)
    with pytest.raises(ValueError, match=r"5 faults .*\n.*line 2: text is ''; .*\n.*line 3: not JSON .*\n.*line 4: text"
                                         r" is \['good', ' '\].*\n  and 2 more; prepare\.py lists all$"):
        Folder("train", where)
    kept = Folder("train", where, on_error="skip")
    assert [row["captions"] for row in kept.rows] == [["a thing"], ["good"]] and len(kept.faults) == 5
    write(root, *(item(f"gone{i}") for i in range(9)), pictures=False)
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match=r"no pictures for split='train'; 9 faults in the listing:\n  metadata"
                                             r".jsonl, line 1: .*gone0\.png is not there\n.*\n.*\n  and 6 more"):
            Folder("train", where, on_error=on_error)


def test_links_are_followed_once(root, tmp_path) -> None:
    pictures(root, "a.png", "sub/b.png")
    pictures(tmp_path / "far", "deep/er/c.png")
    for link, to in (("loop", "."), ("sub/up", ".."), ("twice", "sub"), ("far", "../far"), ("above", "../..")):
        (root / link).symlink_to(to)
    files = find_files(root, deep=True)
    assert list(files) == ["a.png", "sub/b.png", "far/deep/er/c.png"]
    assert sorted(note.split(" is a link")[0].removeprefix(f"{root}/") for note in files.notes) == [
        "above", "loop", "sub/up", "twice"]
    (root / "gone.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"gone\.png is a link to nowhere, which is not there"):
        Folder("train", str(root))
    assert len(keys("train", root, on_error="skip")) == 2


@pytest.mark.parametrize("name, text", [
    ("captions.csv", 'image,caption\nI/a.png,"one, two"\nI/b.png,x\nI/a.png,three'),
    ("captions.txt", "a.png,one, two\r\nb.png,x\r\na.png,three\r\n"),
    ("captions.txt", 'image\tcaption\na.png\tone, two\nb.png\tx\na.png\t"three"'),
])  # fmt: skip
def test_lists_of_captions(root, name: str, text: str) -> None:
    pictures(root, "I/a.png", "I/b.png")
    (root / name).write_bytes(text.encode())
    found = {row["key"]: row["captions"] for split in ("train", "val") for row in Folder(split, str(root)).rows}
    assert found == {"I/a.png": ["one, two", "three"], "I/b.png": ["x"]}
    (root / name).write_bytes(text.encode() + b"\ngone.png" + (b"\tx" if b"\t" in text.encode() else b",x"))
    with pytest.raises(ValueError, match=rf"{name}, line \d: no picture 'gone\.png'"):
        Folder("train", str(root))


def test_texts_lie_beside_or_in_a_folder_of_their_own(root) -> None:
    pictures(root, "images/x/a.png", "images/b.png", "images/c.png")
    texts = {"text/x/a.txt": "a", "captions/b.TXT": "b", "images/c.TXT": "c", "text/c.txt": "not this"}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    rows = [row for split in ("train", "val") for row in Folder(split, str(root)).rows]
    assert {row["key"]: row["captions"] for row in rows} == {"images/x/a.png": ["a"], "images/b.png": ["b"],
                                                             "images/c.png": ["c"]}


def test_crops_and_flips_are_functions_of_seed_epoch_and_index(root) -> None:
    root.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (20, 26, 3), np.uint8)).save(root / f"{i}.png")
    write(root, *(item(str(i)) for i in range(6)), item("v", split="val"), pictures=False)
    Image.new("RGB", (12, 12)).save(root / "v.png")
    options = {"image_size": 16, "load_size": 20, "crop": "random", "flip": True}
    one, same, other = (Folder("train", str(root), seed=seed, **options) for seed in (0, 0, 1))
    seen = [one[i, epoch].image for epoch in range(4) for i in range(6)]
    assert all(torch.equal(a, same[i, epoch].image) for a, (epoch, i) in
               zip(seen, ((e, i) for e in range(4) for i in range(6)), strict=True))
    assert len({image.numpy().tobytes() for image in seen}) > 20
    assert any(not torch.equal(one[i, 0].image, other[i, 0].image) for i in range(6))
    flips = Folder("train", str(root), image_size=16, flip=True)
    plain = Folder("train", str(root), image_size=16)
    for i in range(6):  # every other epoch, beginning with either
        turned = [not torch.equal(flips[i, e].image, plain[i, e].image) for e in range(4)]
        assert turned in ([False, True] * 2, [True, False] * 2)
        assert torch.equal(flips[i, turned.index(True)].image, plain[i, 0].image.flip(2))
    val = Folder("val", str(root), **options)
    assert val.side == 16 and torch.equal(val[0, 0].image, val[0, 5].image)


@pytest.mark.parametrize(
    "options, message",
    [({"load_size": 8}, "load_size=8 is less than data.image_size=16"),
     ({"load_size": 20}, "crop=center would only zoom in"),
     ({"views": 0}, "views=0 must be at least 1"),
     ({"on_error": "skip", "pack": False}, "on_error=skip needs data.pack=true")],
)  # fmt: skip
def test_settings_that_do_not_go_together(root, options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Folder("train", write(root, item("a")), **{"image_size": 16, **options})


def captions_of(root: Path) -> dict[str, list[str]]:
    return {row["key"]: row["captions"] for split in ("train", "val") for row in Folder(split, str(root)).rows}


@pytest.mark.parametrize("name, text", [
    ("captions.tsv", "image\tcaption\nI/a.JPG\tone, two\nI/b.png\tx\nI/a.JPG\tthree"),
    ("all of it.TSV", "id\tcaption\tfile_name\n1\tone, two\ta.JPG\n2\tx\tb.png\n3\tthree\ta.JPG"),
    ("results.csv", 'caption,image\n"one, two",a.JPG\nx,b.png\nthree,a.JPG'),
    ("captions.json", {"images": [{"id": 7, "file_name": "a.JPG"}, {"id": 8, "file_name": "b.png"}], "annotations": [
        {"image_id": i, "caption": text} for i, text in ((7, "one, two"), (8, "x"), (7, "three"))]}),
    ("instances.json", {"images": [{"id": "p", "file_name": "I/a.JPG"}, {"id": 8, "file_name": "I/b.png"}],
                        "annotations": [{"image_id": i, "caption": text, "id": 1} for i, text in
                                        (("p", "one, two"), (8, "x"), ("p", "three"))]}),
])  # fmt: skip
def test_one_list_by_whatever_name_its_columns_and_cocos_json(root, name: str, text: str | dict) -> None:
    pictures(root, "I/a.JPG", "I/b.png")
    (root / name).write_text(text if isinstance(text, str) else json.dumps(text))
    assert captions_of(root) == {"I/a.JPG": ["one, two", "three"], "I/b.png": ["x"]}
    assert Folder("train", str(root)).facts() == {"captions from": name}


def test_of_several_lists_none_is_read_and_what_is_no_list_of_captions_is_told(root) -> None:
    pictures(root, "a.png", "b.png", "c.png")
    (root / "one.csv").write_text("a.png,x")
    (root / "two.csv").write_text("a.png,y")
    found = Folder("train", str(root))
    assert any("one.csv, two.csv: several lists, of which none is read" in note for note in found.notes)
    assert found.facts() == {"captions from": "nothing: pictures alone"}
    (root / "two.csv").unlink()
    (root / "one.csv").rename(root / "a.json")  # of that picture alone
    assert captions_of(root) == {"a.png": [], "b.png": [], "c.png": []}
    (root / "a.json").rename(root / "boxes.json")
    (note,) = Folder("train", str(root)).notes
    assert note.startswith("not read: ") and "boxes.json is damaged" in note
    (root / "boxes.json").rename(root / "captions.json")
    with pytest.raises(ValueError, match=r"captions\.json is damaged"):
        Folder("train", str(root))


def test_faults_of_lists_with_columns_and_of_cocos_json(root) -> None:
    pictures(root, "a.png", "b.png")
    (root / "captions.tsv").write_text("id\tfile_name\ttext\n1\ta.png\tx\n2\tb.png\n3\tgone.png\ty")
    with pytest.raises(ValueError, match=r"line 3: no caption of b\.png\n.*line 4: no picture 'gone\.png'"):
        Folder("train", str(root))
    (root / "captions.tsv").write_text("id\tx\ty\n1\ta.png\tx")
    with pytest.raises(ValueError, match=r"captions\.tsv, line 1: the columns are 'id, x, y'; wanted are a name and"):
        Folder("train", str(root))
    (root / "captions.tsv").unlink()
    held = {"images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}], "annotations": [
        {"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": "y"}, {"image_id": 9, "caption": "z"}]}
    (root / "captions.json").write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"annotation 2: no picture 'gone\.png'\n.*annotation 3: no picture 'id 9'"):
        Folder("train", str(root))
    assert captions_of_skipping(root) == {"a.png": ["x"], "b.png": []}


def captions_of_skipping(root: Path) -> dict[str, list[str]]:
    return {row["key"]: row["captions"] for split in ("train", "val")
            for row in Folder(split, str(root), on_error="skip").rows}


def test_prepares_facts_say_where_captions_come_from(root) -> None:
    pictures(root, "a.png", "b.png")
    assert Folder("train", str(root)).facts() == {"captions from": "nothing: pictures alone"}
    (root / "a.txt").write_text("x")
    assert Folder("train", str(root)).facts() == {"captions from": "text files beside the pictures"}
    (root / "metadata.tsv").write_text("file_name\ttext\na.png\tone, two\nb.png\tx")
    assert Folder("train", str(root)).facts() == {"captions from": "metadata.tsv"}
    assert captions_of(root) == {"a.png": ["one, two"], "b.png": ["x"]}
