"""Fréchet distance between two sets of features, each taken as a Gaussian: FID's formula on any features.

Heusel et al. 2017, arXiv 1706.08500; the distance of two Gaussians is Dowson & Landau 1982 (J. Multivariate Anal. 12):
|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^1/2. All in float64. Deviation: no iterated matrix root; with any factors
C1 = F1 F1^T and C2 = F2 F2^T the last trace is the sum of the singular values of F1^T F2: exact for singular
covariances too (fewer features than dimensions), and never complex.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


class Moments:
    """Count, mean and covariance of features that come in pieces; pieces in any split give the same.

    Keeps the products about the mean (Chan et al. 1979), which a mean far from 0 does not blur.
    """

    def __init__(self, dim: int) -> None:
        if dim < 1:
            raise ValueError(f"dim={dim}: allowed are whole numbers from 1")
        self.dim, self.count = dim, 0
        self.mean: Float[Tensor, " d"] = torch.zeros(dim, dtype=torch.float64)
        self.products: Float[Tensor, "d d"] = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Float[Tensor, "b d"]) -> None:
        """ValueError for features of another width, and for such as are not finite."""
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features {tuple(features.shape)}: (b, {self.dim}) is wanted")
        wide = features.detach().cpu().double()
        if not bool(torch.isfinite(wide).all()):
            rows = int((~torch.isfinite(wide)).any(1).sum())
            raise ValueError(f"features: {rows} of {len(wide)} rows hold values that are not finite")
        if not len(wide):
            return
        part = Moments(self.dim)
        part.count, part.mean = len(wide), wide.mean(0)
        centred = wide - part.mean
        part.products = centred.T @ centred
        self.merge(part)

    def merge(self, other: Moments) -> None:
        """Takes in what `other` has seen."""
        if other.dim != self.dim:
            raise ValueError(f"features of width {other.dim} do not go with features of width {self.dim}")
        count = self.count + other.count
        if not count:
            return
        step = other.mean - self.mean
        # In place: at Inception's width every copy is 32 MB, and there is one a group and piece.
        self.products.add_(other.products).addr_(step, step, alpha=self.count * other.count / count)
        self.mean = self.mean + step * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased, of two features at least."""
        if self.count < 2:
            raise ValueError(f"a covariance takes at least 2 features, {self.count} seen")
        return self.products / (self.count - 1)


def root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """The symmetric root of a covariance; eigenvalues within rounding of 0, negative ones too, are 0."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    least = len(values) * torch.finfo(values.dtype).eps * values[-1]  # the root would make 1e-8 of a 1e-16
    return (vectors * values.where(values > least, 0).sqrt()) @ vectors.T


def factor(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d r"]:
    """F with F F^T the covariance: Cholesky's where it is far from singular, else one of only as many columns as its
    rank."""
    matrix = (matrix + matrix.T) / 2
    lower, failed = torch.linalg.cholesky_ex(matrix)
    least = len(matrix) * torch.finfo(matrix.dtype).eps
    pivots = lower.diagonal().square()
    # Of a singular matrix it may succeed on rounding, and the root of that is no rounding: pivots like it do not count.
    if not int(failed) and bool(pivots.min() > 100 * least * pivots.max()):
        return lower
    values, vectors = torch.linalg.eigh(matrix)
    kept = values > least * values[-1]
    return vectors[:, kept] * values[kept].sqrt()


def gaussian_distance(
    mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], mean2: Float[Tensor, " d"],
    covariance2: Float[Tensor, "d d"],
) -> float:
    """The squared 2-Wasserstein distance of two Gaussians, at least 0."""
    step = mean.double() - mean2.double()
    first, second = covariance.double(), covariance2.double()
    common = torch.linalg.svdvals(factor(first).T @ factor(second)).sum()
    return max(0.0, float(step @ step + first.trace() + second.trace() - 2 * common))


def quick_distance(a: Moments, b: Moments, root_b: Float[Tensor, "d d"]) -> float:
    """`frechet_distance` with the root of b's covariance at hand, by the eigenvalues of C_b^1/2 C_a C_b^1/2.

    Half of the time and less, but roots of squares: up to 1e-8 of the largest singular value is lost on each of the
    smallest, all to one side. For differences between like distances, such as a jackknife's.
    """
    step = a.mean - b.mean
    product = root_b @ a.covariance @ root_b
    common = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    return float(step @ step + a.covariance.trace() + b.covariance.trace() - 2 * common)


def frechet_distance(a: Moments, b: Moments) -> float:
    """Of the features behind two moments. It falls with their number: compare equal numbers only."""
    return gaussian_distance(a.mean, a.covariance, b.mean, b.covariance)
