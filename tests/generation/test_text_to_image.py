"""Drawing: seeds, files, best-of-n, completion, and every refusal before the first picture."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from t2i.generation import text_to_image
from t2i.models.prior import Prior
from t2i.text_encoders.limited_warnings import LimitedWarnings
from t2i.viz.grids import to_uint8


class Tokens:
    """A tokenizer whose code is a cell's brightness, 0 to 15."""

    dim, codebook_size, factors, grid, image_size = 4, 16, (16,), (4, 4), 8

    def encode(self, image):
        cells = image.mean(1, keepdim=True).unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5))
        return cells.add(1).mul(7.5).round().long().flatten(1)


class Words:
    """A text encoder that knows dogs."""

    def not_seen(self, caption: str) -> str | None:
        return None if "dog" in caption else "the text encoder does not know it"


class Noise(nn.Module):
    """Draws noise of each seed under a brightness made of the caption's length."""

    kind = "prior"
    options: ClassVar = {"temperature": 0.7, "top_k": None, "top_p": None, "guidance": 1.5, "unconditional": None}
    check_options = Prior.check_options

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.gpt = SimpleNamespace(factors=Tokens.factors)
        self.tokenizer, self.text_encoder, self.calls, self.fail_at = Tokens(), Words(), [], fail_at

    @property
    def device(self):
        return torch.device("cpu")

    def sample(self, text, *, seeds, unconditional=False, temperature=1.0, top_k=None, top_p=None, guidance=1.0,
               given=None, negative=None):
        self.calls.append({"n": len(text), "guidance": guidance, "given": given, "unconditional": unconditional,
                           "negative": negative})
        if self.fail_at is not None and len(self.calls) > self.fail_at:
            raise KeyboardInterrupt
        return torch.stack([torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(s)) * 2 - 1 for s in seeds])


class Brightest:
    def score(self, images, text):
        assert len(images) == len(text)
        return images.mean((1, 2, 3))


def config(tmp_path, **changes):
    cfg = {"ckpt": None, "prompt": "a dog", "prompts": None, "n": 3, "seed": 0, "out": str(tmp_path / "drawn"),
           "unconditional": False, "temperature": 1.0, "top_k": None, "top_p": None, "guidance": 2.0,
           "negative": None, "truncation": None, "batch_size": 2, "steps": None, "schedule": None, "order": None,
           "edit": {"image": None, "mask": None, "box": None, "vary": None, "extend": None, "composite": True},
           "completion": {"image": None, "rows": None}, "best_of": 1, "scorer": None, "nearest": False, "device": "cpu",
           "weights": None,
           "size": None, "trust": [], "paths": {"cache": str(tmp_path / "cache")}}
    assert set(changes) <= set(cfg)
    return {**cfg, **changes}


def test_files_grid_and_record(tmp_path, capsys) -> None:
    (tmp_path / "list.txt").write_text('﻿Un été, "rouge": 50 = 50%\n\n 🐶 \n', encoding="utf-8")
    found = text_to_image.run(config(tmp_path, prompt=None, prompts=str(tmp_path / "list.txt")), Noise())
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == [*(f"000-un-ete-rouge-50-50-{i}.png" for i in range(3)),
                     *(f"001-picture-{i}.png" for i in range(3)),
                     "drawing.json", "grid.png"]
    record = json.loads((tmp_path / "drawn" / "drawing.json").read_text(encoding="utf-8"))
    assert record["pictures"][0]["prompt"] == 'Un été, "rouge": 50 = 50%' and record["pictures"][3]["prompt"] == "🐶"
    assert record["request"]["options"] == {"temperature": 1.0, "guidance": 2.0} and len(found["files"]) == 6
    assert found["grid"] in capsys.readouterr().out


def test_pictures_depend_on_seed_caption_number_and_picture_number_only(tmp_path) -> None:
    def pixels(**changes):
        out = str(tmp_path / str(len(list(tmp_path.iterdir()))))
        found = text_to_image.run(config(tmp_path, out=out, **changes), Noise())
        return [np.array(Image.open(file)) for file in found["files"]]

    first, again, more, other = pixels(), pixels(batch_size=7), pixels(n=5), pixels(seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(first, more, strict=False))
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[0], first[1])


def test_best_of_keeps_the_highest_score(tmp_path) -> None:
    found = text_to_image.run(config(tmp_path, best_of=4, scorer="clip", n=2, batch_size=3), Noise(), Brightest())
    for i, entry in enumerate(found["pictures"]):
        seeds = [text_to_image.picture_seed(0, 0, i, c) for c in range(4)]
        images = Noise().sample([""] * 4, seeds=seeds)
        best = int(images.mean((1, 2, 3)).argmax())
        assert entry["seed"] == seeds[best]
        assert np.array_equal(np.array(Image.open(found["files"][i])), to_uint8(images[best : best + 1])[0])


def test_completion_gives_the_first_rows_of_codes(tmp_path) -> None:
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:10] = 255
    Image.fromarray(picture).save(tmp_path / "half.png")
    model = Noise()
    text_to_image.run(config(tmp_path, completion={"image": str(tmp_path / "half.png"), "rows": 1}), model)
    assert [call["given"].tolist() for call in model.calls] == [[[15] * 4] * 2, [[15] * 4]]
    with pytest.raises(ValueError, match=r"completion\.rows=5: allowed are 1 to 4"):
        text_to_image.run(config(tmp_path, completion={"image": str(tmp_path / "half.png"), "rows": 5}), model)


def test_negative_is_recorded_and_goes_with_every_picture(tmp_path) -> None:
    model = Noise()
    found = text_to_image.run(config(tmp_path, negative=" a cat "), model)
    assert [call["negative"] for call in model.calls] == [["a cat"] * 2, ["a cat"]]
    assert found["request"]["negative"] == "a cat"
    assert "negative" not in text_to_image.run(config(tmp_path, out=str(tmp_path / "b")), model)["request"]


def test_unconditional(tmp_path) -> None:
    model = Noise()
    found = text_to_image.run(config(tmp_path, prompt=None, unconditional=True, n=1), model)
    assert model.calls[0]["unconditional"] and found["files"][0].endswith("000-unconditional-0.png")


def test_what_is_drawn_stays_when_stopped(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        text_to_image.run(config(tmp_path, n=6), Noise(fail_at=2))
    record = json.loads((tmp_path / "drawn" / "drawing.json").read_text())
    assert len(record["pictures"]) == 4 and (tmp_path / "drawn" / "grid.png").is_file()


def test_a_picture_that_cannot_be_written(tmp_path) -> None:
    """A folder in the place of the third picture stands for a full disk: what is there is whole, listed and told."""
    (tmp_path / "drawn" / "000-a-dog-2.png").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"000-a-dog-2\.png could not be written: .*; 2 of 5 pictures are there, whole,"
                                         r" in \S+drawn\. Make room.*same command"):
        text_to_image.run(config(tmp_path, n=5), Noise())
    record = json.loads((tmp_path / "drawn" / "drawing.json").read_text())
    assert [entry["file"] for entry in record["pictures"]] == ["000-a-dog-0.png", "000-a-dog-1.png"]
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == [*(f"000-a-dog-{i}.png" for i in range(3)), "drawing.json", "grid.png"]
    (tmp_path / "drawn" / "000-a-dog-2.png").rmdir()
    assert len(text_to_image.run(config(tmp_path, n=5), Noise())["files"]) == 5


def test_two_at_a_time_do_not_mix_their_pictures(tmp_path) -> None:
    class Slow(Noise):
        def sample(self, text, **options):
            with pytest.raises(ValueError, match=r"out=\S+drawn is being written by process \d+ on .*: wait for it"):
                text_to_image.run(config(tmp_path), Noise())
            assert json.loads((tmp_path / "drawn" / "drawing.json").read_text())["request"]["prompts"] == ["a dog"]
            self.other = text_to_image.run(config(tmp_path, prompt="a cat"), Noise())
            return super().sample(text, **options)

    model = Slow()
    found = text_to_image.run(config(tmp_path, batch_size=16), model)
    assert (found["out"], model.other["out"]) == (str(tmp_path / "drawn"), str(tmp_path / "drawn-2"))
    assert len(list((tmp_path / "drawn").iterdir())) == len(list((tmp_path / "drawn-2").iterdir())) == 5


def test_only_line_feeds_part_prompts(tmp_path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\u2028two\r\n\r\n three\x0bfour\x85\x1cfive\rsix \n".encode())
    assert text_to_image.read_lines(path, "prompts") == ["one\u2028two", "three\x0bfour\x85\x1cfive\rsix"]
    path.write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"prompts=\S+p\.txt cannot be read .*it is UTF-8 text"):
        text_to_image.read_lines(path, "prompts")


def test_another_drawing_is_not_overwritten_and_the_same_is(tmp_path) -> None:
    assert text_to_image.run(config(tmp_path), Noise())["out"] == str(tmp_path / "drawn")
    assert text_to_image.run(config(tmp_path), Noise())["out"] == str(tmp_path / "drawn")
    assert text_to_image.run(config(tmp_path, seed=1), Noise())["out"] == str(tmp_path / "drawn-2")


@pytest.mark.parametrize(("changes", "message"), [
    ({"prompt": "  "}, "prompt=\"\" is empty"),
    ({"prompt": "a caf\udce9"}, r"prompt=a caf\\udce9 is not in UTF-8 at letter 6"),
    ({"prompt": None}, "give prompt="),
    ({"prompts": "x.txt"}, "one of the two"),
    ({"prompt": None, "prompts": "none.txt"}, "prompts=none.txt cannot be read"),
    ({"unconditional": True}, "prompt= is given too"),
    ({"n": 0, "batch_size": 0}, "n=0: allowed are whole numbers from 1; batch_size=0"),
    ({"temperature": -1}, "temperature=-1"),
    ({"temperature": float("inf")}, "temperature=inf"),
    ({"temperature": "hot"}, "temperature='hot'"),
    ({"top_k": 17}, "top_k=17: allowed are 1 to 16"),
    ({"top_k": 2.5}, "top_k=2.5: allowed are whole"),
    ({"top_p": 0}, "top_p=0"),
    ({"guidance": -1}, "guidance=-1"),
    ({"negative": " "}, "negative=\"\" is empty"),
    ({"guidance": float("nan"), "negative": " "}, "guidance=nan: allowed are finite numbers, or null; negative="),
    ({"completion": {"image": ["a"], "rows": 1}}, r"completion\.image=\['a'\]: no such file"),
    ({"negative": "a cat", "guidance": 1}, "negative='?a cat'? works by guidance, and guidance=1 draws without"),
    ({"negative": "a cat", "unconditional": True, "prompt": None}, "and unconditional=true draws without"),
    ({"truncation": 0.5}, "truncation=0.5: a prior has no such option; it has temperature"),
    ({"steps": 8}, "steps=8: a prior has no such option; it has temperature"),
    ({"order": "halton"}, "order=halton: a prior has no such option"),
    ({"best_of": 2}, "best_of=2 needs scorer="),
    ({"completion": {"image": "a.png", "rows": None}}, "give both or none"),
    ({"completion": {"image": "a.png", "rows": 2}}, "completion.image=a.png: no such file"),
    ({"device": "tpu9"}, "device=tpu9"),
    ({"nearest": True}, "nearest=true needs ckpt="),
])
def test_refused_before_anything_is_drawn(tmp_path, changes, message) -> None:
    model = Noise()
    with pytest.raises(ValueError, match=message):
        text_to_image.run(config(tmp_path, **changes), model)
    assert not model.calls and not (tmp_path / "drawn").exists()


def test_a_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    model = Noise()
    with pytest.raises(ValueError, match="cannot be written"):
        text_to_image.run(config(tmp_path, out=str(tmp_path / "file" / "drawn")), model)
    assert not model.calls


def test_draw_from_python() -> None:
    batches = list(text_to_image.draw(Noise(), ["a", "b", "c"], [1, 2, 3], batch_size=2))
    assert [len(batch) for batch in batches] == [2, 1]
    with pytest.raises(ValueError, match="1 prompts but 2 seeds"):
        next(text_to_image.draw(Noise(), ["a"], [1, 2]))


def test_a_style_that_no_training_saw_is_refused() -> None:
    config = {"data": {"styles": ["openmoji_line", "twemoji"]}}
    text_to_image.check_styles(["a pretzel", "an openmoji line drawing of a pretzel"], config, "x.ckpt")
    with pytest.raises(ValueError, match="x.ckpt knows the styles openmoji line, twemoji, not apple"):
        text_to_image.check_styles(["a pretzel in the style of apple"], config, "x.ckpt")
    text_to_image.check_styles(["a pretzel in the style of apple"], {"data": {}}, "x.ckpt")


def test_what_is_not_seen_of_a_caption_is_said_once_before_drawing(tmp_path, capsys) -> None:
    class Telling(Noise):
        def sample(self, text, **options):
            print("drawing", file=sys.stderr)
            LimitedWarnings("words")("said already")
            return super().sample(text, **options)

    (tmp_path / "list.txt").write_text("\n".join(["a dog", "一只猫", "一只猫", "x" * 5000]), encoding="utf-8")
    text_to_image.run(config(tmp_path, prompt=None, prompts=str(tmp_path / "list.txt"), negative="猫"), Telling())
    told = [line for line in capsys.readouterr().err.splitlines() if "caption" in line or line == "drawing"]
    assert told[:4] == [f"caption '{text}': the text encoder does not know it"
                        for text in ("一只猫", "x" * 60 + "…", "猫")] + ["drawing"]
    assert not any("caption" in line for line in told[4:])
    text_to_image.run(config(tmp_path, prompt=None, unconditional=True, out=str(tmp_path / "none")), Noise())
    assert "caption" not in capsys.readouterr().err
