"""DF-GAN's and StackGAN's nets: sizes of the published forms, golden arrays, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from t2i.nets.dfgan import DFDiscriminator, DFGenerator
from t2i.nets.gan_blocks import BatchNorm, text_projection
from t2i.nets.rdb import RDBGenerator
from t2i.nets.stackgan import StackDiscriminator, StageOne, StageTwo

GOLDEN = Path(__file__).parents[1] / "golden"


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_sizes() -> None:
    with torch.device("meta"):
        generator, discriminator = DFGenerator(256), DFDiscriminator(256)
        assert count(generator) == 9_744_131
        assert count(discriminator.head) == 295_936
        assert count(discriminator) - count(discriminator.head) == 6_619_206
        assert round(count(StageOne(64, 192, 228, 1024)) / 1e4) == 2002
        assert round(count(StackDiscriminator(64, 96)) / 1e4) == 1241
        assert round(count(StageTwo(256, 192, 1024, num_res_blocks=2)) / 1e4) == 3713
        assert round(count(StackDiscriminator(256, 96, unconditional=True)) / 1e5) == 1599


def test_every_shape_of_the_published_generator() -> None:
    shapes = json.loads((GOLDEN / "dfgan_bird256_generator.shapes.json").read_text())["tensors"]
    with torch.device("meta"):
        ours = sorted(tuple(p.shape) for p in DFGenerator(256).parameters())
    assert ours == sorted(tuple(size) for _, *size in shapes.values())


@pytest.mark.parametrize("net", [DFGenerator(32, 2, 5, 7), RDBGenerator(32, 2, 5, 7, 2), StageOne(32, 2, 5, 7, 3)])
def test_pictures_of_noise_and_text(net: torch.nn.Module) -> None:
    net = net.eval()
    noise, text = torch.randn(3, 5), torch.randn(3, 7)
    image = net(noise, text).image
    assert image.shape == (3, 3, 32, 32) and float(image.detach().abs().max()) <= 1
    alone = net(noise[1:2], text[1:2]).image
    torch.testing.assert_close(alone[0], image[1], atol=1e-5, rtol=1e-5)
    assert not torch.equal(net(noise, text.roll(1, 0)).image, image) or isinstance(net, DFGenerator)  # it starts deaf


def test_stage_two_quadruples() -> None:
    net = StageTwo(64, 4, 7, 3, 1).eval()
    drawn = net(torch.randn(2, 3, 16, 16), torch.randn(2, 3), torch.randn(2, 7))
    assert drawn.image.shape == (2, 3, 64, 64) and drawn.mean is not None and drawn.mean.shape == (2, 3)


def test_the_discriminator_s_residual_branches_start_where_asked() -> None:
    torch.manual_seed(0)
    shut, opened = DFDiscriminator(16, 2), DFDiscriminator(16, 2, residual_start=1.0)
    opened.load_state_dict({k: v if "gamma" not in k else opened.state_dict()[k] for k, v in shut.state_dict().items()})
    image = torch.randn(1, 3, 16, 16)
    assert [float(block.gamma.detach()) for block in opened.blocks] == [1.0, 1.0]
    assert not torch.equal(shut.features(image).deep, opened.features(image).deep)


def test_without_tanh_pictures_are_not_squashed() -> None:
    torch.manual_seed(0)
    net = DFGenerator(16, 2, tanh=False)
    torch.nn.init.constant_(net.head.bias, 3.0)
    assert float(net(torch.randn(1, 100), torch.randn(1, 256)).image.detach().max()) > 1


def test_batchnorm_is_torch_s_on_one_process() -> None:
    x = torch.randn(4, 3, 5, 5)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3)
    torch.testing.assert_close(ours(x), theirs(x))
    assert BatchNorm(3)(torch.randn(4, 3)).shape == (4, 3)
    with pytest.raises(ValueError, match="3 dimensions"):
        ours(torch.randn(4, 3, 5))


def test_sizes_that_do_not_go() -> None:
    for make in (lambda: DFGenerator(48), lambda: DFDiscriminator(4), lambda: RDBGenerator(16),
                 lambda: StageOne(24), lambda: StageTwo(16), lambda: StackDiscriminator(12)):
        with pytest.raises(ValueError, match=r"image_size=\d+: allowed are powers of two"):
            make()
    with pytest.raises(ValueError, match="noise_dim=100: more than condition_dim=128"):
        StageOne(noise_dim=100)
    with pytest.raises(ValueError, match="sentences have 512 numbers, the net takes 256"):
        text_projection("none", 512, 256)
