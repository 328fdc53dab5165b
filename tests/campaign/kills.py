"""kill -9 at any moment of a training, then the same command: the end must be the unbroken run's, bit for bit.

Killed is at exact places (before the n-th fsync, rename or link, in a validation that falls on a checkpoint's step, in
a row of metrics.csv, while a cache is packed, at the exit, in the resumed run) and after random times.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from campaign import forked
from campaign.common import Outcome, Result
from campaign.forked import Ended, Moment
from campaign.made import make, words

GROUP = "kill -9"
SECONDS = 90.0  # that a run may take on a busy machine


@dataclass(frozen=True)
class Kill:
    """A run of `model`, killed at each of `moments` in turn: a place, or a share of the unbroken run's time."""

    name: str
    model: str
    moments: tuple[Moment | float, ...]
    more: tuple[str, ...] = ()
    own_cache: bool = False


# Places, by what is being done there.
PLACES = {
    "before a checkpoint's bytes are safe": lambda n: Moment("fsync", "c", n),
    "before a file takes its name": lambda n: Moment("replace", "c", n),
    "before the checkpoint before is kept": lambda n: Moment("link", "c", n),
    "while a checkpoint is written": lambda n: Moment("write", "atomic.py", n),
    "in a validation": lambda n: Moment("validation_step", "", n),
    "after a validation, before its end": lambda n: Moment("on_validation_end", "checkpointing.py", n),
    "in a step": lambda n: Moment("training_step", "", n),
    "at the end of a batch": lambda n: Moment("on_train_batch_end", "checkpointing.py", n),
    "in a row of metrics.csv": lambda n: Moment("log_metrics", "loggers.py", n),
    "at the end of training": lambda n: Moment("on_train_end", "checkpointing.py", n),
    "before it is called finished": lambda n: Moment("write_text", "atomic.py", n),
}


def kills(made: Path) -> Iterator[Kill]:
    rng = random.Random(18)
    chosen = {
        "before a checkpoint's bytes are safe": (1, 2, 5, 8, 13), "before a file takes its name": (2, 3, 6, 9),
        "before the checkpoint before is kept": (1, 3), "while a checkpoint is written": (7, 60, 200),
        "in a validation": (1, 2, 3), "after a validation, before its end": (1, 2, 3), "in a step": (1, 6, 12),
        "at the end of a batch": (4, 8, 12), "in a row of metrics.csv": (1, 3, 6), "at the end of training": (1,),
        "before it is called finished": (1, 2, 3),
    }  # fmt: skip
    models = ["vqgan", "prior", "clip", "dfgan"]
    turn = 0
    for what, counts in chosen.items():
        for n in counts:
            model = models[turn % 4]
            turn += 1
            yield Kill(f"{model}: {what}, {n}", model, (PLACES[what](n),))
    for k in range(8):
        model = models[k % 4]
        yield Kill(f"{model}: after a random time, {k}", model, (rng.uniform(0.1, 1.0),))
    yield Kill("vqgan: twice in validations", "vqgan", (PLACES["in a validation"](1), PLACES["in a validation"](2)))
    yield Kill("prior: twice before a rename", "prior", (Moment("replace", "c", 5), Moment("replace", "c", 4)))
    yield Kill("clip: three times", "clip", (PLACES["in a step"](5), PLACES["in a validation"](1),
                                             PLACES["in a row of metrics.csv"](2)))
    yield Kill("dfgan: while it is restored", "dfgan", (PLACES["in a step"](7), Moment("load_checkpoint", "", 1)))
    stop = ("callbacks.early_stopping={_target_: t2i.training.callbacks.early_stopping.EarlyStopping, patience: 2,"
            " min_delta: 10}")
    for n in (2, 3):
        yield Kill(f"vqgan: in validation {n}, before an early stop", "vqgan", (PLACES["in a validation"](n),), (stop,))
    for n in (3, 7):
        yield Kill(f"prior: while codes are cached, {n}", "prior", (Moment("encode", "", n),), own_cache=True)
    pictures = ("data=folder", f"data.root={made / 'pictures'}", "data.image_size=16", "data.batch_size=8")
    for n in (7, 40):
        place = Moment("dumps", "json/__init__.py", n)
        yield Kill(f"vqgan: while pictures are packed, {n}", "vqgan", (place,), pictures, True)
    for moment in (Moment("rename", "c", 1), Moment("replace", "c", 3), Moment("sync_files", "cache.py", 1)):
        yield Kill(f"vqgan: before the packed cache takes its name ({moment.name})", "vqgan", (moment,), pictures, True)


def end_of(run: Path) -> dict[str, Any]:
    """What a run ends with: weights, averages, optimisers, best weights, rows of metrics.csv, step."""
    found: dict[str, Any] = {}
    for name in ("last", "best"):
        path = run / f"{name}.ckpt"
        if path.is_file():
            held = torch.load(path, weights_only=True)
            found[name] = {key: held.get(key) for key in ("state_dict", "ema", "optimizer_states", "global_step")}
    text = (run / "metrics.csv").read_text() if (run / "metrics.csv").is_file() else ""
    rows = [{key: value for key, value in row.items() if value} for row in csv.DictReader(text.splitlines())]
    return {**found, "rows": sorted(rows, key=lambda row: (int(row["step"]), "val/loss" in row, sorted(row)))}


def differs(a: Any, b: Any, path: str = "") -> str:
    """Where two ends differ; empty where they are the same."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        return "" if same else path
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{path} has {sorted(map(str, set(a) ^ set(b)))[:3]} on one side"
        return next((d for key in a if (d := differs(a[key], b[key], f"{path}.{key}"))), "")
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{path}: {len(a)} and {len(b)}"
        return next((d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := differs(x, y, f"{path}.{i}"))), "")
    return "" if a == b else f"{path}: {a!r:.80} and {b!r:.80}"


def left_over(*folders: Path) -> list[str]:
    """Files that only a run that was killed leaves."""
    return sorted(path.name for folder in folders if folder.exists() for path in folder.rglob("*")
                  if path.name.endswith((".tmp", ".part")) or (path.name.startswith(".") and ".out." not in path.name
                                                               and path.name not in (".hydra", ".jobs")
                                                               and not path.name.endswith((".lock", "lock"))))


def judged(last: Ended, run: Path, whole: dict[str, Any], caches: Sequence[Path]) -> tuple[Outcome, str]:
    """Whether a run that was continued ended as the unbroken one did."""
    if last.over:
        return "hung", f"the continued run took more than {last.seconds:.0f} s"
    if last.traced:
        return "traceback", last.last()
    if last.code:
        return "wrong", f"the continued run ends with {last.code}: {last.last()}"
    if not (run / "finished.json").is_file():
        return "wrong", "no finished.json"
    if where := differs(whole, end_of(run)):
        return "silent", f"another end: {where.lstrip('.')}"
    if left := left_over(run, *caches):
        return "wrong", f"left behind: {', '.join(left)[:200]}"
    return "right", ""


class Whole:
    """The unbroken runs, each made once: by model and settings."""

    def __init__(self, folder: Path, made: Path) -> None:
        self.folder, self.made = folder, made
        self.ends: dict[tuple[str, ...], tuple[dict[str, Any], float]] = {}

    def __call__(self, model: str, more: Sequence[str] = ()) -> tuple[dict[str, Any], float]:
        key = (model, *more)
        if key not in self.ends:
            runs = self.folder / f"whole-{len(self.ends)}"
            ended = forked.run(forked.command("train", words(model, self.made, runs, "name=x", *more)), runs, SECONDS)
            if ended.code:
                raise RuntimeError(f"the unbroken {model} failed: {ended.err}")
            self.ends[key] = end_of(runs / "x"), ended.seconds
        return self.ends[key]


def killing() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def one(kill: Kill, folder: Path, made: Path, whole: Whole) -> tuple[Outcome, str]:
    wanted, seconds = whole(kill.model, kill.more)
    cache = folder / "cache" if kill.own_cache else None
    line = words(kill.model, made, folder / "runs", "name=x", *kill.more, cache=cache)
    work = forked.command("train", line)
    start: Callable[..., Ended] = partial(forked.run, work, folder, SECONDS)
    for moment in kill.moments:
        ended = start(kill_at=moment * seconds) if isinstance(moment, float) else start(at=(moment, killing))
        if not isinstance(moment, float) and not ended.reached:
            return "wrong", f"the moment did not come ({moment.name} {moment.count}); code {ended.code}: {ended.last()}"
    return judged(start(), folder / "runs/x", wanted, [cache] if cache else [])


def run(folder: Path, part: int = 0, parts: int = 1, every: int = 1) -> list[Result]:
    """Every kill, or every `parts`-th from `part` on, of those one in `every`."""
    made = make(folder / "made")
    whole = Whole(folder / f"kills-{part}", made)
    found = []
    for k, kill in enumerate(kills(made)):
        if k % parts == part and k // parts % every == 0:
            place = folder / f"kills-{part}/{k}"
            found.append(Result(kill.name, GROUP, *one(kill, place, made, whole)))
            shutil.rmtree(place)
    return found
