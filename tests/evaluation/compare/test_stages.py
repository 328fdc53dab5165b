"""Several models side by side: numbers, files, restart, and what is refused before anything runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny
from torch import Tensor, nn

from t2i.checkpoint import file_format
from t2i.config.compose import Stage, compose
from t2i.data import shapes
from t2i.data.scenes import render
from t2i.data.seeds import derive_seed
from t2i.evaluation.compare import stages as compare_stages
from t2i.evaluation.compare.images import drawn
from t2i.evaluation.compare.stages import Comparison
from t2i.metrics.clip_score import CLIPScorer
from t2i.models.clip import CLIP
from t2i.training import pipeline, train
from t2i.viz.grids import MARGIN

DATA = tiny.DATA
FACTS = {"minutes": 1.5, "steps": 7}


class Grey(nn.Module):
    """Draws a grey level a picture, from its seed."""

    kind, image_size = "grey", 32

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level, self.options, self.drawn = nn.Parameter(torch.tensor([level, 0.0])), {"truncation": 0.5}, 0

    def drawing_parameters(self) -> int:
        return 2

    def check_options(self, truncation: float) -> None:
        assert truncation == 0.5

    def sample(self, text: list[str], *, seeds: list[int], truncation: float) -> Tensor:
        self.check_options(truncation)
        self.drawn += len(text)
        noise = torch.tensor([seed % 1000 / 1000 for seed in seeds]).view(-1, 1, 1, 1)
        return (self.level[0] + 0.2 * noise).expand(-1, 3, self.image_size, self.image_size)


class Right(Grey):
    """Knows the scenes of the captions it is asked for."""

    def __init__(self, known: dict[str, np.ndarray]) -> None:
        super().__init__(0.0)
        self.known = known

    def sample(self, text: list[str], *, seeds: list[int], truncation: float) -> Tensor:
        self.drawn += len(text)
        found = torch.from_numpy(np.stack([self.known[one] for one in text]))
        return found.permute(0, 3, 1, 2).float() / 127.5 - 1

    def drawing_parameters(self) -> int:
        return 3_000_000


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPScorer:
    torch.manual_seed(0)
    sizes = {"width": 16, "num_heads": 2, "num_layers": 1, "text_width": 16, "text_layers": 1, "text_heads": 2}
    model = CLIP(image_size=16, patch_size=8, embed_dim=8, vocab_size=270, context_length=16, **sizes)
    model.prepare(["a red circle", "two blue squares"])
    folder = tmp_path_factory.mktemp("clip") / "hf"
    model.export(folder)
    return CLIPScorer(str(folder))


def comparison(clip: CLIPScorer, cache: Path, n: int = 12, n_per_task: int = 2) -> Comparison:
    return Comparison(compose(["model=clip", *DATA, f"paths.cache={cache}"]), clip, n, n_per_task, seed=3)


def known(held: Comparison) -> dict[str, np.ndarray]:
    """Every caption that a comparison asks for, with a picture of a scene it is true of."""
    found = {held.reference.data.captions(i)[0]: render(held.reference.data.scene(i), 32) for i in range(held.n)}
    for split, tasks in (("val", shapes.TASKS), ("heldout", shapes.HELDOUT_TASKS)):
        for task in tasks:
            pairs = shapes.prompted(split, task, max(2, held.n_per_task), held.seed, held.world)
            found |= {caption.text: render(scene, 32) for caption, scene in pairs}
    return found


def test_table_protocol_page_and_restart(tmp_path: Path, clip: CLIPScorer) -> None:
    held = comparison(clip, tmp_path)
    models = {"right": ("a1", Right(known(held))), "grey": ("b2", Grey(0.1))}
    facts = {"right": FACTS, "grey": FACTS}
    result = compare_stages.compare(models, held, tmp_path, 3, facts, {"text": 27.0})
    assert json.loads((tmp_path / "comparison.json").read_text()) == json.loads(json.dumps(result))
    rows = result["models"]
    assert rows["right"]["composition"]["seen"]["score"]["overall"] == 1.0
    assert rows["grey"]["composition"]["heldout"]["score"]["overall"] == 0.0
    assert "examples" not in rows["grey"]["composition"]["seen"]
    # The floor: it draws the very renders, all but for captions that stand twice.
    assert rows["right"]["fd_clip"] == pytest.approx(result["reference"]["fd_clip"], rel=0.05)
    assert rows["grey"]["fd_clip"] > 2 * rows["right"]["fd_clip"]
    assert rows["grey"]["parameters"] == 2 and rows["right"]["parameters"] == 3_000_000
    assert rows["grey"]["images_per_second"] > 0 and "torch threads" in rows["grey"]["hardware"]
    protocol = result["protocol"]
    assert rows["grey"]["scored"] == {"hash": "b2", "sampler": {"truncation": 0.5}}
    assert protocol["clip_model"] == clip.id and protocol["fd_pictures"] == 12 and protocol["n_per_task"] == 2
    assert "not normalised" in protocol["features"] and protocol["torch"] == torch.__version__
    assert protocol["data"]["image_size"] == 32 and protocol["seed"] == 3

    lines = (tmp_path / "comparison.md").read_text().splitlines()
    assert lines[0].startswith("| model | composition, seen | composition, held out | fd_clip (12 pictures) | images/s")
    assert lines[2].startswith("| true renders | 1.000 | 1.000 | ") and "(floor)" in lines[2]
    assert lines[3].startswith("| right | 1.000 | 1.000 | ") and lines[3].endswith(" | 3 M | 1:30 | 7 |")
    assert "| attribution | held out | 1.000 | 1.000 | 0.000 |" in lines
    assert "text 0:27" in lines[-1]
    assert all(line.count("|") == lines[0].count("|") for line in lines[1:5])

    with Image.open(tmp_path / "comparison.png") as image:  # true renders and two models in rows, three captions
        assert image.width > 3 * (128 + MARGIN) and image.height > 3 * (128 + MARGIN)

    before = models["right"][1].drawn, models["grey"][1].drawn
    again = compare_stages.compare({**models, "grey": ("c3", models["grey"][1])}, held, tmp_path, 3,
                               {**facts, "right": {**FACTS, "minutes": 2.0}}, {})
    assert models["right"][1].drawn == before[0] + 3  # the page alone
    assert models["grey"][1].drawn > before[1] + 100  # another checkpoint
    assert again["models"]["right"] == {**rows["right"], "minutes": 2.0}
    assert again["models"]["grey"]["scored"]["hash"] == "c3"
    before_other = models["right"][1].drawn
    compare_stages.compare({"right": models["right"]}, comparison(clip, tmp_path, n=8), tmp_path, 1, facts, {})
    assert models["right"][1].drawn > before_other + 100  # other settings: nothing held counts


def test_what_is_done_survives_an_interruption(tmp_path: Path, clip: CLIPScorer) -> None:
    class Broken(Grey):
        def sample(self, text: list[str], *, seeds: list[int], truncation: float) -> Tensor:
            raise KeyboardInterrupt

    held, first = comparison(clip, tmp_path), Grey(0.1)
    with pytest.raises(KeyboardInterrupt):
        compare_stages.compare({"a": ("1", first), "b": ("2", Broken(0))}, held, tmp_path, 1, {}, {})
    before = first.drawn
    compare_stages.compare({"a": ("1", first), "b": ("2", Grey(0))}, held, tmp_path, 1, {"a": FACTS, "b": FACTS}, {})
    assert first.drawn == before + 1


def test_each_picture_has_its_own_seed() -> None:
    model = Grey(0.0)
    pictures = drawn(model, ["x"] * 70, 5, {"truncation": 0.5}, None)
    wanted = model.sample(["x"], seeds=[derive_seed(5, "comparison", 66)], truncation=0.5).detach()
    assert int(pictures[66, 0, 0, 0]) == round(float((wanted[0, 0, 0, 0] + 1) * 127.5))


def settings(**other: Any) -> dict[str, Any]:
    return {"models": {"a": "a"}, "includes": None, "clip_model": "judge", "n_per_task": 2, "fd_pictures": 4,
            "columns": 2, **other}


def test_mistakes_are_told_before_anything_runs(tmp_path: Path, capsys: Any) -> None:
    paths = [f"paths.runs={tmp_path}"]
    stages = {"judge": compose(["model=clip", "name=g/judge", *paths]), "a": compose(["model=vqgan", *paths]),
              "b": compose(["model=vqgan", "data.lattice=8", *paths])}
    compare_stages.check(settings(), stages)
    prior = compose(["model=prior", f"text_encoder.path={tmp_path}/g/judge/hf", "model.tokenizer.path=x", *paths],
                    files=False)
    emoji = compose(["model=vqgan", "data=emoji", *paths], files=False)
    for given, more, message in (
        ({"models": {}}, {}, "names none"),
        ({"models": {"a": "c"}}, {}, "c is no stage; there are judge, a, b"),
        ({"includes": {"d": ["b"]}}, {}, "includes.d: models has no such label"),
        ({"clip_model": "b"}, {}, "clip_model=b trains no CLIP"),
        ({"n_per_task": 1}, {}, "n_per_task=1: a whole number >= 2"),
        ({"models": {"a": "a", "b": "b"}}, {}, "other scenes"),
        ({}, {"a": prior}, r"clip_model=judge conditions a \(text_encoder\.path\)"),
        ({}, {"a": emoji}, "no data=shapes"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_stages.check(settings(**given), {**stages, **more})
    with pytest.raises(ValueError, match=r"judges, .*it takes models, includes, clip_model"):
        compare_stages.check({"judges": 1, "models": {}}, stages)
    former = settings()
    former["judge"] = former.pop("clip_model")
    compare_stages.check(former, stages)
    assert "comparison.judge is now called comparison.clip_model" in capsys.readouterr().err


@pytest.mark.slow
def test_a_pipeline_ends_with_a_comparison(tmp_path: Path, capsys: Any) -> None:
    """Four real stages of a few steps; the second time nothing is done again."""
    runs = tmp_path / "runs"
    common = [*DATA, *tiny.TRAINER, *tiny.QUIET, "trainer.val_every_steps=2", "trainer.max_steps=2",
              f"paths.runs={runs}", f"paths.cache={tmp_path / 'cache'}"]
    prior = [*tiny.PRIOR, f"model.tokenizer.path={runs}/g/vqgan/last.ckpt", f"text_encoder.path={runs}/g/clip/hf"]
    words = {"clip": tiny.CLIP, "judge": [*tiny.CLIP, "seed=1"],
             "vqgan": [*tiny.TOKENIZER, "model.discriminator=null"], "prior": prior}
    stages = [Stage(name, [*given, *common, f"name=g/{name}"], "…") for name, given in words.items()]
    config = {**compose(["model=clip", *common]), "name": "g", "comparison": settings(
        models={"two-stage": "prior"}, includes={"two-stage": ["vqgan"]})}
    result = pipeline.run(config, stages)
    out = capsys.readouterr().out
    assert "| two-stage | " in out and f"Written: {runs / 'g/comparison.json'}" in out
    held = json.loads((runs / "g/comparison.json").read_text())
    row = held["models"]["two-stage"]
    assert row["scored"]["hash"] == file_format.file_hash(runs / "g/prior/last.ckpt")
    assert row["scored"]["sampler"] == {"temperature": 0.7, "guidance": 1.5}
    assert set(row["stages"]) == {"prior", "vqgan"} and row["steps"] == 2
    assert row["minutes"] == pytest.approx(sum(stage["minutes"] for stage in row["stages"].values()))
    assert 0 < row["stages"]["prior"]["minutes"] < row["stages"]["prior"]["command_minutes"]
    assert set(held["protocol"]["shared_seconds"]) == {"clip"}
    report = Path(result["report"]).read_text()
    assert "captions in columns" in report and "two-stage" in report
    first = train.finished(runs / "g/prior")
    pipeline.run(config, stages)
    assert train.finished(runs / "g/prior") == first
    assert "two-stage: fd_clip" not in capsys.readouterr().err
    assert json.loads((runs / "g/comparison.json").read_text())["models"] == held["models"]
