"""The look at a data set: every fault of real folders is found and named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from t2i.config.compose import compose
from t2i.data.prepare import run


def picture(seed: int, side: int = 40) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    where = tmp_path / "pictures"
    for folder, seeds in (("train", range(6)), ("val", range(10, 13))):
        (where / folder).mkdir(parents=True)
        for seed in seeds:
            picture(seed).save(where / folder / f"{seed}.png")
            (where / folder / f"{seed}.txt").write_text(f"picture number {seed}")
    return where


def looked(root: Path, *overrides: str) -> tuple[int, dict]:
    code = run(compose(["data=folder", f"data.root={root}", "data.image_size=32", *overrides], "prepare"))
    return code, json.loads(Path("checks/folder.json").read_text())


def test_a_sound_folder(root, capsys) -> None:
    code, found = looked(root, "pack=true")
    assert code == 0 and found["train"]["pictures"] == 6 and found["val"]["captions"]["captions"] == 3
    assert found["train"]["short side (least, median, most)"] == [40, 40, 40]
    assert not any(found["in both splits"].values()) and not found["train"]["same pixels"]
    printed = capsys.readouterr().out
    assert "Packed: cache/packed/folder-train-32-" in printed and "unreadable: none" in printed
    sheet = Image.open("checks/folder-train.png")
    assert np.asarray(sheet.convert("RGB")).std() > 20
    assert len([p for p in Path("cache/packed").iterdir() if p.is_dir()]) == 2


def test_everything_that_is_wrong_is_named(root, capsys) -> None:
    (root / "train/0.png").write_bytes(b"")
    (root / "train/1.png").write_bytes((root / "train/1.png").read_bytes()[:200])
    picture(2).save(root / "train/copy.png")
    picture(3).save(root / "train/again.jpg", quality=60)
    picture(4).save(root / "val/leak.png")
    picture(5, side=20).save(root / "train/tiny.png")
    (root / "train/2.txt").write_text("é " + "word " * 99 + "\nsame\nsame")
    code, found = looked(root)
    train = found["train"]
    assert code == 1
    assert len(train["unreadable"]) == 2 and "0.png" in train["unreadable"][0] and "1.png" in train["unreadable"][1]
    assert train["same pixels"] == [["train/2.png", "train/copy.png"]]
    assert ["train/3.png", "train/again.jpg"] in train["look alike"]
    assert found["in both splits"]["same pixels"] == [["train/4.png", "val/leak.png"]]
    assert train["smaller than 32"] == ["train/tiny.png"]
    captions = train["captions"]
    assert captions["over 60 words"] == ["train/2.png: 100 words"] and captions["beyond ASCII"] == 1
    assert captions["twice at one picture"] == 1 and captions["pictures without"] == 3
    assert "0.png cannot be read as a picture: the file is empty" in capsys.readouterr().out


def test_what_is_drawn_is_not_looked_over(root) -> None:
    with pytest.raises(ValueError, match="data=shapes is drawn, not read"):
        run(compose(["data=shapes"], "prepare"))


def test_all_faults_are_listed_whatever_is_left(root, capsys) -> None:
    lines = [json.dumps({"file_name": f"{i}.png", "text": ""}) for i in range(6)]
    (root / "train/metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"no pictures for split='train'; 6 faults(.*\n  train/\S+jsonl, line \d){6}"):
        looked(root)
    (root / "train/metadata.jsonl").write_text("\n".join([*lines, '{"file_name": "0.png", "text": "a"}']))
    code, found = looked(root)
    printed = capsys.readouterr().out
    assert code == 1 and len(found["train"]["faults"]) == 6
    assert all(f"    train/metadata.jsonl, line {i}: text is ''" in printed for i in range(1, 7))
