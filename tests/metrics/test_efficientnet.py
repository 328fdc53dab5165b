from __future__ import annotations

import numpy as np
import torch

from t2i.metrics.efficientnet import EfficientNetFeatures
from t2i.metrics.statistics import Statistics, frechet


def test_features_are_those_before_the_classifier_and_a_set_is_no_way_from_itself() -> None:
    net = EfficientNetFeatures()
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8))
    found = net(pictures)
    assert found.shape == (12, net.dim) and found.isfinite().all()
    torch.testing.assert_close(net(pictures[3:4]), found[3:4], atol=1e-4, rtol=1e-3)
    large = torch.rand(1, 3, 224, 224) * 2 - 1
    theirs = net.net.net._avg_pooling(net.net.net.extract_features((large * 127.5 + 0.5) / 128)).flatten(1)
    torch.testing.assert_close(net.net.pooled(large), theirs, atol=1e-5, rtol=1e-4)
    one, other = Statistics(64), Statistics(64)  # of as many, for time
    one.update(found[:, :64], torch.arange(12))
    other.update(net(255 - pictures)[:, :64], torch.arange(12))
    assert frechet(one, one).value < 1e-6 < 1e-3 < frechet(one, other).value
