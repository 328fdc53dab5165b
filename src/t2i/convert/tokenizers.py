"""The tokenizer in a file, whoever wrote it: `model.tokenizer.path=…`.

Read are ours (checkpoints of model=vqgan, what `python -m t2i convert` and `export` wrote, as file or folder) and other
projects' nets in VQGAN's shape, whose sizes are read from the tensors' shapes:

    taming-transformers (Esser et al. 2020, arXiv 2012.09841): VQGAN and its Gumbel form, as Lightning 1.x checkpoints,
    bare state dicts and safetensors; and its transformers (faceshq, sflckr, coco), which hold their VQGAN as
    `first_stage_model`. Left out are `loss.*` and, of a transformer's file, all that is not the first stage.

    LlamaGen (Sun et al. 2024, arXiv 2406.06525): VQ-16 and VQ-8, as {model: …} or {ema: …}, of which the averaged
    weights are taken, or a bare state dict. Codes and latents count by their direction alone. Left out is
    `quantize.codebook_used`, the training's tally of codes.

    diffusers' VQModel, as the folder that `save_pretrained` or `t2i.convert.vq_model` writes: config.json beside
    diffusion_pytorch_model.safetensors (or .bin). Its decoder's blocks are numbered from the coarsest, attention is
    linear layers.

Everything else must fit. The size of the pictures is in no tensor: published models learned from 256 pixels, small ones
from as many as have attention on a grid of 16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from t2i.checkpoint import building, safetensors_io
from t2i.checkpoint.plain_files import read_table
from t2i.convert.kinds import BESIDE, STAGE, kind_of
from t2i.convert.tensors import (
    Rules,
    Source,
    bare,
    common,
    count,
    fill,
    first,
    opened,
    read_tensors,
    renamed,
    size,
    tensors_file,
)
from t2i.models import vqgan
from t2i.nets.tokenizer import ImageTokenizer

READ = "VQGAN of taming-transformers, VQ of LlamaGen, VQModel of diffusers"
PUBLISHED_SIZE = 256
ATTENDED = 16  # the side of the grid that taming-transformers' configs give attention to
# From our names to the published ones; {…}coder is encoder or decoder.
TAMING: Rules = (
    (r"^autoencoder\.", ""), (r"^encoder\.levels\.", "encoder.down."), (r"^decoder\.levels\.", "decoder.up."),
    (r"\.blocks\.", ".block."), (r"\.attentions\.", ".attn."), (r"^(encoder.+)\.resize\.", r"\1.downsample."),
    (r"^(decoder.+)\.resize\.", r"\1.upsample."), (r"\.middle\.0\.", ".mid.block_1."),
    (r"\.middle\.1\.", ".mid.attn_1."), (r"\.middle\.2\.", ".mid.block_2."),
)  # fmt: skip
LLAMAGEN: Rules = (
    (r"^autoencoder\.", ""), (r"\.levels\.", ".conv_blocks."), (r"\.blocks\.", ".res."), (r"\.attentions\.", ".attn."),
    (r"^(encoder.+)\.resize\.", r"\1.downsample."), (r"^(decoder.+)\.resize\.", r"\1.upsample."),
    (r"\.middle\.", ".mid."), (r"^quantizer\.codebook$", "quantize.embedding.weight"),
)  # fmt: skip
DIFFUSERS: Rules = (
    (r"^autoencoder\.", ""), (r"^(..coder)\.norm\.", r"\1.conv_norm_out."),
    (r"^encoder\.levels\.", "encoder.down_blocks."), (r"^decoder\.levels\.", "decoder.up_blocks."),
    (r"\.blocks\.", ".resnets."),
    (r"^(encoder.+)\.resize\.", r"\1.downsamplers.0."), (r"^(decoder.+)\.resize\.", r"\1.upsamplers.0."),
    (r"\.middle\.0\.", ".mid_block.resnets.0."), (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.2\.", ".mid_block.resnets.1."), (r"(\.attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"\.shortcut\.", ".conv_shortcut."), (r"\.query\.", ".to_q."), (r"\.key\.", ".to_k."), (r"\.value\.", ".to_v."),
    (r"\.output\.", ".to_out.0."), (r"^quantizer\.codebook$", "quantize.embedding.weight"),
)  # fmt: skip
# Attention in folders of diffusers before 0.13.
OLD_DIFFUSERS: Rules = ((r"\.query\.", ".to_q."), (r"\.key\.", ".to_k."), (r"\.value\.", ".to_v."),
                        (r"\.proj_attn\.", ".to_out.0."))
# What a VQModel's config must say where it says it: what is otherwise is another net.
VQ_MODEL = {"_class_name": "VQModel", "act_fn": "silu", "norm_type": "group", "in_channels": 3, "out_channels": 3}
# Of residual blocks, attention, and both ends.
SHARED: Rules = (
    (r"\.norm_(\d)\.", r".norm\1."), (r"\.conv_(\d)\.", r".conv\1."), (r"\.shortcut\.", ".nin_shortcut."),
    (r"\.query\.", ".q."), (r"\.key\.", ".k."), (r"\.value\.", ".v."), (r"\.output\.", ".proj_out."),
    (r"^(..coder)\.stem\.", r"\1.conv_in."), (r"^(..coder)\.norm\.", r"\1.norm_out."),
    (r"^(..coder)\.head\.", r"\1.conv_out."),
)  # fmt: skip


def taming_name(gumbel: bool) -> Callable[[str], str]:
    """From a name of `ImageTokenizer` to taming-transformers'."""
    codes = "quantize.embed.weight" if gumbel else "quantize.embedding.weight"
    last = ((r"^quantizer\.codebook$", codes), (r"^quantizer\.proj\.", "quantize.proj."))
    return lambda name: renamed(name, (*TAMING, *SHARED, *last))


def counted_from_coarsest(levels: int, rules: Rules) -> Callable[[str], str]:
    """From a name of `ImageTokenizer` to LlamaGen's or diffusers', which count the decoder's levels from the
    coarsest."""

    def published(name: str) -> str:
        return re.sub(r"^(decoder\.(?:conv|up)_blocks)\.(\d+)",
                      lambda found: f"{found[1]}.{levels - 1 - int(found[2])}", renamed(name, (*rules, *SHARED)))

    return published


def llamagen_name(levels: int) -> Callable[[str], str]:
    return counted_from_coarsest(levels, LLAMAGEN)


def diffusers_name(levels: int) -> Callable[[str], str]:
    return counted_from_coarsest(levels, DIFFUSERS)


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
    mid_attention: bool = True
    num_groups: int = 32


PLACES = {"taming": ("encoder.down.", "decoder.up.", "block", "attn"),
          "llamagen": ("encoder.conv_blocks.", "decoder.conv_blocks.", "res", "attn"),
          "diffusers": ("encoder.down_blocks.", "decoder.up_blocks.", "resnets", "attentions")}


def _layout(names: Mapping[str, Any], system: str, num_groups: int = 32) -> Layout:
    """Of a state dict without prefixes."""
    encoder, decoder, block, attention = PLACES[system]
    levels = max(count(names, encoder), count(names, decoder))
    blocks = [count(names, f"{encoder}{i}.{block}.") for i in range(levels)]
    blocks += [count(names, f"{decoder}{i}.{block}.") - 1 for i in range(levels)]
    attended = {i for i in range(levels) if count(names, f"{encoder}{i}.{attention}.")}
    attended |= {i if system == "taming" else levels - 1 - i for i in range(levels)
                 if count(names, f"{decoder}{i}.{attention}.")}
    shape = levels, max(common(blocks) or 1, 1), tuple(sorted(attended))
    if system == "llamagen":
        return Layout("VQ tokenizer of LlamaGen", llamagen_name(levels), *shape, "normalised")
    if system == "diffusers":
        middle = any(".mid_block.attentions." in name for name in names)
        return Layout("VQModel of diffusers", diffusers_name(levels), *shape, "nearest", middle, num_groups)
    gumbel = any(name.startswith(("quantize.embed.", "quantize.proj.")) for name in names)
    return Layout(f"{'Gumbel ' if gumbel else ''}VQGAN of taming-transformers", taming_name(gumbel), *shape,
                  "gumbel" if gumbel else "nearest")


def _sizes(layout: Layout, state: Mapping[str, Any]) -> dict[str, Any]:
    """Each size as most of the tensors have it that speak of it, None where there is none; so a message names the
    tensor that contradicts the others."""

    def most(*places: tuple[str, int, int]) -> int | None:
        return common(size(state, layout.published(name), dims, axis) for name, dims, axis in places)

    def width(level: int) -> int | None:
        names = [f"autoencoder.encoder.levels.{level}.blocks.{i}" for i in range(layout.blocks)]
        names += [f"autoencoder.decoder.levels.{level}.blocks.{i}" for i in range(layout.blocks + 1)]
        return most(*((f"{name}.conv_{k}.weight", 4, 0) for name in names for k in (1, 2)))

    first = "autoencoder.encoder.levels.0.blocks.0"
    channels = most(("autoencoder.encoder.stem.weight", 4, 0), ("autoencoder.encoder.stem.bias", 1, 0),
                    (f"{first}.norm_1.weight", 1, 0), (f"{first}.conv_1.weight", 4, 1))
    widths = [width(level) for level in range(layout.levels)]
    known = channels is not None and None not in widths
    return {
        "channels": channels,
        "multipliers": tuple(max(1, round((w or 1) / (channels or 1))) for w in widths) if known else None,
        "z_channels": most(("autoencoder.encoder.head.weight", 4, 0), ("autoencoder.encoder.head.bias", 1, 0),
                           ("autoencoder.decoder.stem.weight", 4, 1), ("quant_conv.weight", 4, 1),
                           ("post_quant_conv.weight", 4, 0), ("post_quant_conv.bias", 1, 0)),
        "dim": most(("quant_conv.weight", 4, 0), ("quant_conv.bias", 1, 0), ("post_quant_conv.weight", 4, 1),
                    ("quantizer.codebook", 2, 1)),
        "codebook_size": most(("quantizer.codebook", 2, 0), ("quantizer.proj.weight", 4, 0),
                              ("quantizer.proj.bias", 1, 0)),
    }


def _likely_size(layout: Layout) -> int:
    """The side of the pictures that the weights learned from, as far as names tell."""
    factor = 2 ** (layout.levels - 1)
    if layout.quantizer == "nearest" and layout.attention_levels:
        return ATTENDED * 2 ** max(layout.attention_levels)
    return PUBLISHED_SIZE if factor >= 8 else ATTENDED * factor


def _node(layout: Layout, image_size: int, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The config that builds the tokenizer."""
    quantizer = {"_target_": f"t2i.quantizers.{'gumbel.Gumbel' if layout.quantizer == 'gumbel' else 'vq.VQ'}",
                 "codebook_size": sizes["codebook_size"], "dim": sizes["dim"],
                 **({"normalize": True} if layout.quantizer == "normalised" else {})}
    return {
        "_target_": "t2i.nets.tokenizer.ImageTokenizer",
        "autoencoder": {
            "_target_": "t2i.nets.autoencoder.Autoencoder", "channels": sizes["channels"],
            "multipliers": list(sizes["multipliers"]), "num_res_blocks": layout.blocks,
            "attention_levels": list(layout.attention_levels), "z_channels": sizes["z_channels"],
            "num_groups": layout.num_groups, "mid_attention": layout.mid_attention,
        },
        "quantizer": quantizer, "image_size": image_size, "any_size": True,
    }  # fmt: skip


def _read(
    state: Mapping[str, Any], system: str, source: str, image_size: int | None, prefix: str, num_groups: int = 32
) -> ImageTokenizer:
    """The frozen tokenizer of a state dict whose names had `prefix` in the file, with its `config`."""
    layout = _layout(state, system, num_groups)
    pixels = _likely_size(layout) if image_size is None else image_size
    config: dict[str, Any] = {}

    def make(**sizes: Any) -> nn.Module:
        config.update(_node(layout, pixels, sizes))
        return building.build(config)

    choices = {name: [value] for name, value in _sizes(layout, state).items()}
    tokenizer: ImageTokenizer = fill(make, choices, state, layout.published, source, layout.what, prefix)
    tokenizer.config = config
    return tokenizer.eval().requires_grad_(False)


def read_taming(path: Source, label: str | None = None, image_size: int | None = None) -> ImageTokenizer:
    """taming-transformers' tokenizer of a file or of its content (`label` then names it in messages), frozen.

    `image_size` is of the pictures it is to be used with; None: the size that it was likely trained with. ValueError
    names what is missing, unexpected or of another shape, by the file's names.
    """
    held, source = opened(path, label)
    inner = held["state_dict"] if isinstance(held, Mapping) and isinstance(held.get("state_dict"), Mapping) else held
    state, prefix = bare(inner, source)
    if any(name.startswith(STAGE) for name in state) and any(name.startswith(BESIDE) for name in state):
        if strange := [name for name in state if not name.startswith((STAGE, *BESIDE, "loss."))]:
            raise ValueError(f"{source}: beside {STAGE}… there is {', '.join(strange[:8])}; known are"
                             f" {', '.join(f'{name}…' for name in BESIDE)} and loss.…")
        state = {name.removeprefix(STAGE): value for name, value in state.items() if name.startswith(STAGE)}
        prefix += STAGE
    state = {name: value for name, value in state.items() if not name.startswith("loss.")}
    return _read(state, "taming", source, image_size, prefix)


def read_llamagen(path: Source, label: str | None = None, image_size: int | None = None) -> ImageTokenizer:
    """LlamaGen's tokenizer, likewise."""
    held, source = opened(path, label)
    key = next((key for key in ("ema", "model") if isinstance(held, Mapping) and isinstance(held.get(key), Mapping)),
               None)
    state, prefix = bare(held if key is None else held[key], source if key is None else f"{source}: {key}")
    state = {name: value for name, value in state.items() if name != "quantize.codebook_used"}
    return _read(state, "llamagen", source, image_size, prefix)


def read_diffusers(path: Source, label: str | None = None, image_size: int | None = None) -> ImageTokenizer:
    """diffusers' VQModel, likewise, of a folder or of its file of weights; config.json beside it tells what is in no
    tensor."""
    held, source = opened(path, label)
    state, prefix = bare(held, source)
    beside = tensors_file(source).with_name("config.json")
    config = read_table(beside)
    if strange := [f"{key}={config[key]}, {value} is read" for key, value in VQ_MODEL.items()
                   if config.get(key, value) != value]:
        raise ValueError(f"{beside}: {'; '.join(strange)}")
    sizes = {"sample_size": config.get("sample_size", 32), "norm_num_groups": config.get("norm_num_groups", 32)}
    if wrong := [f"{key}={value!r}" for key, value in sizes.items()
                 if type(value) is not int or not 0 < value < 2**16]:
        raise ValueError(f"{beside}: {' and '.join(wrong)}; allowed are whole numbers from 1 to 65535")
    state = {renamed(name, OLD_DIFFUSERS): value for name, value in state.items()}
    for name, value in state.items():
        if re.search(r"\.(to_[qkv]|to_out\.0)\.weight$", name) and isinstance(value, Tensor) and value.ndim == 2:
            state[name] = value[:, :, None, None]
    pixels = sizes["sample_size"] if image_size is None else image_size
    return _read(state, "diffusers", source, pixels, prefix, sizes["norm_num_groups"])


READERS: dict[str, Callable[..., ImageTokenizer]] = {"taming": read_taming, "llamagen": read_llamagen,
                                                     "diffusers": read_diffusers}


def read_foreign(held: Any, path: str | Path, image_size: int | None = None) -> ImageTokenizer:
    """The frozen tokenizer of another project's file, of which `held` is the content."""
    kind = kind_of(held)
    if kind is not None and kind.system in READERS:
        return READERS[kind.system](held, str(path), image_size)
    what = f"{path} is {kind.text}, not a tokenizer with codes" if kind else (
        f"{path} is no tokenizer of this project (it has no section 't2i')")
    raise ValueError(f"{what} nor one that is read: {READ}. It holds {first(held)}")


def load_tokenizer(path: str | Path, image_size: int | None = None) -> ImageTokenizer:
    """The frozen tokenizer of a file, with the `config` that builds it again.

    `image_size` is of the pictures it is for. Other projects' nets take any multiple of their factor; None is the size
    that they were likely trained with. ValueError says what the file is instead, or what in it does not fit.
    """
    found = tensors_file(path)
    if found.is_dir():
        if (found / "model_index.json").is_file():
            raise ValueError(f"{found} is a pipeline of diffusers, which is not read; a VQModel's folder in it is")
        raise ValueError(f"{found} is a folder without {safetensors_io.WEIGHTS}, which `python -m t2i export` writes")
    try:
        return vqgan.load_tokenizer(found, image_size)
    except ValueError:
        held = read_tensors(found)  # what cannot be read at all is told here, in the same words
        if isinstance(held, Mapping) and safetensors_io.KEY in held:
            raise
    return read_foreign(held, found, image_size)
