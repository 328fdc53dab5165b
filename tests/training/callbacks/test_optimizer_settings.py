"""A continued run trains as its own config says, whatever its checkpoint's optimisers held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests import tiny
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from t2i.config.compose import compose
from t2i.training import train

COMMON = [*tiny.DATA, *tiny.QUIET, "trainer=cpu", "trainer.precision=32-true", "trainer.monitor=null", "logger=none",
          "model.betas=[0.5,0.9]", "trainer.max_steps=2"]
VQ = [*tiny.VQGAN, "model.discriminator_start=0"]
NEW = ["model.learning_rate=0.0123", "model.betas=[0.6,0.8]", "trainer.max_steps=4"]
ADAMW = [*NEW, "model.weight_decay=0.07", "model.warmup_steps=3"]
MUON = ["model.optimizer=muon", "model.muon_learning_rate=0.03"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What DF-GAN and the prior stand on, trained for two steps; each is also continued."""
    folder = tmp_path_factory.mktemp("stages")
    for model, more in ((tiny.CLIP, []), (VQ, MUON)):
        train.run(config(folder, model, *more))
    return folder


def config(folder: Path, model: list[str], *more: str) -> dict[str, Any]:
    name = model[0].partition("=")[2]
    needs = {"dfgan": ["text_encoder.path={}/clip/hf"], "clip": [], "vqgan": [],
             "prior": ["text_encoder.path={}/clip/hf", "model.tokenizer.path={}/vqgan/last.ckpt"]}[name]
    paths = [f"paths.runs={folder}", f"paths.cache={folder / 'cache'}", *(word.format(folder) for word in needs)]
    return compose([*model, *COMMON, *paths, f"name={name}", *more])


def settings_by_step(made: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """Trains, and returns what the optimisers' groups said at each of their steps, one list an optimiser."""
    found: dict[int, list[list[dict[str, Any]]]] = {}

    def look(optimizer: Optimizer, *_: Any) -> None:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        found.setdefault(id(optimizer), []).append(groups)

    hook = register_optimizer_step_pre_hook(look)
    try:
        train.run(made)
    finally:
        hook.remove()
    return [[group for step in steps for group in step] for steps in found.values()]


@pytest.mark.parametrize(("model", "new"), [
    (VQ, [*ADAMW, *MUON, "model.discriminator_learning_rate=0.002"]), (tiny.CLIP, ADAMW),
    (tiny.PRIOR, ADAMW),
    (tiny.DFGAN, [*NEW, "model.discriminator_learning_rate=0.002", "model.halve_every=1"])],
    ids=["vqgan", "clip", "prior", "dfgan"])  # fmt: skip
def test_from_the_first_step_on_rates_decay_betas_and_schedule_are_the_new_configs(
    stages: Path, model: list[str], new: list[str]
) -> None:
    name = model[0].partition("=")[2]
    if not (stages / name / "last.ckpt").is_file():
        train.run(config(stages, model))
    unbroken = settings_by_step(config(stages, model, *new, f"name={name}-new"))
    continued = settings_by_step(config(stages, model, *new, f"name={name}-on", f"resume={stages}/{name}/last.ckpt"))
    for ours, theirs in zip(continued, unbroken, strict=True):
        assert len(ours) and ours == theirs[len(theirs) // 2 :]  # its steps 3 and 4
    assert any(group["betas"] == (0.6, 0.8) and 0 < group["lr"] <= 0.0123 for group in continued[0])


def test_another_optimiser_is_refused_by_name(stages: Path) -> None:
    words = [*NEW, f"resume={stages}/clip/last.ckpt", "name=refused", "model.optimizer=muon"]
    with pytest.raises(ValueError, match=r"model\.optimizer=muon: .* state of adamw.*optimizer=adamw is allowed"):
        train.run(config(stages, tiny.CLIP, *words))
