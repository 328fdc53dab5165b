"""A GPU that cannot do what is asked says so in a line; fakes stand for it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests import tiny

from t2i.config.compose import compose
from t2i.models.base import precision, set_accumulation_and_compile
from t2i.models.vqgan import VQGAN
from t2i.training import hardware, profiling, train

OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver."


def config(folder: Path, *words: str) -> dict[str, Any]:
    paths = [f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}", "trainer.max_steps=2", "name=x"]
    return compose([*tiny.VQGAN, *tiny.DATA, *tiny.TRAINER, *tiny.QUIET, *paths, *words])


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of 10 GB on which a step ends for want of memory."""

    def step(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(VQGAN, "training_step", step)
    monkeypatch.setattr(hardware, "memory_of", lambda device: ("Fake 1080", int(10e9)))


def takes(monkeypatch: pytest.MonkeyPatch, base: float, each: float, most: int = 99) -> list[int]:
    """Lets a measured step take `base` GB and `each` a picture; returns the batches that are measured."""
    asked: list[int] = []

    def measure(config: dict[str, Any], earlier: list[Any]) -> tuple[list[Any], dict[str, float]]:
        asked.append(config["data"]["batch_size"])
        assert config["trainer"]["accumulate_grad_batches"] == 1 and config["trainer"]["devices"] == 1
        if asked[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [], {"memory_gb": base + each * asked[-1]}

    monkeypatch.setattr(profiling, "measure", measure)
    return asked


@pytest.mark.usefixtures("full")
def test_too_little_memory_names_the_batch_that_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = takes(monkeypatch, 2.0, 1.4)  # of 9.2 GB: 7.2 / 1.4 = 5.1
    with pytest.raises(ValueError, match=(
            r"^Fake 1080 has not enough memory \(10\.0 GB\) for data\.batch_size=8: about 5 pictures at once fit\. Try"
            r" trainer\.accumulate_grad_batches=2, with which the step is the same; or data\.batch_size=5; or"
            r" model\.checkpointing=true\. Nothing was saved yet")):
        train.run(config(tmp_path))
    assert asked == [2, 4]


@pytest.mark.usefixtures("full")
@pytest.mark.parametrize(("each", "most", "said"), [
    (3.0, 3, r"for data\.batch_size=8: not even 4 pictures fit\. Try model\.checkpointing=true; or a smaller"),
    (0.0, 9, r"for data\.batch_size=8\. Try model\.checkpointing=true; or a smaller data\.batch_size\."),
])
def test_where_no_batch_can_be_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: float, most: int, said: str
) -> None:
    takes(monkeypatch, 2.0, each, most)
    with pytest.raises(ValueError, match=said):
        train.run(config(tmp_path))


@pytest.mark.slow
def test_the_batch_that_fits_by_real_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine's memory: more of it, larger batches, and none in nothing. Each size is measured once."""
    real, took = profiling.measure, {}

    def measure(config: dict[str, Any], earlier: list[Any]) -> Any:
        size = config["data"]["batch_size"]
        if size not in took:
            took[size] = real(config, earlier)
        return took[size]

    monkeypatch.setattr(profiling, "measure", measure)
    monkeypatch.setattr(profiling, "TIMED", 1)
    held = config(tmp_path, "data.image_size=64", "model.autoencoder.channels=32", "model.discriminator.channels=32")
    found = [hardware.batch_that_fits(held, total, []) for total in (0.0, 20e9, 40e9)]
    assert found[0] == 0 and 16 < found[1] < found[2] < 3 * found[1]


def test_a_driver_that_is_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init() -> None:
        raise RuntimeError(OLD)

    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monkeypatch.setattr(torch.cuda, "init", lambda: (_ for _ in ()).throw(RuntimeError("Found no NVIDIA driver")))
        hardware.tell_driver_fault("auto")  # a machine without a GPU: nothing to tell
        monkeypatch.setattr(torch.cuda, "init", init)
        hardware.tell_driver_fault("cpu")
    with pytest.warns(UserWarning, match=r"on without the GPU\. The NVIDIA driver on your system is too old \(found ver"
                                         r"sion 11040\) \(torch "):
        train.run(config(tmp_path, "trainer.accelerator=auto"))
    with pytest.raises(ValueError, match=r"^trainer\.accelerator=gpu, .* The NVIDIA driver on your system is too old"):
        train.run(config(tmp_path, "trainer.accelerator=gpu", "name=y"))


def test_a_gpu_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Fake 1080")
    for has in (False, True):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert precision("auto", "gpu") == ("bf16-mixed" if has else "32-true")
        assert precision("16-mixed", "gpu") == "16-mixed"
        if has:
            assert precision("bf16-mixed", "gpu") == "bf16-mixed"
        else:
            with pytest.raises(ValueError, match="bf16-mixed: Fake 1080 has no bf16; 16-mixed and 32-true are allowed"):
                precision("bf16-mixed", "gpu")


def test_a_cpu_without_bf16_says_what_it_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert precision("auto", "cpu") == "32-true"
    with pytest.warns(UserWarning, match=r"^trainer\.precision=bf16-mixed: this CPU has no AVX512-BF16, .*32-true"):
        assert precision("bf16-mixed", "cpu") == "bf16-mixed"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert precision("bf16-mixed", "cpu") == precision("auto", "cpu") == "bf16-mixed"


def test_compiling_without_a_compiler_goes_on_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    net, there = torch.nn.Linear(1, 1), ["clang"]
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    model = SimpleNamespace(nets=lambda: [net])
    set_accumulation_and_compile(model, 1, True, 1)
    assert net._compiled_call_impl is not None
    net._compiled_call_impl = None
    there.clear()
    with pytest.warns(UserWarning, match=r"trainer\.compile=true: nothing is compiled, for want of a C compiler"):
        set_accumulation_and_compile(model, 1, True, 1)
    assert net._compiled_call_impl is None
    set_accumulation_and_compile(model, 1, "aot_eager", 1)  # which generates no code
    assert net._compiled_call_impl is not None
