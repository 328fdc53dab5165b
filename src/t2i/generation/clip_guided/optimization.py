"""Drawing without training: a picture is moved until CLIPs agree with what is asked for.

VQGAN-CLIP (Crowson et al. 2022, arXiv 2204.08583), on any image parameters
(`t2i.generation.clip_guided.image_parameters`). An iteration renders the picture once and shows each CLIP its cutouts
of it in one batch; texts are embedded once a drawing; the image parameters alone have gradients. Deviation: with
`micro_batch` the cutouts are shown in parts, whose gradients meet at the rendered picture, so that memory does not grow
with their number.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.generation.clip_guided.prompts import Prompt, PromptTargets
from t2i.losses.guidance import cosine, guidance, spherical, target
from t2i.types import ClipModel, ImageParameters

DISTANCES = {"cosine": cosine, "spherical": spherical}
OPTIMIZERS = ("adam", "adamw", "sgd")
SMOOTHING = 0.9  # of the loss that `patience` watches
LEAST = 1e-4  # that it must fall by to count as getting better

Cut = Callable[[Float[Tensor, "1 3 h w"], torch.Generator, int], Float[Tensor, "n 3 s s"]]


@dataclass(frozen=True)
class TargetEmbeddings:
    """Embeddings of what is asked for, in one CLIP's space, with their weights."""

    targets: Float[Tensor, "p d"]
    weights: Float[Tensor, " p"]
    stops: Float[Tensor, " p"]
    excluded: Float[Tensor, "e d"]
    excluded_weights: Float[Tensor, " e"]


@torch.no_grad()
def embed_targets(
    clip: ClipModel, prompts: PromptTargets, picture: Callable[[str, int], Tensor], prompt_share: float = 1.0,
    extra_share: float = 0.1,
) -> TargetEmbeddings:
    """What is asked for in this CLIP's space. `picture(path, size)` reads a prompt that is a picture, as
    (1, 3, size, size) in [-1, 1]; the shares are a prompt's and the extras' in what is aimed at."""

    def embedded(prompts: Sequence[Prompt]) -> Tensor:
        found = [clip.embed_image(picture(one.text, clip.image_size)) if one.is_image else clip.embed_text([one.text])
                 for one in prompts]
        return torch.cat(found).float() if found else torch.zeros(0, 1)

    def weights(prompts: Sequence[Prompt]) -> Tensor:
        return torch.tensor([one.weight for one in prompts], dtype=torch.float32)

    targets = embedded(prompts.targets)
    if prompts.extras:
        targets = target(targets, embedded(prompts.extras), prompt_share, extra_share, weights(prompts.extras))
    stops = torch.tensor([one.stop for one in prompts.targets], dtype=torch.float32)
    return TargetEmbeddings(targets, weights(prompts.targets), stops, embedded(prompts.excluded),
                            weights(prompts.excluded))


class Optimization:
    """One drawing: `update()` is an iteration, `picture()` what there is by now.

    Args:
        canvas: what is moved.
        clip_models, targets, cutouts: each CLIP, what is asked of it and how it is shown the picture
            (`t2i.generation.clip_guided.cutouts.Cutouts`: picture, generator, how many -> views).
        batch_size: cutouts an iteration.
        micro_batch: cutouts at once; null: all.
        loss: cosine or spherical.
        text_weight, negative_weight: of what is asked for and of what is excluded.
        ema: decay of an average of the parameters, which `picture` shows; 0: none.
        patience: iterations without the smoothed loss falling after which `finished` is true; null: never.
        bf16: whether the canvas is rendered under bfloat16.
        generator: of the cutouts, on the CPU.
    """

    def __init__(
        self,
        canvas: ImageParameters,
        clip_models: Sequence[ClipModel],
        targets: Sequence[TargetEmbeddings],
        cutouts: Sequence[Cut],
        batch_size: int = 32,
        micro_batch: int | None = None,
        loss: Literal["cosine", "spherical"] = "spherical",
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        text_weight: float = 1.0,
        negative_weight: float = 0.5,
        ema: float = 0.0,
        patience: int | None = None,
        bf16: bool = False,
        *,
        generator: torch.Generator,
    ) -> None:
        if not clip_models or not len(clip_models) == len(targets) == len(cutouts):
            raise ValueError(f"{len(clip_models)} CLIPs, {len(targets)} targets, {len(cutouts)} cutouts: one of each a"
                             " CLIP")
        for name, value, allowed in (("loss", loss, DISTANCES), ("optimizer", optimizer, OPTIMIZERS)):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: one of {', '.join(allowed)} is needed")
        for name, number in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if not 0 <= number < math.inf:
                raise ValueError(f"{name}={number}: allowed are numbers from 0")
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}: allowed are numbers from 0 up to, not including, 1")
        for name, whole in (("batch_size", batch_size), ("micro_batch", micro_batch), ("patience", patience)):
            if whole is not None and whole < 1:
                raise ValueError(f"{name}={whole}: allowed are whole numbers from 1" +
                                 ("" if name == "batch_size" else ", or null"))
        self.canvas, self.clip_models, self.targets = canvas, list(clip_models), list(targets)
        self.cutouts, self.batch_size = list(cutouts), batch_size
        self.micro_batch = min(micro_batch or batch_size, batch_size)
        self.distance, self.text_weight, self.negative_weight = DISTANCES[loss], text_weight, negative_weight
        self.ema, self.patience, self.bf16, self.generator = ema, patience, bf16, generator
        parameters = list(canvas.parameters())
        self.device = parameters[0].device
        self.optimizer: torch.optim.Optimizer
        if optimizer == "sgd":
            self.optimizer = torch.optim.SGD(parameters, learning_rate, 0.9, weight_decay=weight_decay)
        else:
            kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
            self.optimizer = kind(parameters, learning_rate, weight_decay=weight_decay)
        self.average = copy.deepcopy([p.detach() for p in parameters]) if ema else []
        self.step, self.smoothed, self.best, self.since = 0, math.nan, math.inf, 0

    @property
    def finished(self) -> bool:
        """Whether the loss has stopped falling."""
        return self.patience is not None and self.since >= self.patience

    def update(self) -> tuple[float, float]:
        """An iteration: its loss, and the mean cosine of the views and what is asked for."""
        self.canvas.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            image = self.canvas()
        leaf = image.detach().float().requires_grad_()
        total, similarity = 0.0, 0.0
        for clip, asked, cut in zip(self.clip_models, self.targets, self.cutouts, strict=True):
            for start in range(0, self.batch_size, self.micro_batch):
                n = min(self.micro_batch, self.batch_size - start)
                views = clip.embed_image(cut(leaf, self.generator, n))
                loss = guidance(views, asked.targets, asked.weights, asked.excluded, asked.excluded_weights,
                                asked.stops, self.text_weight, self.negative_weight, self.distance)
                loss = loss * (n / self.batch_size / len(self.clip_models))
                loss.backward()
                total += float(loss.detach())
                similarity += mean_similarity(views.detach(), asked) * n / self.batch_size / len(self.clip_models)
        self.step += 1
        if not math.isfinite(total) or leaf.grad is None or not bool(torch.isfinite(leaf.grad).all()):
            raise ValueError(f"iteration {self.step}: loss {total:g} or its gradient is not finite; a smaller"
                             " clip_guided.learning_rate, or clip_guided.precision=32-true, may help")
        image.backward(leaf.grad.to(image))
        self.optimizer.step()
        self.canvas.after_step()
        if self.ema:
            decay = min(self.ema, self.step / (10 + self.step))
            for mean, now in zip(self.average, self.canvas.parameters(), strict=True):
                mean.lerp_(now.detach(), 1 - decay)
        self.smoothed = total if self.step == 1 else SMOOTHING * self.smoothed + (1 - SMOOTHING) * total
        if self.smoothed < self.best - LEAST:
            self.best, self.since = self.smoothed, 0
        else:
            self.since += 1
        return total, similarity

    @contextmanager
    def shown(self) -> Iterator[ImageParameters]:
        """The canvas as it is shown: without draws of chance, by the averaged parameters where there are any."""
        self.canvas.train(False)
        if not self.ema:
            with torch.no_grad():
                yield self.canvas
            return
        parameters = list(self.canvas.parameters())
        kept = [p.detach().clone() for p in parameters]
        try:
            with torch.no_grad():
                _copy(self.average, parameters)
                self.canvas.after_step()
                yield self.canvas
        finally:
            with torch.no_grad():
                _copy(kept, parameters)

    def picture(self) -> Float[Tensor, "1 3 h w"]:
        """The picture in [-1, 1]."""
        with self.shown() as canvas:
            return canvas().detach().float().clamp(-1, 1)

    def state(self) -> dict[str, Tensor]:
        """The parameters of `picture`, on the CPU."""
        with self.shown() as canvas:
            return {name: value.detach().cpu().clone() for name, value in canvas.state_dict().items()}

    @torch.no_grad()
    def similarity(self, targets: Sequence[TargetEmbeddings] | None = None) -> float:
        """Mean cosine of the picture, seen whole, and what is asked for (or other targets), over the CLIPs."""
        image, found = self.picture(), 0.0
        for clip, asked in zip(self.clip_models, self.targets if targets is None else targets, strict=True):
            size = (clip.image_size, clip.image_size)
            whole = torch.nn.functional.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
            found += mean_similarity(clip.embed_image(whole), asked) / len(self.clip_models)
        return found


def mean_similarity(views: Float[Tensor, "n d"], asked: TargetEmbeddings) -> float:
    """Mean cosine of views and targets, by the targets' weights; those below 0 do not count."""
    weights = asked.weights.clamp_min(0).to(views)
    if not float(weights.sum()):
        return 0.0
    return float((weights @ -cosine(views, asked.targets)).mean() / weights.sum())


def _copy(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
