"""LlamaGen's tokenizers (Sun et al. 2024, arXiv 2406.06525), VQ-16 and VQ-8, as ours.

    {model: …} or {ema: …}, or a bare state dict

Of a file with both, the averaged weights are taken, as LlamaGen's programs do. Codes and latents count by their
direction alone. Left out is `quantize.codebook_used`, the training's tally of codes; everything else must fit. Sizes
are read from shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from t2i.convert.pyramid import Layout, tokenizer_of
from t2i.convert.taming import SHARED, renamed
from t2i.convert.tensors import Source, bare, common, count, opened
from t2i.nets.tokenizer import ImageTokenizer

KEYS = ("ema", "model")
LEVELS = "coder.conv_blocks."
# From our names to the published ones, but for the decoder's levels, which are counted from the coarsest.
RULES = (
    (r"^autoencoder\.", ""), (r"\.levels\.", ".conv_blocks."), (r"\.blocks\.", ".res."), (r"\.attentions\.", ".attn."),
    (r"^(encoder.+)\.resize\.", r"\1.downsample."), (r"^(decoder.+)\.resize\.", r"\1.upsample."),
    (r"\.middle\.", ".mid."), (r"^quantizer\.codebook$", "quantize.embedding.weight"),
)  # fmt: skip


def published(levels: int) -> Callable[[str], str]:
    """From a name of `ImageTokenizer` to the published one."""

    def turned(name: str) -> str:
        name = renamed(name, RULES + SHARED)
        return re.sub(r"^(decoder\.conv_blocks)\.(\d+)", lambda found: f"{found[1]}.{levels - 1 - int(found[2])}", name)

    return turned


def layout_of(names: Mapping[str, Any]) -> Layout:
    """What the names of a state dict, without prefixes, say."""
    encoder, decoder = f"en{LEVELS}", f"de{LEVELS}"
    levels = max(count(names, encoder), count(names, decoder))
    blocks = [count(names, f"{encoder}{i}.res.") for i in range(levels)]
    blocks += [count(names, f"{decoder}{i}.res.") - 1 for i in range(levels)]
    attended = {i for i in range(levels) if count(names, f"{encoder}{i}.attn.")}
    attended |= {levels - 1 - i for i in range(levels) if count(names, f"{decoder}{i}.attn.")}
    return Layout("VQ tokenizer of LlamaGen", published(levels), levels, max(common(blocks) or 1, 1),
                  tuple(sorted(attended)), "normalised")


def state_of(held: Any, source: str) -> tuple[dict[str, Any], str]:
    """The tensors under their names, and the prefix that these have in the file."""
    key = next((key for key in KEYS if isinstance(held, Mapping) and isinstance(held.get(key), Mapping)), None)
    state, prefix = bare(held if key is None else held[key], source if key is None else f"{source}: {key}")
    return {name: value for name, value in state.items() if name != "quantize.codebook_used"}, prefix


def read_llamagen(path: Source, label: str | None = None, image_size: int | None = None) -> ImageTokenizer:
    """The frozen tokenizer of a file or of its content (`label` then names it in messages).

    `image_size` is of the pictures it is to be used with; None: the size that it was likely trained with.
    """
    held, source = opened(path, label)
    state, prefix = state_of(held, source)
    return tokenizer_of(layout_of(state), state, source, image_size, prefix)
