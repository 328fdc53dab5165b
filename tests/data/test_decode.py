"""From a file's bytes to pixels: every mode and format, faults named, and both decoders alike."""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from t2i.data import decode
from t2i.data.decode import capture_stderr, fit, read_pixels


def decode_image(path: Path, side: int) -> np.ndarray:
    return decode.decode_image(path.read_bytes(), path, side).permute(1, 2, 0).numpy()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def test_a_broken_picture_is_named_wherever_the_damage_is(root) -> None:
    root.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    for suffix in ("png", "jpg", "gif", "webp", "bmp"):
        path = root / f"broken.{suffix}"
        Image.fromarray(noise).save(path)
        whole = path.read_bytes()
        for cut in (0, 4, 20, len(whole) // 2):
            path.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match=rf"broken.{suffix} cannot be read as a picture"):
                decode_image(path, 8)
    path = root / "broken.png"
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    named = 0
    for at in range(8, len(whole), 7):  # a changed byte is named, or harmless
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
        try:
            decode_image(path, 8)
        except ValueError as error:
            named += "broken.png cannot be read as a picture" in str(error)
        else:
            named += 1
    assert named == len(range(8, len(whole), 7))


def test_transparency_is_flattened_on_white(root) -> None:
    root.mkdir()
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))  # red that nobody sees
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    half = Image.new("LA", (8, 8), (0, 128))
    for name, picture in (("rgba.png", image), ("la.png", half), ("p.gif", image)):
        picture.save(root / name)
    for name in ("rgba.png", "p.gif"):
        pixels = decode_image(root / name, 8)
        assert (pixels[:, 7] == 255).all() and (pixels[:, 0] == (0, 0, 255)).all(), name
    assert abs(int(decode_image(root / "la.png", 8)[0, 0, 0]) - 127) <= 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "RGBA"])
def test_every_mode_becomes_rgb_bytes(root, mode: str) -> None:
    root.mkdir()
    path = root / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (10, 10), (255, 255, 255)).convert(mode).save(path)
    pixels = decode_image(path, 8)
    assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8 and (pixels == 255).all()


@pytest.mark.parametrize("size", [(30, 10), (10, 30)])
def test_the_short_side_fits_and_the_middle_is_kept(root, size) -> None:
    root.mkdir()
    image = Image.new("RGB", size, (255, 0, 0))
    left, top = (size[0] - 10) // 2, (size[1] - 10) // 2
    image.paste((0, 255, 0), (left - 3 * (left > 0), top - 3 * (top > 0), left + 10 + 3, top + 10 + 3))
    image.save(root / "x.png")
    for side in (5, 10, 20):
        pixels = decode_image(root / "x.png", side)
        assert pixels.shape == (side, side, 3) and (pixels == (0, 255, 0)).all()


def test_a_photograph_stands_as_the_camera_was_held(root) -> None:
    root.mkdir()
    image = Image.new("RGB", (8, 8), (255, 255, 255))
    image.paste((0, 0, 0), (0, 0, 4, 8))  # dark on the left, and turned by 90 degrees: dark on top
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(root / "x.png", exif=exif)
    pixels = decode_image(root / "x.png", 8)
    assert (pixels[:4] == 0).all() and (pixels[4:] == 255).all()


def photo(size: tuple[int, int] = (90, 60)) -> Image.Image:
    y, x = np.mgrid[: size[1], : size[0]]
    rng = np.random.default_rng(0)
    waves = [np.sin(x / a + b) * np.cos(y / b) for a, b in ((9, 7), (5, 11), (13, 4))]
    pixels = np.stack(waves, -1) * 100 + 128 + rng.normal(0, 4, (*x.shape, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options) -> bytes:
    held = io.BytesIO()
    image.save(held, "JPEG", **options)
    return held.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_both_decoders_give_the_same_pixels(options, monkeypatch) -> None:
    data = jpeg(photo(), quality=92, **options)
    ours = decode.decode_image(data, "x", 32, square=False)
    monkeypatch.setattr(decode, "_decode_jpeg", None)
    theirs = decode.decode_image(data, "x", 32, square=False)
    assert ours.shape == theirs.shape == (3, 32, 48)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_four_colour_jpegs(mode: str) -> None:
    data = jpeg(Image.new("RGB", (12, 12), (200, 200, 200)).convert(mode))
    assert (read_pixels(data, "x").float() - 200).abs().max() <= 2


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    held = io.BytesIO()
    Image.fromarray(np.full((8, 8), 0x8000, np.uint16)).save(held, "PNG")
    assert read_pixels(held.getvalue(), "x").unique().tolist() == [128]


def test_the_first_of_several_frames() -> None:
    held = io.BytesIO()
    Image.new("RGB", (8, 8), (255, 0, 0)).save(held, "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8))])
    assert read_pixels(held.getvalue(), "x")[:, 0, 0].tolist() == [255, 0, 0]


def test_turned_jpegs_stand_upright(monkeypatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = jpeg(photo((40, 20)), exif=exif)
    assert read_pixels(data, "x").shape == (3, 40, 20)
    ours = read_pixels(data, "x").float()
    monkeypatch.setattr(decode, "_decode_jpeg", None)
    assert (ours - read_pixels(data, "x").float()).abs().mean() < 1


def test_cut_jpegs_are_refused_with_their_name() -> None:
    data = jpeg(photo())
    for cut in (0, 2, 100, len(data) // 2, len(data) - 2):
        with pytest.raises(ValueError, match="beach.jpg cannot be read as a picture"):
            read_pixels(data[:cut], "beach.jpg")


@pytest.mark.parametrize("size", [(1, 500), (500, 1), (1, 1)])
def test_a_picture_of_one_pixel_width_takes_little_memory(size) -> None:
    held = io.BytesIO()
    Image.new("RGB", size, (9, 9, 9)).save(held, "PNG")
    for square in (True, False):
        image = decode.decode_image(held.getvalue(), "x", 16, square)
        assert image.unique().tolist() == [9] and min(image.shape[1:]) == 16 and max(image.shape[1:]) <= 32


def test_fit_leaves_what_fits_as_it_is() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
    assert torch.equal(fit(image, 8, True), image)
    assert fit(torch.zeros(3, 8, 13, dtype=torch.uint8), 8, False).shape == (3, 8, 13)


def test_words_of_libjpeg_are_told_with_the_name_of_the_picture(capfd) -> None:
    """Side by side in threads, each picture its own; the terminal sees none of libjpeg's, and all of anybody else's."""
    whole, damaged = jpeg(photo()), bytearray(jpeg(photo()))
    damaged[-300:-290] = b"\xff\x00" * 5
    damaged_lines: list[str] = []

    def read(number: int) -> None:
        read_pixels(bytes(damaged) if number % 8 == 3 else whole, f"{number}.jpg", damaged_lines)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(64)))
    assert sorted(line.split(" is damaged and may look wrong: ")[0] for line in damaged_lines) == sorted(
        f"{number}.jpg" for number in range(3, 64, 8))
    assert all("Corrupt JPEG data: " in line for line in damaged_lines)
    with pytest.warns(UserWarning, match=r"beach\.jpg is damaged and may look wrong: Corrupt JPEG data"):
        read_pixels(bytes(damaged), "beach.jpg")
    assert capfd.readouterr().err == ""
    first = [os.write]  # another's words, that the work does not say again

    def work() -> int:
        return first.pop()(2, b"ours\n") if first else 0

    assert capture_stderr(work) == (5, "") and capfd.readouterr().err == "ours\n"
    with pytest.raises(KeyError):
        capture_stderr(lambda: {}["x"])
    os.write(2, b"as before\n")
    assert capfd.readouterr().err == "as before\n"


def test_postscript_is_not_run() -> None:
    with pytest.raises(ValueError, match=r"x\.jpg cannot be read as a picture: PostScript is a program"):
        read_pixels(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n", "x.jpg")
