"""The metrics file over resumes, TensorBoard's purge, the W&B mirror, and what Lightning no longer says."""

from __future__ import annotations

import logging
import sys
import types
import warnings

import pytest
from PIL import Image

from t2i import loggers
from t2i.loggers import MetricsCSV, WandB, make_loggers


def test_rows_are_written_at_once_and_columns_grow(tmp_path) -> None:
    log = MetricsCSV(tmp_path)
    log.log_metrics({"train/loss": 2.0, "epoch": 0}, 0)
    log.log_metrics({"val/loss": 3.5, "epoch": 0}, 0)
    log.log_metrics({"train/loss": 1.5, "epoch": 0}, 1)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,epoch,train/loss,val/loss", "1,0,2.0,", "1,0,,3.5", "2,0,1.5,"]


def test_a_continued_run_keeps_what_came_before_and_drops_what_comes_again(tmp_path) -> None:
    path = tmp_path / "metrics.csv"
    log = MetricsCSV(tmp_path)
    for step in range(6):
        log.log_metrics({"train/loss": float(step)}, step)
    with open(path, "a") as file:
        file.write("7,0,0.1")  # cut off by a kill
    log = MetricsCSV(tmp_path)  # goes on after a checkpoint at step 4
    log.log_metrics({"train/loss": 40.0}, 4)
    log.log_metrics({"train/new": 1.0}, 4)
    log.log_metrics({"train/loss": 50.0}, 5)
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["step", "1", "2", "3", "4", "5", "5", "6"]
    assert path.read_text().splitlines()[-1] == "6,,50.0,"


def test_a_truncated_last_line_does_not_swallow_the_next(tmp_path) -> None:
    (tmp_path / "metrics.csv").write_text("step,epoch,a\n1,0,2.0\n2,0")
    MetricsCSV(tmp_path).log_metrics({"a": 3.0, "epoch": 0}, 2)
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["step,epoch,a", "1,0,2.0", "3,0,3.0"]


def test_tensorboard_hides_later_steps_of_the_broken_run(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, value in ((0, 1.0), (2, 2.0)):
        (log,) = make_loggers(["tensorboard"], tmp_path, {}, "run")
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


class FakeRun:
    def __init__(self, **options) -> None:
        self.options, self.rows, self.finished = options, [], False

    def define_metric(self, *_, **__) -> None: ...

    def log(self, row) -> None:
        self.rows.append(row)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in with W&B's few calls that are used."""
    module = types.ModuleType("wandb")
    module.runs = []
    module.init = lambda **options: module.runs.append(FakeRun(**options)) or module.runs[-1]
    module.Settings = dict
    module.Image = lambda image: ("image", image.size)
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_wandb_is_offline_without_a_key_and_each_segment_has_an_id(tmp_path, wandb, monkeypatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    (log,) = make_loggers(["wandb"], tmp_path, {"seed": 0}, "run", "group")
    log.log_metrics({"loss": 1.0}, 4)
    log.log_image("grid", Image.new("RGB", (2, 3)), 5)
    loggers.finish([log])
    log.log_metrics({"loss": 2.0}, 9)
    first, second = wandb.runs
    assert first.options["mode"] == "offline" and first.options["group"] == "group" and first.finished
    assert first.options["id"] != second.options["id"] and first.options["config"] == {"seed": 0}
    assert first.rows == [{"loss": 1.0, "step": 5}, {"grid": ("image", (2, 3)), "step": 5}]


def test_a_failing_mirror_is_told_once_and_stops_nothing(tmp_path, wandb) -> None:
    def broken(**_):
        raise ConnectionError("no route")

    wandb.init = broken
    log = WandB(tmp_path, {}, "run", None, "t2i")
    with pytest.warns(UserWarning, match="W&B is off from here on .ConnectionError: no route"):
        log.log_metrics({"loss": 1.0}, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log.log_metrics({"loss": 1.0}, 1)
        log.finish()


def test_key_from_environment_or_netrc(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not loggers.has_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password none\n")
    assert loggers.has_key()


def test_unknown_logger_is_named() -> None:
    with pytest.raises(ValueError, match="tensorbord unknown; allowed are csv, tensorboard, wandb"):
        make_loggers(["csv", "tensorbord"], "run", {}, "run")


def test_quiet_drops_adverts_and_keeps_the_rest(caplog) -> None:
    loggers.quiet()
    loggers.quiet()
    log = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    assert log.filters.count(loggers._says_something) == 1
    with caplog.at_level(logging.INFO, log.name):
        log.propagate, before = True, log.propagate
        log.info("💡 Tip: For seamless cloud logging, try installing [litlogger]")
        log.info("GPU available: False, used: False")
        log.info("the disk is nearly full")
        log.propagate = before
    assert caplog.messages == ["the disk is nearly full"]
