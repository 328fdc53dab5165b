"""taming-transformers' tokenizers (Esser et al. 2020, arXiv 2012.09841) as ours: VQGAN, and its Gumbel form.

Read are Lightning 1.x checkpoints, bare state dicts and safetensors; and checkpoints of that project's transformers
(faceshq, sflckr, coco), which hold their VQGAN as `first_stage_model`. Left out are `loss.*` (discriminator and
perceptual net) and, of a transformer's file, all that is not the first stage; everything else must fit. Gumbel's files
have `quantize.embed` and `quantize.proj`. Sizes are read from shapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from t2i.convert.pyramid import Layout, tokenizer_of
from t2i.convert.tensors import Source, bare, common, count, opened
from t2i.nets.tokenizer import ImageTokenizer

STAGE = "first_stage_model."
BESIDE = ("transformer.", "cond_stage_model.")
# From our names to the published ones; {…}coder is encoder or decoder.
RULES = (
    (r"^autoencoder\.", ""), (r"^encoder\.levels\.", "encoder.down."), (r"^decoder\.levels\.", "decoder.up."),
    (r"\.blocks\.", ".block."), (r"\.attentions\.", ".attn."), (r"^(encoder.+)\.resize\.", r"\1.downsample."),
    (r"^(decoder.+)\.resize\.", r"\1.upsample."), (r"\.middle\.0\.", ".mid.block_1."),
    (r"\.middle\.1\.", ".mid.attn_1."), (r"\.middle\.2\.", ".mid.block_2."),
)  # fmt: skip
# Of residual blocks, attention, and both ends: LlamaGen has these names too.
SHARED = (
    (r"\.norm_(\d)\.", r".norm\1."), (r"\.conv_(\d)\.", r".conv\1."), (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.query\.", ".q."), (r"\.key\.", ".k."), (r"\.value\.", ".v."), (r"\.output\.", ".proj_out."),
    (r"^(..coder)\.stem\.", r"\1.conv_in."), (r"^(..coder)\.norm\.", r"\1.norm_out."),
    (r"^(..coder)\.head\.", r"\1.conv_out."),
)  # fmt: skip


def renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def published(gumbel: bool) -> Callable[[str], str]:
    """From a name of `ImageTokenizer` to the published one."""
    codes = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    last = ((r"^quantizer\.codebook$", codes), (r"^quantizer\.proj\.", "quantize.proj."))
    return lambda name: renamed(name, RULES + SHARED + last)


def layout_of(names: Mapping[str, Any]) -> Layout:
    """What the names of a state dict, without prefixes, say."""
    levels = max(count(names, "encoder.down."), count(names, "decoder.up."))
    blocks = [count(names, f"encoder.down.{i}.block.") for i in range(levels)]
    blocks += [count(names, f"decoder.up.{i}.block.") - 1 for i in range(levels)]
    attended = [i for i in range(levels)
                if count(names, f"encoder.down.{i}.attn.") or count(names, f"decoder.up.{i}.attn.")]
    gumbel = any(name.startswith(("quantize.embed.", "quantize.proj.")) for name in names)
    what = "Gumbel VQGAN of taming-transformers" if gumbel else "VQGAN of taming-transformers"
    return Layout(what, published(gumbel), levels, max(common(blocks) or 1, 1), tuple(attended),
                  "gumbel" if gumbel else "nearest")


def state_of(held: Any, source: str) -> tuple[dict[str, Any], str]:
    """The tokenizer's tensors under their names, and the prefix that these have in the file."""
    inner = held["state_dict"] if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping) else held
    state, prefix = bare(inner, source)
    if any(name.startswith(STAGE) for name in state) and any(name.startswith(BESIDE) for name in state):
        strange = [name for name in state if not name.startswith((STAGE, *BESIDE, "loss."))]
        if strange:
            raise ValueError(f"{source}: beside {STAGE}… there is {', '.join(strange[:8])}; known are"
                             f" {', '.join(f'{name}…' for name in BESIDE)} and loss.…")
        state = {name.removeprefix(STAGE): value for name, value in state.items() if name.startswith(STAGE)}
        prefix += STAGE
    return {name: value for name, value in state.items() if not name.startswith("loss.")}, prefix


def read_taming(path: Source, label: str | None = None, image_size: int | None = None) -> ImageTokenizer:
    """The frozen tokenizer of a file or of its content (`label` then names it in messages).

    `image_size` is of the pictures it is to be used with; None: the size that it was likely trained with.
    """
    held, source = opened(path, label)
    state, prefix = state_of(held, source)
    return tokenizer_of(layout_of(state), state, source, image_size, prefix)
