"""Tokenizers in VQGAN's shape (arXiv 2012.09841) out of other projects' weights: sizes from the tensors' shapes.

A reader gives its project's name of each tensor of ours, and which levels and blocks there are; the rest is the same
for all. The size of the pictures is in no tensor: published models learned from 256 pixels, small ones from as many as
have attention on a grid of 16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from t2i.checkpoint import building
from t2i.convert.tensors import common, fill, size
from t2i.nets.tokenizer import ImageTokenizer

PUBLISHED_SIZE = 256
ATTENDED = 16  # the side of the grid that taming-transformers' configs give attention to


@dataclass
class Layout:
    """What the names in a file say: `published` leads from a name of ours to the file's; `blocks` are a level's in the
    encoder; `quantizer` is how the codes are chosen."""

    what: str
    published: Callable[[str], str]
    levels: int
    blocks: int
    attention_levels: tuple[int, ...]
    quantizer: Literal["nearest", "normalised", "gumbel"]


def _sizes(layout: Layout, state: Mapping[str, Any]) -> dict[str, Any]:
    """Each size as most of the tensors have it that speak of it, None where there is none; so a message names the
    tensor that contradicts the others."""

    def told(*places: tuple[str, int, int]) -> int | None:
        return common(size(state, layout.published(name), dims, axis) for name, dims, axis in places)

    def width(level: int) -> int | None:
        names = [f"autoencoder.encoder.levels.{level}.blocks.{i}" for i in range(layout.blocks)]
        names += [f"autoencoder.decoder.levels.{level}.blocks.{i}" for i in range(layout.blocks + 1)]
        return told(*((f"{name}.conv_{k}.weight", 4, 0) for name in names for k in (1, 2)))

    first = "autoencoder.encoder.levels.0.blocks.0"
    channels = told(("autoencoder.encoder.stem.weight", 4, 0), ("autoencoder.encoder.stem.bias", 1, 0),
                    (f"{first}.norm_1.weight", 1, 0), (f"{first}.conv_1.weight", 4, 1))
    widths = [width(level) for level in range(layout.levels)]
    known = channels is not None and None not in widths
    return {
        "channels": channels,
        "multipliers": tuple(max(1, round((w or 1) / (channels or 1))) for w in widths) if known else None,
        "z_channels": told(("autoencoder.encoder.head.weight", 4, 0), ("autoencoder.encoder.head.bias", 1, 0),
                           ("autoencoder.decoder.stem.weight", 4, 1), ("quant_conv.weight", 4, 1),
                           ("post_quant_conv.weight", 4, 0), ("post_quant_conv.bias", 1, 0)),
        "dim": told(("quant_conv.weight", 4, 0), ("quant_conv.bias", 1, 0), ("post_quant_conv.weight", 4, 1),
                    ("quantizer.codebook", 2, 1)),
        "codebook_size": told(("quantizer.codebook", 2, 0), ("quantizer.proj.weight", 4, 0),
                              ("quantizer.proj.bias", 1, 0)),
    }


def likely_size(layout: Layout) -> int:
    """The side of the pictures that the weights learned from, as far as names tell."""
    factor = 2 ** (layout.levels - 1)
    if layout.quantizer == "nearest" and layout.attention_levels:
        return ATTENDED * 2 ** max(layout.attention_levels)
    return PUBLISHED_SIZE if factor >= 8 else ATTENDED * factor


def node_of(
    layout: Layout, image_size: int, channels: int, multipliers: tuple[int, ...], z_channels: int, dim: int,
    codebook_size: int,
) -> dict[str, Any]:
    """The config that builds the tokenizer."""
    quantizer: dict[str, Any] = {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": codebook_size, "dim": dim}
    if layout.quantizer == "normalised":
        quantizer["normalize"] = True
    if layout.quantizer == "gumbel":
        quantizer["_target_"] = "t2i.quantizers.gumbel.Gumbel"
    return {
        "_target_": "t2i.nets.tokenizer.ImageTokenizer",
        "autoencoder": {
            "_target_": "t2i.nets.autoencoder.Autoencoder", "channels": channels, "multipliers": list(multipliers),
            "num_res_blocks": layout.blocks, "attention_levels": list(layout.attention_levels),
            "z_channels": z_channels, "num_groups": 32,
        },
        "quantizer": quantizer, "image_size": image_size, "any_size": True,
    }  # fmt: skip


def tokenizer_of(
    layout: Layout, state: Mapping[str, Any], source: str, image_size: int | None = None, prefix: str = ""
) -> ImageTokenizer:
    """The frozen tokenizer of a state dict, with its `config`.

    `image_size` is of the pictures it is to be used with, `likely_size` for None. ValueError names what is missing,
    unexpected or of another shape, by the file's names.
    """
    pixels = likely_size(layout) if image_size is None else image_size
    config: dict[str, Any] = {}

    def make(**sizes: Any) -> nn.Module:
        config.update(node_of(layout, pixels, **sizes))
        return building.build_registered(config)

    choices = {name: [value] for name, value in _sizes(layout, state).items()}
    tokenizer: ImageTokenizer = fill(make, choices, state, layout.published, source, layout.what, prefix)
    tokenizer.config = config
    return tokenizer.eval().requires_grad_(False)
