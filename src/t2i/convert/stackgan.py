"""StackGAN's published files (Zhang et al. 2016, arXiv 1612.03242; its PyTorch code) as our nets.

Bare state dicts of STAGE1_G and STAGE2_G (which holds STAGE1_G); names may start with `module.`. Sizes are read from
the tensors' shapes. Files from before torch 0.4.1 have no `num_batches_tracked`: where all of them lack they count as
0. Our noise carries the numbers of conditioning augmentation, so that `noise_dim` is theirs (Z_DIM) + CONDITION_DIM.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from t2i.convert.kinds import INNER
from t2i.convert.tensors import Rules, Source, bare, count, fill, opened, renamed, size
from t2i.nets.stackgan import StageOne, StageTwo

TRACKED = ".num_batches_tracked"
# From our names to the published ones.
RULES: Rules = (
    (r"^augmentation\.linear\.", "ca_net.fc."), (r"^stem\.", "fc."), (r"^joint\.", "hr_joint."),
    (r"^head\.(weight|bias)$", r"img.0.\1"),
)  # fmt: skip


def generator_name(name: str) -> str:
    """The published name of a generator's tensor."""
    return renamed(re.sub(r"^ups\.(\d+)\.", lambda found: f"upsample{int(found[1]) + 1}.", name), RULES)


def _state(source: Source, label: str | None) -> tuple[dict[str, Any], str, str]:
    """Names without their prefix, the prefix, and the file's name; counters filled in where all of them lack."""
    held, name_of = opened(source, label)
    state, prefix = bare(held, name_of)
    if not any(name.endswith(TRACKED) for name in state):
        norms = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
        state |= {name + TRACKED: torch.zeros((), dtype=torch.long) for name in norms}
    return state, prefix, name_of


def _ups(state: Mapping[str, Any]) -> int:
    return max(count(state, "upsample") - 1, 0)  # they are numbered from 1


def _known(*values: int | float | None) -> list[int]:
    return [int(value) for value in values if value and value == int(value)]


def _shared(state: Mapping[str, Any]) -> dict[str, list[int]]:
    """What both stages read from their conditioning augmentation."""
    twice, bias = size(state, "ca_net.fc.weight", 2, 0), size(state, "ca_net.fc.bias", 1, 0)
    return {"condition_dim": _known(twice and twice / 2, bias and bias / 2),
            "text_dim": [size(state, "ca_net.fc.weight", 2, 1) or 1]}


def _stage1(state: Mapping[str, Any], prefix: str, label: str) -> StageOne:
    ups = _ups(state)
    wide, up, last = (size(state, "fc.0.weight", 2, 0), size(state, "upsample1.1.weight", 4, 1),
                      size(state, "img.0.weight", 4, 1))
    shared = _shared(state)
    # Without fc.0.weight the message is to be of that alone: any noise will do.
    noise = size(state, "fc.0.weight", 2, 1) or max(shared["condition_dim"], default=1) + 1
    choices: dict[str, list[int]] = {
        "image_size": [4 * 2**ups], "noise_dim": [noise], **shared,
        "channels": _known(wide and wide / 128, up and up / 8, last and last * 2**ups / 8),
    }
    return fill(StageOne, choices, state, generator_name, label, "StackGAN stage I generator", prefix)


def read_stage1(source: Source, label: str | None = None) -> StageOne:
    """Stage I of a file or state dict, in eval mode: noise and embeddings (b, text_dim) to pictures.

    `label` names the source in messages. ValueError names what is missing, unexpected or of another shape.
    """
    return _stage1(*_state(source, label))


def read_stage2(source: Source, label: str | None = None) -> tuple[StageOne, StageTwo]:
    """Both stages of stage II's file or state dict, in eval mode."""
    state, prefix, label = _state(source, label)
    inner = {name.removeprefix(INNER): value for name, value in state.items() if name.startswith(INNER)}
    outer = {name: value for name, value in state.items() if not name.startswith(INNER)}
    if not inner:
        raise ValueError(f"{label} has no {prefix}{INNER}…: stage II is wanted, whose file holds stage I too")
    stage1 = _stage1(inner, prefix + INNER, label)
    first, last = size(outer, "encoder.0.weight", 4, 0), size(outer, "img.0.weight", 4, 1)
    choices = {"image_size": [4 * stage1.image_size], "channels": _known(first, last and last * 4),
               **_shared(outer), "num_res_blocks": [count(outer, "residual.")]}
    stage2 = fill(StageTwo, choices, outer, generator_name, label, "StackGAN stage II generator", prefix)
    if (stage1.text_dim, stage1.image_size * 4) != (stage2.text_dim, stage2.image_size):
        raise ValueError(f"{label}: its stage I takes captions of {stage1.text_dim} numbers, its stage II of"
                         f" {stage2.text_dim}")
    return stage1, stage2
