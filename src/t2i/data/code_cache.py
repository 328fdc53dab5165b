"""The cache of a tokenizer's codes, so that a prior never waits for pictures ("image quantiser").

A folder per split and tokenizer: `codes.npy` (n, views, codes) as one mapped array, the rows (`rows.jsonl`,
`rows.npy`: key and captions), and `header.json`: the tokenizer's hash, its grid and codebook size, the data's settings,
the number of pictures and of views. A view is one crop and mirroring of a picture: what `dataset[index, view]` gives. A
cache that does not fit is refused, never used; an interrupted one is continued.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from t2i.checkpoint.weights_hash import weights_hash
from t2i.data import cache
from t2i.data.rows import JsonLines, encode_row
from t2i.data.text_embedding_cache import TextEmbeddingCache
from t2i.types import CodeBatch, Tokenizer

VERSION = 3  # of the cache and of the embedded scenes
WHAT = "code cache"


def header(tokenizer: Any, data: dict[str, Any], split: str, size: int, views: int = 1) -> cache.Header:
    return {"version": VERSION, "tokenizer": weights_hash(tokenizer), "grid": list(tokenizer.grid),
            "codebook_size": tokenizer.codebook_size, "split": split, "data": data, "size": size, "views": views}


def build(folder: Path, dataset: Any, tokenizer: Tokenizer, head: cache.Header, batch_size: int = 128,
          progress: cache.Progress | None = None) -> Path:
    """Encodes every picture of `dataset` into `folder`; a fitting cache is left as it is, another one refused."""
    cache.build(folder, head, lambda part: encode(part, dataset, tokenizer, head["views"], batch_size, progress), WHAT)
    return folder


def encode(part: Path, dataset: Any, tokenizer: Tokenizer, views: int, batch_size: int,
           progress: cache.Progress | None) -> cache.Header:
    """Pictures in order, all views of one together. `rows.jsonl` says how far an earlier call came: its lines are
    written after their codes."""
    rows, columns = tokenizer.grid
    size = tokenizer.codebook_size
    kind = np.uint16 if size <= 2**16 else np.int32 if size <= 2**31 else np.int64
    path, shape = part / "codes.npy", (len(dataset), views, rows * columns)
    begun = path.is_file() and (part / "rows.jsonl").is_file()
    done = (part / "rows.jsonl").read_bytes().split(b"\n")[:-1] if begun else []
    codes = np.lib.format.open_memmap(path, "r+" if begun else "w+", kind, shape)
    device = next(tokenizer.parameters()).device
    at_once = max(1, batch_size // views)
    with (part / "rows.jsonl").open("wb") as file:
        file.writelines(line + b"\n" for line in done)
        for start in range(len(done), len(dataset), at_once):
            stop = min(start + at_once, len(dataset))
            examples = [dataset[i, view] for i in range(start, stop) for view in range(views)]
            image = torch.stack([e.image for e in examples]).to(device).float().div_(127.5).sub_(1)
            codes[start:stop] = tokenizer.encode(image).view(-1, views, rows * columns).cpu().numpy()
            codes.flush()
            file.writelines(encode_row({"key": e.key, "captions": e.captions}) for e in examples[::views])
            file.flush()
            if progress is not None:
                progress(stop, len(dataset))
    JsonLines.index(part / "rows.jsonl")
    return {}


class CodeCache(Dataset):
    """Reads a cache: `codes[index, view] -> (ids, captions, key)`; refuses one that another tokenizer wrote."""

    def __init__(self, folder: Path, expected: cache.Header) -> None:
        self.folder, self.expected, self.views = Path(folder), expected, expected["views"]
        if not cache.check_header(self.folder, expected, WHAT):
            raise ValueError(f"{folder} holds no {WHAT}; it is written once, whole")
        self.codes = np.load(self.folder / "codes.npy", mmap_mode="r")
        self.rows = JsonLines.open(self.folder / "rows.jsonl")
        if len(self.rows) != len(self.codes):
            raise ValueError(f"the {WHAT} {self.folder} is damaged: {len(self.codes)} rows of codes,"
                             f" {len(self.rows)} of captions. Delete it to make it anew.")

    def __reduce__(self) -> Any:
        """For worker processes, which map the files themselves."""
        return type(self), (self.folder, self.expected)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, at: tuple[int, int]) -> tuple[np.ndarray, list[str], str]:
        index, view = at
        row = self.rows[index]
        return self.codes[index, view], row["captions"], row["key"]


Item = tuple[np.ndarray, str, str, np.ndarray | None]


class CodeDataset(Dataset):
    """Codes with one view and one caption each, chosen by `derive(what, epoch, index)`, and the caption's states where
    they are cached."""

    def __init__(self, codes: CodeCache, derive: Callable[[str, int, int], int],
                 states: TextEmbeddingCache | None = None) -> None:
        self.codes, self.derive, self.states = codes, derive, states

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, at: tuple[int, int]) -> Item:
        index, epoch = at
        view = self.derive("view", epoch, index) % self.codes.views if self.codes.views > 1 else 0
        ids, captions, key = self.codes[index, view]
        if not captions:
            return ids, "", key, None
        chosen = self.derive("caption", epoch, index) % len(captions)
        return ids, captions[chosen], key, None if self.states is None else self.states[index, chosen]


def collate(items: list[Item]) -> CodeBatch:
    ids = torch.from_numpy(np.stack([item[0] for item in items]).astype(np.int64))
    batch = CodeBatch(ids, [item[1] for item in items], [item[2] for item in items])
    found = [item[3] for item in items]
    if all(states is not None for states in found):
        each = [torch.from_numpy(np.array(states)) for states in found]
        batch.states = torch.nn.utils.rnn.pad_sequence(each, batch_first=True)
        lengths = torch.tensor([len(states) for states in each])
        batch.mask = torch.arange(batch.states.shape[1])[None] < lengths[:, None]
    return batch
