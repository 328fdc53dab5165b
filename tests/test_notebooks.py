"""docs/notebooks run from top to bottom, in a folder outside of the clone, with tiny nets; nobody's paths are in them.

One kernel runs all, and what one trained the next finds.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import nbformat
import pytest
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient

from campaign import forked
from t2i.config.places import ROOT
from tests import tiny
from tests.in_child import start, wait

FOLDER = ROOT / "docs/notebooks"
NAMES = ("first_picture", "guided_live", "your_pictures", "compare_priors")
LARGEST = 300_000  # bytes
SHORT = ["trainer=cpu", "trainer.precision=32-true", "trainer.max_steps=2", "trainer.val_every_steps=2",
         "trainer.limit_val_batches=1", "logger=csv", "callbacks.plots=null"]
CLIP = [*SHORT, *tiny.CLIP[1:], "model.patch_size=16", "data.batch_size=8"]
VQGAN = [*SHORT, "model.autoencoder.channels=8", "model.autoencoder.z_channels=12", "model.discriminator.channels=4",
         "data.batch_size=4"]
PRIOR = [*SHORT, *tiny.TRANSFORMER, "data.batch_size=8"]
SCENES = ["data.size=48", "data.val_size=8"]
TINY: dict[str, dict[str, Any]] = {
    "first_picture": {"N_PER_TASK": 2},
    "guided_live": {"STEPS": 3, "SHOW_STEP": 2, "BATCH_SIZE": 2},
    "your_pictures": {"EXAMPLES": 24},
    "compare_priors": {"N_PER_TASK": 2, "SHORTER": ["trainer.max_steps=1", "trainer.val_every_steps=1"]},
}


class Connected(KernelManager):
    """Of a kernel that another started."""

    has_kernel = True


@pytest.fixture(scope="module")
def execute(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """Runs a notebook with its parameters replaced; returns it with its outputs."""
    place = tmp_path_factory.mktemp("notebooks")
    manager = Connected(connection_file=str(place / "kernel.json"), owns_kernel=False)
    manager.write_connection_file()

    def kernel() -> None:  # in a fork of this process, which has imported everything
        os.chdir(place)
        os.environ["IPYTHONDIR"] = str(place / "ipython")
        asyncio.set_event_loop(asyncio.new_event_loop())
        IPKernelApp.launch_instance(["-f", manager.connection_file])

    forked.warm()
    number = start(kernel, place / "log")
    client = manager.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=60)

    def run(name: str) -> Any:
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
        (at,) = (i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", []))
        scenes = SCENES if name != "your_pictures" else []
        given = {"CLIP": [*CLIP, *scenes], "VQGAN": [*VQGAN, *scenes], "PRIOR": [*PRIOR, *scenes]} | TINY[name]
        source = notebook.cells[at].source
        assert all(key in source for key in TINY[name])
        words = [f"{key} = {value!r}" for key, value in given.items()]
        notebook.cells.insert(at + 1, nbformat.v4.new_code_cell("\n".join(words)))
        runner = NotebookClient(notebook, km=manager, timeout=240)
        runner.kc = client
        return runner.execute(reset_kc=False)

    yield run
    client.stop_channels()
    os.kill(number, signal.SIGKILL)
    wait(number)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_top_to_bottom(name: str, execute: Callable[[str], Any]) -> None:
    cells = [cell for cell in execute(name).cells if cell.cell_type == "code"]
    shown = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(shown) >= {"first_picture": 3, "guided_live": 3, "your_pictures": 3, "compare_priors": 1}[name]


def test_none_is_left_out() -> None:
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_is_small_runs_in_colab_and_has_nobodys_paths(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < LARGEST
    assert not [word for word in ("/home/", "/root/", "/tmp/", "/Users/", str(ROOT)) if word in text]
    first = [next(cell.source for cell in nbformat.read(FOLDER / f"{other}.ipynb", 4).cells if cell.cell_type == "code")
             for other in NAMES]
    assert len(set(first)) == 1 and '"google.colab" in sys.modules' in first[0] and "%pip install" in first[0]
