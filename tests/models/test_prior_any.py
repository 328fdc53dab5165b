"""The prior that draws in any order: training, checkpoint, options."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.in_child import differing, in_child, result
from tests.models.test_prior import SIZES, TEXT, config, fit, made, toy  # noqa: F401

from t2i.checkpoint import atomic, building, file_format
from t2i.config.compose import compose
from t2i.models.any_order import halton_order
from t2i.models.distributed import step_random
from t2i.models.prior import Prior
from t2i.models.prior_any import PriorAny
from t2i.training import train


def any_config(made) -> dict:  # noqa: F811
    return {**config(made), "_target_": "t2i.models.prior_any.PriorAny", "num_layers": 2}


def prior(made, **changes) -> PriorAny:  # noqa: F811
    torch.manual_seed(0)
    return building.build({**any_config(made), **changes})


@pytest.mark.parametrize("caption", ["prefix", "keys"])
def test_the_loss_falls_and_the_captions_draw_their_codes_in_any_steps(made, toy, tmp_path, caption) -> None:  # noqa: F811
    model = prior(made, caption_dropout=0.0, max_steps=120, caption=caption)
    trainer, losses = fit(model, tmp_path, [toy] * 120, 120)
    assert losses[0] == pytest.approx(torch.tensor(16.0).log().item(), abs=0.2) and losses[-1] < 0.3
    assert trainer.callback_metrics["val/loss"] < trainer.callback_metrics["val/loss_without_caption"]
    for options in ({"steps": 16}, {"steps": 4, "order": "confidence"}, {"order": "random", "schedule": "cosine"}):
        drawn = model.sample(TEXT, seeds=[0, 1, 2, 3], temperature=0.0, **options)
        assert torch.equal(drawn, model.tokenizer.decode_ids(toy.ids))


def test_orders_are_of_the_step_and_shared_out_between_ranks(made, toy, monkeypatch) -> None:  # noqa: F811
    model = prior(made, code_dropout=0.5)
    torch.manual_seed(7)
    shown, masked, order = model.shown(toy.ids, step_random(model, 4))
    assert order.sort(1).values.tolist() == [list(range(16))] * 4 and not torch.equal(order[0], order[1])
    torch.manual_seed(7)
    before = Prior.shown(model, toy.ids, step_random(model, 4))
    assert torch.equal(before[0], shown) and torch.equal(before[1], masked)
    monkeypatch.setattr(Prior, "shared_seed", 7, raising=False)
    monkeypatch.setattr("t2i.models.distributed.is_distributed", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        assert torch.equal(model.shown(toy.ids[rank::2], step_random(model, 2))[2], order[rank::2])


def test_half_of_training_is_in_the_order_of_drawing_and_a_quarter_as_in_edits(made) -> None:  # noqa: F811
    model, halton = prior(made), halton_order((4, 4))
    numbers = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    drawing, edit, free = model.orders(torch.tensor([[0.49], [0.74], [0.75]]), torch.full((3, 1), 0.4), numbers)
    assert torch.equal(drawing, halton)
    known = numbers[1, halton] < 0.4  # in Halton's order, and so is what is drawn after it
    assert torch.equal(edit, torch.cat([halton[known], halton[~known]])) and 0 < known.sum() < 16
    assert torch.equal(free, numbers[2].argsort())


def test_validation_is_the_same_every_time(made, toy) -> None:  # noqa: F811
    model = prior(made).eval()
    torch.nn.init.normal_(model.gpt.predict.first.weight)
    null = torch.zeros(4, dtype=torch.bool)
    torch.nn.init.normal_(model.gpt.blocks[1].attention_out.weight)
    first = model.loss(toy, null)
    assert torch.equal(model.loss(toy, null), first)
    raster = torch.arange(16).expand(4, -1)
    assert not torch.equal(model.loss(toy, null, None, None, raster), first)


def test_its_checkpoint_draws_alone_and_is_no_raster_prior(made, toy, tmp_path) -> None:  # noqa: F811
    model, path = prior(made), tmp_path / "any.ckpt"
    fit(model, tmp_path, [toy] * 3, 3)
    held = {"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": any_config(made)})}
    atomic.save_atomic(held, path)
    options = {"seeds": [3, 4, 5, 6], "guidance": 2.0, "top_k": 8, "steps": 5}
    again = building.load(path, kind="prior_any")
    assert torch.equal(again.sample(TEXT, **options), model.sample(TEXT, **options))
    with pytest.raises(ValueError, match="holds a prior_any; a prior is wanted"):
        building.load(path, kind="prior")


def test_pictures_depend_on_caption_and_seed_alone(made) -> None:  # noqa: F811
    model = prior(made)
    torch.nn.init.normal_(model.gpt.predict.first.weight)
    together = model.sample(TEXT, seeds=[1, 2, 3, 4])
    assert torch.equal(model.sample(TEXT[2:], seeds=[3, 4]), together[2:])
    assert not torch.equal(model.sample(TEXT, seeds=[5, 6, 7, 8]), together)


def test_known_codes_stay_and_the_first_rows_are_completed(made, toy) -> None:  # noqa: F811
    model = prior(made)
    torch.nn.init.normal_(model.gpt.predict.first.weight)
    known = torch.tensor([True, False, False, True] * 4)
    found = model.codes(TEXT, seeds=[1, 2, 3, 4], given=toy.ids[:, known], known=known)
    assert torch.equal(found[:, known], toy.ids[:, known]) and not torch.equal(found, toy.ids)
    found = model.codes(TEXT, seeds=[1, 2, 3, 4], given=toy.ids[:, :8], guidance=2.0, negative=TEXT[::-1])
    assert torch.equal(found[:, :8], toy.ids[:, :8])


@pytest.mark.parametrize("options, message", [
    ({"steps": 0}, "steps=0: allowed are whole numbers from 1 to 16"),
    ({"steps": 17, "order": "x"}, "steps=17.*; order=x: allowed are halton, random, confidence"),
    ({"schedule": "sine", "temperature": -1}, "schedule=sine: allowed are .*; temperature=-1"),
    ({"rows": 3}, "rows is no option of the prior; allowed are .* steps, schedule, order, known"),
])  # fmt: skip
def test_options_out_of_range_name_what_is_allowed(made, options, message) -> None:  # noqa: F811
    with pytest.raises(ValueError, match=message):
        prior(made).sample(TEXT, **{"seeds": [1, 2, 3, 4], **options})
    assert SIZES["num_layers"] == 1
    with pytest.raises(ValueError, match="num_layers=1: at least 2"):
        prior(made, num_layers=1)


def test_killed_in_training_the_same_command_gives_what_an_unbroken_run_gives(made, tmp_path: Path) -> None:  # noqa: F811
    vqgan = compose([*tiny.TOKENIZER, "model.discriminator=null", "data.image_size=32"], files=False)
    model = building.build(vqgan["model"])
    held = {"state_dict": model.state_dict(), "t2i": file_format.pack(model, vqgan)}
    atomic.save_atomic(held, tmp_path / "vqgan.ckpt")
    words = ["model=prior_any", *tiny.TRANSFORMER, "model.num_layers=2", "model.dropout=0.1", "model.code_dropout=0.5",
             f"model.tokenizer.path={tmp_path / 'vqgan.ckpt'}", f"text_encoder.path={made.hf}", *tiny.DATA,
             *tiny.TRAINER, *tiny.QUIET, "trainer.max_steps=7", f"paths.runs={tmp_path / 'runs'}",
             f"paths.cache={tmp_path / 'cache'}",
             "callbacks.ema={_target_: t2i.training.callbacks.ema.EMA, modules: [gpt], decay: 0.9}"]
    train.run(compose([*words, "name=whole"]))
    original = PriorAny.training_step

    def struck(self: PriorAny, *given: object) -> torch.Tensor:
        if self.global_step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *given)

    def broken() -> None:
        PriorAny.training_step = struck
        train.run(compose([*words, "name=x"]))

    assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
    train.run(compose([*words, "name=x"]))
    assert not differing(result(tmp_path / "runs/whole"), result(tmp_path / "runs/x"))
