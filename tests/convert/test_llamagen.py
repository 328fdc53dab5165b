"""LlamaGen's tokenizers: golden arrays, other sizes, forms of files, strictness."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from t2i.checkpoint import building
from t2i.convert.tokenizers import llamagen_name, load_tokenizer, read_llamagen
from t2i.nets.tokenizer import ImageTokenizer

GOLDEN = Path(__file__).parents[1] / "golden"
State = dict[str, Tensor]


def golden() -> tuple[State, State]:
    held = load_file(GOLDEN / "llamagen_vq_tiny-1.safetensors") | load_file(GOLDEN / "llamagen_vq_tiny-2.safetensors")
    return tuple({k.partition("/")[2]: v for k, v in held.items() if k.startswith(start)}  # type: ignore[return-value]
                 for start in ("weight/", "io/"))


def close(a: Tensor, b: Tensor) -> None:
    assert float((a.detach() - b).abs().max()) < 2e-5


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_golden_arrays(prefix: str) -> None:
    weights, io = golden()
    weights["quantize.codebook_used"] = torch.zeros(65536)
    tokenizer = read_llamagen({prefix + name: value for name, value in weights.items()})
    assert (tokenizer.codebook_size, tokenizer.grid, tokenizer.image_size) == (64, (16, 16), 32)
    close(tokenizer.quant_conv(tokenizer.autoencoder.encoder(io["image"])), io["latent"])
    close(tokenizer.latents(io["image"]), F.normalize(io["latent"], dim=1))
    assert torch.equal(tokenizer.encode(io["image"]), io["indices"])
    z_q = tokenizer.quantize(io["image"]).z_q
    close(z_q, io["quantized"])
    close(tokenizer.decode(z_q), io["reconstruction"])
    close(tokenizer.decode_ids(io["indices"]), io["reconstruction"].clamp(-1, 1))


def test_every_tensor_of_vq_16() -> None:
    listed = json.loads((GOLDEN / "llamagen_vq_ds16.shapes.json").read_text())["tensors"]
    shapes = {key: tuple(size) for key, (_, *size) in listed.items()}
    tokenizer = read_llamagen({key: torch.empty(size, device="meta") for key, size in shapes.items()})
    assert shapes.pop("quantize.codebook_used") == (65536,)
    assert {llamagen_name(5)(name): tuple(value.shape) for name, value in tokenizer.state_dict().items()} == shapes
    assert sum(p.numel() for p in tokenizer.parameters()) == 71_883_403
    assert (tokenizer.image_size, tokenizer.grid) == (256, (16, 16))


def net(multipliers: list[int], channels: int = 32, z: int = 12, dim: int = 6, codes: int = 40) -> State:
    """The llamagen_name names and values of a net with random weights."""
    node = {"_target_": "t2i.nets.tokenizer.ImageTokenizer", "image_size": 64,
            "autoencoder": {"_target_": "t2i.nets.autoencoder.Autoencoder", "channels": channels, "z_channels": z,
                            "multipliers": multipliers, "attention_levels": [len(multipliers) - 1],
                            "num_res_blocks": 2},
            "quantizer": {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": codes, "dim": dim}}
    made: ImageTokenizer = building.build(node)
    return {llamagen_name(len(multipliers))(name): torch.randn_like(value) / value[0].numel() ** 0.5
            for name, value in made.state_dict().items()}


@pytest.mark.parametrize(
    ("multipliers", "channels", "factor", "image_size"),
    [([1], 64, 1, 16), ([1, 2, 2], 32, 4, 64), ([1, 2, 2, 4], 32, 8, 256), ([2, 1, 1, 3, 2], 32, 16, 256)],
)
def test_other_sizes_are_read_from_shapes(multipliers: list[int], channels: int, factor: int, image_size: int) -> None:
    state = net(multipliers, channels)
    # The coarsest level is the decoder's first, and has its attention.
    assert "decoder.conv_blocks.0.attn.2.q.weight" in state
    assert state["decoder.conv_blocks.0.res.1.conv1.weight"].shape[0] == channels * multipliers[-1]
    tokenizer = read_llamagen(state)
    assert (tokenizer.autoencoder.factor, tokenizer.image_size) == (factor, image_size)
    assert tokenizer.config["autoencoder"]["multipliers"] == multipliers and tokenizer.quantizer.normalize
    for name, value in tokenizer.state_dict().items():
        assert torch.equal(value, state[llamagen_name(len(multipliers))(name)])
    ids = tokenizer.encode(torch.rand(1, 3, 2 * factor, 3 * factor))
    assert ids.shape == (1, 6) and read_llamagen(state, image_size=4 * factor).grid == (4, 4)


def test_forms_of_files(tmp_path: Path) -> None:
    state, other = net([1, 2]), net([1, 2])
    path = tmp_path / "vq_ds16_c2i.pt"
    expected = read_llamagen(state).state_dict()
    for held in ({"model": state}, {"ema": state, "model": other}, state,
                 {"model": state, "optimizer": {"state": {}}, "steps": 7, "args": argparse.Namespace(lr=1e-4)}):
        torch.save(held, path)
        found = load_tokenizer(path).state_dict()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    state, path = net([1, 2]), tmp_path / "vq.pt"
    name = "decoder.conv_blocks.1.res.0.conv1.weight"
    torch.save({"model": {k: v for k, v in state.items() if k != name}}, path)
    with pytest.raises(ValueError, match=rf"vq\.pt are no VQ tokenizer of LlamaGen: missing {name}$"):
        load_tokenizer(path)
    with pytest.raises(ValueError, match="unexpected quantize.extra"):
        read_llamagen(state | {"quantize.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"encoder\.mid\.1\.q\.weight has shape \(1,\)"):
        read_llamagen(state | {"encoder.mid.1.q.weight": torch.zeros(1)})
