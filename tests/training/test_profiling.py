"""What a recipe costs before it runs: the figures are those of the model, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import tiny

from t2i.checkpoint import building
from t2i.config.compose import ConfigError, compared, compose
from t2i.training import profiling
from t2i.training.profiling import Peak, matrix_product

SMALL = ["trainer=cpu", "trainer.precision=32-true", "data.image_size=32", "data.batch_size=4", "estimate=true"]
VQ, CLIP = [*tiny.VQGAN, "name=vqgan"], [*tiny.CLIP, "name=clip"]
PRIOR = [*tiny.PRIOR, "name=prior", "model.tokenizer.path=runs/vqgan/last.ckpt", "text_encoder.path=runs/clip/hf"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of a phase is timed: what is looked at is not the time."""
    monkeypatch.setattr(profiling, "TIMED", 1)


def test_a_tokenizer(folder: Path, capsys: Any) -> None:
    words = [*VQ, *SMALL, "trainer.max_steps=7200", "model.discriminator_start=0.25", "model.quantizer.warmup_steps=99"]
    config = compose(words)
    figures = profiling.run(config, words)
    shown = capsys.readouterr().out
    model = building.build(config["model"])
    count = sum(p.numel() for p in model.parameters())
    assert figures["parameters"] == count
    for part in ("tokenizer", "discriminator"):
        assert f"parameters of {part}" in shown
    for line in ("a step without the discriminator", "a step with it", "7,200 steps", "optimiser state",
                 "activations and the rest with it, at most", "of a matrix product of 2048"):
        assert line in shown
    assert figures["hours"] == pytest.approx(2 * figures["seconds_a_step"])
    assert figures["memory_gb"] * 1e9 > 4 * 4 * count  # weights, gradients and Adam's two
    assert list(folder.iterdir()) == []


def test_a_prior_under_averaged_weights_whose_parts_are_stages_to_come(folder: Path) -> None:
    earlier = [compose([*words, *SMALL]) for words in (CLIP, VQ)]
    words = [*PRIOR, *SMALL, "callbacks.ema={_target_: t2i.training.callbacks.ema.EMA, modules: [gpt]}",
             "trainer.accumulate_grad_batches=2",
             "model.checkpointing=true", "model.cache_text=true", "trainer.max_minutes=0.0006"]
    rows, figures = profiling.measure(compose(words), earlier)
    shown = profiling.table(rows)
    lines = ("frozen: ImageTokenizer", "frozen: CLIPText", "averaged weights (EMA)", "tokens/s", "parameters of gpt")
    for line in lines:
        assert line in shown
    assert "discriminator" not in shown and figures["seconds_a_step"] > 0
    assert "ends before" in shown and figures["hours"] == pytest.approx(1e-5)
    assert list(folder.iterdir()) == []


@pytest.mark.usefixtures("few")
def test_gans_with_a_penalty_are_estimated_and_stage_one_may_be_a_recipe_s(folder: Path) -> None:
    words = ["trainer=cpu", "estimate=true", "data.batch_size=2"]
    assert profiling.run(compose(["experiments=baselines_shapes/dfgan", *words]), words)["parameters"] > 0
    words = ["experiments=baselines_shapes/stackgan2", *words]
    config = compose(words)
    assert config["model"]["penalty_weight"] > 0 and profiling.run(config, words)["parameters"] > 0
    config["model"]["stage1"]["path"] = "elsewhere.ckpt"
    with pytest.raises(ValueError, match="elsewhere.ckpt does not exist, and no stage or recipe says"):
        profiling.run(config, words)


def test_a_part_that_an_unfinished_run_describes(folder: Path) -> None:
    (folder / "runs/vqgan").mkdir(parents=True)
    (folder / "runs/vqgan/config.json").write_text(json.dumps(compose([*VQ, *SMALL])))
    config = compose([*PRIOR, *SMALL])
    earlier = [compose([*CLIP, *SMALL])]
    given = profiling.Parts(config, earlier).given()
    assert given["tokenizer"].codebook_size == 16 and given["tokenizer"].grid == (4, 4)
    assert given["text_encoder"].dim == 16 and given["text_encoder"](["a red circle"]).states.shape[-1] == 16


def test_what_is_needed_first_is_said() -> None:
    config = compose([*PRIOR, *SMALL])
    with pytest.raises(ValueError, match=r"model.tokenizer.path=runs/vqgan/last.ckpt does not exist.*needed first"):
        profiling.run(config, [])
    with pytest.raises(ValueError, match=r"runs/clip/hf'?: no folder of that name"):
        profiling.measure(config, [compose([*VQ, *SMALL])])
    with pytest.raises(ConfigError, match="no such file"):
        compose([word for word in [*PRIOR, *SMALL] if word != "estimate=true"])
    with pytest.raises(ConfigError, match="estimate=yes please: true or false is needed"):
        compose(["model=vqgan", "estimate='yes please'"])


@pytest.mark.slow
@pytest.mark.usefixtures("few")
def test_a_pipeline_has_a_table_a_stage(folder: Path, capsys: Any) -> None:
    """About 10 s: the quickstart's recipes, few pictures a batch; the prior's parts are the stages before it."""
    words = ["experiments=quickstart", "estimate=true", "trainer=cpu", "data.batch_size=2"]
    found = profiling.run(compose(words), words)
    assert list(found) == ["quickstart/clip", "quickstart/vqgan", "quickstart/prior"]
    shown = capsys.readouterr().out
    assert shown.count("Estimate of") == 3 and "All stages" in shown
    alone = compose(["experiments=quickstart/prior", *words[1:]])
    assert profiling.Parts(alone, []).given()["tokenizer"].codebook_size == 192 * 32 * 32  # by the recipe of that name
    assert list(folder.iterdir()) == []


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.usefixtures("few")
def test_compiled(folder: Path) -> None:
    """About 20 s."""
    _, figures = profiling.measure(compose([*VQ, *SMALL, "trainer.compile=aot_eager"]), [])
    assert figures["seconds_a_step"] > 0


def test_devices() -> None:
    def found(**changes: Any) -> int:
        return profiling.devices({"trainer": {"devices": 1, "num_nodes": 1, "accelerator": "cpu", **changes}})

    assert [found(), found(devices=4, num_nodes=2), found(devices=[0, 3]), found(devices=-1)] == [1, 8, 2, 1]


def test_a_run_does_not_care_whether_it_was_estimated() -> None:
    assert compared({"seed": 1, "estimate": True}) == compared({"seed": 1,
                                                                                              "estimate": False})


def test_peak_memory_is_seen_and_given_back() -> None:
    peak = Peak(torch.device("cpu"))
    peak.start()
    torch.ones(10_000_000).sum().item()
    assert 36e6 < peak.stop() < 80e6
    n, speed = matrix_product(torch.device("cpu"), "32-true")
    assert n == 2048 and 1e8 < speed < 1e15
