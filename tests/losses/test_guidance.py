from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from t2i.losses.guidance import cosine, guidance, spherical, target


def turned(*degrees: float) -> torch.Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1).float()


def test_target_is_the_normalised_sum() -> None:
    prompt, extras = turned(0, 90), turned(90)
    found = target(prompt, extras, prompt_share=1.0, extra_share=0.1)
    torch.testing.assert_close(found[0], F.normalize(torch.tensor([1.0, 0.1]), dim=0))
    torch.testing.assert_close(found[1], torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(target(7 * prompt, 3 * extras), found)  # lengths do not count
    torch.testing.assert_close(target(prompt), prompt)
    torch.testing.assert_close(target(prompt, extras[:0]), prompt)
    both = target(turned(0), turned(90, 180), extra_share=1.0, weights=torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(both, F.normalize(torch.tensor([[0.5, 1.0]])))


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 30.0, 90.0, 179.0, 180.0])
def test_distances_have_the_closed_form(degrees: float) -> None:
    a, b = turned(0) * 5, turned(degrees) * 0.1
    assert cosine(a, b).item() == pytest.approx(-math.cos(math.radians(degrees)), abs=1e-6)
    expected = math.radians(degrees) ** 2 / 2
    assert spherical(a, b).item() == pytest.approx(expected, abs=3e-3 * math.radians(degrees) + 1e-9)


def test_spherical_is_the_published_formula() -> None:
    a, b = torch.randn(5, 16, generator=torch.Generator().manual_seed(0)), torch.eye(16)[:3]
    unit = F.normalize(a, dim=1)
    by_hand = (unit[None] - b[:, None]).norm(dim=-1).div(2).arcsin().pow(2).mul(2)
    torch.testing.assert_close(spherical(a, b), by_hand)


@pytest.mark.parametrize("distance", [cosine, spherical])
def test_gradient_is_right_and_finite_everywhere(distance: object) -> None:
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    targets = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    numeric = torch.zeros_like(views)
    for i in range(4):
        for j in range(6):
            step = torch.zeros_like(views)
            step[i, j] = 1e-3
            numeric[i, j] = (distance(views + step, targets).sum() - distance(views - step, targets).sum()) / 2e-3
    x = views.clone().requires_grad_()
    distance(x, targets).sum().backward()
    torch.testing.assert_close(x.grad, numeric, atol=2e-3, rtol=2e-3)
    for equal in (turned(20), -turned(20), turned(20.0001), turned(199.99)):
        x = equal.clone().requires_grad_()
        distance(x, turned(20)).sum().backward()
        assert x.grad.isfinite().all() and x.grad.abs().max() < 4


def test_cosine_loss_as_published() -> None:
    views, targets, excluded = turned(10, 50), turned(0), turned(90)
    loss = guidance(views, targets, excluded=excluded, text_weight=1.0, negative_weight=0.5)
    cos = [[math.cos(math.radians(a - b)) for a in (10, 50)] for b in (0, 90)]
    assert loss.item() == pytest.approx(-sum(cos[0]) / 2 + 0.5 * sum(cos[1]) / 2, abs=1e-6)
    assert guidance(views, targets, excluded=excluded[:0]).item() == pytest.approx(-sum(cos[0]) / 2, abs=1e-6)
    weighed = guidance(views, targets, excluded=excluded, excluded_weights=torch.tensor([2.0]), text_weight=0.0)
    assert weighed.item() == pytest.approx(0.5 * 2 * sum(cos[1]) / 2, abs=1e-6)


@pytest.mark.parametrize("distance", [cosine, spherical])
def test_weights_add_and_negative_ones_push_away(distance: object) -> None:
    views, targets = turned(10, 50), turned(0, 90)
    each = distance(views, targets).mean(1)
    loss = guidance(views, targets, torch.tensor([2.0, -0.5]), distance=distance)
    assert loss.item() == pytest.approx(float(2 * each[0] - 0.5 * each[1]), abs=1e-6)
    same = guidance(views, targets[:1], torch.tensor([2.0]), targets[1:], text_weight=1.0, negative_weight=0.5,
                    distance=distance)
    assert loss.item() == pytest.approx(same.item(), abs=1e-6)
    x = turned(45).requires_grad_()
    guidance(x, turned(0), torch.tensor([-1.0]), distance=distance).backward()
    moved = F.normalize((x - 0.1 * x.grad).detach(), dim=1)
    assert moved[0, 0] < x[0, 0]  # away from 0 degrees


def test_a_target_that_is_reached_has_no_gradient() -> None:
    x = turned(10, 60).requires_grad_()
    loss = guidance(x, turned(0), torch.tensor([3.0]), stops=torch.tensor([-0.9]))
    assert loss.item() == pytest.approx(-1.5 * (math.cos(math.radians(10)) + 0.5), abs=1e-6)  # its value counts
    loss.backward()
    assert (x.grad[0] == 0).all() and x.grad[1].abs().sum() > 0
    x = turned(10, 170).requires_grad_()  # pushed away until the cosine is below -0.9
    guidance(x, turned(0), torch.tensor([-1.0]), stops=torch.tensor([-0.9])).backward()
    assert x.grad[0].abs().sum() > 0 and (x.grad[1] == 0).all()


def test_low_precision_and_autocast_count_in_float32() -> None:
    views, targets = turned(10, 50), turned(0)
    plain = guidance(views, targets, distance=spherical)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(guidance(views, targets, distance=spherical), plain)


def test_each_target_takes_one_weight() -> None:
    with pytest.raises(ValueError, match=r"weights \(1,\) for 2 targets: each takes one"):
        guidance(turned(0), turned(0, 1), torch.tensor([1.0]))
