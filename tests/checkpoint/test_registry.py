"""What a config out of a file may build: the marked classes, of the file's own size, and nothing else."""

from __future__ import annotations

import ast
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from t2i.checkpoint import building, registry
from t2i.checkpoint.building import check_file_node
from t2i.config.check import nodes
from t2i.config.compose import compose

SOURCE = Path(__file__).resolve().parents[2] / "src"

ROLES = ("model", "tokenizer", "autoencoder", "quantizer", "generator", "discriminator", "stage1", "text_encoder",
         "data")
# Arguments that are words and name no place.
WORDS = {"languages", "tasks", "backgrounds", "background", "styles", "on_error", "crop", "splits",
         "train_split", "val_split", "image_column", "caption_column", "config_name", "revision"}


def defined() -> Iterator[str]:
    """Every class and function at the top of a module of t2i, by its full name."""
    for file in sorted((SOURCE / "t2i").rglob("*.py")):
        module = ".".join(file.relative_to(SOURCE).with_suffix("").parts)
        for item in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(item, ast.ClassDef | ast.FunctionDef):
                yield f"{module}.{item.name}"


@cache
def marked() -> set[str]:
    """The classes that carry the mark, as the source has it."""
    found = set()
    for file in sorted((SOURCE / "t2i").rglob("*.py")):
        for item in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(item, ast.ClassDef) and any(ast.unparse(d).startswith("register(")
                                                      for d in item.decorator_list):
                found.add(f"{'.'.join(file.relative_to(SOURCE).with_suffix('').parts)}.{item.name}")
    return found


def test_the_modules_of_the_register_are_those_with_marks() -> None:
    assert {name.rpartition(".")[0] for name in marked()} == set(registry.MODULES)
    assert {name for name in marked() if registry.find(name) is not None} == marked()


def test_nothing_else_of_ours_is_built() -> None:
    """Functions, other classes, dunders, submodules by attribute, names that are no names."""
    names = list(defined())
    assert len(names) > 600
    others = [*(name for name in names if name not in marked()), "t2i.checkpoint.file_format",
              "t2i.quantizers.vq.torch",
              "t2i.quantizers.vq.nn.Identity", "t2i.quantizers.vq.VQ.decode_ids", "t2i..quantizers.vq.VQ", "", ".",
              "VQ", "t2i.quantizers.vq.__builtins__", "os.system", "builtins.eval", "torch.load", "torch.nn.Identity",
              None, 3, ["t2i.quantizers.vq.VQ"]]
    for name in others:
        assert registry.find(name) is None, name
        with pytest.raises(ValueError, match="is no class that a file may build"):
            check_file_node({"_target_": name}, "config.model", "x.ckpt", "model")


@pytest.mark.parametrize("key", ["learning_rate", "betas", "quantizer", "autoencoder", "image_size", "discriminator"])
def test_nothing_else_is_built_deeper_down(key: str, tmp_path: Path) -> None:
    config = compose(["model=vqgan", "data=shapes"], files=False)["model"]
    config.pop("perceptual")
    config[key] = {"_target_": "t2i.checkpoint.atomic.write_text", "path": str(tmp_path / "made"), "text": "x"}
    with pytest.raises(ValueError, match=rf"x\.ckpt: config\.model\.{key}"):
        check_file_node(config, "config.model", "x.ckpt", "model")
    assert not (tmp_path / "made").exists()


def test_roles() -> None:
    fsq = {"_target_": "t2i.quantizers.fsq.FSQ", "levels": [4, 4]}
    check_file_node(fsq, "quantizer", "x.ckpt", "quantizer")
    product = {"_target_": "t2i.quantizers.product.Product", "parts": {"a": fsq}}
    check_file_node(product, "quantizer", "x.ckpt", "quantizer")
    check_file_node(product | {"parts": [fsq, fsq]}, "quantizer", "x.ckpt", "quantizer")
    with pytest.raises(ValueError, match=r"quantizer\.parts\.1\._target_='os\.system'"):
        check_file_node(product | {"parts": [fsq, {"_target_": "os.system"}]}, "quantizer", "x.ckpt", "quantizer")
    for role in set(ROLES) - {"quantizer"}:
        with pytest.raises(ValueError, match=f"is a quantizer; a {role} is wanted"):
            check_file_node(fsq, "node", "x.ckpt", role)


def test_every_word_of_a_marked_class_is_a_place_or_known_to_be_none() -> None:
    for name in sorted(marked()):
        entry = registry.find(name)
        assert entry is not None
        module = ast.parse(Path(str(SOURCE), *name.split(".")[:-1]).with_suffix(".py").read_text(encoding="utf-8"))
        cls = next(item for item in module.body if isinstance(item, ast.ClassDef) and item.name == entry.cls.__name__)
        init = next((item for item in cls.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"), None)
        for arg in [] if init is None else [*init.args.args, *init.args.kwonlyargs]:
            annotation = "" if arg.annotation is None else ast.unparse(arg.annotation)
            if "Literal" not in annotation and ("str" in annotation or "Path" in annotation):
                assert arg.arg in entry.places or arg.arg in WORDS or annotation.startswith("Mapping[str, Quant"), (
                    f"{name}.{arg.arg}: {annotation}")


@pytest.mark.parametrize(("target", "role", "key"), [
    ("t2i.data.folder.Folder", "data", "root"), ("t2i.data.coco.COCO", "data", "root"),
    ("t2i.data.cub.CUB", "data", "root"), ("t2i.data.webdataset.WebDataset", "data", "root"),
    ("t2i.data.huggingface.HuggingFace", "data", "path"),
    ("t2i.data.emoji.Emoji", "data", "font"), ("t2i.data.emoji.Emoji", "data", "icons"),
    ("t2i.text_encoders.clip.CLIPText", "text_encoder", "path"),
    ("t2i.text_encoders.bilstm.BiLSTMText", "text_encoder", "path"),
    ("t2i.text_encoders.sentence.SentenceEncoder", "text_encoder", "path"),
])  # fmt: skip
def test_a_file_opens_what_the_user_named(target: str, role: str, key: str, tmp_path: Path) -> None:
    node = {"_target_": target, key: str(tmp_path / "inside")}
    with pytest.raises(ValueError, match=rf"{key}='.*' is the file's word, which opens nothing; .*trust=\["):
        check_file_node(node, "node", "x.ckpt", role, ("split",))
    try:
        registry.trust([str(tmp_path)])
        check_file_node(node, "node", "x.ckpt", role, ("split",))
        with pytest.raises(ValueError, match="is the file's word"):
            check_file_node({**node, key: str(tmp_path / ".." / "other")}, "node", "x.ckpt", role, ("split",))
    finally:
        registry.trust([])


def test_a_name_on_the_hub_is_a_place() -> None:
    node = {"_target_": "t2i.text_encoders.clip.CLIPText", "path": "openai/clip-vit-base-patch32",
            "allow_download": True}
    with pytest.raises(ValueError, match=r"trust=\[openai/clip-vit-base-patch32\] says so"):
        check_file_node(node, "node", "x.ckpt", "text_encoder")
    try:
        registry.trust(["openai/clip-vit-base-patch32"])
        check_file_node(node, "node", "x.ckpt", "text_encoder")
    finally:
        registry.trust([])


def test_packages_that_the_user_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_of_the_test.py").write_text(
        "from t2i.quantizers.fsq import FSQ\nclass Mine(FSQ):\n    pass\ndef made():\n    return FSQ([4])\n")
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "mine_of_the_test.Mine", "levels": [4, 4]}
    with pytest.raises(ValueError, match=r"trust=\[its package\]"):
        check_file_node(node, "quantizer", "x.ckpt", "quantizer")
    try:
        registry.trust(["mine_of_the_test"])
        check_file_node(node, "quantizer", "x.ckpt", "quantizer")
        assert building.build_checked(node, {}, "x.ckpt", "quantizer", "quantizer").codebook_size == 16
        with pytest.raises(ValueError, match="no class"):
            check_file_node({"_target_": "mine_of_the_test.made"}, "quantizer", "x.ckpt", "quantizer")
        registry.trust(["t2i"])  # ours are not made larger by it
        with pytest.raises(ValueError, match="no class"):
            check_file_node({"_target_": "t2i.checkpoint.atomic.write_text"}, "quantizer", "x.ckpt", "quantizer")
    finally:
        registry.trust([])


def bases() -> dict[str, dict[str, Any]]:
    """A node for each net of the register, with the arguments that the shipped configs give it."""
    found: dict[str, dict[str, Any]] = {}
    text = ["text_encoder.path=none", "data=shapes"]
    for words in (["model=vqgan", "data=shapes"], ["model=vqgan_f16_1024", "data=shapes"],
                  *(["model=vqgan", "data=shapes", f"model/quantizer={name}"]
                    for name in ("vq", "ema", "fsq", "gumbel", "lfq", "product", "residual", "simvq")),
                  ["model=vqgan", "data=shapes", "model/autoencoder=two_colour"],
                  ["model=dfgan", *text], ["model=dfgan", "model/generator=rdb", *text],
                  ["model=dfgan", "model/discriminator=unet", *text], ["model=stackgan1", *text],
                  ["model=stackgan2", "model.stage1.path=none", *text[1:], "data.image_size=256"]):
        for _, node in nodes(compose(words, files=False)["model"]):
            entry = registry.find(node["_target_"])
            if entry is not None and entry.role not in ("model", "text_encoder", "data"):
                found[node["_target_"]] = node
    return found


HOSTILE: list[Any] = [10**12, 10**9, 10**7, 2**63, 10**400, -1, 0, float("nan"), float("inf"), -1e300, "/etc/passwd",
                      "", "x" * 10**5, None, True, [], [10**9] * 1000, [2] * 10**5, [[1]], {"a": 1},
                      {"_target_": "t2i.quantizers.fsq.FSQ", "levels": [10**9] * 900}]


@pytest.mark.slow
def test_marked_classes_under_hostile_arguments() -> None:
    """Each argument of each net of the register, one after the other: refused, or built of the file's size, at once."""
    found = bases()
    nets = {name for name in marked() if registry.find(name).role not in ("model", "text_encoder", "data")}  # type: ignore[union-attr]
    assert nets - set(found) <= {"t2i.nets.tokenizer.ImageTokenizer", "t2i.models.stackgan.Coarse"}
    weights = {f"w{i}": torch.zeros(4) for i in range(60)}
    for name, base in found.items():
        role = registry.find(name).role  # type: ignore[union-attr]
        for key in [*(key for key in base if key != "_target_"), "_partial_", "_args_", "unknown"]:
            for value in HOSTILE:
                started = time.process_time()
                with pytest.raises(ValueError, match=r"^(the weights in )?x\.ckpt"):
                    building.build_checked({**base, key: value}, weights, "x.ckpt", "config.net", role)
                assert time.process_time() - started < 20, (name, key, str(value)[:40])


def test_shipped_targets_are_marked_or_made_by_the_code() -> None:
    """Every class that a shipped model, data set or text encoder names, but for what loads a file that the user gives
    and what training alone needs."""
    given = {"t2i.convert.tokenizers.load_tokenizer", "t2i.models.stackgan.load_stage1",
             "t2i.losses.perceptual.LPIPS", "t2i.losses.perceptual.EfficientNetDistance",
             "t2i.checkpoint.building.load_part"}
    named = set()
    for group in ("model", "data", "text_encoder"):
        for file in (SOURCE.parent / "conf" / group).rglob("*.yaml"):
            for _, node in nodes(yaml.safe_load(file.read_text(encoding="utf-8"))):
                named.add(node["_target_"])
    assert len(named) > 20
    assert named - given - marked() == set()
