"""Trainings that are killed at any moment, told to stop, or run out of disk: what they then have must be what an
unbroken run has, row by row and bit by bit.

Each case is a process forked from this one, so that none waits for imports. All of them, in about six minutes:
`python -m campaign.interruptions` in the folder of the tests.
"""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from campaign.common import Result, table
from t2i import checkpoint, engine
from t2i.command import is_for_people, message
from t2i.config import ROOT, compose

SETTINGS = ["model=vqgan", "model.autoencoder.channels=8", "model.autoencoder.multipliers=[1]",
            "model.autoencoder.attention_levels=[]", "model.autoencoder.mid_attention=false",
            "model.autoencoder.patch_size=8", "model.autoencoder.z_channels=8", "model.autoencoder.num_groups=0",
            "model.quantizer.codebook_size=16", "model.quantizer.dim=4", "model.discriminator.channels=4",
            "model.discriminator.num_layers=2", "model.discriminator_start=0.25", "data.image_size=32", "data.size=40",
            "data.val_size=16", "data.batch_size=8", "trainer=cpu", "trainer.precision=32-true",
            "trainer.val_every_steps=2", "trainer.limit_val_batches=2", "trainer.checkpoint_every_steps=4",
            "trainer.log_every_steps=3", "trainer.max_steps=13", "model.learning_rate=0.01", "logger=csv",
            "trainer.monitor=train/codebook_perplexity", "trainer.monitor_mode=max", "callbacks.plots=null",
            "callbacks.progress=null", "callbacks.pictures=null",
            "callbacks.ema={_target_: t2i.callbacks.EMA, modules: [tokenizer], decay: 0.9}"]

WATCHED = {str(ROOT / f"src/t2i/{name}.py") for name in (
    "engine", "guards", "run_lock", "checkpoint", "callbacks", "measures", "loggers", "data/module", "models/vqgan")}


def config(folder: Path, *more: str) -> dict[str, Any]:
    return compose([*SETTINGS, f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", *more])


def in_child(run: Callable[[], object], log: Path) -> int:
    """Runs it in a process of its own, its words in `log`; its exit code, negative for a signal."""
    number = os.fork()
    if number:
        return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
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


def at_call(count: int | None, strike: Callable[[], None]) -> list[int]:
    """Strikes at the so-many-th call of a function of t2i's from here on (None: never); counts them."""
    calls = [0]

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename in WATCHED:
            calls[0] += 1
            if calls[0] == count:
                strike()

    sys.setprofile(profile)
    return calls


def result(run_dir: Path) -> dict[str, Any]:
    """What must be the same: rows of metrics.csv, weights, averaged weights, and where best.ckpt is from."""
    last, best = (checkpoint.read(run_dir / f"{name}.ckpt") for name in ("last", "best"))
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


class Unbroken:
    """A run that nothing disturbed: what it has, and how many calls of ours it took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.settings = folder, config(folder)

        def counted() -> None:
            calls = at_call(None, lambda: None)
            engine.run(self.named("whole"))
            sys.setprofile(None)
            (folder / "calls").write_text(str(calls[0]))

        if in_child(counted, folder / "log"):
            raise RuntimeError((folder / "log").read_text())
        self.calls, self.result = int((folder / "calls").read_text()), result(folder / "runs/whole")

    def named(self, name: str, runs: Path | None = None) -> dict[str, Any]:
        return self.settings | {"name": name, "paths": {**self.settings["paths"],
                                                        "runs": str(runs or self.folder / "runs")}}

    def faults(self, name: str, made: dict[str, Any]) -> str:
        """What is wrong after the same command was given again; "" for nothing."""
        run_dir = Path(made["paths"]["runs"]) / name
        if code := in_child(lambda: engine.run(made), self.folder / "log"):
            return f"again: exit code {code}, {(self.folder / 'log').read_text().strip()[-200:]}"
        left = [path.name for path in run_dir.parent.rglob(".*")]
        other = differing(self.result, result(run_dir)) + [f"{name} is left" for name in left]
        return ", ".join(other)


def kills(whole: Unbroken, count: int) -> list[Result]:
    """kill -9 at calls spread evenly over a run, from before its first step to after its last."""
    found = []
    for i in range(count):
        call, name = whole.calls * (i + 1) // (count + 1), f"kill-{i}"

        def broken(call: int = call, name: str = name) -> None:
            at_call(call, lambda: os.kill(os.getpid(), signal.SIGKILL))
            engine.run(whole.named(name))

        code = in_child(broken, whole.folder / "log")
        fault = whole.faults(name, whole.named(name)) if code == -signal.SIGKILL else f"exit code {code}"
        found.append(Result(f"kill -9 at call {call}", "kill -9", "wrong" if fault else "right", fault))
        shutil.rmtree(whole.folder / "runs" / name)
    return found


def signals(whole: Unbroken, count: int) -> list[Result]:
    """SIGTERM and SIGINT in turn, in the same way. Before the first step there is nothing to save: it just ends."""
    found = []
    for i in range(count):
        which, call, name = (signal.SIGTERM, signal.SIGINT)[i % 2], whole.calls * (i + 1) // (count + 1), f"signal-{i}"

        def told(which: int = which, call: int = call, name: str = name) -> None:
            at_call(call, lambda: os.kill(os.getpid(), which))
            engine.run(whole.named(name))

        code = in_child(told, whole.folder / "log")
        saved = (whole.folder / "runs" / name / "last.ckpt").is_file()
        early = rows(whole.folder / "runs" / name) if saved else []
        fault = "" if code in ((engine.STOPPED, 0) if saved else (-which, 130)) else f"exit code {code}"
        if early != list(whole.result["rows"].values())[: len(early)]:
            fault += " rows that an unbroken run has not"
        fault = fault or whole.faults(name, whole.named(name))
        found.append(Result(f"{which.name} at call {call}", "signals", "wrong" if fault else "right", fault))
        shutil.rmtree(whole.folder / "runs" / name, ignore_errors=True)
    return found


# Name -> size of the disk in kB (a checkpoint has 800) and further settings.
DISKS: dict[str, tuple[int, dict[str, Any]]] = {
    **{f"{size} kB": (size, {}) for size in (4, 8, 100, 500, 900, 1300, 1700, 2000, 2200)},
    **{f"TensorBoard, {size} kB": (size, {"logger": {"names": ["tensorboard", "csv"]}}) for size in (12, 16)},
    "grids": (24, {"callbacks": {"pictures": {"_target_": "t2i.callbacks.PictureGrid", "every_n_steps": 1}}}),
    "plots": (48, {"callbacks": {"plots": {"_target_": "t2i.callbacks.LossPlots", "every_seconds": 0}}}),
    "read-only": (0, {}),
}


def mounted(place: Path, *options: str) -> bool:
    return subprocess.run(["mount", *options, "none", str(place)], capture_output=True).returncode == 0


def disks(whole: Unbroken) -> list[Result]:
    """Runs on a small disk: one line that names a cause and what is kept; with room the same command goes on."""
    found = []
    for name, (size, more) in DISKS.items():
        place = whole.folder / f"disk-{len(found)}"
        place.mkdir()
        if not mounted(place, "-t", "tmpfs", "-o", f"size={size}k" if size else "ro"):
            found.append(Result(name, "disks", "skipped", "this user cannot mount"))
            continue
        try:
            made = whole.named("x", place)
            made |= {key: value | made[key] | value for key, value in more.items()}
            code = in_child(lambda made=made: engine.run(made), whole.folder / "log")  # type: ignore[misc]
            said = (whole.folder / "log").read_text().strip().splitlines()
            words = ("No space left", "Read-only") if code == 2 else ()
            errors = [line for line in said if line.startswith("error: ")]
            fault = "" if len(errors) == 1 and any(word in errors[0] for word in words) else f"{code}: {said[-3:]}"
            mounted(place, "-o", "remount,rw,size=64m")
            fault = fault or whole.faults("x", made)
            found.append(Result(name, "disks", "wrong" if fault else "right", fault or errors[0]))
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return found


def main() -> None:
    """All groups, with a table of the outcomes."""
    torch.set_num_threads(1)
    results, seconds = [], {}
    with tempfile.TemporaryDirectory() as folder:
        whole = Unbroken(Path(folder))
        for group, cases in {"kill -9": lambda: kills(whole, 45), "signals": lambda: signals(whole, 24),
                             "disks": lambda: disks(whole)}.items():
            started = time.monotonic()
            results += cases()
            seconds[group] = time.monotonic() - started
    for one in results:
        if one.outcome != "right":
            print(f"{one.outcome}: {one.group}, {one.name}: {one.detail}")
    print(table(results, seconds))


if __name__ == "__main__":
    main()
