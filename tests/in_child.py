"""A tiny training in a forked child, which can be killed for real and waits for no imports, and what it ends with."""

from __future__ import annotations

import csv
import os
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from t2i.checkpoint import file_format
from t2i.cli.app import is_for_people, message
from t2i.config import check
from t2i.config.compose import ROOT, compose
from tests import tiny

SETTINGS = [*tiny.VQGAN, "model.discriminator_start=0.25", "data.image_size=32", "data.size=40", "data.val_size=16",
            "data.batch_size=8", *tiny.TRAINER, *tiny.QUIET, "trainer.val_every_steps=2", "trainer.limit_val_batches=2",
            "trainer.checkpoint_every_steps=4", "trainer.log_every_steps=3", "trainer.max_steps=13",
            "model.learning_rate=0.01", "trainer.monitor=train/codebook_perplexity", "trainer.monitor_mode=max",
            "callbacks.ema={_target_: t2i.training.callbacks.ema.EMA, modules: [tokenizer], decay: 0.9}"]


def config(folder: Path, *more: str) -> dict[str, Any]:
    return compose([*SETTINGS, f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", *more])


def in_child(run: Callable[[], object], log: Path) -> int:
    """Runs it in a process of its own, its words in `log`; its exit code, negative for a signal."""
    return wait(start(run, log))


def in_children(runs: Sequence[Callable[[], object]], logs: Path) -> list[int]:
    """Runs each in a process of its own, all at once, their words in `logs`/0.log and so on; their exit codes."""
    return [wait(number) for number in [start(run, logs / f"{i}.log") for i, run in enumerate(runs)]]


def wait(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def start(run: Callable[[], object], log: Path) -> int:
    """The number of the process that runs it."""
    number = os.fork()
    if number:
        return number
    code = 99
    try:
        torch.set_num_threads(1)  # threads of the parent's are not there
        with log.open("w") as words:
            os.dup2(words.fileno(), 1)
            os.dup2(words.fileno(), 2)
            sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
            try:
                run()
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else 1
            except KeyboardInterrupt:
                code = 130
            except (ValueError, OSError) as error:
                code = 2 if is_for_people(error) else 1
                print(message(error) if code == 2 else traceback.format_exc(), file=sys.stderr)
            except BaseException:
                traceback.print_exc()
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def app(name: str, words: Sequence[str], folder: Path, log: Path) -> int:
    """`python NAME.py WORDS` in a folder, without the start of Python; the number of the process that runs it."""

    def run() -> None:
        os.chdir(folder)
        for found in (check._module, check.constructor):  # what an earlier test of this process asked for elsewhere
            found.cache_clear()
        sys.argv = [str(ROOT / f"{name}.py"), *words]
        runpy.run_path(sys.argv[0], run_name="__main__")

    return start(run, log)


def result(run_dir: Path) -> dict[str, Any]:
    """What must be the same: rows of metrics.csv, weights, averaged weights, and where best.ckpt is from."""
    last, best = (file_format.read(run_dir / f"{name}.ckpt") for name in ("last", "best"))
    return {"rows": dict(enumerate(rows(run_dir))), "steps": [last["global_step"], best["global_step"]],
            "weights": last["state_dict"], "averages": last["ema"]["weights"], "best": best["state_dict"],
            "optimisers": {f"{i}/{k}/{name}": value for i, held in enumerate(last["optimizer_states"])
                           for k, state in held["state"].items() for name, value in state.items()}}


def rows(run_dir: Path) -> list[dict[str, str]]:
    """Of metrics.csv, without empty cells: columns are added as metrics appear."""
    with (run_dir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return [{name: cell for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """What of two results is not the same."""
    def same(x: Any, y: Any) -> bool:
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(same(x[name], y[name]) for name in x)
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else bool(x == y)

    return [name for name in a if not same(a[name], b[name])]

