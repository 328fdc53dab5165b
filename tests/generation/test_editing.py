"""Edits: what stays, what is drawn, tiles and windows, and every refusal."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.generation.test_text_to_image import Noise
from tests.generation.test_text_to_image import config as sample_config
from tests.models.test_prior import made  # noqa: F401
from tests.models.test_prior_any import prior

from t2i.generation import editing, text_to_image
from t2i.generation.editing import Edit, blend, edited, next_window, of_box, read_mask, starts
from t2i.generation.text_to_image_pipeline import TextToImagePipeline
from t2i.generation.tiling import decode_tiled
from t2i.models.prior_any import PriorAny
from t2i.viz.grids import to_uint8

NODE = {"image": None, "mask": None, "box": None, "vary": None, "extend": None, "composite": True}


@pytest.fixture(scope="module")
def model(made) -> PriorAny:  # noqa: F811
    """Pictures of 8 pixels in 4 x 4 codes."""
    found = prior(made)
    torch.nn.init.normal_(found.gpt.predict.first.weight)
    return found.eval()


def picture(height: int = 8, width: int = 8) -> torch.Tensor:
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def pixels(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


def saved(image: torch.Tensor, path) -> str:
    Image.fromarray(pixels(image)).save(path)
    return str(path)


def test_every_byte_survives_the_way_to_a_tensor_and_back() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, -1, -1)
    assert np.array_equal(to_uint8(values.float().div(127.5).sub(1))[0], pixels(values[0]))


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (20, 11)])
def test_what_is_not_masked_comes_back_byte_for_byte(model, size) -> None:
    image, new = picture(*size), of_box([0.3, 0.2, 0.8, 0.6], *size)
    found = to_uint8(edited(model, Edit(image, new), ["green", "red"], [1, 2], guidance=2.0))
    for drawn in found:
        assert drawn.shape == (*size, 3) and np.array_equal(drawn[~new], pixels(image)[~new])
        assert not np.array_equal(drawn[new], pixels(image)[new])
    raw = to_uint8(edited(model, Edit(image, new, composite=False), ["green"], [1]))
    assert not np.array_equal(raw[0][~new], pixels(image)[~new])


def test_codes_whose_patch_the_mask_does_not_touch_stay(model, monkeypatch) -> None:
    image, new = picture(), torch.zeros(8, 8, dtype=torch.bool)
    new[1, 1] = new[4, 6] = True  # patches of 2 x 2: cells (0, 0) and (2, 3)
    seen = []
    codes = model.code_steps
    monkeypatch.setattr(model, "code_steps", lambda *text, **given: seen.append(given) or codes(*text, **given))
    monkeypatch.setattr(editing, "decode_tiled", lambda net, ids: seen.append(ids) or decode_tiled(net, ids))
    edited(model, Edit(image, new), ["green"], [3])
    asked, ids = seen
    assert (~asked["known"]).nonzero()[:, 0].tolist() == [0, 11]
    before = model.tokenizer.encode(image.float().div(127.5).sub(1)[None])
    assert torch.equal(ids.flatten(1)[:, asked["known"]], before[:, asked["known"]])


def test_the_same_seed_draws_the_same_edit_in_any_batch(model) -> None:
    for edit in (Edit(picture(), of_box([0, 0, 0.5, 1], 8, 8)), Edit(picture(), extend=(0, 3, 9, 0)),
                 Edit(picture(), vary=0.4)):  # fmt: skip
        together = edited(model, edit, ["green", "red"], [1, 2], temperature=0.9)
        alone = edited(model, edit, ["red"], [2], temperature=0.9)[0]
        torch.testing.assert_close(alone, together[1], atol=1e-5, rtol=0)  # the decoder's sums hang on the batch
        assert not torch.equal(edited(model, edit, ["red"], [4], temperature=0.9)[0], together[1])


@pytest.mark.parametrize("extend", [(5, 0, 0, 0), (0, 3, 0, 1), (1, 2, 17, 4), (0, 0, 24, 0)])
@pytest.mark.parametrize("size", [(8, 8), (9, 12)])
def test_extending_keeps_the_picture_and_draws_around_it(model, extend, size) -> None:
    image, (left, top, right, bottom) = picture(*size), extend
    found = to_uint8(edited(model, Edit(image, extend=extend), ["green"], [1]))[0]
    assert found.shape == (size[0] + top + bottom, size[1] + left + right, 3)
    assert np.array_equal(found[top : top + size[0], left : left + size[1]], pixels(image))


@pytest.mark.parametrize(("share", "codes"), [(0.01, 1), (0.25, 4), (0.5, 8), (1, 16)])
def test_vary_draws_so_many_codes_anew(model, monkeypatch, share: float, codes: int) -> None:
    seen = []
    original = model.code_steps
    monkeypatch.setattr(model, "code_steps", lambda *text, **given: seen.append(given["known"])
                        or original(*text, **given))
    edited(model, Edit(picture(), vary=share), ["green"], [1])
    assert int((~seen[0]).sum()) == codes


def test_tiles_of_one_picture_are_the_picture(model) -> None:
    image = picture().float().div(127.5).sub(1)[None]
    ids = editing.encode(model.tokenizer, image)
    assert torch.equal(ids.flatten()[None], model.tokenizer.encode(image))
    torch.testing.assert_close(decode_tiled(model.tokenizer, ids[None]), model.tokenizer.decode_ids(ids.view(1, -1)))


def test_windows_overlap_by_half_and_go_where_something_is_known() -> None:
    assert starts(4, 4) == [0] and starts(6, 4) == [0, 2] and starts(9, 4) == [0, 2, 4, 5]
    known = torch.zeros(4, 12, dtype=torch.bool)
    known[:, :4] = True
    seen = []
    while not known.all():
        seen.append(next_window(known, (4, 4)))
        known[:, seen[-1][1] : seen[-1][1] + 4] = True
    assert seen == [(0, 2), (0, 4), (0, 6), (0, 8)]
    known = torch.zeros(8, 8, dtype=torch.bool)
    assert next_window(known, (4, 4)) == (0, 0)


def test_only_one_tile_is_worked_on_at_a_time(model, monkeypatch) -> None:
    sizes = []
    original = model.tokenizer.encode
    monkeypatch.setattr(model.tokenizer, "encode", lambda image: sizes.append(image.shape) or original(image))
    edited(model, Edit(picture(12, 16), vary=0.1), ["green"], [1])
    assert set(sizes) == {(1, 3, 8, 8)} and len(sizes) == 6  # of decoding, see test_tiling.py


def test_the_seam_lies_inside_what_is_new() -> None:
    new = of_box([0.25, 0.0, 0.75, 1.0], 8, 16)
    share = blend(new, 2)
    assert share[3].tolist() == pytest.approx([0] * 4 + [1 / 3, 2 / 3] + [1] * 4 + [2 / 3, 1 / 3] + [0] * 4)
    assert torch.equal(share[0], share[3])  # at the picture's own edge there is no seam


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "RGBA", "P", "LA", "I;16"])
def test_masks_of_every_kind(tmp_path, mode: str) -> None:
    grey = np.zeros((16, 32), np.uint8)
    grey[4:8, 8:16] = 255
    image = Image.fromarray(grey.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "mask.png")
    found = read_mask(str(tmp_path / "mask.png"), 8, 16)
    assert torch.equal(found, of_box([0.25, 0.25, 0.5, 0.5], 8, 16))


def test_what_is_transparent_in_a_mask_stays(tmp_path) -> None:
    strokes = np.full((8, 8, 4), 255, np.uint8)
    strokes[:, 4:, 3] = 0
    Image.fromarray(strokes).save(tmp_path / "mask.png")
    assert torch.equal(read_mask(tmp_path / "mask.png", 8, 8), of_box([0, 0, 0.5, 1], 8, 8))
    palette = Image.fromarray(np.eye(8, dtype=np.uint8))  # a thin line
    palette.putpalette([0, 0, 0, 255, 255, 255])
    palette.info["transparency"] = 0
    palette.save(tmp_path / "line.png")
    assert read_mask(tmp_path / "line.png", 4, 4).diag().all()


def node(tmp_path, **changes):
    """Keys as a command gives them; names of files lie in the folder."""
    found = {**NODE, "image": saved(picture(12, 16), tmp_path / "picture.png"), **changes}
    for key in ("image", "mask"):
        if isinstance(found[key], torch.Tensor):
            found[key] = saved(found[key], tmp_path / f"{key}.png")
    return found


def grey(value: int, height: int = 12, width: int = 16) -> torch.Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


@pytest.mark.parametrize(("changes", "message"), [
    ({"image": None, "box": [0, 0, 1, 1]}, r"edit\.box=\[0, 0, 1, 1\] needs edit\.image="),
    ({"image": None, "composite": False}, r"edit\.composite=False needs edit\.image="),
    ({}, r"one of edit\.mask=, edit\.box=, edit\.vary=, edit\.extend= is needed; given is none"),
    ({"vary": 0.4, "box": [0, 0, 1, 1]}, "given are edit.box, edit.vary"),
    ({"vary": 0}, r"edit\.vary=0: allowed are numbers above 0, to 1"),
    ({"vary": 1.5}, r"edit\.vary=1\.5"),
    ({"vary": "much"}, r"edit\.vary=much"),
    ({"box": [0.5, 0, 0.5, 1]}, r"edit\.box=\[0\.5, 0, 0\.5, 1\]: allowed are \[x0,y0,x1,y1\]"),
    ({"box": [0.5, 0, 0.2, 1]}, r"edit\.box="),
    ({"box": [-0.1, 0, 1, 1]}, r"edit\.box="),
    ({"box": [0, 0, 1.2, 1]}, r"edit\.box="),
    ({"box": [0, 0, 1]}, r"edit\.box="),
    ({"box": [0, 0, 1, 1]}, r"edit\.box=\[0, 0, 1, 1\] covers all of the picture"),
    ({"extend": [0, 0, 0, 0]}, r"edit\.extend=\[0, 0, 0, 0\]: allowed are .* and not all 0"),
    ({"extend": [0, -1, 0, 0]}, r"edit\.extend="),
    ({"extend": [0, 0, 100000, 0]}, r"edit\.extend=.* from 0 to 8192"),
    ({"extend": [1, 2]}, r"edit\.extend="),
    ({"extend": [1.5, 0, 0, 0]}, r"edit\.extend="),
    ({"mask": grey(0)}, r"edit\.mask=.* covers nothing of the picture"),
    ({"mask": grey(255)}, r"edit\.mask=.* covers all of the picture"),
    ({"mask": grey(255, 16, 16)}, r"edit\.mask=.* has 16 x 16 pixels, another aspect .* 16 x 12; allowed"),
    ({"mask": [1, 2]}, r"edit\.mask=\[1, 2\]: the path of a picture is wanted"),
    ({"mask": ""}, r"edit\.mask='': the path of a picture is wanted"),
    ({"image": ["a"], "vary": 0.5}, r"edit\.image=\['a'\]: the path of a picture is wanted"),
    ({"vary": True}, r"edit\.vary=True"),
    ({"extend": [8192, 0, 0, 8192]}, r"edit\.extend=.* makes 8208 x 8204 pixels; at most 16,000,000 in all are drawn"),
    ({"image": "none.png", "vary": 0.5}, r"edit\.image=none\.png cannot be read: No such file"),
    ({"mask": "none.png"}, r"edit\.mask=none\.png cannot be read"),
])
def test_refused_in_one_line_before_a_model_is_there(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        editing.read(node(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_numbers_may_be_numpys(tmp_path) -> None:
    assert editing.read(node(tmp_path, vary=np.float64(0.4))).vary == 0.4
    box = list(np.array([0, 0, 0.5, 0.5], dtype=np.float32))
    assert torch.equal(editing.read(node(tmp_path, box=box)).new, editing.of_box([0, 0, 0.5, 0.5], 12, 16))


def test_masks_of_the_same_aspect_up_to_a_pixel(tmp_path) -> None:
    mask = grey(0, 25, 33)
    mask[:, :9] = 255
    found = editing.read(node(tmp_path, mask=mask))
    assert found is not None and found.new.shape == (12, 16) and found.new[:4].all() and not found.new[6:].any()


def test_models_that_cannot_and_pictures_too_small_or_large(tmp_path, model, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"edit\.image=.*picture\.png: a prior draws pictures as a whole; a prior_any"):
        text_to_image.run(sample_config(tmp_path, edit=node(tmp_path, vary=0.4)), Noise())
    with pytest.raises(ValueError, match=r"has 7 x 8 pixels; at least 8 x 8 are needed"):
        text_to_image.run(sample_config(tmp_path, edit=node(tmp_path, image=picture(8, 7), vary=0.4)), model)
    monkeypatch.setattr(editing, "LARGEST", 100)
    with pytest.raises(ValueError, match=r"image\.png has 11 x 10 pixels; at most 100 in all can be edited"):
        text_to_image.run(sample_config(tmp_path, edit=node(tmp_path, image=picture(10, 11), vary=0.4)), model)
    small = node(tmp_path, vary=0.4)
    with pytest.raises(ValueError, match=r"completion\.image= does not go with edit\.image="):
        text_to_image.run(sample_config(tmp_path, edit=small, completion={"image": small["image"], "rows": 1}), model)
    with pytest.raises(ValueError, match=r"nearest=true does not go with edit\.image="):
        text_to_image.run(sample_config(tmp_path, edit=small, nearest=True), model)
    assert not (tmp_path / "drawn").exists()


def test_sample_writes_edits(tmp_path, model) -> None:
    asked = node(tmp_path, box=[0.0, 0.0, 0.5, 0.5])
    wanted = {"edit": asked, "prompt": "green", "steps": 3, "order": "random", "schedule": "linear"}
    found = text_to_image.run(sample_config(tmp_path, **wanted), model)
    assert len(found["files"]) == 3 and found["request"]["edit"] == asked
    assert found["request"]["options"]["steps"] == 3 and found["request"]["options"]["order"] == "random"
    drawn = [np.array(Image.open(file)) for file in found["files"]]
    kept = ~of_box(asked["box"], 12, 16)
    assert all(np.array_equal(one[kept], pixels(picture(12, 16))[kept]) for one in drawn)
    assert not np.array_equal(drawn[0], drawn[1])


def test_pictures_of_any_size_are_drawn_in_a_window_that_slides(tmp_path, model) -> None:
    found = text_to_image.run(sample_config(tmp_path, size="14x10", prompt="green", edit=node(tmp_path, image=None)),
                              model)
    drawn = [np.array(Image.open(file)) for file in found["files"]]
    assert all(one.shape == (10, 14, 3) for one in drawn) and not np.array_equal(drawn[0], drawn[1])
    assert found["request"]["size"] == [14, 10]
    pipeline = TextToImagePipeline(model, {}, "it", "cpu")
    python = pipeline.draw("green", size="14x10", n=3, temperature=1.0, guidance=2.0)
    assert all(np.array_equal(np.array(one), other) for one, other in zip(python, drawn, strict=True))
    with pytest.raises(ValueError, match=r"size=14x9: allowed are multiples of 2"):
        pipeline.draw("green", size="14x9")
    options = {"steps": 3, "guidance": 2.0}
    own = next(editing.draw_sized(model, (8, 8), ["green", "red"], [3, 4], **options))
    assert torch.allclose(own, model.sample(["green", "red"], seeds=[3, 4], **options).cpu(), atol=1e-5)


@pytest.mark.parametrize(("size", "message"), [
    ("14", "size=14: width x height is wanted"), ("big", "size=big: width"), ("14x9", "multiples of 2"),
    ("8000x8000", "makes 8000 x 8000 pixels; at most 16,000,000"),
    ("6x8", r"from 8 to 8192 on each side"), ("99999x8", "from 8 to 8192"), ("9999999x8", "width x height"),
])
def test_sizes_that_are_none_are_refused_in_one_line(model, size: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        editing.check_size(size, model)
    assert "\n" not in str(caught.value)


def test_sizes_go_with_a_prior_that_draws_any_order_alone(tmp_path, model) -> None:
    with pytest.raises(ValueError, match=r"size=16x8: a prior draws pictures of its own size alone; a prior_any"):
        text_to_image.run(sample_config(tmp_path, size="16x8", edit=node(tmp_path, image=None)), Noise())
    with pytest.raises(ValueError, match=r"edit\.image= does not go with size=16x8"):
        text_to_image.run(sample_config(tmp_path, size="16x8", edit=node(tmp_path, vary=0.4)), model)


def test_python_edits_what_sample_py_edits(tmp_path, model) -> None:
    asked = node(tmp_path, box=[0.0, 0.0, 0.5, 0.5])
    wanted = text_to_image.run(sample_config(tmp_path, edit=asked, prompt="green", seed=5), model)["files"]
    options = {"temperature": 1.0, "guidance": 2.0}  # of the config above
    pipeline = TextToImagePipeline(model, {}, "it", "cpu")
    for image in (asked["image"], Image.open(asked["image"])):
        found = pipeline.edit(image, "green", box=asked["box"], seed=5, n=3, **options)
        assert all(np.array_equal(np.array(one), np.array(Image.open(file)))
                   for one, file in zip(found, wanted, strict=True))
    half = Image.new("L", (16, 12))
    half.paste(255, (0, 0, 8, 12))
    assert pipeline.edit(asked["image"], "green", mask=half)[0].size == (16, 12)
    with pytest.raises(ValueError, match=r"edit\.mask=the picture covers nothing"):
        pipeline.edit(asked["image"], "green", mask=Image.new("L", (16, 12)))
    with pytest.raises(ValueError, match=r"one of edit\.mask=, .* is needed; given is none"):
        pipeline.edit(asked["image"], "green")
    back = pipeline.reconstruct(asked["image"], keep_size=True)[0]
    assert back.size == (16, 12)
    with pytest.raises(ValueError, match=r"images\[0\] has 4 x 4 pixels; keep_size=True takes at least 8 x 8"):
        pipeline.reconstruct(Image.new("RGB", (4, 4)), keep_size=True)
