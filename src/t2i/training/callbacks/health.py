"""Says once, in a line with the usual remedies, that a training goes wrong in one of the ways that are well known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

REAL, FAKE, LOSS = "train/logits/real", "train/logits/fake", "train/loss/discriminator"
# By model: the loss that is to fall, and ends nowhere near where it began.
FALLING = {"vqgan": "train/loss/pixel", "prior": "train/loss", "prior_any": "train/loss", "clip": "train/loss"}
REMEDIES = {
    "not finite": "a smaller model.learning_rate; trainer.gradient_clip_val=1; trainer.precision=32-true",
    "loss": "another model.learning_rate (three times as much, then a third); captions that belong to their pictures"
            " (python prepare.py shows them); a larger net",
    "behind": "a larger model.discriminator_learning_rate; a wider model.discriminator; less freeze=",
    "ahead": "a smaller model.discriminator_learning_rate; a smaller model.discriminator; more pictures (data.flip,"
             " data.crop=random)",
    "codebook": "model/quantizer=ema, which restarts dead codes, or fsq, which has none; a smaller codebook_size;"
                " a smaller dim",
}


class Health(pl.Callback):
    """Looks at logged values when they are written, and judges them at validations, where the device is waited for
    anyway: no step waits for it. Each finding is told once in a run, on a line of its own; of a run in which all is
    well nothing is.

    Findings: a value that is not finite; a loss that has not fallen (`flat`) since training began; a discriminator that
    tells real from generated pictures nowhere (`margin` of logits), or at once, so that its own loss is nothing
    (`margin`); a codebook of which next to nothing is used (`usage`) at two validations in a row.

    Args:
        window: logged values that a judgement takes.
        flat: the share of itself by which a loss falls at least.
        margin: see above.
        usage: the share of a codebook's codes.
    """

    def __init__(self, window: int = 10, flat: float = 0.01, margin: float = 0.01, usage: float = 0.02) -> None:
        if window < 2 or not (0 <= flat < 1 and margin >= 0 and 0 <= usage < 1):
            raise ValueError(f"window={window} (at least 2), flat={flat} and usage={usage} (from 0, below 1),"
                             f" margin={margin} (from 0)")
        self.window, self.flat, self.margin, self.usage = window, flat, margin, usage
        self.first: list[float] = []  # the falling loss as training began
        self.last: dict[str, list[float]] = {}
        self.pending: dict[str, list[Tensor]] = {}  # logged since, not read yet
        self.unused: list[str] = []  # codebooks at the last validation
        self.said: list[str] = []

    def read(self) -> None:
        """Takes what was logged as numbers; waits for the device."""
        for name, values in self.pending.items():
            numbers = [float(value) for value in values]
            if name in FALLING.values():
                self.first = (self.first + numbers)[: self.window]
            kept = self.last.get(name, []) + numbers
            self.last[name] = [one for one in kept if not math.isfinite(one)][:1] or kept[-3 * self.window :]
        self.pending = {}

    def state_dict(self) -> dict[str, Any]:
        self.read()
        return {"first": self.first, "last": self.last, "unused": self.unused, "said": self.said}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first, self.last = list(state["first"]), {name: list(one) for name, one in state["last"].items()}
        self.unused, self.said, self.pending = list(state["unused"]), list(state["said"]), {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # set by a connector
            known = trainer.callback_metrics
            for name in {REAL, FAKE, LOSS, FALLING.get(module.kind, LOSS)} & known.keys():
                self.pending.setdefault(name, []).append(known[name].detach())

    def on_validation_end(self, trainer: pl.Trainer, module: Any) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            self.read()
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            for line in self.judged(module.kind, values):
                print(f"\nHealth of the training at step {trainer.global_step}: {line}")

    def judged(self, kind: str, metrics: Mapping[str, float]) -> list[str]:
        """What is wrong and was not said yet, a line each."""
        found: dict[str, str] = {}
        odd = [name for name, value in metrics.items() if not math.isfinite(value)]
        odd += [name for name, values in self.last.items() if not math.isfinite(values[-1]) and name not in odd]
        if odd:
            found["not finite"] = f"{', '.join(sorted(odd)[:4])} {'is' if len(odd) == 1 else 'are'} not finite"
        else:
            found |= self._loss(kind) | self._discriminator()
        unused = [name for name, value in metrics.items()
                  if name.startswith("train/codebook_usage") and value < self.usage]
        if again := sorted(set(unused) & set(self.unused)):
            found["codebook"] = (f"of a codebook {100 * metrics[again[0]]:.2g} % is used ({again[0]}), at two"
                                 " validations in a row")
        self.unused = unused
        new = [what for what in found if what not in self.said]
        self.said += new
        return [f"{found[what]}. What usually helps: {REMEDIES[what]}." for what in new]

    def _loss(self, kind: str) -> dict[str, str]:
        values = self.last.get(FALLING.get(kind, ""), [])
        if len(values) < 3 * self.window:
            return {}
        began, now = mean(self.first), mean(values[-self.window :])
        if now <= began - self.flat * abs(began):
            return {}
        return {"loss": f"{FALLING[kind]} is {now:.4g} and began at {began:.4g}: it has not fallen"}

    def _discriminator(self) -> dict[str, str]:
        real, fake, loss = (self.last.get(name, [])[-self.window :] for name in (REAL, FAKE, LOSS))
        if min(len(real), len(fake), len(loss)) < self.window:
            return {}
        if max(abs(r - f) for r, f in zip(real, fake, strict=True)) < self.margin:
            return {"behind": f"the discriminator gives real and generated pictures the same logits ({real[-1]:.3g} and"
                              f" {fake[-1]:.3g})"}
        if max(loss) < self.margin:
            return {"ahead": f"the discriminator tells every generated picture ({LOSS} is {loss[-1]:.2g}), and its"
                             " gradient says nothing"}
        return {}


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
