"""`sample.py method=clip_guided` and `method=replay`: files, repeats, stops, refusals."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tests.generation.clip_guided.test_settings import TEXT, clip_folder, make_parts

import t2i
from t2i.checkpoint import building, file_format
from t2i.config.compose import compose
from t2i.convert.tokenizers import load_tokenizer
from t2i.generation.clip_guided import run
from t2i.generation.clip_guided.image_parameters import LatentParameters
from t2i.generation.clip_guided.optimization import Optimization
from t2i.viz.grids import to_uint8

SMALL = [".steps=4", ".show_step=2", ".batch_size=2", "device=cpu"]
PIXELS = [".canvas=pixels", ".image_size=[12,20]"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_parts(tmp_path_factory.mktemp("parts"))


def draw(parts: SimpleNamespace, out: Path, *words: str, clips: str | None = None) -> dict[str, Any]:
    """`words` that begin with a dot are settings of clip_guided."""
    overrides = ["method=clip_guided", f"clip_guided.clips={clips or parts.clip}", *SMALL, f"out={out}", *words]
    overrides = [f"clip_guided{word}" if word.startswith(".") else word for word in overrides]
    return run.run(compose(overrides, "sample"))


def replay(path: Path | str, out: Path) -> dict[str, Any]:
    """Drawn again, of files that are trusted: those of pytest's own folder."""
    root = Path(*out.absolute().parts[:3])
    words = ["method=replay", f"clip_guided.path={path}", f"out={out}", "device=cpu", f"trust=['{root}']"]
    return run.run(compose(words, "sample"))


def pixels(path: Path | str) -> np.ndarray:
    return np.array(Image.open(path))


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_files(parts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = draw(parts, tmp_path / "drawn", f"ckpt={parts.vqgan}", f"prompt={TEXT[0]}:2 | an old map", "n=2",
                 ".learning_rate=1")
    base = "000-a-red-circle-2-an-old-map"
    assert names(tmp_path / "drawn") == sorted(
        [f"{base}-{i}{kind}" for i in range(2)
         for kind in (".gif", ".png", ".safetensors", "/00000.png", "/00002.png", "/00004.png")]
        + ["drawing.json", "grid.png"])
    out = tmp_path / "drawn"
    last = pixels(out / f"{base}-0.png")
    assert last.shape == (16, 16, 3) and np.array_equal(last, pixels(out / f"{base}-0" / "00004.png"))
    assert not np.array_equal(last, pixels(out / f"{base}-0" / "00000.png"))
    assert not np.array_equal(last, pixels(out / f"{base}-1.png"))
    with Image.open(out / f"{base}-0.gif") as film:
        assert film.n_frames == 3 and film.size == (256, 256) and film.info["loop"] == 0
        durations = []
        for k in range(3):
            film.seek(k)
            durations.append(film.info["duration"])
        assert durations == [120, 120, 1440]
    # The latents are those of the picture, and say what they are of.
    file = out / f"{base}-0.safetensors"
    canvas = LatentParameters(load_tokenizer(parts.vqgan), 16, 16, "straight_through", generator=torch.Generator())
    canvas.load_state_dict(load_file(file))
    assert np.array_equal(to_uint8(canvas())[0], last)
    with safe_open(file, "pt") as opened:
        notes = json.loads(opened.metadata()["drawing"])
    assert notes["text"] == f"{TEXT[0]}:2 | an old map" and notes["shape"] == [16, 16]
    assert notes["clip_guided"]["steps"] == 4
    record = json.loads((out / "drawing.json").read_text(encoding="utf-8"))
    assert [entry["file"] for entry in record["pictures"]] == [f"{base}-0.png", f"{base}-1.png"]
    assert record["pictures"][0]["iterations"] == 4 and len(record["pictures"][0]["similarity"]) == 2
    assert record["request"]["hashes"]["checkpoint"] == file_format.file_hash(parts.vqgan)
    assert list(record["request"]["hashes"]["guides"]) == [parts.clip]
    assert found["files"] == [str(out / f"{base}-{i}.png") for i in range(2)]
    said = capsys.readouterr()
    assert found["grid"] in said.out and "similarity" in said.out and "4/4  loss" in said.err


@pytest.mark.parametrize("model", ["vqgan", "prior", None])
def test_watched_from_python_it_ends_as_it_does_here(parts: SimpleNamespace, tmp_path: Path, model: str | None) -> None:
    ckpt = getattr(parts, model) if model else None
    words = [f"ckpt={ckpt}"] if model else PIXELS
    out = draw(parts, tmp_path / "drawn", *words, f"prompt={TEXT[0]}", ".steps=3", "seed=5")
    given: dict[str, Any] = {} if model else {"canvas": "pixels", "image_size": [12, 20]}
    opened = t2i.load(ckpt, device="cpu") if ckpt else None
    given |= {"steps": 3, "show_step": 2, "batch_size": 2}
    way = list(t2i.guided(TEXT[0], parts.clip, opened, seed=5, device="cpu", **given))
    assert [one.step for one in way] == [0, 2, 3]
    assert np.array_equal(np.array(way[-1].image), pixels(out["files"][0]))
    assert np.array_equal(np.array(way[0].image), pixels(Path(out["files"][0]).with_suffix("") / "00000.png"))
    assert [round(way[i].similarity, 5) for i in (0, -1)] == out["pictures"][0]["similarity"]


def test_what_cannot_be_watched_is_one_line(parts: SimpleNamespace) -> None:
    model = t2i.load(parts.vqgan, device="cpu")
    cases: list[tuple[str, Any, dict[str, Any], str]] = [
        ("", model, {}, 'prompt="" is empty'),
        ("a", model, {"step": 3}, r"step=3: guided\(\) has no such setting; it has .*steps"),
        ("a", model, {"film": "gif"}, "film='gif': guided"),
        ("a", model, {"steps": 0}, r"clip_guided\.steps=0: allowed are whole numbers from 1"),
        ("a", model, {"steps": "many"}, r"clip_guided\.steps=many: "),
        ("a", model, {"canvas": "pixels"}, "canvas=pixels has no use for it"),
        ("a", None, {}, r"canvas=vqgan needs ckpt="),
        ("image:nothing.png", None, {"canvas": "pixels"}, r"nothing\.png"),
    ]
    for prompt, given, settings, message in cases:
        with pytest.raises(ValueError, match=message):
            t2i.guided(prompt, parts.clip, given, device="cpu", **settings)


@pytest.mark.parametrize("words", [
    PIXELS, [".canvas=fourier", ".ema=0.9"], [".canvas=siren", ".hidden=8", ".layers=1"],
    ["VQGAN", ".codes=none"], ["VQGAN", ".codes=gumbel", ".jitter=0.1", ".micro_batch=1"],
    ["VQGAN", ".codes=straight_through", ".versus={codes: none, learning_rate: 0.2}"],
    ["PRIOR", "temperature=0.9", "top_k=8"], ["PRIOR", ".start=codes"],
    [*PIXELS, ".start_image=PICTURE", ".images=PICTURE:0.5", ".extras=ink | soft light:0.5"],
], ids=["pixels", "fourier", "siren", "none", "gumbel", "versus", "prior", "codes", "pictures"])  # fmt: skip
def test_a_drawing_again_is_the_same_file(parts: SimpleNamespace, tmp_path: Path, words: list[str]) -> None:
    stands = {"VQGAN": f"ckpt={parts.vqgan}", "PRIOR": f"ckpt={parts.prior}"}
    words = [stands.get(word, word.replace("PICTURE", parts.picture)) for word in words]
    first = draw(parts, tmp_path / "first", f"prompt={TEXT[1]} : 1", "n=1", "seed=7", *words)
    torch.manual_seed(3)
    again = replay(tmp_path / "first" / "drawing.json", tmp_path / "again")
    assert again["request"] == first["request"] and names(tmp_path / "again") == names(tmp_path / "first")
    for name in names(tmp_path / "first"):
        if name != "drawing.json":
            assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "first" / name).read_bytes(), name
    # Of what was drawn again there is a drawing.json that asks for the same, and draws again.
    held, kept = (json.loads((tmp_path / name / "drawing.json").read_text(encoding="utf-8"))
                  for name in ("again", "first"))
    assert held["request"] == kept["request"] and held["pictures"] == kept["pictures"]
    if words == PIXELS:
        third = replay(tmp_path / "again" / "drawing.json", tmp_path / "third")
        assert Path(third["files"][0]).read_bytes() == Path(first["files"][0]).read_bytes()
        assert third["pictures"] == first["pictures"]


def test_names_of_earlier_versions_and_of_notebooks(
    parts: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = {"alpha": 2.0, "beta": 0.25, "w1": 0.5, "w2": 0.75, "total_iter": 2, "im_shape": [12, 20]}
    words = ["guide=clip", f"guide.clips={parts.clip}", "guide.canvas=pixels", *(f"guide.{k}={v}" for k, v in
             old.items()), "guide.versus={beta: 0.0}", "prompt=a, b: c", f"out={tmp_path / 'drawn'}", "device=cpu"]
    cfg = compose(words, "sample")
    assert "note: guide.clips= is called clip_guided.clips= now" in capsys.readouterr().err
    new = {"text_weight": 2.0, "negative_weight": 0.25, "prompt_share": 0.5, "extra_share": 0.75, "steps": 2,
           "image_size": [12, 20]}
    assert cfg["clip_guided"].items() >= new.items() and cfg["prompt"] == "a, b: c" and "guide" not in cfg
    found = run.run(cfg)
    path = tmp_path / "drawn" / "drawing.json"
    record = json.loads(path.read_text())
    config = record["request"]["config"]
    node = config.pop("clip_guided")
    back = dict(zip(new, old, strict=True))
    config["guide"] = {back.get(key, key): value for key, value in node.items()}  # as it was written then
    config["guide"] |= {"_target_": "t2i.guiding.Settings", "versus": {"beta": 0.0}}
    path.write_text(json.dumps(record))
    again = replay(path, tmp_path / "again")
    assert [Path(file).read_bytes() for file in again["files"]] == [Path(f).read_bytes() for f in found["files"]]


def test_another_out_of_the_way_of_another_drawing(parts: SimpleNamespace, tmp_path: Path) -> None:
    words = [*PIXELS, "prompt=a dog", "n=1", ".steps=1"]
    assert draw(parts, tmp_path / "drawn", *words)["out"] == str(tmp_path / "drawn")
    assert draw(parts, tmp_path / "drawn", *words)["out"] == str(tmp_path / "drawn")
    assert draw(parts, tmp_path / "drawn", *words, ".extra_share=0.2")["out"] == str(tmp_path / "drawn-2")


def test_two_settings_side_by_side(parts: SimpleNamespace, tmp_path: Path) -> None:
    found = draw(parts, tmp_path / "drawn", f"ckpt={parts.vqgan}", f"prompt={TEXT[0]}", "n=2",
                 ".versus={codes: none, steps: 2}")
    files = [Path(entry["file"]).stem for entry in found["pictures"]]
    base = "000-a-red-circle"
    assert files == [f"{base}-0", f"{base}-0-versus", f"{base}-1", f"{base}-1-versus"]
    assert [entry["iterations"] for entry in found["pictures"]] == [4, 2, 4, 2]
    assert found["pictures"][0]["seed"] == found["pictures"][1]["seed"] != found["pictures"][2]["seed"]
    one = draw(parts, tmp_path / "one", f"ckpt={parts.vqgan}", f"prompt={TEXT[0]}", "n=1")
    assert Path(one["files"][0]).read_bytes() == Path(found["files"][0]).read_bytes()  # the second changes nothing
    # Three rows of two pictures: start, end, and the second settings' end.
    three, two = pixels(found["grid"]).shape, pixels(one["grid"]).shape
    assert three[0] > 3 * 128 and two[0] < 3 * 128 and three[1] > two[1] + 128


def test_a_canvas_beside_another(parts: SimpleNamespace, tmp_path: Path) -> None:
    found = draw(parts, tmp_path / "drawn", f"ckpt={parts.vqgan}", "prompt=a dog", "n=1", ".canvas=pixels",
                 ".versus={canvas: vqgan, precision: bf16-mixed}")
    assert [pixels(file).shape for file in found["files"]] == [(32, 32, 3), (16, 16, 3)]
    with pytest.raises(ValueError, match=r"clip_guided\.canvas=vqgan needs ckpt="):
        draw(parts, tmp_path / "none", "prompt=a dog", ".canvas=pixels", ".versus={canvas: vqgan}")


def test_start_is_the_priors_sample(parts: SimpleNamespace, tmp_path: Path) -> None:
    found = draw(parts, tmp_path / "drawn", f"ckpt={parts.prior}", f"prompt={TEXT[1]}", "n=1", "temperature=0.9")
    prior = building.load(parts.prior)
    options = {**{k: v for k, v in prior.options.items() if v is not None}, "temperature": 0.9}
    wanted = to_uint8(prior.sample([TEXT[1]], seeds=[found["pictures"][0]["seed"]], **options))[0]
    start = pixels(tmp_path / "drawn" / Path(found["files"][0]).stem / "00000.png")
    assert np.array_equal(start, wanted)


def test_lists_of_prompts_run_one_after_the_other(parts: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{TEXT[0]}\n\n{TEXT[1]} | ink:0.5\n", encoding="utf-8")
    found = draw(parts, tmp_path / "drawn", *PIXELS, f"prompts={tmp_path / 'list.txt'}", "n=1")
    assert [entry["prompt"] for entry in found["pictures"]] == [TEXT[0], f"{TEXT[1]} | ink:0.5"]
    assert [Path(file).name[:3] for file in found["files"]] == ["000", "001"]
    again = replay(tmp_path / "drawn" / "drawing.json", tmp_path / "again")  # the list itself is not needed
    assert [pixels(a).tolist() == pixels(b).tolist() for a, b in zip(found["files"], again["files"], strict=True)] == [
        True, True]


def test_a_bad_caption_of_a_list_is_seen_before_the_first_is_drawn(parts: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a dog\na cat:heavy\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the weight 'heavy' is no number"):
        draw(parts, tmp_path / "drawn", *PIXELS, f"prompts={tmp_path / 'list.txt'}")
    assert not (tmp_path / "drawn").exists()


def test_pictures_and_styles_in_the_place_of_a_prompt(parts: SimpleNamespace, tmp_path: Path) -> None:
    found = draw(parts, tmp_path / "drawn", *PIXELS, f".images={parts.picture}", ".styles=ink",
                 ".excluded=text:0.5", "n=1", f"scorer={parts.other}")
    assert found["pictures"][0]["prompt"] == "" and Path(found["files"][0]).name == "000-picture-0.png"
    assert found["request"]["hashes"]["pictures"] == {parts.picture: file_format.file_hash(parts.picture)}
    words = [*PIXELS, f"prompt=image:{parts.picture}", "n=1", f"scorer={parts.other}"]
    assert not any(key.startswith("score") for key in draw(parts, tmp_path / "image", *words)["pictures"][0])


def test_the_scorer_judges_start_and_end(parts: SimpleNamespace, tmp_path: Path) -> None:
    for scorer, name in ((parts.other, "score"), (parts.clip, "score by the guide")):
        found = draw(parts, tmp_path / Path(scorer).name, *PIXELS, "prompt=a dog", "n=1", f"scorer={scorer}")
        assert len(found["pictures"][0][name]) == 2


def test_several_guides(parts: SimpleNamespace, tmp_path: Path) -> None:
    found = draw(parts, tmp_path / "drawn", ".canvas=pixels", "prompt=a dog", "n=1",
                 clips=f"[{parts.clip},{parts.other}]")
    assert pixels(found["files"][0]).shape == (48, 48, 3)
    assert list(found["request"]["hashes"]["guides"]) == [parts.clip, parts.other]


def test_films(parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(parts, tmp_path / "none", *PIXELS, "prompt=a dog", "n=1", ".film=none")
    assert not list((tmp_path / "none").glob("*.gif"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"clip_guided\.film=mp4 needs the program ffmpeg.*gif and none need nothing"):
        draw(parts, tmp_path / "mp4", *PIXELS, "prompt=a dog", ".film=mp4")
    assert not (tmp_path / "mp4").exists()
    # A program of that name takes all frames, raw.
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nfor last; do :; done\n/bin/cat > \"$last\"\n")
    program.chmod(0o755)
    draw(parts, tmp_path / "mp4", *PIXELS, "prompt=a dog", "n=1", ".film=mp4")
    (film,) = (tmp_path / "mp4").glob("*.mp4")
    height, width = 12 * 21, 20 * 21  # about 256
    assert film.stat().st_size == height * width * 3 * (3 + 11)  # the last stays


def test_shown_in_a_terminal(parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                             capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    draw(parts, tmp_path / "drawn", *PIXELS, "prompt=a dog", "n=1", ".show=true")
    assert capsys.readouterr().out.count("▀") == 3 * 64 * 19  # three pictures of 64 x 38 half blocks


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Ctrl-C in the `call`-th iteration of all."""
    calls, update = [0], Optimization.update

    def stopping(self: Optimization) -> tuple[float, float]:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Optimization, "update", stopping)


@pytest.mark.parametrize("call", [1, 4, 5, 8])
def test_what_is_drawn_stays_when_stopped(
    parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    stop_at(monkeypatch, call)
    with pytest.raises(KeyboardInterrupt):
        draw(parts, tmp_path / "drawn", f"ckpt={parts.vqgan}", f"prompt={TEXT[0]}", "n=3")
    out, whole, steps = tmp_path / "drawn", (call - 1) // 4, (call - 1) % 4
    record = json.loads((out / "drawing.json").read_text(encoding="utf-8"))
    assert [entry["iterations"] for entry in record["pictures"]] == [4] * whole + [steps]
    for entry in record["pictures"]:
        path = out / entry["file"]
        assert pixels(path).shape == (16, 16, 3) and load_file(path.with_suffix(".safetensors"))
        assert Image.open(path.with_suffix(".gif")).size == (256, 256)
        assert np.array_equal(pixels(path), pixels(path.with_suffix("") / f"{entry['iterations']:05}.png"))
    assert (out / "grid.png").is_file() and "seconds" in record
    monkeypatch.undo()
    again = replay(out / "drawing.json", tmp_path / "again")  # all of it
    assert [entry["iterations"] for entry in again["pictures"]] == [4, 4, 4]


def test_stopped_between_two_settings(
    parts: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for call, number in ((2, 1), (6, 2), (10, 3)):
        with monkeypatch.context() as patched:
            stop_at(patched, call)
            with pytest.raises(KeyboardInterrupt):
                draw(parts, tmp_path / str(call), *PIXELS, "prompt=a dog", "n=2", ".versus={jitter: 0.1}")
        record = json.loads((tmp_path / str(call) / "drawing.json").read_text())
        assert len(record["pictures"]) == number and (tmp_path / str(call) / "grid.png").is_file()


def test_patience_ends_it(parts: SimpleNamespace, tmp_path: Path) -> None:
    found = draw(parts, tmp_path / "drawn", *PIXELS, "prompt=a dog", "n=1", ".patience=2", ".steps=50",
                 ".learning_rate=0", ".views=whole", ".noise_factor=0")
    assert found["pictures"][0]["iterations"] < 50
    assert len(list((tmp_path / "drawn" / "000-a-dog-0").iterdir())) >= 2


@pytest.fixture
def drawn(parts: SimpleNamespace, tmp_path: Path) -> SimpleNamespace:
    """A drawing whose files may be changed."""
    for name in ("clip", "vqgan.ckpt", "picture.png"):
        here = Path(parts.root) / name
        (shutil.copytree if here.is_dir() else shutil.copy)(here, tmp_path / name)
    draw(parts, tmp_path / "drawn", f"ckpt={tmp_path / 'vqgan.ckpt'}", f".start_image={tmp_path / 'picture.png'}",
         "prompt=a dog", "n=1", ".steps=1", clips=str(tmp_path / "clip"))
    return SimpleNamespace(root=tmp_path, json=tmp_path / "drawn" / "drawing.json")


def test_a_drawing_is_not_drawn_again_with_other_files(parts: SimpleNamespace, drawn: SimpleNamespace) -> None:
    root, again = drawn.root, drawn.root / "again"
    for name in ("vqgan.ckpt", "picture.png"):
        kept = (root / name).read_bytes()
        (root / name).unlink()
        with pytest.raises(ValueError, match=rf"drew with .*{name}, which is gone"):
            replay(drawn.json, again)
        (root / name).write_bytes(kept + b"\0")
        with pytest.raises(ValueError, match=rf"drew with another .*{name}: its hash was \w{{16}} and is \w{{16}} now"):
            replay(drawn.json, again)
        (root / name).write_bytes(kept)
    shutil.rmtree(root / "clip")
    with pytest.raises(ValueError, match="clip"):
        replay(drawn.json, again)
    clip_folder(root / "clip", seed=5)
    with pytest.raises(ValueError, match=r"clip_guided\.path=.* drew with other weights of .*clip"):
        replay(drawn.json, again)
    assert not again.exists()


def test_what_is_no_drawing_is_not_drawn_again(drawn: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json cannot be read: No such file"):
        replay(tmp_path / "none.json", tmp_path / "again")
    page = tmp_path / "page.json"
    for text in ("<html>", "[]", "{}", '{"request": {"prompts": ["a"], "options": {}}}', "\udcff"):
        page.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ValueError, match=r"clip_guided\.path=.*page\.json is no drawing\.json of clip-guided"):
            replay(page, tmp_path / "again")
    record = json.loads(drawn.json.read_text())
    record["request"]["config"]["clip_guided"]["brush"] = 1
    page.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"another version .*clip_guided\.brush: Settings has no such argument"):
        replay(page, tmp_path / "again")
    with pytest.raises(ValueError, match=r"clip_guided\.path= is needed: the drawing\.json"):
        compose(["method=replay"], "sample")


@pytest.mark.parametrize(("words", "message"), [
    (["prompt="], "prompt is empty"),
    (["prompt=  "], "prompt is empty"),
    ([], "give prompt="),
    (["prompt=a dog | "], "text='' is empty"),
    (["prompt=a dog:heavy"], "the weight 'heavy' is no number"),
    (["prompt=a dog:nan"], "weight=nan of text 'a dog': allowed are finite numbers"),
    (["prompt=image:gone.png"], r"image=gone\.png cannot be read: No such file"),
    (["prompt=a dog", ".images=PAGE"], r"image=.*page\.png cannot be read as a picture"),
    (["prompt=a dog", ".start_image=PAGE"], r"clip_guided\.start_image=.*page\.png cannot be read as a picture"),
    (["prompt=a dog", ".excluded=text:-2"], "excluded: weight=-2"),
    (["prompt=a dog", ".canvas=vqgan"], r"clip_guided\.canvas=vqgan needs ckpt="),
    (["prompt=a dog", "ckpt=VQGAN"], r"ckpt=.*vqgan\.ckpt: clip_guided\.canvas=pixels has no use for it; leave it out"),
    (["prompt=a dog", ".canvas=vqgan", "ckpt=VQGAN", ".image_size=[18,20]"],
     r"clip_guided\.image_size: height=18, width=20: both must be divisible by the tokenizer's factor 4, such as"),
    (["prompt=a dog", ".canvas=vqgan", "ckpt=VQGAN", ".image_size=null", ".start=prior"],
     r"clip_guided\.start=prior needs ckpt=, a prior; this one is a tokenizer"),
    (["prompt=a dog", ".canvas=vqgan", "ckpt=VQGAN", ".image_size=null", "temperature=0.5"],
     r"temperature=0\.5: an option of sampling, and clip-guided drawing has none"),
    (["prompt=a dog", "top_k=3"], r"top_k=3: an option of sampling, and clip-guided drawing has none"),
    (["prompt=a dog", ".canvas=vqgan", "ckpt=PRIOR", ".start=noise", ".image_size=null", "top_p=0.5"],
     r"top_p=0\.5: an option of sampling.*clip_guided\.start=prior it is that prior's"),
    (["prompt=a dog", ".canvas=vqgan", "ckpt=PRIOR", ".image_size=null", "truncation=0.5"],
     r"truncation=0\.5: a prior has no such option"),
    (["prompt=a dog", ".canvas=vqgan", "ckpt=PRIOR", ".image_size=null", "top_k=99"], r"top_k=99: allowed are"),
    (["prompt=a dog", ".canvas=vqgan", "ckpt=PRIOR"],
     r"clip_guided\.image_size=\[12, 20\]: a prior draws 16 x 16 pixels"),
    (["prompt=image:PICTURE", ".canvas=vqgan", "ckpt=PRIOR", ".image_size=null"],
     r"clip_guided\.start=prior draws for a text, and the first prompt is a picture, .*picture\.png"),
    (["prompt=a dog", ".canvas=vqgan", "ckpt=PAGE", ".image_size=null"], r"page\.png"),
    (["prompt=a dog", "ckpt=gone.ckpt", ".canvas=vqgan"], r"ckpt=gone\.ckpt: no such file"),
    (["prompt=a dog", ".start=codes"], r"clip_guided\.start=codes needs clip_guided\.canvas=vqgan"),
    (["prompt=a dog", ".versus={clips: x}"], r"clip_guided\.versus\.clips: there is no such setting; allowed are"),
    (["prompt=a dog", ".versus={canvas: oil}"], r"clip_guided\.versus\.canvas=oil: one of vqgan, pixels"),
    (["prompt=a dog", ".versus={beta: much}"], r"clip_guided\.versus\.negative_weight=much: a number is needed"),
    (["prompt=a dog", ".versus={ema: 1}"], r"clip_guided\.ema=1: allowed are numbers from 0"),
    (["prompt=a dog", ".ema=1.0"], r"clip_guided\.ema=1\.0: allowed are numbers from 0"),
    (["prompt=a dog", ".learning_rate=fast"], r"clip_guided\.learning_rate=fast: a number or null is needed"),
    (["prompt=a dog", ".loss=l2"], r"clip_guided\.loss=l2: one of cosine, spherical"),
    (["prompt=a dog", ".canvas=oil"], r"clip_guided\.canvas=oil: one of vqgan, pixels, fourier, siren"),
    (["prompt=a dog", ".steps=0", ".batch_size=0"], r"clip_guided\.steps=0: allowed(.|\n)*batch_size=0"),
    (["prompt=a dog", ".image_size=[16]"], r"clip_guided\.image_size=\[16\]"),
    (["prompt=a dog", ".brush=1"], r"clip_guided\.brush: there is no such key"),
    (["prompt=a dog", "unconditional=true"], "prompt= is given too"),
    (["unconditional=true"], r"unconditional=True: clip-guided drawing has no such option"),
    (["prompt=a dog", "best_of=4"], r"best_of=4: clip-guided drawing has no such option"),
    (["prompt=a dog", "nearest=true"], r"nearest=True: clip-guided drawing has no such option"),
    (["prompt=a dog", "completion.image=PICTURE"], r"completion\.image=.*: clip-guided drawing has no such option"),
    (["prompt=a dog", ".clips=gone"], r"the CLIP 'gone'"),
])  # fmt: skip
def test_refused_before_anything_is_drawn(
    parts: SimpleNamespace, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "page.png").write_text("<html>404</html>")
    for name, path in (("PAGE", tmp_path / "page.png"), ("PICTURE", parts.picture), ("VQGAN", parts.vqgan),
                       ("PRIOR", parts.prior)):
        words = [word.replace(name, str(path)) for word in words]
    with pytest.raises(ValueError, match=message):
        draw(parts, tmp_path / "drawn", *PIXELS, *words)
    assert not (tmp_path / "drawn").exists()


def test_clips_are_needed() -> None:
    with pytest.raises(ValueError, match=r"clip_guided\.clips= is needed: the CLIP that guides"):
        compose(["method=clip_guided", "prompt=a dog"], "sample")


def test_a_drawing_json_says_neither_where_to_write_nor_what_to_fetch(drawn: SimpleNamespace) -> None:
    root, held = drawn.root, json.loads(drawn.json.read_text())
    config = held["request"]["config"]
    config |= {"out": str(root / "elsewhere"), "trust": ["os"], "paths": {"runs": "/", "cache": "/"}, "unknown": 1}
    config["clip_guided"]["_target_"] = "t2i.checkpoint.atomic.write_text"
    drawn.json.write_text(json.dumps(held))
    again = replay(drawn.json, root / "again")
    assert Path(again["out"]) == root / "again" and not (root / "elsewhere").exists()
    words = ["method=replay", f"clip_guided.path={drawn.json}", f"out={root / 'third'}", "device=cpu"]
    with pytest.raises(ValueError, match=r"opens .*clip; a file's word opens nothing.*trust=\["):
        run.run(compose(words, "sample"))
    for key, value in {"prompts": [1], "checkpoint": 5, "config": {**config, "n": "x"},
                       "hashes": {"guides": []}}.items():
        drawn.json.write_text(json.dumps({"request": {**held["request"], key: value}}))
        with pytest.raises(ValueError, match="is no drawing.json of clip-guided drawing"):
            replay(drawn.json, root / "third")
    drawn.json.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="drawing.json cannot be read: it is nested too deeply"):
        replay(drawn.json, root / "third")
    drawn.json.write_text(json.dumps(held))
    (root / "picture.png").unlink()
    os.mkfifo(root / "picture.png")  # reading it would never end
    with pytest.raises(ValueError, match=r"drew with .*picture\.png, which is gone"):
        replay(drawn.json, root / "third")
