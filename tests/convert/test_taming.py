"""taming-transformers' VQGAN files: golden arrays, other sizes, Lightning's checkpoints, strictness, a prior on top."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from t2i.checkpoint import atomic, building, file_format
from t2i.checkpoint.weights_hash import weights_hash
from t2i.config.compose import compose
from t2i.convert.reader import load_generator
from t2i.convert.tokenizers import load_tokenizer, read_taming, taming_name
from t2i.data.datasets import data_module
from t2i.models.clip import CLIP
from t2i.types import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
SHARED = Path(__file__).parents[3] / "shared" / "golden"
State = dict[str, Tensor]


def halves(held: State) -> tuple[State, State]:
    """The weights and the arrays of a golden file."""
    return tuple({k.partition("/")[2]: v for k, v in held.items() if k.startswith(start)}  # type: ignore[return-value]
                 for start in ("weight/", "io/"))


def golden() -> tuple[State, State]:
    held: State = {}
    for path in sorted(GOLDEN.glob("taming_vqgan_tiny-*.safetensors")):
        held |= load_file(path)
    return halves(held)


def close(a: Tensor, b: Tensor) -> None:
    assert float((a.detach() - b).abs().max()) < 2e-5


def random_state(channels: int, multipliers: tuple[int, ...], blocks: int, attention: tuple[int, ...], z: int, dim: int,
                 codes: int, gumbel: bool = False) -> State:
    """Weights under the published names, with no net of ours in between."""
    state: State = {}
    generator = torch.Generator().manual_seed(channels + blocks + codes)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        state[f"{name}.weight"] = normal(out, into, kernel, kernel) / (into * kernel**2) ** 0.5
        state[f"{name}.bias"] = 0.1 * normal(out)

    def norm(name: str, width: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + 0.1 * normal(width), 0.1 * normal(width)

    def block(name: str, into: int, out: int) -> None:
        norm(f"{name}.norm1", into)
        conv(f"{name}.conv1", out, into, 3)
        norm(f"{name}.norm2", out)
        conv(f"{name}.conv2", out, out, 3)
        if into != out:
            conv(f"{name}.nin_shortcut", out, into, 1)

    def attend(name: str, width: int) -> None:
        norm(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{name}.{part}", width, width, 1)

    def middle(name: str, width: int) -> None:
        block(f"{name}.block_1", width, width)
        attend(f"{name}.attn_1", width)
        block(f"{name}.block_2", width, width)

    widths = [channels * m for m in multipliers]
    last = len(widths) - 1
    conv("encoder.conv_in", channels, 3, 3)
    now = channels
    for i, width in enumerate(widths):
        for b in range(blocks):
            block(f"encoder.down.{i}.block.{b}", now, width)
            now = width
            if i in attention:
                attend(f"encoder.down.{i}.attn.{b}", width)
        if i < last:
            conv(f"encoder.down.{i}.downsample.conv", width, width, 3)
    middle("encoder.mid", now)
    norm("encoder.norm_out", now)
    conv("encoder.conv_out", z, now, 3)
    conv("decoder.conv_in", now, z, 3)
    middle("decoder.mid", now)
    for i in range(last, -1, -1):
        for b in range(blocks + 1):
            block(f"decoder.up.{i}.block.{b}", now, widths[i])
            now = widths[i]
            if i in attention:
                attend(f"decoder.up.{i}.attn.{b}", now)
        if i > 0:
            conv(f"decoder.up.{i}.upsample.conv", now, now, 3)
    norm("decoder.norm_out", now)
    conv("decoder.conv_out", 3, now, 3)
    conv("quant_conv", dim, z, 1)
    conv("post_quant_conv", z, dim, 1)
    if gumbel:
        conv("quantize.proj", codes, dim, 1)
        state["quantize.embed.weight"] = normal(codes, dim)
    else:
        state["quantize.embedding.weight"] = normal(codes, dim)
    return state


class Reference:
    """What VQGAN's paper describes, computed straight from the published names."""

    def __init__(self, state: State) -> None:
        self.state = state

    def conv(self, name: str, x: Tensor, **how: Any) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = how.pop("padding", weight.shape[-1] // 2)
        return F.conv2d(x, weight, self.state[f"{name}.bias"], padding=padding, **how)

    def norm(self, name: str, x: Tensor) -> Tensor:
        return F.group_norm(x, 32, self.state[f"{name}.weight"], self.state[f"{name}.bias"], eps=1e-6)

    def block(self, name: str, x: Tensor) -> Tensor:
        h = self.conv(f"{name}.conv1", F.silu(self.norm(f"{name}.norm1", x)))
        h = self.conv(f"{name}.conv2", F.silu(self.norm(f"{name}.norm2", h)))
        return h + (self.conv(f"{name}.nin_shortcut", x) if f"{name}.nin_shortcut.weight" in self.state else x)

    def attend(self, name: str, x: Tensor) -> Tensor:
        q, k, v = (self.conv(f"{name}.{part}", self.norm(f"{name}.norm", x)).flatten(2) for part in "qkv")
        shares = (torch.einsum("bci,bcj->bij", q, k) / q.shape[1] ** 0.5).softmax(2)
        return x + self.conv(f"{name}.proj_out", torch.einsum("bij,bcj->bci", shares, v).view_as(x))

    def blocks(self, name: str, x: Tensor) -> Tensor:
        i = 0
        while f"{name}.block.{i}.conv1.weight" in self.state:
            x = self.block(f"{name}.block.{i}", x)
            if f"{name}.attn.{i}.q.weight" in self.state:
                x = self.attend(f"{name}.attn.{i}", x)
            i += 1
        return x

    def middle(self, name: str, x: Tensor) -> Tensor:
        return self.block(f"{name}.block_2", self.attend(f"{name}.attn_1", self.block(f"{name}.block_1", x)))

    def encode(self, x: Tensor) -> Tensor:
        x, i = self.conv("encoder.conv_in", x), 0
        while f"encoder.down.{i}.block.0.conv1.weight" in self.state:
            x = self.blocks(f"encoder.down.{i}", x)
            if f"encoder.down.{i}.downsample.conv.weight" in self.state:
                x = self.conv(f"encoder.down.{i}.downsample.conv", F.pad(x, (0, 1, 0, 1)), stride=2, padding=0)
            i += 1
        x = F.silu(self.norm("encoder.norm_out", self.middle("encoder.mid", x)))
        return self.conv("quant_conv", self.conv("encoder.conv_out", x))

    def decode(self, z_q: Tensor) -> Tensor:
        x = self.middle("decoder.mid", self.conv("decoder.conv_in", self.conv("post_quant_conv", z_q)))
        levels = [i for i in range(20) if f"decoder.up.{i}.block.0.conv1.weight" in self.state]
        for i in reversed(levels):
            x = self.blocks(f"decoder.up.{i}", x)
            if i > 0:
                x = self.conv(f"decoder.up.{i}.upsample.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3))
        return self.conv("decoder.conv_out", F.silu(self.norm("decoder.norm_out", x)))


def test_the_golden_arrays() -> None:
    weights, io = golden()
    tokenizer = read_taming(weights)
    assert isinstance(tokenizer, Tokenizer) and not tokenizer.training
    assert (tokenizer.codebook_size, tokenizer.factors) == (64, (64,))
    assert (tokenizer.grid, tokenizer.image_size) == ((16, 16), 32)
    close(tokenizer.latents(io["image"]), io["latent"])
    assert torch.equal(tokenizer.encode(io["image"]), io["indices"])
    z_q = tokenizer.quantize(io["image"]).z_q
    close(z_q, io["quantized"])
    close(tokenizer.decode(z_q), io["reconstruction"])
    close(tokenizer.decode_ids(io["codes"]), io["decoded"].clamp(-1, 1))
    close(tokenizer.decode(tokenizer.quantizer.decode_ids(io["codes"].view(2, 16, 16))), io["decoded"])
    close(Reference(weights).decode(Reference(weights).encode(io["image"])), tokenizer.decode(io["latent"]).detach())


# 6 MB, compared where they lie beside the checkout. What runs everywhere: the same VQGAN's arrays above, Gumbel's
# quantiser (test_quantizers.py), and files as Lightning 1.x writes them, further down.
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the golden arrays whole")
def test_the_golden_file_of_lightning_and_gumbel_s_arrays() -> None:
    weights, io = golden()
    tokenizer = load_tokenizer(SHARED / "taming_vqgan_tiny_lightning1.ckpt")
    assert torch.equal(tokenizer.encode(io["image"]), io["indices"])
    weights, io = halves(load_file(SHARED / "taming_gumbel_tiny.safetensors"))
    tokenizer = read_taming(weights)
    close(tokenizer.autoencoder.encoder(io["image"]), io["latent"])
    z_q = tokenizer.quantizer.decode_ids(io["indices"].view(2, 16, 16))
    assert torch.equal(z_q, io["quantized"])
    close(tokenizer.decode(z_q), io["reconstruction"])
    close(tokenizer.decode(tokenizer.quantizer.decode_ids(io["codes"].view(2, 16, 16))), io["decoded"])
    torch.manual_seed(2)  # the reference's indices are drawn, with the noise that followed its picture
    torch.rand(2, 3, 32, 32)
    tokenizer.quantizer.train()
    assert torch.equal(tokenizer.quantize(io["image"]).ids.flatten(1), io["indices"])


SIZES = [
    # channels, multipliers, blocks, attention, z, dim, codes, gumbel, picture
    (32, (1,), 1, (), 8, 4, 16, False, (8, 8)),
    (32, (1, 1, 2), 2, (2,), 16, 16, 50, False, (24, 24)),
    (64, (1, 2), 1, (0, 1), 32, 8, 33, False, (16, 24)),
    (32, (2, 1, 3), 1, (1,), 12, 20, 40, False, (16, 16)),
    (32, (1, 2, 2, 4), 3, (2, 3), 24, 24, 64, True, (32, 16)),
    (96, (1, 1), 1, (), 16, 16, 20, True, (12, 12)),
]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_other_sizes_are_read_from_shapes(sizes: Any) -> None:
    *arguments, picture = sizes
    channels, multipliers, blocks, attention, _, dim, codes, gumbel = arguments
    state = random_state(*arguments)
    tokenizer = read_taming(state)
    autoencoder = tokenizer.config["autoencoder"]
    assert autoencoder["multipliers"] == list(multipliers) and autoencoder["attention_levels"] == list(attention)
    assert (autoencoder["channels"], autoencoder["num_res_blocks"]) == (channels, blocks)
    assert tokenizer.codebook_size == codes
    assert sum(p.numel() for p in tokenizer.parameters()) == sum(value.numel() for value in state.values())
    image = torch.rand(2, 3, *picture, generator=torch.Generator().manual_seed(1)) * 2 - 1
    reference = Reference(state)
    z = reference.encode(image)
    close(tokenizer.quant_conv(tokenizer.autoencoder.encoder(image)), z)
    close(tokenizer.decode(z), reference.decode(z))
    if gumbel:
        ids = reference.conv("quantize.proj", z).argmax(1)
        close(tokenizer.decode(tokenizer.latents(image)), reference.decode(torch.einsum(
            "bkhw,kd->bdhw", reference.conv("quantize.proj", z).softmax(1), state["quantize.embed.weight"])))
    else:
        close(tokenizer.latents(image), z)
        flat = z.permute(0, 2, 3, 1).reshape(-1, dim)
        ids = torch.cdist(flat, state["quantize.embedding.weight"]).argmin(1).view(z.shape[0], *z.shape[2:])
    assert torch.equal(tokenizer.encode(image), ids.flatten(1))
    if picture[0] == picture[1]:
        z_q = F.embedding(ids, tokenizer.codebooks()[0]).permute(0, 3, 1, 2)
        close(tokenizer.decode_ids(ids.flatten(1)), reference.decode(z_q).clamp(-1, 1))


PUBLISHED = {"taming_vqgan_imagenet_f16_1024": 72_141_699, "taming_vqgan_imagenet_f16_16384": 76_073_859,
             "taming_gumbel_f8_8192": 68_995_971}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_the_published_sizes(name: str) -> None:
    listed = json.loads((GOLDEN / f"{name}.shapes.json").read_text())["tensors"]
    shapes = {key: tuple(size) for key, (_, *size) in listed.items()}
    tokenizer = read_taming({key: torch.empty(size, device="meta") for key, size in shapes.items()})
    turn = taming_name("gumbel" in name)
    assert {turn(key): tuple(value.shape) for key, value in tokenizer.state_dict().items()} == shapes
    assert sum(p.numel() for p in tokenizer.parameters()) == PUBLISHED[name]
    assert tokenizer.image_size == 256 and tokenizer.grid == ((32, 32) if "f8" in name else (16, 16))


def test_our_own_yaml_of_the_same_shape() -> None:
    listed = json.loads((GOLDEN / "taming_vqgan_imagenet_f16_1024.shapes.json").read_text())["tensors"]
    tokenizer = read_taming({key: torch.empty(size, device="meta") for key, (_, *size) in listed.items()})
    node = compose(["model=vqgan_f16_1024", "data.image_size=256"])["model"]
    assert node["autoencoder"] | {"num_groups": 32} == node["autoencoder"]
    assert tokenizer.config["autoencoder"].items() <= node["autoencoder"].items()


TINY = (32, (1, 2), 1, (1,), 8, 8, 16)


def lightning(path: Path, state: State, monkeypatch: pytest.MonkeyPatch, zipped: bool = True) -> Path:
    """A file as Lightning 1.x wrote it, whose pickle names a class of the program that trained it."""
    module = ModuleType("main")
    module.SetupCallback = type("SetupCallback", (), {"__module__": "main"})  # type: ignore[attr-defined]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "main", module)
        held = {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "1.0.8", "state_dict": state,
                "callbacks": {module.SetupCallback: {}}, "optimizer_states": [{"state": {0: torch.zeros(3)}}]}
        torch.save(held, path, _use_new_zipfile_serialization=zipped)
    return path


FORMS = ["lightning", "lightning, old", "bare", "module.", "safetensors", "half", "transformer"]


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_files(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = random_state(*TINY)
    loss = {"loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4), "loss.perceptual_loss.lin0.model.1.weight":
            torch.zeros(1)}
    path = tmp_path / "last.ckpt"
    if form.startswith("lightning"):
        lightning(path, state | loss, monkeypatch, zipped="old" not in form)
    elif form == "bare":
        torch.save(state | loss, path)
    elif form == "module.":
        torch.save({f"module.{name}": value for name, value in state.items()}, path)
    elif form == "safetensors":
        save_file(state | loss, path)
    elif form == "half":
        state = {name: value.half() for name, value in state.items()}
        torch.save({"state_dict": state}, path)
    else:  # faceshq and sflckr are such files
        stage = {f"first_stage_model.{name}": value for name, value in (state | loss).items()}
        torch.save({"state_dict": stage | {"transformer.head.weight": torch.zeros(2, 2), "cond_stage_model.x":
                                           torch.zeros(1)}}, path)
    tokenizer = load_tokenizer(path)
    assert "SetupCallback" not in vars(sys.modules.get("main", object))
    expected = read_taming(state)
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.state_dict().values(), expected.state_dict().values(),
                                                 strict=True))
    assert all(value.dtype == torch.float32 for value in tokenizer.state_dict().values())
    assert not any(p.requires_grad for p in tokenizer.parameters())


@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "encoder.down.1.block.0.conv1.weight", "quant_conv.weight",
                                  "decoder.up.0.block.1.norm2.bias", "decoder.up.1.attn.0.q.weight",
                                  "post_quant_conv.bias", "encoder.conv_out.weight", "decoder.mid.attn_1.v.bias"])
def test_the_tensor_at_fault_is_named(name: str) -> None:
    state = random_state(*TINY)
    with pytest.raises(ValueError, match=rf"the state dict are no VQGAN of taming-transformers: missing {name}$"):
        read_taming({k: v for k, v in state.items() if k != name})
    wrong = torch.zeros([size + 1 for size in state[name].shape])
    with pytest.raises(ValueError, match=rf": {name} has shape .* is wanted$"):
        read_taming(state | {name: wrong})


def test_what_does_not_fit_is_named() -> None:
    state = random_state(*TINY)
    with pytest.raises(ValueError, match=r": unexpected quantize\.used$"):
        read_taming(state | {"quantize.used": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"unexpected encoder\.down\.0\.attn\.0\.q\.weight|missing .*\.0\.attn"):
        read_taming(state | {"encoder.down.0.attn.0.q.weight": torch.zeros(32, 32, 1, 1)})
    with pytest.raises(ValueError, match=r"encoder\.conv_in\.weight has shape \(32, 182, 3, 3\), \(32, 3, 3, 3\)"):
        read_taming(state | {"encoder.conv_in.weight": torch.zeros(32, 182, 3, 3)})
    with pytest.raises(ValueError, match="the tensors that tell its sizes lack"):
        read_taming({"quantize.embedding.weight": torch.zeros(3, 3), "encoder.down.0.block.0.x": torch.zeros(1)})
    with pytest.raises(ValueError, match="image_size=9 is not divisible by the autoencoder's factor 2"):
        read_taming(state, image_size=9)
    stage = {f"first_stage_model.{name}": value for name, value in state.items()}
    with pytest.raises(ValueError, match=r"beside first_stage_model\.… there is strange\.x"):
        read_taming(stage | {"transformer.x": torch.zeros(1), "strange.x": torch.zeros(1)})


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "stable diffusion": (lambda: {"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(1),
                                                 "first_stage_model.encoder.down.0.block.0.x": torch.zeros(1)}},
                         r"is a Stable Diffusion \(latent diffusion\) checkpoint \(model\.diffusion_model"),
    "its autoencoder": (lambda: {"encoder.down.0.block.0.norm1.weight": torch.zeros(1),
                                 "quant_conv.weight": torch.zeros(8, 8, 1, 1)},
                        r"is an autoencoder without a codebook, as Stable Diffusion has"),
    "diffusers": (lambda: {"encoder.down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)},
                  r"is a Diffusers file \(encoder\.down_blocks"),
    "diffusers' unet": (lambda: {"down_blocks.0.resnets.0.conv1.weight": torch.zeros(1)}, "is a Diffusers file"),
    "clip": (lambda: {"text_model.embeddings.x": torch.zeros(1)}, "is a CLIP"),
    "df-gan": (lambda: {"model": {"netG": {"fc.weight": torch.zeros(1)}}}, "is a DF-GAN, not a tokenizer"),
    "anything": (lambda: {"x.weight": torch.zeros(1)}, r"It holds x\.weight"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_other_files_are_called_by_their_names(what: str, tmp_path: Path) -> None:
    content, words = REFUSED[what]
    path = tmp_path / "vqgan.ckpt"
    torch.save(content(), path)
    with pytest.raises(ValueError, match=words) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value) and "VQGAN of taming-transformers, VQ of LlamaGen" in str(caught.value)
    if what not in ("df-gan", "anything"):
        with pytest.raises(ValueError, match=words):
            load_generator(path)


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['T2I_TEST_FILE']}",)


def test_files_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "vqgan_imagenet_f16_16384.ckpt"
    path.write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(ValueError, match=r"16384\.ckpt is a web page, not a checkpoint"):
        load_tokenizer(path)
    torch.save({"state_dict": random_state(*TINY)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"16384\.ckpt is cut off after"):
        load_tokenizer(path)
    save_file(random_state(*TINY), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"16384\.ckpt is a damaged safetensors file"):
        load_tokenizer(path)
    monkeypatch.setenv("T2I_TEST_FILE", str(tmp_path / "ran"))
    torch.save({"state_dict": random_state(*TINY), "callbacks": Hostile()}, path)
    with pytest.raises(ValueError, match=r"reading it would need (posix|os)\.system\. Nothing in it was executed"):
        load_tokenizer(path)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="does not exist"):
        load_tokenizer(tmp_path / "nothing.ckpt")
    with pytest.raises(ValueError, match=r"is a folder without model\.safetensors"):
        load_tokenizer(tmp_path)
    (tmp_path / "model_index.json").touch()
    with pytest.raises(ValueError, match="is a pipeline of diffusers, which is not read; a VQModel's folder in it is"):
        load_tokenizer(tmp_path)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    sizes = {"width": 16, "num_layers": 1, "num_heads": 2, "text_width": 16, "text_layers": 1, "text_heads": 2}
    model = CLIP(image_size=16, patch_size=8, embed_dim=8, vocab_size=280, context_length=32, **sizes)
    model.prepare(["a red circle", "two blue squares"])
    model.export(tmp_path / "hf")
    return tmp_path / "hf"


def test_a_prior_on_a_published_tokenizer(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command of the README: the file gives codes to the cache and travels in the prior's checkpoint."""
    path = lightning(tmp_path / "vqgan_imagenet.ckpt", random_state(*TINY), monkeypatch)
    words = ["model=prior", "data=shapes", "data.image_size=16", "data.size=8", "data.val_size=4", "data.batch_size=4",
             "model.width=32", "model.num_layers=1", "model.num_heads=2", f"model.tokenizer.path={path}",
             f"text_encoder.path={clip}", f"paths.cache={tmp_path / 'cache'}"]
    config = compose(words)
    model = building.build(config["model"])
    assert model.tokenizer.grid == (8, 8) and model.image_size == 16
    data = data_module(config, model)
    head = json.loads(next((tmp_path / "cache/codes").glob("train-*/header.json")).read_text())
    assert head["tokenizer"] == weights_hash(read_taming(path)) and head["grid"] == [8, 8]
    batch = next(iter(data.train_dataloader()))
    assert batch.ids.shape == (4, 64)
    held = {"state_dict": model.state_dict(), "t2i": file_format.pack(model, config)}
    atomic.save_atomic(held, tmp_path / "prior.ckpt")
    expected = model.sample(["a red circle"], seeds=[3])
    path.unlink()
    again = building.load(tmp_path / "prior.ckpt", kind="prior")
    assert torch.equal(again.sample(["a red circle"], seeds=[3]), expected) and expected.shape == (1, 3, 16, 16)
    assert weights_hash(again.tokenizer) == head["tokenizer"]
    with pytest.raises(ValueError, match=r"vqgan_imagenet\.ckpt does not exist"):
        building.build(config["model"])


def test_codes_of_other_numbers_are_refused() -> None:
    tokenizer = read_taming(random_state(*TINY), image_size=16)
    assert tokenizer.decode_ids(torch.zeros(1, 64, dtype=torch.long)).shape == (1, 3, 16, 16)
    assert tokenizer.decode_ids(torch.zeros(1, 9, dtype=torch.long)).shape == (1, 3, 6, 6)
    with pytest.raises(ValueError, match="10 codes a picture: this tokenizer's are 8 x 8, or another square number"):
        tokenizer.decode_ids(torch.zeros(1, 10, dtype=torch.long))
