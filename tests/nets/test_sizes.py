"""The named sizes have the parameters that their names say; counted on the meta device, which allocates nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from t2i.checkpoint import building
from t2i.config.compose import compose
from t2i.models.vqgan import VQGAN
from t2i.nets.gpt import GPT
from t2i.nets.resnet_blocks import Attention

GOLDEN = Path(__file__).parents[1] / "golden"
PATHS = ["model.tokenizer.path=there.ckpt", "text_encoder.path=there"]
CLIP = {"text_dim": 512, "text_length": 77}  # of ViT-B/32's text tower


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def vqgan(*overrides: str) -> VQGAN:
    with torch.device("meta"):
        return building.build(compose([*overrides, "data.image_size=256"])["model"])


def gpt(model: str, codebook_size: int) -> GPT:
    node = compose([f"model={model}", *PATHS], files=False)["model"]
    sizes = {name: node[name] for name in ("width", "num_layers", "num_heads")}
    with torch.device("meta"):
        return GPT((codebook_size,), (16, 16), **CLIP, **sizes)


def test_the_taming_shape() -> None:
    """The published count has no discriminator in it and no LPIPS (`loss.*` of its file), but the codebook, which is a
    parameter there and in `quantizer=vq`; in `quantizer=ema` it is a buffer."""
    published = json.loads((GOLDEN / "taming_vqgan_imagenet_f16_1024.shapes.json").read_text())["tensors"]
    total = sum(math.prod(shape) for _, *shape in published.values())
    model = vqgan("model=vqgan_f16_1024")
    assert count(model.tokenizer) == total == 72_141_699
    ours = sorted(tuple(value.shape) for value in model.tokenizer.state_dict().values())
    assert ours == sorted(tuple(shape) for _, *shape in published.values())
    assert (model.tokenizer.grid, model.tokenizer.codebook_size) == ((16, 16), 1024)
    assert count(model.discriminator) == 2_765_633
    assert count(vqgan("model=vqgan_f16_1024", "model/quantizer=ema").tokenizer) == 72_141_699 - 1024 * 256


def test_16384_codes_of_8_dimensions() -> None:
    tokenizer = vqgan("model=vqgan_f16_16384").tokenizer
    # Shorter codes, and 1x1 convolutions to and from them that are narrower.
    saved = 1024 * 256 - 16384 * 8 + (256 * 256 + 256 - 256 * 8 - 8) + (256 * 256 - 8 * 256)
    assert count(tokenizer) == 72_141_699 - saved == 71_883_403
    assert tokenizer.quantizer.normalize and tokenizer.codebook_size == 16384 and tokenizer.quantizer.dim == 8


def test_108m() -> None:
    model = vqgan("model=vqgan_108m")
    assert count(model.tokenizer) == 107_726_467
    attentions = [module for module in model.tokenizer.modules() if isinstance(module, Attention)]
    assert [attention.num_heads for attention in attentions] == [4, 4]  # the encoder's middle and the decoder's
    assert model.tokenizer.quantizer.codebook.shape == (8192, 1024)
    assert any("parametrizations" in name for name, _ in model.discriminator.named_parameters())


@pytest.mark.parametrize(
    "model, codebook_size, total, blocks",
    [
        ("prior_92m", 1024, 87_965_952, 84_954_624),
        ("prior_92m", 8192, 98_976_000, 84_954_624),
        ("prior_305m", 1024, 306_057_216, 302_042_112),
        ("prior_305m", 8192, 320_737_280, 302_042_112),
    ],
)
def test_priors(model: str, codebook_size: int, total: int, blocks: int) -> None:
    net = gpt(model, codebook_size)
    assert count(net) == total
    assert sum(count(block) for block in net.blocks) == blocks
    width, layers = net.cell.shape[-1], len(net.blocks)
    norms = layers * (2 * width + 2 * width // net.blocks[0].num_heads)
    assert blocks == 12 * layers * width**2 + norms
    # Beside the blocks: embedding and head (a row a code each); the caption's way in and its positions; the cells of
    # the grid; four vectors (start, null, the bias of the way in, the last norm).
    assert total - blocks == (2 * codebook_size + 3 * 512 + 77 + 256 + 4) * width


@pytest.mark.parametrize("model", ["vqgan_f16_1024", "vqgan_f16_16384", "vqgan_108m"])
@pytest.mark.parametrize("quantizer", ["vq", "ema", "fsq"])
def test_another_quantizer_can_be_chosen(model: str, quantizer: str) -> None:
    chosen = compose([f"model={model}", f"model/quantizer={quantizer}"])["model"]
    plain = compose(["model=vqgan", f"model/quantizer={quantizer}"])["model"]
    assert chosen["quantizer"] == plain["quantizer"]


def test_heads_share_the_channels() -> None:
    torch.manual_seed(0)
    one, four = Attention(16, 4), Attention(16, 4, num_heads=4)
    assert one.state_dict().keys() == four.state_dict().keys()
    four.load_state_dict(one.state_dict())
    x = torch.randn(2, 16, 3, 5)
    y = four.norm(x)
    q, k, v = (part(y).flatten(2).unflatten(1, (4, 4)) for part in (four.query, four.key, four.value))
    weights = (torch.einsum("bhdi,bhdj->bhij", q, k) / 2).softmax(-1)
    mixed = torch.einsum("bhij,bhdj->bhdi", weights, v).flatten(1, 2).view_as(x)
    torch.testing.assert_close(four(x), x + four.output(mixed))
    assert not torch.allclose(four(x), one(x))
    with pytest.raises(ValueError, match="attention_heads=3: at least 1 that divides the 16 channels"):
        Attention(16, 4, num_heads=3)
