"""Drawing without training: a picture is moved until CLIPs agree with what is asked for.

VQGAN-CLIP (Crowson et al. 2022, arXiv 2204.08583), on any canvas (`t2i.generation.clip_guided.image_parameters`). An
iteration renders the picture
once and shows each guide its views of it in one batch; texts are embedded once a drawing; the canvas alone has
gradients. Deviation: with `micro_batch` the views are shown in parts, whose gradients meet at the rendered picture, so
that memory does not grow with the number of views.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.losses.guidance import cosine, guidance, spherical, target
from t2i.types import Canvas, Guide

DISTANCES = {"cosine": cosine, "spherical": spherical}
OPTIMIZERS = ("adam", "adamw", "sgd")
SMOOTHING = 0.9  # of the loss that `patience` watches
LEAST = 1e-4  # that it must fall by to count as getting better

Show = Callable[[Float[Tensor, "1 3 h w"], torch.Generator, int], Float[Tensor, "n 3 s s"]]


@dataclass(frozen=True)
class Asked:
    """Embeddings of what is asked for, in one guide's space, with their weights."""

    targets: Float[Tensor, "p d"]
    weights: Float[Tensor, " p"]
    stops: Float[Tensor, " p"]
    excluded: Float[Tensor, "e d"]
    excluded_weights: Float[Tensor, " e"]


def asked(
    guide: Guide, wish: Any, picture: Callable[[str, int], Tensor], w1: float = 1.0, w2: float = 0.1
) -> Asked:
    """What `wish` (`t2i.generation.clip_guided.prompts.Wish`) is to this guide. `picture(path, size)` reads a prompt
    that is a picture, as
    (1, 3, size, size) in [-1, 1]."""

    def embedded(prompts: Sequence[Any]) -> Tensor:
        with torch.no_grad():
            found = [guide.embed_image(picture(one.text, guide.image_size)) if one.is_image else
                     guide.embed_text([one.text]) for one in prompts]
        return torch.cat(found).float() if found else torch.zeros(0, 1)

    def numbers(prompts: Sequence[Any], name: str) -> Tensor:
        return torch.tensor([getattr(one, name) for one in prompts], dtype=torch.float32)

    targets = embedded(wish.targets)
    if wish.extras:
        targets = target(targets, embedded(wish.extras), w1, w2, numbers(wish.extras, "weight"))
    return Asked(targets, numbers(wish.targets, "weight"), numbers(wish.targets, "stop"), embedded(wish.excluded),
                 numbers(wish.excluded, "weight"))


class Guided:
    """One drawing: `move()` is an iteration, `picture()` what there is by now.

    Args:
        canvas: what is moved.
        guides, wishes, views: of each CLIP, what is asked of it and how it is shown the picture
            (`t2i.generation.clip_guided.cutouts.Views`: picture, generator, how many -> views).
        count: views an iteration.
        micro_batch: views at once; null: all.
        loss: cosine or spherical; alpha, beta: weights of what is asked for and of what is excluded.
        ema: decay of an average of the canvas's parameters, which `picture` shows; 0: none.
        patience: iterations without the smoothed loss falling after which `finished` is true; null: never.
        bf16: whether the canvas is rendered under bfloat16.
        generator: of the views, on the CPU.
    """

    def __init__(
        self,
        canvas: Canvas,
        guides: Sequence[Guide],
        wishes: Sequence[Asked],
        views: Sequence[Show],
        count: int = 32,
        micro_batch: int | None = None,
        loss: Literal["cosine", "spherical"] = "spherical",
        optimizer: Literal["adam", "adamw", "sgd"] = "adam",
        learning_rate: float = 0.1,
        weight_decay: float = 0.0,
        alpha: float = 1.0,
        beta: float = 0.5,
        ema: float = 0.0,
        patience: int | None = None,
        bf16: bool = False,
        *,
        generator: torch.Generator,
    ) -> None:
        if not guides or not len(guides) == len(wishes) == len(views):
            raise ValueError(f"{len(guides)} guides, {len(wishes)} wishes, {len(views)} views: one of each a guide")
        if loss not in DISTANCES:
            raise ValueError(f"loss={loss!r}: one of {', '.join(DISTANCES)} is needed")
        if optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={optimizer!r}: one of {', '.join(OPTIMIZERS)} is needed")
        for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name}={value}: allowed are numbers from 0")
        if not 0 <= ema < 1:
            raise ValueError(f"ema={ema}: allowed are numbers from 0 up to, not including, 1")
        for name, whole in (("batch_size", count), ("micro_batch", micro_batch), ("patience", patience)):
            if whole is not None and whole < 1:
                raise ValueError(f"{name}={whole}: allowed are whole numbers from 1" +
                                 ("" if name == "batch_size" else ", or null"))
        self.canvas, self.guides, self.wishes, self.views = canvas, list(guides), list(wishes), list(views)
        self.count, self.micro_batch = count, min(micro_batch or count, count)
        self.distance, self.alpha, self.beta = DISTANCES[loss], alpha, beta
        self.ema, self.patience, self.bf16, self.generator = ema, patience, bf16, generator
        parameters = list(canvas.parameters())
        self.device = parameters[0].device
        if optimizer == "sgd":
            self.optimizer: torch.optim.Optimizer = torch.optim.SGD(parameters, learning_rate, 0.9,
                                                                    weight_decay=weight_decay)
        else:
            kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
            self.optimizer = kind(parameters, learning_rate, weight_decay=weight_decay)
        self.average = copy.deepcopy(list(p.detach() for p in parameters)) if ema else []
        self.step, self.smoothed, self.best, self.since = 0, math.nan, math.inf, 0

    @property
    def finished(self) -> bool:
        """Whether the loss has stopped falling."""
        return self.patience is not None and self.since >= self.patience

    def move(self) -> tuple[float, float]:
        """An iteration: its loss, and the mean cosine of the views and what is asked for."""
        self.canvas.train()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            image = self.canvas()
        leaf = image.detach().float().requires_grad_()
        total, likeness = 0.0, 0.0
        for guide, wish, show in zip(self.guides, self.wishes, self.views, strict=True):
            for start in range(0, self.count, self.micro_batch):
                n = min(self.micro_batch, self.count - start)
                seen = guide.embed_image(show(leaf, self.generator, n))
                loss = guidance(seen, wish.targets, wish.weights, wish.excluded, wish.excluded_weights, wish.stops,
                                self.alpha, self.beta, self.distance) * (n / self.count / len(self.guides))
                loss.backward()
                total += float(loss.detach())
                likeness += self.likeness(seen.detach(), wish) * n / self.count / len(self.guides)
        self.step += 1
        if not math.isfinite(total) or leaf.grad is None or not bool(torch.isfinite(leaf.grad).all()):
            raise ValueError(f"iteration {self.step}: loss {total:g} or its gradient is not finite; a smaller"
                             " guide.learning_rate, or guide.precision=32-true, may help")
        image.backward(leaf.grad.to(image))
        self.optimizer.step()
        self.canvas.after_step()
        decay = min(self.ema, self.step / (10 + self.step))
        for mean, now in zip(self.average, self.canvas.parameters(), strict=False):
            mean.lerp_(now.detach(), 1 - decay)
        self.watch(total)
        return total, likeness

    def likeness(self, seen: Float[Tensor, "n d"], wish: Asked) -> float:
        """Mean cosine of views and targets, by the targets' weights; those below 0 do not count."""
        weights = wish.weights.clamp_min(0).to(seen)
        if not float(weights.sum()):
            return 0.0
        return float((weights @ -cosine(seen, wish.targets)).mean() / weights.sum())

    def watch(self, loss: float) -> None:
        self.smoothed = loss if self.step == 1 else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        if self.smoothed < self.best - LEAST:
            self.best, self.since = self.smoothed, 0
        else:
            self.since += 1

    @contextmanager
    def shown(self) -> Iterator[Canvas]:
        """The canvas as it is shown: without draws of chance, by the averaged parameters where there are any."""
        parameters = list(self.canvas.parameters())
        kept = [p.detach().clone() for p in parameters] if self.ema else []
        self.canvas.train(False)
        try:
            with torch.no_grad():
                for parameter, value in zip(parameters, self.average, strict=False):
                    parameter.copy_(value)
                if self.ema:
                    self.canvas.after_step()
                yield self.canvas
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, kept, strict=False):
                    parameter.copy_(value)

    def picture(self) -> Float[Tensor, "1 3 h w"]:
        """The picture in [-1, 1]."""
        with self.shown() as canvas:
            return canvas().detach().float().clamp(-1, 1)

    def state(self) -> dict[str, Tensor]:
        """The parameters of `picture`, on the CPU."""
        with self.shown() as canvas:
            return {name: value.detach().cpu().clone() for name, value in canvas.state_dict().items()}

    @torch.no_grad()
    def similarity(self, wishes: Sequence[Asked] | None = None) -> float:
        """Mean cosine of the picture, seen whole, and what is asked for (or another wish), over the guides."""
        image, found = self.picture(), 0.0
        for guide, wish in zip(self.guides, self.wishes if wishes is None else wishes, strict=True):
            size = (guide.image_size, guide.image_size)
            whole = torch.nn.functional.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
            found += self.likeness(guide.embed_image(whole), wish) / len(self.guides)
        return found
