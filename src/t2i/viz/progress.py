"""Progress of long work: one line, with speed and time left."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

BAR = 20  # characters


def clock(seconds: float) -> str:
    """75 -> 1:15, 3675 -> 1:01:15."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def brief(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class Line:
    """The line itself: `show(text)` redraws or, where nobody can redraw, writes every `every` seconds."""

    def __init__(self, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.terminal = self.stream.isatty()
        self.every = 0.2 if self.terminal else every
        self.last = -float("inf")
        self.width = 0

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.every

    def show(self, text: str) -> None:
        self.last = time.monotonic()
        if self.terminal:
            text = text[: max(20, os.get_terminal_size(self.stream.fileno()).columns - 1)]
            self.write("\r" + text.ljust(self.width))
            self.width = len(text)
        else:
            self.write(text + "\n")

    def write(self, text: str) -> None:
        with suppress(OSError):  # a log on a full disk, a terminal that is gone: the work is worth more
            self.stream.write(text)
            self.stream.flush()

    def end(self) -> None:
        if self.terminal and self.width:
            self.write("\n")
            self.width = 0


def drawn(label: str, done: int, total: int, terminal: bool) -> str:
    """`vqgan  [#####...............]  1200/4000`; without the bar where it is no terminal."""
    if total <= 0:
        return f"{label}  {done}"
    filled = min(BAR, BAR * done // total)
    bar = f"[{'#' * filled}{'.' * (BAR - filled)}]  " if terminal else ""
    return f"{label}  {bar}{done}/{total}"


@contextmanager
def counter(label: str, total: int, stream: TextIO | None = None) -> Iterator[Callable[..., None]]:
    """Progress of anything with a known number of things: yields `progress(done)` or `progress(done, total)`."""
    line, started, last = Line(stream), time.monotonic(), (0, total)

    def progress(done: int, total: int = total) -> None:
        nonlocal last
        if line.due() and (line.terminal or last[0] or done >= total):  # the first of many says nothing of speed
            seconds = max(1e-9, time.monotonic() - started)
            left = f"  {clock((total - done) * seconds / done)} left" if done and total else ""
            line.show(f"{drawn(label, done, total, line.terminal)}  {brief(done / seconds)}/s{left}")
        last = (done, total)

    yield progress
    if last[0]:
        line.show(f"{drawn(label, *last, line.terminal)}  done in {clock(time.monotonic() - started)}")
        line.end()
