"""What C libraries write to the process's stderr, past Python: libjpeg's and libtiff's words about damaged pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Stderr:
    """File descriptor 2, which leads into a pipe while anybody works under `heard`.

    Several threads may. Where something was written, each that worked meanwhile does its work once more alone, to know
    whose words they were; what nobody's work says again was not theirs, and goes where it was meant to go.
    """

    def __init__(self) -> None:
        self.turn = threading.Condition()
        self.working = self.asking = self.came = 0
        self.words: list[bytes] = []
        self.ends: tuple[int, int, int] | None = None  # of the pipe, and where descriptor 2 led before

    def heard(self, work: Callable[[], Result]) -> tuple[Result, str]:
        """What `work()` returns or raises, and what was written meanwhile."""
        with self.turn:
            self.working += 1
            if self.working == 1:
                self.redirect()
            before = self.came
        try:
            result = work()
        finally:
            with self.turn:
                self.listen()
                asks = self.came > before
                self.asking += asks
                self.working -= 1
                if not self.working:
                    self.restore()
                self.turn.notify_all()
            words = self.alone(work) if asks else ""
        return result, words

    def alone(self, work: Callable[[], object]) -> str:
        with self.turn:
            self.turn.wait_for(lambda: not self.working)
            shared, self.words = self.words, []
            self.redirect()
            try:
                work()
            except Exception:  # it raised the first time too, and that is on its way
                pass
            finally:
                self.listen()
                self.restore()
            own, self.words = self.words, shared
            for line in own:
                if line in self.words:
                    self.words.remove(line)
            self.asking -= 1
            if not self.asking and self.words:
                os.write(2, b"\n".join(self.words) + b"\n")
                self.words = []
        return b"; ".join(own).decode("utf-8", "replace")

    def redirect(self) -> None:
        try:
            before = os.dup(2)
        except OSError:  # it is closed: nobody hears anything
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
            self.words += lines
            self.came += len(lines)

    def restore(self) -> None:
        if self.ends is not None:
            os.dup2(self.ends[2], 2)
            for end in self.ends:
                os.close(end)
            self.ends = None


heard = Stderr().heard
