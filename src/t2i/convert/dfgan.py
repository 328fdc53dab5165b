"""DF-GAN's published files (Tao et al. 2020, arXiv 2008.05865) as our nets.

    {model: {netG, netD, netC}, optimizers: …, epoch: …}

`{netG, netD, netC}` and a generator's bare state dict are read too; names may start with `module.`. Beside `model` the
keys `optimizers` and `epoch` are known and ignored. Sizes are read from the tensors' shapes. The code's first
version named its blocks `block0.…`, and its nets are others: such files are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t2i.convert.kinds import NETS
from t2i.convert.tensors import Rules, Source, bare, common, count, fill, first, opened, renamed, size
from t2i.models.dfgan import DFGAN
from t2i.nets.dfgan import DFDiscriminator, DFGenerator

IGNORED = ("optimizers", "epoch")
# From our names to the published ones.
GENERATOR: Rules = (
    (r"^stem\.", "fc."), (r"^blocks\.", "GBlocks."), (r"^head\.", "to_rgb.1."), (r"\.shortcut\.", ".c_sc."),
    (r"\.fusions\.0\.", ".fuse1."), (r"\.fusions\.1\.", ".fuse2."), (r"\.affines\.", ".affine"),
    (r"\.scale\.", ".fc_gamma."), (r"\.shift\.", ".fc_beta."), (r"(fc_\w+)\.0\.", r"\1.linear1."),
    (r"(fc_\w+)\.2\.", r"\1.linear2."), (r"\.convs\.0\.", ".c1."), (r"\.convs\.1\.", ".c2."),
)  # fmt: skip
DISCRIMINATOR: Rules = (
    (r"^stem\.", "conv_img."), (r"^blocks\.", "DBlocks."), (r"\.shortcut\.", ".conv_s."),
    (r"\.convs\.0\.", ".conv_r.0."), (r"\.convs\.1\.", ".conv_r.2."), (r"^head\.joint\.", "joint_conv.0."),
    (r"^head\.last\.", "joint_conv.2."),
)  # fmt: skip


def _state(state: Any, source: str) -> tuple[dict[str, Any], str]:
    found, prefix = bare(state, source)
    if old := [name for name in found if re.match(r"block\d+\.|COND_DNET\.", name)]:
        raise ValueError(f"{source} is of DF-GAN's old layout ({prefix}{old[0]}): that version's nets are others and"
                         " are not read; files of the present code have GBlocks.0.… in netG")
    return found, prefix


def read_generator(state: Mapping[str, Any], source: str = "the state dict") -> DFGenerator:
    """The generator of a state dict `netG`, in eval mode. ValueError names what does not fit."""
    held, prefix = _state(state, source)
    blocks = count(held, "GBlocks.")
    noise_dim, wide = size(held, "fc.weight", 2, 1), size(held, "fc.weight", 2, 0)
    condition = common(size(held, name, 2, 1) for name in held if name.endswith(".linear1.weight"))
    known = noise_dim or 1  # where fc.weight lacks, that is what the message is to be about: any division will do
    text_dim = condition - known if condition and condition > known else None
    channels = [size(held, "to_rgb.1.weight", 4, 1), wide // 16 // min(2**blocks, 8) if wide else None]
    choices = {"image_size": [4 * 2**blocks], "channels": [c for c in channels if c], "noise_dim": [known],
               "text_dim": [text_dim]}
    return fill(DFGenerator, choices, held, lambda name: renamed(name, GENERATOR), source, "DF-GAN generator", prefix)


def read_discriminator(
    netD: Mapping[str, Any], netC: Mapping[str, Any], source: str = "the state dicts"
) -> DFDiscriminator:
    """The discriminator and its head, of the state dicts `netD` and `netC`. ValueError names what does not fit."""
    (held, prefix), (head, other) = _state(netD, source), _state(netC, source)
    if twice := held.keys() & head.keys():
        raise ValueError(f"{source}: netD and netC both have {', '.join(sorted(twice)[:8])}")
    blocks = count(held, "DBlocks.")
    wide, joint = size(held, f"DBlocks.{blocks - 1}.conv_r.0.weight", 4, 0), size(head, "joint_conv.0.weight", 4, 1)
    channels = [size(held, "conv_img.weight", 4, 0), wide // min(2**blocks, 8) if wide else None,
                (size(head, "joint_conv.0.weight", 4, 0) or 0) // 2]
    choices = {"image_size": [4 * 2**blocks], "channels": [c for c in channels if c],
               "text_dim": [joint - c * min(2**blocks, 8) for c in channels if c and joint] or [256]}
    return fill(DFDiscriminator, choices, {**held, **head}, lambda name: renamed(name, DISCRIMINATOR), source,
                "DF-GAN discriminator (netD and netC)", prefix if prefix == other else "")


def nets(held: Any, source: str) -> dict[str, Any]:
    """The state dicts by name: `netG` at least. ValueError where the file holds other things."""
    if not isinstance(held, Mapping):
        raise ValueError(f"{source} is no DF-GAN: it holds {first(held)}")
    wrapped = isinstance(held.get("model"), Mapping)
    if not wrapped and not any(name in held for name in NETS):
        return {"netG": held}
    found = held["model"] if wrapped else held
    levels = [("model", held, IGNORED), ("the nets", found, NETS)] if wrapped else [
        ("the nets", held, (*NETS, *IGNORED))]
    for what, level, known in levels:
        if strange := [str(key) for key in level if key not in (what, *known)]:
            raise ValueError(f"{source}: beside {what} there is {', '.join(strange[:8])}; known are {', '.join(known)}")
    if "netG" not in found:
        raise ValueError(f"{source} has no netG, the generator; it has {', '.join(map(str, found))}")
    if ("netD" in found) != ("netC" in found):
        raise ValueError(f"{source} has {'netD' if 'netD' in found else 'netC'} alone: netD and netC are one"
                         " discriminator")
    return {name: found[name] for name in NETS if name in found}


def read_dfgan(path: Source, text_encoder: Any, label: str | None = None) -> DFGAN:
    """The model of a published file (or of its content; `label` then names it in messages), in eval mode.

    A file without netD and netC gets a discriminator with random weights: it is never used for drawing.
    """
    held, source = opened(path, label)
    found = nets(held, source)
    generator = read_generator(found["netG"], f"{source}: netG" if found["netG"] is not held else source)
    if "netD" in found:
        discriminator = read_discriminator(found["netD"], found["netC"], f"{source}: netD, netC")
    else:
        discriminator = DFDiscriminator(generator.image_size, generator.head.in_channels, generator.text_dim)
    if text_encoder.pooled_dim != generator.text_dim:
        where = Path(getattr(text_encoder, "path", "the text encoder"))
        raise ValueError(f"text_encoder.path={where}: its sentences have {text_encoder.pooled_dim} numbers, the"
                         f" generator in {source} takes {generator.text_dim}")
    try:
        return DFGAN(generator, discriminator, text_encoder, max_steps=1, text_dim=generator.text_dim,
                     projection="none").eval()
    except ValueError as error:
        raise ValueError(f"{source}: netG and netD do not belong together: {error}") from error
