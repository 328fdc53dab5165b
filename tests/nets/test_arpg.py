"""The any-order net: its cache against its training path, and that it is told nothing of the code that it predicts."""

from __future__ import annotations

import pytest
import torch

from t2i.nets.arpg import ARPG
from t2i.types import unravel_index

CODES, GRID, TEXT, LENGTH = 12, (2, 3), 5, 4
WHOLE, PARTS = (12,), (2, 3, 2)


def tiny(factors=WHOLE, **changes) -> ARPG:
    """Three layers; what starts at zero is drawn too, so that every path is heard."""
    torch.manual_seed(0)
    net = ARPG(factors, GRID, TEXT, LENGTH, **{"width": 16, "num_layers": 3, "num_heads": 2, **changes})
    for name, parameter in net.named_parameters():
        if name.endswith(("attention_out.weight", "mlp_out.weight")) or name.startswith("part_codes"):
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(CODES, (3, 6), generator=generator)
    states = torch.randn(3, LENGTH, TEXT, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    order = torch.rand(3, 6, generator=generator).argsort(1)
    return ids, states, mask, torch.tensor([False, False, True]), order


@pytest.mark.parametrize("caption", ["prefix", "keys"])
@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("factors", [WHOLE, PARTS])
@pytest.mark.parametrize("given", [0, 1, 3, 5])
def test_cached_logits_are_the_uncached_ones(inputs, given: int, factors, heads: bool, caption: str) -> None:
    net, (ids, states, mask, null, order) = tiny(factors, caption=caption, caption_heads=heads), inputs
    each = unravel_index(ids, factors)
    with torch.no_grad():
        expected = net(ids, states, mask, null, order=order)
        cache = net.prefill(states, mask, null, ids.gather(1, order[:, :given]), order[:, :given])
        for i in range(given, 6):
            cell = order[:, i : i + 1]
            x = net.ask(cell, cache)[:, 0]
            known = each.take_along_dim(cell[..., None], 1)
            for part, wanted in enumerate(expected):
                found = net.logits(x, known[:, 0, :part], cache.heard)
                torch.testing.assert_close(found, wanted.take_along_dim(cell[..., None], 1)[:, 0], atol=1e-5, rtol=1e-5)
            net.append(known, cell, cache)


@pytest.mark.parametrize("caption", ["prefix", "keys"])
def test_many_at_a_time_are_the_same_as_one_by_one(inputs, caption: str) -> None:
    net, (ids, states, mask, null, order) = tiny(caption=caption), inputs
    codes = unravel_index(ids, WHOLE).take_along_dim(order[..., None], 1)
    with torch.no_grad():
        one, many = (net.prefill(states, mask, null, ids[:, :0], order[:, :0]) for _ in range(2))
        for i in range(3):
            net.append(codes[:, i : i + 1], order[:, i : i + 1], one)
        net.append(codes[:, :3], order[:, :3], many)
        torch.testing.assert_close(one.keys, many.keys)
        single = torch.cat([net.ask(order[:, i : i + 1], one) for i in range(3, 6)], 1)
        torch.testing.assert_close(net.ask(order[:, 3:], many), single, atol=1e-5, rtol=1e-5)


def test_a_code_sees_those_before_it_in_the_order_alone(inputs) -> None:
    net, (ids, states, mask, null, _) = tiny(), inputs
    order = torch.tensor([[4, 0, 3, 1, 5, 2]]).expand(3, -1)
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % CODES
    (before,), (after,) = net(ids, states, mask, null, order=order), net(changed, states, mask, null, order=order)
    moved = (before - after).abs().amax((0, 2)) > 1e-4
    assert moved.tolist() == [False, True, True, False, False, True]


def test_raster_is_the_order_where_none_is_given_and_masks_hide(inputs) -> None:
    net, (ids, states, mask, null, _) = tiny(masks=True), inputs
    torch.nn.init.normal_(net.masked_code)
    raster = torch.arange(6).expand(3, -1)
    (plain,) = net(ids, states, mask, null)
    assert torch.equal(plain, net(ids, states, mask, null, order=raster)[0])
    hidden = torch.zeros_like(ids, dtype=torch.bool)
    hidden[:, 2] = True
    (masked,) = net(ids, states, mask, null, ids, hidden)
    assert torch.equal(plain[:, :3], masked[:, :3]) and (plain[:, 3] - masked[:, 3]).abs().max() > 1e-3


def test_one_layer_is_too_few() -> None:
    with pytest.raises(ValueError, match="num_layers=1: at least 2 are needed"):
        tiny(num_layers=1)
