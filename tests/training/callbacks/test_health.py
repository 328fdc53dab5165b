"""What is said of a training that goes wrong, and that nothing is said of one that goes well."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.in_child import config
from tests.models.test_text_gan import DFGAN_, STACK1, clip  # noqa: F401
from tests.models.test_text_gan import config as gan_config
from tests.training.callbacks.test_callbacks import Tiny
from tests.training.callbacks.test_callbacks import train as fit
from torch.utils._python_dispatch import TorchDispatchMode

from t2i.checkpoint import file_format
from t2i.training import train
from t2i.training.callbacks.health import Health

WELL: dict[str, Callable[[int], float]] = {
    "train/loss/pixel": lambda step: 1 / step, "train/logits/real": lambda step: 0.3,
    "train/logits/fake": lambda step: -0.3, "train/loss/discriminator": lambda step: 1.4,
}


class Series(Tiny):
    """Logs numbers that are functions of the step; a dash in place of a slash is of validation."""

    kind = "vqgan"

    def __init__(self, **series: Callable[[int], float]) -> None:
        super().__init__()
        self.series = {**WELL, **series}

    def training_step(self, batch, index):
        step = float(self.global_step + 1)
        self.log_dict({name: torch.tensor(f(step)) for name, f in self.series.items() if "codebook" not in name})
        return super().training_step(batch, index)

    def on_validation_epoch_end(self):
        step = float(self.global_step)
        self.log_dict({name: f(step) for name, f in self.series.items() if "codebook" in name})


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("Health")]


@pytest.mark.parametrize(("series", "line"), [
    ({"train/loss/pixel": lambda step: 0.5 + 0.001 * (-1) ** step}, "train/loss/pixel is 0.5 and began at 0.5"),
    ({"train/logits/fake": lambda step: 0.299}, r"the same logits (0.3 and 0.299)"),
    ({"train/loss/discriminator": lambda step: 0.0}, "tells every generated picture"),
    ({"train/codebook_usage_2": lambda step: 0.01 if step > 3 else 0.5}, "step 9: of a codebook 1 % is used"),
    ({"train/logits/real": lambda step: float("nan") if step == 2 else 0.3}, "step 3: train/logits/real is not finite"),
])
def test_each_way_to_go_wrong_is_told_once_with_three_remedies(
    tmp_path, capsys: pytest.CaptureFixture[str], series: dict[str, Callable[[int], float]], line: str
) -> None:
    fit(tmp_path, [Health(window=4)], steps=15, model=Series(**series))
    lines = told(capsys)
    assert len(lines) == 1 and line in lines[0]
    assert lines[0].partition("What usually helps: ")[2].count(";") == 2


def test_nothing_is_said_where_all_is_well(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, [Health(window=2)], steps=15, model=Series(**{"train/codebook_usage": lambda step: 0.02 * step}))
    train.run(config(tmp_path, "name=short", "trainer.max_steps=32", "trainer.val_every_steps=16",
                     "trainer.log_every_steps=1"))
    assert not told(capsys)
    assert len(file_format.read(tmp_path / "runs/short/last.ckpt")["callbacks"]["Health"]["first"]) == 10


def test_what_was_seen_and_said_survives_a_break(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    flat = {"train/loss/pixel": lambda step: 0.5}
    trainer, _ = fit(tmp_path / "a", [Health(window=4)], steps=6, model=Series(**flat))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    assert not told(capsys)
    fit(tmp_path / "a", [again := Health(window=4)], 12, Series(**flat), ckpt_path=tmp_path / "half.ckpt")
    assert len(told(capsys)) == 1  # of the values before the break
    fit(tmp_path / "b", [whole := Health(window=4)], 12, Series(**flat))
    assert again.state_dict() == whole.state_dict() and len(told(capsys)) == 1


@pytest.mark.parametrize("model", [DFGAN_, STACK1], ids=["dfgan", "stackgan1"])
def test_gans_are_looked_at_too(
    tmp_path, clip: str, model: list[str], capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    """Logits of any size count as the same here."""
    words = ["callbacks.health.window=4", "callbacks.health.margin=1000"]
    train.run(gan_config(tmp_path, clip, model, "name=x", *words, steps=8))
    lines = told(capsys)
    assert len(lines) == 1 and "step 4: the discriminator gives real and generated pictures the same logits" in lines[0]
    assert "model.discriminator_learning_rate" in lines[0]
    held = file_format.read(tmp_path / "x/last.ckpt")["callbacks"]["Health"]
    names = {"train/logits/real", "train/logits/fake", "train/loss/discriminator"}
    assert held["last"].keys() == names and all(len(values) == 8 for values in held["last"].values())
    assert held["said"] == ["behind"] and held["first"] == []


class NoWaiting(TorchDispatchMode):
    """Inside, a tensor cannot be read as a number, which on a GPU waits for all that it has to do."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "a step waits for the device"
        return func(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(tmp_path) -> None:
    class Watched(Health):
        def on_train_batch_end(self, *arguments) -> None:
            with NoWaiting():
                super().on_train_batch_end(*arguments)

    fit(tmp_path, [health := Watched(window=4)], steps=5, model=Series())
    assert len(health.last["train/loss/pixel"]) == 3 and len(health.pending["train/loss/pixel"]) == 2
    with NoWaiting(), pytest.raises(AssertionError, match="waits"):
        health.read()


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"window=1 \(at least 2\)"):
        Health(window=1)
