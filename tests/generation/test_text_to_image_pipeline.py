"""`t2i.load` and `t2i.from_pretrained`: what sample.py draws, from checkpoints and exported folders, and refusals."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.convert.test_convert import dfgan, hf, prior, same, vqgan  # noqa: F401  # fixtures
from tests.convert.test_taming import Hostile

import t2i
from t2i.checkpoint.file_format import file_hash
from t2i.config.compose import compose
from t2i.convert import hub
from t2i.convert.convert import export
from t2i.generation import text_to_image
from t2i.nets import cpu_linear
from t2i.viz.grids import to_uint8


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.array(image) for image in images])


def sampled(ckpt: Path, out: Path, *words: str) -> tuple[list[Image.Image], list[int]]:
    """What sample.py draws for a caption, and the seeds that it lists."""
    cfg = compose([f"ckpt={ckpt}", "prompt=a red circle", "n=3", f"out={out}", *words], "sample")
    found = text_to_image.run(cfg)
    return [Image.open(file) for file in found["files"]], [entry["seed"] for entry in found["pictures"]]


@pytest.mark.parametrize("name", ["prior", "dfgan"])
def test_it_draws_what_sample_py_draws(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    path = request.getfixturevalue(name)
    wanted, seeds = sampled(path, tmp_path / "drawn", "seed=5")
    model = t2i.load(path, device="cpu")
    drawn = model.draw("a red circle", seed=5, n=3)
    assert isinstance(drawn[0], Image.Image) and drawn[0].size == (16, 16)
    assert np.array_equal(pixels(drawn), pixels(wanted))
    assert np.array_equal(pixels(model.draw("a red circle", seeds, batch_size=2)), pixels(wanted))
    assert np.array_equal(pixels(model.draw(["two blue squares", "a red circle"], [1, seeds[1]]))[1], pixels(wanted)[1])
    assert np.array_equal(pixels(model.draw(["a red circle"] * 2)), pixels(model.draw(["a red circle"] * 2, seed=0)))


def test_options_and_negative_are_those_of_sample_py(prior: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ["guidance=3", "top_k=5", "negative=two blue squares"]
    wanted, seeds = sampled(prior, tmp_path / "drawn", *words)
    drawn = t2i.load(prior).draw("a red circle", seeds, guidance=3, top_k=5, negative="two blue squares")
    assert np.array_equal(pixels(drawn), pixels(wanted))
    assert len(t2i.load(prior).draw(unconditional=True, n=2)) == 2


@pytest.mark.parametrize("name", ["prior", "dfgan", "vqgan"])
def test_an_exported_folder_is_read_back_bit_equal(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2I_TEST_FILE", str(tmp_path / "ran"))
    path = request.getfixturevalue(name)
    folder = export(path, tmp_path / "model")
    (folder / "model.py").write_text("raise SystemExit(9)")
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Hostile()))
    model, again = t2i.load(path), t2i.from_pretrained(folder)
    assert same(model.model, again.model) and not (tmp_path / "ran").exists()
    if name == "prior":
        assert model.tokenizer is not None and again.tokenizer is not None and same(model.tokenizer, again.tokenizer)
        assert same(model.model.text_encoder.tower, again.model.text_encoder.tower)
    if name != "vqgan":
        assert np.array_equal(pixels(model.draw("a red circle", n=2)), pixels(again.draw("a red circle", n=2)))
    if name != "dfgan":
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), np.uint8))
        assert np.array_equal(pixels(model.reconstruct(image)), pixels(again.reconstruct(image)))


def test_reconstructing_pictures_and_files(vqgan: Path, tmp_path: Path) -> None:  # noqa: F811
    model = t2i.load(vqgan)
    assert model.tokenizer is not None
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8))
    image.save(tmp_path / "a.png")
    grey = Image.new("LA", (30, 20), (7, 255))
    found = model.reconstruct([image, tmp_path / "a.png", grey], batch_size=2)
    with torch.inference_mode():
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float().div(127.5).sub(1)
        wanted = to_uint8(model.tokenizer.decode_ids(model.tokenizer.encode(tensor)))[0]
    assert len(found) == 3 and np.array_equal(pixels(found)[0], wanted) and np.array_equal(pixels(found)[1], wanted)
    with pytest.raises(ValueError, match=r"images=nothing\.png cannot be read"):
        model.reconstruct("nothing.png")


def test_what_cannot_be_drawn_is_one_line(prior: Path, dfgan: Path, vqgan: Path) -> None:  # noqa: F811
    model = t2i.load(prior)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompts": ""}, 'prompt="" is empty'),
        ({"prompts": ["a", " "]}, 'prompt="" is empty'),
        ({}, "give prompt="),
        ({"prompts": "a", "unconditional": True}, "prompt= is given too"),
        ({"prompts": ["a", "b"], "seeds": [1]}, "2 prompts but 1 seeds"),
        ({"prompts": "a", "seeds": [0.5]}, r"seeds=0\.5: allowed are whole numbers from 0"),
        ({"prompts": "a", "seeds": -1}, "seeds=-1: allowed"),
        ({"prompts": "a", "seeds": 1, "n": 2}, "seed= and n= go without it"),
        ({"prompts": "a", "n": 0}, "n=0: allowed are whole numbers from 1"),
        ({"prompts": "a", "batch_size": 0}, "batch_size=0: allowed"),
        ({"prompts": "a", "stages": 3}, "stages=3: there is no such option; there are temperature"),
        ({"prompts": "a", "steps": 3}, "steps=3: a prior has no such option; it has temperature"),
        ({"prompts": "a", "truncation": 1.0}, "a prior has no such option"),
        ({"prompts": "a", "temperature": "hot"}, "temperature='hot': allowed are finite numbers"),
        ({"prompts": "a", "negative": " "}, 'negative="" is empty'),
        ({"prompts": "a", "negative": "b", "guidance": 1}, "works by guidance"),
    ]
    for given, message in cases:
        with pytest.raises(ValueError, match=message):
            model.draw(**given)
    with pytest.raises(ValueError, match=r"vqgan\.ckpt is a tokenizer, which draws nothing"):
        t2i.load(vqgan).draw("a")
    with pytest.raises(ValueError, match=r"dfgan\.ckpt has no tokenizer"):
        t2i.load(dfgan).reconstruct([])
    with pytest.raises(ValueError, match="device=abacus is not to be had"):
        t2i.load(vqgan, device="abacus")


def test_a_folder_that_is_none_of_ours(vqgan: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ValueError, match=r"has no model\.safetensors: a folder is wanted that `t2i export` wrote"):
        t2i.from_pretrained(vqgan)
    folder = export(vqgan, tmp_path / "model")
    with pytest.raises(ValueError, match="revision=main is of the hub"):
        t2i.from_pretrained(folder, revision="main")
    save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
    with pytest.raises(ValueError, match="is no safetensors file of this project"):
        t2i.from_pretrained(folder)
    for name in ("nobody/nothing", "a b/ c"):
        with pytest.raises(ValueError, match=f"{name} is no folder here, and cannot be had from the hub: "):
            t2i.from_pretrained(name)


def test_from_the_hub_two_files_are_asked_for(vqgan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    folder, asked = export(vqgan, tmp_path / "cached"), {}

    def stand_in(name: str, **given: Any) -> str:
        asked.update(name=name, **given)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", stand_in)
    assert same(t2i.from_pretrained("owner/name", revision="v1").model, t2i.load(vqgan).model)
    assert asked == {"name": "owner/name", "revision": "v1", "allow_patterns": ["model.safetensors", "config.json"]}


@pytest.mark.skipif(cpu_linear.obstacle("int8", torch.device("cpu")) is not None, reason="no VNNI here")
def test_weights_are_those_of_sample_py_and_change_no_checkpoint(
    prior: Path, dfgan: Path, tmp_path: Path  # noqa: F811
) -> None:
    before = file_hash(prior)
    wanted, _ = sampled(prior, tmp_path / "drawn", "weights=int8", "device=cpu")
    assert json.loads((tmp_path / "drawn" / "drawing.json").read_text())["request"]["weights"] == "int8"
    model = t2i.load(prior, device="cpu", weights="int8")
    assert isinstance(model.model.gpt.blocks[0].qkv, cpu_linear.Int8Linear)
    assert np.array_equal(pixels(model.draw("a red circle", n=3)), pixels(wanted))
    assert file_hash(prior) == before
    assert isinstance(t2i.load(prior, device="cpu").model.gpt.blocks[0].qkv, torch.nn.Linear)
    with pytest.raises(ValueError, match="^weights=int8: a dfgan has no such option; a prior has$"):
        t2i.load(dfgan, device="cpu", weights="int8")
    with pytest.raises(ValueError, match="weights=int4"):
        sampled(prior, tmp_path / "not", "weights=int4")
