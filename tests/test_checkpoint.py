"""The checkpoint format, and what it refuses."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from t2i import checkpoint

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
    return {"state_dict": model.state_dict(), "t2i": checkpoint.pack(model, CONFIG) | changes}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "last.ckpt"


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {os.environ['T2I_TEST_FILE']}",)


def test_round_trip(path: Path) -> None:
    model = checkpoint.build(MODEL)
    checkpoint.save_atomic(held(model), path)
    again = checkpoint.load(path, kind="tokenizer")
    assert not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    torch.load(path, weights_only=True)
    assert len(checkpoint.file_hash(path)) == 16


def test_averaged_weights_are_preferred(path: Path) -> None:
    model = checkpoint.build(MODEL)
    averaged = {"quant_conv.weight": torch.zeros_like(model.quant_conv.weight)}
    checkpoint.save_atomic(held(model) | {"ema": {"weights": averaged, "updates": 1}}, path)
    assert checkpoint.load(path).quant_conv.weight.abs().sum() == 0
    assert torch.equal(checkpoint.load(path, ema=False).quant_conv.weight, model.quant_conv.weight)
    checkpoint.save_atomic(held(model) | {"ema": {"weights": {"nothing": torch.zeros(1)}, "updates": 1}}, path)
    with pytest.raises(ValueError, match="nothing"):
        checkpoint.load(path)


def test_parts_are_built_from_the_file_alone(path: Path) -> None:
    quantizer = {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 8, "dim": 4}
    model = checkpoint.build(MODEL, quantizer=checkpoint.build(quantizer))
    part = {"config": quantizer, "state_dict": model.quantizer.state_dict()}
    checkpoint.save_atomic(held(model, parts={"quantizer": part}), path)
    again = checkpoint.load(path)
    assert again.codebook_size == 8
    assert torch.equal(again.quantizer.codebook, model.quantizer.codebook)


def test_wrong_kind(path: Path) -> None:
    checkpoint.save_atomic(held(checkpoint.build(MODEL)), path)
    with pytest.raises(ValueError, match=r"last\.ckpt holds a tokenizer; a prior is wanted"):
        checkpoint.read(path, kind="prior")


def test_newer_format(path: Path) -> None:
    checkpoint.save_atomic(held(checkpoint.build(MODEL), format=2), path)
    with pytest.raises(ValueError, match=r"format 2; this version reads format 1"):
        checkpoint.read(path)


def test_weights_that_do_not_fit(path: Path) -> None:
    content = held(checkpoint.build(MODEL))
    weights = content["state_dict"]
    content["state_dict"] = {k: v for k, v in weights.items() if k != "quant_conv.bias"} | {
        "extra": torch.zeros(1), "quant_conv.weight": torch.zeros(1)}  # fmt: skip
    checkpoint.save_atomic(content, path)
    with pytest.raises(ValueError, match=r"missing quant_conv\.bias; unexpected extra; quant_conv\.weight has shape"):
        checkpoint.load(path)


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
        checkpoint.read(path)
    assert str(path) in str(caught.value)


def test_truncated_anywhere(path: Path) -> None:
    checkpoint.save_atomic(held(checkpoint.build(MODEL)), path)
    whole = path.read_bytes()
    for share in (0.01, 0.5, 0.9, 0.999):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ValueError, match=r"cut off|cannot be read"):
            checkpoint.read(path)


def test_safetensors_and_foreign_dictionaries(path: Path) -> None:
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="safetensors"):
        checkpoint.read(path)
    torch.save({"state_dict": {}, "epoch": 3}, path)
    with pytest.raises(ValueError, match=r"no section 't2i' \(it holds epoch, state_dict\)"):
        checkpoint.read(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="no section 't2i'"):
        checkpoint.read(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_runs_nothing(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool
) -> None:
    monkeypatch.setenv("T2I_TEST_FILE", str(tmp_path / "ran"))
    torch.save({"state_dict": {}, "t2i": Hostile()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"system" if zipped else r"cannot be read|system"):
        checkpoint.read(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ValueError, match=r"cannot be read|system"):
        checkpoint.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "target",
    ["os.system", "torch.load", "t2i.checkpoint.os", "t2i.checkpoint.importlib", "t2i.checkpoint.torch.load",
     "t2i.nothing.Thing", "t2i.nets.autoencoder.nn", "t2i.models.vqgan.Tensor", "t2i", "t2i..x", None, 3,
     "subprocess.Popen", "t2i.checkpoint.Path", "t2ix.y"],
)  # fmt: skip
def test_targets_outside_the_package_are_refused(path: Path, target: Any) -> None:
    with pytest.raises(ValueError, match="_target_"):
        checkpoint.build({"_target_": target, "args": ["true"]})
    model = checkpoint.build(MODEL)
    content = held(model)
    content["t2i"]["config"] = {"model": MODEL | {"quantizer": {"_target_": target}}}
    checkpoint.save_atomic(content, path)
    with pytest.raises(ValueError, match="_target_"):
        checkpoint.load(path)


def test_only_plain_values_are_packed() -> None:
    with pytest.raises(TypeError, match=r"config\.a\.0 is a PosixPath"):
        checkpoint.pack(torch.nn.Linear(1, 1), {"a": [Path("x")]})
    assert checkpoint.pack(torch.nn.Linear(1, 1), {"a": (1, 2)})["config"] == {"a": [1, 2]}


def test_a_failed_write_leaves_the_old_file(path: Path) -> None:
    checkpoint.save_atomic({"a": 1}, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="pickle"):
        checkpoint.save_atomic({"a": lambda: 0}, path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["last.ckpt"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_names_the_path(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save_atomic({"a": 1}, path)
    before = path.read_bytes()
    opened = Path.open
    full = Path("/dev/full")
    monkeypatch.setattr(Path, "open", lambda self, *a: opened(full if self.suffix == ".tmp" else self, *a))
    with pytest.raises(OSError, match=r"last\.ckpt could not be written: No space left") as caught:
        checkpoint.save_atomic({"a": torch.zeros(100_000)}, path)
    assert "untouched" in str(caught.value)
    monkeypatch.undo()
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="could not be written"):
        checkpoint.save_atomic({"a": 1}, tmp_path / "file" / "last.ckpt")
    with pytest.raises(OSError, match="could not be written"):
        checkpoint.write_text(tmp_path / "file" / "x.json", "{}")


def test_reading_does_not_import_what_the_file_names(path: Path) -> None:
    content = held(checkpoint.build(MODEL))
    content["t2i"]["config"] = {"model": {"_target_": "antigravity.thing"}}
    checkpoint.save_atomic(content, path)
    with pytest.raises(ValueError, match="_target_"):
        checkpoint.load(path)
    assert "antigravity" not in sys.modules
