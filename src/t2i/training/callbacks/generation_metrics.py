"""Scores while training: a fixed set of captions, drawn with the averaged weights at validations and measured as
`evaluate.py` does.

Picture i has the seed f(seed, "evaluation", i) whatever rank draws it; each rank draws its share, and what is gathered
gives every rank the same scores. The CLIP and the statistics stay outside the LightningModule: nothing of them is
trained or kept in checkpoints. `trainer.monitor=val/fd_clip` lets `best.ckpt` follow.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist

from t2i.evaluation.evaluator import Embeddings, Evaluator, Scores
from t2i.evaluation.feature_models import involvement
from t2i.evaluation.generated_images import draw, largest_batch
from t2i.evaluation.protocols import Protocol
from t2i.evaluation.reference_images import Reference
from t2i.metrics.clip_score import CLIPScorer
from t2i.training.callbacks.at_validation import AtValidation, undisturbed
from t2i.training.callbacks.checkpointing import ConfigInCheckpoint
from t2i.training.strategies import is_sharded

KINDS = ("fd_clip", "clip_score", "r_precision")


class GenerationMetrics(AtValidation):
    """Logs `val/fd_clip`, `val/clip_score` and so on, with n (`val/score_n`), and what they cost: `val/score_seconds`,
    and `val/score_share`, their part of all the time since training began.

    A CLIP that conditions the model is named so: `val/fd_clip_by_own_clip`.

    Args:
        clip_model: a CLIP's folder or hub name.
        metrics: of fd_clip, clip_score, r_precision.
        n: pictures, captions of the validation split.
        every_n_steps: at most once in so many batches; the last validation always.
        seed: of captions and pictures, not of the training.
        options: of the model's sampling, such as {guidance: 3.0}.
        batch_size: None takes 64, on a GPU as many as fit.
    """

    def __init__(
        self, clip_model: str, metrics: Sequence[str] = ("fd_clip", "clip_score"), n: int = 512,
        every_n_steps: int = 1, seed: int = 0, options: dict[str, Any] | None = None, batch_size: int | None = None,
        allow_download: bool = False,
    ) -> None:
        if unknown := [name for name in metrics if name not in KINDS]:
            raise ValueError(f"metrics={list(metrics)}: {', '.join(unknown)} unknown; allowed are {', '.join(KINDS)}")
        if not metrics or n < 2:
            raise ValueError(f"metrics={list(metrics)} (one at least), n={n} (a whole number from 2)")
        super().__init__(every_n_steps)
        self.metrics, self.n, self.seed = list(metrics), n, seed
        self.given, self.batch_size = options or {}, batch_size
        self.clip = CLIPScorer(clip_model, allow_download)
        self.spent, self.since = 0.0, time.monotonic()

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        if not hasattr(module, "sample"):
            raise ValueError(f"callbacks.scores: a {module.kind} draws nothing that could be scored")
        if is_sharded(trainer):
            raise ValueError("callbacks.scores draws on every rank, which trainer=fsdp cannot; use trainer=ddp")
        self.options = {**{k: v for k, v in module.options.items() if v is not None}, **self.given}
        module.check_options(**self.options)
        config = next(c for c in trainer.callbacks if isinstance(c, ConfigInCheckpoint)).config
        self.clip.to(module.device)
        reference = Reference(config, Protocol(None, n=self.n), module.image_size, self.seed)
        self.text = reference.text
        self.evaluator = Evaluator(self.metrics, reference, self.clip, None, self.seed,
                                   involvement(self.clip, module), intervals=False)
        if not trainer.is_global_zero:
            trainer.strategy.barrier()  # the first rank computes and caches the real pictures' statistics
        for net in self.evaluator.nets:
            self.evaluator.real(net)
        if trainer.is_global_zero:
            trainer.strategy.barrier()
        self.since = time.monotonic()

    def validated(self, trainer: Any, module: Any) -> None:
        started = time.monotonic()
        with undisturbed(module):
            found = self.measure(module, trainer.global_rank, trainer.world_size)
        self.spent += time.monotonic() - started
        values = {f"val/{name}": value for name, value in found.items()}
        values |= {"val/score_n": float(len(self.text)), "val/score_seconds": time.monotonic() - started,
                   "val/score_share": self.spent / max(1e-9, time.monotonic() - self.since)}
        module.log_dict(values, sync_dist=False)

    def measure(self, module: Any, rank: int, ranks: int) -> dict[str, float]:
        """Scores of the module as it is; every rank must call it, and gets the same."""
        scores, batch = Scores(), largest_batch(module.device, self.batch_size)
        pictures = draw(module, self.text, self.seed, self.options, range(rank, len(self.text), ranks), batch=batch)
        embedded = self.evaluator.embed(pictures, scores)
        if ranks > 1:
            parts: list[Any] = [None] * ranks
            dist.all_gather_object(parts, (embedded, scores.missing))
            embedded = Embeddings.merged([part for part, _ in parts])
            scores.missing |= {name: why for _, missing in parts for name, why in missing.items()}
        self.evaluator.measure(embedded, self.text, scores)
        if scores.missing:
            raise ValueError("; ".join(f"{name} cannot be had: {why}" for name, why in scores.missing.items()))
        return {name: entry["value"] for name, entry in scores.values.items()}
