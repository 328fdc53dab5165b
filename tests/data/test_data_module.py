"""The order of training, its resumption, and which caption a picture gets."""

from __future__ import annotations

import time
from collections import Counter
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data._utils.pin_memory import pin_memory

from t2i.config import quiet
from t2i.data import data_module
from t2i.data.data_module import CaptionedDataset, DataModule, ExactSampler, StatefulLoader, collate_images, to_float
from t2i.data.seeds import derive_seed
from t2i.types import Batch, CodeBatch, Example


class Pictures:
    """Picture i is filled with i; three captions each, but for the first, which has none."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, at: tuple[int, int]) -> Example:
        index, _ = at
        captions = tuple(f"{index}{letter}" for letter in "abc") if index else ()
        return Example(torch.full((3, 2, 2), index, dtype=torch.uint8), captions, str(index))


def test_numbers_are_stable_and_distinct() -> None:
    assert derive_seed(0, "order", 1) == 7021862330116196507  # a run of today goes on tomorrow
    many = {derive_seed(seed, word, i) for seed in range(5) for word in ("order", "caption") for i in range(50)}
    assert len(many) == 500 and all(0 <= n < 2**63 for n in many)


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    order, epochs = ExactSampler(23, 5, seed=3, shuffle=True), []
    for epoch in range(3):
        order.set_epoch(epoch)
        batches = order.batches()
        assert len(batches) == len(order) == 4 and all(len(batch) == 5 for batch in batches)
        pairs = [pair for batch in batches for pair in batch]
        assert {e for _, e in pairs} == {epoch}
        indices = [i for i, _ in pairs]
        assert len(set(indices)) == 20 and set(indices) <= set(range(23))
        epochs.append(tuple(indices))
    assert len(set(epochs)) == 3 and list(epochs[0]) != sorted(epochs[0])
    assert ExactSampler(23, 5, 3, True).batches() == ExactSampler(23, 5, 3, True).batches()
    assert ExactSampler(23, 5, 3, True).batches() != ExactSampler(23, 5, 4, True).batches()
    assert ExactSampler(23, 5, 3, True).batches(2) == ExactSampler(23, 5, 3, True).batches()[2:]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
def test_ranks_share_the_global_batches(world: int, shuffle: bool) -> None:
    whole = ExactSampler(26, 6, 0, shuffle).batches()
    parts = [ExactSampler(26, 6, 0, shuffle, rank, world).batches() for rank in range(world)]
    assert {len(part) for part in parts} == {len(ExactSampler(26, 6, 0, shuffle, 0, world))}
    for batch, *shares in zip(whole, *parts, strict=False):
        assert all(shares)
        assert Counter(pair for share in shares for pair in share) == Counter(batch)


def test_evaluation_keeps_the_last_batch_unless_a_rank_would_go_without() -> None:
    assert ExactSampler(7, 3, 0, False).batches() == [[(0, 0), (1, 0), (2, 0)], [(3, 0), (4, 0), (5, 0)], [(6, 0)]]
    assert [len(ExactSampler(7, 2, 0, False, rank, 2).batches()) for rank in (0, 1)] == [3, 3]
    assert ExactSampler(6, 3, 0, False).batches() == ExactSampler(7, 3, 0, False).batches()[:2]


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.batch_size=9 is larger than the training split, which has 8 pictures"):
        ExactSampler(8, 9, 0, True)
    with pytest.raises(ValueError, match=r"data.batch_size=5 \(global\) is not divisible by the 2 devices"):
        ExactSampler(8, 5, 0, True, 0, 2)
    with pytest.raises(ValueError, match=r"data.batch_size=0 must be >= 1"):
        DataModule(Pictures(3), Pictures(3), batch_size=0)
    with pytest.raises(ValueError, match=r"data.workers=-1 >= 0"):
        DataModule(Pictures(3), Pictures(3), batch_size=1, workers=-1)


def test_pictures_become_batches() -> None:
    data = DataModule(Pictures(256), Pictures(5), batch_size=4, seed=1)
    batch = next(iter(data.val_dataloader()))
    assert isinstance(batch, Batch) and batch.key == ["0", "1", "2", "3"] and batch.text[0] == ""
    assert batch.image.dtype == torch.uint8 and batch.image.shape == (4, 3, 2, 2)  # they travel as bytes
    moved = data.on_after_batch_transfer(batch, 0)
    assert moved.image.dtype == torch.float32 and data.on_after_batch_transfer(moved, 0) is moved
    ends = to_float(collate_images([(Pictures(256)[i, 0], 0) for i in (0, 255)])).image
    assert ends[0].unique().tolist() == [-1.0] and ends[1].unique().tolist() == [1.0]


def test_the_caption_is_a_function_of_seed_epoch_and_index() -> None:
    def texts(seed: int, epoch: int, workers: int = 0) -> dict[str, str]:
        data = DataModule(Pictures(40), Pictures(4), batch_size=8, seed=seed, workers=workers)
        loader = data.train_dataloader()
        for _ in range(epoch):
            list(loader)
        return {key: text for batch in loader for key, text in zip(batch.key, batch.text, strict=True)}

    first = texts(0, 0)
    assert texts(0, 0) == texts(0, 0, workers=1) == first
    assert all(text[:-1] == key for key, text in first.items() if text)
    for other in (texts(0, 1), texts(1, 0)):
        assert 0 < sum(first[key] == other[key] for key in first) < 30
    assert set(Counter(text[-1] for text in first.values() if text)) == set("abc")


def loader(size: int = 10, batch_size: int = 3, seed: int = 0) -> StatefulLoader:
    sampler = ExactSampler(size, batch_size, seed, True)
    return StatefulLoader(CaptionedDataset(Pictures(size), seed), sampler, collate_images, 0)


@pytest.mark.parametrize("change", [{"seed": 1}, {"batch_size": 2}, {"size": 11}])
def test_a_changed_order_is_refused(change) -> None:
    (name, value), old = *change.items(), loader().state_dict()
    message = rf"trained with {name}={old[name]}, this run has {name}={value}.*resume=never"
    with pytest.raises(ValueError, match=message):
        loader(**change).load_state_dict(old)


def test_a_state_says_where_the_loader_stands() -> None:
    whole, part = [b.key for b in loader()], loader()
    iterator = iter(part)
    for _ in range(2):
        next(iterator)
    state = part.state_dict()
    assert (state["epoch"], state["delivered"]) == (0, 2)
    again = loader()
    again.load_state_dict(state)
    assert again.state_dict() == state  # saved again before the first batch, it is the same place
    assert [b.key for b in again] == whole[2:]
    done = again.state_dict()
    following = loader()
    following.load_state_dict(done)
    assert [b.key for b in following] == [b.key for b in part] != whole  # what `part` gives when asked again


def test_every_validation_is_the_same() -> None:
    loader = DataModule(Pictures(40), Pictures(20), batch_size=8).val_dataloader()
    texts = []
    for epoch in (0, 0, 5):
        loader.sampler.set_epoch(epoch)  # as Lightning does
        texts.append([text for batch in loader for text in batch.text])
    assert texts[0] == texts[1] == texts[2] and len(texts[0]) == 20


class Halfway(pl.Callback):
    """Saves in mid-run, as a kill would leave it."""

    def __init__(self, folder) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer, module, outputs, batch, index) -> None:
        trainer.save_checkpoint(self.folder / f"at{trainer.global_step}.ckpt")


class Diary(pl.LightningModule):
    """Writes down what it was given; its weight depends on the order of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(1, 1)
        for parameter in self.net.parameters():
            nn.init.zeros_(parameter)
        self.seen: list[list[str]] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(batch.text)
        return (self.net(batch.image.mean((1, 2, 3), keepdim=True).flatten(1)) - 1).square().mean()

    def validation_step(self, batch: Batch, index: int) -> None:
        torch.rand(1)


def fit(folder, steps: int, workers: int = 0, resume=None, seed: int = 0) -> Diary:
    quiet.quiet()
    model = Diary()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=-1, val_check_interval=2, logger=False,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, default_root_dir=folder, enable_checkpointing=False,
        enable_model_summary=False, enable_progress_bar=False, use_distributed_sampler=False,
        callbacks=[Halfway(folder)],
    )  # fmt: skip
    data = DataModule(Pictures(10), Pictures(4), batch_size=3, workers=workers, seed=seed)
    trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / f"end{steps}.ckpt")
    return model


def check_resume(folder, workers: int, stops: tuple[str, ...]) -> None:
    whole = fit(folder, 8, workers)
    assert len(whole.seen) == 8 and len({tuple(text) for text in whole.seen}) == 8
    for stop in stops:  # an epoch has three batches
        step = int(stop[-1])
        if stop.startswith("end"):  # a shorter run that ended in mid-epoch is made longer
            fit(folder, step, workers)
        rest = fit(folder, 8, workers, resume=folder / f"{stop}.ckpt")
        assert rest.seen == whole.seen[step:], stop
        assert torch.equal(rest.net.weight, whole.net.weight) and torch.equal(rest.net.bias, whole.net.bias)


def test_a_resumed_run_sees_what_an_unbroken_one_sees(tmp_path) -> None:
    check_resume(tmp_path, 0, ("at1", "at2", "at3", "at6", "end2"))
    with pytest.raises(ValueError, match="trained with seed=0, this run has seed=1"):
        fit(tmp_path, 8, resume=tmp_path / "at5.ckpt", seed=1)


@pytest.mark.slow
def test_a_resumed_run_sees_the_same_with_workers(tmp_path) -> None:
    check_resume(tmp_path, 2, ("at2", "at3"))


class Slow(Pictures):
    def __getitem__(self, at: tuple[int, int]) -> Example:
        time.sleep(0.01)
        return super().__getitem__(at)


def test_waiting_for_data_is_counted_and_the_steps_between_are_not() -> None:
    for data, least in ((Slow(8), 0.08), (Pictures(8), 0.0)):
        loader = StatefulLoader(CaptionedDataset(data, 0), ExactSampler(8, 2, 0, True), collate_images, 0)
        began = time.monotonic()
        for _ in loader:
            time.sleep(0.05)
        assert least < loader.waited < time.monotonic() - began - 4 * 0.05


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_batches_for_a_gpu_are_pinned(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Without one: what torch's loader and a tensor are asked for."""
    asked: list[bool] = []
    original = data_module.DataLoader
    monkeypatch.setattr(data_module, "DataLoader", lambda *a, pin_memory, **more: (asked.append(pin_memory),
                                                                                   original(*a, **more))[1])
    module = DataModule(Pictures(4), Pictures(4), batch_size=2)
    strategy = SimpleNamespace(root_device=torch.device(device))
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    for loader in (module.train_dataloader(), module.val_dataloader()):
        next(iter(loader))
    assert asked == [device == "cuda"] * 2
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self, *_: self + 1)
    images, ids = torch.zeros(1, 3, 2, 2), torch.zeros(1, 4).long()
    pinned = pin_memory(Batch(images, ["a"], ["k"]))
    assert isinstance(pinned, Batch) and pinned.image.min() == 1 and (pinned.text, pinned.key) == (["a"], ["k"])
    states = torch.zeros(1, 2, 3), torch.zeros(1, 2)
    found = pin_memory(CodeBatch(ids, ["a"], ["k"], *states))
    assert [int(part.min()) for part in (found.ids, found.states, found.mask)] == [1, 1, 1]
    assert pin_memory(CodeBatch(ids, ["a"], ["k"])).states is None
