from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.generation.clip_guided.cutouts import SCHEMES, Cutouts

STILL = {"flip": 0, "degrees": 0, "shift": 0, "noise": 0}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(height: int, width: int) -> Tensor:
    """Red rises from left to right, green from top to bottom, linear in the coordinates; blue is flat."""
    x, y = ((torch.arange(side) + 0.5) / side * 1.6 - 0.8 for side in (width, height))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width), torch.zeros(height, width)])[None]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 14), (100, 70), (5, 64), (1, 1)])
def test_shapes_and_gradient_of_any_picture(scheme: str, height: int, width: int) -> None:
    image = (torch.rand((1, 3, height, width), generator=seeded(1)) * 1.8 - 0.9).requires_grad_()
    views = Cutouts(16, 40, scheme, jitter=0.2)(image, seeded())
    assert views.shape == (40, 3, 16, 16) and views.isfinite().all()
    views.square().sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_seed_decides_bit_for_bit(scheme: str) -> None:
    image, views = torch.rand(1, 3, 20, 30), Cutouts(8, 6, scheme, jitter=0.1, noise=0.1)
    torch.manual_seed(1)
    first = views(image, seeded(3))
    torch.manual_seed(2)
    assert torch.equal(first, views(image, seeded(3))) and not torch.equal(first, views(image, seeded(4)))
    assert views(image, seeded(), n=2).shape == (2, 3, 8, 8)


def test_the_whole_picture_is_the_picture() -> None:
    image = torch.rand((1, 3, 16, 16), generator=seeded(1)) * 2 - 1
    torch.testing.assert_close(Cutouts(16, 3, "whole", shift=0)(image, seeded()), image.expand(3, -1, -1, -1),
                               atol=1e-5, rtol=0)
    halved = Cutouts(8, 1, "whole", shift=0)(image, seeded())
    torch.testing.assert_close(halved, F.avg_pool2d(image, 2), atol=1e-5, rtol=0)
    quarter = Cutouts(4, 1, "whole", shift=0)(image, seeded())
    torch.testing.assert_close(quarter, F.avg_pool2d(image, 4), atol=1e-5, rtol=0)
    doubled = Cutouts(32, 1, "whole", shift=0)(image, seeded())
    torch.testing.assert_close(doubled, F.interpolate(image, (32, 32), mode="bilinear"), atol=1e-5, rtol=0)


def test_whole_moves_a_little_and_repeats_the_edge() -> None:
    views = Cutouts(16, 200, "whole")(ramp(16, 16), seeded())
    moved = views[:, :2, 8, 8] - ramp(16, 16)[0, :2, 8, 8]
    assert 0.06 < moved.abs().max() <= 0.05 * 1.6 + 1e-5 and moved[:, 0].unique().numel() > 100
    assert torch.equal(Cutouts(16, 9, "whole")(torch.ones(1, 3, 16, 16), seeded()), torch.ones(9, 3, 16, 16))


def test_whole_of_a_wide_picture_is_a_square_anywhere_along_it() -> None:
    views = Cutouts(8, 300, "whole", shift=0)(ramp(8, 24), seeded())
    torch.testing.assert_close(views[:, 1], ramp(8, 8)[:, 1].expand(300, -1, -1), atol=1e-5, rtol=0)
    step = views[:, 0, 4, 5] - views[:, 0, 4, 4]
    torch.testing.assert_close(step, torch.full_like(step, 1.6 / 24), atol=1e-5, rtol=0)
    assert views[:, 0].amin() < -0.72 and views[:, 0].amax() > 0.72


def test_cutouts_are_squares_within_the_picture() -> None:
    size, side = 8, 64
    views = Cutouts(size, 2000, "cutouts", **STILL)(ramp(side, side), seeded())
    extent = (views[:, :2, -1, -1] - views[:, :2, 0, 0]) * size / (size - 1) / 1.6 * side  # pixels, x and y
    torch.testing.assert_close(extent[:, 0], extent[:, 1], atol=2, rtol=0)
    inner = extent[:, 0]
    assert size - 0.5 < inner.min() < size + 3 and side - 3 < inner.max() < side + 0.5
    assert inner.mean().item() == pytest.approx((size + side) / 2, rel=0.05)
    small = Cutouts(size, 2000, "cutouts", power=4, **STILL)(ramp(side, side), seeded())
    assert (small[:, 0, -1, -1] - small[:, 0, 0, 0]).mean() < 0.6 * (views[:, 0, -1, -1] - views[:, 0, 0, 0]).mean()
    assert views[:, 2].abs().max() == 0  # no ground is seen


def test_crops_have_the_published_sides() -> None:
    views, side = Cutouts(16, 4000, "crops"), 64
    _, sides, turn = views._places(4000, side, side, seeded())
    assert sides.min().item() == pytest.approx(0.43 * side) and sides.max().item() == pytest.approx(1.9 * side)
    assert sides.mean().item() == pytest.approx(1.2 * side, rel=0.02)
    assert (turn.det() < 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    angle = torch.atan2(turn[:, 1, 1].neg(), turn[:, 0, 1].neg()).sub(-math.pi / 2).rad2deg()
    assert angle.abs().max() <= 30.01 and angle.abs().max() > 28
    torch.testing.assert_close(turn @ turn.transpose(1, 2), torch.eye(2).expand(4000, 2, 2), atol=1e-6, rtol=0)


def test_crops_lie_on_a_ground_of_twice_the_size() -> None:
    views = Cutouts(16, 3000, "crops", **STILL, fill=0.25)
    centre, sides, _ = views._places(3000, 40, 60, seeded())
    reach = centre.abs() + sides[:, None] / 2
    assert reach[:, 0].max() <= 60.01 and reach[:, 1].max() <= 40.01 and reach[:, 0].max() > 58
    seen = views(torch.ones(1, 3, 40, 60), seeded())
    assert seen.min() == 0.25 and seen.max().item() == pytest.approx(1) and (seen == 0.25).float().mean() > 0.3


def test_crops_agree_with_padding_and_cropping() -> None:
    image, views = torch.rand((1, 3, 24, 24), generator=seeded(1)) * 2 - 1, Cutouts(48, 8, "crops", **STILL)
    centre, sides, _ = views._places(8, 24, 24, seeded())
    padded = F.pad(image, (12, 12, 12, 12), value=-1.0)
    expected = []
    for (x, y), side in zip(centre.tolist(), sides.tolist(), strict=True):
        place = [(torch.arange(48) + 0.5) / 48 * side - side / 2 + at + 24 - 0.5 for at in (x, y)]  # padded pixels
        expected.append(_bilinear(padded, *place))
    torch.testing.assert_close(views(image, seeded()), torch.cat(expected), atol=1e-4, rtol=0)


def _bilinear(image: Tensor, x: Tensor, y: Tensor) -> Tensor:
    def along(values: Tensor, places: Tensor, dim: int) -> Tensor:
        low = places.floor().clamp(0, values.shape[dim] - 2)
        share = (places - low).view([-1 if i == dim else 1 for i in range(4)])
        return values.index_select(dim, low.long()) * (1 - share) + values.index_select(dim, low.long() + 1) * share

    return along(along(image, x, 3), y, 2)


def test_flips_and_turns() -> None:
    image = ramp(32, 32)
    flipped = Cutouts(32, 1, "whole", shift=0, flip=1)(image, seeded())
    torch.testing.assert_close(flipped, image.flip(3), atol=1e-5, rtol=0)
    turned = Cutouts(32, 50, "whole", shift=0, degrees=90)(image, seeded())[:, :2, 12:20, 12:20]
    slope = torch.stack([turned[:, 0, 4, 5] - turned[:, 0, 4, 4], turned[:, 0, 5, 4] - turned[:, 0, 4, 4]], 1)
    torch.testing.assert_close(slope.norm(dim=1), torch.full((50,), 1.6 / 32), atol=1e-5, rtol=0)
    angles = torch.atan2(slope[:, 1], slope[:, 0]).rad2deg()
    assert angles.min() < -70 and angles.max() > 70 and angles.abs().max() <= 90.01


def test_small_views_of_a_large_picture_are_no_moire() -> None:
    fine = torch.where((torch.arange(256)[:, None] + torch.arange(256)) % 2 == 0, 1.0, -1.0).expand(1, 3, -1, -1)
    assert Cutouts(32, 20, "whole")(fine, seeded()).abs().max() < 0.01
    assert Cutouts(32, 50, "cutouts", noise=0)(fine, seeded()).std() < 0.35


def test_noise_has_the_published_strength() -> None:
    views = Cutouts(64, 400, "whole", shift=0, noise=0.22)(torch.zeros(1, 3, 64, 64), seeded())
    strength = views.std((1, 2, 3)) / 2  # of pictures in [0, 1]
    assert strength.max() < 0.23 and strength.mean().item() == pytest.approx(0.11, rel=0.1)


def test_pictures_are_clamped_first() -> None:
    image = torch.tensor([-3.0, 0.0, 3.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8).clone().requires_grad_()
    views = Cutouts(8, 2, "whole", shift=0)(image, seeded())
    assert views[:, 0].max() == -1 and views[:, 2].min() == 1
    views.sum().backward()
    assert image.grad[0, 0].abs().max() == 0 and image.grad[0, 1].min() > 0


def test_jitter_changes_brightness_contrast_and_saturation() -> None:
    image = torch.tensor([0.5, -0.5, 0.1]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    views = Cutouts(8, 100, "whole", shift=0, jitter=0.3)(image, seeded())
    assert views.std(0).min() > 0.02
    grey = Cutouts(8, 100, "whole", shift=0, jitter=0.3)(torch.zeros(1, 3, 8, 8), seeded())
    assert torch.equal(grey[:, 0], grey[:, 2])  # grey stays grey, of another brightness
    assert grey.min().item() >= -0.3 - 1e-6 and grey.max().item() <= 0.3 + 1e-6


@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradient_agrees_with_differences(scheme: str) -> None:
    image = torch.rand((1, 3, 6, 5), generator=seeded(1)) - 0.5
    views, direction = Cutouts(4, 5, scheme, jitter=0.2), torch.randn((1, 3, 6, 5), generator=seeded(2))
    x = image.clone().requires_grad_()
    views(x, seeded()).square().sum().backward()
    ends = [views(image + sign * 1e-2 * direction, seeded()).double().square().sum() for sign in (1, -1)]
    assert (x.grad * direction).sum().item() == pytest.approx(float(ends[0] - ends[1]) / 2e-2, rel=2e-3)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"scheme": "crop"}, "scheme='crop': one of crops, cutouts, whole is needed"),
        ({"size": 0}, "size=0: allowed are numbers from 1 to 4096"),
        ({"n": 0}, "n=0: allowed are numbers from 1"),
        ({"flip": 1.5}, "flip=1.5: allowed are numbers from 0 to 1"),
        ({"degrees": -3}, "degrees=-3: allowed are numbers from 0 to 180"),
        ({"noise": float("nan")}, "noise=nan: allowed are numbers from 0 to 10"),
        ({"jitter": 2}, "jitter=2: allowed are numbers from 0 to 1"),
        ({"fill": 2}, "fill=2: allowed are numbers from -1 to 1"),
    ],
)
def test_faults_are_named(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Cutouts(**{"size": 8, **options})


def test_views_are_of_one_picture() -> None:
    with pytest.raises(ValueError, match=r"image \(2, 3, 8, 8\): views are of one picture, \(1, 3, h, w\)"):
        Cutouts(8)(torch.zeros(2, 3, 8, 8), seeded())
