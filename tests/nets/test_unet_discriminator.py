from __future__ import annotations

import pytest
import torch
from torch import nn

from t2i.nets.unet_discriminator import UNetDiscriminator
from t2i.types import DiscriminatorFeatures, TextDiscriminator


def tiny(image_size: int = 16, spectral: bool = True) -> UNetDiscriminator:
    torch.manual_seed(0)
    return UNetDiscriminator(image_size, text_dim=5, channels=2, spectral=spectral)


@pytest.mark.parametrize("size, deep", [(16, 4), (64, 16), (256, 32), (512, 32)])
def test_shapes(size: int, deep: int) -> None:
    net: TextDiscriminator = tiny(size)
    seen = net.features(torch.randn(2, 3, size, size))
    judged = net.logits(seen, torch.randn(2, 5))
    assert seen.deep.shape == (2, deep, 4, 4) and seen.pixels is not None
    assert judged.conditional.shape == (2,) and judged.unconditional is None
    assert judged.pixels is seen.pixels and seen.pixels.shape == (2, 1, size, size)


def test_logits_do_not_depend_on_the_batch() -> None:
    for spectral in (True, False):
        net = tiny(32, spectral).eval()
        image, text = torch.randn(3, 3, 32, 32), torch.randn(3, 5)
        together = net.logits(net.features(image), text)
        alone = net.logits(net.features(image[1:2]), text[1:2])
        torch.testing.assert_close(together.conditional[1:2], alone.conditional, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(together.pixels[1:2], alone.pixels, atol=1e-6, rtol=1e-5)


def test_caption_reaches_the_picture_logit_only() -> None:
    net = tiny().eval()
    seen = net.features(torch.randn(2, 3, 16, 16))
    text = torch.randn(2, 5, requires_grad=True)
    judged = net.logits(seen, text)
    (grad,) = torch.autograd.grad(judged.conditional.sum(), text)
    assert (grad != 0).any(1).all()
    assert torch.autograd.grad(seen.pixels.sum(), text, allow_unused=True) == (None,)


def test_every_skip_matters_to_the_pixels() -> None:
    net = tiny(64).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = net.features(image)
        for up in net.up[1:]:

            def without_skip(module: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
                own, skip = args[0].chunk(2, 1)
                return torch.cat([own, torch.zeros_like(skip)], 1)

            hook = up.register_forward_pre_hook(without_skip)
            cut = net.features(image)
            hook.remove()
            assert (cut.pixels - whole.pixels).abs().max() > 1e-3
            torch.testing.assert_close(cut.deep, whole.deep)


def test_a_skip_is_the_encoder_of_the_same_resolution() -> None:
    net = tiny(32).eval()
    outputs, inputs = [], []
    for down in net.down:
        down.register_forward_hook(lambda module, args, out: outputs.append(out))
    for up in net.up:
        up.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    net.features(torch.randn(1, 3, 32, 32))
    torch.testing.assert_close(inputs[0], outputs[-1])
    for below, twin in zip(inputs[1:], outputs[-2::-1], strict=True):
        torch.testing.assert_close(below.chunk(2, 1)[1], twin)


def test_gradient_penalty_is_finite_and_reaches_every_weight_before_the_logit() -> None:
    net = tiny(32)
    image, text = torch.randn(2, 3, 32, 32, requires_grad=True), torch.randn(2, 5, requires_grad=True)
    judged = net.logits(net.features(image), text)
    grads = torch.autograd.grad(judged.conditional.sum(), (image, text), create_graph=True)
    sum(g.square().flatten(1).sum(1) for g in grads).pow(3).mean().backward()
    # Biases of a piecewise linear net do not change its slope; the decoder has no part in `conditional`.
    weights = {n: p for n, p in net.named_parameters() if "bias" not in n and not n.startswith(("up.", "pixel_head."))}
    assert len(weights) == 3 * len(net.down) + 2
    for name, weight in weights.items():
        assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.abs().max() > 0, name
    (grad,) = torch.autograd.grad(net.features(image).pixels.square().sum(), image, create_graph=True)
    grad.square().sum().backward()
    assert image.grad is not None and image.grad.isfinite().all() and image.grad.abs().max() > 0


def test_real_and_fake_may_pass_before_one_backward() -> None:
    net = tiny()
    text = torch.randn(2, 5)
    judged = [net.logits(net.features(torch.randn(2, 3, 16, 16)), text) for _ in range(2)]
    sum(j.conditional.mean() + j.pixels.mean() for j in judged).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_size() -> None:
    def conv(a: int, b: int, kernel: int) -> int:
        return a * b * kernel**2 + b

    def block(a: int, b: int) -> int:
        return conv(a, b, 3) + conv(b, b, 3) + conv(a, b, 1)

    down = [(3, 32), (32, 64), (64, 128), (128, 256), (256, 256), (256, 512)]
    up = [(512, 256), (512, 256), (512, 128), (256, 64), (128, 32), (64, 32)]
    heads = conv(512 + 256, 64, 3) + conv(64, 1, 4) + conv(32, 1, 1)
    with torch.device("meta"):
        count = sum(p.numel() for p in UNetDiscriminator(256).parameters())
        assert count == sum(block(a, b) for a, b in down + up) + heads == 11_463_618
        assert sum(p.numel() for p in UNetDiscriminator(64, spectral=False).parameters()) == 2_268_354


def test_spectral_norm_of_every_convolution_is_one() -> None:
    net = tiny()
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert len(convs) == 3 * 4 + 3
    with torch.no_grad():
        for conv in convs:
            assert torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)
            conv.parametrizations.weight.original.copy_(3 * torch.randn_like(conv.weight))
        for _ in range(100):
            net.logits(net.features(torch.randn(1, 3, 16, 16)), torch.randn(1, 5))
    net.eval()
    for conv in convs:
        assert torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-2)
    assert not any("parametrizations" in name for name, _ in tiny(spectral=False).named_parameters())


def test_errors() -> None:
    for size in (8, 48, 0, -16):
        with pytest.raises(ValueError, match=f"image_size={size}: allowed are powers of two from 16"):
            UNetDiscriminator(size)
    with pytest.raises(ValueError, match="text_dim=0: at least 1 is needed; channels=-1: at least 1"):
        UNetDiscriminator(16, text_dim=0, channels=-1)
    net = tiny()
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\): \(b, 3, 16, 16\) is needed, as image_size=16"):
        net.features(torch.zeros(1, 3, 32, 32))
    seen = DiscriminatorFeatures(deep=torch.zeros(2, 4, 4, 4))
    for shape in ((2, 4), (1, 5)):
        with pytest.raises(ValueError, match=r"text of shape .*: \(2, 5\) is needed"):
            net.logits(seen, torch.zeros(shape))
