"""Disks that are full or may not be written, under sample.py, evaluate.py and `python -m
t2i.evaluation.compare.compare`.

Each case is a small file system of its own (tmpfs), full, filling up, or read-only. The command ends with code 2 and
one line that names the file; what is there is whole and listed; nothing is left half written; with more room the same
command ends as if nothing had been. Where nothing may be mounted the cases are skipped.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2] / "src")]

from PIL import Image

from campaign.common import Result, table

GROUP = "disks of drawing and scoring"


class Wrong(Exception):
    """What a case found."""


def mount(*words: str) -> bool:
    """Whether mounting was permitted."""
    try:
        return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@dataclass
class Disk:
    """A mounted tmpfs."""

    path: Path

    def resize(self, size: str) -> None:
        mount("-o", f"remount,size={size}", str(self.path))

    def read_only(self) -> None:
        mount("-o", "remount,ro", str(self.path))

    def fill(self, left: int = 0) -> None:
        """Leaves `left` pages of 4 KB."""
        with (self.path / "filler").open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                file.truncate(max(0, file.tell() // 4096 * 4096 - 4096 * left))

    def empty(self) -> None:
        (self.path / "filler").unlink()


@contextmanager
def disk(folder: Path, size: str) -> Iterator[Disk]:
    folder.mkdir(parents=True)
    if not mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)):
        raise PermissionError("mounting a tmpfs is not permitted here")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def ended(door: str, *words: str) -> tuple[int, str]:
    """Exit code and errors of a command, in this process."""

    from hydra_app import main
    from t2i.cli import console
    from t2i.evaluation import evaluate
    from t2i.generation import text_to_image
    from t2i.generation.clip_guided import run as clip_guided_run

    runs = {"sample": lambda config, _: (clip_guided_run if "clip_guided" in config else text_to_image).run(config),
            "evaluate": lambda config, _: evaluate.run(config)}
    err, argv = io.StringIO(), sys.argv
    sys.argv = [f"{door}.py", *words]
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(err):
            if door == "compare":
                return console.main(["compare", *words]), err.getvalue()
            main(door, runs[door])
    except SystemExit as end:
        return int(end.code or 0), err.getvalue()
    finally:
        sys.argv = argv
    raise AssertionError("main returned")


def refused(where: Path, door: str, *words: str) -> str:
    """The line that refuses a command and names something in `where`."""
    code, err = ended(door, *words)
    said = [line for line in err.split("\n") if line.startswith("error: ")]
    if code != 2 or len(said) != 1 or str(where) not in said[0]:
        raise Wrong(f"code {code}: {err[-300:]!r}")
    return said[0]


def done(door: str, *words: str) -> None:
    code, err = ended(door, *words)
    if code:
        raise Wrong(f"code {code}: {err[-300:]!r}")


def whole(folder: Path) -> list[str]:
    """The pictures in a folder, all of which can be read; nothing hidden lies beside them."""
    if left := [path.name for path in folder.rglob(".*")]:
        raise Wrong(f"left behind: {left}")
    found = sorted(path for path in folder.rglob("*.png"))
    for path in found:
        Image.open(path).load()
    return [path.name for path in found if not path.name.startswith(("grid", "evaluation"))]


def listed(folder: Path) -> list[str]:
    return [entry["file"] for entry in json.loads((folder / "drawing.json").read_text())["pictures"]]


class Cases:
    """Every case is a method; `place` has models, runs and a disk's folder to each."""

    def __init__(self, folder: Path) -> None:
        from t2i.config.compose import compose
        from t2i.training import train
        from tests.evaluation.test_evaluate import MODEL, clip_folder
        from tests.generation.clip_guided.test_settings import make_parts

        self.folder = folder
        self.parts = make_parts(folder / "parts")
        clip = clip_folder(folder / "clip", 0)
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            train.run(compose([*MODEL, f"text_encoder.path={clip}", "name=gan", f"paths.runs={folder / 'runs'}",
                                f"paths.cache={folder / 'cache'}"]))
        shutil.copytree(folder / "runs/gan", folder / "runs/again")
        self.compare = [str(folder / "runs/gan"), str(folder / "runs/again"), "n=1"]
        self.sample = [f"ckpt={self.parts.prior}", "prompt=a red circle"]
        self.guided = ["method=clip_guided", f"clip_guided.clips={self.parts.clip}", "clip_guided.canvas=pixels",
                       "clip_guided.image_size=[16,16]", "clip_guided.steps=2", "clip_guided.batch_size=2",
                       "prompt=a red circle"]
        self.evaluate = [f"ckpt={folder / 'runs/gan/last.ckpt'}", f"clip_model={self.parts.other}", "n=24"]

    def full_before_sample(self, here: Disk) -> None:
        here.fill()
        refused(here.path, "sample", *self.sample, f"out={here.path / 'out'}")

    def filling_up_under_sample(self, here: Disk) -> None:
        out = here.path / "out"
        here.fill(left=14)
        words = [*self.sample, "n=20", f"out={out}"]
        said = refused(out, "sample", *words)
        there = whole(out)
        if not 0 < len(there) < 20 or there != listed(out) or f"{len(there)} of 20 pictures are there" not in said:
            raise Wrong(f"{len(there)} there, {len(listed(out))} listed: {said}")
        here.empty()
        done("sample", *words)
        if len(whole(out)) != 20 or len(listed(out)) != 20 or (here.path / "out-2").exists():
            raise Wrong("the same command did not go on")

    def no_room_for_the_grid(self, here: Disk) -> None:
        out = here.path / "out"
        here.fill(left=13)
        said = refused(out, "sample", *self.sample, "n=9", f"out={out}")
        if "grid.png" not in said or listed(out) != whole(out) != []:
            raise Wrong(said)

    def many_captions_on_a_disk_that_fills_up(self, here: Disk) -> None:
        out, path = here.path / "out", self.folder / "captions.txt"
        path.write_text("".join(f"circle number {i}\n" for i in range(40)))
        here.fill(left=20)
        refused(out, "sample", f"ckpt={self.parts.prior}", f"prompts={path}", "n=1", f"out={out}")
        if not 0 < len(whole(out)) < 40 or whole(out) != listed(out):
            raise Wrong(f"{len(whole(out))} there, {len(listed(out))} listed")

    def read_only_under_sample(self, here: Disk) -> None:
        here.read_only()
        refused(here.path, "sample", *self.sample, f"out={here.path / 'out'}")

    def read_only_folder_that_holds_the_drawing(self, here: Disk) -> None:
        words = [*self.sample, "n=1", f"out={here.path / 'out'}"]
        done("sample", *words)
        here.read_only()
        refused(here.path, "sample", *words)

    def full_before_guided_drawing(self, here: Disk) -> None:
        here.fill()
        refused(here.path, "sample", *self.guided, f"out={here.path / 'out'}")

    def filling_up_under_guided_drawing(self, here: Disk) -> None:
        out = here.path / "out"
        here.fill(left=25)
        said = refused(out, "sample", *self.guided, "n=6", f"out={out}")
        whole(out)
        if "of 6 pictures are there" not in said:
            raise Wrong(said)
        here.empty()
        done("sample", *self.guided, "n=6", f"out={out}")
        if len(listed(out)) != 6:
            raise Wrong("the same command did not go on")

    def read_only_under_guided_drawing(self, here: Disk) -> None:
        here.read_only()
        refused(here.path, "sample", *self.guided, f"out={here.path / 'out'}")

    def full_before_evaluate(self, here: Disk) -> None:
        here.fill()
        refused(here.path, "evaluate", *self.evaluate, "metrics=[fd_clip]", f"out={here.path / 'out'}")

    def filling_up_under_evaluate(self, here: Disk) -> None:
        out = here.path / "out"
        words = [*self.evaluate, "metrics=[fd_clip]", f"out={out}", f"paths.cache={self.folder / 'cache'}"]
        here.fill(left=16)
        said = refused(out, "evaluate", *words)
        there = whole(out)
        if not 0 < len(there) < 24 or f"{len(there)} of 24 pictures are drawn" not in said:
            raise Wrong(f"{len(there)} there: {said}")
        before = {path: path.stat().st_mtime_ns for path in out.rglob("0*.png")}
        here.empty()
        done("evaluate", *words)
        if any(path.stat().st_mtime_ns != then for path, then in before.items()) or len(whole(out)) != 24:
            raise Wrong("the same command did not go on")

    def no_room_for_the_page(self, here: Disk) -> None:
        out = here.path / "out"
        words = [*self.evaluate, "metrics=[fd_clip]", f"out={out}", f"paths.cache={self.folder / 'cache'}"]
        done("evaluate", *words)
        for path in out.glob("evaluation*"):
            path.unlink()
        here.fill(left=9)
        said = refused(out, "evaluate", *words)
        if "evaluation-" not in said or "fd_clip" not in json.loads((out / "evaluation.json").read_text())["scores"]:
            raise Wrong(said)

    def full_cache_under_evaluate(self, here: Disk) -> None:
        here.fill()
        out = self.folder / "cacheless"
        code, err = ended("evaluate", *self.evaluate, "metrics=[fd_clip]", f"out={out}", f"paths.cache={here.path}")
        if code or "are not kept" not in err or str(here.path) not in err:
            raise Wrong(f"code {code}: {err[-300:]!r}")

    def read_only_under_evaluate(self, here: Disk) -> None:
        here.read_only()
        refused(here.path, "evaluate", *self.evaluate, "metrics=[fd_clip]", f"out={here.path / 'out'}")

    def filling_up_under_export(self, here: Disk) -> None:
        here.fill(left=10)
        refused(here.path, "evaluate", "data=shapes", "data.image_size=32", "n=24", "metrics=[fd_clip]",
                f"export={here.path / 'out'}")
        whole(here.path / "out")

    def read_only_under_export(self, here: Disk) -> None:
        here.read_only()
        refused(here.path, "evaluate", "data=shapes", "data.image_size=32", "n=24", "metrics=[fd_clip]",
                f"export={here.path / 'out'}")

    def full_under_compare(self, here: Disk) -> None:
        here.fill(left=1)
        refused(here.path, "compare", *self.compare, f"out={here.path / 'out'}")
        whole(here.path)

    def read_only_under_compare(self, here: Disk) -> None:
        here.read_only()
        refused(here.path, "compare", *self.compare, f"out={here.path / 'out'}")


def names() -> list[str]:
    return [name for name, value in vars(Cases).items() if callable(value) and "_" in name[1:] and name[0] != "_"]


def run(folder: Path) -> list[Result]:
    """Every case."""
    found: list[Result] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = Cases(folder)
        for name in names():
            case: Callable[[Disk], None] = getattr(cases, name)
            label = name.replace("_", " ")
            try:
                with disk(folder / "disks" / name, "1m") as here:
                    case(here)
                found.append(Result(label, GROUP, "right"))
            except PermissionError as error:
                found.append(Result(label, GROUP, "skipped", str(error)))
            except Wrong as error:
                found.append(Result(label, GROUP, "wrong", str(error)))
            except Exception:  # whatever it is, it is the outcome
                found.append(Result(label, GROUP, "traceback", traceback.format_exc()[-600:]))
    return found


if __name__ == "__main__":
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        results = run(Path(place))
    print(table(results, {GROUP: time.monotonic() - started}))
    wrong = [result for result in results if result.outcome not in ("right", "skipped")]
    print("".join(f"\n{result.outcome}: {result.name}: {result.detail}" for result in wrong))
    sys.exit(1 if wrong else 0)
