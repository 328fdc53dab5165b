"""Tokenizers as diffusers' VQModel and back, held against diffusers' own class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from t2i.checkpoint import atomic, building, file_format
from t2i.cli.console import main
from t2i.convert.convert import convert, export
from t2i.convert.inspection import inspected
from t2i.convert.tokenizers import load_tokenizer

NET = dict(channels=8, multipliers=[1, 1, 2], num_res_blocks=1, attention_levels=[1], z_channels=6, num_groups=4)


def saved(folder: Path, quantizer: Any = None, autoencoder: Any = None, **other: Any) -> Path:
    """A tokenizer's checkpoint with noise in every weight."""
    node = {"_target_": "t2i.nets.tokenizer.ImageTokenizer", "image_size": 16, **other,
            "autoencoder": {"_target_": "t2i.nets.autoencoder.Autoencoder", **(autoencoder or NET)},
            "quantizer": quantizer or {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 24, "dim": 5}}
    tokenizer = building.build(node)
    for value in tokenizer.state_dict().values():
        if value.is_floating_point():
            value.add_(0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(value.numel())))
    atomic.save_atomic({"state_dict": tokenizer.state_dict(), "t2i": file_format.pack(tokenizer, {"model": node})},
                       folder / "made.ckpt")
    return folder / "made.ckpt"


@pytest.fixture(scope="module")
def vq_model() -> Any:
    from diffusers.models.autoencoders.vq_model import VQModel

    return VQModel


@pytest.mark.parametrize("quantizer", ["vq", "ema"])
def test_diffusers_reads_what_we_write(vq_model: Any, tmp_path: Path, quantizer: str) -> None:
    node = {"_target_": f"t2i.quantizers.{quantizer}.{quantizer.upper()}", "codebook_size": 24, "dim": 5}
    path = saved(tmp_path, {**node, "kmeans_init": False} if quantizer == "ema" else node)
    assert main(["export", f"ckpt={path}", f"out={tmp_path / 'folder'}", "format=diffusers"]) == 0
    theirs, ours = vq_model.from_pretrained(tmp_path / "folder").eval(), load_tokenizer(path)
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(image).latents
        assert float((latents - ours.encoded(image)).abs().max()) < 1e-5
        assert torch.equal(theirs.quantize(latents)[2][2].view(2, -1), ours.encode(image))
        assert len(ours.encode(image).unique()) > 3
        assert float((theirs(image).sample - ours(image)[0]).abs().max()) < 1e-5
    back = load_tokenizer(tmp_path / "folder")
    assert torch.equal(back.encode(image), ours.encode(image)) and back.image_size == 16
    assert torch.equal(back.decode_ids(back.encode(image)), ours.decode_ids(ours.encode(image)))


@pytest.mark.parametrize("middle", [True, False])
def test_we_read_what_diffusers_writes(vq_model: Any, tmp_path: Path, middle: bool) -> None:
    torch.manual_seed(0)
    theirs = vq_model(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), block_out_channels=(8, 16),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), layers_per_block=2, latent_channels=3,
        num_vq_embeddings=16, norm_num_groups=8, vq_embed_dim=4, sample_size=24, mid_block_add_attention=middle).eval()
    theirs.quantize.embedding.weight.data.normal_()
    theirs.save_pretrained(tmp_path / "theirs")
    image = torch.rand(2, 3, 24, 24) * 2 - 1
    for path in (tmp_path / "theirs", convert(tmp_path / "theirs", tmp_path / "ours.safetensors")):
        ours = load_tokenizer(path)
        assert (ours.image_size, ours.grid, ours.codebook_size) == (24, (12, 12), 16)
        with torch.no_grad():
            assert float((theirs.encode(image).latents - ours.encoded(image)).abs().max()) < 1e-5
            assert float((theirs(image).sample - ours(image)[0]).abs().max()) < 1e-5
    assert "a VQModel of diffusers" in inspected(tmp_path / "theirs")


@pytest.mark.parametrize(("made", "fault"), [
    (dict(autoencoder={**NET, "patch_size": 2}), "autoencoder.patch_size=2"),
    (dict(autoencoder={**NET, "num_groups": 0}), "autoencoder.num_groups=0"),
    (dict(autoencoder={**NET, "antialias": True}), "autoencoder.antialias"),
    (dict(autoencoder={**NET, "attention_heads": 2}), "autoencoder.attention_heads=2"),
    (dict(autoencoder={**NET, "multipliers": [2, 4]}), "autoencoder.multipliers that begin with 2"),
    (dict(autoencoder={**NET, "num_groups": 16}), "num_groups that not all channels"),
    (dict(quantizer={"_target_": "t2i.quantizers.fsq.FSQ", "levels": [5, 3]}), "quantizer FSQ"),
    (dict(quantizer={"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 9, "dim": 4, "normalize": True}),
     "quantizer.normalize"),
    (dict(quantizer={"_target_": "t2i.quantizers.ema.EMA", "codebook_size": 9, "dim": 4}), "has not begun"),
    (dict(bounded_latents=True), "bounded_latents"),
    (dict(autoencoder={"_target_": "t2i.nets.two_colour.TwoColourAutoencoder", "channels": 8, "z_channels": 6,
                       "num_res_blocks": 1, "patch_size": 8}), "autoencoder TwoColour"),
])  # fmt: skip
def test_what_a_vq_model_cannot_express_is_refused(tmp_path: Path, made: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=rf"format=diffusers: \S+made\.ckpt has .*{fault}[^\n]*$"):
        export(saved(tmp_path, **made), tmp_path / "folder", format="diffusers")
    assert not (tmp_path / "folder").exists()


def test_a_folder_that_is_damaged_or_another_kind_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = saved(tmp_path), tmp_path / "folder"
    export(path, folder, format="diffusers")
    config, weights = folder / "config.json", folder / "diffusion_pytorch_model.safetensors"
    good, tensors = json.loads(config.read_text()), load_file(weights)
    for change, match in [
        ({"_class_name": "AutoencoderKL"}, r"config\.json: _class_name=AutoencoderKL, VQModel is read"),
        ({"act_fn": "relu"}, "act_fn=relu, silu is read"), ({"sample_size": 17}, "image_size=17 is not divisible"),
        ({"norm_num_groups": "x"}, "norm_num_groups='x'; allowed are whole numbers"),
        ({"norm_num_groups": 0}, "norm_num_groups=0; allowed"),
    ]:
        config.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=match):
            load_tokenizer(folder)
    config.unlink()
    with pytest.raises(ValueError, match=r"config\.json"):
        load_tokenizer(folder)
    config.write_text(json.dumps(good))
    save_file({k: v for k, v in tensors.items() if k != "decoder.up_blocks.0.resnets.0.conv1.bias"}, weights)
    with pytest.raises(ValueError, match=r"no VQModel of diffusers: missing decoder\.up_blocks\.0\.resnets\.0\.conv1"):
        load_tokenizer(folder)
    export(path, tmp_path / "exported")
    with pytest.raises(ValueError, match=r"exported has a model\.safetensors"):
        export(path, tmp_path / "exported", format="diffusers")
    with pytest.raises(ValueError, match="format=diffusers writes no card"):
        export(path, tmp_path / "other", license="mit", format="diffusers")
    with pytest.raises(SystemExit):
        main(["export", str(path), str(tmp_path / "other"), "format=onnx"])
    assert "invalid choice: 'onnx'" in capsys.readouterr().err
