"""Moments of features that come in pieces, in groups of pictures, so that a distance has an interval.

A picture's group is its number modulo their number, whatever piece or process it comes in: statistics that were
gathered apart and merged are those of one pass. The interval is the delete-a-group jackknife (Quenouille 1956;
Tukey 1958): the distance is computed again without each group.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from t2i.metrics.frechet import Moments, frechet_distance, quick_distance, root
from t2i.metrics.intervals import Interval

GROUPS = 10
_NAMED = 10  # pictures in a message
_ROWS = 4096  # features that wait for one another


class Statistics:
    """Of features of width `dim`. `keep` holds the features too, in float32, for what compares picture with picture."""

    def __init__(self, dim: int, keep: bool = False, groups: int = GROUPS) -> None:
        self.dim, self.keep = dim, keep
        self._groups = [Moments(dim) for _ in range(groups)]
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._features: list[Tensor] = []
        self._numbers: list[Tensor] = []

    def update(self, features: Float[Tensor, "b d"], numbers: Int[Tensor, " b"]) -> None:
        """ValueError names the pictures whose features are not finite."""
        if features.ndim != 2 or features.shape[1] != self.dim or len(features) != len(numbers):
            raise ValueError(f"features {tuple(features.shape)} of {len(numbers)} pictures: (b, {self.dim}) is wanted")
        wrong = numbers[~torch.isfinite(features).all(1).cpu()].tolist()
        if wrong:
            more = f" and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
            raise ValueError("features: not finite for the pictures of number"
                             f" {', '.join(map(str, wrong[:_NAMED]))}{more}")
        held = features.detach().cpu(), numbers.cpu().long()
        # A group's products are d x d whatever the number of rows: small batches one by one would cost seconds each.
        self._waiting.append(held)
        if sum(len(rows) for _, rows in self._waiting) >= _ROWS:
            self._settle()
        if self.keep:
            self._features.append(held[0].float())
            self._numbers.append(held[1])

    def _settle(self) -> None:
        if self._waiting:
            features, numbers = (torch.cat(parts) for parts in zip(*self._waiting, strict=True))
            self._waiting = []
            for i, group in enumerate(self._groups):
                group.update(features[numbers % len(self._groups) == i])

    @property
    def groups(self) -> list[Moments]:
        """Moments of each group, of everything that was given."""
        self._settle()
        return self._groups

    def merge(self, other: Statistics) -> None:
        """Takes in what `other`, of the same form, has seen."""
        if (other.dim, other.keep, len(other.groups)) != (self.dim, self.keep, len(self.groups)):
            raise ValueError(f"statistics of width {other.dim}, keep={other.keep} and {len(other.groups)} groups do not"
                             f" go with {self.dim}, {self.keep} and {len(self.groups)}")
        for mine, theirs in zip(self.groups, other.groups, strict=True):
            mine.merge(theirs)
        self._features += other._features
        self._numbers += other._numbers

    @property
    def count(self) -> int:
        return sum(group.count for group in self.groups)

    def total(self) -> Moments:
        return self.without(None)

    def without(self, left_out: int | None) -> Moments:
        """Moments of all groups but one."""
        found = Moments(self.dim)
        for i, group in enumerate(self.groups):
            if i != left_out:
                found.merge(group)
        return found

    @property
    def features(self) -> Float[Tensor, "n d"]:
        """In the order of the pictures' numbers."""
        if not self.keep:
            raise ValueError("features: keep=False kept none")
        if not self._features:
            return torch.zeros(0, self.dim)
        return torch.cat(self._features)[torch.cat(self._numbers).argsort()]

    def state(self) -> dict[str, Tensor]:
        """Everything as tensors, exact."""
        empty = torch.zeros(0, self.dim), torch.zeros(0, dtype=torch.long)
        return {
            "counts": torch.tensor([group.count for group in self.groups]),
            "means": torch.stack([group.mean for group in self.groups]),
            "products": torch.stack([group.products for group in self.groups]),
            "features": torch.cat([empty[0], *self._features]), "numbers": torch.cat([empty[1], *self._numbers]),
            "keep": torch.tensor(self.keep),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Statistics:
        found = cls(state["means"].shape[1], bool(state["keep"]), len(state["counts"]))
        for i, group in enumerate(found.groups):
            group.count = int(state["counts"][i])
            group.mean, group.products = state["means"][i].clone(), state["products"][i].clone()
        if len(state["numbers"]):
            found._features, found._numbers = [state["features"].clone()], [state["numbers"].clone()]
        return found


def frechet(fake: Statistics, real: Statistics, interval: bool = True) -> Interval:
    """The Fréchet distance of all of `fake` from all of `real`, 1.96 standard errors either way.

    Without `interval`, with fewer than two groups of pictures, or a group that leaves fewer than two, both ends are the
    value. The error is that of the drawn pictures alone. The bias of small numbers is in the value, not in the
    interval.
    """
    reference = real.total()
    value = frechet_distance(fake.total(), reference)
    parts = [fake.without(i) for i, group in enumerate(fake.groups) if group.count and interval]
    if len(parts) < 2 or min(part.count for part in parts) < 2:
        return Interval(value, value, value)
    by = root(reference.covariance)
    apart = torch.tensor([quick_distance(part, reference, by) for part in parts], dtype=torch.float64)
    error = float(((apart - apart.mean()).square().sum() * (len(apart) - 1) / len(apart)).sqrt())
    return Interval(value, max(0.0, value - 1.96 * error), value + 1.96 * error)
