import math

import pytest
import torch

from t2i.losses.contrastive import caption_groups, contrastive, retrieval


def test_orthonormal_pairs_have_the_closed_form():
    n, scale = 5, 3.0
    loss = contrastive(torch.eye(n), torch.eye(n), scale)
    assert loss.item() == pytest.approx(math.log(1 + (n - 1) * math.exp(-scale)), abs=1e-6)


def test_indistinguishable_pairs_cost_log_n_and_the_length_of_features_does_not_matter():
    ones = torch.ones(7, 4)
    assert contrastive(ones, 9 * ones, 100.0).item() == pytest.approx(math.log(7), abs=1e-5)


def test_equal_captions_are_not_negatives():
    ones = torch.ones(4, 3)
    # Two groups of two: each row sees itself and the two rows of the other group.
    loss = contrastive(ones, ones, 1.0, torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(3), abs=1e-6)
    assert contrastive(ones, ones, 1.0, torch.zeros(4, dtype=torch.long)).item() == 0


def test_gradient_is_finite_with_masked_pairs():
    image, text = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    contrastive(image, text, 10.0, torch.tensor([0, 0, 1, 2])).backward()
    assert image.grad.isfinite().all() and text.grad.isfinite().all()


def test_groups_compare_captions_as_the_tokenizer_reads_them():
    assert caption_groups(["a", "B", "A", "b", "c"]).tolist() == [0, 1, 0, 1, 4]


def test_retrieval_counts_hits_and_ties():
    image = torch.eye(4)
    text = torch.eye(4)[[1, 0, 2, 3]]
    assert retrieval(image, text) == {"text_to_image": 0.5, "image_to_text": 0.5}
    assert retrieval(image, text, torch.tensor([0, 0, 1, 2])) == {"text_to_image": 1.0, "image_to_text": 1.0}
    big = torch.randn(50, 8)
    assert retrieval(big, big, rows=7) == {"text_to_image": 1.0, "image_to_text": 1.0}
    with pytest.raises(ValueError, match="0 pairs"):
        retrieval(image[:0], text[:0])
