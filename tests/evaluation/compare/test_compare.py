"""Runs side by side: names, differences, scores that compare or do not, pictures, mistakes."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests import tiny

from t2i.checkpoint import building, file_format
from t2i.cli import console
from t2i.config.compose import ROOT, compose
from t2i.evaluation.compare import compare, page, tables
from t2i.evaluation.compare import runs as compare_runs
from t2i.evaluation.compare.images import drawn, sheets, validation
from t2i.evaluation.compare.page import curves, line_style, shared
from t2i.evaluation.compare.runs import expanded, gather, settings, tails
from t2i.evaluation.compare.tables import Column, best, columns, scores_of, unlike
from t2i.training import train
from t2i.viz.plots import COLOURS

COMMON = [*tiny.DATA, *tiny.TRAINER, *tiny.QUIET, "trainer.val_every_steps=2", "trainer.max_steps=4",
          "trainer.log_every_steps=1"]
VQGAN = [*tiny.TOKENIZER, "model.discriminator=null"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """clip, a and b (tokenizers), prior and gan, a few steps each."""
    folder = tmp_path_factory.mktemp("runs")
    paths = [f"paths.runs={folder}", f"paths.cache={folder / 'cache'}"]
    encoder = f"text_encoder.path={folder}/clip/hf"
    for name, words in {
        "clip": tiny.CLIP, "a": VQGAN, "b": [*VQGAN, "model.learning_rate=0.01", "seed=1"],
        "prior": [*tiny.PRIOR, f"model.tokenizer.path={folder}/a/last.ckpt", encoder],
        "gan": [*tiny.DFGAN, encoder],
    }.items():
        train.run(compose([*words, *COMMON, *paths, f"name={name}"]))
    return folder


def paths(runs: Path, *names: str) -> list[str]:
    return [str(runs / name) for name in names]


def test_names_are_the_shortest_tails_that_differ() -> None:
    assert tails([["x", "a"], ["x", "b"]], "/") == ["a", "b"]
    assert tails([["x", "one", "vqgan"], ["x", "two", "vqgan"], ["y", "prior"]], "/") == ["one/vqgan", "two/vqgan",
                                                                                        "prior"]
    assert tails([["a", "b", "c"], ["b", "c"]], "/") == ["a/b/c", "b/c"]
    same, last = Path("/r/a"), Path("/r/a/last.ckpt")
    assert compare_runs.labels([(same, last), (same, Path("/r/a/best.ckpt")), (Path("/r/b"), None)]) == [
        "last.ckpt", "best.ckpt", "b"]


def test_only_what_differs_is_a_setting_and_shared_keys_come_first() -> None:
    a = compose(["model=vqgan", "model/quantizer=vq", "name=x"])
    b = compose(["model=vqgan", "model/quantizer=fsq", "seed=3", "name=y"])
    found = settings([a, b])
    assert found["quantizer"] == ["VQ", "FSQ"] and found["seed"] == ["0", "3"]
    assert "name" not in found and "learning_rate" not in found
    lacking = ["–" in values for values in found.values()]
    assert lacking == sorted(lacking) and any(lacking)
    assert found["codebook_size"][1] == "–"
    assert settings([a, a]) == {}


def test_tokenizers_reconstruct_the_same_pictures(runs: Path) -> None:
    held = gather(paths(runs, "a", "b"))
    (sheet,), missing = sheets(held, None, 3, 0, CPU)
    assert not missing and list(sheet.columns) == ["original", "a", "b"] and len(sheet.texts) == 3
    originals, texts = validation(held[0], 3)
    assert (sheet.columns["original"][0] == originals).all() and sheet.texts == texts
    for label in "ab":
        images, under = sheet.columns[label]
        for i, line in enumerate(under):
            error = np.mean((images[i].astype(float) - sheet.columns["original"][0][i]) ** 2)
            assert float(line.removesuffix(" dB")) == pytest.approx(10 * math.log10(255**2 / error), abs=0.06)
    model = building.load(runs / "a/last.ckpt")
    assert held[0].facts["parameters"] == sum(p.numel() for p in model.tokenizer.parameters())
    assert held[0].facts["steps"] == 4


def test_models_that_draw_get_the_same_captions_and_seeds(runs: Path, tmp_path: Path) -> None:
    captions = tmp_path / "captions.txt"
    captions.write_text("a red circle\n\ntwo blue squares\na green star\n")
    held = gather(paths(runs, "prior", "gan", "clip"))
    (sheet,), missing = sheets(held, str(captions), 2, 5, CPU)
    assert not missing and list(sheet.columns) == ["prior", "gan"]
    assert sheet.texts == ["a red circle", "two blue squares"] and "the first 2 of 3" in sheet.notes[0]
    for label in ("prior", "gan"):
        model = building.load(runs / label / "last.ckpt")
        if hasattr(model, "place"):
            model.place()
        options = held[0 if label == "prior" else 1].facts["options"]
        expected = drawn(model, sheet.texts, 5, options, None)
        assert (sheet.columns[label][0] == expected).all()
    # Without a file the captions of the first run's data, with their pictures.
    (sheet,), _ = sheets(held[1:], None, None, 0, CPU)
    assert list(sheet.columns) == ["original", "gan"] and len(sheet.texts) == 8
    assert sheet.texts == validation(held[1], 8)[1]


def test_other_data_is_said(runs: Path) -> None:
    held = gather(paths(runs, "a", "b"))
    held[1].config["data"] = {**held[1].config["data"], "lattice": 8, "size": 3}
    (sheet,), _ = sheets(held, None, 1, 0, CPU)
    assert "b was trained on other data than a: lattice: None -> 8." in sheet.notes


def interval(value: float, low: float, high: float, better: str = "higher", **protocol: Any) -> tables.Score:
    return tables.Score(value, low, high, better, protocol)


def test_the_best_is_beyond_all_other_intervals() -> None:
    assert best([interval(0.5, 0.4, 0.6), interval(0.9, 0.8, 1.0), None]) == 1
    assert best([interval(0.5, 0.4, 0.85), interval(0.9, 0.8, 1.0)]) is None
    assert best([interval(3.0, 2.9, 3.1, "lower"), interval(9.0, 8.0, 9.5, "lower")]) == 0
    assert best([interval(3.0, 2.9, 8.1, "lower"), interval(9.0, 8.0, 9.5, "lower")]) is None
    # A third with a wide interval counts too, though it is not the next one.
    assert best([interval(0.9, 0.8, 1.0), interval(0.6, 0.55, 0.65), interval(0.5, 0.1, 0.9)]) is None
    assert best([interval(0.5, 0.4, 0.6), None]) is None
    assert best([interval(0.5, 0.4, 0.6), interval(0.9, 0.9, 0.9)]) is None  # no interval


def test_scores_with_their_protocols() -> None:
    new = {"scores": {"fd": {"value": 2.0, "low": 1.0, "high": 3.0, "n": 7, "better": "lower"}, "composition": {}},
           "protocol": {"data": None}, "protocols": {"fd": {"judge": {"hash": "x", "path": "somewhere"}}}}
    score = scores_of(new)["fd"]
    assert str(score) == "2 [1, 3]" and score.protocol == {"clip_model.hash": "x", "n": 7}  # judge: an earlier version
    world = {**new, "protocol": {"data": {"lattice": 8, "workers": 2}}}
    assert unlike("ab", [scores_of(new)["fd"], scores_of(world)["fd"]]) == (
        "not measured alike: data.lattice: not said (a), 8 (b)")
    assert str(interval(2.0, 2.0, 2.0)) == "2"
    assert scores_of(None) == scores_of({"scores": {"composition": {}}, "protocol": {}}) == {}


def test_unlike_protocols_get_a_footnote_and_no_best(tmp_path: Path) -> None:
    a, b = interval(0.9, 0.8, 1.0, n=500, judge="x"), interval(0.1, 0.0, 0.2, n=100, judge="x")
    assert unlike(["a", "b"], [a, b]) == "not measured alike: n: 500 (a), 100 (b)"
    assert unlike(["a", "b"], [a, interval(0.1, 0.0, 0.2, judge="x")]) == "not measured alike: n: 500 (a), not said (b)"
    assert unlike(["a", "b", "c"], [a, None, a]) is None
    made = [Column("size", ["1", "2"]), Column("fd|x", ["3", "4"], 1), Column("n", ["5", "6"], None, "n differs")]
    text = tables.markdown(["a", "b"], made)
    assert text.splitlines() == ["| run | size | fd\\|x | n (1) |", "| --- | --- | --- | --- |", "| a | 1 | 3 | 5 |",
                                 "| b | 2 | **4** | 6 |", "", "(1) n: n differs"]
    runs = [compare_runs.Run(tmp_path, label, None, {"model": {"_target_": "x.Y"}}, {}, None, None)
            for label in ("<a>\u202e", "b")]
    path = page.write(tmp_path / "x.html", runs, made, {}, {}, [], ["<i>"], ["go", "on <now>"], [], "today")
    written = path.read_text()
    assert "<td class=strong>4</td>" in written and "n<sup>1</sup>" in written and "fd|x" in written
    assert "&lt;a&gt;\\u202e" in written and "<li>&lt;i&gt;</li>" in written and "go\non &lt;now&gt;" in written
    assert "<a>" not in written and "<i>" not in written and "\u202e" not in written


def evaluated(folder: Path, value: float, n: int, **more: Any) -> None:
    entry = {"value": value, "low": value - 0.01, "high": value + 0.01, "n": n, "better": "higher"}
    held = {"scores": {"psnr": entry, "ssim": {**entry, "n": 9}}, "protocol": {"data": None, **more},
            "protocols": {"psnr": {"split": "val"}, "ssim": {"split": "val"}}}
    (folder / "evaluation.json").write_text(json.dumps(held))


def test_the_whole_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b", "prior", "clip"):
        shutil.copytree(runs / name, tmp_path / name)
    evaluated(tmp_path / "a", 0.9, 5, hash=file_format.file_hash(tmp_path / "a/last.ckpt"))
    evaluated(tmp_path / "b", 0.5, 6, hash="other", checkpoint="elsewhere.ckpt")
    (tmp_path / "b/finished.json").unlink()
    (tmp_path / "clip/last.ckpt").unlink()
    words = [*paths(tmp_path, "a", "b", "prior", "clip"), f"out={tmp_path / 'out'}", "n=2"]
    assert console.main(["compare", *words]) == 0
    out = capsys.readouterr().out
    assert "b is not finished: step 4 of 4." in out and "clip has no last.ckpt yet: table and curves only." in out
    assert "b: evaluation.json scored another checkpoint (elsewhere.ckpt, other)" in out
    assert "(1) psnr: not measured alike: n: 5 (a), 6 (b)" in out
    assert "**0.9 [0.89, 0.91]**" in out and out.count("**") == 2  # ssim, measured alike; not psnr
    page = (tmp_path / "out/compare.html").read_text()
    assert page.count('class=small loading=lazy') == 2 * 3 + 2 * 2  # original, a, b; original, prior
    assert "src=\"data:image/png;base64," in page and not re.search(r"(src|href)=\"(?!data:)", page)
    assert 'name="viewport"' in page and "mean " in page and line_style(1)["colour"] in page
    held = json.loads((tmp_path / "out/compare.json").read_text())
    assert [one["label"] for one in held["runs"]] == ["a", "b", "prior", "clip"]
    assert len(held["runs"][0]["shown_psnr"]) == 2 and held["runs"][3]["checkpoint"] is None
    assert held["runs"][2]["options"] == {"temperature": 0.7, "guidance": 1.5}
    assert f"out={tmp_path / 'out'} n=2" in held["again"][0]
    assert (tmp_path / "out/compare.md").read_text().count("| ---") > 4


def test_curves_are_of_what_two_runs_have(runs: Path) -> None:
    held = gather(paths(runs, "a", "b", "prior"))
    names = shared(held)
    assert names[0] == "val/loss" and "val/psnr" in names and "val/loss_without_caption" not in names
    cut = next(k for k, name in enumerate(names) if not name.startswith("val/"))
    assert all(name.startswith("train/") for name in names[cut:])
    assert set(curves(held)) == set(names)
    assert [line_style(k) for k in range(2)] == [{"colour": colour, "dash": ""} for colour in COLOURS[:2]]
    again = line_style(len(COLOURS))
    assert again["colour"] == COLOURS[0] and again["dash"]


def test_metrics_are_those_of_the_checkpoint(runs: Path) -> None:
    (a, _) = gather(paths(runs, "a", "b"))
    steps, values = a.series["val/loss"]
    assert steps == [2, 4] and compare_runs.last_validation(a)["val/loss"] == values[1]
    a.facts["steps"] = 3
    assert compare_runs.last_validation(a)["val/loss"] == values[0]
    made, _ = columns([a, a])
    assert next(c for c in made if c.title == "val/loss").cells[0] == f"{values[0]:.4g}"


def test_the_command_that_began_a_run_is_told(runs: Path, tmp_path: Path) -> None:
    words = [*VQGAN, *COMMON, "name=vq", f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}"]
    command = "python train.py " + shlex.join(words)
    train.run(compose(words), command)
    train.run(compose([*words, "resume=must"]), command + " resume=must")  # which does not begin it
    assert (tmp_path / "vq/command.txt").read_text() == command + "\n"
    one, other = gather([str(tmp_path / "vq"), *paths(runs, "a")])
    assert one.command == command and other.command is None


def test_mistakes_are_told_all_at_once(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = paths(runs, "a", "b")
    (tmp_path / "empty").mkdir()
    shutil.copytree(a, tmp_path / "bad")
    (tmp_path / "bad/last.ckpt").write_bytes(b"")
    shutil.copytree(runs / "gan", tmp_path / "gan")
    (tmp_path / "gan/best.ckpt").unlink(missing_ok=True)
    (tmp_path / "text.txt").write_text("\n")
    for words, said in (
        ([a], "1 run given: t2i compare takes two or more"), ([], "0 runs given"),
        ([a, a], "is named twice"), ([a, str(tmp_path / "none")], "none does not exist"),
        ([a, str(tmp_path / "empty")], "has no config.json"),
        ([a, str(runs)], "it holds the runs a, b, clip, gan, prior"),
        ([a, str(tmp_path / "bad")], "last.ckpt is empty"),
        ([a, str(tmp_path / "gan"), "ckpt=best"], r"has no best.ckpt \(there are: last.ckpt.*itself, as in .*gan/last"),
        ([a, b, "ot=x", "n=0", "seed=-1"], r"ot=: .*did you mean out\?.*\n.*n=0: allowed are whole numbers .*1 to 64"),
        ([a, b, "ckpt=first"], "ckpt=first: allowed are last and best"), ([a, b, "-m"], "-m: no such flag"),
        ([a, b, f"captions={tmp_path / 'text.txt'}"], "holds no caption"),
        ([a, b, f"captions={tmp_path / 'no.txt'}"], "cannot be read"),
        ([a, b, f"out={tmp_path / 'text.txt'}"], "cannot be written"), ([a, b, "device=cuda:77"], "not to be had here"),
    ):
        assert console.main(["compare", *words]) == 2, words
        assert re.search(said, capsys.readouterr().err), words
    with pytest.raises(ValueError, match=r"none does not exist(.|\n)*empty.* has no config.json"):
        gather([str(tmp_path / "none"), str(tmp_path / "empty")])


def test_a_checkpoint_can_be_named_itself(runs: Path) -> None:
    held = gather([str(runs / "a/last.ckpt"), str(runs / "a/best.ckpt"), str(runs / "b")])
    assert [run.label for run in held] == ["last.ckpt", "best.ckpt", "b"]
    assert held[1].checkpoint == (runs / "a/best.ckpt").resolve()
    assert compare.folder_of(["last.ckpt", "x/b c"]) == Path("runs/compare-last.ckpt-x-b-c")


def test_a_run_that_cannot_draw_is_said_and_the_others_drawn(runs: Path, tmp_path: Path) -> None:
    held = gather(paths(runs, "prior", "gan"))
    held[1].checkpoint = tmp_path / "gone.ckpt"
    (sheet,), missing = sheets(held, None, 1, 0, CPU)
    assert list(sheet.columns) == ["original", "prior"] and len(missing) == 1
    assert missing[0].startswith("gan made no pictures: the checkpoint") and "does not exist" in missing[0]
    held = gather(paths(runs, "prior", "a"))  # data that is gone: captions=FILE does without
    for run in held:
        run.config["data"] = {"_target_": "t2i.data.folder.Folder", "root": str(tmp_path / "gone"), "image_size": 32}
    made, missing = sheets(held, None, 1, 0, CPU)
    assert not made and len(missing) == 2 and "captions=FILE does without the data" in missing[0]


def test_help_imports_nothing_heavy() -> None:
    code = ("import sys; from t2i.cli.console import main; main(['compare', '-h']);"
            " assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules), sorted(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": str(ROOT / "src")})


def test_a_sweeps_folder_stands_for_its_runs(tmp_path: Path) -> None:
    for name in ("a", "b", "logs"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
    for name in ("a", "b"):
        (tmp_path / "sweep" / name / "config.json").write_text("{}")
    for name in ("sweep.json", "sweep.csv"):
        (tmp_path / "sweep" / name).write_text("")
    runs = [str(tmp_path / "sweep" / name) for name in ("a", "b")]
    assert expanded([str(tmp_path / "sweep")]) == runs
    everything = [str(path) for path in sorted((tmp_path / "sweep").iterdir())]
    assert expanded([*everything, "x/last.ckpt"]) == [*runs, "x/last.ckpt"]
