"""The embedded data set: captions true, splits disjoint, held-out combinations held out, the same scene every time."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
import torch

from t2i.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    INVERSE,
    MARGIN,
    SHAPES,
    TASKS,
    Described,
    OnBackground,
    Related,
)
from t2i.data.shapes import (
    HELDOUT_TASKS,
    ROLES,
    Shapes,
    caption_held_out,
    colour_count_held_out,
    colour_shape_held_out,
    prompts,
    relation_held_out,
    scene_held_out,
    split_of,
)
from t2i.metrics.composition import check_clauses

SPLITS = ("train", "val", "heldout")
N = 250


@pytest.fixture(scope="module")
def scenes() -> dict:
    return {split: [Shapes(split, size=N, val_size=N).scene(i) for i in range(N)] for split in SPLITS}


def test_captions_are_true_of_their_scene_graph(scenes: dict) -> None:
    for split in SPLITS:
        data = Shapes(split, size=N, val_size=N)
        for index, scene in enumerate(scenes[split]):
            captions = data.describe(index)
            assert 1 <= len(captions) == len({c.text for c in captions})
            for caption in captions:
                assert caption.task == scene.task
                verdict = check_clauses(scene.background, scene.things, caption.clauses)
                assert verdict.correct, (caption, verdict.reasons)


def test_texts_say_what_their_clauses_say() -> None:
    """An independent reading of the sentence: the number of each shape's words, colours, sizes, direction."""
    numbers = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
    numbers |= {str(i): i for i in range(1, 7)}
    singular = {shape + end: shape for shape in SHAPES for end in ("", "s", "es")}
    data = Shapes("train", size=400)
    for caption in itertools.chain.from_iterable(data.describe(i) for i in range(400)):
        words = caption.text.replace(",", "").split()
        read = []
        for place, word in enumerate(words):
            if word in singular:
                start = max(i for i in range(place) if words[i] in numbers)
                between = words[start + 1 : place]
                colour = next((w for w in between if w in COLOURS), None)
                size = next((w for w in between if w in ("small", "large")), None)
                assert len(between) == (colour is not None) + (size is not None), caption.text
                assert (words[start] == "an") == (between[:1] == ["orange"] and words[start] in ("a", "an"))
                assert (word == singular[word]) == (numbers[words[start]] == 1), caption.text
                read.append((singular[word], colour, size, numbers[words[start]]))
        claimed = [(c.shape, c.colour, c.size, c.count) for c in caption.clauses if isinstance(c, Described)]
        assert sorted(map(repr, read)) == sorted(map(repr, claimed)), caption.text
        for clause in caption.clauses:
            if isinstance(clause, OnBackground):
                assert caption.text.endswith(f" on a {clause.background} background")
            if isinstance(clause, Related):
                subject, target = (caption.clauses[i].shape for i in (clause.subject, clause.object))
                assert singular[next(w for w in words if w in singular)] == subject != target
                said = {
                    "left": "left",
                    "right": "right",
                    "above": "above|over|top",
                    "below": "below|under|bottom",
                }
                first = next(w for w in words if w in "|".join(said.values()).split("|"))
                assert first in said[clause.relation].split("|"), caption.text


def test_splits_are_disjoint_and_hold_their_rule(scenes: dict) -> None:
    for split in SPLITS:
        assert all(split_of(scene) == split for scene in scenes[split])
        assert all(scene_held_out(scene) == (split == "heldout") for scene in scenes[split])
    content = {split: {(s.background, frozenset(s.things)) for s in scenes[split]} for split in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not content[a] & content[b]
    # Another seed's train scenes never fall into this seed's val: the split is the scene's own.
    assert all(split_of(Shapes("train", seed=7).scene(i)) == "train" for i in range(100))


def test_held_out_rules_spare_every_word() -> None:
    pairs = [(c, s) for c in COLOURS for s in SHAPES if colour_shape_held_out(c, s)]
    assert len(pairs) == 6 and len({s for _, s in pairs}) == 6 and len({c for c, _ in pairs}) == 6
    held = {(a, r, b) for a, b in itertools.permutations(SHAPES, 2) for r in ROLES if relation_held_out(a, r, b)}
    assert len(held) == 24 and ("circle", "left", "square") in held and ("triangle", "below", "circle") in held
    assert all((b, INVERSE[r], a) in held and (b, r, a) not in held for a, r, b in held)
    for shape, role in itertools.product(SHAPES, ROLES):  # every shape has every role beside the four others
        assert sum((shape, role, other) in held for other in SHAPES) == 1
    counts = [(c, n) for c in COLOURS for n in range(1, 7) if colour_count_held_out(c, n)]
    assert sorted(n for _, n in counts) == [2, 3, 4, 5, 6] and len({c for c, _ in counts}) == 5


def test_train_shows_every_other_combination() -> None:
    data = Shapes("train", size=3000)
    pairs, related, counts, backgrounds = set(), set(), set(), set()
    for scene in map(data.scene, range(len(data))):
        backgrounds.add(scene.background)
        pairs |= {(thing.colour, thing.shape) for thing in scene.things}
        counts |= set(Counter(thing.colour for thing in scene.things).items())
        if scene.relation is not None:
            related.add((scene.things[0].shape, scene.relation, scene.things[-1].shape))
    assert pairs == {(c, s) for c in COLOURS for s in SHAPES if not colour_shape_held_out(c, s)}
    every = {(a, r, b) for a, b in itertools.permutations(SHAPES, 2) for r in ROLES}
    assert related == {triple for triple in every if not relation_held_out(*triple)}
    assert counts == {(c, n) for c in COLOURS for n in range(1, 7) if not colour_count_held_out(c, n)}
    assert backgrounds == set(BACKGROUNDS)


def test_things_keep_their_distance(scenes: dict) -> None:
    for scene in itertools.chain.from_iterable(scenes.values()):
        assert 1 <= len(scene.things) <= 6 and sum(scene.groups) == len(scene.things)
        for a, b in itertools.combinations(scene.things, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 1e-9
        for thing in scene.things:
            low = thing.radius + MARGIN - 1 / 1024
            assert all(low <= place <= 1 - low for place in (thing.x, thing.y))


def test_on_the_smallest_lattice_six_things_find_room() -> None:
    data = Shapes("train", size=400, lattice=8, backgrounds=["white"])
    drawn = [data.scene(i) for i in range(len(data))]
    cells = {(k + 0.5) / 8 for k in range(8)}
    assert {place for scene in drawn for thing in scene.things for place in (thing.x, thing.y)} <= cells
    for scene in drawn:
        assert scene.background == "white"
        for a, b in itertools.combinations(scene.things, 2):
            assert math.hypot(a.x - b.x, a.y - b.y) >= a.radius + b.radius + GAP - 1e-9
    counts = Counter(len(scene.things) for scene in drawn if scene.task == "count")
    assert counts[6] > 0.6 * counts[2]  # as many are asked for: none gives way for want of room
    with pytest.raises(ValueError, match="lattice=7: at least 8 cells a side"):
        Shapes("train", lattice=7)


def test_same_index_same_example_and_tasks_in_balance(scenes: dict) -> None:
    a, b = Shapes("train", image_size=48, size=N)[17, 0], Shapes("train", image_size=48, size=N)[17, 5]
    assert (
        torch.equal(a.image, b.image) and a.captions == b.captions and a.key == b.key == "shapes/0/train/17"
    )
    assert a.image.shape == (3, 48, 48) and a.image.dtype == torch.uint8
    assert not torch.equal(a.image, Shapes("train", image_size=48, seed=1)[17, 0].image)
    # The scene hangs on nothing but (seed, split, index): not on the size of the data set or of the picture.
    assert (
        Shapes("train", size=18).scene(17) == Shapes("train", image_size=32).scene(17) == scenes["train"][17]
    )
    frozen = scenes["train"][0]  # if this changes, published figures change: see CHANGELOG, "Changes results"
    assert (frozen.task, frozen.background, frozen.things[0].shape) == ("colour", "navy", "ring")
    kinds = Counter(Shapes("train").scene(i).task for i in range(1300))
    assert all(140 <= kinds[task] <= 260 for task in TASKS) and 60 <= kinds["compound"] <= 140
    assert {Shapes("val", tasks={"two": 1.0}).scene(i).task for i in range(10)} == {"two"}


def test_the_vocabulary_is_small_and_all_used() -> None:
    data = Shapes("train", size=2500)
    texts = [text for index in range(2500) for text in data.captions(index)]
    words = {word for text in texts for word in text.replace(",", "").split()}
    assert len(words) < 120
    plurals = {"circles", "squares", "triangles", "diamonds", "crosses", "rings"}
    expected = (
        set(COLOURS) | set(BACKGROUNDS) | set(SHAPES) | plurals | set("123456") | {"small", "large", "beside"}
    )
    expected |= {
        "a",
        "an",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "left",
        "right",
        "above",
        "over",
        "below",
    }
    expected |= {"under", "top", "bottom"}
    assert expected <= words
    assert any("to the left of" in text for text in texts)
    assert any("beside" in text and text.endswith(", on the left") for text in texts)


@pytest.mark.parametrize("task", TASKS)
def test_prompts_of_seen_combinations(task: str) -> None:
    captions = prompts("val", task, 60, seed=3)
    assert captions == prompts("val", task, 60, seed=3) != prompts("val", task, 60, seed=4)
    assert len(captions) == 60
    for caption in captions:
        assert caption.task == task and not caption_held_out(caption)
        described = [clause for clause in caption.clauses if isinstance(clause, Described)]
        assert all(clause.size is None for clause in described)
        assert not any(isinstance(clause, OnBackground) for clause in caption.clauses)
        assert any(isinstance(clause, Related) for clause in caption.clauses) == (task == "position")
        assert all(clause.exact == (task == "count") for clause in described)
        assert len(described) == (2 if task in ("two", "position", "attribution") else 1)
        assert len({clause.shape for clause in described}) == len(described)
        if task in ("colour", "attribution"):
            assert None not in {c.colour for c in described} and len({c.colour for c in described}) == len(
                described
            )
        if task in ("single", "two"):
            assert {clause.colour for clause in described} == {None}


def test_prompts_of_held_out_combinations() -> None:
    for task in HELDOUT_TASKS:
        assert all(
            caption_held_out(caption) and caption.task == task for caption in prompts("heldout", task, 40)
        )
    with pytest.raises(ValueError, match="task='single' with split='heldout': allowed are colour, count"):
        prompts("heldout", "single", 1)


def test_messages() -> None:
    with pytest.raises(ValueError, match="split='test' is none of train, val, heldout"):
        Shapes("test")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tasks names colors; allowed are single, colour"):
        Shapes("train", tasks={"colors": 1.0})
    with pytest.raises(ValueError, match="not all 0"):
        Shapes("train", tasks={"two": 0.0})
    with pytest.raises(ValueError, match="image_size=4"):
        Shapes("train", image_size=4)
    with pytest.raises(IndexError):
        Shapes("train", size=5)[5, 0]
