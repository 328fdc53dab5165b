"""What the doors do before any of our work begins."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from t2i.cli import app
from t2i.config.compose import ConfigError

ROUNDS = """
import resource
from t2i.cli.app import keep_freed_memory
{before}
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(1 << 26)
start = faults()
for _ in range(8):
    bytearray(1 << 26)
print(faults() - start)
"""


def new_pages(before: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", ROUNDS.format(before=before)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=clean).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a setting of glibc")
def test_freed_memory_is_kept() -> None:
    by_default, kept = new_pages(""), new_pages("keep_freed_memory()")
    assert kept < 100 and by_default > 2 * kept + 100


@pytest.mark.skipif(platform.libc_ver()[0] == "glibc", reason="glibc has the setting: see above")
def test_elsewhere_it_does_nothing() -> None:
    new_pages("keep_freed_memory()")


@pytest.mark.parametrize(("name", "words", "why"), [
    ("train", ["-m", "model=vqgan", "seed=0,1", "sweep.launcher=joblib"], r"instead of sweep\.launcher= write hydra/l"),
    ("train", ["-m", "model=vqgan", "seed=0,1", "trainer.devices=2"], r"-m with trainer\.devices=2"),
    ("train", ["-m", "model=vqgan", "seed=0,1", "trainer.devices=2", "hydra/launcher=joblib"], r"trainer\.devices=2"),
    ("train", ["-m", "experiments=quickstart", "seed=0,1"], "does not run pipelines"),
    ("train", ["-m", "model=vqgan", "seed=0,1", "estimate=true"], "leave -m out"),
    ("train", ["-m", "model=vqgan", "data.batch_sze=1,2"], r"did you mean data\.batch_size"),
    ("train", ["-m", "model=vqgan", "data.batch_sze=1,2", "hydra/launcher=joblib"], r"did you mean data\.batch_size"),
    ("train", ["-m", "model=vqgan", "model/quantizer=vq,emma"], "model/quantizer=emma: .*did you mean ema"),
    ("train", ["-m", "model=vqgan", "trainer.monitor=val/a,val/b"], r"val/a \(min\), val/b \(min\)"),
    ("train", ["-m", "model=vqgan", "model.learning_rate=interval(0,1)"], "searched by hydra/sweeper=optuna"),
    ("train", ["-m", "model=vqgan", "hydra/sweeper=optuna", "model.larning_rate=interval(0,1)"], "model.learning_rate"),
    ("train", ["-m", "model=vqgan", "hydra/sweeper=optuna", "hydra.sweeper.direction=maximize"], "monitor_mode=min"),
    ("train", ["-m", "model=vqgan", "hydra/sweeper=optuna", "trainer.monitor=null"], "needs a metric to search by"),
    ("train", ["model=vqgan", "hparams_search=vqgan_optuna"], "put -m before"),
    ("train", ["model=vqgan", "seed=1,2"], "seed has several values: put -m"),
    ("sample", ["-m", "seed=0,1"], "ckpt= is needed"),
])
def test_what_cannot_be_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: list[str], why: str
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=why):
        app.prepared(name, words)
    assert not list(tmp_path.iterdir())


def test_torchrun_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="under torchrun"):
        app.prepared("train", ["-m", "model=vqgan", "seed=0,1"])


def test_of_several_processes_the_first_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert app.prepared("train", ["model=vqgan"]) == ["model=vqgan"]
    monkeypatch.setenv("RANK", "1")
    assert app.prepared("train", ["model=vqgan"]) == ["model=vqgan", "hydra.output_subdir=null",
                                                      "hydra/job_logging=none"]
