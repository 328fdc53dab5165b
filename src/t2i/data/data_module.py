"""The only LightningDataModule: order, captions and batches as functions of (seed, epoch, index).

The order of training is a stateless permutation and the loader's whole state is where it stands, so that a run
continued in mid-epoch sees what an unbroken run sees, with any number of workers, and any number of ranks sees
the same global batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from t2i.data.seeds import derive_seed
from t2i.types import Batch, Example


class ExactSampler:
    """Which (index, epoch) each batch holds: global batch b of an epoch is perm[b*B:(b+1)*B], and a rank takes
    every world-th of it. Incomplete last batches are dropped in training; evaluation keeps them (unless they have
    fewer pictures than there are ranks) and does not shuffle."""

    def __init__(self, size: int, batch_size: int, seed: int, shuffle: bool, rank: int = 0, world: int = 1) -> None:
        if shuffle and size < batch_size:
            raise ValueError(f"data.batch_size={batch_size} is larger than the training split, which has"
                             f" {size} pictures")
        if shuffle and batch_size % world:
            raise ValueError(f"data.batch_size={batch_size} (global) is not divisible by the {world} devices")
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.rank, self.world, self.epoch = rank, world, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        full, rest = divmod(self.size, self.batch_size)
        return full if self.shuffle else full + (rest >= self.world)

    def batches(self, start: int = 0) -> list[list[tuple[int, int]]]:
        order = np.arange(self.size)
        if self.shuffle:
            order = np.random.default_rng(derive_seed(self.seed, "order", self.epoch)).permutation(self.size)
        every = [order[b * self.batch_size : (b + 1) * self.batch_size] for b in range(start, len(self))]
        return [[(int(i), self.epoch) for i in batch[self.rank :: self.world]] for batch in every]


class StatefulLoader:
    """Batches in the order of an `ExactSampler`, with a state to continue from.

    It counts training's epochs itself: Lightning's own count moves on when a run ends in mid-epoch, and its
    `set_epoch` would then skip one. Evaluation is epoch 0 always, so that every validation sees the same captions.

    Args:
        pin_memory: whether batches lie in memory that a GPU fetches them from by itself.

    `waited` are the seconds that were spent in waiting for batches so far.
    """

    def __init__(self, dataset: Dataset, sampler: ExactSampler, collate: Callable[[list[Any]], Any],
                 workers: int, pin_memory: bool = False) -> None:
        self.dataset, self.sampler, self.collate, self.workers = dataset, sampler, collate, workers
        self.pin_memory, self.waited = pin_memory, 0.0
        self.batch_size = sampler.batch_size // sampler.world
        self.batch_sampler = None  # Lightning asks every loader for one
        self.epoch, self.delivered, self.started = 0, 0, False
        self.resume: tuple[int, int] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        start = 0
        if self.resume is not None:
            (self.epoch, start), self.resume = self.resume, None
        elif self.started and self.sampler.shuffle:
            self.epoch += 1
        self.started = True
        self.sampler.set_epoch(self.epoch)
        self.delivered = start
        began = time.monotonic()
        batches = DataLoader(self.dataset, batch_sampler=self.sampler.batches(start), collate_fn=self.collate,
                             num_workers=self.workers, pin_memory=self.pin_memory)
        for batch in batches:
            self.waited += time.monotonic() - began
            self.delivered += 1
            yield batch
            began = time.monotonic()

    def _identity(self) -> dict[str, int]:
        """What must not change when a run goes on."""
        return {"seed": self.sampler.seed, "batch_size": self.sampler.batch_size, "size": self.sampler.size}

    def state_dict(self) -> dict[str, int]:
        epoch, delivered = self.resume if self.resume is not None else (self.epoch, self.delivered)
        return {"epoch": epoch, "delivered": delivered, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        for name, now in self._identity().items():
            if state[name] != now:
                raise ValueError(f"the checkpoint was trained with {name}={state[name]}, this run has {name}={now}:"
                                 " the order of training would change (resume=never starts afresh)")
        epoch, delivered = state["epoch"], state["delivered"]
        self.resume = (epoch + 1, 0) if delivered >= len(self.sampler) else (epoch, delivered)


class CaptionedDataset(Dataset):
    """A data set whose items come with the number that picks their caption."""

    def __init__(self, dataset: Any, seed: int) -> None:
        self.dataset, self.seed = dataset, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, at: tuple[int, int]) -> tuple[Example, int]:
        index, epoch = at
        return self.dataset[index, epoch], derive_seed(self.seed, "caption", epoch, index)


def collate_images(items: Sequence[tuple[Example, int]]) -> Batch:
    """Items of a `CaptionedDataset` to a Batch: pictures as bytes (so they travel between processes and to the device,
    at a quarter of float32's size), one caption each."""
    image = torch.stack([example.image for example, _ in items])
    text = [example.captions[pick % len(example.captions)] if example.captions else "" for example, pick in items]
    return Batch(image, text, [example.key for example, _ in items])


def to_float(batch: Any) -> Any:
    """Pictures that are bytes become float32 in [-1, 1], where they are; anything else stays as it is."""
    if isinstance(batch, Batch) and batch.image.dtype == torch.uint8:
        batch.image = batch.image.float().div_(127.5).sub_(1)
    return batch


class DataModule(pl.LightningDataModule):
    """Training and validation loaders over two data sets.

    Args:
        train, val: `dataset[index, epoch] -> Example`, or -> what `collate` takes.
        batch_size: global, over all ranks.
        collate: a list of items to a batch; by default pictures with captions.
    """

    def __init__(self, train: Any, val: Any, batch_size: int, workers: int = 0, seed: int = 0,
                 collate: Callable[[list[Any]], Any] | None = None) -> None:
        super().__init__()
        if batch_size < 1 or workers < 0:
            raise ValueError(f"data.batch_size={batch_size} must be >= 1 and data.workers={workers} >= 0")
        self.train_set, self.val_set = train, val
        self.batch_size, self.workers, self.seed, self.collate = batch_size, workers, seed, collate

    def _loader(self, dataset: Any, shuffle: bool) -> StatefulLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        collate = self.collate
        if collate is None:
            dataset, collate = CaptionedDataset(dataset, self.seed), collate_images
        sampler = ExactSampler(len(dataset), self.batch_size, self.seed, shuffle, rank, world)
        on_gpu = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return StatefulLoader(dataset, sampler, collate, self.workers, pin_memory=on_gpu)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return to_float(batch)

    def train_dataloader(self) -> StatefulLoader:
        return self._loader(self.train_set, shuffle=True)

    def val_dataloader(self) -> StatefulLoader:
        return self._loader(self.val_set, shuffle=False)
