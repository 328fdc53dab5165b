"""Published DF-GAN and StackGAN files: golden arrays through the readers, sizes from shapes, strictness, drawing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.checkpoint import atomic, building, file_format
from t2i.config.compose import ConfigError, compose
from t2i.convert.dfgan import DISCRIMINATOR, GENERATOR, nets, read_discriminator, read_generator
from t2i.convert.reader import load_generator, open_model
from t2i.convert.stackgan import generator_name, read_stage1, read_stage2
from t2i.convert.tensors import read_tensors, renamed
from t2i.generation import text_to_image
from t2i.nets.dfgan import DFDiscriminator, DFGenerator
from t2i.nets.stackgan import StackDiscriminator, StageOne, StageTwo
from t2i.text_encoders.bilstm import BiLSTMText
from t2i.text_encoders.bilstm_folder import BiLSTM, WordTokenizer
from t2i.types import DiscriminatorFeatures

GOLDEN = Path(__file__).parents[1] / "golden"
State = dict[str, Tensor]


def golden(name: str) -> tuple[State, State]:
    held = load_file(GOLDEN / f"{name}.safetensors")
    weights, arrays = ({k.partition("/")[2]: v for k, v in held.items() if k.startswith(start)}
                       for start in ("weight/", "io/"))
    return weights, arrays


def close(a: Tensor, b: Tensor) -> None:
    assert float((a.detach() - b).abs().max()) < 2e-5


def discriminator_name(name: str) -> str:
    """What StackGAN's published files call a discriminator's tensor."""
    return generator_name(renamed(name, (
        (r"^encoder\.", "encode_img."), (r"^head\.joint\.", "get_cond_logits.outlogits."),
        (r"^head\.last\.", "get_cond_logits.outlogits.3."), (r"^free_head\.last\.", "get_uncond_logits.outlogits.0."))))


def read_judge(state: State, net: StackDiscriminator) -> StackDiscriminator:
    """With a published discriminator's weights: tensors without `module.`, and no other ones; it gives logits."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    assert state.keys() == {discriminator_name(name) for name in net.state_dict()}
    net.load_state_dict({name: state[discriminator_name(name)] for name in net.state_dict()})
    return net.eval()


def named(state: State, rules: Any) -> State:
    return {renamed(name, rules): value for name, value in state.items()}


@pytest.mark.parametrize("prefix", ["", "module."])
def test_dfgan_s_golden_arrays(prefix: str) -> None:
    weights, io = golden("dfgan_tiny_generator")
    # These weights saturate, and the reference's own rounding stands out: its picture in float32 is up to 3.1e-4 from
    # that in float64, which is the same on every machine. In float32 we were 0 (two threads), 5.9e-5 (one thread) and
    # 3.0e-4 (AVX2) away from it.
    generator = read_generator({prefix + k: v for k, v in weights.items()}).double()
    away = (generator(io["noise"].double(), io["text"].double()).image.detach() - io["image"]).abs()
    assert float(away.max()) < 4e-4 and float(away.mean()) < 1e-6
    weights, io = golden("dfgan_tiny_discriminator")
    head, told = golden("dfgan_tiny_head")
    net = read_discriminator({prefix + k: v for k, v in weights.items()}, {prefix + k: v for k, v in head.items()})
    close(net.features(io["image"]).deep, io["features"])
    close(net.logits(DiscriminatorFeatures(told["features"]), told["text"]).conditional, told["logits"].flatten())


def test_stackgan_s_golden_arrays() -> None:
    weights, io = golden("stackgan_tiny_stage1_generator")
    mean = torch.zeros(2, io["mean"].shape[1])  # no noise around the condition
    net = read_stage1(weights)
    drawn = net(torch.cat([io["noise"], mean], 1), io["text"])
    assert drawn.mean is not None and drawn.log_var is not None
    for ours, theirs in ((drawn.image, "image"), (drawn.mean, "mean"), (drawn.log_var, "logvar")):
        close(ours, io[theirs])
    old = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    close(read_stage1(old)(torch.cat([io["noise"], mean], 1), io["text"]).image, io["image"])
    with pytest.raises(ValueError, match=r"fc\.1\.running_var"):
        read_stage1({name: value for name, value in old.items() if name != "fc.1.running_var"})
    weights, io = golden("stackgan_tiny_stage1_discriminator")
    judge = read_judge(weights, StackDiscriminator(64, 4, 16))
    seen = judge.features(io["image"])
    close(seen.deep, io["features"])
    close(judge.logits(seen, io["mean"]).conditional.sigmoid(), io["conditional"])


def test_stackgan_s_second_stage() -> None:
    """On the reference's own coarse picture, every fourth pixel of the result; stage I's weights are the other file's.
    """
    weights, io = golden("stackgan_tiny_stage2_reduced")
    inner, _ = golden("stackgan_tiny_stage1_generator")
    _, two = read_stage2(weights | {f"STAGE1_G.{name}": value for name, value in inner.items()})
    drawn = two(io["stage1"], torch.zeros(2, two.condition_dim), io["text"]).image
    close(drawn[:, :, ::4, ::4], io["image_every_4th"])


def test_every_tensor_of_the_published_256_pixel_nets() -> None:
    shapes: dict[str, dict[str, list[int]]] = {}
    for part in ("generator", "discriminator", "head"):
        held = json.loads((GOLDEN / f"dfgan_bird256_{part}.shapes.json").read_text())["tensors"]
        shapes[part] = {name: size for name, (_, *size) in held.items()}
    zeros = {part: {name: torch.zeros(size) for name, size in listed.items()} for part, listed in shapes.items()}
    generator = read_generator(zeros["generator"])
    assert generator.image_size == 256 and sum(p.numel() for p in generator.parameters()) == 9_744_131
    judge = read_discriminator(zeros["discriminator"], zeros["head"])
    assert judge.image_size == 256 and sum(p.numel() for p in judge.parameters()) == 6_619_206 + 295_936


@pytest.mark.parametrize(("size", "channels", "noise", "text"), [(32, 3, 7, 5), (128, 2, 100, 256)])
def test_sizes_are_read_from_shapes(size: int, channels: int, noise: int, text: int) -> None:
    ours = DFGenerator(size, channels, noise, text)
    read = read_generator(named(ours.state_dict(), GENERATOR))
    z, words = torch.randn(2, noise), torch.randn(2, text)
    torch.testing.assert_close(read(z, words).image, ours(z, words).image)


def test_what_does_not_fit_is_named() -> None:
    state = named(DFGenerator(16, 2, 4, 6).state_dict(), GENERATOR)
    with pytest.raises(ValueError, match=r"missing GBlocks\.0\.c1\.bias"):
        read_generator({k: v for k, v in state.items() if k != "GBlocks.0.c1.bias"})
    with pytest.raises(ValueError, match="unexpected extra"):
        read_generator(state | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"GBlocks\.0\.c1\.bias has shape \(1,\)"):
        read_generator(state | {"GBlocks.0.c1.bias": torch.zeros(1)})
    with pytest.raises(ValueError, match="old layout"):
        read_generator({"block0.c1.weight": torch.zeros(1)})


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias", "to_rgb.1.weight", "GBlocks.1.c_sc.weight",
                                  "GBlocks.2.fuse2.affine1.fc_beta.linear1.weight"])
def test_the_tensor_at_fault_is_named_also_where_sizes_are_read_from_it(name: str) -> None:
    state = named(DFGenerator(32, 3, 4, 6).state_dict(), GENERATOR)
    state = {f"module.{k}": v for k, v in state.items()}
    with pytest.raises(ValueError, match=rf"generator: missing module\.{name}$"):
        read_generator({k: v for k, v in state.items() if k != f"module.{name}"})
    cut = state[f"module.{name}"][:-1]
    with pytest.raises(ValueError, match=rf"generator: module\.{name} has shape [^;]*$"):
        read_generator({**state, f"module.{name}": cut})
    with pytest.raises(ValueError, match=rf"module\.{name} is no tensor"):
        read_generator({**state, f"module.{name}": 3})  # type: ignore[dict-item]


def test_a_discriminator_that_does_not_fit_is_refused() -> None:
    state = named(DFDiscriminator(16, 2, 6).state_dict(), DISCRIMINATOR)
    body, head = ({k: v for k, v in state.items() if k.startswith("joint") == top} for top in (False, True))
    assert read_discriminator(body, head).text_dim == 6
    for name in state:
        parts = [{k: v for k, v in part.items() if k != name} for part in (body, head)]
        with pytest.raises(ValueError, match=rf"missing {name}$"):
            read_discriminator(*parts)
    with pytest.raises(ValueError, match="unexpected a; unexpected b"):
        read_discriminator(body | {"a": torch.zeros(1)}, head | {"b": torch.zeros(1)})
    generator = named(DFGenerator(16, 2, 4, 6).state_dict(), GENERATOR)
    with pytest.raises(ValueError, match="netD alone"):
        nets({"netG": generator, "netD": body}, "x")
    with pytest.raises(ValueError, match="beside model there is ema; known are optimizers, epoch"):
        nets({"model": {"netG": generator}, "ema": {}}, "x")
    with pytest.raises(ValueError, match="x has no netG"):
        nets({"model": {"netD": body, "netC": head}}, "x")


def theirs(state: State, name: Any, before: str = "module.") -> State:
    return {before + name(key): value for key, value in state.items()}


@pytest.mark.parametrize(("size", "channels", "condition"), [(16, 2, 3), (64, 4, 5)])
def test_stackgans_sizes_are_read_from_shapes(size: int, channels: int, condition: int) -> None:
    one = StageOne(size, channels, condition + 4, 6, condition).eval()
    two = StageTwo(4 * size, 8, 6, condition, num_res_blocks=3).eval()
    state = theirs(one.state_dict(), generator_name)
    noise, text = torch.randn(2, one.noise_dim), torch.randn(2, 6)
    coarse = one(noise, text).image
    torch.testing.assert_close(read_stage1(state)(noise, text).image, coarse)
    held = theirs(one.state_dict(), generator_name, "module.STAGE1_G.") | theirs(two.state_dict(), generator_name)
    first, second = read_stage2(held)
    torch.testing.assert_close(first(noise, text).image, coarse)
    torch.testing.assert_close(second(coarse, noise[:, :condition], text).image,
                               two(coarse, noise[:, :condition], text).image)
    judge = StackDiscriminator(4 * size, 2, condition, unconditional=True).eval()
    again = read_judge(theirs(judge.state_dict(), discriminator_name),
                       StackDiscriminator(4 * size, 2, condition, unconditional=True))
    seen = judge.features(torch.randn(2, 3, 4 * size, 4 * size))
    a, b = again.logits(seen, noise[:, :condition]), judge.logits(seen, noise[:, :condition])
    assert a.unconditional is not None and b.unconditional is not None
    assert torch.equal(a.conditional, b.conditional) and torch.equal(a.unconditional, b.unconditional)
    for name in state:
        with pytest.raises(ValueError, match=rf"generator: missing {name}$"):
            read_stage1({k: v for k, v in state.items() if k != name})
    with pytest.raises(ValueError, match=r"missing module\.STAGE1_G\.fc\.1\.bias$"):
        read_stage2({k: v for k, v in held.items() if k != "module.STAGE1_G.fc.1.bias"})
    with pytest.raises(ValueError, match=r"missing module\.hr_joint\.1\.num_batches_tracked$"):
        read_stage2({k: v for k, v in held.items() if k != "module.hr_joint.1.num_batches_tracked"})
    with pytest.raises(ValueError, match=r"has no module\.STAGE1_G\.…"):
        read_stage2(theirs(two.state_dict(), generator_name))


def test_stage_twos_discriminator_has_the_published_layers() -> None:
    net = StackDiscriminator(256, 2, 5, unconditional=True)
    state = theirs(net.state_dict(), discriminator_name, "")
    kernels = [int(k.split(".")[1]) for k, v in state.items() if k.startswith("encode_img.") and v.ndim == 4]
    assert kernels == [0, 2, 5, 8, 11, 14, 17, 20] and state["encode_img.20.weight"].shape == (16, 32, 3, 3)
    assert "get_uncond_logits.outlogits.0.bias" in state


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_of_numpy_and_both_formats_are_read(tmp_path: Path, zipped: bool) -> None:
    held = {"w": torch.arange(3.0), "best": np.float64(0.25), "step": np.int64(-7), "on": np.bool_(True),
            "big": np.array(3, ">i4")[()]}
    torch.save(held, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    read = read_tensors(tmp_path / "x.pth")
    assert torch.equal(read.pop("w"), held.pop("w")) and read == held
    assert {type(value) for value in read.values()} == {float, int, bool}
    torch.save({"a": np.zeros(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"reading it would need .*_reconstruct"):
        read_tensors(tmp_path / "x.pth")


def test_safetensors_are_read(tmp_path: Path) -> None:
    state = named(DFGenerator(16, 2, 4, 8).state_dict(), GENERATOR)
    save_file(state, tmp_path / "netG.safetensors")
    assert read_generator(read_tensors(tmp_path / "netG.safetensors")).image_size == 16
    whole = (tmp_path / "netG.safetensors").read_bytes()
    (tmp_path / "netG.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="damaged safetensors"):
        read_tensors(tmp_path / "netG.safetensors")


def test_nothing_in_a_file_runs(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "x.pth"
    for zipped in (True, False):
        torch.save({"model": {"netG": Evil()}}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"reading it would need .*print"):
            read_tensors(path)
    path.write_text("<!DOCTYPE html><html>")
    with pytest.raises(ValueError, match="is a web page"):
        read_tensors(path)
    assert "executed" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small DF-GAN with its text encoder and words, in the published layouts."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    generator, judge = DFGenerator(16, 2, 4, 8), DFDiscriminator(16, 2, 8)
    for name, value in generator.named_parameters():
        if ".scale.2.weight" in name:  # otherwise it does not hear its captions
            torch.nn.init.normal_(value, std=2.0)
    nets = named(judge.state_dict(), DISCRIMINATOR)
    held = {"netG": {f"module.{k}": v for k, v in named(generator.state_dict(), GENERATOR).items()},
            "netD": {k: v for k, v in nets.items() if not k.startswith("joint")},
            "netC": {k: v for k, v in nets.items() if k.startswith("joint")}}
    torch.save({"model": held, "optimizers": {}, "epoch": 1220}, folder / "state_epoch_1220.pth")
    words = {"<end>": 0, "a": 1, "red": 2, "bird": 3, "blue": 4}
    lstm = torch.nn.LSTM(300, 4, bidirectional=True)
    state = {"encoder.weight": torch.randn(5, 300), **{f"rnn.{k}": v for k, v in lstm.state_dict().items()}}
    torch.save(state, folder / "text_encoder200.pth")
    (folder / "captions_DAMSM.pickle").write_bytes(
        pickle.dumps([[[1]], [[2]], {i: w for w, i in words.items()}, words], protocol=2))
    (folder / "wrong.pickle").write_bytes(pickle.dumps([[], [], {0: "<end>"}, {"<end>": 0}], protocol=2))
    return {p.name: p for p in folder.iterdir()}


def test_a_published_dfgan_is_drawn_from(tmp_path: Path, files: dict[str, Path]) -> None:
    def draw(out: str, prompt: str) -> bytes:
        words = [f"ckpt={files['state_epoch_1220.pth']}", f"prompt={prompt}", "n=1", f"out={tmp_path / out}",
                 f"text_encoder.path={files['text_encoder200.pth']}", "truncation=0.88", "device=cpu",
                 f"text_encoder.vocabulary={files['captions_DAMSM.pickle']}"]
        done = text_to_image.run(compose(words, "sample"))
        assert len(done["request"]["text_encoder"]) == 2
        return Path(done["files"][0]).read_bytes()

    assert draw("a", "a red bird") == draw("b", "a red bird") != draw("c", "a blue bird")


def test_what_is_missing_is_told(files: dict[str, Path], tmp_path: Path) -> None:
    path = files["state_epoch_1220.pth"]
    with pytest.raises(ValueError, match=r"(?s)text_encoder\.path= and text_encoder\.vocabulary= are missing.*AttnGAN"):
        load_generator(path)
    with pytest.raises(ValueError, match=r"text_encoder\.vocabulary= is missing"):
        load_generator(path, files["text_encoder200.pth"])
    with pytest.raises(ValueError, match=r"wrong\.pickle has 1 words.*has 5 rows"):
        load_generator(path, files["text_encoder200.pth"], files["wrong.pickle"])
    with pytest.raises(ValueError, match=r"no such file or folder"):
        load_generator(path, tmp_path / "none.pth", files["captions_DAMSM.pickle"])
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"nor of one that is read: DF-GAN .* It holds x"):
        load_generator(tmp_path / "x.pth")
    weights, _ = golden("stackgan_tiny_stage1_generator")
    torch.save(weights, tmp_path / "netG.pth")
    with pytest.raises(ValueError, match="StackGAN, whose captions are embeddings of 64 numbers"):
        load_generator(tmp_path / "netG.pth")
    torch.save(golden("stackgan_tiny_stage1_discriminator")[0], tmp_path / "netD.pth")
    with pytest.raises(ValueError, match="a discriminator, which draws nothing"):
        load_generator(tmp_path / "netD.pth")


def folder(path: Path, hidden: int) -> Path:
    BiLSTMText.of(BiLSTM(5, 6, hidden), WordTokenizer(["<end>", "a", "red", "bird", "blue"]), "x").save(path)
    return path


def test_a_folder_of_ours_tells_captions_too(files: dict[str, Path], tmp_path: Path) -> None:
    path, words = files["state_epoch_1220.pth"], folder(tmp_path / "words", 4)
    model = load_generator(path, words)
    assert model.kind == "dfgan" and model.image_size == 16 and model.options == {"truncation": None}
    assert model.sample(["a bird"], seeds=[1], truncation=0.5).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="has its own words"):
        load_generator(path, words, files["captions_DAMSM.pickle"])
    with pytest.raises(ValueError, match=r"its sentences have 6 numbers, the generator in .* takes 8"):
        load_generator(path, folder(tmp_path / "narrow", 3))


def test_stackgan_is_drawn_under_a_folder_of_its_width(tmp_path: Path) -> None:
    one, two = StageOne(8, 2, 5, 8, 3), StageTwo(32, 4, 8, 3, num_res_blocks=1)
    first = theirs(one.state_dict(), generator_name, "")
    torch.save(first, tmp_path / "one.pth")
    torch.save(theirs(first, str, "STAGE1_G.") | theirs(two.state_dict(), generator_name, ""), tmp_path / "two.pth")
    words = folder(tmp_path / "words", 4)
    for name, kind, size in (("one", "stackgan1", 8), ("two", "stackgan2", 32)):
        model = load_generator(tmp_path / f"{name}.pth", words)
        assert model.kind == kind and model.image_size == size
        a, b, c = (model.sample([text], seeds=[seed]) for text, seed in (("a bird", 1), ("a bird", 1), ("a bird", 2)))
        assert a.shape == (1, 3, size, size) and torch.equal(a, b) and not torch.equal(a, c)
        with pytest.raises(ValueError, match=r"sentences have 8 numbers \(text_encoder\.path=.* has 6\)"):
            load_generator(tmp_path / f"{name}.pth", folder(tmp_path / "narrow", 3))


def test_checkpoints_of_ours_keep_their_messages(files: dict[str, Path], tmp_path: Path) -> None:
    def refused(message: str, **changes: Any) -> None:
        with pytest.raises(ValueError, match=message):
            text_to_image.run(compose([f"ckpt={tmp_path / 'x.ckpt'}", "prompt=x", f"out={tmp_path / 'out'}",
                                       "device=cpu",
                                 *(f"{key}={value}" for key, value in changes.items())], "sample"))
        assert not (tmp_path / "out").exists()

    node = {"_target_": "t2i.nets.dfgan.Head", "in_channels": 2, "channels": 2, "text_dim": 2}
    net = building.build(node)
    section = file_format.pack(net, {"model": node})
    held = {"state_dict": net.state_dict(), "t2i": section}
    atomic.save_atomic(held, tmp_path / "x.ckpt")
    refused(r"x\.ckpt holds a head; a prior or prior_any or dfgan")
    atomic.save_atomic({**held, "t2i": {**section, "format": 2}}, tmp_path / "x.ckpt")
    refused("has format 2")
    (tmp_path / "x.ckpt").write_text("<html>")
    refused("is a web page")
    (tmp_path / "x.ckpt").write_bytes(files["state_epoch_1220.pth"].read_bytes())
    words = {"text_encoder.path": folder(tmp_path / "words", 4)}
    refused("nearest=true needs the pictures.*has no section 't2i'", nearest="true", **words)
    refused("temperature=1: a dfgan has no such option", temperature=1, **words)
    refused(r"text_encoder\.path= and text_encoder\.vocabulary= are missing")
    with pytest.raises(ConfigError, match=r"text_encoder\.vocabulary=none: no such file"):
        compose([f"ckpt={tmp_path / 'x.ckpt'}", "prompt=x", "text_encoder.vocabulary=none"], "sample")


def test_a_checkpoint_of_ours_takes_no_other_text_encoder(tmp_path: Path) -> None:
    encoder = BiLSTMText(str(folder(tmp_path / "words", 4)))
    node = {"_target_": "t2i.models.dfgan.DFGAN", "text_dim": 8, "max_steps": 1, "text_encoder": None,
            "generator": {"_target_": "t2i.nets.dfgan.DFGenerator", "image_size": 8, "channels": 2, "text_dim": 8},
            "discriminator": {"_target_": "t2i.nets.dfgan.DFDiscriminator", "image_size": 8, "channels": 2,
                              "text_dim": 8}}
    model = building.build(node, text_encoder=encoder)
    atomic.save_atomic({"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": node})},
                           tmp_path / "x.ckpt")
    assert open_model({"ckpt": tmp_path / "x.ckpt"}, text_to_image.KINDS).kind == "dfgan"
    with pytest.raises(ValueError, match="is for other projects' files"):
        open_model({"ckpt": tmp_path / "x.ckpt", "text_encoder": {"path": "x"}}, text_to_image.KINDS)
