"""How the test processes are set, and what keeps one test from reaching the next.

One thread a test: cores are shared between workers, and sums then do not depend on how many there are.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch and NumPy are imported
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import gc
import logging
import pickle
import random
import signal
import sys
import tempfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from t2i.checkpoint import registry  # torch comes later: xdist's first process, which runs no test, needs none


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """What the imports leave stays: the collector, also where a test or t2i calls it, looks at newer objects alone.
    With all that torch and transformers hold it takes half a second each time. By itself it looks less often."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else nanobind, at the end of the process, tells of all that was never collected


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share a fixture of their module stay on one worker, which makes it once."""
    import torch

    torch.set_num_threads(1)
    for item in items:
        made = item._fixtureinfo.name2fixturedefs.values()  # type: ignore[attr-defined]
        if any(each[-1].scope == "module" for each in made) and not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    # Long ones first, so that none is left to one worker at the end; groups begin before what stands alone.
    items.sort(key=lambda item: bool(item.get_closest_marker("xdist_group")) or not item.get_closest_marker("slow"))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """What compiles runs in a process of its own: it starts threads of autograd's, with which later tests could not
    fork."""
    if pyfuncitem.get_closest_marker("compiles") is None:
        return None
    from tests.in_child import in_child

    given = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        code = in_child(lambda: pyfuncitem.obj(**given), log)
        if code:
            pytest.fail(f"in its own process, exit code {code}:\n{log.read_text()}", pytrace=False)
    return True


def _compiled() -> int:
    """How many graphs torch.compile has made in this process."""
    dynamo = sys.modules.get("torch._dynamo.utils")
    return 0 if dynamo is None else dynamo.counters["stats"]["unique_graphs"]


def _seed() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


def _read_once() -> None:
    """Configs are composed again and again: what their files hold is parsed once."""
    load: Any = OmegaConf.load
    held: dict[str, bytes] = {}

    def remembered(file: Any) -> Any:
        text = file.read() if hasattr(file, "read") else Path(file).read_text(encoding="utf-8")
        if text not in held:
            held[text] = pickle.dumps(load(StringIO(text)))
        return pickle.loads(held[text])

    OmegaConf.load = staticmethod(remembered)  # type: ignore[method-assign]


_read_once()


_begun: set[Path] = set()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fixtures of modules, too, begin with the same random numbers wherever they are made; what the modules before
    imported and kept stays as what collecting left."""
    if item.path not in _begun:
        _begun.add(item.path)
        gc.collect()
        gc.freeze()
    _seed()


@pytest.fixture(autouse=True)
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a test changes of the whole process is put back; each begins with the same random numbers."""
    import torch

    environment, words, path, folder, modules = dict(os.environ), sys.argv[:], sys.path[:], Path.cwd(), set(sys.modules)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    root, level, logged = logging.getLogger(), logging.getLogger().level, logging.getLogger().handlers[:]
    compiled = _compiled()
    _seed()
    yield
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[:], sys.path[:] = words, path
    os.chdir(folder)
    for number, handler in handlers.items():
        signal.signal(number, handler)
    root.setLevel(level)
    root.handlers[:] = logged
    registry.trust([])
    torch.set_num_threads(1)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    if torch.are_deterministic_algorithms_enabled():  # setting it imports torch's compiler, five seconds
        torch.use_deterministic_algorithms(False)
    assert _compiled() == compiled, "something was compiled: @pytest.mark.compiles"
    scratch = str(tmp_path_factory.getbasetemp())
    for name in set(sys.modules) - modules:  # of a test's own folder: the next one may have another of that name
        if str(sys.modules[name].__dict__.get("__file__")).startswith(scratch):
            del sys.modules[name]
