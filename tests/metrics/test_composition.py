"""The composition metric: the reader on true and on spoilt renders, the clause logic, ceiling and floor."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import ndimage

from t2i.data.scenes import (
    BACKGROUNDS,
    COLOURS,
    RADII,
    SHAPES,
    TASKS,
    Caption,
    Described,
    OnBackground,
    Related,
    Scene,
    Thing,
    render,
)
from t2i.data.shapes import HELDOUT_TASKS, Shapes, prompts
from t2i.metrics.composition import as_bytes, check_clauses, composition_score, read_scene, shuffled, verdicts


def thing(shape: str, colour: str, x: float, y: float, size: str = "small") -> Thing:
    return Thing(shape, colour, size, x, y, RADII[size])


def draw(*things: Thing, background: str = "white", image_size: int = 48) -> np.ndarray:
    return render(Scene(background, things, "two", (len(things),)), image_size)


def graph(things: list) -> Counter:
    return Counter((t.shape, t.colour, t.size) for t in things)


def spoil(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What a tokenizer does to a picture: soft edges and grain."""
    soft = ndimage.gaussian_filter(image.astype(np.float32), (0.7, 0.7, 0))
    return np.clip(soft + rng.normal(0, 0.03 * 255, image.shape) + 0.5, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("image_size,floor,spoilt_floor", [(32, 0.98, 0.96), (48, 0.995, 0.98), (64, 0.995, 0.985)])
def test_the_reader_reads_renders(image_size: int, floor: float, spoilt_floor: float) -> None:
    rng = np.random.default_rng(0)
    clean = spoilt = 0
    scenes = [
        Shapes(split, size=100, val_size=100).scene(i) for split in ("train", "heldout") for i in range(100)
    ]
    for scene in scenes:
        image = render(scene, image_size)
        background, found = read_scene(image)
        right = background == scene.background and graph(found) == graph(scene.things)
        clean += right
        for f in found if right or image_size > 32 else []:  # at 32 pixels neighbours may touch
            assert (
                min(max(abs(f.x - t.x), abs(f.y - t.y), abs(f.radius - t.radius)) for t in scene.things)
                < 0.02
            )
        background, found = read_scene(spoil(image, rng))
        spoilt += background == scene.background and graph(found) == graph(scene.things)
    assert clean / len(scenes) > floor
    assert spoilt / len(scenes) > spoilt_floor


def test_every_kind_of_thing_on_every_background() -> None:
    for (i, shape), (j, colour), background in itertools.product(
        enumerate(SHAPES), enumerate(COLOURS), BACKGROUNDS
    ):
        x, y = 0.25 + 0.01 * i, 0.3 + 0.013 * j  # other places on the pixel grid
        things = [thing(shape, colour, x, y), thing(shape, colour, x + 0.42, y + 0.2, "large")]
        name, found = read_scene(draw(*things, background=background))
        assert (name, graph(found)) == (background, graph(things))


def test_specks_noise_and_emptiness_are_no_things() -> None:
    image = draw(thing("ring", "blue", 0.5, 0.5))
    image[3:6, 40:43] = COLOURS["red"]
    assert [(f.shape, f.colour) for f in read_scene(image)[1]] == [("ring", "blue")]
    assert read_scene(draw(background="gray")) == ("gray", [])
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert all(f.shape == "unknown" for f in read_scene(noise)[1])
    canvas = np.full((48, 48, 3), 255, np.uint8)
    canvas[20:26, 5:43] = COLOURS["green"]  # a bar is none of the six
    assert [(f.shape, f.colour) for f in read_scene(canvas)[1]] == [("unknown", "green")]
    odd = np.full((48, 48, 3), 255, np.uint8)
    odd[16:28, 16:28] = (120, 140, 10)  # an olive square: no colour of the palette
    assert [(f.shape, f.colour) for f in read_scene(odd)[1]] == [("square", "unknown")]


def test_touching_things_of_two_colours_are_parted() -> None:
    image = draw(thing("square", "red", 0.40, 0.5, "large"), thing("square", "blue", 0.62, 0.5, "large"))
    found = read_scene(image)[1]
    assert sorted(f.colour for f in found) == ["blue", "red"]
    for other in ("cyan", "orange"):  # half a red circle, half another: neither a red circle nor another one
        motley = draw(thing("circle", "red", 0.5, 0.5, "large"))
        half = motley[:, 24:]
        half[half[:, :, 1] < 128] = COLOURS[other]
        assert all("unknown" in (f.shape, f.colour) for f in read_scene(motley)[1])


def test_float_tensors_read_as_bytes_do() -> None:
    image = draw(thing("cross", "purple", 0.3, 0.6), background="beige")
    tensor = torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1
    assert np.array_equal(as_bytes(tensor), image)
    assert read_scene(tensor) == read_scene(image)
    with pytest.raises(ValueError, match="uint8"):
        read_scene(image.astype(np.float32))
    with pytest.raises(ValueError, match="must be float"):
        read_scene(torch.zeros(48, 48, 3, dtype=torch.uint8))


RED_CIRCLE, BLUE_SQUARE = Described("circle", "red"), Described("square", "blue")
WRONG = {
    "missing": (
        [thing("circle", "red", 0.3, 0.3)],
        (RED_CIRCLE, BLUE_SQUARE),
        "blue square: at least 1 wanted, 0",
    ),
    "swapped colours": (
        [thing("circle", "blue", 0.3, 0.3), thing("square", "red", 0.7, 0.7)],
        (RED_CIRCLE, BLUE_SQUARE),
        "red circle: at least 1 wanted, 0",
    ),
    "one too many": (
        [thing("ring", "pink", 0.2, 0.2), thing("ring", "pink", 0.5, 0.5), thing("ring", "pink", 0.8, 0.8)],
        (Described("ring", count=2, exact=True),),
        "ring: exactly 2 wanted, 3 found",
    ),
    "one too few": (
        [thing("ring", "pink", 0.2, 0.2)],
        (Described("ring", "pink", count=2, exact=True),),
        "pink ring: exactly 2 wanted, 1 found",
    ),
    "mirrored": (
        [thing("circle", "red", 0.75, 0.5), thing("square", "blue", 0.25, 0.5)],
        (RED_CIRCLE, BLUE_SQUARE, Related("left", 0, 1)),
        "left: the circle is not left of square",
    ),
    "beside, not above": (
        [thing("circle", "red", 0.75, 0.5), thing("square", "blue", 0.25, 0.5)],
        (RED_CIRCLE, BLUE_SQUARE, Related("above", 0, 1)),
        "above: the circle is not above of square",
    ),
    "nothing there": ([], (RED_CIRCLE, BLUE_SQUARE, Related("left", 0, 1)), "left: nothing to relate"),
    "too large": (
        [thing("circle", "red", 0.5, 0.5, "large")],
        (Described("circle", size="small"),),
        "small circle",
    ),
    "background": (
        [thing("circle", "red", 0.5, 0.5)],
        (RED_CIRCLE, OnBackground("black")),
        "black wanted, white found",
    ),
    "shape": (
        [thing("diamond", "red", 0.5, 0.5)],
        (Described("square"),),
        "square: at least 1 wanted, 0 found",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_pictures_are_judged_wrong_for_the_right_reason(case: str) -> None:
    things, clauses, reason = WRONG[case]
    verdict = check_clauses(*read_scene(draw(*things)), clauses)
    assert not verdict.correct
    assert any(reason in said for said in verdict.reasons), verdict.reasons


def test_other_things_are_no_fault_as_in_geneval() -> None:
    image = draw(
        thing("circle", "red", 0.2, 0.5), thing("ring", "cyan", 0.5, 0.2), thing("square", "blue", 0.8, 0.5)
    )
    clauses = (RED_CIRCLE, BLUE_SQUARE, Related("left", 0, 1), Related("right", 1, 0))
    assert check_clauses(*read_scene(image), clauses).correct
    assert check_clauses(*read_scene(image), (Described("circle", count=1, exact=True),)).correct


@pytest.fixture(scope="module")
def rendered() -> tuple[np.ndarray, list[Caption]]:
    captions: list[Caption] = []
    images = []
    for split in ("val", "heldout"):
        for task in TASKS if split == "val" else HELDOUT_TASKS:
            data = Shapes(split, image_size=48, tasks={task: 1.0})
            for index in range(30):
                images.append(render(data.scene(index), 48))
                captions.append(data.describe(index)[0])
    return np.stack(images), captions


def test_ceiling_and_floor(rendered: tuple[np.ndarray, list[Caption]]) -> None:
    images, captions = rendered
    ceiling = composition_score(images, captions)
    assert list(ceiling) == [*TASKS, "overall"]
    assert min(ceiling.values()) > 0.99
    floor = composition_score(images, shuffled(captions))
    assert floor["overall"] < 0.15 and floor["attribution"] < 0.1
    assert ceiling["overall"] == pytest.approx(np.mean([ceiling[task] for task in TASKS]))


def test_shuffled_is_a_derangement_within_tasks(rendered: tuple[np.ndarray, list[Caption]]) -> None:
    _, captions = rendered
    other = shuffled(captions)
    assert other == shuffled(captions) and len(other) == len(captions)
    assert [c.task for c in other] == [c.task for c in captions]
    assert all(a is not b for a, b in zip(captions, other, strict=True))
    assert Counter(c.text for c in other) == Counter(c.text for c in captions)
    with pytest.raises(ValueError, match="only one of task 'two'"):
        shuffled(prompts("val", "two", 1))


def test_score_counts_and_complains() -> None:
    captions = prompts("val", "single", 4)
    shapes = [caption.clauses[0].shape for caption in captions]
    images = np.stack([draw(thing(shape, "red", 0.5, 0.5)) for shape in shapes])
    assert composition_score(images, captions) == {"single": 1.0, "overall": 1.0}
    images[0] = 255
    assert composition_score(images, captions)["single"] == 0.75
    assert [v.correct for v in verdicts(images, captions)] == [False, True, True, True]
    with pytest.raises(ValueError, match="one picture a caption"):
        composition_score(images[:2], captions)
