"""The page through its API: the pictures of `sample.py`, and again from their JSON; what is refused, in a line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image
from tests.app.served import PROMPT, SIDE

from t2i.app.record import Request
from t2i.app.settings import AppSettings
from t2i.app.studio import Studio
from t2i.config.compose import compose
from t2i.generation import text_to_image
from t2i.generation.clip_guided import run as clip_guided_run
from t2i.generation.text_to_image import picture_seed
from t2i.models.prior import Prior
from t2i.nets.cpu_linear import obstacle

SIDES = {"left": 0, "top": 0, "right": 0, "bottom": 0}
FIELDS = {"temperature": 0.7, "guidance": 1.5, "steps": 0, "top_k": 0, "top_p": 0, "weights": "as trained",
          "negative": ""}


@pytest.fixture(scope="module")
def client(address: str, tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(address, verbose=False, analytics_enabled=False, download_files=str(tmp_path_factory.mktemp("got")))


def drawn(client: Client, parts: SimpleNamespace, prompt: str = PROMPT, seed: Any = 3, n: Any = 2, **more: Any) -> Any:
    """Pictures, line and files; `more` are fields of the first prior, as `FIELDS` has them."""
    return client.predict(**asked(parts, prompt, seed, n, **more), api_name="/draw")


def asked(parts: SimpleNamespace, prompt: Any, seed: Any, n: Any, **more: Any) -> dict[str, Any]:
    values = {**FIELDS, **more}
    return {"checkpoint": parts.any, "prompt": prompt, "seed": seed, "n": n,
            **values, **{f"{name}_2": value for name, value in FIELDS.items() if name != "steps"}}


@pytest.fixture(scope="module")
def held(client: Client, parts: SimpleNamespace) -> dict[str, Any]:
    """What the JSON of a drawing says."""
    return json.loads(Path(drawn(client, parts)[2][1]).read_text())


def pixels(path: str | Path) -> np.ndarray:
    return np.array(Image.open(path))


def painted(client: Client, folder: Path, picture: Path, mask: Path | None) -> dict[str, Any]:
    """The editor's value once a picture is chosen."""
    client.predict(handle_file(picture), api_name="/open_picture")
    layers = [] if mask is None else [handle_file(mask)]
    return {"background": handle_file(picture), "layers": layers, "composite": None}


def edited(client: Client, parts: SimpleNamespace, value: Any, way: str = "Draw the painted part anew", **more: Any
           ) -> Any:
    values = {**SIDES, "prompt": PROMPT, "seed": 1, "n": 2, "steps": 0, **more}
    return client.predict(checkpoint=parts.any, painted=value, way=way, **values, api_name="/edit")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).integers(256, size=(SIDE, SIDE, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def layer(path: Path, size: tuple[int, int] = (64, 64), box: tuple[int, int, int, int] = (0, 0, 32, 32)) -> Path:
    made = Image.new("RGBA", size)
    made.paste((255, 64, 160, 178), box)
    made.save(path)
    return path


def test_the_page_draws_what_sample_py_draws(client, parts, tmp_path) -> None:
    _, status, files = drawn(client, parts)
    words = [f"ckpt={parts.any}", f"prompt={PROMPT}", "n=2", "seed=3", f"out={tmp_path / 'drawn'}", "device=cpu"]
    made = text_to_image.run(compose(words, "sample"))
    assert [Path(file).name for file in files[::2]] == [Path(file).name for file in made["files"]]
    assert [Path(a).read_bytes() for a in files[::2]] == [Path(b).read_bytes() for b in made["files"]]
    held = json.loads(Path(files[3]).read_text())
    assert (held["hash"], held["request"]["seed"], held["number"]) == (made["request"]["hash"], 3, 1)
    assert held["picture_seed"] == picture_seed(3, 0, 1) and "2 pictures" in status
    files = client.predict(prompt=PROMPT, guidance=2, api_name="/draw")[2]  # the others as the page has them
    assert len(files) == 8 and json.loads(Path(files[1]).read_text())["request"]["options"]["guidance"] == 2


@pytest.mark.skipif(obstacle("int8", torch.device("cpu")) is not None, reason="not on this CPU")
def test_a_prior_in_int8_draws_what_sample_py_draws_and_as_trained_again_after_it(client, parts, tmp_path) -> None:
    before, quick = drawn(client, parts)[2], drawn(client, parts, weights="int8")[2]
    words = [f"ckpt={parts.any}", f"prompt={PROMPT}", "n=2", "seed=3", f"out={tmp_path / 'drawn'}", "device=cpu",
             "weights=int8"]
    made = text_to_image.run(compose(words, "sample"))["files"]
    assert [Path(a).read_bytes() for a in quick[::2]] == [Path(b).read_bytes() for b in made]
    assert json.loads(Path(quick[1]).read_text())["request"]["options"]["weights"] == "int8"
    assert client.predict(handle_file(quick[3]), api_name="/draw_again")[1].endswith("byte for byte.</span>")
    assert [Path(a).read_bytes() for a in drawn(client, parts)[2][::2]] == [Path(b).read_bytes() for b in before[::2]]


def test_weights_that_a_device_or_a_model_has_not_are_refused(parts, monkeypatch) -> None:
    studio = Studio(AppSettings((parts.any, parts.vqgan)))
    with pytest.raises(ValueError, match="^weights=bf16: a vqgan has no such option; a prior has"):
        studio.weighted(parts.vqgan, "bf16")
    monkeypatch.setattr(Prior, "device", torch.device("cuda"))
    with pytest.raises(ValueError, match="^weights=int8: its kernels are the CPU's, and this draws on cuda"):
        next(studio.run(parts.any, Request("draw", PROMPT, options={"weights": "int8"})))
    assert studio.quick is None


def test_pictures_appear_while_they_are_drawn(client, parts) -> None:
    job = client.submit(**asked(parts, PROMPT, 0, 1), api_name="/draw")
    job.result()
    first, *_, last = job.outputs()
    assert "of 16 codes" in first[1] and first[2] is None and "1 picture" in last[1]
    assert (pixels(first[0][0]["image"]) == 128).all(-1).any(), "what is not drawn yet is grey"
    assert np.array_equal(pixels(last[0][0]["image"]), pixels(last[2][0]))


@pytest.mark.parametrize("way", ["draw", "edit", "guided"])
def test_a_pictures_json_draws_it_again_byte_for_byte(client, parts, picture, tmp_path, way) -> None:
    if way == "draw":
        files = drawn(client, parts, n=3, temperature=1.1, guidance=2.0)[2]
    elif way == "edit":
        files = edited(client, parts, painted(client, tmp_path, picture, layer(tmp_path / "mask.png")))[2]
    else:
        files = client.predict(parts.any, PROMPT, "vqgan", "prior", 2, 3, 0, api_name="/guided")[3]
    shown, status, again = client.predict(handle_file(files[-1]), api_name="/draw_again")
    assert status.endswith("<span>The same picture, byte for byte.</span>") and len(shown) == 1
    assert [Path(a).read_bytes() for a in again] == [Path(b).read_bytes() for b in files[-2:]]


def test_what_is_not_painted_stays(client, parts, picture, tmp_path) -> None:
    files = edited(client, parts, painted(client, tmp_path, picture, layer(tmp_path / "mask.png")))[2]
    before = pixels(picture)
    for file in files[::2]:
        after, half = pixels(file), SIDE // 2
        assert np.array_equal(after[half:], before[half:]) and np.array_equal(after[:, half:], before[:, half:])
        assert not np.array_equal(after[:half, :half], before[:half, :half])
    value = painted(client, tmp_path, picture, None)
    wider = edited(client, parts, value, "More around it", left=0, top=4, right=8, bottom=0)[2]
    assert pixels(wider[0]).shape == (SIDE + 4, SIDE + 8, 3)
    assert len(edited(client, parts, value, "Variations", share=0.5)[2]) == 4


def test_guided_drawing_moves_from_before_to_now(client, parts, tmp_path) -> None:
    before, now, status, files = client.predict(parts.any, PROMPT, "pixels", "noise", 5, 4, 0, api_name="/guided")
    assert pixels(before).shape == pixels(now).shape and not np.array_equal(pixels(before), pixels(now))
    words = ["method=clip_guided", f"clip_guided.clips={parts.clip}", "clip_guided.canvas=pixels", "seed=5",
             "clip_guided.steps=4", f"prompt={PROMPT}", "device=cpu", f"out={tmp_path / 'guided'}"]
    made = clip_guided_run.run(compose(words, "sample"))
    assert Path(files[0]).read_bytes() == Path(made["files"][0]).read_bytes() and "before" in status


def test_checkpoints_are_compared_under_the_same_seeds(client, parts) -> None:
    found = client.predict(PROMPT, 3, 2, api_name="/compare")
    assert [len(files) for files in found[2:4]] == [4, 4]
    assert Path(found[2][0]).read_bytes() == Path(drawn(client, parts)[2][0]).read_bytes()


def test_runs_are_shown(client, parts) -> None:
    line, pictures, table = client.predict("group/one", api_name="/show_run")
    assert line.startswith("finished; 1 pictures") and len(pictures) == 1 and table["data"] == [["val/<b>psnr", "31.5"]]


def test_two_people_do_not_break_each_other(address, client, parts) -> None:
    other = Client(address, verbose=False, analytics_enabled=False)
    jobs = [each.submit(**asked(parts, PROMPT, seed, 1), api_name="/draw")
            for seed in range(3) for each in (client, other)]
    hashes = [json.loads(Path(job.result()[2][1]).read_text())["pixels"] for job in jobs]
    assert hashes[::2] == hashes[1::2] and len(set(hashes)) == 3


def test_what_cannot_be_drawn_is_one_line(client, parts) -> None:
    for fields, match in (
        ({"prompt": " "}, 'prompt=&quot;&quot; is empty: write what to draw'),
        ({"prompt": "red " * 2500}, "prompt has 10,000 letters; at most 2,000 are taken"),
        ({"seed": -1}, "Value -1 is less than minimum value 0"),
        ({"seed": None}, "seed=None: allowed are"),
        ({"n": 2.5}, "n=2.5: allowed are whole numbers from 1 to 16"),
        ({"steps": 99}, "steps=99: allowed are whole numbers from 1 to 16"),
        ({"top_k": -1}, "top_k=-1: allowed are 1 to"),
        ({"top_p": 7.0}, "top_p=7.0: allowed are"),
        ({"guidance": 1, "negative": "blue"}, "negative=blue works by guidance"),
    ):
        with pytest.raises(AppError) as caught:
            drawn(client, parts, **fields)
        assert match in str(caught.value) and "\n" not in str(caught.value), fields
    assert len(drawn(client, parts, n=1)[2]) == 2, "the server keeps serving"


def changed(held: dict[str, Any], **changes: Any) -> dict[str, Any]:
    request = {key: value for key, value in changes.items() if key in held["request"]}
    return {**held, **{key: value for key, value in changes.items() if key not in request},
            "request": {**held["request"], **request}}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hash": "0" * 16}, "of hash 0000000000000000; this page has"),
        ({"checkpoint": "/etc/passwd", "hash": None}, "checkpoint=None: this page was started with"),
        ({"number": 7}, "the JSON was changed: number=7 of n=2 pictures"),
        ({"picture_seed": 5}, "the JSON was changed: picture_seed=5 is not that of picture 0 of seed=3"),
        ({"seed": "1"}, "the JSON was changed: request.seed is '1'; a whole number is wanted"),
        ({"way": "shell"}, "request.way='shell'; allowed are draw, edit, guided"),
        ({"n": 10**9}, "number=0 of n=1000000000 pictures, at most 16"),
        ({"options": {"path": "x"}}, "path: there is no such option"),
        ({"options": {"temperature": -1}}, "temperature=-1: allowed are numbers &gt;= 0"),
        ({"options": {"temperature": []}}, "request.options.temperature is []"),
        ({"options": {"guidance": 1e30}}, "guidance=1e+30: allowed on the page are numbers from 0 to 10"),
        ({"options": {"temperature": 2.5}}, "temperature=2.5: allowed on the page are numbers from 0 to 2"),
        ({"options": {"weights": "int4"}}, "weights=int4: allowed are bf16, int8, or null (as trained)"),
        ({"clips": "x"}, "clips is no key of it"),
        ({"way": "edit", "edit": {"way": "paint", "image": "AAAA", "mask": "AAAA"}}, "the picture is no picture"),
        ({"way": "edit", "edit": {"way": "paint", "image": "/etc/passwd"}}, "paint takes way, image and mask"),
        ({"way": "guided", "options": {"clips": "/etc"}, "n": 1}, "clips: there is no such option"),
    ],
)
def test_a_json_changed_by_hand_is_one_line(client, held, tmp_path, changes, match) -> None:
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(changed(held, **changes)))
    with pytest.raises(AppError) as caught:
        client.predict(handle_file(path), api_name="/draw_again")
    assert match in str(caught.value).replace("&#x27;", "'")


def test_another_request_in_the_json_is_drawn_and_said(client, held, tmp_path) -> None:
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(changed(held, seed=4, picture_seed=picture_seed(4, 0, 0))))
    assert "Not the same bytes as the JSON says" in client.predict(handle_file(path), api_name="/draw_again")[1]
    path.write_text("[" * 5000)
    with pytest.raises(AppError, match="the JSON cannot be read"):
        client.predict(handle_file(path), api_name="/draw_again")


def test_uploads_that_are_no_pictures_are_one_line(client, parts, tmp_path, picture) -> None:
    text, large, small = tmp_path / "text.png", tmp_path / "large.png", tmp_path / "small.png"
    text.write_text("#!/bin/sh\necho no picture\n")
    Image.new("1", (10_000, 10_000)).save(large)
    Image.new("RGB", (4, 4)).save(small)
    for path, match in ((text, "the picture is no picture, or of an unknown format"),
                        (large, "the picture is too large: at most 16,000,000 pixels in all are taken")):
        with pytest.raises(AppError, match=match):
            client.predict(handle_file(path), api_name="/open_picture")
    value = painted(client, tmp_path, picture, layer(tmp_path / "other.png", (64, 32)))
    blank = layer(tmp_path / "none.png", box=(0, 0, 0, 0))
    for change, match in (({"layers": [handle_file(blank)]}, "nothing is painted"),
                          ({}, "the mask has 64 x 32 pixels, another aspect than the picture's 16 x 16"),
                          ({"layers": [handle_file(text)]}, "the picture or its mask is no picture"),
                          ({"layers": [handle_file(large)]}, "the picture or its mask is no picture, or too large")):
        with pytest.raises(AppError) as caught:
            edited(client, parts, {**value, **change})
        assert match in str(caught.value).replace("&#x27;", "'")
    with pytest.raises(AppError, match="4 x 4 pixels; at least 16 x 16 are needed"):
        edited(client, parts, painted(client, tmp_path, small, layer(tmp_path / "mask.png")))


def test_a_prompt_opens_no_file(client, parts) -> None:
    with pytest.raises(AppError, match="image:… names a file, and the page opens none"):
        client.predict(parts.any, f"image:{parts.picture}", "pixels", "noise", 0, 2, 0, api_name="/guided")
