"""Schedules, orders and the token loop in any order."""

from __future__ import annotations

import math

import pytest
import torch

from t2i.models.any_order import (
    ORDERS,
    SCHEDULES,
    counts,
    faults_of,
    generate,
    halton_order,
    sum_of_logs,
    uniforms_needed,
)
from t2i.models.sampling import Sampler, choose, filter_logits, uniforms
from t2i.nets.arpg import ARPG
from t2i.types import unravel_index

CODES, GRID, N = 13, (3, 4), 12


def drawn(factors: tuple[int, ...] = (CODES,)) -> ARPG:
    torch.manual_seed(0)
    made = ARPG(factors, GRID, text_dim=5, text_length=4, width=16, num_layers=2, num_heads=2, caption_heads=True)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


@pytest.fixture(scope="module")
def net() -> ARPG:
    return drawn()


@pytest.fixture(scope="module")
def text():
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()
    return torch.randn(3, 4, 5, generator=generator), mask


def ids_of(net: ARPG, text, seeds=(1, 2, 3), steps=4, schedule="arccos", order="halton", guidance=1.0, **options):
    of_sampler = {key: options.pop(key) for key in ("temperature", "top_k", "top_p") if key in options}
    guided = guidance != 1 and not options.get("unconditional", False)
    uniform = uniforms(seeds, uniforms_needed(N, len(net.factors), steps, order))
    return generate(net, *text, uniform, steps=steps, schedule=schedule, order=order,
                    sampler=Sampler(guidance=guidance, guided=guided, **of_sampler), **options)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("total", [1, 2, 12, 64, 257])
def test_every_number_of_steps_draws_every_code_once(schedule: str, total: int) -> None:
    for steps in range(1, total + 1):
        found = counts(total, steps, schedule)
        assert len(found) == steps and sum(found) == total and min(found) >= 1


def test_schedules_are_the_published_ones() -> None:
    masked = [256 - sum(counts(256, 8, "cosine")[: t + 1]) for t in range(8)]
    assert masked == [round(256 * math.cos(math.pi / 2 * (t + 1) / 8)) for t in range(8)]
    known = [sum(counts(256, 8, "arccos")[: t + 1]) for t in range(7)]
    assert known == [round(256 * (1 - math.acos((t + 1) / 8) / (math.pi / 2))) for t in range(7)]
    assert counts(64, 16, "linear") == [4] * 16 and counts(5, 5, "cosine") == [1] * 5


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (8, 8), (5, 17)])
def test_halton_goes_through_every_cell(grid: tuple[int, int]) -> None:
    found = halton_order(grid)
    assert sorted(found.tolist()) == list(range(grid[0] * grid[1]))
    if grid == (8, 8):  # points (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), …
        assert found[:4].tolist() == [4 * 8 + 2, 2 * 8 + 5, 6 * 8 + 0, 1 * 8 + 3]


def test_options_out_of_range_name_what_is_allowed() -> None:
    assert faults_of(64, None, "arccos", "halton") == faults_of(64, 64, "linear", "random") == []
    for steps in (0, 65, -1, 2.5, True):
        (told,) = faults_of(64, steps, "cosine", "confidence")
        assert told.startswith(f"steps={steps}: allowed are whole numbers from 1 to 64")
    assert faults_of(64, 1, "sine", "spiral") == [
        "schedule=sine: allowed are arccos, cosine, linear", "order=spiral: allowed are halton, random, confidence"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("factors", [(CODES,), (4, 5)])
@pytest.mark.parametrize("steps", [1, 2, 5, 6, 7, N - 1, N])
def test_known_codes_stay_whatever_the_steps(text, order: str, factors, steps: int) -> None:
    net, known = drawn(factors), torch.zeros(N, dtype=torch.bool)
    known[[0, 5, 6, 11]] = True
    given = torch.randint(net.codebook_size, (3, 4), generator=torch.Generator().manual_seed(2))
    found = ids_of(net, text, steps=steps, order=order, given=given, known=known, guidance=2.0)
    assert torch.equal(found[:, known], given)
    assert found.min() >= 0 and found.max() < net.codebook_size
    assert torch.equal(ids_of(net, text, steps=steps, order=order, given=found, known=~(known & False)), found)


@pytest.mark.parametrize("order", ORDERS)
def test_no_code_is_left_out(net, text, order: str) -> None:
    """A place that is not drawn keeps the nought that it begins with, which this net never draws."""
    never = ARPG((CODES,), GRID, 5, 4, 16, 2, 2)
    never.load_state_dict(net.state_dict())

    class NoNought(torch.nn.Module):
        hear = net.predict.hear

        def forward(self, x, known, heard):
            logits = net.predict(x, known, heard).clone()
            logits[..., 0] = -torch.inf
            return logits

    never.predict = NoNought()
    for steps in range(1, N + 1):
        for schedule in SCHEDULES:
            assert ids_of(never.eval(), text, steps=steps, schedule=schedule, order=order).min() > 0


@pytest.mark.parametrize("order", ["halton", "random"])
@pytest.mark.parametrize("factors", [(CODES,), (4, 5)])
def test_at_one_code_a_step_the_loop_is_autoregressive(text, order: str, factors) -> None:
    """What is drawn is what the training path's distributions give, code after code."""
    net, parts = drawn(factors), len(factors)
    needed = uniforms_needed(N, parts, N, order)
    uniform = uniforms([1, 2, 3], needed)
    cells = uniform[:, -N:].argsort(1) if order == "random" else halton_order(GRID).expand(3, N)
    ids, no = torch.zeros(3, N, dtype=torch.long), torch.zeros(3, dtype=torch.bool)
    numbers = uniform[:, : N * parts].view(3, N, parts)
    for i in range(N):
        cell, scales = cells[:, i : i + 1], (1,) if parts == 1 else (5, 1)
        for part, scale in enumerate(scales):
            with torch.no_grad():
                logits = net(ids, *text, no, order=cells)[part].take_along_dim(cell[..., None], 1)[:, 0]
            number = numbers[:, :, part].gather(1, cell)[:, 0]
            ids.scatter_add_(1, cell, scale * choose(filter_logits(logits, 0.9), number)[:, None])
    assert torch.equal(ids_of(net, text, steps=N, order=order, temperature=0.9), ids)


def test_the_log_probability_under_the_cache_is_that_of_training(net, text) -> None:
    ids = torch.randint(CODES, (3, N), generator=torch.Generator().manual_seed(5))
    cells, no = torch.rand(3, N, generator=torch.Generator().manual_seed(6)).argsort(1), torch.zeros(3).bool()
    with torch.no_grad():
        (logits,) = net(ids, *text, no, order=cells)
        trained = logits.log_softmax(-1).gather(2, ids[..., None]).sum((1, 2))
        cache, cached = net.prefill(*text, no, ids[:, :0], cells[:, :0]), torch.zeros(3)
        for i in range(N):
            cell = cells[:, i : i + 1]
            each = unravel_index(ids.gather(1, cell), (CODES,))
            cached += sum_of_logs([net.logits(net.ask(cell, cache)[:, 0], each[:, 0, :0], cache.heard)], each[:, 0])
            net.append(each, cell, cache)
    torch.testing.assert_close(cached, trained, atol=1e-4, rtol=1e-5)


def test_guidance_one_is_none_and_zero_is_unconditional(net, text) -> None:
    plain = ids_of(net, text)
    assert torch.equal(ids_of(net, text, guidance=1.0), plain)
    assert torch.equal(ids_of(net, text, guidance=1.0 + 1e-6), plain)  # through both halves
    alone = ids_of(net, text, unconditional=True)
    assert torch.equal(ids_of(net, text, guidance=0.0), alone) and not torch.equal(plain, alone)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [{}, {"guidance": 3.0, "top_p": 0.9}])
def test_same_seed_same_codes_whatever_the_batch(net, text, order: str, options) -> None:
    (states, mask), seeds = text, [4, 5, 6]
    together = ids_of(net, text, seeds, order=order, **options)
    assert torch.equal(ids_of(net, text, seeds, order=order, **options), together)
    assert not torch.equal(ids_of(net, text, [7, 8, 9], order=order, **options), together)
    for i, seed in enumerate(seeds):
        length = int(mask[i].sum())
        alone = ids_of(net, (states[i : i + 1, :length], mask[i : i + 1, :length]), [seed], order=order, **options)
        assert torch.equal(alone[0], together[i])


def test_confidence_takes_the_surest_first_where_nothing_is_drawn_by_chance(net, text) -> None:
    first = ids_of(net, text, steps=3, order="confidence", temperature=0.0)
    assert torch.equal(first, ids_of(net, text, (7, 8, 9), steps=3, order="confidence", temperature=0.0))
    with torch.no_grad():
        cells, no = torch.arange(N).expand(3, N), torch.zeros(3, dtype=torch.bool)
        cache = net.prefill(*text, no, cells[:, :0], cells[:, :0])
        logits = net.predict(net.ask(cells, cache), cells[..., None][..., :0], cache.heard)
    best = logits.log_softmax(-1).amax(-1).topk(counts(N, 3, "arccos")[0], 1).indices
    assert torch.equal(first.gather(1, best), logits.argmax(-1).gather(1, best))


def test_given_codes_that_do_not_fit_are_refused(net, text) -> None:
    known = torch.arange(N) < 3
    with pytest.raises(ValueError, match=r"given codes have shape \(3, 2\), of \(12,\) cells 3 are known"):
        ids_of(net, text, given=torch.zeros(3, 2, dtype=torch.long), known=known)
    with pytest.raises(ValueError, match=r"given codes reach from 0 to 13; allowed are 0 to 12"):
        ids_of(net, text, given=torch.tensor([[0, 1, 13]] * 3), known=known)
