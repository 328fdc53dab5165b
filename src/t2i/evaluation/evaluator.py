"""Embeds and measures pictures: once, for evaluate.py, comparisons and validation during training alike.

Pictures are seen in one pass, and nothing is kept of them but features; `generated_images.draw` gives those of a model.
Every score has `value`, `low`, `high` (95 %), `n`, and `better`, which way is good; its protocol stands beside it under
the same name. What an interval is (bootstrap, jackknife, subsets) is the business of `metrics/`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from t2i.config.messages import is_for_people, shown
from t2i.evaluation.feature_models import score_name
from t2i.evaluation.protocols import KEEPS, fid_name
from t2i.evaluation.reference_images import Reference
from t2i.metrics.clip_score import CLIPScorer
from t2i.metrics.features import FeatureNet
from t2i.metrics.intervals import Interval, bootstrap
from t2i.metrics.kid import kernel_distance
from t2i.metrics.precision_recall import precision_recall
from t2i.metrics.r_precision import r_precision
from t2i.metrics.statistics import Statistics, frechet
from t2i.viz.tables import markdown_table

LEAST_KID = 10  # pictures: less says nothing at all
LEAST = {"fid": 2, "fd_clip": 2, "fd_efficientnet": 2, "kid": LEAST_KID, "kd_clip": LEAST_KID,
         "precision_recall": 4, "precision_recall_clip": 4}  # on either side
OF_INCEPTION, OF_CLIP = ("fid", "kid", "precision_recall"), ("fd_clip", "kd_clip", "precision_recall_clip")
# Fréchet and kernel distance, precision and recall, by feature net.
BY_NET: dict[str, tuple[str | None, ...]] = {
    "clip": OF_CLIP, "inception": OF_INCEPTION, "inception_torchvision": OF_INCEPTION,
    "efficientnet": ("fd_efficientnet", None, None)}
WITH_CAPTIONS = ("clip_score", "r_precision")


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

    def add(self, name: str, interval: Interval, better: str, n: int, protocol: dict[str, Any]) -> None:
        self.values[name] = {**interval.described(), "n": n, "better": better}
        self.protocols[name] = protocol


@dataclass
class Embeddings:
    """What the metrics need of pictures: moments by feature net, and CLIP's unit vectors with the pictures' numbers."""

    statistics: dict[str, Statistics]
    numbers: Int[Tensor, " n"]
    clip: Float[Tensor, "n d"]

    @classmethod
    def merged(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """Of parts that several processes embedded, in the order of the pictures' numbers."""
        first, *others = parts
        for net, statistics in first.statistics.items():
            for other in others:
                statistics.merge(other.statistics[net])
        order = (numbers := torch.cat([part.numbers for part in parts])).argsort()
        clip = torch.cat([part.clip for part in parts])
        return cls(first.statistics, numbers[order], clip[order] if len(clip) else clip)


def too_few(metrics: Sequence[str], text: Sequence[str | None], n_real: int | None) -> dict[str, str]:
    """Metrics that cannot be had of drawn pictures with these captions and so many real ones, and why."""
    n_fake, different = len(text), len(set(text))
    found = {name: f"{n_fake} drawn and {n_real} real pictures, and at least {LEAST[name]} of each are needed"
             for name in metrics if name in LEAST and n_real is not None and min(n_fake, n_real) < LEAST[name]}
    if "r_precision" in metrics and different < 2:
        found["r_precision"] = f"{different} different caption, and at least 2 are needed"
    return found


class Evaluator:
    """Measures pictures by some metrics, always against the same captions and real pictures.

    Args:
        metrics: of `protocols.DRAWN`.
        reference: the real pictures; None where no metric compares with any.
        clip, inception, efficientnet: as far as the metrics need them.
        seed: of resampling and of candidates.
        involved: how the CLIP was involved in the pictures (`feature_models.involvement`).
        protocol: what goes into every score's protocol.
        intervals: without them a distance is its value alone, which is quicker.
    """

    def __init__(
        self, metrics: Sequence[str], reference: Reference | None, clip: CLIPScorer | None,
        inception: FeatureNet | None, seed: int, involved: str | None = None,
        protocol: Mapping[str, Any] | None = None, intervals: bool = True, efficientnet: FeatureNet | None = None,
    ) -> None:
        self.metrics, self.reference, self.clip, self.seed = list(metrics), reference, clip, seed
        self.involved, self.protocol, self.intervals = involved, dict(protocol or {}), intervals
        self.nets = [net for net in (inception, clip, efficientnet) if net is not None and self.asked(net)]
        self.with_captions = [name for name in WITH_CAPTIONS if name in metrics and clip is not None]
        self._real: dict[str, Statistics] = {}

    def asked(self, net: FeatureNet) -> list[str]:
        """The metrics that are asked for of a net's features."""
        return [name for name in BY_NET[net.name] if name is not None and name in self.metrics]

    def _keeps(self, net: FeatureNet) -> bool:
        return any(name in KEEPS for name in self.asked(net))

    def real(self, net: FeatureNet) -> Statistics:
        """Statistics of the real pictures' features."""
        if self.reference is None:
            raise ValueError(f"metrics=[{', '.join(self.metrics)}] compare with real pictures: give data=…")
        if net.name not in self._real:
            self._real[net.name] = self.reference.statistics(net, self._keeps(net))
        return self._real[net.name]

    def embed(self, pictures: Iterable[tuple[Tensor, Tensor]], scores: Scores) -> Embeddings:
        """Of numbers (b,) and pictures uint8 (b, h, w, 3) a batch; what fails is noted in `scores`."""
        nets = self.nets
        found = {net.name: Statistics(net.dim, self._keeps(net)) for net in nets}
        seen, clip = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, self.clip.dim if self.clip else 0)]
        for numbers, images in pictures:
            features = {net.name: net(images) for net in nets}
            for net in nets:
                with scores.trying(self.asked(net), part=True):
                    found[net.name].update(features[net.name], numbers)
            if self.with_captions and self.clip is not None:
                clip.append(F.normalize(features["clip"] if "clip" in features else self.clip(images), dim=-1))
            seen.append(numbers)
            nets = [net for net in nets if not scores.missing.keys() & self.asked(net)]
        return Embeddings(found, torch.cat(seen), torch.cat(clip))

    def measure(self, embedded: Embeddings, text: Sequence[str] | None, scores: Scores) -> Scores:
        """Adds the scores of embedded pictures; `text` has the caption of each, for what compares with captions."""
        if not len(embedded.numbers):
            raise ValueError("no pictures to score")
        for net in self.nets:
            if scores.missing.keys() & set(self.asked(net)):
                continue
            with scores.trying(self.asked(net)):
                self._distances(net, embedded.statistics[net.name], self.real(net), scores)
        if self.with_captions and text is not None:
            with scores.trying(self.with_captions):
                self._captions(embedded.clip, text, scores)
        return scores

    def _distances(self, net: FeatureNet, fake: Statistics, real: Statistics, scores: Scores) -> None:
        """Fréchet and kernel distance, precision and recall, as far as they are asked for."""
        by_clip, (fd, kd, pr) = net.name == "clip", BY_NET[net.name]
        involved = self.involved if by_clip else None
        special = "_dfgan" if net.name == "inception_torchvision" else ""
        held = {**self.protocol, "features": net.protocol, "n_fake": fake.count, "n_real": real.count,
                **({"clip_involvement": involved} if involved else {})}
        if self.reference is not None:
            held |= {"reference": self.reference.described, "reference_hash": self.reference.hash()}
        if fd is not None and fd in self.metrics:
            stem = fid_name(f"fid{special}", fake.count, real.count) if fd == "fid" else score_name(fd, involved)
            with scores.trying([fd]):
                scores.add(stem, frechet(fake, real, self.intervals), "lower", fake.count, {
                    **held, "interval": "jackknife over ten groups of the drawn pictures"})
        if kd is not None and kd in self.metrics:
            size = min(1000, min(fake.count, real.count) // 2)  # of all, every subset would be the same
            with scores.trying([kd]):
                scores.add(score_name(kd, involved) + special,
                           kernel_distance(fake.features, real.features, self.seed, 100, size), "lower", fake.count,
                           {**held, "kernel": "(x.y/d + 1)^3, unbiased", "subsets": 100, "subset_size": size,
                            "interval": "the middle 95 % of the subsets"})
        if pr is not None and pr in self.metrics:
            with scores.trying([pr]):
                for part, interval in precision_recall(fake.features, real.features, self.seed).items():
                    name = score_name(f"{part}_clip", involved) if by_clip else part + special
                    scores.add(name, interval, "higher", fake.count, {**held, "k": 3, "interval": "bootstrap, 1000"})

    def _captions(self, image: Float[Tensor, "n d"], text: Sequence[str], scores: Scores) -> None:
        """CLIP score and R-precision, as far as they are asked for."""
        assert self.clip is not None
        words, n = self.clip.embed_text(text).cpu(), len(image)
        held = {**self.protocol, "clip_model": self.clip.score_protocol, "n_fake": n, "interval": "bootstrap, 1000",
                **({"clip_involvement": self.involved} if self.involved else {})}
        similarity = (image * words).sum(-1)
        if "clip_score" in self.with_captions:
            with scores.trying(["clip_score"]):
                scores.add(score_name("clip_score", self.involved), bootstrap(similarity, self.seed), "higher", n, held)
        if similarity.isfinite().all():
            scores.clip = similarity
        if "r_precision" in self.with_captions:
            order = {caption: i for i, caption in enumerate(dict.fromkeys(text))}
            groups = torch.tensor([order[caption] for caption in text])
            candidates = min(100, len(order))
            with scores.trying(["r_precision"]):
                scores.add(score_name("r_precision", self.involved),
                           r_precision(image, words, groups, self.seed, candidates), "higher", n,
                           {**held, "candidates": candidates})


HEAD = ("value", "95 %", "n", "better")


def rows(scores: Mapping[str, Any]) -> list[list[str]]:
    """Name, value, interval, number of pictures and which way is better, of every score that has a value."""
    return [[name, f"{entry['value']:.4g}",
             f"{entry['low']:.4g} to {entry['high']:.4g}" if entry["low"] < entry["high"] else "–",
             f"{entry['n']:,}", entry["better"]] for name, entry in scores.items() if "value" in entry]


def table(scores: Mapping[str, Any], missing: Mapping[str, str]) -> str:
    """The scores with intervals as a Markdown table, and what could not be had under it."""
    return "\n".join([markdown_table(["metric", *HEAD], rows(scores), right=(1, 3)), *without(missing)])


def without(missing: Mapping[str, str]) -> list[str]:
    return [f"Without {name}: {shown(why, 1000)}" for name, why in missing.items()]
