from __future__ import annotations

import pytest
import torch

from t2i.data.scenes import TASKS, render
from t2i.data.shapes import World, prompted
from t2i.evaluation import scene_paraphrase
from t2i.evaluation.scene_paraphrase import WORDINGS
from t2i.viz import grids
from t2i.viz.tables import markdown

N, WORLD = 4, World(8, ("white", "navy"))
TEXT = {wording: [caption.text for caption, _ in scene_paraphrase.prompts(N, 0, WORLD, [wording])]
        for wording in WORDINGS}


def truth(wording: str, text: list[str]) -> torch.Tensor:
    chosen = [pair for task in TASKS for pair in prompted("val", task, N, 0, WORLD, wording)]
    assert [caption.text for caption, _ in chosen] == text
    return torch.stack([torch.from_numpy(render(scene, 64)) for _, scene in chosen])


@pytest.fixture(scope="module")
def right():
    return scene_paraphrase.judged(truth, 64, N, 0, WORLD)


def test_true_renders_are_right_in_every_wording(right):
    found = right
    assert list(found.scores) == list(WORDINGS) == ["grammar", "plain", "templates", "synonyms", "new_words"]
    for kinds in found.scores.values():
        assert kinds["score"]["overall"]["value"] == kinds["ceiling_renders"]["overall"]["value"] == 1
        assert kinds["floor_shuffled_captions"]["overall"]["value"] < 0.7
    assert {name: kinds["share"]["overall"]["value"] for name, kinds in found.scores.items() if "share" in kinds} == {
        "templates": 1, "synonyms": 1, "new_words": 1}


def test_who_knows_half_of_the_words_has_half_of_the_score():
    def half(wording: str, text: list[str]) -> torch.Tensor:
        pictures = truth(wording, text)
        if wording == "new_words":
            pictures[::2] = 255
        return pictures

    found = scene_paraphrase.judged(half, 64, N, 0, WORLD)
    values = {name: interval for name, interval, _, _ in found.values}
    assert values["paraphrase_new_words"].value == values["paraphrase_new_words_share"].value == 0.5
    assert values["paraphrase_new_words_share"].low < 0.5 < values["paraphrase_new_words_share"].high
    assert values["paraphrase_plain"].value == 1 and "paraphrase_plain_share" not in values
    table = markdown(found.tables)
    assert "| training's forms, held-out synonyms | 0.500 |" in table and table.count("\n") == 8


def test_nothing_right_has_no_share():
    def white(wording: str, text: list[str]) -> torch.Tensor:
        return torch.full((len(text), 64, 64, 3), 255, dtype=torch.uint8)

    found = scene_paraphrase.judged(white, 64, N, 0, WORLD)
    assert not any("share" in kinds for kinds in found.scores.values())
    assert found.scores["plain"]["score"]["overall"]["value"] == 0
    assert "–" in markdown(found.tables)


def test_the_sheet_shows_one_of_each_task_by_wording(right):
    shown, caption = right.sheets["paraphrase"]
    alike = grids.grid(torch.cat([truth(wording, TEXT[wording])[::N] for wording in WORDINGS]),
                       [text for wording in WORDINGS for text in TEXT[wording][::N]], len(TASKS))
    assert shown.tobytes() == alike.tobytes() and caption == "One of each task, by wording"
