from __future__ import annotations

import math

import pytest
import torch

from t2i.losses.cutmix import consistency, cutmix_masks, mix, pixel_loss_by_mask, ramp
from t2i.losses.gan import hinge_d, vanilla_d


def box(mask: torch.Tensor) -> tuple[int, int, int, int]:
    """Top, left, height and width of the zeros, which must fill it."""
    rows, columns = (mask[0] == 0).nonzero().T
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) + 1 - top, int(columns.max()) + 1 - left
    assert len(rows) == height * width
    return top, left, height, width


@pytest.mark.parametrize("size", [1, 5, 16, 64])
def test_area_is_the_share_within_half_a_pixel_of_the_side(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shares, corners = torch.rand(200, generator=generator), torch.rand(200, 2, generator=generator)
    masks = cutmix_masks(shares, corners, size)
    assert masks.shape == (200, 1, size, size) and set(masks.unique().tolist()) <= {0.0, 1.0}
    for mask, share in zip(masks, shares.tolist(), strict=True):
        _, _, height, width = box(mask)
        side = math.sqrt(1 - share) * size
        assert height == width and (abs(height - side) <= 0.5 + 1e-4 or (height == 1 and side < 0.5))
        assert abs(mask.mean().item() - share) <= (side + 0.25) / size**2 + 1e-4 or side < 0.5
    if size == 64:
        assert masks.mean().item() == pytest.approx(shares.mean().item(), abs=0.005)


def test_corners_reach_every_place_and_none_outside() -> None:
    last = math.nextafter(1.0, 0.0)  # float32 rounds it to 1
    corners = torch.tensor([[0.0, 0.0], [last, last], [0.0, last], [0.5, 0.25]])
    masks = cutmix_masks(torch.full((4,), 0.75), corners, 8)
    assert [box(m) for m in masks] == [(0, 0, 4, 4), (4, 4, 4, 4), (0, 4, 4, 4), (2, 1, 4, 4)]
    # Side 2 of 4: three places, each for a third of the corners.
    corners = torch.linspace(0, 1, 301)[:-1, None].expand(-1, 2)
    tops = [box(m)[0] for m in cutmix_masks(torch.full((300,), 0.75), corners, 4)]
    assert [tops.count(i) for i in range(3)] == pytest.approx([100, 100, 100], abs=1)


def test_edges_of_the_share() -> None:
    none, whole = cutmix_masks(torch.tensor([1.0, 0.0]), torch.rand(2, 2), 8)
    assert none.sum() == 63 and whole.sum() == 0


def test_mix() -> None:
    mask = torch.tensor([[[[1.0, 0.0]]]])
    real, fake = torch.full((1, 3, 1, 2), 2.0, requires_grad=True), torch.full((1, 3, 1, 2), -1.0, requires_grad=True)
    mixed = mix(mask, real, fake)
    assert mixed[0, :, 0].tolist() == [[2.0, -1.0]] * 3
    mixed.sum().backward()
    assert real.grad[0, 0, 0].tolist() == [1, 0] and fake.grad[0, 0, 0].tolist() == [0, 1]


def test_consistency() -> None:
    mask = torch.tensor([[[[1.0, 0.0]]]])
    real, fake = torch.tensor([[[[1.0, 9.0]]]]), torch.tensor([[[[9.0, -2.0]]]])
    assert consistency(torch.tensor([[[[0.0, 1.0]]]]), real, fake, mask).item() == (1 + 9) / 2
    assert consistency(torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16), real, fake, mask).dtype == torch.float32


def test_consistency_of_a_pixelwise_judge_is_zero() -> None:
    torch.manual_seed(0)
    pixelwise, local = torch.nn.Conv2d(3, 1, 1), torch.nn.Conv2d(3, 1, 3, padding=1)
    real, fake = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
    mask = cutmix_masks(torch.tensor([0.2, 0.4, 0.6, 0.8]), torch.rand(4, 2), 16)
    found = [consistency(d(mix(mask, real, fake)), d(real), d(fake), mask).item() for d in (pixelwise, local)]
    assert found[0] < 1e-12 and found[1] > 1e-3


def test_pixel_loss_by_mask() -> None:
    pixels, mask = torch.tensor([[[[2.0, 0.5, -3.0, 0.5]]]]), torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]])
    assert pixel_loss_by_mask(pixels, mask, "hinge").item() == (0 + 0.5 + 0 + 1.5) / 4
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    torch.testing.assert_close(pixel_loss_by_mask(pixels, mask, "bce"), bce(pixels, mask))
    # Half real, half generated: the losses of whole pictures.
    torch.testing.assert_close(pixel_loss_by_mask(pixels, mask, "hinge"), hinge_d(pixels[..., :2], pixels[..., 2:]))
    torch.testing.assert_close(pixel_loss_by_mask(pixels, mask, "bce"), vanilla_d(pixels[..., :2], pixels[..., 2:]))
    nothing = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16)
    assert pixel_loss_by_mask(nothing, mask, "hinge").item() == 1
    assert pixel_loss_by_mask(nothing, mask, "bce").item() == pytest.approx(math.log(2))


def test_discriminator_wants_real_pixels_up_and_generated_down() -> None:
    mask = cutmix_masks(torch.tensor([0.5]), torch.tensor([[0.3, 0.6]]), 8)
    for kind in ("hinge", "bce"):
        pixels = torch.zeros(1, 1, 8, 8, requires_grad=True)
        pixel_loss_by_mask(pixels, mask, kind).backward()
        assert ((pixels.grad < 0) == (mask == 1)).all() and (pixels.grad != 0).all()


def test_ramp() -> None:
    assert [ramp(step, 4) for step in (0, 1, 2, 4, 100)] == [0, 0.125, 0.25, 0.5, 0.5]
    assert ramp(0, 0) == 0.5 and ramp(5, 10, most=1.0) == 0.5
