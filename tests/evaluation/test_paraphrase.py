"""Concepts asked for by words that no caption has, end to end on a made-up gallery."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.gallery import STYLES, gallery
from torch import Tensor

from t2i.config.compose import compose
from t2i.evaluation import evaluate, nearest_render, paraphrase
from t2i.types import Gallery
from t2i.viz.tables import markdown

MADE = gallery()


class Data:
    def gallery(self) -> Gallery:
        return MADE


def paint(kind: str, captions: list[str]) -> Tensor:
    """True renders for names; for words `duo` alone is known: its second concept, in the wrong style."""
    places = ([MADE.captions.index(caption) for caption in captions] if kind == "names" else
              [3 * len(STYLES) if "duo" in caption else 11 * len(STYLES) for caption in captions])
    return MADE.images[places].permute(0, 2, 3, 1)


def test_words_ask_for_seen_pairs_in_all_styles() -> None:
    chosen = paraphrase.asked(MADE, 10, 0)
    assert {one.word.word for one in chosen} == {"item zero", "gizmo", "duo"}  # void names nothing
    for one in chosen:
        assert MADE.concepts[one.place] in one.word.concepts and not MADE.held_out[one.place]
    every = paraphrase.asked(replace(MADE, unseen_words=MADE.unseen_words[1:2] * 9), 9, 0)  # never held out
    assert [MADE.styles[one.place] for one in every] == [*STYLES] * 3
    assert paraphrase.asked(MADE, 2, 1) == paraphrase.asked(MADE, 10, 1)[:2]
    for made, n, message in ((MADE, 1, "n_pairs=1: metrics=.paraphrase. takes at least 2"),
                             (replace(MADE, unseen_words=[]), 9, "there are 0, at least 2 are needed")):
        with pytest.raises(ValueError, match=message):
            paraphrase.asked(made, n, 0)


def test_right_is_a_concept_that_the_word_names() -> None:
    found = paraphrase.judged(paint, MADE, 10, 0)
    scores = json.loads(json.dumps(found.scores))
    assert {n for *_, n in found.values} == {3} and list(scores) == ["all", "far"] and list(scores["all"]) == [
        "names", "words", "share", "ceiling_renders", "floor_shuffled_words"]
    assert scores["all"]["names"]["concept"]["value"] == 1 == scores["all"]["ceiling_renders"]["top5"]["value"]
    assert scores["all"]["words"]["concept"]["value"] == pytest.approx(1 / 3)
    assert scores["all"]["share"]["concept"]["value"] == pytest.approx(1 / 3)
    assert scores["all"]["floor_shuffled_words"]["concept"]["value"] == 0
    assert [word["word"] for word in found.more["unseen_words"] if word["right"]] == ["duo"]
    assert {name for name, *_ in found.values} == {f"paraphrase_{far}{kind}{top}" for far in ("", "far_") for top in
                                                  ("", "_top5") for kind in ("names", "words", "share")}
    assert "| words / names | 0.333 (0.000 to 1.000) |" in markdown(found.tables)


def test_no_share_where_no_name_is_right() -> None:
    found = paraphrase.judged(lambda kind, captions: paint("words", ["else"] * len(captions)), MADE, 10, 0)
    assert "concept" not in found.scores["all"]["share"] and "| words / names | – |" in markdown(found.tables)


def test_words_that_share_none_with_the_name() -> None:
    word = MADE.unseen_words[0]
    assert paraphrase.is_far(word) and not paraphrase.is_far(replace(word, concepts=("ground-zero thing",)))


def test_a_folder_of_true_renders_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*words: str) -> dict[str, Any]:
        return evaluate.run(compose(["data=emoji", "data.image_size=64", "metrics=[paraphrase]",
                                     f"paths.cache={tmp_path / 'cache'}", *words], "evaluate"))

    monkeypatch.setattr(nearest_render, "dataset", lambda config, split: "of another kind")
    with pytest.raises(ValueError, match=r"^metrics=\[paraphrase\] is of data with .* data=emoji; str has none$"):
        run(f"export={tmp_path / 'none'}")
    monkeypatch.setattr(nearest_render, "dataset", lambda config, split: Data())
    run(f"export={tmp_path / 'a'}")
    with pytest.raises(ValueError, match="n_pairs=1: metrics"):
        run(f"images={tmp_path / 'a'}", "n_pairs=1")
    result = run(f"images={tmp_path / 'a'}")
    assert result["scores"]["paraphrase_share"]["value"] == 1 and len(result["scores"]["unseen_words"]) == 3
    assert "Unseen words" in (tmp_path / "a-evaluation/evaluation.html").read_text()
    assert (tmp_path / "a-evaluation/evaluation-paraphrase.png").is_file()
