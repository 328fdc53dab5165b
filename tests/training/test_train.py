"""Whole runs on tiny settings: folders, resume, stop, crash, the pipeline."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny
from tests.in_child import app, wait

from hydra_app import main
from t2i.checkpoint import file_format
from t2i.config.compose import Stage, compose, plan
from t2i.data.shapes import HELDOUT_TASKS
from t2i.models.vqgan import VQGAN
from t2i.training import pipeline, resume, train
from t2i.training.callbacks.checkpointing import RunCheckpoint

VQ = [*tiny.VQGAN, "model.discriminator_start=0.25"]
DATA, TRAINER = tiny.DATA, [*tiny.TRAINER, *tiny.QUIET]


def config(folder: Path, model: list[str], *more: str, steps: int = 8, trainer: list[str] = TRAINER) -> dict[str, Any]:
    return compose([*model, *DATA, *trainer, *recipe(folder), f"trainer.max_steps={steps}", *more])


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return file_format.read(run_dir / "last.ckpt")["state_dict"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_finished_run_says_so_and_another_config_is_refused(tmp_path: Path, capsys: Any) -> None:
    first = train.run(config(tmp_path, VQ, "name=x"))
    run_dir = tmp_path / "runs/x"
    assert first["steps"] == 8
    wanted = {"config.json", "last.ckpt", "best.ckpt", "metrics.csv", "finished.json"}
    assert wanted <= {path.name for path in run_dir.iterdir()}
    before = weights(run_dir)
    train.run(config(tmp_path, VQ, "name=x"))
    assert "is finished (8 steps)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"learning_rate: 0\.0001 -> 0\.5"):
        train.run(config(tmp_path, VQ, "name=x", "model.learning_rate=0.5"))
    train.run(config(tmp_path, VQ, "name=x", "resume=never"))
    assert same(before, weights(run_dir))  # the same seed, the same weights
    assert len(list((tmp_path / "runs").glob("x.old*"))) == 1
    rows = (run_dir / "metrics.csv").read_text().splitlines()
    assert rows[-1].split(",")[rows[0].split(",").index("step")] == "8"  # logged steps are batches, with two optimisers


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, torch.Tensor]]:
    """The weights of a run of so many steps."""

    @cache
    def trained(steps: int) -> dict[str, torch.Tensor]:
        folder = tmp_path_factory.mktemp("unbroken")
        train.run(config(folder, VQ, "name=whole", steps=steps))
        return weights(folder / "runs/whole")

    return trained


@pytest.mark.parametrize("at", [3, 8, 12])
def test_stopping_and_continuing_equals_an_unbroken_run(
    tmp_path: Path, monkeypatch: Any, unbroken: Any, at: int
) -> None:
    """In mid-epoch, just before and at the end of an epoch (12 batches)."""
    original = RunCheckpoint.on_train_batch_end

    def interrupting(self: RunCheckpoint, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(RunCheckpoint, "on_train_batch_end", interrupting)
        with pytest.raises(SystemExit) as stopped:
            train.run(config(tmp_path, VQ, "name=broken", steps=20))
    assert stopped.value.code == train.STOPPED
    held = file_format.read(tmp_path / "runs/broken/last.ckpt")
    assert held["global_step"] == at
    train.run(config(tmp_path, VQ, "name=broken", steps=20))
    assert same(unbroken(20), weights(tmp_path / "runs/broken"))


def interrupted(monkeypatch: Any, hook: str, signals: int) -> None:
    """In the third batch, or where else `hook` of Checkpoints is called, so many SIGINT arrive."""
    original = getattr(RunCheckpoint, hook)

    def interrupting(self: RunCheckpoint, trainer: Any, *rest: Any) -> None:
        if hook != "on_train_batch_end" or trainer.global_step == 3:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)
        original(self, trainer, *rest)

    monkeypatch.setattr(RunCheckpoint, hook, interrupting)


@pytest.mark.parametrize(("hook", "signals", "told"), [
    ("on_train_batch_end", 2, r"Stopping after.*\n\nAborted at step 3\. The same command goes on from step 2, "),
    ("on_fit_start", 1, r"Aborted at step 0\. Nothing was saved yet: the same command begins anew\."),
    ("on_fit_end", 1, r"Aborted at step 8\. The same command goes on from step 8, "),
])
def test_a_second_signal_aborts_with_one_line_as_does_the_first_where_no_batch_follows(
    tmp_path: Path, monkeypatch: Any, capsys: Any, hook: str, signals: int, told: str
) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patched:
        interrupted(patched, hook, signals)
        with pytest.raises(SystemExit) as end:
            train.run(config(tmp_path, VQ, "name=x"))
    shown = capsys.readouterr()
    assert end.value.code == 130 and re.search(told, shown.out) and "KeyboardInterrupt" not in shown.out + shown.err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert not (tmp_path / "runs/x/crash.ckpt").exists() and not (tmp_path / "runs/x/finished.json").exists()
    if hook == "on_train_batch_end":
        assert file_format.read(tmp_path / "runs/x/last.ckpt")["global_step"] == 2


def test_a_second_signal_ends_sweeps_and_pipelines(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    interrupted(monkeypatch, "on_train_batch_end", 2)
    words = [*VQ, *DATA, *TRAINER, "seed=0,1", *recipe(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", *words])
    with pytest.raises(SystemExit) as end:
        main("train", lambda found, overrides: train.run(found))
    assert end.value.code == 130 and "[2/2]" not in capsys.readouterr().out
    words = ["experiments=quickstart/clip", *tiny.CLIP[1:], *DATA, *TRAINER, *recipe(tmp_path)]
    stage = Stage("quickstart/clip", words, "")
    with pytest.raises(SystemExit) as end:
        pipeline.run(compose(["experiments=quickstart", "evaluation=null", *recipe(tmp_path)], files=False), [stage])
    assert end.value.code == 130


def test_pictures_cropped_and_mirrored_by_chance_come_again_after_a_break(tmp_path: Path, monkeypatch: Any) -> None:
    for split, count in (("train", 20), ("val", 4)):
        (tmp_path / "pictures" / split).mkdir(parents=True)
        for i in range(count):
            noise = np.random.default_rng(i).integers(0, 256, (44, 50, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / "pictures" / split / f"{i}.png")
    words = [*VQ, *TRAINER, f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}", "data=folder",
             f"data.root={tmp_path / 'pictures'}", "data.image_size=32", "data.load_size=40", "data.crop=random",
             "data.flip=true", "data.batch_size=8", "trainer.max_steps=8", "callbacks.pictures=null"]
    train.run(compose([*words, "name=whole"]))
    original = RunCheckpoint.on_train_batch_end

    def interrupting(self: RunCheckpoint, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 5:  # in the middle of the third epoch
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(RunCheckpoint, "on_train_batch_end", interrupting)
        with pytest.raises(SystemExit):
            train.run(compose([*words, "name=broken"]))
    train.run(compose([*words, "name=broken"]))
    assert same(weights(tmp_path / "runs/whole"), weights(tmp_path / "runs/broken"))
    train.run(compose([*words, "name=raw", "data.pack=false"]))  # and without the packed cache the same
    assert same(weights(tmp_path / "runs/whole"), weights(tmp_path / "runs/raw"))


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path: Path, capsys: Any, unbroken: Any) -> None:
    train.run(config(tmp_path, VQ, "name=x"))
    run_dir = tmp_path / "runs/x"
    (run_dir / "finished.json").unlink()
    (run_dir / "last.ckpt").write_bytes((run_dir / "last.ckpt").read_bytes()[:1000])
    train.run(config(tmp_path, VQ, "name=x"))
    assert "cut off" in capsys.readouterr().out
    assert same(unbroken(8), weights(run_dir))


def test_a_non_finite_loss_saves_the_state_beside_the_last_checkpoint(tmp_path: Path, monkeypatch: Any) -> None:
    original = VQGAN.reconstruction_terms

    def broken(self: VQGAN, *images: torch.Tensor) -> dict[str, torch.Tensor]:
        terms = original(self, *images)
        if self.global_step == 5:
            terms["loss/pixel"] = terms["loss/pixel"] * math.nan
        return terms

    monkeypatch.setattr(VQGAN, "reconstruction_terms", broken)
    with pytest.raises(ValueError, match=r"not finite at step 5: loss/pixel=nan.*shapes/0/train/.*crash\.ckpt"):
        train.run(config(tmp_path, VQ, "name=x"))
    assert file_format.read(tmp_path / "runs/x/last.ckpt")["global_step"] == 4
    crashed = file_format.read(tmp_path / "runs/x/crash.ckpt")["state_dict"]
    assert all(bool(torch.isfinite(value).all()) for value in crashed.values())


def test_another_nets_checkpoint_is_refused_before_data_are_read(tmp_path: Path, monkeypatch) -> None:
    train.run(config(tmp_path, VQ, "name=x", "trainer.max_steps=1"))
    monkeypatch.setattr(train, "data_module", lambda *_: pytest.fail("data were opened"))
    with pytest.raises(ValueError, match=r"the weights in .*x/last\.ckpt do not fit VQGAN: .* has shape"):
        train.run(config(tmp_path, VQ, "name=y", f"resume={tmp_path / 'runs/x/last.ckpt'}",
                         "model.quantizer.codebook_size=7"))


def test_resume_must_and_unwritable_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="resume=must"):
        train.run(config(tmp_path, VQ, "name=x", "resume=must"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written.*paths\.runs"):
        resume.open_run(config(tmp_path, VQ, "name=x"), tmp_path / "file/run")


def recipe(tmp_path: Path) -> list[str]:
    return [f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}"]


def test_the_three_stages_and_their_report(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    """What experiments/quickstart does, at a few steps a stage; twice: the second time nothing is done again."""
    train.run(config(tmp_path, tiny.CLIP, "name=clip", trainer=tiny.TRAINER))  # with all callbacks, as by default
    train.run(config(tmp_path, VQ, "name=vqgan", trainer=tiny.TRAINER))
    runs = tmp_path / "runs"
    needs = [f"model.tokenizer.path={runs / 'vqgan/last.ckpt'}", f"text_encoder.path={runs / 'clip/hf'}"]
    result = train.run(config(tmp_path, tiny.PRIOR, "name=prior", *needs, trainer=tiny.TRAINER))
    assert result["metrics"]["val/loss"] < 1.2 * math.log(16)
    assert all(list((runs / name).rglob("*.png")) for name in ("clip", "vqgan", "prior"))
    settings = {"metrics": ["composition", "reconstruction"], "n_per_task": 2, "guidance": 2.0}
    out = tmp_path / "runs/all"
    scored = pipeline.evaluated(settings, tmp_path / "runs/prior/last.ckpt", out)
    assert scored["scores"]["composition"]["seen"]["ceiling_renders"]["overall"] == 1.0
    assert set(scored["scores"]["composition"]["heldout"]["score"]) == {*HELDOUT_TASKS, "overall"}
    assert (out / "evaluation-seen.png").is_file()
    capsys.readouterr()
    assert pipeline.evaluated(settings, tmp_path / "runs/prior/last.ckpt", out)["scores"] == scored["scores"]
    assert "already there" in capsys.readouterr().out

    monkeypatch.setattr(train, "run", lambda config, _: {"run_dir": str(runs / Path(config["name"]).name)})
    monkeypatch.setattr(pipeline, "compose", lambda words, name="train", files=True: compose(words, name, files=False))
    words = ["experiments=quickstart", "name=all", "evaluation.metrics=[composition,reconstruction]",
             "evaluation.n_per_task=2", *recipe(tmp_path)]
    found = pipeline.run(compose(words, files=False), plan(words))
    assert not found["missing"]
    assert {"composition_seen", "composition_heldout", "psnr", "ssim"} <= set(found)
    report = Path(found["report"]).read_text()
    for wanted in ("for captions of held-out combinations", "Reconstructions: the first ones", "attribution"):
        assert wanted in report
    assert report.index("Composition score") < report.index("<h2>Scores</h2>") < report.index("<td>psnr</td>")
    words[2] = "evaluation.metrics=[composition,fd_efficientnet]"  # of one picture it cannot be had
    found = pipeline.run(compose([*words, "evaluation.n=1"], files=False), plan([*words, "evaluation.n=1"]))
    assert list(found["missing"]) == ["fd_efficientnet"]
    assert "Without fd_efficientnet" in Path(found["report"]).read_text()
    monkeypatch.setattr(pipeline.rank_zero_only, "rank", 1)  # the second of two processes leaves it to the first
    monkeypatch.setattr(pipeline, "evaluated", lambda *_: pytest.fail("both evaluate"))
    assert set(pipeline.run(compose(words, files=False), plan(words))) == {"name", "command", "run_dir"}


def test_a_pipeline_composes_its_stages_under_one_group(tmp_path: Path) -> None:
    stages = plan(["experiments=quickstart", "name=mine", *recipe(tmp_path)])
    assert [stage.name for stage in stages] == ["quickstart/clip", "quickstart/vqgan", "quickstart/prior"]
    prior = compose(stages[-1].overrides, files=False)
    assert prior["name"] == "mine/prior" and prior["model"]["tokenizer"]["path"].endswith("runs/mine/vqgan/last.ckpt")
    assert all(stage.command.startswith("python train.py experiments=quickstart/") for stage in stages)


def test_settings_of_what_follows_the_stages_stay_with_the_pipeline() -> None:
    words = ["experiments=baselines_shapes", "comparison.n_per_task=3", "seed=4"]
    assert compose(words, files=False)["comparison"]["n_per_task"] == 3
    assert all("seed=4" in stage.overrides and "comparison" not in stage.command for stage in plan(words))


@pytest.mark.parametrize(("word", "message"), [
    ("metrics=[nonsense]", r"metrics=\['nonsense'\]: nonsense unknown"),
    ("metrics=nonsense", r"metrics=\['nonsense'\]: nonsense unknown"),
    ("temperature=-1", "temperature=-1: a number"), ("pairs=none", "pairs=none"),
    ("ckpt=other.ckpt", r"ckpt=other\.ckpt: a pipeline scores its last stage"),
    ("export=folder", "export=folder: a pipeline scores its last stage"), ("size=big", "size=big: a number is wanted"),
    ("images=folder", "images=folder: a pipeline scores its last stage"), ("metrics=5", "metrics=5: one or more of"),
    ("n_per_task=1", "n_per_task=1: at least 2"), ("steps=4", "steps=4: a prior has no such option"),
    ("style_guidance=true", r"style_guidance=true is of metrics=\[nearest_render\]"),
    ("pairs=test", r"pairs=test is of metrics=\[nearest_render\]"),
    ("metrics=nearest_render", r"metrics=\[nearest_render\] is of data with concepts .*; Shapes has none"),
    ("metrics=[editing]", r"metrics=\[editing\]: here is trained a prior, .* a prior_any edits"),
    ("pairz=all", r"pairz: there is no such key \(did you mean evaluation\.pairs"),
    ("metrics=[clip_score]", r"metrics=\[clip_score\] need clip_model="),
    ("{metrics:[clip_score],clip_model:/nowhere}", "clip_model=/nowhere: "),
    ("metrics=[fid]", ": FID and KID need Inception's weights"),
    ("metrics=[lpips]", ": LPIPS needs VGG16's weights"),
])  # fmt: skip
def test_a_mistake_in_what_follows_the_stages_costs_no_training(
    tmp_path: Path, monkeypatch: Any, word: str, message: str
) -> None:
    monkeypatch.setattr(train, "run", lambda *_: pytest.fail("a stage was trained"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))  # no weights lie there
    key = f"evaluation={word}" if word.startswith("{") else f"evaluation.{word}"
    words = ["experiments=quickstart", key, *recipe(tmp_path)]
    with pytest.raises(ValueError, match=rf"^evaluation(\.|(?=:)){message}"):
        pipeline.run(compose(words, files=False), plan(words))


@pytest.mark.parametrize(("word", "message"), [
    ("metrics=[fid]", r"pairs=test is of metrics=\[nearest_render\]; here metrics=\[fid\]"),
    ("metrics=[composition]", r"metrics=\[composition\] reads scenes, of data=shapes; here the data are Emoji"),
])  # fmt: skip
def test_a_metric_that_does_not_fit_a_recipe_is_named(tmp_path: Path, word: str, message: str) -> None:
    words = ["experiments=emoji", "evaluation.style_guidance=false", f"evaluation.{word}", *recipe(tmp_path)]
    with pytest.raises(ValueError, match=rf"^evaluation\.{message}"):
        pipeline.run(compose(words, files=False), plan(words))


def test_a_clip_that_a_stage_is_to_train_need_not_be_there_yet(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(train, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    words = ["experiments=quickstart", "evaluation.metrics=[clip_score]",
             f"evaluation.clip_model={tmp_path}/runs/quickstart/clip/hf", *recipe(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(compose(words, files=False), plan(words))


@pytest.mark.parametrize("words", [["experiments=pictures", "data.root=."], ["experiments=quickstart"]])
def test_a_recipes_evaluation_takes_any_key_of_evaluate(words: list[str], tmp_path: Path) -> None:
    config = compose([*words, "evaluation.metrics=[fd_efficientnet]", "evaluation.n=64"], files=False)
    assert (config["evaluation"]["metrics"], config["evaluation"]["n"]) == (["fd_efficientnet"], 64)
    assert compose([*words, "evaluation=null"], files=False)["evaluation"] is None


@pytest.mark.parametrize(("words", "message"), [
    (["model=vqgan", "data=shapes", "evaluation.metrics=[fid]"], r"evaluation\.metrics= is of recipes with stages"),
    (["experiments=quickstart/prior", "evaluation=5"], "evaluation= is of recipes with stages"),
    (["experiments=quickstart", "stages=[]"], r"stages=\[\]: one or more recipes"),
])  # fmt: skip
def test_an_evaluation_without_stages_and_no_stages_are_told(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        compose(words, files=False)


def test_an_evaluations_settings_reach_it_as_they_are(tmp_path: Path) -> None:
    settings = {"prefix": "a picture, of ", "clip_model": "12", "n": 4, "top_p": None, "metrics": ["fid"],
                "data": {"size": 3}}
    words = ["data=shapes", *pipeline.asked(settings, tmp_path / "last.ckpt", tmp_path)]
    held = compose(words, "evaluate", files=False)
    assert held["data"]["size"] == 3
    assert {key: held[key] for key in settings if key != "data"} == {k: v for k, v in settings.items() if k != "data"}


@pytest.mark.parametrize(("word", "message"), [
    ("comparison=5", "comparison=5: its keys take a value each: models"),
    ("comparison.models=null", "comparison.models=None.*: labels with stages are wanted"),
])  # fmt: skip
def test_a_comparison_that_is_none_is_told(tmp_path: Path, word: str, message: str) -> None:
    words = ["experiments=baselines_shapes", word, *recipe(tmp_path)]
    with pytest.raises(ValueError, match=message):
        pipeline.run(compose(words, files=False), plan(words))


def test_an_evaluation_that_is_no_list_of_keys_is_told(tmp_path: Path) -> None:
    words = ["experiments=quickstart", "evaluation=5", *recipe(tmp_path)]
    with pytest.raises(ValueError, match=r"^evaluation=5: keys of evaluate\.py are wanted"):
        pipeline.run(compose(words, files=False), plan(words))


def test_what_the_command_lets_be_opened_its_evaluation_may_open(tmp_path: Path, monkeypatch: Any) -> None:
    """A folder of icons is named by the checkpoint, too, whose word alone opens nothing."""
    asked: list[dict[str, Any]] = []

    def evaluate(config: dict[str, Any]) -> dict[str, Any]:
        asked.append(config)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", lambda config, command: {"run_dir": str(tmp_path)})
    monkeypatch.setattr(pipeline.evaluate, "run", evaluate)
    monkeypatch.setattr(pipeline, "compose", lambda words, name="train", files=True: compose(words, name, files=False))
    for folder in ("icons", str(tmp_path / "my, own 'icons'"), "~/icons", "jürgen/絵", "2024", "true", "back\\"):
        words = ["experiments=emoji4", f"data.icons={folder}", "trust=[mine]", "+evaluation.trust=[theirs]",
                 *recipe(tmp_path)]
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(compose(words, files=False), plan(words))
        assert asked[-1]["trust"] == ["theirs", "mine", folder]
    words = ["experiments=quickstart", *recipe(tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(compose(words, files=False), plan(words))
    assert asked[-1]["trust"] == []


def test_kill_9_then_the_same_command_gives_the_unbroken_weights(tmp_path: Path) -> None:
    words = [*VQ, *DATA, *TRAINER, "trainer.max_steps=60", *recipe(tmp_path)]
    train.run(compose([*words, "name=whole"]))
    command = ("train", [*words, "name=broken"], tmp_path, tmp_path / "log")
    process = app(*command)
    killed = tmp_path / "runs/broken/previous.ckpt"
    while not killed.is_file():
        assert os.waitpid(process, os.WNOHANG) == (0, 0), (tmp_path / "log").read_text()
        time.sleep(0.02)
    os.kill(process, signal.SIGKILL)
    assert wait(process) == -signal.SIGKILL
    assert not (tmp_path / "runs/broken/finished.json").exists()
    assert wait(app(*command)) == 0, (tmp_path / "log").read_text()
    assert json.loads((tmp_path / "runs/broken/finished.json").read_text())["steps"] == 60
    assert same(weights(tmp_path / "runs/whole"), weights(tmp_path / "runs/broken"))


def test_a_device_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    words = [*tiny.CLIP, *tiny.DATA, *tiny.QUIET, "trainer=ddp", "logger=none", "name=a", f"paths.runs={tmp_path}"]
    if torch.cuda.is_available():
        words.append("trainer.devices=99")
    with pytest.raises(ValueError, match=r"^trainer.accelerator=gpu, trainer.devices=-?\d+, trainer.strategy=ddp: "):
        train.run(compose(words))
