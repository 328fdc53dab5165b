"""Inception's features from a file in the published format, with random weights, against both libraries' own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchmetrics.image.fid import NoTrainInceptionV3

from t2i.metrics.inception import Inception, clean_resize


class Blank(FeatureExtractorInceptionV3):
    """The net without a file: its constructor reads one."""

    def load_state_dict(self, state: dict[str, torch.Tensor], *more: object, **named: object) -> None:  # type: ignore[override]
        return None


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("inception")
    torch.save({}, folder / "empty.pth")
    torch.manual_seed(0)
    net = Blank("x", ["2048"], feature_extractor_weights_path=str(folder / "empty.pth"))
    for module in net.modules():  # the default initialisation lets 48 layers fade to 1e-8
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    path = folder / "weights.pth"
    torch.save({name: value.contiguous() for name, value in net.state_dict().items()}, path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def pictures(n: int = 3, side: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, side, side, 3), np.uint8))


def test_equals_torch_fidelity_and_torchmetrics(weights: tuple[Path, str]) -> None:
    path, sha256 = weights
    held = pictures()
    images = held.permute(0, 3, 1, 2).contiguous()
    theirs = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(path))
    ours = Inception(path, resize="tensorflow", sha256=sha256)
    torch.testing.assert_close(ours(held), theirs(images)[0], rtol=0, atol=0)
    metrics = NoTrainInceptionV3("x", ["2048"], feature_extractor_weights_path=str(path), antialias=True)
    with torch.no_grad():
        wanted = metrics(images).reshape(3, -1)
    found = Inception(path, resize="antialias", sha256=sha256)
    torch.testing.assert_close(found(held), wanted, rtol=1e-4, atol=1e-5)
    assert found.name == "inception" and found.protocol["sha256"] == sha256
    # A picture's features do not depend on its batch, nor on autocast; and the filter matters.
    with torch.autocast("cpu", torch.bfloat16):
        alone = torch.cat([found(held[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, found(held), rtol=1e-4, atol=1e-5)
    clean = Inception(path, sha256=sha256)(held)
    assert clean.shape == (3, 2048) and bool(torch.isfinite(clean).all())
    assert float((clean - found(held)).abs().max()) > 1e-4


def test_clean_resize_is_not_rounded_and_keeps_299() -> None:
    same = np.random.default_rng(0).integers(0, 256, (299, 299, 3), np.uint8)
    np.testing.assert_array_equal(clean_resize(same), same.astype(np.float32))
    small = clean_resize(same[:37, :41])
    assert small.shape == (299, 299, 3) and small.dtype == np.float32
    assert float(np.abs(small - small.round()).max()) > 0.1
    assert small.min() >= 0 and small.max() <= 255
    flat = clean_resize(np.full((600, 500, 3), 77, np.uint8))
    np.testing.assert_allclose(flat, 77, atol=1e-3)


def test_dfgans_variant(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torchvision.models.inception_v3(weights=None, aux_logits=True, transform_input=False, init_weights=False)
    net.eval()
    path = tmp_path / "inception.pth"
    torch.save(net.state_dict(), path)
    found = Inception(path, kind="torchvision", sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    held = pictures(2)
    captured: list[torch.Tensor] = []
    net.avgpool.register_forward_hook(lambda module, given, out: captured.append(out.flatten(1)))
    with torch.no_grad():
        x = torch.nn.functional.interpolate(held.permute(0, 3, 1, 2).float() / 255, (299, 299), mode="bilinear")
        net(2 * x - 1)
    torch.testing.assert_close(found(held), captured[0])
    assert found.name == "inception_torchvision"


def test_what_is_refused(weights: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sha256 = weights
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
    with pytest.raises(ValueError, match=rf"weights-inception-2015-12-05-6726825d\.pth or .*{published}.*torch hub"):
        Inception()
    with pytest.raises(ValueError, match=rf"is not the Inception.*sha256 is {sha256}.*{published}"):
        Inception(path)
    with pytest.raises(ValueError, match=r"inception_v3_google-0cc3c7bd\.pth.*none at inception=.*nowhere"):
        Inception(tmp_path / "nowhere", kind="torchvision")
    junk = tmp_path / "junk.pth"
    junk.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="is a web page|cannot be read|cut off"):
        Inception(junk, sha256=hashlib.sha256(junk.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match="resize=bicubic"):
        Inception(path, sha256=sha256, resize="bicubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uint8 \(n, h, w, 3\)"):
        Inception(path, sha256=sha256)(torch.zeros(1, 3, 8, 8))
    cached = tmp_path / "hub/checkpoints/weights-inception-2015-12-05-6726825d.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(path.read_bytes())
    assert Inception(sha256=sha256).file == cached
