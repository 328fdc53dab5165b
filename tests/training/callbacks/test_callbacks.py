"""Averaged weights, picture grids, loss plots and the progress line in a real, tiny training."""

from __future__ import annotations

import io
import random
import time
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from t2i.config import quiet
from t2i.data.data_module import ExactSampler, StatefulLoader
from t2i.training import loggers
from t2i.training.callbacks.at_validation import undisturbed
from t2i.training.callbacks.ema import EMA
from t2i.training.callbacks.image_grid import ImageGrid
from t2i.training.callbacks.loss_plots import LossPlots
from t2i.training.callbacks.progress import ProgressBar
from t2i.viz.progress import clock, counter


class Tiny(pl.LightningModule):
    """A line fitted to 1, by automatic or manual optimisation; draws what its weight says."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Dropout(0.5))
        nn.init.zeros_(self.net[0].weight)
        self.automatic_optimization = not manual
        self.seen_in_validation: list[float] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, index):
        loss = (self.net[0](batch) - 1).square().mean()
        self.log("train/loss", loss.detach())
        if not self.automatic_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def validation_step(self, batch, index):
        self.seen_in_validation.append(self.net[0].weight.item())
        self.log("val/loss", (self.net[0](batch) - 1).square().mean(), batch_size=len(batch))

    def pictures(self, batch):
        assert not self.training and not torch.is_grad_enabled()
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        image = self.net[0].weight.detach().reshape(1, 1, 1, 1).expand(1, 3, 8, 8)
        return {"fit": {"rows": [("drawn", image)], "captions": ["é"]}, "plain": {"images": image, "captions": ["b"]}}


def train(folder, callbacks, steps=6, model=None, **options):
    quiet.quiet()
    data = DataLoader(torch.ones(32, 1), batch_size=4)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=steps, max_epochs=-1, val_check_interval=3,
        check_val_every_n_epoch=None, log_every_n_steps=1, num_sanity_val_steps=0, default_root_dir=folder,
        callbacks=callbacks,
        enable_checkpointing=False, enable_model_summary=False,
        logger=loggers.make_loggers({"csv": {"_target_": "t2i.training.loggers.CSVLogger"}}, folder, {}),
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in callbacks),
    )
    model = Tiny() if model is None else model
    trainer.fit(model, data, DataLoader(torch.ones(4, 1), batch_size=4), weights_only=True, **options)
    return trainer, model


def test_ema_follows_its_formula_is_seen_by_validation_and_leaves_training_alone(tmp_path) -> None:
    ema = EMA(["net"], decay=0.5)
    plain = train(tmp_path / "a", [])[1]
    model = train(tmp_path / "b", [ema])[1]
    assert torch.equal(plain.net[0].weight, model.net[0].weight)
    weight, shadow, expected = 0.0, 0.0, []
    for n in range(1, 7):
        weight -= 0.1 * 2 * (weight - 1)
        decay = min(0.5, (1 + n) / (10 + n))
        shadow = decay * shadow + (1 - decay) * weight
        expected.append(shadow)
    assert model.seen_in_validation == pytest.approx([expected[2], expected[5]], rel=1e-5)
    assert ema.shadow["net.0.weight"].item() == pytest.approx(expected[-1], rel=1e-5)


def test_ema_goes_on_from_a_checkpoint_bit_for_bit(tmp_path) -> None:
    whole, half, rest = EMA(["net"]), EMA(["net"]), EMA(["net"])
    train(tmp_path / "a", [whole])
    trainer, _ = train(tmp_path / "b", [half], steps=3)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    held = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert held["ema"]["updates"] == 3 and held["ema"]["weights"]["net.0.weight"].dtype == torch.float32
    train(tmp_path / "b", [rest], ckpt_path=tmp_path / "half.ckpt")
    assert rest.updates == 6 and torch.equal(rest.shadow["net.0.weight"], whole.shadow["net.0.weight"])


def test_a_checkpoint_in_mid_validation_holds_the_training_weights() -> None:
    module, ema = Tiny(), EMA(["net"])
    ema.on_fit_start(None, module)
    module.net[0].weight.data.fill_(3.0)
    ema.on_validation_start(None, module)
    assert module.net[0].weight.item() == 0.0
    checkpoint = {"state_dict": module.state_dict()}
    ema.on_save_checkpoint(None, module, checkpoint)
    assert float(checkpoint["state_dict"]["net.0.weight"]) == 3.0
    ema.on_exception(None, module, RuntimeError("stop"))
    assert module.net[0].weight.item() == 3.0


def test_ema_names_what_it_cannot_find() -> None:
    with pytest.raises(ValueError, match="no gpt in Tiny; it has net"):
        EMA(["gpt"]).on_fit_start(None, Tiny())
    with pytest.raises(ValueError, match="decay=1"):
        EMA(["net"], decay=1)


def test_undisturbed_restores_modes_and_random_numbers() -> None:
    module = Tiny()
    module.net[1].eval()
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(2), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    with undisturbed(module):
        module.pictures(None)
    assert module.net[0].training and not module.net[1].training
    assert torch.equal(torch.rand(2), expected[0]) and (random.random(), np.random.rand()) == expected[1:]  # noqa: NPY002


def test_grids_and_plots_appear_in_the_run_folder(tmp_path) -> None:
    train(tmp_path, [ImageGrid(every_n_steps=100), LossPlots()])
    found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    assert found == ["grids/fit-000003.png", "grids/fit-000006.png", "grids/plain-000003.png",
                     "grids/plain-000006.png", "plots/loss.png"]  # the first and, always, the last
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "3", "4", "5", "6", "6"]


@pytest.mark.parametrize("manual", [False, True])
def test_progress_writes_lines_where_nobody_can_redraw(tmp_path, manual) -> None:
    bar = ProgressBar(every_seconds=1e-9)
    bar.stream = io.StringIO()
    trainer, _ = train(tmp_path / "vqgan", [bar], model=Tiny(manual))
    lines = bar.stream.getvalue().splitlines()
    assert lines[-1].startswith("vqgan  6/6  loss ") and "images/s  [0:0" in lines[-1] and lines[-1].endswith("<0:00]")
    assert any("step 3  val/loss" in line for line in lines)
    trainer.save_checkpoint(tmp_path / "six.ckpt")
    bar = ProgressBar(["train/loss", "val/loss"], every_seconds=1e-9)
    bar.stream = io.StringIO()
    train(tmp_path / "vqgan", [bar], steps=8, model=Tiny(manual), ckpt_path=tmp_path / "six.ckpt")
    assert bar.stream.getvalue().startswith("vqgan  7/8")


def test_progress_says_how_much_of_the_time_went_to_waiting_for_data() -> None:
    bar, loader = ProgressBar(), StatefulLoader([], ExactSampler(8, 2, 0, True), list, 0)
    bar._trainer = SimpleNamespace(callback_metrics={}, train_dataloader=loader)
    bar.started, bar.images, loader.waited = time.monotonic() - 100, 200, 25.0
    assert bar.details() == "2 images/s (data 25%)"


def test_a_bar_is_redrawn_on_a_terminal(monkeypatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            return 1

    stream = Terminal()
    with counter("codes", 10, stream) as progress:
        for done in range(1, 11):
            progress(done, 10)
    assert stream.getvalue().count("\n") == 1 and "####################  10/10" in stream.getvalue()


def test_counter_is_silent_when_nothing_was_done_and_takes_a_late_total() -> None:
    stream = io.StringIO()
    with counter("codes", 10, stream):
        pass
    assert stream.getvalue() == ""
    with counter("drawing", 0, stream) as progress:
        progress(4, 4)
    assert stream.getvalue().startswith("drawing  4/4") and "[0:00<0:00]" in stream.getvalue()


def test_progress_that_nobody_takes_ends_no_work() -> None:
    full = open("/dev/full", "w")  # noqa: SIM115 -- closing it fails
    with counter("codes", 2, full) as progress:
        progress(1)
        progress(2)
    with pytest.raises(OSError, match="No space left"):
        full.close()


def test_small_things() -> None:
    assert [clock(s) for s in (0, 75, 3675)] == ["0:00", "1:15", "1:01:15"]
