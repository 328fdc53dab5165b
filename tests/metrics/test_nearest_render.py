"""The nearest render on made-up galleries, where the right answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.gallery import STYLES, gallery
from torch import Tensor

from t2i.metrics.intervals import median, ratio, wilson
from t2i.metrics.nearest_render import MEASURES, NearestRender, averages
from t2i.metrics.unseen_pairs import FLOORS, floors, ridge
from t2i.types import Gallery


def values(made: Gallery, drawings: Tensor, truth: Tensor, distance: str = "plain") -> dict[str, float]:
    found = NearestRender(made).verdicts(drawings, truth, distance).measures()  # type: ignore[arg-type]
    assert tuple(found) == MEASURES
    return {name: interval.value for name, interval in found.items()}


@pytest.mark.parametrize("distance", ["plain", "aligned"])
def test_copies_are_right_and_other_concepts_have_the_right_style_alone(distance: str) -> None:
    made = gallery()
    every = torch.arange(len(made.images))
    assert values(made, made.images, every, distance) == {**dict.fromkeys(MEASURES, 1.0)}
    moved = values(made, made.images.roll(len(STYLES), 0), every, distance)
    assert (moved["pair"], moved["concept"], moved["style"], moved["concept_given_style"]) == (0, 0, 1, 0)
    assert moved["median_rank"] > 1
    restyled = values(made, made.images.view(-1, 3, 3, 64, 64).roll(1, 1).flatten(0, 1), every, distance)
    assert (restyled["pair"], restyled["concept"], restyled["style"], restyled["style_given_concept"]) == (0, 1, 0, 0)


def test_equal_renders_are_as_right_as_one_another() -> None:
    made = gallery(4)
    twin = replace(made, images=made.images[[0, 1, 2, 0, 1, 2, *range(6, 12)]])
    assert values(twin, twin.images, torch.arange(12))["pair"] == 1


def test_only_the_aligned_distance_forgives_moving_and_scaling() -> None:
    made = gallery()
    judge, every = NearestRender(made), torch.arange(len(made.images))
    moved = F.pad(made.images, [2, 0, 2, 0], value=255)[..., :64, :64]
    inner = F.interpolate(made.images.float(), (58, 58), mode="bilinear", antialias=True)
    small = F.pad(inner, [3] * 4, value=255).round().byte()
    ground = made.images[:, :, :1, :1].expand(-1, -1, 64, 64).clone()
    for pictures, most in ((moved, 1e-5), (small, 2e-3)):
        drawn = torch.where(F.pad(torch.ones(1, 1, 58, 58), [3] * 4).bool(), pictures, ground)  # the style's own white
        near = judge.distances(drawn, "aligned").gather(1, every[:, None])
        far = judge.distances(drawn, "plain").gather(1, every[:, None])
        assert near.max() < most and (far > 4 * near).all()


def test_averages_and_distances_are_those_of_the_definition() -> None:
    made = gallery(3)
    small = made.images.float().div(255).view(9, 3, 16, 4, 16, 4).mean((3, 5)).flatten(1)
    torch.testing.assert_close(averages(made.images), small)
    torch.testing.assert_close(NearestRender(made).distances(made.images[:4], "plain"),
                               (small[:4, None] - small).square().mean(-1), atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="at least 16 pixels a side"):
        averages(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_floors_of_a_linear_world() -> None:
    made = gallery(60)
    truth = made.held_out.nonzero()[:, 0]
    found = {name: values(made, pictures, truth) for name, pictures in floors(made, truth, 0).items()}
    assert tuple(found) == FLOORS
    assert found["other_style"]["style"] == 0 and found["other_style"]["concept"] == 1
    assert found["other_concept"]["concept"] == 0 and found["other_concept"]["style"] == 1
    assert found["ridge"]["pair"] > 0.9 > found["mean"]["pair"]
    with pytest.raises(ValueError, match="held-out pairs"):
        floors(made, torch.tensor([1]), 0)
    doubled = replace(made, styles=["plain"] * len(made.styles))
    with pytest.raises(ValueError, match="twice"):
        floors(doubled, truth, 0)


def test_ridge_is_the_regression_that_leaves_out_best() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(40, 10), torch.randn(10, 2)
    asked = torch.randn(5, 10)
    torch.testing.assert_close(ridge(x, x @ weights + 3, asked), (asked @ weights + 3).double(), atol=0.01, rtol=0.01)
    with pytest.raises(ValueError, match="at least 3"):
        ridge(x[:2], x[:2], x)


def test_intervals_of_shares_and_medians() -> None:
    nothing = wilson(torch.zeros(50, dtype=torch.bool))
    assert (nothing.value, nothing.low) == (0, 0) and nothing.high == pytest.approx(0.0713, abs=1e-3)
    middle = median(torch.arange(101))
    assert (middle.value, middle.low, middle.high) == (50, 40, 60)
    assert median(torch.tensor([3])).described() == {"value": 3, "low": 3, "high": 3}


def test_several_renders_may_be_right() -> None:
    made = gallery()
    judge = NearestRender(made)
    right = torch.tensor([[name in ("thing 1", "thing 2") for name in made.concepts]] * 3)
    asked = torch.tensor([3, 3, 3])  # thing 1 in the first style
    nearest, hit, rank = judge.among(made.images[[3, 8, 12]], right, asked)
    assert nearest.tolist() == [3, 8, 12] and hit.tolist() == [True, True, False]
    apart = judge.distances(made.images[[12]], "plain")[0]
    assert rank[0] == 1 and rank[2] == 1 + sum(apart[i] < min(apart[3], apart[6]) for i in range(0, len(apart), 3))


def test_the_ratio_of_two_means() -> None:
    base = (torch.arange(200) % 2).double()
    same, half = ratio(base, base, 0), ratio(base * (torch.arange(200) % 4 == 1), base, 0)
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert half.value == 0.5 and 0.38 < half.low < 0.42 and 0.58 < half.high < 0.62
    with pytest.raises(ValueError, match="a base above 0"):
        ratio(base, torch.zeros(200), 0)
