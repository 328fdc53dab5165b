"""A command of t2i in a forked child, watched: how it ended, what it said, and what it touched that it should not.

Python with torch takes ten seconds to start; a child of a process that has imported everything takes a tenth. A child
has a time and memory limit, its own folder to write in, and an audit hook that notes, and prevents, commands, sockets,
and writing, moving and deleting elsewhere. It can be killed, or sent signals, at an exact place of the program: the
n-th call of a function, Python's or C's, which a profiler counts, so that nothing of the program is replaced.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from campaign.common import Outcome
from t2i.config import quiet

ROOT = Path(__file__).resolve().parents[2]
MEMORY = 1.5e9  # bytes above the start that a case may take
COMMANDS = {"os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn", "os.startfile"}
SOCKETS = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"}
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "os.chown", "shutil.rmtree", "shutil.move", "shutil.copyfile", "os.mkfifo"}
LOOKS = {"os.listdir", "os.scandir"}
HARMLESS = {"git", "fc-list", "fc-match"}  # what t2i itself starts
BAIT = "campaign_bait"  # whatever has this in its name is named by hostile files alone


class Forbidden(BaseException):
    """What the hook raises instead of letting it happen: no `except Exception` hides it."""


@dataclass(frozen=True)
class Moment:
    """The `count`-th call of a function: its name, and the end of its file's name ("c": a function of `os`)."""

    name: str
    file: str = ""
    count: int = 1


@dataclass
class Ended:
    """How a child ended. `code`: exit code, negative by a signal; `events`: what the hook noted; `peak`: bytes above
    the start; `over`: "time" or "memory" where a limit ended it; `reached`: whether its moment came."""

    code: int
    out: str
    err: str
    events: list[str] = field(default_factory=list)
    peak: float = 0.0
    seconds: float = 0.0
    over: str = ""
    reached: bool = False

    @property
    def traced(self) -> bool:
        return "Traceback (most recent call last)" in self.err + self.out or self.code in (1, -6, -7, -8, -11)

    def last(self) -> str:
        lines = [line for line in (self.err or self.out).splitlines() if line.strip()]
        return lines[-1][:300] if lines else ""


def command(door: str, words: Sequence[str]) -> Callable[[], object]:
    """A door as a user calls it: train, sample, evaluate, prepare, compare or t2i, with its words."""

    def call() -> object:
        sys.argv = [door, *words]
        if door in ("compare", "t2i"):
            from t2i.cli.console import main as console

            sys.exit(console([door, *words] if door == "compare" else list(words)))
        from hydra_app import main

        main(door)

    return call


def warm() -> None:
    """Imports what the doors import, once, before the children are forked."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import hydra
    import pytorch_lightning
    import tensorboard
    import torch
    import transformers

    for name in ("training.train", "generation.text_to_image", "evaluation.evaluate", "evaluation.compare.compare",
                 "training.pipeline", "training.report", "cli.console", "convert.inspection", "convert.convert",
                 "convert.reconstruct", "convert.tokenizers", "models.vqgan", "models.prior", "models.clip",
                 "models.dfgan", "models.stackgan", "text_encoders.clip", "text_encoders.sentence",
                 "text_encoders.bilstm", "data.shapes", "data.folder", "training.callbacks.ema",
                 "training.callbacks.image_grid", "training.callbacks.validation_metrics",
                 "training.callbacks.progress", "viz.plots"):
        __import__(f"t2i.{name}")
    from t2i.config.compose import compose

    compose(["model=vqgan"], files=False)
    quiet.quiet()
    torch.set_num_threads(1)
    assert hydra and pytorch_lightning and tensorboard and transformers


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _computed(pid: int) -> float:
    """Seconds that a process has computed: other processes of a busy machine do not count."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return 0.0


def _hook(folders: Sequence[Path], bait: bytes, note: int) -> Callable[[str, tuple[Any, ...]], None]:
    allowed = tuple(os.path.realpath(folder) for folder in folders)

    def inside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        text = os.path.realpath(os.fsdecode(path))
        return text.startswith(("/dev/", "/proc/")) or any(text == f or text.startswith(f + os.sep) for f in allowed)

    def baited(value: Any) -> bool:
        try:
            return isinstance(value, str | bytes | os.PathLike) and bait in os.fsencode(value)
        except ValueError:
            return False

    def hook(event: str, given: tuple[Any, ...]) -> None:
        said = ""
        if event == "open":
            path, mode, flags = given
            writes = any(c in (mode or "") for c in "wax+") or bool(
                (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC))
            if baited(path) or (writes and not inside(path)):
                said = f"open {path!r} {mode or flags}"
        elif event in COMMANDS:
            name = os.path.basename(os.fsdecode(given[0] if isinstance(given[0], str | bytes) else given[1][0]))
            if name not in HARMLESS or bait in repr(given).encode():
                said = f"{event} {given[0]!r}"
        elif event in SOCKETS:
            address = given[-1] if event == "socket.connect" else given[0]
            if not (isinstance(address, str) and event == "socket.connect"):  # an AF_UNIX path is no network
                said = f"{event} {address!r}"
        elif event in CHANGES:
            paths = [p for p in given[:2] if isinstance(p, str | bytes | os.PathLike)]
            if any(baited(p) for p in paths) or not all(inside(p) for p in paths):
                said = f"{event} {paths}"
        elif event in LOOKS and given and baited(given[0]):
            said = f"{event} {given[0]!r}"
        elif event == "import" and BAIT in str(given[0]):
            said = f"import {given[0]}"
        if said:
            os.write(note, said.replace("\n", " ").encode("utf-8", "replace")[:300] + b"\n")
            raise Forbidden(said)

    return hook


def profiler(moment: Moment, act: Callable[[], None]) -> Callable[[FrameType, str, Any], None]:
    left = moment.count

    def profile(frame: FrameType, event: str, given: Any) -> None:
        nonlocal left
        if event == "call":
            hit = frame.f_code.co_name == moment.name and moment.file != "c" and (
                frame.f_code.co_filename.endswith(moment.file))
        elif event == "c_call" and moment.file == "c":
            hit = given.__name__ == moment.name and given.__module__ == "posix"
        else:
            return
        if hit:
            left -= 1
            if left == 0:
                sys.setprofile(None)
                act()

    return profile


def start(work: Callable[[], object], folder: Path, *, at: tuple[Moment, Callable[[], None]] | None = None,
          guarded: bool = False, bait: str = BAIT, environment: dict[str, str] | None = None,
          before: Callable[[], None] | None = None, out: str = "out", allowed: Sequence[Path] = ()) -> int:
    """Forks a child that does `work` in `folder` and ends with its exit code; returns its process's number."""
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        for which in (signal.SIGTERM, signal.SIGPIPE):
            signal.signal(which, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.setprofile(None)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(folder / f".{out}.stdout", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        os.dup2(os.open(folder / f".{out}.stderr", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        note = os.open(folder / f".{out}.events", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", 1, "utf-8", closefd=False) for n in (1, 2))
        os.chdir(folder)
        os.environ.update({"TMPDIR": str(folder), "COLUMNS": "100"} | (environment or {}))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.dont_write_bytecode = True
        if before is not None:
            before()
        if guarded:
            with open("/proc/self/statm") as file:
                size = int(file.read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (size + 8 * 2**30,) * 2)
            sys.addaudithook(_hook([folder, *allowed], bait.encode(), note))
        if at is not None:
            moment, act = at

            def reached() -> None:
                os.write(note, b"reached\n")
                act()

            sys.setprofile(profiler(moment, reached))
        try:
            work()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            sys.setprofile(None)
            traceback.print_exc()
        sys.setprofile(None)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                code = code or 120  # what Python itself ends with then
    finally:
        os._exit(code)


def wait(pid: int, folder: Path, seconds: float = 10.0, memory: float | None = None, out: str = "out",
         kill_at: float | None = None, watch: Callable[[], bool] | None = None) -> Ended:
    """Waits for a child; kills it at its limits, after `kill_at` seconds, or as soon as `watch()` is true.

    `seconds` are of its computing; one that waits instead has six times as long, as a busy machine may keep it waiting.
    """
    begun, base, peak, over = time.monotonic(), _resident(pid), 0, ""
    killed = False
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        spent = time.monotonic() - begun
        if memory is not None:
            peak = max(peak, _resident(pid) - base)
            over = over or ("memory" if peak > memory else "")
        over = over or ("time" if spent > 6 * seconds or (spent > seconds and _computed(pid) > seconds) else "")
        if over or (not killed and ((kill_at is not None and spent >= kill_at) or (watch is not None and watch()))):
            killed = True
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.0005 if watch is not None else 0.004)
    events = read(folder / f".{out}.events").splitlines()
    return Ended(os.waitstatus_to_exitcode(status), read(folder / f".{out}.stdout"), read(folder / f".{out}.stderr"),
                 [e for e in events if e != "reached"], peak, time.monotonic() - begun, over, "reached" in events)


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "backslashreplace") if path.exists() else ""


def run(work: Callable[[], object], folder: Path, seconds: float = 10.0, memory: float | None = None,
        kill_at: float | None = None, watch: Callable[[], bool] | None = None, **more: Any) -> Ended:
    """`start` and `wait`."""
    out = more.get("out", "out")
    return wait(start(work, folder, **more), folder, seconds, memory, out, kill_at, watch)


def controls(text: str) -> bool:
    """Whether a terminal would obey something in it."""
    return any((ord(c) < 32 and c not in "\n\t\r") or 127 <= ord(c) < 160 for c in text)


def refusal(ended: Ended, names: Sequence[str], lines: int = 1) -> tuple[Outcome, str]:
    """Whether a fault was told as it should be: exit code 2, at most `lines` lines beginning with `error:`, naming one
    of `names`, without control characters."""
    told = ended.err.strip().splitlines()
    if ended.events:
        return "executed", ended.events[0]
    if ended.over == "time":
        return "hung", f"more than {ended.seconds:.0f} s"
    if ended.over == "memory":
        return "wrong", f"took {ended.peak / 1e9:.1f} GB of memory in {ended.seconds:.1f} s"
    if ended.traced:
        return "traceback", ended.last()
    if ended.code == 0:
        return "silent", "exit code 0"
    if ended.code != 2:
        return "wrong", f"exit code {ended.code}: {ended.last()}"
    if controls(ended.err + ended.out):
        return "wrong", f"control characters reach the terminal: {ended.last()!r}"
    if not told or not told[0].startswith("error: "):
        return "wrong", f"not one line of error: {' | '.join(told)[:300]}"
    if len(told) > lines:
        return "wrong", f"{len(told)} lines: {' | '.join(told)[:400]}"
    if len(ended.err) > 1500 * lines:
        return "wrong", f"a line of {len(ended.err):,} letters"
    if not any(name in ended.err for name in names):
        return "wrong", f"does not name {' or '.join(names)}: {told[0][:300]}"
    return "right", told[0][:200]


def quietly(words: Sequence[str]) -> None:
    """Another program's command, which must succeed."""
    import subprocess

    subprocess.run(words, check=True, capture_output=True)
