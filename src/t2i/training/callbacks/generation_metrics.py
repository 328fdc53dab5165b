"""Scores while training: a fixed set of captions, drawn with the averaged weights at validations, judged as
`evaluate.py` does.

Picture i has the seed f(seed, "evaluation", i) whatever rank draws it; each rank draws its share, and what is gathered
gives every rank the same scores. Judge and statistics stay outside the LightningModule: nothing of them is trained or
kept in checkpoints. `trainer.monitor=val/fd_clip` lets `best.ckpt` follow.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F

from t2i.data.seeds import derive_seed
from t2i.evaluation.composition import as_bytes
from t2i.evaluation.feature_models import involved, named
from t2i.evaluation.generated_images import largest_batch, sampled
from t2i.evaluation.protocols import Protocol
from t2i.evaluation.reference_images import Reference
from t2i.metrics.clip_score import CLIPScorer
from t2i.metrics.frechet import frechet_distance
from t2i.metrics.r_precision import r_precision
from t2i.metrics.statistics import Statistics
from t2i.training.callbacks.checkpointing import ConfigInCheckpoint
from t2i.training.callbacks.image_grid import undisturbed
from t2i.training.strategies import is_sharded

KINDS = ("fd_clip", "clip_score", "r_precision")


class GenerationMetrics(pl.Callback):
    """Logs `val/fd_clip`, `val/clip_score` and so on, with n (`val/score_n`), and what they cost: `val/score_seconds`,
    and `val/score_share`, their part of all the time since training began.

    A CLIP that conditions the model is named so: `val/fd_clip_by_own_clip`.

    Args:
        judge: a CLIP's folder or hub name.
        metrics: of fd_clip, clip_score, r_precision.
        n: pictures, captions of the validation split.
        every_n_steps: at most once in so many batches; the last validation always.
        seed: of captions and pictures, not of the training.
        options: of the model's sampling, such as {guidance: 3.0}.
        batch_size: None takes 64, on a GPU as many as fit.
    """

    def __init__(
        self, judge: str, metrics: Sequence[str] = ("fd_clip", "clip_score"), n: int = 512,
        every_n_steps: int = 1, seed: int = 0, options: dict[str, Any] | None = None, batch_size: int | None = None,
        allow_download: bool = False,
    ) -> None:
        if unknown := [name for name in metrics if name not in KINDS]:
            raise ValueError(f"metrics={list(metrics)}: {', '.join(unknown)} unknown; allowed are {', '.join(KINDS)}")
        if not metrics or n < 2 or every_n_steps < 1:
            raise ValueError(f"metrics={list(metrics)} (one at least), n={n} (a whole number from 2), "
                             f"every_n_steps={every_n_steps} (from 1)")
        self.metrics, self.n, self.every_n_steps, self.seed = list(metrics), n, every_n_steps, seed
        self.given, self.batch_size = options or {}, batch_size
        self.scorer = CLIPScorer(judge, allow_download)
        self.last_step: int | None = None
        self.spent, self.since = 0.0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"last_step": self.last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.last_step = state["last_step"]

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if not hasattr(module, "sample"):
            raise ValueError(f"callbacks.scores: a {module.kind} draws nothing that could be scored")
        if is_sharded(trainer):
            raise ValueError("callbacks.scores draws on every rank, which trainer=fsdp cannot; use trainer=ddp")
        self.options = {**{k: v for k, v in module.options.items() if v is not None}, **self.given}
        module.check_options(**self.options)
        config = next(c for c in trainer.callbacks if isinstance(c, ConfigInCheckpoint)).config
        self.scorer.to(module.device)
        self.how = involved(self.scorer, module)
        reference = Reference(config, Protocol(None, n=self.n), module.image_size, self.seed)
        self.text = reference.text
        first = trainer.is_global_zero
        net = self.scorer
        self.words = self.scorer.text_features(self.text).cpu()
        self.real = None
        if "fd_clip" in self.metrics:
            if not first:
                trainer.strategy.barrier()  # the first rank computes and caches them
            self.real = reference.statistics(net, keep=False)
            if first:
                trainer.strategy.barrier()
        self.since = time.monotonic()

    def on_validation_epoch_end(self, trainer: Any, module: Any) -> None:
        step = trainer.global_step
        ends = trainer.should_stop or 0 < trainer.max_steps <= step
        early = self.last_step is not None and step - self.last_step < self.every_n_steps
        if trainer.sanity_checking or (early and not ends):
            return
        self.last_step = step
        started = time.monotonic()
        with undisturbed(module):
            found = self.scores(module, trainer.global_rank, trainer.world_size)
        self.spent += time.monotonic() - started
        values = {f"val/{named(name, self.how)}": value for name, value in found.items()}
        values |= {"val/score_n": float(len(self.text)), "val/score_seconds": time.monotonic() - started,
                   "val/score_share": self.spent / max(1e-9, time.monotonic() - self.since)}
        module.log_dict(values, sync_dist=False)

    def scores(self, module: Any, rank: int, ranks: int) -> dict[str, float]:
        """Of the module as it is; every rank must call it, and gets the same."""
        mine = list(range(rank, len(self.text), ranks))
        seeds = [derive_seed(self.seed, "evaluation", i) for i in mine]
        net = self.scorer
        statistics, features, at = Statistics(net.dim), [torch.zeros(0, net.dim)], 0
        batch = largest_batch(module.device, self.batch_size)
        for images in sampled(module, [self.text[i] for i in mine], seeds, self.options, batch):
            part = net(as_bytes(images))
            statistics.update(part, torch.tensor(mine[at : at + len(part)], dtype=torch.long))
            features.append(F.normalize(part, dim=-1))
            at += len(part)
        held = [(mine, torch.cat(features), statistics.state())]
        if ranks > 1:
            gathered: list[Any] = [None] * ranks
            dist.all_gather_object(gathered, held[0])
            held = gathered
        order = torch.tensor([i for numbers, _, _ in held for i in numbers]).argsort()
        image = torch.cat([part for _, part, _ in held])[order]
        together = Statistics.from_state(held[0][2])
        for _, _, state in held[1:]:
            together.merge(Statistics.from_state(state))
        found = {}
        if self.real is not None:
            found["fd_clip"] = frechet_distance(together.total(), self.real.total())
        if "clip_score" in self.metrics:
            found["clip_score"] = float((image * self.words).sum(-1).double().mean())
        if "r_precision" in self.metrics:
            places = {caption: i for i, caption in enumerate(dict.fromkeys(self.text))}
            groups = torch.tensor([places[caption] for caption in self.text])
            found["r_precision"] = r_precision(image, self.words, groups, self.seed, min(100, len(places))).value
        return found
