"""Warnings that are worth a few lines, and not one a caption."""

from __future__ import annotations

import warnings

MOST = 5


class CaptionWarning(UserWarning):
    """Something of a caption is not seen."""


class LimitedWarnings:
    """Warns at most `MOST` times; the last warning says that `what` is not reported any more."""

    def __init__(self, what: str) -> None:
        self.what, self.count = what, 0

    def __call__(self, message: str) -> None:
        self.count += 1
        if self.count <= MOST:
            last = f" (further {self.what} are not reported)" if self.count == MOST else ""
            warnings.warn(message + last, CaptionWarning, stacklevel=2)
