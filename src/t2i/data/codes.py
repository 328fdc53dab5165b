"""The cache of a tokenizer's codes, so that a prior never waits for pictures ("image quantiser").

A folder per split and tokenizer: `codes.npy` (n, codes) as one memory-mapped array, `captions.jsonl`, and
`header.json`, written last: what stands there names the tokenizer's hash, its grid and codebook size, the data's
settings and the number of pictures. A cache whose header does not fit is refused, never used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from t2i.types import CodeBatch, Tokenizer

VERSION = 2  # of the cache and of the embedded scenes


def tokenizer_hash(weights: dict[str, Tensor]) -> str:
    """Sixteen hex digits of the tokenizer's weights."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()
                      if weights[name].ndim else str(weights[name].item()).encode())
    return digest.hexdigest()[:16]


def header(tokenizer: Any, dataset_config: dict[str, Any], split: str, size: int) -> dict[str, Any]:
    return {"version": VERSION, "tokenizer": tokenizer_hash(tokenizer.state_dict()), "grid": list(tokenizer.grid),
            "codebook_size": tokenizer.codebook_size, "split": split, "data": dataset_config, "size": size}


def build(folder: Path, dataset: Any, tokenizer: Tokenizer, head: dict[str, Any], batch_size: int = 128,
          progress: Any = None) -> Path:
    """Encodes every picture of `dataset` into `folder`, whole or not at all; a fitting cache is left as it is."""
    if fits(folder, head):
        return folder
    scratch = folder.with_name(folder.name + f".part{os.getpid()}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        encode(scratch, dataset, tokenizer, batch_size, progress)
        (scratch / "header.json").write_text(json.dumps(head, indent=1))
        if not fits(folder, head):  # else another process was quicker
            shutil.rmtree(folder, ignore_errors=True)
            os.replace(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def fits(folder: Path, head: dict[str, Any]) -> bool:
    found = folder / "header.json"
    try:
        return found.is_file() and json.loads(found.read_text()) == head
    except ValueError:  # a damaged header is one that does not fit
        return False


def encode(folder: Path, dataset: Any, tokenizer: Tokenizer, batch_size: int, progress: Any) -> None:
    rows, columns = tokenizer.grid
    kind = np.uint16 if tokenizer.codebook_size <= 2**16 else np.int32
    codes = np.lib.format.open_memmap(folder / "codes.npy", "w+", kind, (len(dataset), rows * columns))
    with (folder / "captions.jsonl").open("w", encoding="utf-8") as captions:
        for start in range(0, len(dataset), batch_size):
            examples = [dataset[i, 0] for i in range(start, min(start + batch_size, len(dataset)))]
            image = torch.stack([e.image for e in examples]).float().div_(127.5).sub_(1)
            device = next(tokenizer.parameters()).device
            codes[start : start + len(examples)] = tokenizer.encode(image.to(device)).cpu().numpy()
            for e in examples:
                captions.write(json.dumps({"key": e.key, "captions": e.captions}, ensure_ascii=False) + "\n")
            if progress is not None:
                progress(start + len(examples), len(dataset))
    codes.flush()


class Codes(Dataset):
    """Reads a cache: `codes[index, epoch] -> (ids, captions, key)`; refuses one that another tokenizer wrote."""

    def __init__(self, folder: Path, expected: dict[str, Any]) -> None:
        path = Path(folder) / "header.json"
        if not path.is_file():
            raise ValueError(f"{folder} holds no code cache (header.json is missing); it is written once, whole")
        found = json.loads(path.read_text())
        wrong = [f"{k}: cache {found.get(k)!r}, expected {v!r}" for k, v in expected.items() if found.get(k) != v]
        if wrong:
            raise ValueError(f"the code cache {folder} does not fit: {'; '.join(wrong)}. Delete it to build anew.")
        self.codes = np.load(Path(folder) / "codes.npy", mmap_mode="r")
        # Not splitlines(): a caption may hold U+2028 and the like, which JSON leaves as they are.
        lines = (Path(folder) / "captions.jsonl").read_text(encoding="utf-8").split("\n")
        self.items = [json.loads(line) for line in lines if line]
        if len(self.items) != len(self.codes):
            raise ValueError(f"the code cache {folder} is damaged: {len(self.codes)} rows of codes,"
                             f" {len(self.items)} captions. Delete it to build anew.")

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, at: tuple[int, int]) -> tuple[np.ndarray, list[str], str]:
        item = self.items[at[0]]
        return self.codes[at[0]], item["captions"], item["key"]


class PickedCodes(Dataset):
    """Codes with one caption each, chosen by `pick(epoch, index)`."""

    def __init__(self, codes: Codes, pick: Any) -> None:
        self.codes, self.pick = codes, pick

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, at: tuple[int, int]) -> tuple[np.ndarray, str, str]:
        ids, captions, key = self.codes[at]
        return ids, captions[self.pick(at[1], at[0]) % len(captions)] if captions else "", key


def collate(items: list[tuple[np.ndarray, str, str]]) -> CodeBatch:
    ids = torch.from_numpy(np.stack([item[0] for item in items]).astype(np.int64))
    return CodeBatch(ids, [item[1] for item in items], [item[2] for item in items])
