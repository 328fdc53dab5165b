"""Scores while training: what is logged, best by them, the same on two ranks, and outside the module's weights."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny
from tests.evaluation.test_evaluate import MODEL as TINY
from tests.evaluation.test_evaluate import clip_folder
from tests.in_child import app, wait

from campaign.two_processes import run
from t2i.checkpoint import file_format
from t2i.config.compose import compose
from t2i.evaluation import evaluate
from t2i.training import train
from t2i.training.callbacks.generation_metrics import GenerationMetrics

TARGET = "t2i.training.callbacks.generation_metrics.GenerationMetrics"
MODEL = [*TINY, "callbacks=gan"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("clips")
    return clip_folder(folder / "own", 0), clip_folder(folder / "judge", 1)


def words(folder: Path, clips: tuple[str, str], judge: str, *more: str, steps: int = 4) -> list[str]:
    scores = (f"callbacks.scores={{_target_: {TARGET}, clip_model: '{judge}', n: 20,"
              " metrics: [fd_clip, clip_score, r_precision]}")
    return [*MODEL, f"text_encoder.path={clips[0]}", scores, f"trainer.max_steps={steps}", f"paths.runs={folder}",
            f"paths.cache={folder / 'cache'}", "name=gan", *more]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "gan/metrics.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("val/score_n")]


def test_scores_are_those_of_evaluate_and_best_follows_them(tmp_path: Path, clips: tuple[str, str]) -> None:
    monitor = ["trainer.monitor=val/clip_score", "trainer.monitor_mode=max"]
    train.run(compose(words(tmp_path, clips, clips[1], *monitor)))
    found = rows(tmp_path)
    assert [row["step"] for row in found] == ["2", "4"]
    for row in found:
        assert float(row["val/score_n"]) == 20 and 0 < float(row["val/score_share"]) < 1
        assert float(row["val/score_seconds"]) > 0 and 0 <= float(row["val/r_precision"]) <= 1
    best = file_format.read(tmp_path / "gan/best.ckpt")
    top = max(found, key=lambda row: float(row["val/clip_score"]))
    assert best["global_step"] == int(top["step"])
    assert best["callbacks"]["RunCheckpoint"]["best"] == pytest.approx(float(top["val/clip_score"]), abs=1e-6)
    # Nothing of the judge is in the checkpoint, and its weights are not the module's.
    assert not [name for name in best["state_dict"] if "clip" in name or "scorer" in name or "visual" in name]
    # evaluate.py draws with the averaged weights too, and finds the same.
    scored = evaluate.run(compose([f"ckpt={tmp_path / 'gan/last.ckpt'}", f"clip_model={clips[1]}", "n=20",
                                     "metrics=[fd_clip,clip_score,r_precision]", f"paths.cache={tmp_path / 'cache'}",
                                     f"out={tmp_path / 'out'}"], "evaluate"))["scores"]
    for name in ("fd_clip", "clip_score", "r_precision"):
        assert scored[name]["value"] == pytest.approx(float(found[-1][f"val/{name}"]), rel=1e-4, abs=1e-6)


def test_training_is_not_disturbed_and_own_clip_is_named(tmp_path: Path, clips: tuple[str, str]) -> None:
    train.run(compose(words(tmp_path / "a", clips, clips[0])))
    assert {"val/fd_clip_by_own_clip", "val/clip_score_by_own_clip"} <= rows(tmp_path / "a")[0].keys()
    train.run(compose([*words(tmp_path / "b", clips, clips[0]), "callbacks.scores=null"]))
    one, two = (file_format.read(tmp_path / name / "gan/last.ckpt")["state_dict"] for name in "ab")
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_every_n_steps_but_always_the_last(tmp_path: Path, clips: tuple[str, str]) -> None:
    found = words(tmp_path, clips, clips[1], steps=8)
    train.run(compose([word.replace("n: 20", "n: 20, every_n_steps: 4") for word in found]))
    assert [row["step"] for row in rows(tmp_path)] == ["2", "6", "8"]


def test_what_is_refused(tmp_path: Path, clips: tuple[str, str], capsys: Any) -> None:
    with pytest.raises(ValueError, match="fid unknown; allowed are fd_clip"):
        GenerationMetrics(clips[1], metrics=["fid"])
    with pytest.raises(ValueError, match="n=1"):
        GenerationMetrics(clips[1], n=1)
    vq = ["model=vqgan", "model.autoencoder.channels=8", "model.quantizer.codebook_size=16", *tiny.DATA, "trainer=cpu"]
    with pytest.raises(ValueError, match=r"callbacks\.scores: a vqgan draws nothing"):
        train.run(compose([*vq, f"callbacks.scores={{_target_: {TARGET},"
                           f" clip_model: '{clips[1]}'}}", "name=vq",
                            f"paths.runs={tmp_path}", "trainer.max_steps=1", "logger=none"]))
    train.run(compose([*words(tmp_path, clips, clips[1], steps=2), "trainer.monitor=val/fd_clop"]))
    assert "No best.ckpt: trainer.monitor=val/fd_clop is not measured at step 2" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_ranks_score_as_one(tmp_path: Path, clips: tuple[str, str]) -> None:
    """With rates of 0 both train to the same weights; then evaluate.py as torchrun starts it."""
    still = ["model.learning_rate=0", "model.discriminator_learning_rate=0", "callbacks.ema=null"]
    alone, both = (words(tmp_path / name, clips, clips[1], *still) for name in ("one", "two"))
    train.run(compose(alone))
    # Lightning's launcher starts the second process: `python train.py …`.
    launched, log = [*both, "trainer.devices=2", "trainer.strategy=ddp"], tmp_path / "log"
    assert wait(app("train", launched, tmp_path, log)) == 0, log.read_text()
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        for name in ("val/fd_clip", "val/clip_score", "val/r_precision"):
            assert float(one[name]) == pytest.approx(float(two[name]), rel=1e-5, abs=1e-6), name
    scored = [f"ckpt={tmp_path / 'one/gan/last.ckpt'}", f"clip_model={clips[1]}", "n=20",
              "metrics=[fd_clip,clip_score]", f"paths.cache={tmp_path / 'cache'}",
              "batch_size=1"]  # one who begins late must not count what is drawn
    single = evaluate.run(compose([*scored, f"out={tmp_path / 'alone'}"], "evaluate"))["scores"]
    run(2, [*scored, f"out={tmp_path / 'both'}"], log, torchrun=True, app="evaluate")
    shared = json.loads((tmp_path / "both/evaluation.json").read_text())["scores"]
    for name in ("fd_clip", "clip_score"):
        assert single[name]["value"] == pytest.approx(shared[name]["value"], rel=1e-5, abs=1e-6)
    last = rows(tmp_path / "one")[-1]
    assert single["clip_score"]["value"] == pytest.approx(float(last["val/clip_score"]), abs=1e-6)

