"""Whose file this is, told by the names of its tensors: what is read here, and what is known and not read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from t2i.convert.dfgan import NETS
from t2i.convert.stackgan import INNER
from t2i.convert.taming import BESIDE, STAGE

WRAPPERS = ("state_dict", "ema", "model", "params_ema", "params")  # keys under which weights lie


@dataclass
class Kind:
    """`system`: taming, llamagen, dfgan, stackgan1, stackgan2, judge (nothing but a discriminator), damsm, or "" for
    what is not read here; `text` says whose it is, as in "PATH is …"."""

    system: str
    text: str


def names_of(held: Any) -> list[str]:
    """The names of the weights in a file's content, without what it is wrapped in."""
    inner = held
    for key in WRAPPERS:
        if isinstance(held, Mapping) and isinstance(held.get(key), Mapping):
            inner = held[key]
            break
    return [str(name).removeprefix("module.") for name in inner] if isinstance(inner, Mapping) else []


def recognise(held: Any) -> str | None:
    """dfgan, stackgan1, stackgan2 or judge; None where it is none of them."""
    if not isinstance(held, Mapping):
        return None
    model = held.get("model")
    inner = model if isinstance(model, Mapping) else held
    names = {str(name).removeprefix("module.") for name in inner}
    if names & set(NETS):
        return "dfgan"
    if inner is not held:
        return None
    if any(name.startswith(("GBlocks.", "block0.", "to_rgb.")) for name in names):
        return "dfgan"
    if any(name.startswith((INNER, "hr_joint.")) for name in names):
        return "stackgan2"
    if any(name.startswith("ca_net.") for name in names):
        return "stackgan1"
    judges = ("encode_img.", "DBlocks.", "joint_conv.", "get_cond_logits.", "COND_DNET.")
    return "judge" if any(name.startswith(judges) for name in names) else None


GANS = {"dfgan": "a DF-GAN", "stackgan1": "a StackGAN's stage I", "stackgan2": "a StackGAN's stage II",
        "judge": "a discriminator of DF-GAN or StackGAN"}  # fmt: skip


def _tokenizer(names: list[str]) -> Kind | None:
    def some(*starts: str) -> bool:
        return any(name.startswith(starts) for name in names)

    if some("encoder.conv_blocks.", "decoder.conv_blocks."):
        return Kind("llamagen", "a VQ tokenizer of LlamaGen")
    inner = [name.removeprefix(STAGE) for name in names if name.startswith(STAGE)]
    if inner and some(*BESIDE[:1]) and not some("model.diffusion_model."):
        return Kind("taming", "a transformer of taming-transformers, with a VQGAN as its first stage")
    if not some("encoder.down.", "decoder.up."):
        return None
    if some("quantize."):
        form = "Gumbel " if some("quantize.embed.", "quantize.proj.") else ""
        return Kind("taming", f"a {form}VQGAN of taming-transformers")
    return Kind("", "an autoencoder without a codebook, as Stable Diffusion has (AutoencoderKL)")


def kind_of(held: Any) -> Kind | None:
    """What a file's content is; None where that is not known."""
    if system := recognise(held):
        return Kind(system, GANS[system])
    names = names_of(held)

    def first(*patterns: str) -> str | None:
        return next((name for name in names for pattern in patterns if re.match(pattern, name)), None)

    if name := first(r"model\.diffusion_model\."):
        return Kind("", f"a Stable Diffusion (latent diffusion) checkpoint ({name})")
    if name := first(r"(encoder\.|decoder\.)?(down|up)_blocks\.", r"(unet|vae|transformer)\.\w+_block",
                     r"(transformer_blocks|single_transformer_blocks|mid_block)\."):
        return Kind("", f"a Diffusers file ({name})")
    if found := _tokenizer(names):
        return found
    if "encoder.weight" in names and first(r"rnn\.weight_ih_l0"):
        return Kind("damsm", "a text encoder of DAMSM, as AttnGAN and DF-GAN use it")
    if name := first(r"emb_features\.", r"Conv2d_1a_3x3\."):
        return Kind("", f"an image encoder of DAMSM ({name})")
    if name := first(r"(text_model|vision_model|visual)\."):
        return Kind("", f"a CLIP ({name}), which is read as text_encoder.path=FOLDER")
    return None
