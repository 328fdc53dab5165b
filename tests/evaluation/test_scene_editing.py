"""Edits of scenes: what is asked for, and when the reader finds it right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests import tiny
from tests.models.test_prior import made  # noqa: F401

from t2i.checkpoint import atomic, building, file_format
from t2i.config.compose import compose
from t2i.data.scenes import render
from t2i.data.shapes import World, caption_held_out, scene_held_out, split_of
from t2i.evaluation import evaluate, scene_editing
from t2i.evaluation.composition import Judgement
from t2i.evaluation.scene_editing import Asked, asked, is_right
from t2i.viz.tables import markdown

N, WORLD = 6, World(8, ("white", "navy"))


def judged(paint) -> Judgement:
    return scene_editing.judged(paint, 64, Exact(), N, 0, WORLD)


class Exact(torch.nn.Module):
    """A tokenizer that loses nothing."""

    grid = (8, 8)

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        return image

    def decode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        return ids


def wished(edit: Asked, _: int) -> torch.Tensor:
    return torch.from_numpy(render(edit.after, 64))


@pytest.mark.parametrize("split", ["val", "heldout"])
def test_one_thing_becomes_another_in_its_place(split) -> None:
    for edit in asked(20, 0, WORLD, split):
        changed = [(a, b) for a, b in zip(edit.before.things, edit.after.things, strict=True) if a != b]
        (old, new), = changed
        assert (new.x, new.y, new.size) == (old.x, old.y, old.size)
        assert len({thing.shape for thing in (*edit.before.things, new)}) == 3
        assert len({thing.colour for thing in (*edit.before.things, new)}) == 3
        assert split_of(edit.before) == "val" and scene_held_out(edit.after) == (split == "heldout")
        assert caption_held_out(edit.caption) == (split == "heldout")
        named = {(clause.shape, clause.colour) for clause in edit.caption.clauses}
        assert named == {(thing.shape, thing.colour) for thing in edit.after.things}
        # What is outside of the box is the same in both renders, what is inside is not.
        differ = (render(edit.before, 64) != render(edit.after, 64)).any(-1)
        x0, y0, x1, y1 = (round(64 * side) for side in edit.box)
        inside = np.zeros_like(differ)
        inside[y0:y1, x0:x1] = True
        assert differ.any() and not differ[~inside].any()


def test_the_wished_scene_is_right_and_the_old_one_wrong() -> None:
    found = judged(wished)
    for split in ("seen", "heldout"):
        values = {kind: one["value"] for kind, one in found.scores[split].items()}
        assert values == {"score": 1, "ceiling_renders": 1, "ceiling_reconstructions": 1, "floor_no_edit": 0}
    assert "| heldout | 1.000 | 1.000 | 1.000 | 0.000 |" in markdown(found.tables)
    assert set(found.sheets) == {"editing-seen", "editing-heldout"}


def test_half_of_the_edits_are_half_of_the_score() -> None:
    turn = iter(range(2 * N))
    found = judged(lambda edit, _: torch.from_numpy(render(edit.after if next(turn) % 2 else edit.before, 64)))
    assert found.scores["seen"]["score"]["value"] == found.scores["heldout"]["score"]["value"] == 0.5


@pytest.mark.parametrize("fault", ["other moved", "other recoloured", "one more", "other ground"])
def test_what_was_to_stay_is_judged_too(fault) -> None:
    for edit in asked(5, 0, WORLD, "val"):
        scene = edit.after
        other = next(thing for thing in scene.things if thing in edit.before.things)
        changed = {
            "other moved": replace(other, x=(other.x + 0.25) % 0.75, y=(other.y + 0.25) % 0.75),
            "other recoloured": replace(other, colour=next(c for c in ("red", "blue", "green")
                                                           if c not in {thing.colour for thing in scene.things})),
        }.get(fault, other)
        things = tuple(changed if thing is other else thing for thing in scene.things)
        if fault == "one more":
            things = (*things, replace(other, x=1 - other.x, y=1 - other.y))
        ground = "white" if scene.background == "navy" else "navy"
        drawn = replace(scene, things=things, background=ground if fault == "other ground" else scene.background)
        assert is_right(render(scene, 64), scene) and not is_right(render(drawn, 64), scene)


def checkpoint(config: dict, path: Path) -> str:
    """Of an untrained model."""
    model = building.build(config["model"])
    atomic.save_atomic({"state_dict": model.state_dict(), "t2i": file_format.pack(model, config)}, path)
    return str(path)


def test_a_checkpoint_is_scored_by_its_edits(made, tmp_path: Path, capsys) -> None:  # noqa: F811
    vqgan = compose([*tiny.TOKENIZER, "model.discriminator=null", "data.image_size=32"], files=False)
    words = [*tiny.TRANSFORMER, "model.num_layers=2", f"text_encoder.path={made.hf}", "data.image_size=32",
             f"model.tokenizer.path={checkpoint(vqgan, tmp_path / 'vqgan.ckpt')}"]
    whole, parted = (checkpoint(compose([f"model={kind}", *words]), tmp_path / f"{kind}.ckpt")
                     for kind in ("prior", "prior_any"))

    def run(path: str, *more: str) -> dict:
        return evaluate.run(compose([f"ckpt={path}", "metrics=[editing]", "n_per_task=2", f"out={tmp_path / 'out'}",
                                     *more], "evaluate"))

    result = run(parted, "steps=2")
    assert result["scores"]["editing_seen"]["value"] == result["scores"]["editing_heldout"]["value"] == 0
    assert result["scores"]["editing"]["seen"]["ceiling_renders"]["value"] == 1
    assert result["protocols"]["editing_seen"]["sampler"]["steps"] == 2
    assert "| split | score | ceiling: renders |" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["scores"]["editing_seen"]["n"] == 2
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {f"evaluation-editing-{split}.png"
                                                                       for split in ("seen", "heldout")}
    with pytest.raises(ValueError, match=r"holds a prior, which draws pictures as a whole; a prior_any edits"):
        run(whole)
    with pytest.raises(ValueError, match="export= writes captions to draw"):
        run(parted, f"export={tmp_path / 'export'}")
