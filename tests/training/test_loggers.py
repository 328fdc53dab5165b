"""The metrics file over resumes, TensorBoard's purge, and what Lightning no longer says (W&B: test_wandb_mirror)."""

from __future__ import annotations

import logging
from collections import Counter

from PIL import Image
from tensorboard.plugins.custom_scalar import layout_pb2
from tests import tiny

from t2i.config import quiet
from t2i.config.compose import ROOT, compose
from t2i.training import train
from t2i.training.loggers import PANELS, CSVLogger, TensorBoardLogger, make_loggers


def opened(log, folder):
    log.begin(folder, {})
    return log


def test_rows_are_written_at_once_and_columns_grow(tmp_path) -> None:
    log = opened(CSVLogger(), tmp_path)
    log.log_metrics({"train/loss": 2.0, "epoch": 0}, 0)
    log.log_metrics({"val/loss": 3.5, "epoch": 0}, 0)
    log.log_metrics({"train/loss": 1.5, "epoch": 0}, 1)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,epoch,train/loss,val/loss", "1,0,2.0,", "1,0,,3.5", "2,0,1.5,"]


def test_a_continued_run_keeps_what_came_before_and_drops_what_comes_again(tmp_path) -> None:
    path = tmp_path / "metrics.csv"
    log = opened(CSVLogger(), tmp_path)
    for step in range(6):
        log.log_metrics({"train/loss": float(step)}, step)
    with open(path, "a") as file:
        file.write("7,0,0.1")  # cut off by a kill
    log = opened(CSVLogger(), tmp_path)  # goes on after a checkpoint at step 4
    log.log_metrics({"train/loss": 40.0}, 4)
    log.log_metrics({"train/new": 1.0}, 4)
    log.log_metrics({"train/loss": 50.0}, 5)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["step", "1", "2", "3", "4", "5", "5", "6"]
    assert path.read_text().splitlines()[-1] == "6,,50.0,"


def test_a_truncated_last_line_does_not_swallow_the_next(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,a\n1,0,2.0\n2,0")
    opened(CSVLogger(), tmp_path).log_metrics({"a": 3.0, "epoch": 0}, 2)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,epoch,a", "1,0,2.0", "3,0,3.0"]


def test_tensorboard_hides_later_steps_of_the_broken_run(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, value in ((0, 1.0), (2, 2.0)):
        log = opened(TensorBoardLogger(), tmp_path)
        log.experiment  # noqa: B018 -- as Lightning does before anything is logged
        for step in range(first, first + 4):
            log.log_metrics({"loss": value}, step)
        log.log_image("samples", Image.new("RGB", (4, 4)), 4)
        log.save()
        log.finish()
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 1), (2, 1), (3, 2), (4, 2), (5, 2), (6, 2)]
    assert not (tmp_path / "tb" / "hparams.yaml").exists()
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[-1].tensor_proto.string_val[0])
    panels = {(section.title, chart.title): list(chart.multiline.tag) for section in layout.category
              for chart in section.chart}
    assert panels["Loss", "loss"] == [r"train/loss(_\d+)?$", r"val/loss(_\d+)?$"]
    assert {section: len(charts) for section, charts in PANELS.items()} == Counter(section for section, _ in panels)


def test_every_curve_of_the_panels_is_logged_by_some_training(tmp_path) -> None:
    """By a tokenizer and a CLIP that are trained here; the others by name, in what logs them."""
    logged: set[str] = set()
    for name, words in (("t", [*tiny.VQGAN, "model.discriminator_start=0.0"]), ("c", tiny.CLIP)):
        train.run(compose([*words, *tiny.DATA, *tiny.TRAINER, *tiny.QUIET, f"name={name}", f"paths.runs={tmp_path}",
                           "trainer.max_steps=4", "trainer.log_every_steps=1"]))
        logged |= set((tmp_path / name / "metrics.csv").read_text().partition("\n")[0].split(","))
    wanted = {name for panels in PANELS.values() for names in panels.values() for name in names}
    assert len(wanted & logged) >= 14
    sources = "".join(path.read_text() for path in (ROOT / "src/t2i/models").glob("*.py"))
    assert {name for name in wanted - logged if f'"{name}"' not in sources} == {
        "train/logits/wrong", "val/composition_overall"}  # of f-strings, in text_gan.py and validation_metrics.py


def test_loggers_come_by_their_target_and_none_where_there_is_none(tmp_path) -> None:
    nodes = compose(["model=clip", "logger.tensorboard=null", "name=x"])["logger"]
    (log,) = make_loggers({**nodes, "gone": None}, tmp_path, {})
    assert isinstance(log, CSVLogger) and log.path == tmp_path / "metrics.csv"
    stock = {"mine": {"_target_": "pytorch_lightning.loggers.CSVLogger", "save_dir": str(tmp_path)}}
    assert type(make_loggers(stock, tmp_path, {})[0]).__module__.startswith("pytorch_lightning")
    assert make_loggers(compose(["model=clip", "logger=none", "name=x"])["logger"], tmp_path, {}) == []


def test_quiet_drops_adverts_and_keeps_the_rest(caplog) -> None:
    quiet.quiet()
    quiet.quiet()
    log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    assert log.filters.count(quiet._says_something) == 1
    with caplog.at_level(logging.INFO, log.name):
        log.propagate, before = True, log.propagate
        log.info("💡 Tip: For seamless cloud logging, try installing [litlogger]")
        log.info("GPU available: False, used: False")
        log.info("the disk is nearly full")
        log.propagate = before
    assert caplog.messages == ["the disk is nearly full"]
