"""The scores of pictures, in one pass over them: nothing is kept of a picture but its features.

Every entry has `value`, `low`, `high` (95 %), `n`, and `better`, which way is good; its protocol stands beside it under
the same name. What an interval is (bootstrap, jackknife, subsets) is the business of `metrics/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.config.messages import is_for_people, shown
from t2i.evaluation.feature_models import named
from t2i.evaluation.protocols import KEEPS, fid_name
from t2i.evaluation.reference_images import Reference
from t2i.metrics.clip_score import CLIPScorer
from t2i.metrics.features import ClipFeatures, FeatureNet
from t2i.metrics.intervals import Interval, bootstrap
from t2i.metrics.kid import kernel_distance
from t2i.metrics.precision_recall import precision_recall
from t2i.metrics.r_precision import r_precision
from t2i.metrics.statistics import Statistics, frechet

Chunks = Iterable[tuple[Tensor, Tensor]]
LEAST_KID = 10  # pictures: less says nothing at all
LEAST = {"fid": 2, "fd_clip": 2, "kid": LEAST_KID, "kd_clip": LEAST_KID, "prc": 4, "prc_clip": 4}  # on either side
BY_NET = {"clip": ("fd_clip", "kd_clip", "prc_clip"), "inception": ("fid", "kid", "prc"),
          "inception_torchvision": ("fid", "kid", "prc")}


@dataclass
class Scores:
    """`values` by name, and what made each: `protocols` by the same names; `clip`: a picture's CLIP score each;
    `done`: metrics that are among them; `missing`: those that could not be had, and why."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    protocols: dict[str, dict[str, Any]] = field(default_factory=dict)
    clip: Tensor | None = None
    done: set[str] = field(default_factory=set)
    missing: dict[str, str] = field(default_factory=dict)

    def lack(self, names: Iterable[str], why: str) -> None:
        """Metrics that cannot be had, as far as they were not."""
        self.missing |= {name: why for name in names if name not in self.missing and name not in self.done}

    @contextmanager
    def trying(self, names: Iterable[str], part: bool = False) -> Iterator[None]:
        """What is wrong with a user's files or numbers inside costs these metrics and no other; our own mistakes are
        raised. `part`: more of them is to come."""
        names = list(names)
        try:
            yield
            self.done.update(name for name in names if not part and name not in self.missing)
        except (ValueError, OSError) as error:
            if not is_for_people(error):
                raise
            self.lack(names, str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error))

    def add(self, name: str, interval: Interval, better: str, n: int, protocol: dict[str, Any], **more: Any) -> None:
        self.values[name] = {**interval.described(), "n": n, "better": better, **more}
        self.protocols[name] = protocol


def nets_of(metrics: Sequence[str], judge: CLIPScorer | None, inception: FeatureNet | None) -> list[FeatureNet]:
    nets: list[FeatureNet] = [inception] if inception is not None else []
    if judge is not None and any(name in BY_NET["clip"] for name in metrics):
        nets.append(ClipFeatures(judge))
    return nets


def keeps(net: FeatureNet, metrics: Sequence[str]) -> bool:
    return any(name in KEEPS and name in BY_NET[net.name] for name in metrics)


def short(metrics: Sequence[str], n_fake: int, n_real: int | None, text: Sequence[str] | None) -> dict[str, str]:
    """Metrics that cannot be had of so many drawn and real pictures, and captions, and why."""
    found = {name: f"{n_fake} drawn and {n_real} real pictures, and at least {LEAST[name]} of each are needed"
             for name in metrics if name in LEAST and n_real is not None and min(n_fake, n_real) < LEAST[name]}
    if "r_precision" in metrics and text is not None and (different := len(set(text))) < 2:
        found["r_precision"] = f"{different} different caption, and at least 2 are needed"
    return found


def asked_of(net: FeatureNet, metrics: Sequence[str]) -> list[str]:
    return [name for name in BY_NET[net.name] if name in metrics]


def distances(
    scores: Scores, net: FeatureNet, fake: Statistics, real: Statistics, metrics: Sequence[str], seed: int,
    how: str | None, base: dict[str, Any],
) -> None:
    """Fréchet and kernel distance, precision and recall, as far as they are asked for."""
    fd, kd, pr = BY_NET[net.name]
    least = min(fake.count, real.count)
    counts = {**base, "features": net.protocol(), "n_fake": fake.count, "n_real": real.count,
              **({"judge_had_a_hand": how} if how and net.name == "clip" else {})}
    own = how if net.name == "clip" else None
    special = "_dfgan" if net.name == "inception_torchvision" else ""
    if fd in metrics:
        stem = named(fd, own) if net.name == "clip" else fid_name(f"fid{special}", fake.count, real.count)
        with scores.trying([fd]):
            scores.add(stem, frechet(fake, real), "lower", fake.count, {
                **counts, "interval": "jackknife over ten groups of the drawn pictures"})
    if kd in metrics:
        size = min(1000, least // 2)  # of all, every subset would be the same
        with scores.trying([kd]):
            scores.add(named(kd, own) + special, kernel_distance(fake.features, real.features, seed, 100, size),
                       "lower", fake.count, {**counts, "kernel": "(x.y/d + 1)^3, unbiased", "subsets": 100,
                                             "subset_size": size, "interval": "the middle 95 % of the subsets"})
    if pr in metrics:
        with scores.trying([pr]):
            for part, interval in precision_recall(fake.features, real.features, seed).items():
                name = named(f"{part}_clip", own) if net.name == "clip" else part + special
                scores.add(name, interval, "higher", fake.count, {**counts, "k": 3, "interval": "bootstrap, 1000"})


def score_drawn(
    chunks: Chunks, text: Sequence[str] | None, reference: Reference | None, metrics: Sequence[str],
    judge: CLIPScorer | None, inception: FeatureNet | None, seed: int, how: str | None, base: dict[str, Any],
    scores: Scores | None = None,
) -> Scores:
    """The scores of drawn pictures that come in chunks of numbers (b,) and uint8 (b, h, w, 3), added to `scores`.

    Args:
        text: the caption of each picture, by number; for what compares with captions.
        how: what the judge did to the pictures (`judges.involved`).
        base: what goes into every entry's protocol.
    """
    nets = nets_of(metrics, judge, inception)
    fakes = {net.name: Statistics(net.dim, keeps(net, metrics)) for net in nets}
    comparing = [name for name in ("clip_score", "r_precision") if name in metrics]
    clip = next((net for net in nets if net.name == "clip"), None)
    clip = ClipFeatures(judge) if clip is None and comparing and judge is not None else clip
    scores = Scores() if scores is None else scores
    seen: list[Tensor] = []
    n = 0
    for numbers, pictures in chunks:
        found = {net.name: net(pictures) for net in nets}
        for net in nets:
            with scores.trying(asked_of(net, metrics), part=True):
                fakes[net.name].update(found[net.name], numbers)
        if comparing and clip is not None:
            seen.append(F.normalize(found["clip"] if "clip" in found else clip(pictures), dim=-1))
        nets = [net for net in nets if not scores.missing.keys() & asked_of(net, metrics)]
        n += len(numbers)
    if not n:
        raise ValueError("no pictures to score")
    for net in nets:
        if reference is None:
            raise ValueError(f"metrics=[{', '.join(metrics)}] compare with real pictures: give data=…")
        with scores.trying(asked_of(net, metrics)):
            real = reference.statistics(net, keeps(net, metrics))
            distances(scores, net, fakes[net.name], real, metrics, seed, how,
                      {**base, "reference": reference.described(), "reference_hash": reference.hash()})
    if comparing and judge is not None and text is not None:
        with scores.trying(comparing):
            compared(scores, torch.cat(seen), judge, text, comparing, seed, how, base)
    return scores


def compared(
    scores: Scores, image: Tensor, judge: CLIPScorer, text: Sequence[str], metrics: Sequence[str], seed: int,
    how: str | None, base: dict[str, Any],
) -> None:
    """CLIP score and R-precision of normalised image features, as far as they are asked for."""
    words, n = judge.text_features(list(text)).cpu(), len(image)
    shared = {**base, "judge": judge.protocol, **({"judge_had_a_hand": how} if how else {})}
    likeness = (image * words).sum(-1)
    if "clip_score" in metrics:
        with scores.trying(["clip_score"]):
            scores.add(named("clip_score", how), bootstrap(likeness, seed), "higher", n,
                       {**shared, "n_fake": n, "interval": "bootstrap, 1000"})
    if likeness.isfinite().all():
        scores.clip = likeness
    if "r_precision" in metrics:
        order = {caption: i for i, caption in enumerate(dict.fromkeys(text))}
        groups = torch.tensor([order[caption] for caption in text])
        candidates = min(100, len(order))
        with scores.trying(["r_precision"]):
            scores.add(named("r_precision", how), r_precision(image, words, groups, seed, candidates), "higher", n,
                       {**shared, "n_fake": n, "candidates": candidates, "interval": "bootstrap, 1000"})


def lines(scores: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    """The scores with intervals as a Markdown table, and what could not be had under it."""
    rows = ["| metric | value | 95 % | n | better |", "| --- | ---: | --- | ---: | --- |"]
    for name, entry in scores.items():
        if "value" in entry:
            between = f"{entry['low']:.4g} to {entry['high']:.4g}" if entry["low"] < entry["high"] else "–"
            rows.append(f"| {name} | {entry['value']:.4g} | {between} | {entry['n']:,} | {entry['better']} |")
    return "\n".join([*rows, without(missing)] if missing else rows)


def without(missing: Mapping[str, str]) -> str:
    return "\n".join(f"Without {name}: {shown(why, 1000)}" for name, why in missing.items())
