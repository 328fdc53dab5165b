from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import gaussian_blur

from t2i.losses.perceptual import LPIPS, EfficientNetDistance, VGG16Features

# The heads come with the lpips package, which training needs only for this loss.
lpips_spec = importlib.util.find_spec("lpips")
SHIFT, BLUR = 0.1150, 0.1816  # of `drawing`, by EfficientNetDistance
needs_heads = pytest.mark.skipif(lpips_spec is None, reason="lpips is not installed")


@pytest.fixture(scope="module")
def vgg_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random VGG16 weights (He: features keep their size), with the classifier's keys as in the published
    file.
    """
    torch.manual_seed(0)
    weights = VGG16Features().state_dict()
    for key, value in weights.items():
        if key.endswith("weight"):
            torch.nn.init.kaiming_normal_(value)
    weights |= {f"classifier.{i}.{kind}": torch.zeros(1) for i in (0, 3, 6) for kind in ("weight", "bias")}
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    torch.save(weights, path)
    return str(path)


@pytest.fixture(scope="module")
def loss(vgg_path: str) -> LPIPS:
    return LPIPS(vgg_path=vgg_path)


@needs_heads
def test_zero_for_equal_pictures_and_positive_otherwise(loss: LPIPS) -> None:
    image = torch.rand(2, 3, 32, 48) * 2 - 1
    assert loss(image, image).tolist() == [0, 0]
    near, far = loss(image + 0.01, image), loss(-image, image)
    assert near.shape == (2,) and (near > 0).all() and (far > near).all()


@needs_heads
def test_heads_are_the_files_and_not_negative(loss: LPIPS) -> None:
    assert lpips_spec is not None and lpips_spec.origin is not None
    stored = torch.load(Path(lpips_spec.origin).parent / "weights/v0.1/vgg.pth", map_location="cpu", weights_only=True)
    assert len(loss.heads) == 5
    for i, head in enumerate(loss.heads):
        assert torch.equal(head, stored[f"lin{i}.model.1.weight"]) and (head >= 0).all() and head.sum() > 0


@needs_heads
def test_agrees_with_the_lpips_package(loss: LPIPS) -> None:
    lpips = pytest.importorskip("lpips")
    theirs = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    state = loss.vgg.state_dict()
    own = theirs.net.state_dict()  # slices named sliceN.I with torchvision's I
    theirs.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in own})
    image, target = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted = theirs(image, target).flatten()
    torch.testing.assert_close(loss(image, target), wanted, atol=1e-6, rtol=1e-4)


@needs_heads
def test_frozen_and_finite_where_features_are_zero(loss: LPIPS) -> None:
    assert not any(p.requires_grad for p in loss.parameters())
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    value = loss(image, torch.rand(1, 3, 16, 16))
    assert value.dtype == torch.float32
    value.sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0


@needs_heads
def test_vgg_follows_autocast_and_the_distance_is_in_float32(loss: LPIPS, monkeypatch: pytest.MonkeyPatch) -> None:
    image, target = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    image.requires_grad_()
    exact = loss(image, target)
    (wanted,) = torch.autograd.grad(exact.sum(), image)
    seen: list[torch.dtype] = []
    monkeypatch.setattr(loss.vgg, "forward", lambda x, of=loss.vgg.forward: [seen.append(f.dtype) or f for f in of(x)])
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(image, target)
    (gradient,) = torch.autograd.grad(value.sum(), image)
    assert set(seen) == {torch.bfloat16} and value.dtype == gradient.dtype == torch.float32
    torch.testing.assert_close(value, exact, atol=0, rtol=0.02)
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.3  # 16 layers of random weights amplify rounding


def test_a_missing_file_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"checkpoints/vgg16-397923af.pth .*model.perceptual=null") as found:
        LPIPS()
    assert str(tmp_path) in str(found.value)
    with pytest.raises(ValueError, match=r"there is no file nowhere\.pth\. Put torchvision"):
        LPIPS(vgg_path="nowhere.pth")


def test_wrong_files_are_refused(tmp_path: Path, vgg_path: str) -> None:
    page = tmp_path / "page.pth"
    page.write_text("<html>moved</html>")
    with pytest.raises(ValueError, match="is a web page|cannot be read|cut off"):
        LPIPS(vgg_path=str(page))
    weights = torch.load(vgg_path, weights_only=True)
    weights["features.99.weight"] = weights.pop("features.28.weight")
    other = tmp_path / "other.pth"
    torch.save(weights, other)
    with pytest.raises(ValueError, match=r"missing features.28.weight; unexpected features.99.weight"):
        LPIPS(vgg_path=str(other))
    heads = {f"lin{i}.model.1.weight": torch.randn(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}
    torch.save(heads, tmp_path / "heads.pth")
    with pytest.raises(ValueError, match="must be >= 0"):
        LPIPS(vgg_path=vgg_path, heads_path=str(tmp_path / "heads.pth"))
    torch.save({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / "heads.pth")
    with pytest.raises(ValueError, match="does not hold the LPIPS heads"):
        LPIPS(vgg_path=vgg_path, heads_path=str(tmp_path / "heads.pth"))


@pytest.fixture(scope="module")
def efficientnet() -> EfficientNetDistance:
    return EfficientNetDistance()


def drawing(side: int = 64) -> torch.Tensor:
    """Discs and bars with sharp edges on white, in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    image = torch.ones(3, side, side)
    image[:, (x - 24) ** 2 + (y - 28) ** 2 < 200] = torch.tensor([0.9, -0.4, -0.8])[:, None]
    image[:, (x - 40) ** 2 + (y - 40) ** 2 < 90] = torch.tensor([-0.8, -0.2, 0.7])[:, None]
    image[:, (x // 3 % 2 == 0) & (y > 48) & (y < 56)] = -1
    return image[None]


def test_a_shift_is_nearer_than_a_blur(efficientnet: EfficientNetDistance) -> None:
    image = drawing()
    shifted, blurred = image.roll(1, -1), gaussian_blur(image, [9, 9], [1.0, 1.0])
    assert efficientnet(image, image).tolist() == [0]
    assert efficientnet(shifted, image) < efficientnet(blurred, image)
    assert (shifted - image).square().mean() > (blurred - image).square().mean()
    torch.testing.assert_close(efficientnet(torch.cat([shifted, blurred]), torch.cat([image, image])),
                               torch.tensor([SHIFT, BLUR]), atol=1e-4, rtol=1e-3)


def test_its_gradient_flows_and_its_net_stays_frozen(efficientnet: EfficientNetDistance) -> None:
    image = drawing(40).requires_grad_()
    efficientnet.train()
    with torch.autocast("cpu", torch.bfloat16):
        value = efficientnet(image, torch.ones(1, 3, 40, 40))
    assert value.dtype == torch.float32 and not any(p.requires_grad for p in efficientnet.parameters())
    value.sum().backward()
    assert image.grad.isfinite().all() and image.grad.abs().sum() > 0
    assert not any(module.training for module in efficientnet.efficientnet.modules())
    with pytest.raises(ValueError, match="EfficientNetDistance needs at least 32"):
        efficientnet(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16))


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="efficientnet_lite_pytorch: pip install efficientnet-lite-pytorch"):
        EfficientNetDistance()
