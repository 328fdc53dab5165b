from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from t2i.metrics.reconstruction import CodebookUsage, psnr, ssim


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    target = torch.nn.functional.interpolate(torch.rand(3, 3, 8, 10), scale_factor=4, mode="bilinear") * 2 - 1
    return (target + 0.1 * torch.randn_like(target)).clamp(-1, 1), target


def test_psnr() -> None:
    image, target = pictures()
    for i, value in enumerate(psnr(image, target)):
        torch.testing.assert_close(value, peak_signal_noise_ratio(image[i], target[i], data_range=2.0))
    assert psnr(target + 0.2, target).tolist() == pytest.approx([20] * 3, abs=1e-3)
    assert psnr(target, target).tolist() == [100] * 3


def test_ssim() -> None:
    image, target = pictures()
    _, full = structural_similarity_index_measure(
        image * 0.5 + 0.5, target * 0.5 + 0.5, data_range=1.0, reduction="none", return_full_image=True
    )
    # torchmetrics averages over reflected borders too; the paper, and we, only where the window fits.
    wanted = full[..., 5:-5, 5:-5].mean((1, 2, 3))
    torch.testing.assert_close(ssim(image, target), wanted, atol=1e-5, rtol=0)
    assert ssim(target, target).tolist() == pytest.approx([1] * 3)
    with pytest.raises(ValueError, match="8x8: SSIM needs at least 11"):
        ssim(image[..., :8, :8], target[..., :8, :8])


def test_codebook_usage() -> None:
    usage = CodebookUsage((8,))
    assert usage.compute() == {"usage": 0, "perplexity": 0}
    usage.update(torch.tensor([[[0, 1], [2, 3]]]))
    usage.update(torch.tensor([[[3, 2], [1, 0]]]))
    assert usage.compute() == {"usage": 0.5, "perplexity": pytest.approx(4)}
    usage.update(torch.full((8,), 7))
    entropy = 0.5 * math.log(2) + 4 * 0.125 * math.log(8)
    assert usage.compute() == {"usage": 5 / 8, "perplexity": pytest.approx(math.exp(entropy))}
    usage = CodebookUsage((8,))
    usage.update(torch.zeros(5, dtype=torch.long))
    assert usage.compute()["perplexity"] == pytest.approx(1)


def test_codebook_usage_of_codes_in_parts() -> None:
    usage = CodebookUsage((2, 4))
    usage.update(torch.tensor([0, 1, 2, 3]))
    assert usage.compute() == {"usage_1": 0.5, "perplexity_1": pytest.approx(1),
                               "usage_2": 1.0, "perplexity_2": pytest.approx(4)}  # fmt: skip
