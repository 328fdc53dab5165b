"""What C libraries write to the process's stderr, past Python: what libjpeg and libtiff say of damaged pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Stderr:
    """File descriptor 2, which leads into a pipe while anybody works under `capture`.

    Several threads may. Where something was written, each that worked meanwhile does its work once more alone, to know
    who wrote it; what nobody's work writes again goes where it was meant to go.
    """

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.working = self.asking = self.count = 0
        self.lines: list[bytes] = []
        self.ends: tuple[int, int, int] | None = None  # of the pipe, and where descriptor 2 led before

    def capture(self, work: Callable[[], Result]) -> tuple[Result, str]:
        """What `work()` returns or raises, and what was written meanwhile."""
        with self.condition:
            self.working += 1
            if self.working == 1:
                self.redirect()
            before = self.count
        try:
            result = work()
        finally:
            with self.condition:
                self.listen()
                asks = self.count > before
                self.asking += asks
                self.working -= 1
                if not self.working:
                    self.restore()
                self.condition.notify_all()
            words = self.alone(work) if asks else ""
        return result, words

    def alone(self, work: Callable[[], object]) -> str:
        with self.condition:
            self.condition.wait_for(lambda: not self.working)
            shared, self.lines = self.lines, []
            self.redirect()
            try:
                work()
            except Exception:  # it raised the first time too, and that is on its way
                pass
            finally:
                self.listen()
                self.restore()
            own, self.lines = self.lines, shared
            for line in own:
                if line in self.lines:
                    self.lines.remove(line)
            self.asking -= 1
            if not self.asking and self.lines:
                os.write(2, b"\n".join(self.lines) + b"\n")
                self.lines = []
        return b"; ".join(own).decode("utf-8", "replace")

    def redirect(self) -> None:
        try:
            before = os.dup(2)
        except OSError:  # it is closed: there is nothing to capture
            return
        read, write = os.pipe()
        for end in (read, write):
            os.set_blocking(end, False)
        os.dup2(write, 2)
        self.ends = read, write, before

    def listen(self) -> None:
        while self.ends is not None:
            try:
                lines = os.read(self.ends[0], 65536).splitlines()
            except BlockingIOError:
                return
            self.lines += lines
            self.count += len(lines)

    def restore(self) -> None:
        if self.ends is not None:
            os.dup2(self.ends[2], 2)
            for end in self.ends:
                os.close(end)
            self.ends = None


capture_stderr = Stderr().capture
