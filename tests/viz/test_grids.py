"""Captioned grids, comparison rows, atomic writes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.viz import grids
from t2i.viz.fonts import length


def test_to_uint8_ends_and_middle() -> None:
    image = torch.tensor([-1.0, 0.0, 1.0, 7.0]).reshape(1, 1, 2, 2).expand(1, 3, 2, 2)
    assert grids.to_uint8(image)[0, :, :, 0].tolist() == [[0, 128], [255, 255]]


def test_grid_enlarges_by_whole_pixels_and_places_rows_and_columns() -> None:
    colours = torch.tensor([[1.0, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    images = colours[:, :, None, None].expand(3, 3, 16, 16)
    page = grids.grid(images, columns=2)
    assert page.size == (2 * (128 + 8) + 8, 2 * (128 + 8) + 8)
    assert page.getpixel((9, 9)) == (255, 0, 0) and page.getpixel((144 + 127, 9)) == (0, 255, 0)
    assert page.getpixel((9, 145)) == (0, 0, 255) and page.getpixel((150, 150)) == (255, 255, 255)


@pytest.mark.parametrize("text", ["", "écoute ☂ 🐶 日本", "x" * 300, "a red circle to the left of " * 10, "a\nb"])
def test_any_caption_is_drawn_inside_its_width(text: str) -> None:
    lines = grids.wrap(text, 128)
    assert len(lines) <= 4 and all(length(line) <= 128 for line in lines)
    assert grids.grid(torch.zeros(2, 3, 8, 8), [text, "short"]).width == 2 * 136 + 8


def test_rows_hold_a_picture_a_column_in_a_common_size() -> None:
    small, large = -torch.ones(3, 3, 8, 8), np.full((3, 256, 256, 3), 255, np.uint8)
    page = grids.rows([("input", small), ("a model", large)], ["one", "two", "three"])
    assert page.height > 2 * 256 and page.width > 3 * 256
    assert page.getpixel((page.width - 20, 100)) == (0, 0, 0)


def test_wrong_counts_are_named() -> None:
    with pytest.raises(ValueError, match="1 captions for 2 images"):
        grids.grid(torch.zeros(2, 3, 8, 8), ["one"])
    with pytest.raises(ValueError, match="input: 2, other: 1"):
        grids.rows([("input", torch.zeros(2, 3, 8, 8)), ("other", torch.zeros(1, 3, 8, 8))])


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = grids.save(Image.new("RGB", (4, 4), "red"), tmp_path / "new" / "a.png")
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        grids.save(Image.new("RGB", (4, 4), "blue"), path)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.png"]
