"""Damaged and odd data sets, through the code that training and prepare.py run: `python tests/campaign/data.py`.

A case is right where it is read as it should be, or refused by one good line, the same in training, with
data.on_error=skip and in prepare.py. `python tests/campaign/data.py 'cut at'` runs the cases whose names match.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[n] / name) for n, name in ((1, ""), (2, "src"))]

from campaign.common import Outcome, Result, table
from campaign.data_cases import Case, pictures
from campaign.listing_cases import metadata
from t2i.cli.app import is_for_people, message
from t2i.config.compose import compose
from t2i.data.datasets import data_module
from t2i.data.prepare import run as prepare

SECONDS = 20  # of computing that a data set of a handful of pictures may take
WIDEST = 700  # characters of a line: two paths and a cut value
NATIVE = re.compile(r"^(Corrupt JPEG|Premature end|JPEGLib|ZIPDecode|_?TIFF|libpng|.*\.py:\d+: )", re.MULTILINE)
AT_FAULT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202e]")  # what a terminal would act on


@dataclass(frozen=True)
class Model:
    """What data sets ask of what trains on them."""

    captions: bool
    batch: str = "pictures"


class Hung(Exception):
    pass


def ring(*_: Any) -> None:
    raise Hung


@contextmanager
def printed() -> Iterator[Callable[[], str]]:
    """What is written to both streams meanwhile, by native code too."""
    with tempfile.TemporaryFile("w+b") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        kept = sys.stdout, sys.stderr, os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = open(os.dup(1), "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115

        def text() -> str:
            sys.stdout.flush()
            file.seek(0)
            return file.read().decode("utf-8", "backslashreplace")

        try:
            yield text
        finally:
            sys.stdout.close()
            sys.stdout, sys.stderr = kept[:2]
            for number in (1, 2):
                os.dup2(kept[1 + number], number)
                os.close(kept[1 + number])


def attempt(work: Callable[[], Any]) -> tuple[Any, str, Outcome | None]:
    """What came of it, all that was said, and the outcome where it is plain already."""
    outcome: Outcome | None = None
    found = None
    with printed() as text, warnings.catch_warnings():  # so that what was said before is said again
        signal.signal(signal.SIGVTALRM, ring)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            found = work()
        except Hung:
            outcome = "hung"
        except (ValueError, OSError) as error:
            if is_for_people(error):
                print(message(error))
            else:
                outcome = "traceback"
                traceback.print_exc()
        except BaseException:
            outcome = "traceback"
            traceback.print_exc()
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        said = text()
    return found, said, outcome


@cache
def composed(door: str, data: str, options: tuple[str, ...]) -> dict[str, Any]:
    words = ["model=vqgan"] if door == "train" else ["sheet=0"]
    words += [] if data == "emoji" else ["data.root=."]
    return compose([*words, f"data={data}", "data.image_size=16", "data.load_size=null", *options], door)


def config_of(case: Case, door: str, root: Path, **more: str) -> dict[str, Any]:
    """As a door composes it; what differs between cases is put into it afterwards, since composing takes its time."""
    found = composed(door, case.data, case.options)
    data = {**found["data"], "batch_size": 1, **more} | ({"root": str(root)} if "root" in found["data"] else {})
    paths = {**found["paths"], "cache": str(root.parent / "cache")}
    return {**found, "data": data, "paths": paths, "out": str(root.parent / "checks")}


def train(case: Case, root: Path, **more: str) -> tuple[int, int, int]:
    """What training does before its first step and with its first batches; pictures of both sides, captions of one."""
    module = data_module(config_of(case, "train", root, **more), Model(case.captions))
    for loader in (module.train_dataloader(), module.val_dataloader()):
        for batch in islice(loader, 8):
            assert batch.image.shape[1:] == (3, 16, 16)
    return len(module.train_set), len(module.val_set), len(module.train_set.captions(0))


def unindented(said: str) -> str:
    return re.sub(r"^ +", "", said, flags=re.MULTILINE)


def in_a_list(says: str) -> str:
    """Of what a refusal says the faults themselves: elsewhere they stand below another head, more of them."""
    lines = re.split(r"(?<!\\)\\n *", says)
    return r"\n".join(line for line in lines if " faults " not in line and not line.startswith("and "))


def judged(
    case: Case,
    said: str,
    outcome: Outcome | None,
    read: tuple[int, int] | None,
    wanted: tuple[int, int] | None,
    found: Any,
) -> tuple[Outcome, str] | None:
    """Outcome and reason where something is not right."""
    if outcome is not None:
        return outcome, said
    if NATIVE.search(said) or AT_FAULT.search(said) or any(len(line) > WIDEST for line in said.splitlines()):
        return "wrong", f"not a good line: {said}"
    told = re.search(case.says if found is None else in_a_list(case.says), unindented(said), re.MULTILINE) is not None
    if found is None:  # refused
        return None if wanted is None and told else ("wrong", said)
    if not told and not (case.either and wanted == read):
        return "silent", f"read {read}, {said!r}"
    if read is not None and wanted != read:
        return "wrong", f"read {read}, {said!r}"
    return None


def one(case: Case, folder: Path) -> tuple[Outcome, str]:
    root = folder / "data"
    case.build(root)
    found, said, outcome = attempt(lambda: train(case, root))
    read = found[:2] if found is not None else None
    fits = case.reads is None and case.either and case.skips is not None
    wanted = (case.skips[0] + 1, case.skips[1]) if fits and found is not None and case.skips else case.reads
    if wrong := judged(case, said, outcome, read, wanted, found):
        return wrong
    if found is not None and case.each is not None and found[2] != case.each:
        return "wrong", f"{found[2]} captions instead of {case.each}"
    harmless = fits and found is not None
    if case.skips is not None and not harmless and case.data != "emoji":
        found, said, outcome = attempt(lambda: train(case, root, on_error="skip"))
        if wrong := judged(case, said, outcome, found[:2] if found is not None else None, case.skips, found):
            return wrong[0], f"on_error=skip: {wrong[1]}"
    if "has no caption" in case.says or harmless:
        return "right", ""  # a tokenizer would train on it
    found, said, outcome = attempt(lambda: prepare(config_of(case, "prepare", root)))
    if outcome is not None:
        return outcome, f"prepare: {said}"
    if NATIVE.search(said) or AT_FAULT.search(said):
        return "wrong", f"prepare: not a good line: {said}"
    if re.search(in_a_list(case.says), unindented(said), re.MULTILINE) is None:
        return "silent", f"prepare: {said}"
    return "right", ""


def run(folder: Path, cases: Iterable[tuple[str, Case]] | None = None) -> list[Result]:
    """Runs cases, each in a folder of its own below `folder`; all of them unless some are given."""
    results = []
    for group, case in every() if cases is None else cases:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            outcome, detail = one(case, Path(own))
            results.append(Result(case.name, group, outcome, detail.replace(own, "…")))
    return results


def every() -> Iterator[tuple[str, Case]]:
    yield from (("pictures", case) for case in pictures())
    yield from (("metadata and shards", case) for case in metadata())


def short() -> list[tuple[str, Case]]:
    """Every twenty-third of them, for the tests."""
    return list(islice(every(), 0, None, 23))


def main(words: list[str]) -> int:
    cases = [(group, case) for group, case in every() if all(re.search(word, case.name) for word in words)]
    folder, started, seconds = Path(tempfile.mkdtemp(prefix="campaign-")), time.monotonic(), dict[str, float]()
    results: list[Result] = []
    try:
        for group in dict.fromkeys(group for group, _ in cases):
            results += run(folder, [pair for pair in cases if pair[0] == group])
            seconds[group] = time.monotonic() - started - sum(seconds.values())
    finally:
        shutil.rmtree(folder)
    for result in results:
        if result.outcome != "right":
            print(f"\n{result.outcome}: {result.name}\n{result.detail[:1500]}")
    print("\n" + table(results, seconds))
    return int(any(result.outcome != "right" for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
