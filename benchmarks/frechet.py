"""The Fréchet distance of two sets of Inception-sized features: our exact route, and the quick one that a jackknife
takes, against scipy's root of the covariances' product, as FID has been computed since 2017."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from scipy.linalg import sqrtm

from t2i.metrics.frechet import Moments, frechet_distance, quick_distance, root


def features(n: int, d: int, seed: int) -> Moments:
    """Moments of n features whose spectrum falls as that of Inception's features does, roughly."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64) / d**0.5
    held = torch.randn(n, d, generator=generator, dtype=torch.float64) / (1 + torch.arange(d)) ** 0.5
    found = Moments(d)
    found.update(held @ mixing + 0.1 * seed)
    return found


def plain(a: Moments, b: Moments) -> float:
    step = (a.mean - b.mean).numpy()
    covariances = a.covariance.numpy(), b.covariance.numpy()
    both = sqrtm(covariances[0] @ covariances[1])
    return float(step @ step + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * np.trace(np.real(both)))


def timed(function: Callable[[], float], rounds: int) -> tuple[float, float]:
    """Least seconds, and the value."""
    best, value = float("inf"), 0.0
    for _ in range(rounds):
        started = time.perf_counter()
        value = function()
        best = min(best, time.perf_counter() - started)
    return best, value


def rows(quick: bool) -> Iterator[tuple[str, str, str, str, float]]:
    """Part, setting, measured, against, ratio."""
    for d in (16, 32) if quick else (512, 2048):
        a, b = features(2 * d, d, 1), features(2 * d, d, 2)
        rounds = 3 if d < 1000 else 2
        by = root(b.covariance)
        slow, wanted = timed(lambda a=a, b=b: plain(a, b), rounds)
        ours, value = timed(lambda a=a, b=b: frechet_distance(a, b), rounds)
        fast, near = timed(lambda a=a, b=b, by=by: quick_distance(a, b, by), rounds)
        setting = f"{d} dimensions, {2 * d} pictures, fp64"
        yield ("fréchet: exact", setting, f"{ours:.3g} s, off by {abs(value - wanted) / wanted:.0e}",
               f"scipy's sqrtm: {slow:.3g} s", slow / ours)
        yield ("fréchet: in the jackknife", setting, f"{fast:.3g} s, off by {abs(near - wanted) / wanted:.0e}",
               f"scipy's sqrtm: {slow:.3g} s", slow / fast)
