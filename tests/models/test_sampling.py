"""From logits to codes, held against closed forms; the loop against drawing without a cache."""

from __future__ import annotations

import math

import pytest
import torch

from t2i.models.sampling import apply_guidance, check_options, choose, filter_logits, generate, uniforms
from t2i.nets.gpt import GPT

CODES, N = 13, 6


def drawn(factors: tuple[int, ...]) -> GPT:
    torch.manual_seed(0)
    made = GPT(factors, (2, 3), text_dim=5, text_length=4, width=16, num_layers=2, num_heads=2)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


@pytest.fixture(scope="module")
def net() -> GPT:
    return drawn((CODES,))


@pytest.fixture(scope="module")
def text():
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    return torch.randn(3, 4, 5, generator=generator), mask


def test_temperature_top_k_and_top_p() -> None:
    p = torch.tensor([[0.1, 0.5, 0.15, 0.25]])

    def kept(**options: float) -> list[float]:
        return [round(x, 4) for x in filter_logits(p.log(), **options).softmax(-1)[0].tolist()]

    assert kept() == [0.1, 0.5, 0.15, 0.25]
    assert kept(top_k=2) == [0, 0.6667, 0, 0.3333]
    assert kept(top_k=1) == [0, 1, 0, 0]
    assert kept(top_k=4) == kept(top_p=1.0) == kept()
    assert kept(top_p=0.4) == [0, 1, 0, 0]  # the likeliest stays, however small top_p is
    assert kept(top_p=0.7) == [0, 0.6667, 0, 0.3333]
    assert kept(top_p=0.8) == [0, round(50 / 90, 4), round(15 / 90, 4), round(25 / 90, 4)]
    squares = (p * p / (p * p).sum())[0]
    assert kept(temperature=0.5) == [round(x, 4) for x in squares.tolist()]
    assert kept(top_k=3, top_p=0.5) == [0, 1, 0, 0]  # top_p counts among the top_k: 0.5 / 0.9 is over a half


def test_choose_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.2, 0.3, 0.5]).log().expand(6, 3)
    uniform = torch.tensor([0.0, 0.19, 0.21, 0.49, 0.51, 1 - 2**-24])
    assert choose(logits, uniform).tolist() == [0, 0, 1, 1, 2, 2]
    masked = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    assert choose(masked, torch.tensor([0.0, 0.49, 0.51, 1 - 2**-24])).tolist() == [1, 1, 3, 3]
    many = choose(torch.tensor([0.2, 0.3, 0.5]).log().expand(20000, 3), uniforms([0], 20000)[0])
    shares = torch.bincount(many) / 20000
    assert shares.tolist() == pytest.approx([0.2, 0.3, 0.5], abs=0.015)


def test_guide() -> None:
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]])
    assert torch.equal(apply_guidance(a, b, 1.0), a) and torch.equal(apply_guidance(a, b, 0.0), b)
    assert apply_guidance(a, b, 3.0).tolist() == [[-3.0, 8.0]]


def test_uniforms_belong_to_their_seed() -> None:
    assert torch.equal(uniforms([5, 7], 9)[1], uniforms([7], 9)[0])
    assert not torch.equal(uniforms([5], 9), uniforms([6], 9))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    uniforms([1], 3)
    assert torch.equal(state, torch.get_rng_state())


def test_the_loop_draws_what_drawing_without_a_cache_draws(net, text) -> None:
    uniform = uniforms([1, 2, 3], N)
    for guidance in (1.0, 2.5):
        ids = torch.zeros(3, N, dtype=torch.long)
        no = torch.zeros(3, dtype=torch.bool)
        for i in range(N):
            with torch.no_grad():
                logits = net(ids, *text, no)[0][:, i]
                if guidance != 1:
                    logits = apply_guidance(logits, net(ids, *text, ~no)[0][:, i], guidance)
            ids[:, i] = choose(filter_logits(logits, 0.9, top_k=7), uniform[:, i])
        assert torch.equal(generate(net, *text, uniform, temperature=0.9, top_k=7, guidance=guidance), ids)


def test_codes_of_two_parts_are_drawn_part_by_part(text) -> None:
    net, uniform = drawn((4, 5)), uniforms([1, 2, 3], 2 * N)
    options = {"temperature": 0.9, "top_k": 3}
    for guidance in (1.0, 2.5):
        ids = torch.zeros(3, N, dtype=torch.long)
        no = torch.zeros(3, dtype=torch.bool)
        for i in range(N):
            for part, scale in ((0, 5), (1, 1)):  # the first part is the more significant digit
                with torch.no_grad():
                    logits = net(ids, *text, no)[part][:, i]
                    if guidance != 1:
                        logits = apply_guidance(logits, net(ids, *text, ~no)[part][:, i], guidance)
                ids[:, i] += scale * choose(filter_logits(logits, **options), uniform[:, 2 * i + part])
        assert torch.equal(generate(net, *text, uniform, guidance=guidance, **options), ids)
        assert ids.max() > 5


def test_guidance_one_is_none_and_zero_is_unconditional(net, text) -> None:
    uniform = uniforms([1, 2, 3], N)
    plain = generate(net, *text, uniform)
    assert torch.equal(generate(net, *text, uniform, guidance=1.0), plain)
    assert torch.equal(generate(net, *text, uniform, guidance=1.0 + 1e-6), plain)  # through both halves
    alone = generate(net, *text, uniform, unconditional=True)
    assert torch.equal(generate(net, *text, uniform, guidance=0.0), alone)
    assert torch.equal(generate(net, *text, uniform, unconditional=True, guidance=4.0), alone)
    assert not torch.equal(plain, alone)


def test_a_negative_caption_is_led_away_from(net, text) -> None:
    (states, mask), uniform = text, uniforms([1, 2, 3], N)
    away = states.flip(0)[:, :2], mask.flip(0)[:, :2]
    ids, no = torch.zeros(3, N, dtype=torch.long), torch.zeros(3, dtype=torch.bool)
    for i in range(N):
        with torch.no_grad():
            of_caption, of_null, of_negative = (
                net(ids, *one, null)[0][:, i] for one, null in ((text, no), (text, ~no), (away, no)))
        logits = of_null + 2.5 * (of_caption - of_null) + 1.5 * (of_caption - of_negative)
        ids[:, i] = choose(filter_logits(logits, 0.9), uniform[:, i])
    assert torch.equal(generate(net, *text, uniform, temperature=0.9, guidance=2.5, negative=away), ids)
    without = generate(net, *text, uniform, temperature=0.9, guidance=2.5)
    assert not torch.equal(without, ids)
    assert torch.equal(generate(net, *text, uniform, temperature=0.9, guidance=2.5, negative=text), without)


@pytest.mark.parametrize("options", [{}, {"guidance": 3.0, "top_p": 0.9}])
def test_same_seed_same_codes_whatever_the_batch(net, text, options) -> None:
    (states, mask), seeds = text, [4, 5, 6]
    together = generate(net, states, mask, uniforms(seeds, N), **options)
    assert torch.equal(generate(net, states, mask, uniforms(seeds, N), **options), together)
    assert not torch.equal(generate(net, states, mask, uniforms([7, 8, 9], N), **options), together)
    for i, seed in enumerate(seeds):
        length = int(mask[i].sum())  # alone, a caption has no padding
        alone = generate(net, states[i : i + 1, :length], mask[i : i + 1, :length], uniforms([seed], N), **options)
        assert torch.equal(alone[0], together[i])


def test_temperature_zero_takes_the_likeliest_whatever_the_seed(net, text) -> None:
    first = generate(net, *text, uniforms([1, 2, 3], N), temperature=0.0)
    assert torch.equal(first, generate(net, *text, uniforms([4, 5, 6], N), temperature=0.0))
    assert torch.equal(first, generate(net, *text, uniforms([4, 5, 6], N), top_k=1))
    with torch.no_grad():
        (logits,) = net(first.clone(), *text, torch.zeros(3, dtype=torch.bool))
    assert torch.equal(logits.argmax(-1), first)


@pytest.mark.parametrize("m", [1, 3, N])
def test_completion_keeps_the_given_codes_and_goes_on_from_them(net, text, m: int) -> None:
    whole = generate(net, *text, uniforms([1, 2, 3], N))
    again = generate(net, *text, uniforms([1, 2, 3], N), given=whole[:, :m].clone())
    assert torch.equal(again, whole)  # its own beginning, continued with the same numbers, is itself
    other = (whole[:, :m] + 1) % CODES
    guided = generate(net, *text, uniforms([1, 2, 3], N), given=other, guidance=2.0)
    assert torch.equal(guided[:, :m], other)


@pytest.mark.parametrize("code", [-1, CODES])
def test_given_codes_out_of_range_are_refused(net, text, code: int) -> None:
    given = torch.tensor([[0, 1], [2, code], [3, 4]])
    with pytest.raises(ValueError, match=rf"given codes reach from .* {max(4, code)}; allowed are 0 to {CODES - 1}"):
        generate(net, *text, uniforms([1, 2, 3], N), given=given)


@pytest.mark.parametrize("shape", [(3, N + 1), (2, 1)])
def test_given_codes_of_another_shape_are_refused(net, text, shape) -> None:
    with pytest.raises(ValueError, match=r"given codes have shape .* allowed are \(3, m\), m up to 6"):
        generate(net, *text, uniforms([1, 2, 3], N), given=torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": -0.5}, "temperature=-0.5: allowed are numbers >= 0"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"top_k": 0}, "top_k=0: allowed are 1 to 13"),
        ({"top_k": 14}, "top_k=14: allowed are 1 to 13"),
        ({"top_p": 0.0}, "top_p=0.0: allowed are 0 < top_p <= 1"),
        ({"top_p": 1.5}, "top_p=1.5: allowed are 0 < top_p <= 1"),
        ({"guidance": -1.0}, "guidance=-1.0: allowed are numbers >= 0"),
        ({"guidance": math.nan}, "guidance=nan"),
    ],
)
def test_options_out_of_range_name_what_is_allowed(net, text, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        generate(net, *text, uniforms([1, 2, 3], N), **options)


def test_all_faults_at_once() -> None:
    with pytest.raises(ValueError, match="temperature=-1.*top_k=99.*top_p=2.*guidance=-2"):
        check_options((CODES,), -1, 99, 2, -2)
    check_options((CODES,), 0, CODES, 1.0, 0)
    check_options((CODES,), 1.0, None, None, 7.5)
