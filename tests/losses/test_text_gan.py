"""Losses of GANs under captions: closed forms, and the gradient penalty against float64."""

from __future__ import annotations

import math

import pytest
import torch

from t2i.losses.text_gan import discriminator_loss, gaussian_kl, generator_loss, gradient_penalty
from t2i.nets.dfgan import DFDiscriminator
from t2i.types import DiscriminatorLogits


def logits(
    conditional: list[float], unconditional: list[float] | None = None, pixels: float | None = None
) -> DiscriminatorLogits:
    return DiscriminatorLogits(torch.tensor(conditional),
                               None if unconditional is None else torch.tensor(unconditional),
                               None if pixels is None else torch.full((len(conditional), 1, 2, 2), pixels))


def test_hinge_is_real_and_half_of_wrong_and_fake() -> None:
    real, wrong, fake = logits([0.5, 2.0]), logits([-1.0, 0.0]), logits([-2.0, 1.0])
    assert float(discriminator_loss(real, wrong, fake, "hinge")) == pytest.approx(0.25 + (0.5 + 1.0) / 2)
    only_second = torch.tensor([0.0, 2.0])
    assert float(discriminator_loss(real, wrong, fake, "hinge", only_second)) == pytest.approx(0.25 + (1.0 + 1.0) / 2)
    assert float(generator_loss(fake, "hinge")) == pytest.approx(0.5)


def test_bce_with_one_and_two_heads_and_pixels() -> None:
    log2 = math.log(2)
    one, two = logits([0.0]), logits([0.0], [0.0])
    assert float(discriminator_loss(one, one, one, "bce")) == pytest.approx(2 * log2)
    assert float(discriminator_loss(two, two, two, "bce")) == pytest.approx(log2 + log2)
    sure = logits([20.0], [20.0])
    lost = logits([-20.0], [-20.0])
    assert float(discriminator_loss(sure, lost, lost, "bce")) == pytest.approx(0.0, abs=1e-6)
    assert float(discriminator_loss(lost, sure, sure, "bce")) == pytest.approx(40.0)  # each half weighs 1
    pixels = logits([0.0], pixels=0.0)
    assert float(discriminator_loss(pixels, pixels, pixels, "bce")) == pytest.approx((2 * log2 + 2 * log2) / 2)
    assert float(generator_loss(pixels, "bce")) == pytest.approx(log2)
    assert float(generator_loss(two, "bce")) == pytest.approx(2 * log2)


def test_the_kl_is_that_of_gaussians() -> None:
    mean, log_var = torch.randn(3, 5), torch.randn(3, 5)
    own = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    wanted = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(gaussian_kl(mean, log_var), wanted)


def penalised(net: DFDiscriminator, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    image, text = image.clone().requires_grad_(), text.clone().requires_grad_()
    logits = net.logits(net.features(image), text).conditional
    loss = gradient_penalty(logits, image, text)
    return loss, list(torch.autograd.grad(loss, [p for p in net.parameters() if p.requires_grad], allow_unused=True))


def test_the_penalty_and_its_gradient_equal_a_float64_reference() -> None:
    """The reference takes each picture's gradient by itself and the norm as the formula has it."""
    torch.manual_seed(0)
    net = DFDiscriminator(8, channels=4, text_dim=6)
    for block in net.blocks:
        torch.nn.init.constant_(block.gamma, 0.7)
    image, text = torch.randn(3, 3, 8, 8), torch.randn(3, 6)
    value, gradients = penalised(net, image, text)
    net = net.double()
    norms = []
    for one, words in zip(image.double(), text.double(), strict=True):
        one, words = one[None].requires_grad_(), words[None].requires_grad_()
        logit = net.logits(net.features(one), words).conditional[0]
        parts = torch.autograd.grad(logit, (one, words), create_graph=True)
        norms.append(torch.linalg.vector_norm(torch.cat([part.flatten() for part in parts])))
    wanted = 2.0 * torch.stack(norms).pow(6).mean()
    exact = torch.autograd.grad(wanted, [p for p in net.parameters() if p.requires_grad], allow_unused=True)
    assert float(value) == pytest.approx(float(wanted), rel=1e-5)
    for found, reference in zip(gradients, exact, strict=True):
        assert (found is None) == (reference is None)
        if found is not None and reference is not None:
            torch.testing.assert_close(found.double(), reference, rtol=1e-3, atol=1e-5 * float(reference.abs().max()))


def test_the_penalty_is_finite_where_the_gradient_is_nought() -> None:
    image, text = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, requires_grad=True)
    weight = torch.zeros((), requires_grad=True)
    for power in (1.0, 2.0, 6.0):
        loss = gradient_penalty(weight * (image.sum(1) + text.sum(1)), image, text, power=power)
        (slope,) = torch.autograd.grad(loss, weight)
        assert torch.isfinite(loss) and torch.isfinite(slope)
