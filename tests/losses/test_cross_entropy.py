"""The fused cross-entropy against torch's own: value, gradient, extremes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from t2i.losses.cross_entropy import ROWS, cross_entropy


@pytest.mark.parametrize("dtype,tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("n", [1, ROWS, 2 * ROWS + 3])
def test_it_is_torchs(dtype: torch.dtype, tolerance: float, n: int) -> None:
    torch.manual_seed(0)
    logits = (3 * torch.randn(n, 37)).to(dtype).requires_grad_()
    target = torch.randint(37, (n,))
    expected = F.cross_entropy(logits.float(), target)
    (wanted,) = torch.autograd.grad(2.5 * expected, logits)
    found = cross_entropy(logits, target)
    (gradient,) = torch.autograd.grad(2.5 * found, logits)
    assert found.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_fp16_under_a_loss_scale_keeps_its_small_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.randn(4096, 256).half().requires_grad_()
    target = torch.randint(256, (4096,))
    (wanted,) = torch.autograd.grad(F.cross_entropy(logits.float(), target) * 2.0**16, logits)
    (found,) = torch.autograd.grad(cross_entropy(logits, target) * 2.0**16, logits)
    torch.testing.assert_close(found, wanted, rtol=5e-3, atol=1e-6)


def test_a_second_derivative_is_refused() -> None:
    logits, weight = torch.randn(3, 4, requires_grad=True), torch.ones((), requires_grad=True)
    loss = weight * cross_entropy(logits, torch.tensor([0, 1, 2]))
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_hopeless_logit_costs_what_it_should() -> None:
    logits = torch.zeros(2, 4)
    logits[:, 0] = 500.0
    loss = cross_entropy(logits.requires_grad_(), torch.tensor([1, 0]))
    assert float(loss.detach()) == pytest.approx(250.0)
    loss.backward()
    assert logits.grad is not None and torch.isfinite(logits.grad).all()


def test_without_a_gradient_it_is_the_same_number() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(9, 5), torch.randint(5, (9,))
    with torch.no_grad():
        plain = cross_entropy(logits, target)
    torch.testing.assert_close(plain, cross_entropy(logits.requires_grad_(), target).detach())


def test_a_logit_that_is_not_finite_is_not_hidden() -> None:
    logits = torch.zeros(3, 4)
    logits[1, 2] = float("nan")
    assert torch.isnan(cross_entropy(logits.requires_grad_(), torch.tensor([0, 1, 2])))
