"""The cache of a frozen text encoder's states: every caption of a data set, equal ones once, without its padding.

A folder with `states.bin` (float32, text after text, each length x dim), `ends.npy` (the last position of each text,
counted in positions), `texts.npy` (the number of each caption's text) and `starts.npy` (the first caption of each
picture). float32, so that a prior trains on it to the same weights as without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from t2i.data import cache
from t2i.data.rows import JsonLines
from t2i.types import TextEncoder

VERSION = 2
WHAT = "cache of caption states"


def header(encoder_hash: str, rows: JsonLines) -> cache.Header:
    return {"version": VERSION, "encoder": encoder_hash, "captions": rows.hash(), "pictures": len(rows)}


def build(folder: Path, rows: JsonLines, encoder: TextEncoder, head: cache.Header, batch_size: int = 256,
          progress: cache.Progress | None = None) -> Path:
    """Encodes every caption of every row into `folder`, whole or not at all."""

    def fill(part: Path) -> cache.Header:
        numbers: dict[str, int] = {}
        starts, texts, ends = [0], [], [0]
        waiting: list[str] = []
        with (part / "states.bin").open("wb") as file:
            for i, row in enumerate(rows, 1):
                for caption in row["captions"]:
                    if caption not in numbers:
                        numbers[caption] = len(numbers)
                        waiting.append(caption)
                    texts.append(numbers[caption])
                starts.append(len(texts))
                if waiting and (len(waiting) >= batch_size or i == len(rows)):
                    text = encoder.states(waiting)
                    for states, mask in zip(text.states.float().cpu(), text.mask.cpu(), strict=True):
                        kept = states[mask].numpy()
                        file.write(kept.tobytes())
                        ends.append(ends[-1] + len(kept))
                    waiting = []
                if progress is not None:
                    progress(i, len(rows))
        for name, values in (("starts", starts), ("texts", texts), ("ends", ends[1:])):
            np.save(part / f"{name}.npy", np.asarray(values, np.int64))
        return {"dim": encoder.dim}

    cache.build(folder, head, fill, WHAT)
    return folder


class TextEmbeddingCache:
    """`states[index, caption] -> (length, dim)` float32, mapped."""

    def __init__(self, folder: Path, expected: cache.Header) -> None:
        header = cache.check_header(folder, expected, WHAT)
        if header is None:
            raise ValueError(f"{folder} holds no {WHAT}")
        self.folder, self.expected, self.dim = folder, expected, header["dim"]
        self.starts, self.texts, self.ends = (np.load(folder / f"{name}.npy") for name in ("starts", "texts", "ends"))
        path = folder / "states.bin"
        positions = int(self.ends[-1]) if len(self.ends) else 0
        if path.stat().st_size != positions * self.dim * 4:
            raise ValueError(f"the {WHAT} {folder} is damaged. Delete it to make it anew.")
        self.values = np.memmap(path, np.float32, "r", shape=(positions, self.dim)) if positions else None

    def __getitem__(self, at: tuple[int, int]) -> np.ndarray:
        index, caption = at
        first, end = self.starts[index : index + 2]
        if not first + caption < end:
            raise IndexError(f"caption {caption} of picture {index}, which has {end - first}")
        number = int(self.texts[first + caption])
        assert self.values is not None  # there is at least this one
        return self.values[int(self.ends[number - 1]) if number else 0 : int(self.ends[number])]

    def __reduce__(self) -> Any:
        """For worker processes, which map the files themselves."""
        return type(self), (self.folder, self.expected)
