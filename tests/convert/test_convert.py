"""`python -m t2i`: inspecting, converting, exporting and reading back, reconstructing."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.convert.test_taming import TINY, Hostile, lightning, random_state

from t2i.checkpoint import atomic, building, file_format, lightning_io
from t2i.cli.console import in_order, main, parser
from t2i.config.compose import compose
from t2i.convert.convert import convert, export
from t2i.convert.inspection import inspected
from t2i.convert.tokenizers import load_tokenizer, read_taming
from t2i.generation import text_to_image

GOLDEN = Path(__file__).parents[1] / "golden"
ROOT = Path(__file__).resolve().parents[2]
CLIP_NODE = {"_target_": "t2i.models.clip.CLIP", "image_size": 16, "patch_size": 8, "width": 16, "num_layers": 1,
             "num_heads": 2, "text_width": 16, "text_layers": 1, "text_heads": 2, "embed_dim": 8, "vocab_size": 280,
             "context_length": 32}  # fmt: skip


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    model = building.build(CLIP_NODE)
    model.prepare(["a red circle", "two blue squares"])
    model.export(tmp_path / "hf")
    return tmp_path / "hf"


def save(model: Any, config: dict[str, Any], path: Path, **more: Any) -> Path:
    atomic.save_atomic({"state_dict": model.state_dict(), "t2i": file_format.pack(model, config), **more}, path)
    return path


@cache
def vqgan_config() -> dict[str, Any]:
    return compose(["model=vqgan", "data.image_size=16", "model.autoencoder.channels=8", "model.quantizer.dim=8",
                    "model.autoencoder.multipliers=[1,2]", "model.autoencoder.attention_levels=[]",
                    "model.autoencoder.num_groups=4", "model.quantizer.codebook_size=24",
                    "model.discriminator.channels=4", "model.discriminator.num_layers=1"])


@pytest.fixture
def vqgan(tmp_path: Path) -> Path:
    config = deepcopy(vqgan_config())
    model = building.build(config["model"])
    averaged = {"tokenizer.quant_conv.bias": torch.full_like(model.tokenizer.quant_conv.bias, 0.5)}
    return save(model, config, tmp_path / "vqgan.ckpt", ema={"weights": averaged, "updates": 3})


@pytest.fixture
def prior(tmp_path: Path, vqgan: Path, hf: Path) -> Path:
    config = compose(["model=prior", "data.image_size=16", f"model.tokenizer.path={vqgan}", f"text_encoder.path={hf}",
                      "model.width=32", "model.num_layers=1", "model.num_heads=2"])
    return save(building.build(config["model"]), config, tmp_path / "prior.ckpt")


@pytest.fixture
def dfgan(tmp_path: Path, hf: Path) -> Path:
    config = compose(["model=dfgan", "data.image_size=16", f"text_encoder.path={hf}", "model.generator.channels=4",
                      "model.discriminator.channels=4"])
    return save(building.build(config["model"]), config, tmp_path / "dfgan.ckpt")


def same(a: Any, b: Any) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


@pytest.mark.parametrize("words", [
    ["ckpt=a.ckpt", "format=diffusers", "out=b"], ["out=b", "ckpt=a.ckpt", "format=diffusers"],
    ["a.ckpt", "b", "diffusers"],
])
def test_words_with_keys_come_in_any_order(words: list[str]) -> None:
    asked = parser().parse_args(in_order(["export", *words, "--license", "mit"]))
    assert (asked.file, asked.folder, asked.format, asked.license) == ("a.ckpt", "b", "diffusers", "mit")


@pytest.mark.parametrize("name", ["vqgan", "prior", "dfgan"])
@pytest.mark.parametrize("form", ["folder", "file"])
def test_what_is_exported_is_read_back(
    name: str, form: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = request.getfixturevalue(name)
    out = tmp_path / "out" / ("model" if form == "folder" else "model.safetensors")
    assert main(["export" if form == "folder" else "convert", str(path), str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    model = building.load(path)
    for place in [out, out / "model.safetensors"] if form == "folder" else [out]:
        again = building.load(place, kind=name)
        assert same(model, again) and file_format.file_hash(place) == file_format.file_hash(out)
    section = file_format.read(path)["t2i"]
    if form == "folder":
        assert json.loads((out / "config.json").read_text())["config"] == json.loads(json.dumps(section["config"]))
    back = tmp_path / "back.ckpt"
    convert(out, back)
    assert same(building.load(back), model)
    if name == "prior":
        assert same(again.tokenizer, model.tokenizer)
        assert torch.equal(again.sample(["a red circle"], seeds=[1]), model.sample(["a red circle"], seeds=[1]))


def test_exported_folders_draw_and_serve_as_tokenizers(prior: Path, dfgan: Path, vqgan: Path, tmp_path: Path) -> None:
    for path in (prior, dfgan):
        export(path, tmp_path / "model")
        path.with_suffix(".safetensors").write_bytes((tmp_path / "model/model.safetensors").read_bytes())
        pictures = []
        for i, ckpt in enumerate((path, tmp_path / "model", path.with_suffix(".safetensors"))):
            cfg = compose([f"ckpt={ckpt}", "prompt=a red circle", "n=1", f"out={tmp_path / path.stem}{i}"], "sample")
            pictures.append(Path(text_to_image.run(cfg)["files"][0]).read_bytes())
        assert pictures[0] == pictures[1] == pictures[2]
    export(vqgan, tmp_path / "tokenizer")
    assert same(load_tokenizer(tmp_path / "tokenizer"), load_tokenizer(vqgan))
    assert torch.equal(load_tokenizer(vqgan, 16).quant_conv.bias, torch.full((8,), 0.5))
    with pytest.raises(ValueError, match=r"image_size=32 \(data\.image_size\): the tokenizer .*\.ckpt takes .* 16"):
        load_tokenizer(vqgan, 32)


def test_a_clip_is_exported_as_its_hugging_face_folder(tmp_path: Path) -> None:
    from transformers import CLIPModel

    model = building.build(CLIP_NODE)
    model.prepare(["a red circle"])
    held = {"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": CLIP_NODE})}
    model.on_save_checkpoint(held)
    atomic.save_atomic(held, tmp_path / "clip.ckpt")
    export(tmp_path / "clip.ckpt", tmp_path / "hf")
    read = CLIPModel.from_pretrained(tmp_path / "hf").state_dict()
    assert all(torch.equal(value, read[name]) for name, value in model.clip.state_dict().items() if name in read)
    with pytest.raises(ValueError, match=r"clip\.ckpt is a CLIP of this project: `export` writes"):
        convert(tmp_path / "clip.ckpt", tmp_path / "clip.safetensors")
    with pytest.raises(ValueError, match=r"is a CLIP \(.*, which is read as text_encoder\.path=FOLDER"):
        load_tokenizer(tmp_path / "hf")


def test_a_converted_tokenizer_stands_for_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lightning(tmp_path / "vqgan_imagenet.ckpt", random_state(*TINY), monkeypatch)
    foreign = load_tokenizer(path, 16)
    out = convert(path, tmp_path / "out.safetensors", image_size=16)
    with safe_open(out, "pt") as file:
        config = json.loads(file.metadata()["t2i"])["config"]["model"]
    assert config == foreign.config
    path.unlink()
    again = load_tokenizer(out)
    assert same(again, foreign) and again.config == foreign.config and again.grid == (8, 8)
    assert load_tokenizer(out, 32).grid == (16, 16)
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    assert torch.equal(again.encode(image), foreign.encode(image))
    assert same(building.load(out, kind="tokenizer"), foreign)
    assert same(load_tokenizer(convert(out, tmp_path / "out.ckpt")), foreign)
    with pytest.raises(ValueError, match="holds a tokenizer; a prior is wanted"):
        building.load(out, kind="prior")


def test_mistakes_in_converting(vqgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {("convert", str(vqgan), "out.bin"): "ends with .safetensors or .ckpt",
             ("convert", str(vqgan), str(vqgan)): "is the file to convert itself",
             ("convert", str(vqgan), str(tmp_path / "a.ckpt"), "--image-size", "8"): "--image-size 8",
             ("export", str(vqgan), "out.safetensors"): "the name of a folder is wanted",
             ("convert", str(GOLDEN / "dfgan_bird256_head.shapes.json"), "a.ckpt"): "is no checkpoint: it starts with",
             ("reconstruct", str(vqgan), str(vqgan), "out.jpg"): "ends with .png",
             ("reconstruct", str(vqgan), str(vqgan), "out.png"): "cannot be read as a picture",
             ("inspect", "nothing.ckpt"): "nothing.ckpt does not exist"}
    for words, expected in cases.items():
        assert main(list(words)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and expected in error and "Traceback" not in error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["vqgan.ckpt"]


def test_a_config_that_was_changed_is_refused(vqgan: Path, tmp_path: Path) -> None:
    folder = export(vqgan, tmp_path / "model")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"image_size": 16', '"image_size": 32'))
    with pytest.raises(ValueError, match=r"config\.json was changed"):
        building.load(folder)
    (folder / "config.json").unlink()
    assert building.load(folder).image_size == 16
    whole = load_file(folder / "model.safetensors")
    save_file(whole, folder / "model.safetensors", {"t2i": '{"format": 1}'})
    with pytest.raises(ValueError, match="does not hold format, kind, config, parts"):
        building.load(folder)
    config = {"model": {"_target_": "os.system", "command": "x"}}
    section = {"format": 1, "kind": "vqgan", "config": config, "parts": {}}
    save_file(whole, folder / "model.safetensors", {"t2i": json.dumps(section)})
    with pytest.raises(ValueError, match="_target_"):
        building.load(folder)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
    with pytest.raises(ValueError, match="damaged safetensors"):
        building.load(folder)
    with pytest.raises(ValueError, match="holds weights alone: a run is continued from"):
        lightning_io.AtomicCheckpointIO().load_checkpoint(export(vqgan, tmp_path / "again"))


def test_inspecting_a_foreign_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state(*TINY) | {"loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4)}
    count = sum(p.numel() for p in read_taming(state).parameters())
    for zipped in (True, False):
        text = inspected(lightning(tmp_path / "last.ckpt", state, monkeypatch, zipped))
        for part in ("what: a VQGAN of taming-transformers", "channels=32 multipliers=[1, 2] num_res_blocks=1",
                     "codebook_size=16 dim=8", f"parameters: {count:,} (", "any multiple of 2 is taken",
                     "state_dict.loss: 384 numbers in 1 tensor", "epoch = 3", "callbacks.<main.SetupCallback> = {}",
                     "optimizer_states: 3 numbers", "main.SetupCallback: known, left out when the file is read",
                     "torch archive" if zipped else "before 1.6"):
            assert part in text, part
    torch.save({"state_dict": {k: v for k, v in state.items() if k != "quant_conv.bias"}}, tmp_path / "last.ckpt")
    text = inspected(tmp_path / "last.ckpt")
    assert "but not one that can be read" in text and "missing quant_conv.bias" in text


def test_inspecting_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2I_TEST_FILE", str(tmp_path / "ran"))
    path = tmp_path / "bad.ckpt"
    for zipped in (True, False):
        torch.save({"state_dict": random_state(*TINY), "x": Hostile()}, path, _use_new_zipfile_serialization=zipped)
        text = inspected(path)
        assert "posix.system: not known; the file is refused" in text and "VQGAN of taming-transformers" in text
    path.write_bytes(pickle.dumps([Hostile(), {"a": Hostile()}]))
    assert "posix.system: not known" in inspected(path)
    # A name looked up on what another name gave, and state set on it.
    path.write_bytes(b"\x80\x04c__builtin__\ngetattr\ncos\nsystem\nX\x04\x00\x00\x00name\x86R(X\x04\x00\x00\x00truetR}b.")
    text = inspected(path)
    assert "os.system: not known" in text and "__builtin__.getattr: not known" in text
    assert not (tmp_path / "ran").exists()
    loop: list[Any] = [{}]
    loop.append(loop)
    path.write_bytes(pickle.dumps(loop))  # it holds itself
    assert "pickle" in inspected(path)
    path.write_bytes(pickle.dumps(loop)[:-5])
    with pytest.raises(ValueError, match=r"bad\.ckpt cannot be read; it is damaged"):
        inspected(path)


def test_inspecting_what_is_ours(vqgan: Path, prior: Path, tmp_path: Path) -> None:
    text = inspected(vqgan)
    for part in ("this project's: a vqgan (a checkpoint, format 1)", "model.autoencoder: Autoencoder channels=8",
                 "model.quantizer: EMA codebook_size=24", "state_dict.discriminator", "ema"):
        assert part in text, part
    for path in (prior, export(prior, tmp_path / "out")):
        text = inspected(path)
        for part in ("a prior (", "part tokenizer: ImageTokenizer image_size=16",
                     "part text_encoder: CLIPText", "state_dict.gpt: "):
            assert part in text, part


GANS = {"dfgan_tiny_generator": ("a DF-GAN", "DFGenerator image_size="),
        "stackgan_tiny_stage1_generator": ("a StackGAN's stage I", "StageOne image_size="),
        "stackgan_tiny_stage1_discriminator": ("a discriminator of DF-GAN or StackGAN", "get_cond_logits"),
        "patchgan_tiny": ("not known; it holds", "main: ")}  # fmt: skip


@pytest.mark.parametrize("name", GANS)
def test_inspecting_published_gans(name: str, tmp_path: Path) -> None:
    held = load_file(GOLDEN / f"{name}.safetensors")
    weights = {k.removeprefix("weight/"): v for k, v in held.items() if k.startswith("weight/")}
    torch.save({f"module.{key}": value for key, value in weights.items()}, tmp_path / "netG.pth")
    text = inspected(tmp_path / "netG.pth")
    assert all(part in text for part in GANS[name]), text
    if name == "dfgan_tiny_generator":
        torch.save({"model": {"netG": weights}, "epoch": 3}, tmp_path / "netG.pth")
        assert all(part in inspected(tmp_path / "netG.pth") for part in GANS[name])


def test_inspecting_damsm_and_others(tmp_path: Path) -> None:
    shapes = {"encoder.weight": (50, 300), "rnn.weight_ih_l0": (512, 300), "rnn.weight_hh_l0": (512, 128)}
    torch.save({name: torch.zeros(size) for name, size in shapes.items()}, tmp_path / "text_encoder200.pth")
    text = inspected(tmp_path / "text_encoder200.pth")
    assert "a text encoder of DAMSM" in text and "words: 50 of 300 numbers; sentences: 256 numbers" in text
    words = [[[1]], [[2]], {0: "<end>", 1: "bird"}, {"<end>": 0, "bird": 1}]
    (tmp_path / "captions_DAMSM.pickle").write_bytes(pickle.dumps(words, 2))
    assert "a vocabulary of DAMSM with 2 words" in inspected(tmp_path / "captions_DAMSM.pickle")
    save_file({"down_blocks.0.resnets.0.conv1.weight": torch.zeros(2, 2)}, tmp_path / "unet.safetensors")
    text = inspected(tmp_path / "unet.safetensors")
    assert "a Diffusers file (down_blocks.0.resnets.0.conv1.weight); it is not read here" in text
    (tmp_path / "page.ckpt").write_text("<html>no</html>")
    with pytest.raises(ValueError, match="is a web page"):
        inspected(tmp_path / "page.ckpt")


def test_reconstructing(vqgan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    Image.new("L", (20, 20), 7).save(tmp_path / "grey.jpg")
    files = [str(tmp_path / name) for name in ("red.png", "grey.jpg", "out.png")]
    assert main(["reconstruct", str(vqgan), *files]) == 0
    out = capsys.readouterr().out
    assert "red.png: " in out and "dB PSNR" in out and "of 64" in out
    with Image.open(tmp_path / "out.png") as made:
        assert made.width > made.height > 200


def test_the_door_runs_as_a_module(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "t2i", "--help"], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, timeout=240)
    assert done.returncode == 0 and "reconstruct" in done.stdout and done.stderr == ""


def test_the_door_inspects(vqgan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(vqgan)]) == 0
    told = capsys.readouterr()
    assert "a vqgan" in told.out and told.err == ""
