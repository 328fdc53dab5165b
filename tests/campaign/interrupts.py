"""SIGTERM and Ctrl-C, once and twice, at every stage of the doors; afterwards the same command goes on to the same end.

Once, while it trains: code 75, a checkpoint, one line. Before and after that, and while drawing: Ctrl-C is code 130
with one line, SIGTERM ends the process as it does any (or is answered as while training). Twice: 130 and one line.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from campaign import forked
from campaign.common import Outcome, Result
from campaign.forked import Ended, Moment
from campaign.kills import PLACES, SECONDS, Whole, judged
from campaign.made import make, words

GROUP = "signals"
STOPPED, INTERRUPTED = 75, 130
TERM, INT = signal.SIGTERM, signal.SIGINT
PROGRESS = re.compile(r"\d+/[\d,]+ .*(left|took|/s)|  step \d+  ")  # lines of training and of counters
NAMES = {TERM: "TERM", INT: "Ctrl-C"}


@dataclass(frozen=True)
class Case:
    """Signals sent to a training of `model` at a place: the first there, a second (`twice`) at once after it."""

    name: str
    model: str
    place: Moment
    which: signal.Signals
    twice: bool = False
    trains: bool = True  # whether it is training there, so that 75 and a checkpoint are due
    more: tuple[str, ...] = ()
    own_cache: bool = False


def cases(made: Path) -> Iterator[Case]:
    models = ["vqgan", "prior", "clip", "dfgan"]
    trained = {"in a step": PLACES["in a step"](5), "in a validation": PLACES["in a validation"](2),
               "at the end of a batch": PLACES["at the end of a batch"](8),
               "while a checkpoint is written": PLACES["while a checkpoint is written"](60),
               "before a checkpoint takes its name": Moment("replace", "c", 6)}  # fmt: skip
    turn = 0
    for name, place in trained.items():
        for which in (TERM, INT):
            yield Case(f"{models[turn % 4]}: {NAMES[which]} {name}", models[turn % 4], place, which)
            turn += 1
        which = (TERM, INT)[turn % 2]
        yield Case(f"{models[turn % 4]}: {NAMES[which]} twice {name}", models[turn % 4], place, which, True)
        turn += 1
    for which in (TERM, INT):
        early = {"at the start": Moment("open_run", "train.py"), "while the data are built": Moment("data_module", ""),
                 "while the trainer is made": Moment("make_trainer", "train.py")}
        for name, place in early.items():
            yield Case(f"{models[turn % 4]}: {NAMES[which]} {name}", models[turn % 4], place, which, trains=False)
            turn += 1
        data = ("data=folder", f"data.root={made / 'pictures'}", "data.image_size=16", "data.batch_size=8")
        yield Case(f"vqgan: {NAMES[which]} while pictures are packed", "vqgan", Moment("dumps", "json/__init__.py", 12),
                   which, False, False, data, True)
        yield Case(f"prior: {NAMES[which]} while codes are cached", "prior", Moment("encode", "", 4), which,
                   trains=False, own_cache=True)


def sending(case: Case) -> Callable[[], None]:
    def send() -> None:
        os.kill(os.getpid(), case.which)
        if case.twice:
            time.sleep(0.01)
            os.kill(os.getpid(), case.which)

    return send


def answered(ended: Ended, which: signal.Signals, twice: bool, trains: bool) -> tuple[Outcome, str]:
    """Whether an interrupted command ended as it should."""
    told = [line for line in ended.err.splitlines() if line.strip() and not PROGRESS.search(line)]
    if ended.over:
        return "hung", f"more than {ended.seconds:.0f} s after the signal"
    if not ended.reached:
        return "wrong", f"the moment did not come; code {ended.code}: {ended.last()}"
    if ended.traced:
        return "traceback", ended.last()
    allowed = {INTERRUPTED} if twice else {STOPPED} if trains else {STOPPED, 143, {INT: INTERRUPTED}.get(which, -TERM)}
    if ended.code not in allowed:
        return "wrong", f"code {ended.code}, not {' or '.join(map(str, sorted(allowed)))}: {ended.last()}"
    if len(told) > 1:
        return "wrong", f"{len(told)} lines: {' | '.join(told)[:300]}"
    if "Detected KeyboardInterrupt" in ended.out + ended.err:
        return "wrong", "Lightning's own words: Detected KeyboardInterrupt"
    return "right", ""


def one(case: Case, folder: Path, made: Path, whole: Whole) -> tuple[Outcome, str]:
    cache = folder / "cache" if case.own_cache else None
    line = words(case.model, made, folder / "runs", "name=x", *case.more, cache=cache)
    work = forked.command("train", line)
    first = forked.run(work, folder, SECONDS, at=(case.place, sending(case)))
    found = answered(first, case.which, case.twice, case.trains)
    if found[0] != "right":
        return found
    if case.trains and not case.twice and not (folder / "runs/x/last.ckpt").is_file():
        return "wrong", "code 75 without last.ckpt"
    return judged(forked.run(work, folder, SECONDS), folder / "runs/x", whole(case.model, case.more)[0],
                  [cache] if cache else [])


def drawing(folder: Path, made: Path, which: signal.Signals) -> tuple[Outcome, str]:
    """`sample.py` between two pictures: what is drawn stays and is listed, and the same command draws the rest."""
    out = folder / "drawn"
    work = forked.command("sample", [f"ckpt={made / 'runs/prior/last.ckpt'}", "prompt=a red circle", "n=6",
                                     "batch_size=1", f"out={out}"])
    case = Case("", "", Moment("save", "grids.py", 3), which)
    first = forked.run(work, folder, SECONDS, at=(case.place, sending(case)))
    found = answered(first, which, False, False)
    if found[0] != "right":
        return found
    if which == INT and len(json.loads((out / "drawing.json").read_text())["pictures"]) < 2:
        return "wrong", "drawing.json does not list what was drawn"
    again = forked.run(work, folder, SECONDS)
    drawn = len(list(folder.glob("drawn*/0*.png")))
    return ("right", "") if again.code == 0 and drawn >= 6 else ("wrong", f"again: {again.code}, {drawn} pictures")


def scoring(folder: Path, made: Path, which: signal.Signals) -> tuple[Outcome, str]:
    """`evaluate.py` while it draws: the same command goes on to the scores of an unbroken one."""
    def given(out: str) -> list[str]:
        return [f"ckpt={made / 'runs/prior/last.ckpt'}", "n_per_task=2", "metrics=[composition]", "batch_size=2",
                f"out={folder / out}", f"paths.cache={folder / 'cache'}"]

    broken = forked.command("evaluate", given("a"))
    case = Case("", "", Moment("sample", "prior.py", 3), which)
    first = forked.run(broken, folder, SECONDS, at=(case.place, sending(case)))
    found = answered(first, which, False, False)
    if found[0] != "right":
        return found
    ends = [forked.run(work, folder, SECONDS) for work in (broken, forked.command("evaluate", given("b")))]
    if any(end.code for end in ends):
        return "wrong", f"again: {ends[0].code}, {ends[1].code}: {ends[0].last()}"
    a, b = (json.loads((folder / out / "evaluation.json").read_text())["scores"] for out in ("a", "b"))
    return ("right", "") if a == b else ("silent", "other scores than in one go")


def pipeline(folder: Path, made: Path, which: signal.Signals, twice: bool) -> tuple[Outcome, str]:
    """A recipe of stages, stopped in its first."""
    line = ["experiments=quickstart", "name=p", f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}",
            "trainer=cpu", "trainer.max_steps=8", "data.size=64", "data.val_size=16", "data.batch_size=8", "logger=csv",
            "callbacks.plots=null"]
    case = Case("", "", PLACES["in a step"](3), which, twice)
    first = forked.run(forked.command("train", line), folder, SECONDS, at=(case.place, sending(case)))
    return answered(first, which, twice, True)


def sweep(folder: Path, made: Path, which: signal.Signals, twice: bool) -> tuple[Outcome, str]:
    """Two jobs one after the other, stopped in the first; the same command runs both to their end."""
    line = ["-m", *words("vqgan", made, folder / "runs"), "seed=0,1"]
    case = Case("", "", PLACES["in a step"](5), which, twice)
    work = forked.command("train", line)
    found = answered(forked.run(work, folder, SECONDS, at=(case.place, sending(case))), which, twice, True)
    if found[0] != "right":
        return found
    again = forked.run(work, folder, SECONDS)
    done = len(list(folder.glob("runs/*/*/finished.json")))
    return ("right", "") if again.code == 0 and done == 2 else ("wrong", f"again: {again.code}, {done} of 2 jobs")


def ranks(folder: Path, made: Path, which: signal.Signals, target: int, twice: bool) -> tuple[Outcome, str]:
    """Two processes of one training, as torchrun starts them; the signal reaches one of them, or both in turn."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    line = words("vqgan", made, folder / "runs", "name=x", "trainer.devices=2", "trainer.strategy=ddp")

    def begun(at_rank: int | None) -> list[Ended]:
        started = []
        case = Case("", "", PLACES["in a step"](5), which, twice)
        for rank in range(2):
            def before(rank: int = rank) -> None:
                from pytorch_lightning.utilities.rank_zero import rank_zero_only

                rank_zero_only.rank = rank  # which Lightning asked its environment when it was imported

            environment = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", "NODE_RANK": "0",
                           "TORCHELASTIC_RUN_ID": "campaign"}
            at = (case.place, sending(case)) if rank == at_rank else None
            started.append(forked.start(forked.command("train", line), folder, at=at, environment=environment,
                                        before=before, out=f"rank{rank}"))
        return [forked.wait(pid, folder, SECONDS, out=f"rank{rank}") for rank, pid in enumerate(started)]

    ends = begun(target)
    found = answered(ends[target], which, twice, True)
    if found[0] != "right":
        return found[0], f"rank {target}: {found[1]}"
    other = ends[1 - target]
    if other.over or other.traced:
        return ("hung" if other.over else "traceback"), f"the other rank: {other.last()}"
    if twice:
        return "right", ""
    if other.code != STOPPED:
        return "wrong", f"the other rank ends with {other.code}: {other.last()}"
    again = begun(None)
    if any(end.code for end in again):
        return "wrong", f"again: {[end.code for end in again]}: {again[0].last() or again[1].last()}"
    return ("right", "") if (folder / "runs/x/finished.json").is_file() else ("wrong", "no finished.json")


def run(folder: Path, part: int = 0, parts: int = 1, every: int = 1) -> list[Result]:
    """Every case, or every `parts`-th from `part` on, of those one in `every`."""
    made = make(folder / "made")
    whole = Whole(folder / f"signals-{part}", made)
    listed: list[tuple[str, Callable[[Path], tuple[Outcome, str]]]] = [
        (case.name, lambda at, case=case: one(case, at, made, whole)) for case in cases(made)]
    for which in (TERM, INT):
        name = NAMES[which]
        listed += [
            (f"sample.py: {name}", lambda at, w=which: drawing(at, made, w)),
            (f"evaluate.py: {name}", lambda at, w=which: scoring(at, made, w)),
            (f"pipeline: {name}", lambda at, w=which: pipeline(at, made, w, False)),
            (f"sweep: {name}", lambda at, w=which: sweep(at, made, w, False)),
            (f"rank {int(which == INT)} of 2: {name}", lambda at, w=which: ranks(at, made, w, int(w == INT), False)),
        ]
    listed += [("pipeline: Ctrl-C twice", lambda at: pipeline(at, made, INT, True)),
               ("sweep: TERM twice", lambda at: sweep(at, made, TERM, True)),
               ("rank 0 of 2: TERM twice", lambda at: ranks(at, made, TERM, 0, True))]
    found = []
    for k, (name, trial) in enumerate(listed):
        if k % parts == part and k // parts % every == 0:
            place = folder / f"signals-{part}/{k}"
            found.append(Result(name, GROUP, *trial(place)))
            shutil.rmtree(place)
    return found
