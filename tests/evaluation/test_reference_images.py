"""Protocols: captions and real pictures that they take, how those are cut, what is cached, how scores are named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from t2i.checkpoint import registry
from t2i.config.compose import compose
from t2i.evaluation.evaluator import Embeddings, Evaluator, Scores
from t2i.evaluation.generated_images import GeneratedImages
from t2i.evaluation.page import neighbours
from t2i.evaluation.protocols import METRICS, PROTOCOLS, Protocol, fid_name, settle
from t2i.evaluation.reference_images import Reference, augmented, lanczos


def png(width: int, height: int, seed: int) -> bytes:
    held = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(held, "PNG")
    return held.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    lines = []
    for i in range(12):
        (folder / f"{i:02}.png").write_bytes(png(90 + i, 70, i))
        text = [f"picture {i}", f"the {i}th"]
        lines.append({"file_name": f"{i:02}.png", "text": text, "split": "val" if i else "train"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def config(pictures: Path) -> dict[str, Any]:
    words = [f"data.root={pictures}", "data=folder", "images=.", "data.pack=false"]
    made = compose([*words, f"paths.cache={pictures.parent / 'cache'}"], "evaluate")
    return {"data": made["data"], "paths": made["paths"], "seed": 0}


def pixels(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)))


def test_lanczos_and_dfgans_crops() -> None:
    held = pixels(png(100, 70, 0))
    image = Image.fromarray(held)
    square = image.crop((15, 0, 85, 70)).resize((32, 32), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(lanczos(held, 32), np.asarray(square))
    side = round(304 * 32 / 256)
    whole = image.resize((round(100 * side / 70), side), Image.Resampling.BILINEAR)
    chance = (1 << 40) + (3 << 20) + 5
    found = augmented(held, 32, chance)
    top, left = (chance >> 20) % (whole.height - 32 + 1), chance % (whole.width - 32 + 1)
    np.testing.assert_array_equal(found, np.asarray(ImageOps.mirror(whole.crop((left, top, left + 32, top + 32)))))


def test_captions_by_chance_of_the_seed_or_all(pictures: Path) -> None:
    one = Reference(config(pictures), Protocol(None), 32, 0)
    assert len(one.text) == 11 and len(one.numbers) == 11
    assert {text.split()[0] for text in one.text} == {"picture", "the"}
    assert one.text == Reference(config(pictures), Protocol(None), 32, 0).text
    assert one.text != Reference(config(pictures), Protocol(None), 32, 3).text
    some = Reference(config(pictures), Protocol(None, n=4), 32, 0)
    assert len(some.text) == 4 and len(some.numbers) == 11 and set(some.text) < set(one.text)
    every = Reference(config(pictures), Protocol(None, n=None, captions="all"), 32, 0)
    assert len(every.text) == 22 and every.text[:2] == ["picture 1", "the 1th"]
    rounds = Reference(config(pictures), Protocol(None, n=15, captions="rounds"), 32, 0)
    assert rounds.text[:11] == one.text and len(set(rounds.text)) == 15  # then four pictures with their other caption
    assert len(Reference(config(pictures), Protocol(None, n=None, captions="rounds"), 32, 0).text) == 22
    assert not one.shortfalls()
    assert Reference(config(pictures), Protocol("dfgan", n=99, captions="rounds"), 32, 0).shortfalls() == [
        "n=22 instead of 99: the data have no more"]
    assert "COCO of None instead of 2014" in Reference(config(pictures), Protocol("coco30k"), 32, 0).shortfalls()
    cut = Reference(config(pictures), Protocol(None, crop="lanczos"), 32, 0)
    wanted = lanczos(pixels((pictures / "01.png").read_bytes()), 32)
    np.testing.assert_array_equal(cut.picture(0), wanted)
    assert not np.array_equal(one.picture(0), wanted)
    assert len({r.hash() for r in (one, cut, Reference(config(pictures), Protocol(None), 48, 0))}) == 3


class Colours:
    """A feature net: a picture's mean colours and their spread. Counts what it has seen."""

    name, dim = "inception", 6

    def __init__(self, version: int = 1) -> None:
        self.version, self.seen = version, 0

    def __call__(self, held: Any) -> torch.Tensor:
        self.seen += len(held)
        flat = torch.as_tensor(held).float().flatten(1, 2) / 64
        return torch.cat([flat.mean(1), flat.std(1)], 1)

    @property
    def protocol(self) -> dict[str, Any]:
        return {"network": "colours", "version": self.version}


def test_real_statistics_are_computed_once(pictures: Path) -> None:
    net = Colours()
    reference = Reference(config(pictures), Protocol(None), 32, 0)
    first = reference.statistics(net, keep=True)
    assert net.seen == 11 and first.count == 11
    again = reference.statistics(net, keep=True)
    assert net.seen == 11 and torch.equal(again.features, first.features)
    Reference(config(pictures), Protocol(None), 48, 0).statistics(net, keep=True)
    assert net.seen == 22
    other = Colours(2)
    reference.statistics(other, keep=True)
    assert other.seen == 11
    (pictures / "03.png").write_bytes(png(93, 70, 99) + b"\0")
    changed = Reference(config(pictures), Protocol(None), 32, 0)
    assert changed.hash() != reference.hash()
    changed.statistics(net, keep=True)
    assert net.seen == 33


def test_fid_is_called_so_only_with_enough_pictures(pictures: Path) -> None:
    assert (fid_name("fid", 2048, 5000), fid_name("fid", 30000, 2047)) == ("fid", "fid_2047")
    reference = Reference(config(pictures), Protocol(None), 32, 0)
    chunks = [(torch.arange(11), torch.from_numpy(np.stack([reference.picture(i) for i in range(11)])))]
    metrics = ["fid", "kid", "precision_recall"]

    def measured(net: Colours, metrics: list[str], chunks: list[Any]) -> Scores:
        evaluator, scores = Evaluator(metrics, reference, None, net, 0, protocol={"seed": 0}), Scores()
        return evaluator.measure(evaluator.embed(chunks, scores), None, scores)

    found = measured(Colours(), metrics, chunks)
    assert set(found.values) == {"fid_11", "kid", "precision", "recall"} and not found.missing
    assert found.values["fid_11"]["value"] == pytest.approx(0, abs=1e-9) and found.values["precision"]["value"] == 1.0
    assert found.protocols["kid"]["subset_size"] == 5 and found.protocols["fid_11"]["n_real"] == 11
    assert found.protocols["fid_11"]["reference_hash"] == reference.hash() and found.protocols["kid"]["seed"] == 0
    net = Colours()
    net.name = "inception_torchvision"
    assert set(measured(net, ["fid", "kid"], chunks).values) == {"fid_dfgan_11", "kid_dfgan"}
    with pytest.raises(ValueError, match="no pictures to score"):
        measured(net, ["fid"], [])


def test_parts_that_processes_embedded_are_those_of_one(pictures: Path) -> None:
    reference = Reference(config(pictures), Protocol(None), 32, 0)
    evaluator = Evaluator(["fid", "kid"], reference, None, Colours(), 0)
    images = torch.from_numpy(np.stack([reference.picture(i) for i in range(11)]))
    whole = evaluator.embed([(torch.arange(11), images)], Scores())
    parts = [evaluator.embed([(torch.arange(k, 11, 2), images[k::2])], Scores()) for k in (1, 0)]
    merged = Embeddings.merged(parts)
    assert merged.numbers.tolist() == list(range(11))
    assert torch.equal(merged.statistics["inception"].features, whole.statistics["inception"].features)
    quick = Evaluator(["fid"], reference, None, Colours(), 0, intervals=False)
    one, two = (e.measure(merged, None, Scores()).values["fid_11"] for e in (evaluator, quick))
    assert one["value"] == two["value"] == two["low"] == two["high"] and one["high"] > one["value"]


def test_named_protocols_are_settled_with_what_was_changed(capsys: Any) -> None:
    base = compose(["images=."], "evaluate")
    coco, changed = settle({**base, "protocol": "coco30k"}, "t2i.data.coco.COCO")
    assert not changed and coco.n == 30_000 and coco.size == 256 and coco.prefix == "A photo depicts "
    assert coco.clip_model == "openai/clip-vit-base-patch32" and coco.crop == "lanczos" and coco.resize == "clean"
    less, changed = settle({**base, "protocol": "coco30k", "n": 500, "clip_model": "mine"}, "t2i.data.coco.COCO")
    assert less.n == 500 and less.clip_model == "mine"
    assert changed == ["n=500 instead of 30000", "clip_model=mine instead of openai/clip-vit-base-patch32"]
    cub, changed = settle({**base, "protocol": "cub30k", "n": 9, "clip_model": "mine"}, "t2i.data.cub.CUB")
    assert changed == ["n=9 instead of all"] and cub.captions == "all"
    _, changed = settle({**base, "protocol": "shapes", "size": 32, "prefix": "A ", "resize": "antialias"}, None)
    assert changed == ["size=32 instead of the model's", "prefix=A  instead of none",
                       "resize=antialias instead of clean"]
    assert settle({**base, "metrics": "composition"}, None)[0].metrics == ("composition",)  # without brackets
    former, _ = settle({**base, "metrics": ["prc", "fid", "prc_clip"]}, None)
    assert former.metrics == ("precision_recall", "fid", "precision_recall_clip")
    assert "metrics=[prc] is now called precision_recall" in capsys.readouterr().err
    with pytest.raises(ValueError, match="resize=linear: allowed with protocol=null is clean, tensorflow"):
        settle({**base, "resize": "linear"}, None)
    with pytest.raises(ValueError, match="resize=clean: allowed with protocol=dfgan is null"):
        settle({**base, "protocol": "dfgan", "resize": "clean"}, None)
    dfgan, _ = settle({**base, "protocol": "dfgan"}, "t2i.data.cub.CUB")
    assert (dfgan.truncation, dfgan.inception, dfgan.crop) == (0.88, "torchvision", "augmented")
    assert set(PROTOCOLS) == {"shapes", "coco30k", "cub30k", "dfgan"}
    for protocol in PROTOCOLS.values():
        assert set(protocol.metrics) <= set(METRICS)
    with pytest.raises(ValueError, match="protocol=cub30k is of data=cub"):
        settle({**base, "protocol": "cub30k"}, "t2i.data.coco.COCO")


def test_the_nearest_training_pictures_pack_nothing(pictures: Path) -> None:
    held = config(pictures)
    held["data"]["pack"] = True
    task = SimpleNamespace(held=held, config={**held, "ckpt": "last.ckpt"})
    drawn = GeneratedImages.read(pictures, size=16)
    assert neighbours(task, drawn) is None  # the folder is the file's word
    try:
        registry.trust([str(pictures)])
        page = neighbours(task, drawn)
    finally:
        registry.trust([])
    assert page is not None and page.width > 8 * 128
    assert not (pictures.parent / "cache").exists()
