"""The GPT: its cache, its mask, its null prefix, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from t2i.nets.arpg import ARPG
from t2i.nets.gpt import GPT
from t2i.nets.transformer import rotary, squared_relu, turned
from t2i.types import ravel_index, unravel_index

CODES, GRID, TEXT, LENGTH = 12, (2, 3), 5, 4
WHOLE, PARTS = (12,), (2, 3, 2)  # codes of one part, and of three


def tiny(factors=WHOLE, kind=GPT, **changes) -> GPT:
    """Two layers; what starts at zero is drawn too, so that every path is heard."""
    torch.manual_seed(0)
    net = kind(factors, GRID, TEXT, LENGTH, **{"width": 16, "num_layers": 2, "num_heads": 2, **changes})
    for name, parameter in net.named_parameters():
        if name.endswith(("attention_out.weight", "mlp_out.weight")) or name.startswith("part_codes"):
            torch.nn.init.normal_(parameter, std=0.3)
    return net.eval()


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(CODES, (3, GRID[0] * GRID[1]), generator=generator)
    states = torch.randn(3, LENGTH, TEXT, generator=generator)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    return ids, states, mask, torch.tensor([False, False, True])


PLAIN = {"word_triples": False}
KEYS = {**PLAIN, "caption": "keys"}


@pytest.mark.parametrize("options", [{}, PLAIN, KEYS, {"caption": "keys"}, {**KEYS, "caption_heads": True},
                                     {"caption_heads": True}],
                         ids=["default", "plain", "keys", "both", "heads", "prefix and heads"])
@pytest.mark.parametrize("factors", [WHOLE, PARTS])
@pytest.mark.parametrize("given", [0, 1, 3, 5])
@pytest.mark.parametrize("dense", [True, False])
def test_cached_logits_are_the_uncached_ones(inputs, dense: bool, given: int, factors, options) -> None:
    net, (ids, states, mask, null) = tiny(factors, **options), inputs
    net.dense_mask = dense
    each = unravel_index(ids, factors)
    with torch.no_grad():
        expected = net(ids, states, mask, null)
        x, cache = net.prefill(states, mask, null, ids[:, :given])
        place = cache.keys.data_ptr()
        for i in range(given, ids.shape[1]):
            for part, wanted in enumerate(expected):
                found = net.logits(x, each[:, i, :part], cache.heard)
                torch.testing.assert_close(found, wanted[:, i], atol=1e-5, rtol=1e-5)
            if i + 1 < ids.shape[1]:
                x = net.step(each[:, i], cache)
    assert cache.keys.data_ptr() == place and cache.keys.shape == (2, 3, 2, LENGTH + 6, 8)  # allocated once


def test_a_code_sees_only_those_before_it(inputs) -> None:
    net, (ids, states, mask, null) = tiny(), inputs
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 1) % CODES
    (before,), (after,) = net(ids, states, mask, null), net(changed, states, mask, null)
    assert torch.equal(before[:, :4], after[:, :4])
    assert all((before[:, i] - after[:, i]).abs().max() > 1e-3 for i in (4, 5))


@pytest.mark.parametrize("kind", [GPT, ARPG])
@pytest.mark.parametrize("caption", ["prefix", "keys"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_training_without_a_mask_of_places_is_that_with_one(inputs, kind, caption: str, dtype) -> None:
    """Logits and gradients, with padded captions, one of them in the middle, and a dropped one."""
    (ids, states, mask, null), found = inputs, []
    mask = mask | torch.tensor([[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    for dense in (True, False):
        net = tiny(caption=caption, kind=kind)
        net.dense_mask = dense
        with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
            (logits,) = net(ids, states, mask, null)
        logits.float().logsumexp(-1).sum().backward()
        found.append([logits.float(), *(p.grad for p in net.parameters() if p.grad is not None)])
    close = {None: {"atol": 1e-5, "rtol": 1e-4}, torch.bfloat16: {"atol": 0.15, "rtol": 0.1},
             torch.float16: {"atol": 0.02, "rtol": 0.02}}[dtype]
    assert len(found[0]) == len(found[1]) > 20
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, **close)


class Largest(TorchDispatchMode):
    """The most numbers of a tensor whose last two sides are both at least `side` long."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side, self.found = side, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple) else (out,):
            if isinstance(x, torch.Tensor) and x.ndim > 2 and min(x.shape[-2:]) >= self.side:
                self.found = max(self.found, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("kind", [GPT, ARPG])
@pytest.mark.parametrize("caption", ["prefix", "keys"])
def test_without_a_mask_nothing_grows_by_the_square_of_the_places(kind, caption: str) -> None:
    torch.manual_seed(0)
    net = kind(WHOLE, (9, 9), TEXT, LENGTH, width=16, num_layers=2, num_heads=2, caption=caption)
    ids, states = torch.randint(12, (3, 81)), torch.randn(3, LENGTH, TEXT)
    batch = ids, states, torch.ones(3, LENGTH).bool(), torch.zeros(3).bool()
    found = {}
    for net.dense_mask in (True, False):
        with Largest(81) as mode:
            net(*batch)[0].sum().backward()
        found[net.dense_mask] = mode.found
    assert found[True] >= 3 * 81 * 81 and found[False] == 0


@pytest.mark.parametrize("caption", ["prefix", "keys"])
def test_fewer_codes_than_a_grid_are_those_of_a_whole_one(inputs, caption: str) -> None:
    net, (ids, states, mask, null) = tiny(caption=caption), inputs
    (whole,), (part,) = net(ids, states, mask, null), net(ids[:, :4], states, mask, null)
    torch.testing.assert_close(part, whole[:, :4], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_part_sees_the_parts_before_it_too(inputs, part: int) -> None:
    net, (ids, states, mask, null) = tiny(PARTS), inputs
    each = unravel_index(ids, PARTS)
    each[:, 3, part] = (each[:, 3, part] + 1) % PARTS[part]
    before, after = net(ids, states, mask, null), net(ravel_index(each, PARTS), states, mask, null)
    moved = [bool((a[:, 3] - b[:, 3]).abs().max() > 1e-4) for a, b in zip(before, after, strict=True)]
    assert moved == [i > part for i in range(3)]
    assert all(torch.equal(a[:, :3], b[:, :3]) for a, b in zip(before, after, strict=True))
    later = [bool((a[:, 4] - b[:, 4]).abs().max() > 1e-4) for a, b in zip(before, after, strict=True)]
    assert later == [True] * 3  # the blocks see all parts of the places before


def test_each_option_takes_its_parameters_away() -> None:
    assert not hasattr(tiny(), "masked_code") and hasattr(tiny(masks=True), "masked_code")
    assert tiny(WHOLE, **PLAIN).text_in.weight.shape == (16, TEXT) and tiny().text_in.weight.shape == (16, 3 * TEXT)


def test_rotary_scores_depend_on_the_difference_of_places_alone() -> None:
    turns = rotary(1, (4, 4), 8)
    assert torch.equal(turns[:, 0], torch.stack([torch.ones(4), torch.zeros(4)]))  # the prefix is not turned
    q, k = torch.randn(8), torch.randn(8)
    score = turned(q.expand(17, 8), turns)[1:] @ turned(k.expand(17, 8), turns)[1:].T
    score = score.view(4, 4, 4, 4)  # row, column of the query, and of the key
    torch.testing.assert_close(score[1, 2, 0, 0], score[3, 3, 2, 1])
    torch.testing.assert_close(score[:-1, :-1, :-1, :-1], score[1:, 1:, 1:, 1:])
    assert (score[1, 2, 0, 0] - score[2, 1, 0, 0]).abs() > 1e-3  # rows and columns differ


def test_what_is_shown_and_masked_is_seen_by_later_places(inputs) -> None:
    net, (ids, states, mask, null) = tiny(masks=True, **PLAIN), inputs
    torch.nn.init.normal_(net.masked_code)
    (plain,) = net(ids, states, mask, null)
    masked = torch.zeros_like(ids, dtype=torch.bool)
    masked[:, 2] = True
    (hidden,) = net(ids, states, mask, null, ids, masked)
    assert torch.equal(plain[:, :3], hidden[:, :3]) and (plain[:, 3] - hidden[:, 3]).abs().max() > 1e-3
    other = ids.clone()
    other[:, 2] = (ids[:, 2] + 1) % CODES
    torch.testing.assert_close(net(ids, states, mask, null, other, masked)[0], hidden)  # what is masked is not seen
    assert (net(ids, states, mask, null, other)[0][:, 3] - plain[:, 3]).abs().max() > 1e-3


@pytest.mark.parametrize("caption", ["prefix", "keys"])
def test_padding_of_the_prefix_does_not_matter(inputs, caption: str) -> None:
    net, (ids, states, mask, _) = tiny(caption=caption), inputs
    no = torch.zeros(1, dtype=torch.bool)
    (short,) = net(ids[1:2], states[1:2, :2], mask[1:2, :2], no)
    other = torch.where(mask[1:2, :, None], states[1:2], torch.full_like(states[1:2], 9.0))
    torch.testing.assert_close(net(ids[1:2], states[1:2], mask[1:2], no)[0], short, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(net(ids[1:2], other, mask[1:2], no)[0], short, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        padded, cache = net.prefill(states[1:2], mask[1:2], no, ids[1:2, :2])
        logits = net.logits(padded, torch.zeros(1, 0).long(), cache.heard)
        torch.testing.assert_close(logits, short[:, 2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("caption", ["prefix", "keys"])
def test_the_prefix_is_heard_and_the_null_prefix_hides_it(inputs, caption: str) -> None:
    net, (ids, states, mask, _) = tiny(caption=caption), inputs
    same, mask = ids[:1].expand(3, -1), torch.ones_like(mask)
    (told,) = net(same, states, mask, torch.zeros(3, dtype=torch.bool))
    assert (told[0] - told[1]).abs().max() > 1e-3
    (hidden,) = net(same, states, mask, torch.ones(3, dtype=torch.bool))
    torch.testing.assert_close(hidden[0].expand_as(hidden), hidden)
    hidden.sum().backward()
    assert net.null.grad.abs().sum() > 0 and net.text_position.grad.abs().sum() == 0


def test_a_fresh_one_guesses_evenly() -> None:
    torch.manual_seed(0)
    net = GPT((64,), (4, 4), TEXT, LENGTH, width=32, num_layers=1, num_heads=2)
    ids = torch.randint(64, (8, 16))
    (logits,) = net(ids, torch.randn(8, 2, TEXT), torch.ones(8, 2).bool(), torch.zeros(8).bool())
    loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten()).item()
    assert loss == pytest.approx(math.log(64), abs=0.05)


def test_dropout_is_for_training_only(inputs) -> None:
    net = tiny(dropout=0.5)
    assert torch.equal(net(*inputs)[0], net(*inputs)[0])
    net.train()
    assert not torch.equal(net(*inputs)[0], net(*inputs)[0])


def test_training_on_a_cpu_gives_what_inference_gives(inputs) -> None:
    net = tiny()
    with torch.no_grad():
        quiet = net(*inputs)
    torch.testing.assert_close(net(*inputs), quiet, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 18, "num_heads": 4}, "width=18 is not divisible by num_heads=4"),
        ({"num_heads": 0}, "num_heads=0 and num_layers=2 must be at least 1"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 is outside \[0, 1\)"),
        ({"width": 12, "num_heads": 2}, "width=12 over num_heads=2 gives heads of 6 channels; a multiple of 4 is "),
        ({"caption": "cross"}, "caption='cross': one of prefix, keys is needed"),
        ({"dropout": -0.1}, r"dropout=-0.1 is outside \[0, 1\)"),
    ],
)
def test_impossible_sizes_are_refused(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_a_prefix_that_is_too_long_is_refused(inputs) -> None:
    ids, _, _, null = inputs
    with pytest.raises(ValueError, match="the prefix has 5 text tokens; at most 4 are allowed"):
        tiny()(ids, torch.zeros(3, 5, TEXT), torch.ones(3, 5).bool(), null)


def test_the_scale_of_caption_states_does_not_matter(inputs) -> None:
    net, (ids, states, mask, null) = tiny(), inputs
    one, other = net(ids, states, mask, null)[0], net(ids, 7 * states, mask, null)[0]
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_noun_comes_with_its_neighbours(inputs) -> None:
    net, (_, states, mask, null) = tiny(), inputs
    changed = states.clone()
    changed[0, 1] = -changed[0, 1]
    before, after = net.prefix(states, mask, null)[0], net.prefix(changed, mask, null)[0]
    moved = (before - after).abs().amax(-1) > 1e-4
    assert moved[0].tolist() == [True, True, True, False] and not moved[1:].any()


def test_bf16_training_on_a_cpu_is_close_to_float32(inputs) -> None:
    net, (ids, states, mask, null) = tiny(), inputs
    (exact,) = net(ids, states, mask, null)
    with torch.autocast("cpu", torch.bfloat16):
        (rough,) = net(ids, states, mask, null)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.06 * exact.abs().max()


def test_it_starts_from_the_codebooks() -> None:
    factors = (4, 3)
    net, vectors = tiny(factors), [torch.randn(k, 2) for k in factors]
    for of_part in vectors:
        of_part[2] = of_part[0]
    net.start_from(vectors)
    assert len(net.part_codes) == 1
    for table in (net.codes.weight, net.part_codes[0].weight, *(matrix.weight for matrix in net.predict.matrices())):
        assert (table[2] - table[0]).norm() < 0.5 * (table[2] - table[1]).norm()
    with pytest.raises(ValueError, match="argument"):
        net.start_from(vectors[:1])  # a codebook too few


def test_squared_relu_and_its_gradient() -> None:
    x = torch.tensor([-2.0, 0.0, 0.5, 3.0], requires_grad=True)
    y = squared_relu(x)
    y.backward(torch.tensor([1.0, 1.0, 2.0, 1.0]))
    assert y.tolist() == [0, 0, 0.25, 9] and x.grad.tolist() == [0, 0, 2, 6]


@pytest.mark.slow
@pytest.mark.compiles
def test_compiled_blocks_are_compiled_once_more_for_captions_of_all_lengths() -> None:
    """For the length that comes first, and for any; all blocks share both."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    net = GPT(WHOLE, GRID, TEXT, 32, width=16, num_layers=3, num_heads=2, caption="keys")
    for block in net.blocks:
        block.compile(backend=counter)
    seen = []
    for length in (12, 9, 14, 32, 2, 9):
        states, mask = torch.randn(2, length, TEXT), torch.ones(2, length, dtype=torch.bool)
        logits, = net(torch.zeros(2, GRID[0] * GRID[1], dtype=torch.long), states, mask, torch.tensor([False, True]))
        logits.sum().backward()
        seen.append(counter.frame_count)
    torch._dynamo.reset()
    assert seen == [1, 2, 2, 2, 2, 2]
