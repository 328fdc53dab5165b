"""The two-colour latent: what it says of a patch, that form knows nothing of colour, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from t2i.nets.tokenizer import ImageTokenizer
from t2i.nets.two_colour import LEAST_RANGE, TwoColourAutoencoder, TwoColourEncoder, two_colours
from t2i.quantizers.ema import EMA
from t2i.quantizers.product import Product

P = 4


def painted(form: torch.Tensor, first: list[float], second: list[float]) -> torch.Tensor:
    """A picture (1, 3, h, w) that is `first` where form (h, w) is 0 and `second` where it is 1."""
    a, b = (torch.tensor(c).view(1, 3, 1, 1) for c in (first, second))
    return a + form * (b - a)


def test_two_colours_and_a_form_are_the_patch() -> None:
    torch.manual_seed(0)
    form = torch.rand(8, 12)
    image = painted(form, [-0.9, 0.2, 0.8], [0.7, -0.5, 0.1])
    colours, share = two_colours(image, P)
    assert colours.shape == (1, 6, 2, 3) and share.shape == (1, 16, 2, 3)
    assert share.amin() == 0 and share.amax() == pytest.approx(1)
    first, second = colours[:, :3, None], colours[:, 3:, None]
    rebuilt = torch.nn.functional.pixel_shuffle((first + share[:, None] * (second - first)).reshape(1, 48, 2, 3), P)
    torch.testing.assert_close(rebuilt, image, atol=1e-5, rtol=1e-5)


def test_the_form_knows_nothing_of_the_colours() -> None:
    torch.manual_seed(0)
    form = (torch.rand(16, 16) > 0.6).float()
    pairs = [([-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]), ([1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]),
             ([0.1, 0.9, -0.3], [0.8, -0.7, -0.2]), ([0.5, 0.5, 0.0], [0.5, -0.5, 0.0])]  # fmt: skip
    shares = [two_colours(painted(form, *pair), P)[1] for pair in pairs]
    for share in shares[1:]:
        torch.testing.assert_close(share, shares[0], atol=1e-4, rtol=1e-4)


def test_flat_and_faint_patches() -> None:
    colours, share = two_colours(torch.full((1, 3, P, P), 0.3), P)
    assert share.abs().max() == 0
    torch.testing.assert_close(colours, torch.full((1, 6, 1, 1), 0.3))
    faint = torch.full((1, 3, P, P), 0.3)
    faint[..., 0, 0] += 0.01  # a hundredth of noise is not stretched to a form
    assert two_colours(faint, P)[1].max() <= 0.02 / LEAST_RANGE


def test_a_third_of_the_latent_is_form_and_two_are_colours() -> None:
    torch.manual_seed(0)
    net = TwoColourEncoder(channels=8, z_channels=6, patch_size=P)
    form = (torch.rand(8, 8) > 0.5).float()
    one, other = net(painted(form, [0, 0, 0], [1, 1, 1])), net(painted(form, [1, 0, 0], [0, 1, 0]))
    torch.testing.assert_close(one[:, :2], other[:, :2], atol=1e-4, rtol=1e-4)
    assert all((one[:, i : i + 2] - other[:, i : i + 2]).abs().max() > 1e-3 for i in (2, 4))
    turned = net(painted(1 - form, [1, 1, 1], [0, 0, 0]))  # the same picture, told the other way round
    torch.testing.assert_close(turned, one, atol=1e-4, rtol=1e-4)
    alone = net(painted(form, [0, 0, 0], [1, 1, 1])[..., :P, :P])
    torch.testing.assert_close(alone, one[..., :1, :1])  # a code says what its own patch shows
    same = net(painted(form, [0, 0, 0], [1, 1, 1]).repeat(1, 1, 1, 2))
    torch.testing.assert_close(same[..., :2], same[..., 2:])


def test_a_tokenizer_of_two_parts_keeps_them_apart() -> None:
    torch.manual_seed(0)
    quantizer = Product({"form": EMA(16, dim=2), "first": EMA(4, dim=2), "second": EMA(2, dim=2)})
    tokenizer = ImageTokenizer(TwoColourAutoencoder(8, 1, 6, P), quantizer, 16)
    form = (torch.rand(4, 1, 16, 16) > 0.6).float()
    images = torch.cat([painted(f[0], [-0.9, 0.2, 0.8], [0.7, -0.5, 0.1]) for f in form])
    tokenizer(images)  # starts the codebooks
    tokenizer.eval()
    recoloured = torch.cat([painted(f[0], [0.1, 0.1, 0.1], [1.0, -1.0, 0.5]) for f in form])
    assert torch.equal(tokenizer.encode(images) // 8, tokenizer.encode(recoloured) // 8)
    assert tokenizer.factors == (16, 4, 2) and tokenizer.codebook_size == 128
    assert tokenizer.decode_ids(tokenizer.encode(images)).shape == images.shape
    with pytest.raises(ValueError, match="latent has 3 parts and the quantizer 2"):
        ImageTokenizer(TwoColourAutoencoder(8, 1, 6, P), Product({name: EMA(8, dim=1) for name in "ab"}), 16)
    plain = ImageTokenizer(TwoColourAutoencoder(8, 1, 6, P), EMA(8, dim=4), 16)  # one code for all of a patch
    assert plain.factors == (8,) and plain.quant_conv.groups == 1


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="z_channels=5: a multiple of 3"):
        TwoColourEncoder(z_channels=5)
    with pytest.raises(ValueError, match="patch_size=0"):
        TwoColourEncoder(patch_size=0)
    with pytest.raises(ValueError, match="15x16 .* factor 4"):
        TwoColourEncoder(channels=4, patch_size=4)(torch.zeros(1, 3, 15, 16))
