"""Grouped moments, their intervals, kernel distance, precision and recall, R-precision: closed forms and references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from t2i.metrics.frechet import frechet_distance, quick_distance, root
from t2i.metrics.intervals import bootstrap
from t2i.metrics.kid import kernel_distance
from t2i.metrics.precision_recall import precision_recall
from t2i.metrics.r_precision import r_precision
from t2i.metrics.statistics import Statistics, frechet


def features(n: int, d: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * (1 + torch.arange(d) / d) + shift


def of(held: torch.Tensor, keep: bool = False) -> Statistics:
    found = Statistics(held.shape[1], keep)
    found.update(held, torch.arange(len(held)))
    return found


class Rows(torch.nn.Module):
    """Lets torchmetrics have our features: a picture's first row of pixels' values are its features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim, self.num_features = dim, dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, : self.dim].float() / 50


def pictures(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 3, 4, 4, generator=generator) * 30 + 100 + seed).clamp(0, 255).to(torch.uint8)


def test_frechet_and_kernel_distance_are_torchmetrics_own() -> None:
    net, real, fake = Rows(16), pictures(300, 1), pictures(260, 9)
    fid = FrechetInceptionDistance(feature=net, input_img_size=(3, 4, 4))
    fid.update(real, real=True)
    fid.update(fake, real=False)
    ours = frechet(of(net(fake)), of(net(real)))
    assert ours.value == pytest.approx(float(fid.compute()), rel=1e-3)
    assert ours.low < ours.value < ours.high
    kid = KernelInceptionDistance(feature=net, subsets=1, subset_size=260)
    kid.update(real[:260], real=True)
    kid.update(fake, real=False)
    mean, _ = kid.compute()
    assert kernel_distance(net(fake), net(real[:260]), 0, 1, 260).value == pytest.approx(float(mean), rel=1e-3)


def test_a_set_has_no_distance_from_itself() -> None:
    held = of(features(200, 12, 0), keep=True)
    assert frechet(held, held).value < 1e-9
    # Unbiased: of two halves of one distribution it is about 0, and of shifted ones clearly not.
    near = kernel_distance(features(500, 12, 1), features(500, 12, 2), 0, 20, 200)
    far = kernel_distance(features(500, 12, 1), features(500, 12, 2, shift=1.0), 0, 20, 200)
    assert near.low < 0 < near.high and far.low > near.high


def test_kernel_distance_by_hand_and_seeded() -> None:
    x, y = features(5, 3, 1).double(), features(5, 3, 2).double()

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    wanted = sum(k(z[i], z[j]) for z in (x, y) for i in range(5) for j in range(5) if i != j) / 20
    wanted -= 2 * sum(k(a, b) for a in x for b in y) / 25
    assert kernel_distance(x, y, 0, 1, 5).value == pytest.approx(wanted, rel=1e-12)
    state = torch.random.get_rng_state()
    one = kernel_distance(features(50, 4, 1), features(60, 4, 2), 3, 5, 20)
    assert one == kernel_distance(features(50, 4, 1), features(60, 4, 2), 3, 5, 20)
    assert one != kernel_distance(features(50, 4, 1), features(60, 4, 2), 4, 5, 20)
    assert torch.equal(state, torch.random.get_rng_state())
    with pytest.raises(ValueError, match="size=51: allowed are 2 to 50"):
        kernel_distance(features(50, 4, 1), features(60, 4, 2), 3, 5, 51)


def test_pieces_and_ranks_give_what_one_pass_gives() -> None:
    held = features(103, 6, 5)
    whole, parts = of(held, keep=True), Statistics(6, keep=True)
    for rank in (1, 0):
        mine = torch.arange(rank, 103, 2)
        one = Statistics(6, keep=True)
        for some in mine.split(7):
            one.update(held[some], some)
        parts.merge(Statistics.from_state(one.state()))
    assert parts.count == 103 and torch.equal(parts.features, held) and torch.equal(whole.features, held)
    torch.testing.assert_close(parts.total().covariance, whole.total().covariance, rtol=1e-10, atol=1e-10)
    real = of(features(90, 6, 7))
    a, b = frechet(whole, real), frechet(parts, real)
    assert (a.value, a.low, a.high) == pytest.approx((b.value, b.low, b.high), rel=1e-8)


def test_small_batches_wait_and_nothing_is_left_out() -> None:
    held = features(9001, 5, 5)  # more than twice what waits
    found = Statistics(5)
    for some in torch.arange(9001).split(32):
        found.update(held[some], some)
    total = found.total()
    assert found.count == total.count == 9001
    wide = held.double()
    torch.testing.assert_close(total.mean, wide.mean(0), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(total.covariance, wide.T.cov(), rtol=1e-12, atol=1e-14)
    found.update(held[:1], torch.tensor([9001]))  # after a look, too
    assert found.count == 9002 and found.groups[1].count == len(range(1, 9002, 10))
    assert Statistics.from_state(found.state()).count == 9002 and Statistics(5).count == 0


def test_the_jackknife_is_that_of_the_ten_groups() -> None:
    held, real = features(60, 4, 1), of(features(80, 4, 2))
    numbers = torch.arange(60)
    apart = [frechet_distance(of(held[numbers % 10 != g]).total(), real.total()) for g in range(10)]
    error = (0.9 * sum((value - np.mean(apart)) ** 2 for value in apart)) ** 0.5
    found = frechet(of(held), real)
    assert found.high == pytest.approx(found.value + 1.96 * error, rel=1e-6)
    assert found.low == 0.0 > found.value - 1.96 * error  # a squared distance
    quick = quick_distance(of(held).total(), real.total(), root(real.total().covariance))
    assert quick == pytest.approx(found.value, rel=1e-7)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Distances of 400 samples of a Gaussian from another whose distance from it is known."""
    real = of(features(20000, 3, 0, shift=0.5))
    truth = frechet_distance(of(features(40000, 3, 1)).total(), real.total())
    hits = 0
    for seed in range(40):
        found = frechet(of(features(400, 3, 100 + seed)), real)
        hits += found.low <= truth <= found.high
    assert 32 <= hits <= 40


def test_statistics_refuse_what_is_not_finite_by_the_pictures_numbers() -> None:
    held = features(4, 3, 0)
    held[2, 1] = float("inf")
    with pytest.raises(ValueError, match="not finite for the pictures of number 72"):
        Statistics(3).update(held, torch.tensor([70, 71, 72, 73]))
    with pytest.raises(ValueError, match=r"\(b, 3\) is wanted"):
        Statistics(3).update(features(4, 2, 0), torch.arange(4))
    with pytest.raises(ValueError, match="keep=False kept none"):
        _ = of(features(4, 3, 0)).features
    with pytest.raises(ValueError, match="do not go with"):
        Statistics(3).merge(Statistics(4))


def test_bootstrap_of_a_mean() -> None:
    values = torch.randn(2000, generator=torch.Generator().manual_seed(0)).double() + 3
    found = bootstrap(values, 0)
    error = float(values.std() / 2000**0.5)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.15)
    assert bootstrap(values, 0) == found and bootstrap(values, 1) != found
    assert bootstrap(torch.tensor([2.0]), 0).described() == {"value": 2.0, "low": 2.0, "high": 2.0}
    with pytest.raises(ValueError, match="1 of 2 are not finite"):
        bootstrap(torch.tensor([1.0, float("nan")]), 0)


def test_precision_and_recall_are_torch_fidelitys() -> None:
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = features(150, 5, 1), features(120, 5, 2, shift=0.8)
    found = precision_recall(fake, real, 0, rows=40)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=3, prc_batch_size=1000, save_cpu_ram=False,
                                    verbose=False)
    assert found["precision"].value == pytest.approx(theirs["precision"], abs=1e-6)
    assert found["recall"].value == pytest.approx(theirs["recall"], abs=1e-6)
    assert 0.1 < found["precision"].value < 0.99
    same = precision_recall(real, real, 0)
    assert same["precision"].value == same["recall"].value == 1.0
    with pytest.raises(ValueError, match="more than k=3"):
        precision_recall(fake[:3], real, 0)


def test_r_precision() -> None:
    text = torch.eye(30)
    order = torch.arange(30)
    assert r_precision(text, text, order, 0, 30).value == 1.0
    assert r_precision(text.roll(1, 0), text, order, 0, 30).value == 0.0
    assert r_precision(torch.ones(30, 30), text, order, 0, 5).value == 0.0  # ties
    half = torch.cat([text[:15], text[15:].roll(1, 0)])
    assert r_precision(half, text, order, 0, 30).value == pytest.approx(0.5)
    # An equal caption of another picture is no distractor.
    twice = torch.cat([text, text])
    assert r_precision(twice, twice, order.repeat(2), 0, 30).value == 1.0
    chance = r_precision(torch.randn(2000, 16, generator=torch.Generator().manual_seed(0)),
                         torch.randn(2000, 16, generator=torch.Generator().manual_seed(1)), torch.arange(2000), 0, 10)
    assert chance.value == pytest.approx(0.1, abs=0.025) and 0.02 < chance.high - chance.low < 0.04
    with pytest.raises(ValueError, match="candidates=31: allowed are 2 to 30"):
        r_precision(text, text, order, 0, 31)
