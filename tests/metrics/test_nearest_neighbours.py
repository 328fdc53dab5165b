"""Overfitting watched: the gap, early stopping, and the training pictures that drawn ones are most like."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from PIL import Image
from torch.utils.data import DataLoader

from t2i.config import quiet
from t2i.data.folder import Folder
from t2i.metrics.nearest_neighbours import nearest
from t2i.training import loggers
from t2i.training.callbacks.early_stopping import EarlyStopping
from t2i.training.callbacks.validation_metrics import Gap


class Walk(pl.LightningModule):
    """Its training losses are 1, 2, 3, …; its validation losses are given."""

    kind = "prior"

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.losses, self.validations = losses, 0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def training_step(self, batch, index):
        loss = self.weight.sum() + self.global_step + 1
        self.log("train/loss", loss.detach())
        return loss

    def validation_step(self, batch, index):
        self.log("val/loss", torch.tensor(self.losses[self.validations]))

    def on_validation_epoch_end(self):
        self.validations += 1


def walk(folder: Path, losses: list[float], *callbacks, steps: int = 12, **options) -> pl.Trainer:
    quiet.quiet()
    csv_logger = {"csv": {"_target_": "t2i.training.loggers.CSVLogger"}}
    trainer = pl.Trainer(accelerator="cpu", max_steps=steps, max_epochs=-1, val_check_interval=2,
                         check_val_every_n_epoch=None, log_every_n_steps=1, num_sanity_val_steps=0,
                         default_root_dir=folder, callbacks=list(callbacks), enable_checkpointing=False,
                         enable_model_summary=False, enable_progress_bar=False,
                         logger=loggers.make_loggers(csv_logger, folder, {}))
    data = DataLoader(torch.ones(40, 1), batch_size=4)
    trainer.fit(Walk(losses), data, DataLoader(torch.ones(4, 1)), weights_only=True, **options)
    return trainer


def test_the_gap_is_validation_minus_the_training_since_the_last_one(tmp_path) -> None:
    walk(tmp_path, [5.0, 5.0, 7.0], Gap(), steps=6)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        gaps = [float(row["val/gap"]) for row in csv.DictReader(file) if row["val/gap"]]
    assert gaps == pytest.approx([5 - 1.5, 5 - 3.5, 7 - 5.5])


def test_early_stopping_bears_what_it_is_told_to_bear(tmp_path, capsys) -> None:
    trainer = walk(tmp_path, [3.0, 2.0, 2.5, 2.2, 2.1, 9.0], EarlyStopping(patience=3))
    assert trainer.global_step == 10
    assert "Stopped early at step 10: val/loss was 2 at best, and not better for 3" in capsys.readouterr().out
    assert walk(tmp_path, [3.0, 2.0, 2.5, 1.9, 2.1, 1.8], EarlyStopping(patience=2)).global_step == 12
    assert walk(tmp_path, [3.0, 2.9, 2.8, 2.7, 2.6, 2.5], EarlyStopping(patience=2, min_delta=0.5)).global_step == 6


def test_early_stopping_goes_on_counting_after_a_break(tmp_path) -> None:
    first = EarlyStopping(patience=3)
    walk(tmp_path, [3.0, 3.1, 3.2], first, steps=6)
    again = EarlyStopping(patience=3)
    again.load_state_dict(first.state_dict())
    assert walk(tmp_path, [3.3, 3.4], again, steps=4).global_step == 2


def test_early_stopping_names_what_there_is(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"monitor=val/lost is no metric of this run's validation; it has val/loss"):
        walk(tmp_path, [1.0] * 6, EarlyStopping("val/lost"))
    with pytest.raises(ValueError, match="patience=0"):
        EarlyStopping(patience=0)


def test_nearest_finds_copies_mirrors_and_near_copies(tmp_path) -> None:
    for i in range(300):  # more than are compared at a time
        pixels = np.random.default_rng(i).integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((16, 16), Image.Resampling.NEAREST).save(tmp_path / f"{i:03}.png")
    lines = [{"file_name": f"{i:03}.png", "text": f"picture {i}", "split": "train"} for i in range(300)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    data = Folder("train", str(tmp_path), image_size=16)
    wanted = [7, 299, 256]
    drawn = np.stack([data[i, 0].image.permute(1, 2, 0).numpy() for i in wanted])
    drawn[1] = drawn[1, :, ::-1]
    drawn[2] = np.clip(drawn[2].astype(int) + 9, 0, 255)
    found, captions, away = nearest(drawn, data)
    assert captions == ["picture 7", "picture 299", "picture 256"]
    assert np.array_equal(found[0], drawn[0]) and away[:2] == [0.0, 0.0] and 4 < away[2] <= 9.01
