"""The folder that `sample.py` draws into: of one process at a time, every file whole, and a drawing.json at any time.

One that holds another drawing, or that another process draws into, is left alone: `<out>-2` and so on. Room for the
last drawing.json is taken beforehand, so that a disk that fills up leaves the list of what is drawn.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from PIL import Image

from t2i.checkpoint.lock import LockTaken, exclusive
from t2i.checkpoint.plain_files import read_json
from t2i.config.messages import shown
from t2i.version import version
from t2i.viz import grids

RECORD = "drawing.json"
ROOM = 600  # bytes of an entry beside its caption


def _request_in(path: Path) -> Any:
    """The request of the drawing in a folder; None where there is none, {} where it cannot be read."""
    if not path.is_file():
        return None
    try:
        return read_json(path)["request"]
    except (ValueError, KeyError, TypeError):
        return {}  # not one of ours, or cut off: not to be overwritten either


class OutputFolder:
    """As a context: takes the folder (`path`), and at its end, whatever that was, writes the list and the grid.

    ValueError where nothing can be written, where another process draws the very same into it, and, with how many
    pictures are there, where a picture cannot be written.

    Args:
        request: all that decides what is drawn.
        captions: of every picture to come.
        grid: draws `grid.png` of what there is; None for none.
    """

    def __init__(
        self, out: str | Path, request: dict[str, Any], captions: Sequence[str],
        grid: Callable[[], Image.Image | None],
    ) -> None:
        self.record: dict[str, Any] = {"request": request, "t2i": version(), "torch": torch.__version__,
                                       "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "pictures": []}
        self.entries: list[dict[str, Any]] = self.record["pictures"]
        self.total, self.grid = len(captions), grid
        self.room = len(self._content()) + sum(len(json.dumps(text)) + ROOM for text in captions)
        self.path = Path(out)
        self._held = ExitStack()

    def _content(self) -> bytes:
        return json.dumps(self.record, indent=1, ensure_ascii=False).encode()

    def _take(self) -> None:
        """The first of `<out>`, `<out>-2` … that is free, or holds this very drawing."""
        request = json.loads(json.dumps(self.record["request"]))
        work = sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        out = self.path
        for k in itertools.count(1):
            self.path = out if k == 1 else Path(f"{out}-{k}")
            if _request_in(self.path / RECORD) not in (None, request):
                continue
            self.path.mkdir(parents=True, exist_ok=True)
            try:
                self._held.enter_context(exclusive(self.path, "drawing", work))
            except LockTaken as taken:
                if taken.holder.get("work") == work:
                    raise
                continue
            if _request_in(self.path / RECORD) in (None, request):  # no other process was quicker
                return
            self._held.close()

    def __enter__(self) -> OutputFolder:
        try:
            self._take()
            self._kept = grids.write_bytes(self.path / f".{RECORD}.room", b" " * self.room)
            self._held.callback(self._kept.unlink, missing_ok=True)
            grids.write_bytes(self.path / RECORD, self._content())
        except OSError as error:
            self._held.close()
            why = f"out={shown(self.path)} cannot be written: {error.strerror or error}; choose another with out=…"
            raise ValueError(why) from error
        self._started = time.monotonic()
        return self

    def save(self, pixels: np.ndarray, name: str) -> Path:
        """Writes a picture (h, w, 3) of bytes, whole."""
        return grids.save(Image.fromarray(pixels), self.path / name)

    def _finish(self) -> None:
        """Writes `drawing.json` into the room that was kept, and the grid."""
        with self._kept.open("r+b") as file:
            file.write(self._content())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        os.replace(self._kept, self.path / RECORD)
        if (image := self.grid()) is not None:
            grids.save(image, self.path / "grid.png")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.record["seconds"] = round(time.monotonic() - self._started, 2)
        failed = error if isinstance(error, OSError) and not isinstance(error, BrokenPipeError) else None
        with self._held:
            try:
                self._finish()
            except OSError as second:
                failed = failed or (second if error is None else None)
        if failed is not None:
            file = f"{shown(failed.filename)} cannot be written: " if failed.filename is not None else ""
            done = len(self.entries)
            there = f"{done} of {self.total} pictures are there" if done else "no picture is there yet"
            raise ValueError(f"{file}{failed.strerror or failed}; {there}, whole, in {shown(self.path)}. Make room, or"
                             " choose another with out=…; the same command draws the same ones again") from failed

    def result(self) -> dict[str, Any]:
        """Prints where the grid and the list are; the record, with `files`, `grid` and `out`."""
        print(*(shown(self.path / name, 1000) for name in ("grid.png", RECORD)), sep="\n")
        return {**self.record, "out": str(self.path), "grid": str(self.path / "grid.png"),
                "files": [str(self.path / entry["file"]) for entry in self.entries]}
