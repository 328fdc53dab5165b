from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from t2i.nets.autoencoder import Autoencoder, Decoder, Encoder
from t2i.nets.resnet_blocks import Downsample, Upsample, norm_of

GOLDEN = Path(__file__).parents[1] / "golden"

_PARTS = {
    "conv_in": "stem",
    "conv_out": "head",
    "norm_out": "norm",
    "mid.block_1": "middle.0",
    "mid.attn_1": "middle.1",
    "mid.block_2": "middle.2",
    "nin_shortcut": "shortcut",
    "downsample.conv": "resize.conv",
    "upsample.conv": "resize.conv",
    "proj_out": "output",
    "norm1": "norm_1",
    "norm2": "norm_2",
    "conv1": "conv_1",
    "conv2": "conv_2",
    ".block.": ".blocks.",
    ".attn.": ".attentions.",
    ".q.": ".query.",
    ".k.": ".key.",
    ".v.": ".value.",
}


def our_name(theirs: str) -> str:
    """taming-transformers' name of an encoder or decoder weight to ours; the level numbers agree."""
    ours = re.sub(r"\.(down|up)\.(\d+)\.", r".levels.\2.", theirs)
    for old, new in _PARTS.items():
        ours = ours.replace(old, new)
    return ours


def fill(module: torch.nn.Module) -> None:
    """Weights from a formula, so that values can be written down without storing weights."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            n = torch.arange(parameter.numel(), dtype=torch.float64)
            wave = torch.sin(n * 0.7391 + i).view(parameter.shape).float()
            one_d = parameter.dim() == 1
            parameter.copy_(1 + 0.2 * wave if one_d else wave * parameter[0].numel() ** -0.5)


def test_reproduces_taming_transformers() -> None:
    golden = {}
    for path in sorted(GOLDEN.glob("taming_vqgan_tiny-*.safetensors")):
        golden |= load_file(path)
    weights = {key.removeprefix("weight/"): value for key, value in golden.items() if key.startswith("weight/")}
    net = Autoencoder(channels=32, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,), z_channels=16)
    net.load_state_dict({our_name(k): v for k, v in weights.items() if k.startswith(("encoder.", "decoder."))})
    with torch.no_grad():
        z = F.conv2d(net.encoder(golden["io/image"]), weights["quant_conv.weight"], weights["quant_conv.bias"])
        z_q = F.conv2d(golden["io/quantized"], weights["post_quant_conv.weight"], weights["post_quant_conv.bias"])
        codes = weights["quantize.embedding.weight"][golden["io/codes"]].view(2, 16, 16, 16).permute(0, 3, 1, 2)
        codes = F.conv2d(codes, weights["post_quant_conv.weight"], weights["post_quant_conv.bias"])
        torch.testing.assert_close(z, golden["io/latent"], atol=2e-5, rtol=0)
        torch.testing.assert_close(net.decoder(z_q), golden["io/reconstruction"], atol=2e-5, rtol=0)
        torch.testing.assert_close(net.decoder(codes), golden["io/decoded"], atol=2e-5, rtol=0)


def test_published_names_and_shapes() -> None:
    listed = json.loads((GOLDEN / "taming_vqgan_imagenet_f16_1024.shapes.json").read_text())["tensors"]
    wanted = {
        our_name(name): tuple(entry[1:]) for name, entry in listed.items() if name.startswith(("encoder.", "decoder."))
    }
    with torch.device("meta"):
        net = Autoencoder()
    assert {name: tuple(value.shape) for name, value in net.state_dict().items()} == wanted
    assert net.factor == 16


def test_values() -> None:
    """The values came from this net when it agreed with taming-transformers' arrays."""
    net = Autoencoder(channels=8, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,), z_channels=4)
    fill(net)
    image = torch.sin(torch.arange(3 * 16 * 16, dtype=torch.float64) * 0.317).float().view(1, 3, 16, 16)
    with torch.no_grad():
        z = net.encoder(image)
        out = net.decoder(z)
    torch.testing.assert_close(
        z[0, :, 3, 5], torch.tensor([3.394870, 0.067033, -3.058252, -5.567129]), atol=2e-5, rtol=0
    )
    torch.testing.assert_close(out[0, :, 7, 2], torch.tensor([0.891263, 0.875347, 0.753931]), atol=2e-5, rtol=0)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_sizes_and_last_layer(patch_size: int) -> None:
    net = Autoencoder(
        channels=8,
        multipliers=(1, 2),
        num_res_blocks=1,
        attention_levels=(),
        z_channels=4,
        patch_size=patch_size,
        mid_attention=False,
    )
    assert net.factor == 2 * patch_size == net.encoder.factor == net.decoder.factor
    image = torch.randn(2, 3, 16, 24)
    z = net.encoder(image)
    assert z.shape == (2, net.z_channels, 16 // net.factor, 24 // net.factor)
    out = net(image)
    assert out.shape == image.shape
    (grad,) = torch.autograd.grad(out.abs().mean(), net.last_layer)
    assert grad.shape == net.decoder.head.weight.shape and grad.abs().sum() > 0
    assert not any("query" in name for name, _ in net.named_parameters())


def test_all_parameters_get_a_gradient_under_bf16() -> None:
    net = Autoencoder(channels=8, multipliers=(1, 3), num_res_blocks=1, attention_levels=(1,), z_channels=4)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(torch.randn(1, 3, 8, 8))
    out.float().square().mean().backward()
    # A key's bias shifts all of a query's scores alike: its gradient is nothing but rounding.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_channels_last_gives_the_same() -> None:
    net = Autoencoder(channels=8, multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,), z_channels=4)
    image = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        plain = net(image)
        last = net.to(memory_format=torch.channels_last)(image.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(plain, last, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("frozen", [False, True])
def test_group_norm_and_its_gradients_are_torchs(dtype: torch.dtype, layout: Any, frozen: bool) -> None:
    """Weights stay in float32 under autocast."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(2, 12, 6, 5, generator=generator).to(dtype).contiguous(memory_format=layout)
                   for _ in range(2))
    norm = norm_of(12, 4)
    torch.nn.init.normal_(norm.weight, 1.0, generator=generator)
    norm.requires_grad_(not frozen)
    wanted, found = (x.clone().requires_grad_() for _ in range(2))
    y = torch.nn.functional.group_norm(wanted, 4, norm.weight, norm.bias, 1e-6)
    assert torch.equal(norm(found), y) and torch.equal(norm(x), y)
    each = [norm.weight, norm.bias] if not frozen else []
    a = torch.autograd.grad(y, [wanted, *each], gradient)
    b = torch.autograd.grad(norm(found), [found, *each], gradient)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)
    assert norm(found).stride() == x.stride()


def test_wrong_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"attention_levels=\[1, 2\]: \[2\] not among the levels 0..1"):
        Encoder(channels=8, multipliers=(1, 2), attention_levels=(1, 2))
    with pytest.raises(ValueError, match=r"multipliers=\[\]"):
        Decoder(channels=8, multipliers=(), attention_levels=())
    with pytest.raises(ValueError, match="patch_size=0"):
        Autoencoder(channels=8, patch_size=0)
    net = Encoder(channels=8, multipliers=(1, 2), num_res_blocks=1, attention_levels=(), z_channels=4)
    with pytest.raises(ValueError, match=r"15x16 .* factor 2"):
        net(torch.zeros(1, 3, 15, 16))


def test_antialiased_downsampling_blurs_by_the_binomial() -> None:
    down = Downsample(1, antialias=True)
    with torch.no_grad():
        down.conv.weight.zero_()[..., 1, 1] = 1
        down.conv.bias.zero_()
        impulse = torch.zeros(1, 1, 8, 8)
        impulse[..., 4, 4] = 1
        line = torch.tensor([0, 1 / 8, 3 / 8, 0])  # outputs lie in the middle of pixels 2 i and 2 i + 1
        torch.testing.assert_close(down(impulse)[0, 0], line[:, None] * line)
        torch.testing.assert_close(down(torch.ones(1, 1, 6, 4)), torch.ones(1, 1, 3, 2))  # up to the borders
        up = Upsample(1, antialias=True)
        up.conv.load_state_dict(down.conv.state_dict())
        line = torch.tensor([0, 0, 0, 1 / 4, 3 / 4, 3 / 4, 1 / 4, 0])
        torch.testing.assert_close(up(impulse[..., 2:6, 2:6])[0, 0], line[:, None] * line)


def test_antialiasing_makes_shifts_count_less_and_keeps_the_names() -> None:
    torch.manual_seed(0)
    small = {"channels": 8, "multipliers": (1, 1, 1), "num_res_blocks": 1, "attention_levels": (), "z_channels": 4,
             "num_groups": 4, "mid_attention": False}
    plain, blurred = Autoencoder(**small), Autoencoder(**small, antialias=True)
    blurred.load_state_dict(plain.state_dict())
    image = F.interpolate((torch.rand(4, 3, 16, 16) > 0.5).float() * 2 - 1, scale_factor=4.0)
    moved = image.roll(1, -1)
    inside = (..., slice(16, -16), slice(16, -16))
    with torch.no_grad():
        errors = [F.mse_loss(net(moved)[inside], net(image).roll(1, -1)[inside]) / net(image)[inside].var()
                  for net in (plain, blurred)]
        again = [F.mse_loss(net.encoder(moved), net.encoder(image)) / net.encoder(image).var()
                 for net in (plain, blurred)]
    assert errors[1] < 0.5 * errors[0] and again[1] < 0.5 * again[0], (errors, again)
    with pytest.raises(ValueError, match=r"antialias=true .* multipliers=\[1\] is one level"):
        Autoencoder(multipliers=(1,), attention_levels=(), antialias=True)


def test_a_local_encoder_gives_equal_codes_to_equal_patches() -> None:
    torch.manual_seed(0)
    small = {"channels": 8, "multipliers": (1,), "num_res_blocks": 1, "attention_levels": (), "z_channels": 4,
             "num_groups": 0, "patch_size": 4, "mid_attention": False}
    net = Autoencoder(**small, local_encoder=True)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    image = torch.randn(1, 3, 4, 4).repeat(1, 1, 3, 3)
    image[..., :4, :4] += 1  # one patch of nine differs
    z = net.encoder(image).flatten(2)[0].T
    assert torch.allclose(z[1:], z[1:2].expand(8, -1), atol=1e-6)
    assert not torch.allclose(z[0], z[1])
    assert net(image).shape == image.shape
    with pytest.raises(ValueError, match="local_encoder=true"):
        Autoencoder(**{**small, "multipliers": (1, 2)}, local_encoder=True)
    start = Autoencoder(**small)  # without norms every block starts as its shortcut
    assert all(float(p.abs().max()) == 0 for name, p in start.named_parameters() if "conv_2" in name)
