"""Whose file this is, told by the names of its tensors: what is read here, and what is known and not read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

WRAPPERS = ("state_dict", "ema", "model", "params_ema", "params")  # keys under which weights lie
NETS = ("netG", "netD", "netC")  # of DF-GAN
INNER = "STAGE1_G."  # of StackGAN's stage II, its stage I
STAGE, BESIDE = "first_stage_model.", ("transformer.", "cond_stage_model.")  # of taming-transformers' transformers


@dataclass(frozen=True)
class Kind:
    """`system`: taming, llamagen, diffusers, dfgan, stackgan1, stackgan2, discriminator (and nothing else), damsm, or
    "" for what is not read here; `text` says whose it is, as in "PATH is …"."""

    system: str
    text: str


DFGAN = Kind("dfgan", "a DF-GAN")
# The first line with a name that begins so says what the file is.
GANS = (
    (DFGAN, r"GBlocks\.|block0\.|to_rgb\."),
    (Kind("stackgan2", "a StackGAN's stage II"), r"STAGE1_G\.|hr_joint\."),
    (Kind("stackgan1", "a StackGAN's stage I"), r"ca_net\."),
    (Kind("discriminator", "a discriminator of DF-GAN or StackGAN"),
     r"encode_img\.|DBlocks\.|joint_conv\.|get_cond_logits\.|COND_DNET\."),
)  # fmt: skip
DIFFUSION = (
    (Kind("", "a Stable Diffusion (latent diffusion) checkpoint ({name})"), r"model\.diffusion_model\."),
    (Kind("", "a Diffusers file ({name})"),
     r"(encoder\.|decoder\.)?(down|up)_blocks\.|(unet|vae|transformer)\.\w+_block"
     r"|(transformer_blocks|single_transformer_blocks|mid_block)\."),
)  # fmt: skip
OTHERS = (
    (Kind("", "an image encoder of DAMSM ({name})"), r"emb_features\.|Conv2d_1a_3x3\."),
    (Kind("", "a CLIP ({name}), which is read as text_encoder.path=FOLDER"), r"(text_model|vision_model|visual)\."),
)


def _names(held: Any) -> list[str]:
    return [str(name).removeprefix("module.") for name in held] if isinstance(held, Mapping) else []


def _first(table: Iterable[tuple[Kind, str]], names: list[str]) -> Kind | None:
    for kind, pattern in table:
        if name := next((name for name in names if re.match(pattern, name)), None):
            return Kind(kind.system, kind.text.format(name=name))
    return None


def _tokenizer(names: list[str]) -> Kind | None:
    def some(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if some("encoder.down_blocks.") and some("quantize."):
        return Kind("diffusers", "a VQModel of diffusers")
    if some("encoder.conv_blocks.", "decoder.conv_blocks."):
        return Kind("llamagen", "a VQ tokenizer of LlamaGen")
    if some(STAGE) and some(BESIDE[0]) and not some("model.diffusion_model."):
        return Kind("taming", "a transformer of taming-transformers, with a VQGAN as its first stage")
    if not some("encoder.down.", "decoder.up."):
        return None
    if some("quantize."):
        form = "Gumbel " if some("quantize.embed.", "quantize.proj.") else ""
        return Kind("taming", f"a {form}VQGAN of taming-transformers")
    return Kind("", "an autoencoder without a codebook, as Stable Diffusion has (AutoencoderKL)")


def kind_of(held: Any) -> Kind | None:
    """What a file's content is; None where that is not known."""
    if not isinstance(held, Mapping):
        return None
    wrapped = isinstance(held.get("model"), Mapping)
    names = _names(held["model"] if wrapped else held)
    if set(names) & set(NETS):
        return DFGAN
    if not wrapped and (found := _first(GANS, names)):
        return found
    names = _names(next((held[key] for key in WRAPPERS if isinstance(held.get(key), Mapping)), held))
    if found := _tokenizer(names) or _first(DIFFUSION, names):
        return found
    if "encoder.weight" in names and any(name.startswith("rnn.weight_ih_l0") for name in names):
        return Kind("damsm", "a text encoder of DAMSM, as AttnGAN and DF-GAN use it")
    return _first(OTHERS, names)
