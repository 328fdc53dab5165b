"""Fréchet distance against closed forms and scipy's matrix root; fd_clip on a tiny CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from t2i.metrics.clip_score import CLIPScorer
from t2i.metrics.frechet import Moments, factor, frechet_distance, gaussian_distance, root
from t2i.models.clip import CLIP


def of(features: torch.Tensor, *sizes: int) -> Moments:
    found = Moments(features.shape[1])
    for part in features.split(list(sizes) or [len(features)]):
        found.update(part)
    return found


def random(n: int, d: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + seed


def test_commuting_gaussians_have_a_closed_form() -> None:
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    a, b = torch.arange(1.0, 7).double(), torch.tensor([0.0, 9, 4, 0.25, 1, 30]).double()
    mean, mean2 = torch.zeros(6).double(), torch.arange(6).double()
    wanted = float(mean2.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    found = gaussian_distance(mean, (basis * a) @ basis.T, mean2, (basis * b) @ basis.T)
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("d", [1, 3, 24])
def test_equals_the_matrix_root_of_scipy(d: int) -> None:
    a, b = random(200, d, 1), random(150, d, 2)
    first, second = np.atleast_2d(np.cov(a.numpy().T)), np.atleast_2d(np.cov(b.numpy().T))
    step = (a.mean(0) - b.mean(0)).numpy()
    wanted = step @ step + np.trace(first) + np.trace(second) - 2 * np.trace(sqrtm(first @ second).real)
    assert frechet_distance(of(a), of(b)) == pytest.approx(float(wanted), rel=1e-8)


def test_no_distance_from_itself_and_symmetry() -> None:
    a, b = of(random(300, 16, 3)), of(random(300, 16, 4))
    scale = float(a.covariance.trace())
    assert 0 <= frechet_distance(a, a) < 1e-12 * scale
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_fewer_features_than_dimensions_are_finite_and_exact() -> None:
    a = of(random(5, 40, 5))
    assert 0 <= frechet_distance(a, a) < 1e-9 * float(a.covariance.trace())
    moved = Moments(40)
    moved.update(random(5, 40, 5) + 2.0)
    assert frechet_distance(a, moved) == pytest.approx(4.0 * 40, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(300, 300), (20, 300), (300, 20), (20, 30), (40, 41), (41, 42), (2, 300)])
def test_any_factor_gives_what_symmetric_roots_give(n: int, m: int) -> None:
    a, b = of(random(n, 40, 7)), of(random(m, 40, 8))
    found = factor(a.covariance)
    assert found.shape == (40, min(n - 1, 40))  # of the covariance's rank
    torch.testing.assert_close(found @ found.T, a.covariance, rtol=1e-9, atol=1e-9)
    step = a.mean - b.mean
    common = torch.linalg.svdvals(root(a.covariance) @ root(b.covariance)).sum()
    wanted = step @ step + a.covariance.trace() + b.covariance.trace() - 2 * common
    assert frechet_distance(a, b) == pytest.approx(float(wanted), rel=1e-11)
    assert frechet_distance(a, a) < 1e-12 * float(a.covariance.trace())


def test_features_that_do_not_vary_are_points() -> None:
    still = of(torch.full((5, 3), 2.0))
    assert factor(still.covariance).shape == (3, 0)
    assert frechet_distance(still, still) == 0.0
    assert frechet_distance(still, of(torch.full((4, 3), 4.0))) == pytest.approx(12.0)


def test_pieces_equal_the_whole_even_far_from_zero() -> None:
    features = random(101, 7, 6) + 1e6
    whole, pieces = of(features), of(features, 1, 60, 40)
    merged = of(features[:30])
    merged.merge(of(features[30:]))
    merged.merge(Moments(7))
    for other in (pieces, merged):
        assert other.count == 101
        torch.testing.assert_close(other.mean, whole.mean, rtol=1e-13, atol=0)
        torch.testing.assert_close(other.covariance, whole.covariance, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(whole.covariance, torch.from_numpy(np.cov(features.numpy().T)), rtol=1e-7, atol=1e-7)


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 rows"):
        of(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]))
    with pytest.raises(ValueError, match=r"\(b, 3\) is wanted"):
        Moments(3).update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="at least 2"):
        frechet_distance(of(torch.zeros(1, 2)), of(torch.zeros(3, 2)))
    with pytest.raises(ValueError, match="do not go with"):
        Moments(3).merge(Moments(2))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> CLIPScorer:
    torch.manual_seed(0)
    model = CLIP(image_size=16, patch_size=8, embed_dim=8, vocab_size=270, context_length=16, width=16, num_heads=2,
                 num_layers=1, text_width=16, text_layers=1, text_heads=2)
    model.prepare(["a red circle", "two blue squares"])
    folder: Path = tmp_path_factory.mktemp("clip") / "hf"
    model.export(folder)
    return CLIPScorer(str(folder))


def test_fd_clip_tells_sets_apart_and_takes_chunks(clip: CLIPScorer) -> None:
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3), np.uint8))
    dark = pictures // 3
    features = clip(pictures)
    assert features.shape == (40, 8)
    assert features.dtype == torch.float32
    unit = clip.embed_image(pictures.permute(0, 3, 1, 2).float() / 127.5 - 1)
    torch.testing.assert_close(torch.nn.functional.normalize(features, dim=-1), unit)
    assert not torch.allclose(features.norm(dim=1), torch.ones(40))
    real = of(features)
    same = frechet_distance(of(torch.cat([clip(part) for part in pictures.split(7)])), real)
    other = frechet_distance(of(clip(dark.numpy())), real)
    assert same < 1e-6 * other
    with pytest.raises(ValueError, match="uint8"):
        clip(pictures.float())
