"""Drawing: areas and places against closed forms, antialiasing, the palette's distances, GenEval's relations."""

from __future__ import annotations

import math

import numpy as np
import pytest

from t2i.data.scenes import BACKGROUNDS, COLOURS, RADII, SHAPES, Scene, Thing, coverage, relations, render

AREAS = {
    "circle": math.pi * 0.88**2,
    "square": 4 * 0.70**2,
    "triangle": 3 * math.sqrt(3) / 4,
    "diamond": 2.0,
    "cross": 2 * (2 * 0.95 * 2 * 0.32) - (2 * 0.32) ** 2,
    "ring": math.pi * (0.98**2 - 0.52**2),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_areas_equal_the_closed_form(shape: str) -> None:
    for radius, tolerance in ((100.0, 0.002), (8.0, 0.03)):
        area = float(coverage(shape, 128.3, 127.6, radius, 256, 256).sum()) / radius**2
        assert area == pytest.approx(AREAS[shape], rel=tolerance)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_stays_inside_its_circle(shape: str) -> None:
    mask = coverage(shape, 64, 64, 50, 128, 128)
    rows, columns = np.nonzero(mask > 0)
    assert np.hypot(rows + 0.5 - 64, columns + 0.5 - 64).max() < 50 + 1.5
    assert ((mask > 0) & (mask < 1)).sum() > 50  # soft edges


def test_render_puts_the_colour_where_the_thing_is() -> None:
    scene = Scene("navy", (Thing("circle", "pink", "large", 0.25, 0.75, RADII["large"]),), "single", (1,))
    for size in (32, 48, 64, 100):
        image = render(scene, size)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        assert tuple(image[int(0.75 * size), int(0.25 * size)]) == COLOURS["pink"]
        assert tuple(image[0, 0]) == tuple(image[-1, -1]) == BACKGROUNDS["navy"]
    # A shift by whole pixels shifts the picture.
    moved = Scene("navy", (Thing("circle", "pink", "large", 0.5, 0.5, RADII["large"]),), "single", (1,))
    assert np.array_equal(np.roll(render(scene, 64), (-16, 16), (0, 1)), render(moved, 64))


def test_the_palette_is_well_apart() -> None:
    colours = np.array(list(COLOURS.values()), float)
    grounds = np.array(list(BACKGROUNDS.values()), float)
    between = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1e3 * np.eye(len(colours))
    assert between.min() > 100
    assert np.linalg.norm(colours[:, None] - grounds[None], axis=-1).min() > 100
    assert len(COLOURS) == 8 and len(SHAPES) == 6 and not set(COLOURS) & set(BACKGROUNDS)


def test_relations_follow_geneval() -> None:
    assert relations(0.2, 0.5, 0.1, 0.8, 0.5, 0.1) == {"left"}
    assert relations(0.8, 0.5, 0.1, 0.2, 0.5, 0.1) == {"right"}
    assert relations(0.5, 0.2, 0.1, 0.5, 0.8, 0.1) == {"above"}
    assert relations(0.5, 0.8, 0.1, 0.5, 0.2, 0.1) == {"below"}
    assert relations(0.2, 0.2, 0.05, 0.8, 0.8, 0.05) == {"left", "above"}
    assert relations(0.5, 0.5, 0.1, 0.5, 0.5, 0.1) == set()
    assert relations(0.49, 0.5, 0.1, 0.51, 0.5, 0.1) == set()  # less than a tenth of both boxes


def test_unknown_shape_is_named() -> None:
    with pytest.raises(ValueError, match="shape='hexagon' is none of circle"):
        coverage("hexagon", 5, 5, 3, 10, 10)
