"""R-precision where captions cannot be told apart, which rounding must not decide."""

from __future__ import annotations

import pytest
import torch

from t2i.metrics.r_precision import r_precision


@pytest.mark.parametrize("d", [8, 64, 512])
def test_a_text_tower_that_gives_all_captions_one_embedding_scores_nothing(d: int) -> None:
    generator = torch.Generator().manual_seed(d)
    image = torch.randn(200, d, generator=generator)
    text = torch.randn(1, d, generator=generator).repeat(200, 1)
    assert r_precision(image, text, torch.arange(200), 0).value == 0.0
    noisy = text + 1e-8 * torch.randn(200, d, generator=generator)  # as from another batch
    assert r_precision(image, noisy, torch.arange(200), 0).value == 0.0


def test_distractors_are_a_function_of_seed_and_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(300, 8, generator=generator), torch.randn(300, 8, generator=generator)
    state = torch.random.get_rng_state()
    found = r_precision(image, text, torch.arange(300), 1, 5)
    assert found == r_precision(image, text, torch.arange(300), 1, 5)
    assert any(found != r_precision(image, text, torch.arange(300), seed, 5) for seed in (2, 3))
    assert torch.equal(state, torch.random.get_rng_state())


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="2 pictures, 3 captions, 3 groups"):
        r_precision(torch.eye(3)[:2], torch.eye(3), torch.arange(3), 0, 2)


def test_features_that_are_not_finite_are_no_misses() -> None:
    image = torch.eye(3)
    image[1, 0] = float("nan")
    with pytest.raises(ValueError, match="1 of 3 pictures or captions have some that are not finite"):
        r_precision(image, torch.eye(3), torch.arange(3), 0, 2)
