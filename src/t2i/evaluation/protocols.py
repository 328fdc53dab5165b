"""Named protocols of evaluation: what decides about a score beside the model, settled before anything is drawn.

    shapes    the embedded scenes: captions of validation scenes 0 to n-1 against the renders of scenes n to 2n-1
    coco30k   30,000 val2014 pictures, one caption each, against all of that split, cut and to_float by Lanczos to 256
    cub30k    ten captions a test picture, against the pictures, 256
    dfgan     DF-GAN's own figures (arXiv 2008.05865): 30,000 drawings, going round the pictures with another caption
              of each in every round; truncated noise 0.88, pictures of the reference cropped and mirrored by chance
              from 304 to 256, torchvision's Inception; comparable with nothing else

Without a name the model's own data is taken: the first caption (by chance, of the seed) of each validation picture,
against all validation pictures as training sees them; its metric is composition, with emoji
nearest_render. What a command changes of a named protocol is listed beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from t2i.config.messages import shown

# Of captions' pictures, and of a tokenizer's reconstructions.
DRAWN = ("fid", "kid", "precision_recall", "fd_clip", "kd_clip", "precision_recall_clip", "fd_efficientnet",
         "clip_score", "r_precision")
BACK = ("reconstruction", "lpips", "rfid", "rfd_clip", "rfd_efficientnet")
OF_OWN_CAPTIONS = ("composition", "nearest_render", "paraphrase")  # they say what is drawn
METRICS = (*OF_OWN_CAPTIONS, "editing", *DRAWN, *BACK)
FORMER = {"prc": "precision_recall", "prc_clip": "precision_recall_clip"}  # names that are taken for one release
NEEDS_CLIP = ("fd_clip", "kd_clip", "precision_recall_clip", "clip_score", "r_precision", "rfd_clip")
NEEDS_INCEPTION = ("fid", "kid", "precision_recall", "rfid")
NEEDS_EFFICIENTNET = ("fd_efficientnet", "rfd_efficientnet")
# What needs every picture's features, not their moments alone.
KEEPS = ("kid", "precision_recall", "kd_clip", "precision_recall_clip")
LEAST_FID = 2048  # fewer pictures than features: the covariance is singular and the distance mostly bias
OVERRIDES = ("n", "size", "clip_model", "prefix", "resize", "truncation")
RESIZES = ("clean", "tensorflow", "antialias")  # of Inception's pictures (`metrics/inception.py`)
SHAPES = "t2i.data.shapes.Shapes"
EMOJI = "t2i.data.emoji.Emoji"


@dataclass(frozen=True)
class Protocol:
    """What of a protocol is not the user's to choose; `n` None takes what there is, `size` None the model's."""

    name: str | None
    data: str | None = None  # the data set's class
    n: int | None = 2048
    captions: str = "one"  # one of each picture, by chance of the seed; rounds: then another one; all
    size: int | None = None
    crop: str = "data"  # as training's validation has it; lanczos: PIL's, centre; augmented: DF-GAN's, by chance
    inception: str = "fidelity"
    resize: str | None = "clean"  # None: torchvision's Inception has its own
    clip_model: str | None = None
    prefix: str = ""
    truncation: float | None = None
    metrics: tuple[str, ...] = ("composition",)


PROTOCOLS = {
    "shapes": Protocol("shapes", SHAPES, metrics=(
        "composition", "fd_clip", "kd_clip", "precision_recall_clip", "clip_score", "r_precision")),
    "coco30k": Protocol("coco30k", "t2i.data.coco.COCO", n=30_000, size=256, crop="lanczos",
                        clip_model="openai/clip-vit-base-patch32", prefix="A photo depicts ",
                        metrics=("fid", "kid", "clip_score")),
    "cub30k": Protocol("cub30k", "t2i.data.cub.CUB", n=None, captions="all", size=256, crop="lanczos",
                       metrics=("fid", "kid")),
    "dfgan": Protocol("dfgan", n=30_000, captions="rounds", size=256, crop="augmented", inception="torchvision",
                      resize=None, truncation=0.88, metrics=("fid",)),
}
OWN = Protocol(None)
# What a protocol means by null.
OPEN = {"n": "all", "size": "the model's", "prefix": "none"}


def settle(config: Mapping[str, Any], data: str | None) -> tuple[Protocol, list[str]]:
    """The protocol that a command asks for, with what it changes of a named one. `data`: the data set's class.

    ValueError names a protocol, metric or data set that does not fit.
    """
    wanted = config["protocol"]
    if wanted is not None and wanted not in PROTOCOLS:
        raise ValueError(f"protocol={wanted}: allowed are {', '.join(PROTOCOLS)}, or null")
    base = OWN if wanted is None else PROTOCOLS[wanted]
    if base.data is not None and data is not None and data != base.data:
        raise ValueError(f"protocol={wanted} is of data={base.data.split('.')[-2]}; here the data are"
                         f" {data.rpartition('.')[2]} (give data=… or another protocol)")
    usual = ("nearest_render",) if wanted is None and data == EMOJI else base.metrics
    fitting = tuple(name for name in usual if name != "composition" or data in (None, SHAPES))
    asked = [config["metrics"]] if isinstance(config["metrics"], str) else config["metrics"]
    if asked is not None and not isinstance(asked, list | tuple):
        raise ValueError(f"metrics={shown(asked)}: one or more of {', '.join(METRICS)} are wanted, or null")
    metrics = fitting if asked is None else tuple(asked)
    for name in (name for name in metrics if name in FORMER):
        print(f"metrics=[{name}] is now called {FORMER[name]}", file=sys.stderr)
    metrics = tuple(FORMER.get(name, name) for name in metrics)
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ValueError(f"metrics={list(metrics)}: {', '.join(map(str, unknown))} unknown; allowed are"
                         f" {', '.join(METRICS)}, one or more")
    if not metrics:
        raise ValueError(f"metrics is empty: allowed are {', '.join(METRICS)}, one or more")
    given = {key: config[key] for key in OVERRIDES if config[key] is not None}
    if "resize" in given and (given["resize"] not in RESIZES or base.resize is None):
        allowed = "null: it has its own" if base.resize is None else f"{', '.join(RESIZES)}, or null"
        raise ValueError(f"resize={given['resize']}: allowed with protocol={wanted or 'null'} is {allowed}")
    # A CLIP where the protocol names none, and the sampler of a model that it says nothing of, change nothing.
    changed = [f"{key}={value} instead of {getattr(base, key) or OPEN[key]}" for key, value in given.items()
               if wanted is not None and value != getattr(base, key) and (getattr(base, key) or key in OPEN)]
    return replace(base, **given, metrics=metrics), changed


def fid_name(stem: str, n_fake: int, n_real: int) -> str:
    """`fid`, or `fid_<n>` where either side has fewer pictures than FID is called FID with."""
    least = min(n_fake, n_real)
    return stem if least >= LEAST_FID else f"{stem}_{least}"
