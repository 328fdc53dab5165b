"""The checkpoint format, and what it refuses."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from t2i.checkpoint import atomic, building, file_format, lightning_io

AUTOENCODER = {
    "_target_": "t2i.nets.autoencoder.Autoencoder", "channels": 8, "multipliers": [1, 1], "num_res_blocks": 1,
    "attention_levels": [], "z_channels": 4, "num_groups": 4, "mid_attention": False,
}  # fmt: skip
MODEL = {
    "_target_": "t2i.nets.tokenizer.ImageTokenizer", "autoencoder": AUTOENCODER, "image_size": 16,
    "quantizer": {"_target_": "t2i.quantizers.fsq.FSQ", "levels": [4, 4]},
}  # fmt: skip
CONFIG: dict[str, Any] = {"name": "x", "model": MODEL}


def held(model: torch.nn.Module, **changes: Any) -> dict[str, Any]:
    return {"state_dict": model.state_dict(), "t2i": file_format.pack(model, CONFIG) | changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['T2I_TEST_FILE']}",)


def test_round_trip(path: Path) -> None:
    model = building.build(MODEL)
    atomic.save_atomic(held(model), path)
    again = building.load(path, kind="tokenizer")
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    torch.load(path, weights_only=True)
    assert len(file_format.file_hash(path)) == 16


def test_averaged_weights_are_preferred(path: Path) -> None:
    model = building.build(MODEL)
    averaged = {"quant_conv.weight": torch.zeros_like(model.quant_conv.weight)}
    atomic.save_atomic(held(model) | {"ema": {"weights": averaged, "updates": 1}}, path)
    assert building.load(path).quant_conv.weight.abs().sum() == 0
    assert torch.equal(building.load(path, ema=False).quant_conv.weight, model.quant_conv.weight)
    atomic.save_atomic(held(model) | {"ema": {"weights": {"nothing": torch.zeros(1)}, "updates": 1}}, path)
    with pytest.raises(ValueError, match="nothing"):
        building.load(path)


def test_parts_are_built_from_the_file_alone(path: Path) -> None:
    quantizer = {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 8, "dim": 4}
    model = building.build(MODEL, quantizer=building.build(quantizer))
    part = {"config": quantizer, "state_dict": model.quantizer.state_dict()}
    atomic.save_atomic(held(model, parts={"quantizer": part}), path)
    again = building.load(path)
    assert again.codebook_size == 8
    assert torch.equal(again.quantizer.codebook, model.quantizer.codebook)


def test_wrong_kind(path: Path) -> None:
    atomic.save_atomic(held(building.build(MODEL)), path)
    with pytest.raises(ValueError, match=r"last\.ckpt holds a tokenizer; a prior is wanted"):
        file_format.read(path, kind="prior")


def test_newer_format(path: Path) -> None:
    atomic.save_atomic(held(building.build(MODEL), format=2), path)
    with pytest.raises(ValueError, match=r"format 2; this version reads format 1"):
        file_format.read(path)


def test_weights_that_do_not_fit(path: Path) -> None:
    content = held(building.build(MODEL))
    weights = content["state_dict"]
    content["state_dict"] = {k: v for k, v in weights.items() if k != "quant_conv.bias"} | {
        "extra": torch.zeros(1), "quant_conv.weight": torch.zeros(1)}  # fmt: skip
    atomic.save_atomic(content, path)
    with pytest.raises(ValueError, match=r"missing quant_conv\.bias; unexpected extra; quant_conv\.weight has shape"):
        building.load(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>sign in</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"hello", "no checkpoint"),
        (b"PK\x03\x04 and then nothing", "cut off"),
        (b"\x80\x02garbage", "cannot be read"),
    ],
)
def test_files_that_are_none(path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        file_format.read(path)
    assert str(path) in str(caught.value)


def test_truncated_anywhere(path: Path) -> None:
    atomic.save_atomic(held(building.build(MODEL)), path)
    whole = path.read_bytes()
    for share in (0.01, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"cut off|cannot be read"):
            file_format.read(path)


def test_safetensors_and_foreign_dictionaries(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="safetensors"):
        file_format.read(path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"no section 't2i' \(it holds epoch, state_dict\)"):
        file_format.read(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no section 't2i'"):
        file_format.read(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_runs_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.setenv("T2I_TEST_FILE", str(tmp_path / "ran"))
    torch.save({"state_dict": {}, "t2i": Hostile()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"system" if zipped else r"cannot be read|system"):
        file_format.read(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match=r"cannot be read|system"):
        file_format.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "t2i.checkpoint.file_format.os", "t2i.checkpoint.file_format.importlib",
     "t2i.checkpoint.file_format.torch.load",
     "t2i.nothing.Thing", "t2i.nets.autoencoder.nn", "t2i.models.vqgan.Tensor", "t2i", "t2i..x", None, 3,
     "subprocess.Popen", "t2i.checkpoint.file_format.Path", "t2ix.y"],
)  # fmt: skip
def test_targets_outside_the_package_are_refused(path: Path, target: Any) -> None:
    with pytest.raises(ValueError, match="_target_"):
        building.build_registered({"_target_": target, "args": ["true"]})
    model = building.build_registered(MODEL)
    content = held(model)
    content["t2i"]["config"] = {"model": MODEL | {"quantizer": {"_target_": target}}}
    atomic.save_atomic(content, path)
    with pytest.raises(ValueError, match="_target_"):
        building.load(path)


def test_only_plain_values_are_packed() -> None:
    with pytest.raises(ValueError, match=r"config\.a\.0 is a PosixPath"):
        file_format.pack(torch.nn.Linear(1, 1), {"a": [Path("x")]})
    assert file_format.pack(torch.nn.Linear(1, 1), {"a": (1, 2)})["config"] == {"a": [1, 2]}


def test_a_failed_write_leaves_the_old_file(path: Path) -> None:
    atomic.save_atomic({"a": 1}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        atomic.save_atomic({"a": lambda: 0}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_the_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic.save_atomic({"a": 1}, path)
    before = path.read_bytes()
    opened = Path.open
    full = Path("/dev/full")
    monkeypatch.setattr(Path, "open", lambda self, *a: opened(full if self.suffix == ".tmp" else self, *a))
    with pytest.raises(OSError, match=r"last\.ckpt could not be written: No space left") as caught:
        atomic.save_atomic({"a": torch.zeros(100_000)}, path)
    assert "untouched" in str(caught.value)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="could not be written"):
        atomic.save_atomic({"a": 1}, tmp_path / "file" / "last.ckpt")
    with pytest.raises(OSError, match="could not be written"):
        atomic.write_text(tmp_path / "file" / "x.json", "{}")


def test_reading_does_not_import_what_the_file_names(path: Path) -> None:
    content = held(building.build(MODEL))
    content["t2i"]["config"] = {"model": {"_target_": "antigravity.thing"}}
    atomic.save_atomic(content, path)
    with pytest.raises(ValueError, match="_target_"):
        building.load(path)
    assert "antigravity" not in sys.modules


def records(path: Path) -> dict[str, tuple[int, int]]:
    """Where each record's bytes lie in a torch archive, and how many they are."""
    found = {}
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            with path.open("rb") as file:
                file.seek(record.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
            found[record.filename] = record.header_offset + 30 + name + extra, record.file_size
    return found


def test_every_flipped_bit_is_found(path: Path) -> None:
    """One bit in each record of the archive, weights and pickle alike: torch itself reads over most of them."""
    atomic.save_atomic(held(building.build(MODEL)), path)
    whole = path.read_bytes()
    for name, (start, size) in records(path).items():
        damaged = bytearray(whole)
        damaged[start + size // 2] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"last\.ckpt is damaged: the record .* checksum") as caught:
            file_format.read(path)
        assert name in str(caught.value)


def test_a_small_file_does_not_become_a_large_one(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(50_000_000))
    with pytest.raises(ValueError, match=r"bytes unpack to 50,000,000 \(x/data\.pkl is compressed"):
        file_format.read(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"a")
        archive.writestr("x/data.pkl", b"b")
    with pytest.raises(ValueError, match=r"two records of the name x/data\.pkl"):
        file_format.read(path)


def repeated() -> Any:
    deep: Any = [0] * 10
    for _ in range(30):
        deep = [deep] * 10
    return deep


def nested(depth: int) -> Any:
    deep: Any = 0
    for _ in range(depth):
        deep = [deep]
    return deep


SECTIONS: list[tuple[str, Any, str]] = [
    ("kind", None, "t2i.kind is missing"), ("kind", "a\x1b[31mred\nerror: all is well", "t2i.kind"),
    ("kind", 3, "t2i.kind"), ("config", None, "t2i.config is missing"), ("config", [1], "t2i.config is missing"),
    ("config", {"model": "t2i"}, "t2i.config.model is 't2i'"), ("config", {"model": None}, "t2i.config.model is None"),
    ("config", {"model": [1]}, r"t2i.config.model is \[1\]"), ("config", {}, "t2i.config.model is None"),
    ("config", {"model": {"_target_": "t2i.nets.tokenizer.ImageTokenizer", "image_size": float("nan")}}, "no finite"),
    ("config", {"model": {}, 3.5: 1}, "a key of type float"), ("config", {"model": nested(90)}, "too deeply"),
    ("config", {"model": {"x": repeated()}}, "too large"), ("config", {"model": torch.zeros(1)}, "is a Tensor"),
    ("parts", None, "t2i.parts is missing"), ("parts", [1], "t2i.parts is missing"),
    ("parts", {"quantizer": 3}, "t2i.parts.quantizer has no config"),
    ("parts", {"quantizer": {"config": {}}}, "t2i.parts.quantizer.config._target_=None is no class"),
    ("parts", {"quantizer": {"config": MODEL["quantizer"]}}, "t2i.parts.quantizer has no weights"),
    ("parts", {"quantizer": {"config": {}, "state_dict": [1]}}, "t2i.parts.quantizer.state_dict is a list"),
    ("parts", {"a\x1b[2J": {"config": {}}}, r"t2i.parts.a\\x1b\[2J is no name"),
    ("format", "\x1b[31m", r"has format '\\x1b\[31m'"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "words"), SECTIONS)
def test_sections_that_are_none(path: Path, key: str, value: Any, words: str) -> None:
    atomic.save_atomic(held(building.build(MODEL)) | {
        "t2i": file_format.pack(building.build(MODEL), CONFIG) | {key: value}}, path)
    with pytest.raises(ValueError, match=words) as caught:
        building.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


WEIGHTS: list[tuple[str, Any]] = [
    ("is a str, not a tensor", "x"), ("is sparse", torch.zeros(3).to_sparse()),
    ("has no numbers", torch.zeros(3, device="meta")), ("claims 1,000,000,000 numbers", torch.zeros(1).expand(10**9)),
    ("holds int64, float32 is wanted", torch.zeros(2, dtype=torch.int64)),
    ("holds bool", torch.zeros(2, dtype=torch.bool)), ("holds complex64", torch.zeros(2, dtype=torch.complex64)),
    ("not finite", torch.tensor([1.0, float("nan")])), ("not finite", torch.tensor([1.0, float("inf")])),
    ("has shape", torch.zeros(3)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize(("words", "value"), WEIGHTS)
def test_weights_that_are_none(path: Path, words: str, value: Any, ema: bool) -> None:
    content = held(building.build(MODEL))
    if ema:
        if isinstance(value, torch.Tensor) and value.dtype.is_floating_point and value.layout == torch.strided:
            content["ema"] = {"weights": {"quant_conv.bias": value}, "updates": 1}
        else:
            content["ema"] = {"weights": [value], "updates": 1}
            words = "ema.weights is a list"
    else:
        content["state_dict"]["quant_conv.bias"] = value
    torch.save(content, path)
    with pytest.raises(ValueError, match=words) as caught:
        building.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("where", "value", "words"), [
    ("autoencoder.num_res_blocks", 10**9, "more weights than the file holds"),
    ("autoencoder.channels", 10**7 * 4, "has shape"), ("autoencoder.z_channels", 2**62, "whole number beyond"),
    ("image_size", 10**7 * 2, "-"), ("image_size", -1, "image_size=-1"),
    ("quantizer.levels", [10**9] * 900, r"last\.ckpt"),
    ("quantizer.levels", [2] * 10**4, "at most 1,000"), ("autoencoder.multipliers", [1] * 1000, r"last\.ckpt"),
])  # fmt: skip
def test_sizes_are_held_against_the_weights(path: Path, where: str, value: Any, words: str) -> None:
    content = held(building.build(MODEL))
    node = content["t2i"]["config"]["model"]
    for key in where.split(".")[:-1]:
        node = node[key]
    node[where.split(".")[-1]] = value
    atomic.save_atomic(content, path)
    started = time.process_time()
    if where == "image_size" and value > 0:  # no weight has this size, and nothing is made of it
        assert building.load(path).grid == (value // 2, value // 2)
    else:
        with pytest.raises(ValueError, match=words) as caught:
            building.load(path)
        assert str(path) in str(caught.value)
    assert time.process_time() - started < 20


def test_a_kind_that_the_class_is_not(path: Path) -> None:
    atomic.save_atomic(held(building.build(MODEL), kind="prior"), path)
    with pytest.raises(ValueError, match="calls itself a prior and holds a tokenizer"):
        building.load(path, kind="prior")


def test_a_run_goes_on_from_its_own_kind_and_sizes_alone(path: Path) -> None:
    model = building.build(MODEL)
    lightning = {"epoch": 0, "global_step": 1, "loops": {}, "callbacks": {}, "optimizer_states": [],
                 "lr_schedulers": []}
    atomic.save_atomic(held(model) | lightning, path)
    assert lightning_io.AtomicCheckpointIO(model).load_checkpoint(path)["global_step"] == 1
    wider = building.build({**MODEL, "autoencoder": {**AUTOENCODER, "channels": 16}})
    with pytest.raises(ValueError, match=r"do not fit ImageTokenizer: .*has shape"):
        lightning_io.AtomicCheckpointIO(wider).load_checkpoint(path)
    with pytest.raises(ValueError, match="holds a tokenizer; this run trains a linear"):
        lightning_io.AtomicCheckpointIO(torch.nn.Linear(1, 1)).load_checkpoint(path)
    atomic.save_atomic(held(model) | lightning | {"loops": 3, "callbacks": None}, path)
    with pytest.raises(ValueError, match="loops, callbacks missing or damaged"):
        lightning_io.AtomicCheckpointIO(model).load_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_makes_no_memory_out_of_nothing(path: Path, zipped: bool) -> None:
    """torch allows bytearray in what it reads; fifty bytes would make gigabytes."""
    torch.save({"state_dict": {}, "t2i": bytearray(10)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match="would need bytearray"):
        file_format.read(path)


def test_what_is_no_file(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(ValueError, match=r"last\.ckpt is no ordinary file"):
        file_format.read(path)


def test_what_a_constructor_says_of_an_argument_begins_with_the_nodes_key() -> None:
    node = {"_target_": "t2i.nets.patchgan.PatchGAN", "in_channels": 3, "channels": 8, "num_layers": -1}
    with pytest.raises(ValueError) as plain:
        building.build(node)
    with pytest.raises(ValueError) as told:
        building.build(node, at="model.discriminator")
    assert str(plain.value).startswith("num_layers=-1")
    assert str(told.value) == f"model.discriminator.{plain.value}"
    assert isinstance(building.build({**node, "num_layers": 1}, at="model"), torch.nn.Module)


def test_the_users_own_config_builds_any_class() -> None:
    made = building.build({"_target_": "torch.nn.Linear", "in_features": 2}, out_features=3)
    assert (made.in_features, made.out_features) == (2, 3)
    held = building.build({"_target_": "builtins.dict", "text": "a ${b} \\", "nodes": [{"_target_": "builtins.list"}]})
    assert held == {"text": "a ${b} \\", "nodes": [[]]} and type(held["nodes"]) is list
    with pytest.raises(ValueError, match=r"_target_=torch\.nn\.Linar cannot be imported"):
        building.build({"_target_": "torch.nn.Linar"})
    with pytest.raises(ValueError, match="nowhere"):  # of a part of it, as its constructor says it
        building.build({"_target_": "builtins.dict", "part": {"_target_": "t2i.convert.tokenizers.load_tokenizer",
                                                              "path": "nowhere"}})
