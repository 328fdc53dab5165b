from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from t2i.nets.patchgan import PatchGAN

GOLDEN = Path(__file__).parents[1] / "golden" / "patchgan_tiny.safetensors"
# The reference is one Sequential: convolutions and norms by their place in it.
_NAMES = {
    "0": "stem",
    "2": "convs.0",
    "3": "norms.0",
    "5": "convs.1",
    "6": "norms.1",
    "8": "convs.2",
    "9": "norms.2",
}
_NAMES["11"] = "head"


def test_reproduces_the_reference() -> None:
    golden = load_file(GOLDEN)
    weights = {}
    for key, value in golden.items():
        if key.startswith("weight/main."):
            place, kind = key.removeprefix("weight/main.").split(".", 1)
            weights[f"{_NAMES[place]}.{kind}"] = value
    net = PatchGAN(channels=8, num_layers=3).eval()
    net.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(net(golden["io/image"]), golden["io/logits"], atol=2e-5, rtol=0)


def test_published_size() -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in PatchGAN().parameters()) == 2_765_633


def test_initial_weights() -> None:
    torch.manual_seed(0)
    net = PatchGAN(channels=32)
    assert abs(net.convs[1].weight.std() - 0.02) < 1e-3 and abs(net.convs[1].weight.mean()) < 1e-3
    assert abs(net.norms[2].weight.mean() - 1) < 0.01 and net.head.bias.abs().max() == 0


def test_three_layers_see_70_pixels() -> None:
    net = PatchGAN(channels=4, norm="none")
    image = torch.randn(1, 3, 128, 128, requires_grad=True)
    net(image)[0, 0, 7, 7].backward()
    seen = image.grad.abs().sum((0, 1, 3)).nonzero()
    assert int(seen.max() - seen.min()) + 1 == 70


def test_without_batch_norm_logits_do_not_depend_on_the_batch() -> None:
    for norm in ("none", "spectral"):
        net = PatchGAN(channels=4, num_layers=2, norm=norm).eval()
        image = torch.randn(3, 3, 16, 16)
        torch.testing.assert_close(net(image)[1:2], net(image[1:2]), atol=1e-6, rtol=1e-5)


def test_spectral_norm_is_one() -> None:
    net = PatchGAN(channels=4, num_layers=2, norm="spectral")
    for _ in range(50):
        net(torch.randn(1, 3, 16, 16))
    net.eval()
    assert torch.linalg.matrix_norm(net.convs[0].weight.flatten(1), 2).item() == pytest.approx(1, abs=1e-3)


def test_errors() -> None:
    with pytest.raises(ValueError, match="norm='instance': one of batch, spectral, none"):
        PatchGAN(norm="instance")  # type: ignore[arg-type]
    net = PatchGAN(channels=4)
    assert net(torch.zeros(1, 3, 24, 24)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"16x24 .* at least 24 pixels"):
        net(torch.zeros(1, 3, 16, 24))
