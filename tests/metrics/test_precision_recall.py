"""Precision and recall where features are copies of one another, in any number of rows at a time, and by hand."""

from __future__ import annotations

import pytest
import torch

from t2i.metrics.precision_recall import precision_recall


def test_copies_of_real_features_are_inside_whatever_the_rounding() -> None:
    once = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 10 + 30
    real = once.repeat(6, 1)  # more copies than k: balls of no radius
    found = precision_recall(real[:150], real, 0)
    assert found["precision"].value == found["recall"].value == 1.0
    assert precision_recall(real + 1e-2, real, 0)["precision"].value == 0.0


def test_rows_at_a_time_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(1)
    real, fake = torch.randn(90, 4, generator=generator), torch.randn(70, 4, generator=generator) + 0.7
    assert precision_recall(fake, real, 0, rows=7) == precision_recall(fake, real, 0, rows=1000)


def test_by_hand_on_a_line() -> None:
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])  # to the first neighbour: 1, 1, 1, 8
    fake = torch.tensor([[2.5], [3.5], [-1.5], [18.5]])  # 1, 1, 4, 15
    found = precision_recall(fake, real, 0, k=1)
    # 2.5 and 3.5 within 8 of 10; -1.5 lies 1.5 from 0, and 18.5 lies 8.5 from 10: neither is inside.
    assert found["precision"].value == pytest.approx(0.5)
    # 0, 1 and 2 within 4 of -1.5; 10 within 15 of 18.5.
    assert found["recall"].value == 1.0
    assert found["precision"].low < 0.5 < found["precision"].high
