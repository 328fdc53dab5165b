"""Progress of long work by tqdm: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from tqdm import tqdm


def clock(seconds: float) -> str:
    """75 -> 1:15, 3675 -> 1:01:15."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def brief(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


class _Lines:
    """What tqdm writes to: where nobody can redraw whole lines; a full disk or a lost terminal ends no work."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.terminal = stream, stream.isatty()

    def write(self, text: str) -> None:
        text = text if self.terminal else text.strip("\r\n ") + "\n"
        if text != "\n" or self.terminal:
            with suppress(OSError):
                self.stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:  # encoding, fileno, isatty
        return getattr(self.stream, name)


class Bar(tqdm):  # type: ignore[type-arg]
    """tqdm's bar as this project shows it; `update` and `close` are tqdm's.

    Args:
        total: None or 0 for unknown.
        every_seconds: between lines where the output is no terminal.
        stream: None for stderr.
        details: what is shown beside the count, asked for when it is drawn alone; None for the speed.
        left: seconds to go, where something else than the count ends the work earlier.
    """

    monitor_interval = 0  # no thread of its own

    def __init__(self, label: str, total: int | None, initial: int = 0, every_seconds: float = 10.0,
                 stream: TextIO | None = None, details: Callable[[], str] | None = None,
                 left: Callable[[], float | None] = lambda: None, **options: Any) -> None:
        lines = _Lines(stream or sys.stderr)
        self.terminal, self.details, self.left = lines.terminal, details, left
        bar = "  {bar:20}" if lines.terminal and total else ""
        super().__init__(
            desc=label, total=total or None, initial=initial, file=lines, unit="", miniters=1, smoothing=0, ascii=".#",
            mininterval=0.2 if lines.terminal else every_seconds, dynamic_ncols=lines.terminal,
            delay=0 if lines.terminal else 1e-9,  # in a file nothing is said before something is done
            bar_format="{desc}" + bar + "  {count}  {details}  [{took}<{left}]", **options)

    @property
    def format_dict(self) -> dict[str, Any]:
        held: dict[str, Any] = super().format_dict
        done, seconds = held["n"] - held["initial"], max(1e-9, held["elapsed"])
        left = [] if not self.total or not done else [(self.total - held["n"]) * seconds / done]
        left += [] if self.left() is None else [self.left()]
        return held | {"count": f"{held['n']}/{self.total}" if self.total else str(held["n"]),
                       "details": f"{brief(done / seconds)}/s" if self.details is None else self.details(),
                       "took": clock(seconds), "left": clock(min(left)) if left else "?"}

    def close(self) -> None:
        if not self.disable and self.n == self.initial:
            self.leave = False
        super().close()


@contextmanager
def counter(label: str, total: int, stream: TextIO | None = None) -> Iterator[Callable[..., None]]:
    """Progress of anything with a known number of things: yields `progress(done)` or `progress(done, total)`."""
    with Bar(label, total, stream=stream) as bar:

        def progress(done: int, total: int = total) -> None:
            bar.total = total or None
            bar.update(done - bar.n)

        yield progress
