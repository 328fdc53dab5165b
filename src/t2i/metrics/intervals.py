"""Intervals of scores, 95 %: the percentile bootstrap of a mean (Efron 1979, Annals of Statistics 7), a share's, a
median's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

_CELLS = 2**22  # numbers that are drawn at a time


@dataclass(frozen=True)
class Interval:
    """A score and the ends of its interval."""

    value: float
    low: float
    high: float

    def described(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def described(found: Any) -> Any:
    """Intervals in nested dictionaries as plain numbers."""
    return found.described() if isinstance(found, Interval) else {key: described(one) for key, one in found.items()}


def bootstrap(values: Float[Tensor, " n"], seed: int, resamples: int = 1000) -> Interval:
    """The mean of one number a picture, in float64, and the middle 95 % of the means of `resamples` resamples.

    The generator is its own: the same values in the same order and the same seed give the same ends. ValueError for
    none, and for such as are not finite.
    """
    held = torch.as_tensor(values).detach().cpu().double().numpy()
    if held.ndim != 1 or not len(held):
        raise ValueError(f"values {held.shape}: one number a picture is wanted, at least one")
    if not np.isfinite(held).all():
        raise ValueError(f"values: {int((~np.isfinite(held)).sum())} of {len(held)} are not finite")
    rng = np.random.default_rng(seed)
    rows = max(1, _CELLS // len(held))
    means = []
    for start in range(0, resamples, rows):
        picked = rng.integers(0, len(held), (min(rows, resamples - start), len(held)))
        means.append(held[picked].mean(1))
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return Interval(float(held.mean()), float(low), float(high))


def ratio(values: Float[Tensor, " n"], base: Float[Tensor, " n"], seed: int, resamples: int = 1000) -> Interval:
    """The mean of `values` over the mean of `base`, one number of either a thing, and the middle 95 % of its resamples;
    things are drawn with both of their numbers. ValueError where the mean of `base` is 0."""
    above, below = (one.double().numpy() for one in (values, base))
    if above.shape != below.shape or above.ndim != 1 or not below.sum():
        raise ValueError(f"values {above.shape} over base {below.shape} with the sum {below.sum():g}: as many of both,"
                         " and a base above 0, are wanted")
    picked = np.random.default_rng(seed).integers(0, len(above), (resamples, len(above)))
    # A resample without any is taken for one with the least that there can be.
    least = below[below > 0].min() / len(below)
    low, high = np.quantile(above[picked].mean(1) / below[picked].mean(1).clip(least), (0.025, 0.975))
    return Interval(float(above.mean() / below.mean()), float(low), float(high))


def wilson(right: Bool[Tensor, " n"]) -> Interval:
    """A share and its 95 % score interval (Wilson 1927, J. Am. Stat. Assoc. 22): no point at 0 and 1."""
    from scipy.stats import binomtest  # slow to import

    if right.ndim != 1 or not len(right):
        raise ValueError(f"right {tuple(right.shape)}: one verdict a picture is wanted, at least one")
    found = binomtest(int(right.sum()), len(right))
    ends = found.proportion_ci(0.95, "wilson")
    return Interval(float(found.statistic), float(ends.low), float(ends.high))


def median(values: Tensor) -> Interval:
    """The median of one number a picture, between the order statistics that hold it in 95 % (Conover 1999, 3.2)."""
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values {tuple(values.shape)}: one number a picture is wanted, at least one")
    ordered, n = values.double().sort().values, len(values)
    reach = 0.98 * n**0.5  # 1.96 standard deviations of the number of values below the median
    low, high = max(0, math.floor(n / 2 - reach)), min(n - 1, math.ceil(n / 2 + reach) - 1)
    return Interval(float(ordered.quantile(0.5)), float(ordered[low]), float(ordered[high]))
