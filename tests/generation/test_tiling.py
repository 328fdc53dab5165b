"""Pictures decoded in tiles, against the same decoded whole."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from t2i.generation.tiling import _spans, decode_tiled, plan_of
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.tokenizer import ImageTokenizer
from t2i.nets.two_colour import TwoColourAutoencoder
from t2i.quantizers.vq import VQ

NETS: dict[str, dict[str, Any]] = {
    "attention and norms": dict(multipliers=[1, 1, 2], attention_levels=[2], num_groups=4),
    "antialias": dict(multipliers=[1, 2], attention_levels=[], num_groups=0, mid_attention=False, antialias=True),
    "attention on a finer level": dict(multipliers=[1, 1, 1], attention_levels=[1], num_groups=0),
    "one level of patches": dict(multipliers=[1], attention_levels=[], num_groups=0, mid_attention=False, patch_size=4),
}


def tokenizer(autoencoder: Any) -> ImageTokenizer:
    torch.manual_seed(0)
    made = ImageTokenizer(autoencoder, VQ(32, 4), 16).eval()
    for module in made.modules():
        if isinstance(module, nn.Conv2d):  # blocks without norms begin as their shortcuts
            nn.init.normal_(module.weight, std=(module.weight[0].numel()) ** -0.5)
    made.quantizer.codebook.data.normal_()
    return made


def whole(made: ImageTokenizer, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return made.decode(made.quantizer.decode_ids(ids)).clamp(-1, 1)


@pytest.mark.parametrize("name", [*NETS, "two colours"])
def test_tiles_give_what_the_whole_gives(name: str) -> None:
    net = TwoColourAutoencoder(8, 1, 6, 4) if name == "two colours" else Autoencoder(
        channels=8, num_res_blocks=1, z_channels=4, **NETS[name])
    made = tokenizer(net)
    ids = torch.randint(32, (2, 37, 30), generator=torch.Generator().manual_seed(1))
    wanted = whole(made, ids)
    plan = plan_of(net.decoder)
    assert plan is not None and 1 <= plan.margin <= 10
    side = 2 * plan.margin + 6
    if not plan.norms:  # each pixel sees all that it sees in the whole
        assert float((decode_tiled(made, ids, side) - wanted).abs().max()) < 1e-5
        return
    # Statistics of norms behind norms come closer with each round, and are exact after as many as there are norms.
    errors = [float((decode_tiled(made, ids, side, n) - wanted).abs().max()) for n in (0, 1, 4, None)]
    assert errors[0] > 0.2 and errors[1] < 0.1 and errors[2] < 0.01 and errors[3] < 1e-5
    assert not any(module._forward_hooks for module in made.modules())


def test_a_picture_of_one_tile_is_that_of_the_tokenizer() -> None:
    made = tokenizer(Autoencoder(channels=8, num_res_blocks=1, z_channels=4, **NETS["attention and norms"]))
    ids = torch.randint(32, (3, *made.grid))
    assert torch.allclose(decode_tiled(made, ids), made.decode_ids(ids.flatten(1)), atol=1e-6)


@pytest.mark.parametrize(("length", "side", "margin"), [(30, 30, 5), (31, 30, 5), (7, 11, 5), (128, 28, 7)])
def test_tiles_cover_a_side_once_with_their_margins(length: int, side: int, margin: int) -> None:
    found = list(_spans(length, side, margin))
    assert found[0][1].start == 0 and found[-1][1].stop == length
    assert all(a.stop == b.start for (_, a), (_, b) in pairwise(found))
    for outer, inner in found:
        assert outer.stop - outer.start <= side and inner.start < inner.stop
        assert outer.start == max(0, inner.start - margin) and outer.stop == min(length, inner.stop + margin)


def test_a_tile_costs_the_memory_of_a_tile() -> None:
    made = tokenizer(Autoencoder(channels=8, num_res_blocks=1, z_channels=4, **NETS["attention and norms"]))
    largest: list[int] = []
    for module in made.autoencoder.decoder.levels[0].modules():
        module.register_forward_hook(lambda _, __, output: largest.append(output.shape[2]))
    decode_tiled(made, torch.zeros(1, 60, 8, dtype=torch.long), tile=20)
    assert 0 < max(largest) <= 20 * 4


def test_what_cannot_be_decoded_is_named() -> None:
    made = tokenizer(Autoencoder(channels=8, num_res_blocks=1, z_channels=4, **NETS["attention and norms"]))
    with pytest.raises(ValueError, match=r"tile=4: this decoder sees \d codes on each side of one"):
        decode_tiled(made, torch.zeros(1, 40, 40, dtype=torch.long), tile=4)
    with pytest.raises(ValueError, match=r"codes from 0 to 32: this tokenizer has 0 to 31"):
        decode_tiled(made, torch.tensor([[[0, 32]]]))
    with pytest.raises(ValueError, match=r"codes of shape \(1, 0, 4\)"):
        decode_tiled(made, torch.zeros(1, 0, 4, dtype=torch.long))
