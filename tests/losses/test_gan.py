from __future__ import annotations

import math

import pytest
import torch

from t2i.losses.gan import adaptive_weight, hinge_d, hinge_g, vanilla_d, vanilla_g


def test_hinge() -> None:
    real, fake = torch.tensor([[2.0, 0.0], [1.0, -1.0]]), torch.tensor([-3.0, 0.5])
    assert hinge_d(real, fake).item() == pytest.approx(0.5 * (3 / 4 + 1.5 / 2))
    assert hinge_g(fake).item() == pytest.approx(1.25)
    assert hinge_d(torch.zeros(3), torch.zeros(3)).item() == 1


def test_vanilla() -> None:
    assert vanilla_d(torch.zeros(3), torch.zeros(2)).item() == pytest.approx(math.log(2))
    real, fake = torch.tensor([1.5, -0.5]), torch.tensor([0.3])
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    wanted = 0.5 * (bce(real, torch.ones(2)) + bce(fake, torch.zeros(1)))
    torch.testing.assert_close(vanilla_d(real, fake), wanted)
    torch.testing.assert_close(vanilla_g(fake), bce(fake, torch.ones(1)))


@pytest.mark.parametrize("loss", [hinge_d, vanilla_d])
def test_discriminator_wants_real_up_and_fake_down(loss) -> None:
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    loss(real, fake).backward()
    assert (real.grad < 0).all() and (fake.grad > 0).all()


@pytest.mark.parametrize("loss", [hinge_g, vanilla_g])
def test_generator_wants_fake_up(loss) -> None:
    fake = torch.zeros(4, requires_grad=True)
    loss(fake).backward()
    assert (fake.grad < 0).all()


def test_losses_are_float32_for_bf16_logits() -> None:
    logits = torch.randn(8, dtype=torch.bfloat16)
    assert all(loss.dtype == torch.float32 for loss in (hinge_d(logits, logits), vanilla_g(logits), hinge_g(logits)))


def test_adaptive_weight_is_the_ratio_of_the_gradients() -> None:
    ones = torch.ones(3, 4)
    norm = math.sqrt(12)
    assert adaptive_weight(6 * ones, 2 * ones).item() == pytest.approx(6 * norm / (2 * norm + 1e-4))
    assert adaptive_weight(1e9 * ones, 0 * ones).item() == 1e4
    assert adaptive_weight(0 * ones, ones).item() == 0
    assert adaptive_weight(ones.half(), ones.half()).dtype == torch.float32
