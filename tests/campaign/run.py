"""The campaign: `python tests/campaign/run.py` tries everything and writes the table of docs/reliability.md.

  --only GROUP    one of the groups (again for several)
  --quick         one case in ten of the groups that can be cut
  --out FILE.md   writes the table and each case that is not right there
  --jobs N        processes side by side (2)

Code 1 where a case is not right, or a group has fewer cases than it must. Cases run in forked children of processes
that have imported everything once (`forked`).
"""

from __future__ import annotations

import argparse
import gc
import importlib
import inspect
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src"), str(ROOT)]
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: sums must not depend on the machine

from campaign.common import Result, table  # noqa: E402

QUICK = 10
ALL = "all of them"


Found = dict[str, list[Result]]  # by the names of GROUPS


@dataclass(frozen=True)
class Group:
    """`module.run(folder)` gives the results; `parts`: into how many it is cut to run side by side; `least`: by group
    of its results, how many cases there must be. Of a module with `short()`, that is what --quick runs."""

    module: str
    least: dict[str, int]
    parts: int = 1
    row: str = ""  # one of the table for all its results; by default each group of them has its own


GROUPS = {
    "kills": Group("kills", {"kill -9": 45}, 3),
    "signals": Group("interrupts", {"signals": 24}, 2),
    "checkpoints": Group("checkpoints", {"checkpoint files": 150}, 4),
    "disks": Group("disks_training", {"disks, training": 12}),
    "data": Group("data", {"pictures": 100, "metadata and shards": 60}),
    "prompts": Group("prompts", {ALL: 1000}, row="prompts"),
    "disks_drawing": Group("disks_drawing", {}),
}


def one(name: str, folder: Path, part: int, every: int) -> tuple[str, float, list[Result]]:
    """A part of a group, its seconds and results."""
    group, started = GROUPS[name], time.monotonic()
    module = importlib.import_module(f"campaign.{group.module}")
    if "every" in inspect.signature(module.run).parameters:
        results = module.run(folder / name, part, group.parts, every)
    elif every > 1 and hasattr(module, "short"):
        results = module.run(folder / name, module.short())
    else:
        results = module.run(folder / name)
    if group.row:
        results = [replace(result, group=group.row, name=f"{result.group}, {result.name}") for result in results]
    return name, time.monotonic() - started, results


def campaign(names: Sequence[str], folder: Path, every: int, jobs: int) -> tuple[Found, dict[str, float]]:
    """The results of each group, and the seconds that each group of results took."""
    from campaign import forked, made

    forked.warm()
    gc.collect()
    gc.freeze()  # pages that the collector does not touch stay shared with the children
    made.make(folder / "made")
    for name in names:
        (folder / name).mkdir()
        (folder / name / "made").symlink_to(folder / "made")
    parts = [(name, part) for name in names for part in range(GROUPS[name].parts)]
    found: Found = {name: [] for name in names}
    seconds: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        begun = {pool.submit(one, name, folder, part, every): name for name, part in parts}
        for done in as_completed(begun):
            if (error := done.exception()) is not None:  # what the others found is not lost for it
                broken = Result("the group itself", begun[done], "traceback", f"{type(error).__name__}: {error}")
                found[begun[done]].append(broken)
                continue
            name, took, results = done.result()
            found[name] += results
            for group, count in Counter(result.group for result in results).items():
                seconds[group] += took * count / len(results)
            wrong = sum(result.outcome not in ("right", "skipped") for result in results)
            print(f"{name}: {len(results)} cases in {took:.0f} s, {wrong} not right", file=sys.stderr, flush=True)
    return found, dict(seconds)


def listed(results: Sequence[Result]) -> list[str]:
    """Each case that is not right, as a line."""
    return [f"- {result.outcome}: {result.group}, {result.name}: {' '.join(result.detail.split())[:300]}"
            for result in results if result.outcome != "right"]


def too_few(found: Found) -> list[str]:
    faults = []
    for name, results in found.items():
        counted = Counter(group for r in results if r.outcome != "skipped" for group in (r.group, ALL))
        faults += [f"- {name}, {group}: {counted[group]} cases were tried, {least} are wanted"
                   for group, least in GROUPS[name].least.items() if counted[group] < least]
    return faults


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python tests/campaign/run.py", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(GROUPS))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args(words)
    names = [name for name in GROUPS if asked.only is None or name in asked.only]
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign") as folder:
        found, seconds = campaign(names, Path(folder), QUICK if asked.quick else 1, asked.jobs)
    results = [result for name in names for result in found[name]]
    few = [] if asked.quick else too_few(found)
    faults = listed(results) + few
    took = f"{len(results):,} cases in {time.monotonic() - started:.0f} s, {asked.jobs} processes."
    text = "\n".join([table(results, seconds), "", took, *(["", *faults] if faults else [])]) + "\n"
    print(text)
    if asked.out is not None:
        asked.out.write_text(text, encoding="utf-8")
    return int(bool(few) or any(result.outcome not in ("right", "skipped") for result in results))


if __name__ == "__main__":
    sys.exit(main())
