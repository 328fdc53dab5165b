"""evaluate.py end to end on tiny models: names, protocols, restart, folders of pictures, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import tiny
from tests.gallery import gallery
from torch import Tensor

from t2i.checkpoint.lock import exclusive
from t2i.config.compose import ConfigError, compose
from t2i.data.seeds import derive_seed as seed_number
from t2i.evaluation import evaluate, nearest_render
from t2i.evaluation.composition import listed
from t2i.evaluation.evaluator import Evaluator
from t2i.evaluation.feature_models import involvement
from t2i.evaluation.generated_images import GeneratedImages, draw
from t2i.evaluation.tokenizer import metric_of
from t2i.metrics.clip_score import CLIPScorer
from t2i.models.clip import CLIP
from t2i.models.prior import Prior
from t2i.training import train

SIZES = {"width": 16, "num_heads": 2, "num_layers": 1, "text_width": 16, "text_layers": 1, "text_heads": 2}
MODEL = [*tiny.DFGAN, *tiny.DATA, *tiny.TRAINER, *tiny.QUIET, "data.size=64", "trainer.max_steps=2",
         "trainer.val_every_steps=2"]


def clip_folder(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    model = CLIP(image_size=16, patch_size=8, embed_dim=12, vocab_size=270, context_length=77, **SIZES)
    model.prepare(["a red circle", "two blue squares above a ring"])
    model.export(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DF-GAN of two steps in runs/gan, its CLIP in `own`, another in `judge`."""
    folder = tmp_path_factory.mktemp("evaluation")
    own = clip_folder(folder / "own", 0)
    clip_folder(folder / "judge", 1)
    train.run(compose([*MODEL, f"text_encoder.path={own}", "name=gan", f"paths.runs={folder / 'runs'}",
                        f"paths.cache={folder / 'cache'}"]))
    return folder


def config(place: Path, *words: str) -> dict[str, Any]:
    return compose([f"paths.cache={place / 'cache'}", "n_per_task=2", "n=24", *words], "evaluate")


def ckpt(place: Path) -> str:
    return f"ckpt={place / 'runs/gan/last.ckpt'}"


ALL = "metrics=[composition,fd_clip,kd_clip,precision_recall_clip,clip_score,r_precision]"


def test_every_score_has_its_protocol_and_the_page_shows_it(place: Path, tmp_path: Path, capsys: Any) -> None:
    result = evaluate.run(config(place, ckpt(place), ALL, f"clip_model={place / 'judge'}", f"out={tmp_path}"))
    scores, protocols = result["scores"], result["protocols"]
    single = {name for name, entry in scores.items() if "value" in entry}
    assert single == {"composition_seen", "composition_heldout", "fd_clip", "kd_clip", "precision_clip", "recall_clip",
                      "clip_score", "r_precision"} == set(protocols)
    for name in single:
        assert scores[name]["low"] <= scores[name]["value"] <= scores[name]["high"], name
        assert scores[name]["n"] == (12 if name == "composition_seen" else 24) or name == "composition_heldout"
    judge = CLIPScorer(str(place / "judge"))
    assert protocols["fd_clip"]["n_fake"] == protocols["fd_clip"]["n_real"] == 24
    assert judge.id in json.dumps(protocols["fd_clip"]) and judge.id in json.dumps(protocols["clip_score"])
    assert protocols["fd_clip"]["reference"]["data"]["val_size"] == 48  # captions of 24 scenes, renders of 24 others
    assert result["protocol"]["sampler"] == {} and result["protocol"]["hash"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["scores"] == json.loads(json.dumps(scores))
    page = (tmp_path / "evaluation.html").read_text()
    assert "fd_clip" in page and page.count("data:image/png") == 6  # seen, heldout, drawn, nearest, best, worst
    assert "| fd_clip |" in capsys.readouterr().out
    # Another evaluation of the same draws and computes nothing anew, and comes to the same.
    pictures = sorted((tmp_path / "drawn").rglob("*.png"))
    before = [p.stat().st_mtime_ns for p in pictures]
    cached = sorted((place / "cache/statistics").iterdir())
    again = evaluate.run(config(place, ckpt(place), ALL, f"clip_model={place / 'judge'}", f"out={tmp_path}"))
    assert again["scores"] == scores
    assert [p.stat().st_mtime_ns for p in pictures] == before
    assert sorted((place / "cache/statistics").iterdir()) == cached
    # One that was broken off goes on with what is missing, and batches of one draw the same.
    for path in pictures[::3]:
        path.unlink()
    third = evaluate.run(config(place, ckpt(place), ALL, f"clip_model={place / 'judge'}", f"out={tmp_path}",
                                  "batch_size=1"))
    assert third["scores"]["fd_clip"]["value"] == pytest.approx(scores["fd_clip"]["value"], rel=1e-3)
    assert third["scores"]["clip_score"]["value"] == pytest.approx(scores["clip_score"]["value"], abs=1e-4)


def test_the_clip_that_conditioned_the_pictures_is_named(place: Path, tmp_path: Path) -> None:
    words = [ckpt(place), "metrics=[fd_clip,clip_score]", f"out={tmp_path}"]
    with pytest.raises(ValueError, match="the checkpoint names '.*own', and a file's word opens nothing"):
        evaluate.run(config(place, *words))
    result = evaluate.run(config(place, *words, f"clip_model={place / 'own'}"))
    assert {n for n, e in result["scores"].items() if "value" in e} == {"fd_clip_by_own_clip", "clip_score_by_own_clip"}
    assert result["protocols"]["clip_score_by_own_clip"]["clip_involvement"] == "conditioned"
    other = CLIPScorer(str(place / "judge"))
    assert involvement(other, None, [other.id + "ab"]) == "guided" and involvement(other, None, ["0" * 14]) is None


def test_scores_are_those_of_a_direct_computation(place: Path, tmp_path: Path) -> None:
    """CLIP score with transformers alone, from the PNG files that were left."""
    from transformers import CLIPModel

    result = evaluate.run(config(place, ckpt(place), "metrics=[clip_score]", f"clip_model={place / 'judge'}",
                                   f"out={tmp_path}", "prefix='A photo depicts '"))
    lines = [json.loads(line) for line in next((tmp_path / "drawn").rglob("metadata.jsonl")).read_text().splitlines()]
    folder = next((tmp_path / "drawn").rglob("metadata.jsonl")).parent
    scorer = CLIPScorer(str(place / "judge"))
    model = CLIPModel.from_pretrained(place / "judge").eval()
    ids, mask = scorer.tokenizer(["A photo depicts " + line["text"] for line in lines])
    pixels = torch.stack([torch.from_numpy(np.array(Image.open(folder / line["file_name"]))) for line in lines])
    image = pixels.permute(0, 3, 1, 2).float() / 255
    image = torch.nn.functional.interpolate(image, (16, 16), mode="bicubic", antialias=True)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (scorer.mean, scorer.std))
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, pixel_values=(image.clamp(0, 1) - mean) / std)
    wanted = torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).mean()
    assert result["scores"]["clip_score"]["value"] == pytest.approx(float(wanted), abs=1e-3)
    assert result["protocols"]["clip_score"]["clip_model"]["prefix"] == "A photo depicts "


def test_a_folder_of_true_renders_is_right_and_at_the_floor(place: Path, tmp_path: Path) -> None:
    data = ["data=shapes", "data.image_size=32", f"clip_model={place / 'judge'}"]
    evaluate.run(config(place, *data, "metrics=[composition]", f"export={tmp_path / 'a'}"))
    assert len((tmp_path / "a/captions.txt").read_text().splitlines()) == len(list((tmp_path / "a").glob("*.png")))
    result = evaluate.run(config(place, *data, "metrics=[composition]", f"images={tmp_path / 'a'}"))
    assert result["scores"]["composition"]["seen"]["score"]["overall"] == 1.0
    assert result["scores"]["composition_heldout"]["low"] == 1.0
    assert (tmp_path / "a-evaluation/evaluation.html").is_file()
    evaluate.run(config(place, *data, "metrics=[fd_clip]", f"export={tmp_path / 'b'}"))
    floor = evaluate.run(config(place, *data, "metrics=[fd_clip,clip_score]", f"images={tmp_path / 'b'}"))
    drawn = evaluate.run(config(place, ckpt(place), "metrics=[fd_clip]", f"clip_model={place / 'judge'}",
                                  f"out={tmp_path / 'c'}"))
    assert floor["scores"]["fd_clip"]["value"] < 0.5 * drawn["scores"]["fd_clip"]["value"]
    with pytest.raises(ValueError, match=r"b: none for the caption .* of composition \(seen\).*export=FOLDER"):
        evaluate.run(config(place, *data, "metrics=[composition]", f"images={tmp_path / 'b'}"))
    with pytest.raises(ValueError, match="there already"):
        evaluate.run(config(place, *data, "metrics=[fd_clip]", f"export={tmp_path / 'b'}"))


def test_what_sample_py_drew_is_judged_and_its_guides_are_known(place: Path, tmp_path: Path) -> None:
    from t2i.generation import text_to_image

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"{word} circle" for word in ("a red", "one blue", "the green", "a pink")))
    text_to_image.run(compose([ckpt(place), f"prompts={prompts}", "n=3", f"out={tmp_path / 'd'}"], "sample"))
    words = ["metrics=[clip_score]", f"images={tmp_path / 'd'}", f"clip_model={place / 'judge'}"]
    result = evaluate.run(config(place, *words))
    assert result["scores"]["clip_score"]["n"] == 12  # and not the grid
    record = json.loads((tmp_path / "d/drawing.json").read_text())
    record["request"]["hashes"] = {"guides": {"clip": CLIPScorer(str(place / "judge")).id + "0000"}}
    (tmp_path / "d/drawing.json").write_text(json.dumps(record))
    guided = evaluate.run(config(place, *words))
    assert guided["scores"]["clip_score_by_own_clip"]["value"] == result["scores"]["clip_score"]["value"]
    assert guided["protocols"]["clip_score_by_own_clip"]["clip_involvement"] == "guided"


def test_a_tokenizer_is_judged_by_what_comes_back(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    words = ["model=vqgan", "model.autoencoder.channels=8", "model.autoencoder.num_groups=8",
             "model.quantizer.codebook_size=16", *MODEL[4:8], "trainer=cpu", "trainer.max_steps=1", "logger=none"]
    train.run(compose([*words, "name=vq", f"paths.runs={tmp_path}", f"paths.cache={place / 'cache'}"]))
    own = [f"ckpt={tmp_path / 'vq/last.ckpt'}", f"clip_model={place / 'judge'}", "n=12"]
    result = evaluate.run(config(place, *own, "metrics=[reconstruction,rfd_clip]"))
    scores = result["scores"]
    assert {"psnr", "ssim", "codebook_usage", "codebook_perplexity", "rfd_clip"} <= set(scores)
    assert scores["psnr"]["n"] == 12 and scores["psnr"]["low"] < scores["psnr"]["value"] < scores["psnr"]["high"]
    assert scores["rfd_clip"]["better"] == "lower" and result["protocols"]["psnr"]["split"] == "val"
    assert (tmp_path / "vq/evaluation-reconstructions.png").is_file()
    read = evaluate.run(config(place, *own, "metrics=[composition]", "n_per_task=2"))["scores"]["composition"]
    assert list(read["seen"]) == ["score", "ceiling_renders", "floor_shuffled_captions"]
    assert read["seen"]["ceiling_renders"]["overall"] == 1 and read["seen"]["score"]["overall"] < 1
    made = gallery(6, 32)
    monkeypatch.setattr(nearest_render, "dataset", lambda config, split: SimpleNamespace(gallery=lambda: made))
    judged = evaluate.run(config(place, *own, "metrics=[nearest_render]", "n_pairs=1"))["scores"]
    assert list(judged["nearest_render"]["seen"]) == ["score", "ceiling_renders"]
    assert judged["nearest_render_heldout_perceptual"]["value"] > 0  # it is hardly trained
    with pytest.raises(ValueError, match="style_guidance=true: a vqgan has no such option"):
        evaluate.run(config(place, *own, "metrics=[nearest_render]", "style_guidance=true"))
    with pytest.raises(ValueError, match=r"style_guidance=true is of metrics=\[nearest_render\], \[paraphrase\] and"):
        evaluate.run(config(place, *own, "metrics=[reconstruction]", "style_guidance=true"))
    with pytest.raises(ValueError, match=r"^pairs=val is of metrics=\[nearest_render\]"):
        evaluate.run(config(place, *own, "metrics=[reconstruction]", "pairs=val"))
    with pytest.raises(ValueError, match=r"^export= writes captions, and metrics=\[reconstruction\] have none"):
        evaluate.run(config(place, *own, "metrics=[reconstruction]", f"export={tmp_path / 'export'}"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"vgg16-397923af\.pth"):
        evaluate.run(config(place, *own, "metrics=[lpips]"))
    with pytest.raises(ValueError, match="holds a vqgan"):
        evaluate.run(config(place, *own, "metrics=[fd_clip]"))


def test_styles_are_drawn_away_from_the_caption_without_one(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    common = [*tiny.DATA, *tiny.TRAINER, *tiny.QUIET, "trainer.max_steps=1", f"paths.runs={tmp_path}",
              f"paths.cache={tmp_path / 'cache'}"]
    train.run(compose([*tiny.VQGAN, *common, "name=vq"]))
    train.run(compose([*tiny.PRIOR, *common, "name=prior", f"model.tokenizer.path={tmp_path / 'vq/last.ckpt'}",
                       f"text_encoder.path={place / 'own'}", "model.caption=keys"]))
    made, asked = gallery(6, 32), []
    monkeypatch.setattr(nearest_render, "dataset", lambda config, split: SimpleNamespace(gallery=lambda: made))
    sample = Prior.sample

    def recorded(self: Any, text: list[str], **options: Any) -> Any:
        asked.extend(zip(text, options["negative"] if "negative" in options else [None] * len(text), strict=True))
        return sample(self, text, **options)

    monkeypatch.setattr(Prior, "sample", recorded)
    words = [f"ckpt={tmp_path / 'prior/last.ckpt'}", "metrics=[nearest_render]", "n_pairs=1"]
    evaluate.run(config(place, *words))
    assert asked and {negative for _, negative in asked} == {None}
    asked.clear()
    protocols = evaluate.run(config(place, *words, "style_guidance=true"))["protocols"]
    assert asked and dict(asked).items() <= dict(zip(made.captions, made.plain_captions, strict=True)).items()
    assert protocols["nearest_render_seen_pair"]["sampler"]["style_guidance"] is True
    asked.clear()
    monkeypatch.setattr(evaluate.compositions, "is_scenes", lambda node: False)
    scores = evaluate.run(config(place, words[0], "metrics=[paraphrase]", "n_pairs=2", "style_guidance=true"))["scores"]
    assert scores["paraphrase_words"]["n"] == 2 and (tmp_path / "prior/evaluation-paraphrase.png").is_file()
    plain = {text: word.plain_caption for word in made.unseen_words for text in word.captions.values()}
    assert len(asked) == 4 and dict(asked[2:]).items() <= plain.items()


def test_a_nets_distances_have_its_name() -> None:
    net: Any = SimpleNamespace(name="efficientnet")
    measuring = Evaluator(["fid", "fd_efficientnet"], None, None, None, 0, efficientnet=net)
    assert measuring.nets == [net] and measuring.asked(net) == ["fd_efficientnet"]
    assert metric_of(net) == "rfd_efficientnet" and metric_of(SimpleNamespace(name="clip")) == "rfd_clip"  # type: ignore


def folder_of(path: Path, sizes: list[int], mode: str = "RGB", captions: bool = True) -> Path:
    path.mkdir()
    lines = []
    for i, size in enumerate(sizes):
        noise = np.random.default_rng(i).integers(0, 255, (size, size, 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(path / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": f"a thing {i}"}))
    if captions:
        (path / "metadata.jsonl").write_text("\n".join(lines))
    return path


def test_folders_of_others(place: Path, tmp_path: Path, capsys: Any) -> None:
    data = ["data=shapes", "data.image_size=32", f"clip_model={place / 'judge'}"]
    mixed = folder_of(tmp_path / "mixed", [32] * 11 + [40])
    with pytest.raises(ValueError, match=r"differ in size \(0\.png 32x32, 11\.png 40x40\): size=N"):
        evaluate.run(config(place, *data, "metrics=[fd_clip]", f"images={mixed}"))
    found = evaluate.run(config(place, *data, "metrics=[fd_clip]", f"images={mixed}", "size=32"))
    assert found["scores"]["fd_clip"]["n"] == 12
    grey = folder_of(tmp_path / "grey", [32] * 12, "L", captions=False)
    capsys.readouterr()
    assert evaluate.run(config(place, *data, "metrics=[kd_clip]", f"images={grey}"))["scores"]["kd_clip"]["n"] == 12
    assert "12 of 12 pictures have no colours" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"12 of 12 pictures have no caption.*clip_score"):
        evaluate.run(config(place, *data, "metrics=[clip_score]", f"images={grey}"))
    with pytest.raises(ValueError, match=r"differ in size \(0\.png 32x32"):
        listed(GeneratedImages.read(mixed))("seen", [f"a thing {i}" for i in range(12)])
    few = folder_of(tmp_path / "few", [32])
    with pytest.raises(ValueError, match=r"fd_clip cannot be had: 1 drawn and 24 real pictures, and at least 2"):
        evaluate.run(config(place, *data, "metrics=[fd_clip]", f"images={few}"))
    with pytest.raises(ValueError, match=r"kd_clip cannot be had: 1 drawn and 24 real pictures, and at least 10"):
        evaluate.run(config(place, *data, "metrics=[kd_clip]", f"images={few}"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no pictures"):
        evaluate.run(config(place, *data, "metrics=[fd_clip]", f"images={tmp_path / 'empty'}"))


@pytest.mark.parametrize("words, message", [
    (["metrics=[fed]"], r"fed unknown; allowed are composition, nearest_render, paraphrase, editing, fid"),
    (["metrics=[]"], "metrics is empty"),
    (["metrics=[fid]"], r"(?s)weights-inception-2015-12-05-6726825d\.pth.*6726825d0af5f729"),
    (["protocol=coco"], "protocol=coco: allowed are shapes, coco30k"),
    (["protocol=coco30k"], "protocol=coco30k is of data=coco"),
    (["metrics=[fd_clip]", "images=."], "one of the two"),
    (["metrics=[psnr]"], "psnr unknown"),
    (["metrics=[reconstruction]"], "dfgan"),
    (["metrics=[fd_clip]", "clip_model=nowhere/at-all"], "clip_model=nowhere/at-all"),
])
def test_refused_before_anything_is_drawn(
    place: Path, tmp_path: Path, words: list[str], message: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=message):
        evaluate.run(config(place, ckpt(place), f"out={tmp_path / 'out'}", *words))
    assert not list(tmp_path.rglob("*.png"))


def test_truncation_is_never_dropped_in_silence(tmp_path: Path) -> None:
    from tests.generation.clip_guided.test_settings import make_parts

    parts = make_parts(tmp_path / "parts")
    words = [f"ckpt={parts.prior}", "data=shapes", "data.image_size=16", f"clip_model={parts.other}", "n=2",
             "metrics=[clip_score]", f"out={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match=r"truncation=0\.5: a prior has no such option"):
        evaluate.run(config(tmp_path, *words, "truncation=0.5"))
    changed = evaluate.run(config(tmp_path, *words, "protocol=dfgan"))["protocols"]["clip_score"]["changed"]
    assert changed == ["n=2 instead of 30000", "no truncation instead of 0.88: a prior has no noise to truncate"]


def test_neither_nor(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="give ckpt=, a checkpoint that draws, or images="):
        evaluate.run(config(place))
    with pytest.raises(ConfigError, match=r"images=.*nowhere"):
        config(place, "images=nowhere")
    with pytest.raises(ConfigError, match="data"):
        config(place, "data=shape")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"out=file/x cannot be written"):
        evaluate.run(config(place, ckpt(place), "metrics=[composition]", "out=file/x"))


def test_pictures_that_give_no_finite_features(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """A judge whose weights overflow: the numbers of the pictures are named, and what was drawn stays."""
    original = CLIPScorer.__init__

    def broken(self: CLIPScorer, *values: Any, **named: Any) -> None:
        original(self, *values, **named)
        self.model.visual_projection.weight.data.fill_(float("nan"))

    monkeypatch.setattr(CLIPScorer, "__init__", broken)
    with pytest.raises(ValueError, match="not finite"):
        evaluate.run(config(place, ckpt(place), "metrics=[fd_clip]", f"clip_model={place / 'judge'}",
                            f"out={tmp_path}"))
    assert len(list(tmp_path.rglob("0*.png"))) == 24
    kept = evaluate.run(config(place, ckpt(place), "metrics=[fd_clip,composition,r_precision,clip_score]",
                                 f"clip_model={place / 'judge'}", f"out={tmp_path}"))
    assert set(kept["scores"]) == {"composition", "composition_seen", "composition_heldout"}
    assert set(kept["missing"]) == {"fd_clip", "clip_score", "r_precision"}
    assert all("not finite" in why for why in kept["missing"].values())
    held = json.loads((tmp_path / "evaluation.json").read_text())
    assert held["missing"] == kept["missing"] and held["protocol"]["metrics"] == ["composition"]


def test_a_metric_that_cannot_be_had_is_told_first_and_costs_no_other(place: Path, tmp_path: Path, capsys: Any) -> None:
    asked = [ckpt(place), f"clip_model={place / 'judge'}", f"out={tmp_path}", "n=4"]
    result = evaluate.run(config(place, *asked, "metrics=[kd_clip,fd_clip]"))
    assert set(result["scores"]) == {"fd_clip"} and result["protocol"]["metrics"] == ["fd_clip"]
    assert result["missing"] == {"kd_clip": "4 drawn and 4 real pictures, and at least 10 of each are needed"}
    said = capsys.readouterr()
    assert said.err.startswith("Without kd_clip: 4 drawn") and "Without kd_clip: 4 drawn" in said.out
    assert "without kd_clip: 4 drawn" in (tmp_path / "evaluation.html").read_text()
    with pytest.raises(ValueError, match="r_precision cannot be had: 1 different caption, and at least 2"):
        evaluate.run(config(place, *asked, "metrics=[r_precision]", "n=1", f"out={tmp_path / 'none'}"))
    assert not (tmp_path / "none").exists()


def test_what_is_broken_off_leaves_the_scores_that_there_are(place: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def stopped(self: CLIPScorer, text: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(CLIPScorer, "embed_text", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate.run(config(place, ckpt(place), "metrics=[fd_clip,clip_score]", f"clip_model={place / 'judge'}",
                              f"out={tmp_path}"))
    held = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(held["scores"]) == {"fd_clip"} and held["missing"] == {"clip_score": "broken off by KeyboardInterrupt"}


def test_one_evaluation_at_a_time_writes_a_folder(place: Path, tmp_path: Path) -> None:
    asked = config(place, ckpt(place), "metrics=[fd_clip]", f"clip_model={place / 'judge'}", f"out={tmp_path}")
    with exclusive(tmp_path, "evaluation"):
        with pytest.raises(ValueError, match=r"out=.* is being written by process \d+ on .* since 2.*out=…"):
            evaluate.run(asked)
    assert not list(tmp_path.iterdir())


def test_halves_the_batch_where_memory_is_short() -> None:
    class Short:
        def sample(self, text: list[str], *, seeds: list[int]) -> Tensor:
            if len(text) > 5:
                raise torch.OutOfMemoryError("short")
            return (torch.tensor([seed % 255 for seed in seeds]) / 127.5 - 1).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)

    found = list(draw(Short(), ["x"] * 22, 7, {}, range(2, 22), batch=16))
    assert [len(part) for _, part in found] == [4] * 5
    assert torch.cat([numbers for numbers, _ in found]).tolist() == list(range(2, 22))
    wanted = [seed_number(7, "evaluation", i) % 255 for i in range(2, 22)]
    assert torch.cat([part for _, part in found])[:, 0, 0, 0].tolist() == wanted


def test_a_priors_samples_before_and_after_guided_drawing(tmp_path: Path) -> None:
    from tests.generation.clip_guided.test_settings import make_parts

    parts = make_parts(tmp_path / "parts")
    words = ["method=clip_guided", f"clip_guided.clips={parts.clip}", "clip_guided.steps=2", "clip_guided.batch_size=2",
             f"ckpt={parts.prior}", "data=shapes", "data.image_size=16", f"clip_model={parts.clip}"]
    words += ["metrics=[composition,clip_score]", "n=3", "n_per_task=2", f"out={tmp_path / 'out'}"]
    result = evaluate.run(config(tmp_path, *words))
    for kinds in result["scores"]["composition"].values():
        assert list(kinds)[:2] == ["score", "refined"]
    assert result["protocols"]["clip_score_by_own_clip"]["clip_involvement"] == "guided"
    requests = [json.loads(path.read_text()) for path in (tmp_path / "out/drawn").glob("*/request.json")]
    assert sorted("clip_guided" in request for request in requests) == [False, False, True, True, True]


def test_the_data_that_a_checkpoint_names_are_looked_over_for_the_page_too(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With data= given the checkpoint's own serve for its nearest training pictures alone."""
    held = torch.load(place / "runs/gan/last.ckpt", weights_only=True)
    held["t2i"]["config"]["data"] |= {"lattice": {"_target_": "t2i.checkpoint.atomic.write_text", "text": "x",
                                                  "path": str(tmp_path / "made")}}
    torch.save(held, tmp_path / "evil.ckpt")
    evaluate.run(config(place, f"ckpt={tmp_path / 'evil.ckpt'}", "data=shapes", "data.image_size=16",
                          "metrics=[clip_score]", f"clip_model={place / 'judge'}", f"out={tmp_path / 'out'}"))
    assert "t2i.config.data.lattice" in capsys.readouterr().out and not (tmp_path / "made").exists()
