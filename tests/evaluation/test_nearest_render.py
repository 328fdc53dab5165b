"""Drawings judged by the nearest render, end to end on a made-up gallery."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gallery import STYLES, gallery
from torch import Tensor

from t2i.config.compose import compose
from t2i.evaluation import evaluate, nearest_render
from t2i.metrics.unseen_pairs import FLOORS
from t2i.types import Gallery
from t2i.viz.tables import markdown

MADE = gallery()


class Data:
    def gallery(self) -> Gallery:
        return MADE


def paint(split: str, captions: list[str]) -> Tensor:
    """True renders of seen pairs; of held-out ones the concept in another style."""
    places = [MADE.captions.index(caption) for caption in captions]
    if split == "heldout":
        places = [i // len(STYLES) * len(STYLES) + (i + 1) % len(STYLES) for i in places]
    return MADE.images[places].permute(0, 2, 3, 1)


def test_scores_stand_beside_ceilings_and_floors() -> None:
    found = nearest_render.judged(paint, MADE, None, 3, 0)
    assert {n for *_, n in found.values} == {3}
    scores = json.loads(json.dumps(found.scores))
    assert list(scores["seen"]) == ["score", "ceiling_renders"]
    assert list(scores["heldout"])[2:] == [f"floor_{name}" for name in FLOORS]
    ceiling = scores["heldout"]["ceiling_renders"]["plain"]
    assert scores["seen"]["score"]["plain"]["pair"]["value"] == 1 == ceiling["pair"]["value"]
    assert scores["heldout"]["score"]["plain"] == scores["heldout"]["floor_other_style"]["plain"]
    held = found.more["confusions"]["heldout"]
    assert held["concepts"] == [] and sum(times for _, _, times in held["styles"]) == 3 == len(held["examples"])
    assert set(found.sheets) == set(nearest_render.CAPTIONS)
    seen, heldout = nearest_render.tables(scores)
    assert seen.rows[0][:3] == ["score", "plain", "1.000 (0.439 to 1.000)"] and len(heldout.rows) == 9
    assert "| floor: ridge regression on the other styles | aligned |" in markdown(found.tables)


def test_halves_of_the_held_out_pairs_are_disjoint_and_the_same_for_every_seed() -> None:
    halves = {(part, seed): set(nearest_render.chosen(MADE, 1000, seed, part)["heldout"].tolist())
              for part in ("all", "val", "test") for seed in (0, 1)}
    for seed in (0, 1):
        val, test = halves["val", seed], halves["test", seed]
        assert val and test and not val & test and val | test == halves["all", seed]
        assert len(nearest_render.chosen(MADE, 1000, seed, "test")["seen"]) == len(test)
    assert halves["val", 0] == halves["val", 1] and halves["test", 0] == halves["test", 1]


def test_held_out_pairs_stand_in_a_red_frame() -> None:
    table = nearest_render.style_table(paint, MADE, torch.tensor([0]))  # thing 0, held out in the first style
    cell = table.width - 3 * (128 + 8), table.height - 128 - 8
    at = [table.getpixel((cell[0] - 2 + k * (128 + 8), cell[1] + 20)) for k in range(3)]
    assert at[0] == (0xD6, 0x27, 0x28) and at[1] != at[0] != at[2]


def test_a_folder_of_true_renders_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def run(*words: str) -> dict[str, Any]:
        return evaluate.run(compose(["data=shapes", "data.image_size=64", "metrics=[nearest_render]", "n_pairs=4",
                                     f"paths.cache={tmp_path / 'cache'}", *words], "evaluate"))

    with pytest.raises(ValueError, match=r"such as data=emoji; Shapes has none"):
        run(f"export={tmp_path / 'none'}")
    monkeypatch.setattr(nearest_render, "dataset", lambda config, split: Data())
    run(f"export={tmp_path / 'a'}")
    scores = run(f"images={tmp_path / 'a'}")["scores"]
    assert {f"nearest_render_{split}_{name}" for split in ("seen", "heldout")
            for name in ("pair", "median_rank", "top5", "perceptual")} <= set(scores)
    assert scores["nearest_render_heldout_pair"]["value"] == 1
    assert scores["nearest_render_seen_perceptual"]["value"] == 0
    assert scores["nearest_render_heldout_median_rank"]["better"] == "lower"
    assert (tmp_path / "a-evaluation/evaluation-nearest_render_heldout.png").is_file()
    assert "floor: ridge" in (tmp_path / "a-evaluation/evaluation.html").read_text()
    assert "Held-out combinations" in capsys.readouterr().out
    with pytest.raises(ValueError, match="none for the caption .* of nearest_render"):
        run(f"images={tmp_path / 'a'}", "n_pairs=5", "seed=1")


def test_a_style_that_the_checkpoint_never_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_render, "dataset", lambda config, split: Data())
    with pytest.raises(ValueError, match=r"data\.styles: the checkpoint was trained on plain, dark, never on warm"):
        nearest_render.open_gallery({"data": {"_target_": "x.Art"}}, 64, {"_target_": "x.Art",
                                                                          "styles": ["plain", "dark"]})
    trained = {"_target_": "x.Art", "styles": [*STYLES], "background": "white"}
    nearest_render.open_gallery({"data": trained | {"styles": tuple(STYLES)}}, 64, trained)
    with pytest.raises(ValueError, match="the checkpoint was trained on Scenes, not on Art; images= judges"):
        nearest_render.open_gallery({"data": trained}, 64, {"_target_": "x.Scenes"})
    # Of other styles other pairs are held out, and in another order the halves are others.
    for key, value in (("styles", [STYLES[0]]), ("styles", [*reversed(STYLES)]), ("background", "navy")):
        with pytest.raises(ValueError, match=f"^data.{key}=.*: other pairs are held out then than those that the"):
            nearest_render.open_gallery({"data": trained | {key: value}}, 64, trained)
