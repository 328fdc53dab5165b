"""Two processes by `trainer=ddp` and `trainer=fsdp` against one: losses, kill -9 of both, and the weights after it.

    python tests/campaign/two_processes.py

Each model trains 60 steps of small pictures, logged every 20 steps as by default, with validations and checkpoints: in
one process, in two, and in two that are killed after a checkpoint and go on. Then, by `python train.py` itself, one of
two processes is killed, and a run is told twice to stop. Exit code 1 where anything is not as it should be.
"""

from __future__ import annotations

import csv
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src"), str(ROOT)]
    os.environ["OMP_NUM_THREADS"] = "1"

import torch  # noqa: E402
from pytorch_lightning.utilities.rank_zero import rank_zero_only  # noqa: E402

from campaign import forked  # noqa: E402
from tests import tiny  # noqa: E402

SMALL = ["data.image_size=32", "data.size=96", "data.val_size=22", "data.batch_size=8", "trainer.precision=32-true",
         "trainer.val_every_steps=25", "trainer.checkpoint_every_steps=15", "trainer.max_steps=60", "logger=csv",
         "callbacks.plots=null"]
MODELS = {
    "clip": tiny.CLIP,
    "vqgan": [*tiny.VQGAN, "model.discriminator.norm=none", "model.discriminator_start=0.25"],
    "prior": [*tiny.PRIOR, "model.num_layers=2", "model.dropout=0", "trainer.gradient_clip_val=1"],
    "dfgan": [*tiny.DFGAN, "callbacks=gan", "trainer.gradient_clip_val=100"],
    "stackgan1": [*tiny.STACKGAN1, "model/discriminator=unet", "model.discriminator.channels=2",
                  "model.cutmix_steps=1"],
}
SINCE_VALIDATION = ("val/gap", "train/codebook_")  # of the steps since the last one, or since the start of the process
FORK = get_context("fork")  # of a process that has imported everything


def command(folder: Path, model: str, ranks: int, trainer: str, *more: str) -> list[str]:
    """The words behind `train.py` for a model of which earlier parts lie in `folder`."""
    parts = [f"model.tokenizer.path={folder}/vqgan/last.ckpt", f"text_encoder.path={folder}/clip/hf"]
    told = parts if model == "prior" else parts[1:] if "gan" in model and model != "vqgan" else []
    return [*MODELS[model], *SMALL, *told, f"trainer={trainer}", "trainer.accelerator=cpu", f"trainer.devices={ranks}",
            f"paths.runs={folder}", f"paths.cache={folder}/cache", f"name={model}", *more]


def _one_of(rank: int, ranks: int, port: int, words: list[str], log: str, torchrun: bool, app: str) -> None:
    """One process of a run, as Lightning's launcher or torchrun starts it: `app`.py, its rank in the environment."""
    with open(log, "a") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))  # a fork has its parent's
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank),
                   "WORLD_SIZE": str(ranks)}
    if torchrun:
        os.environ |= {"TORCHELASTIC_RUN_ID": "none", "RANK": str(rank), "GROUP_RANK": "0",
                       "LOCAL_WORLD_SIZE": str(ranks)}
    rank_zero_only.rank = rank  # was set when it was imported, for the environment of then
    torch.set_num_threads(1)
    sys.argv = [str(ROOT / f"{app}.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")


def free_port() -> int:
    """A port below those that the system gives to whoever asks: none other takes it before it is used."""
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as found, suppress(OSError):
            found.bind(("127.0.0.1", port))
            return port


def start(ranks: int, words: Sequence[str], log: Path, torchrun: bool = False, app: str = "train") -> list[Any]:
    forked.warm()
    port = free_port()
    processes = [FORK.Process(target=_one_of, args=(rank, ranks, port, list(words), str(log), torchrun, app))
                 for rank in range(ranks)]
    for process in processes:
        process.start()
    return processes


def wait(processes: Sequence[Any], log: Path, seconds: float = 240) -> None:
    """Waits for all; AssertionError where one fails or hangs, with what was printed."""
    until = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * len(codes), f"exit codes {codes}\n{log.read_text()}"


def run(ranks: int, words: Sequence[str], log: Path, torchrun: bool = False, app: str = "train") -> None:
    wait(start(ranks, words, log, torchrun, app), log)


def run_broken(ranks: int, words: Sequence[str], run_dir: Path, log: Path, torchrun: bool = False) -> None:
    """A run of which every process is killed (SIGKILL) after its first checkpoint, and the same command once more."""
    processes = start(ranks, words, log, torchrun)
    until = time.monotonic() + 240
    while not (run_dir / "last.ckpt").is_file() and time.monotonic() < until:
        time.sleep(0.01)
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * ranks, log.read_text()
    assert not (run_dir / "finished.json").exists()
    run(ranks, words, log, torchrun)
    assert "Continuing from" in log.read_text()


def rows(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def pairs(one: Path, two: Path) -> Iterator[tuple[str, float, float]]:
    """What two runs logged, name by name; AssertionError where one logged what the other did not."""
    a, b = rows(one), rows(two)
    assert [row["step"] for row in a] == [row["step"] for row in b], (one, two)
    for x, y in zip(a, b, strict=True):
        assert x.keys() == y.keys()
        for name in x:
            assert (x[name] == "") == (y[name] == ""), (name, x["step"])
            if x[name]:
                yield f"{name} at step {x['step']}", float(x[name]), float(y[name])


def apart(one: Path, two: Path, *but: str) -> float:
    """The largest difference of what two runs logged, relative where it is of more than 1; without some names."""
    return max(abs(a - b) / max(1.0, abs(a)) for name, a, b in pairs(one, two) if not name.startswith(but))


def same(a: Any, b: Any) -> bool:
    """Whether two checkpoints' weights or optimiser states are the same bit for bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def compared(folder: Path, model: str, trainer: str) -> tuple[float, bool]:
    """How far two processes' losses are from one's, and whether after a kill they come to the unbroken weights."""
    from t2i.checkpoint import file_format

    one, two = folder / model, folder / f"{model}-{trainer}"
    if not one.is_dir():
        run(1, command(folder, model, 1, "cpu"), folder / f"{model}.log")
    run(2, command(folder, model, 2, trainer, f"name={two.name}"), folder / f"{two.name}.log")
    broken = folder / f"{two.name}-broken"
    words = command(folder, model, 2, trainer, f"name={broken.name}")
    run_broken(2, words, broken, folder / f"{broken.name}.log")
    a, b = (file_format.read(each / "last.ckpt") for each in (two, broken))
    equal = all(same(a[key], b[key]) for key in ("state_dict", "optimizer_states"))
    equal &= apart(two, broken, *SINCE_VALIDATION) == 0
    return apart(one, two), equal


def lines(text: str) -> list[str]:
    """What was printed, without the lines of progress."""
    return [line for line in text.splitlines() if line.strip() and not re.match(r"\S+  (step )?\d+", line)]


def by_train(folder: Path, name: str) -> tuple[subprocess.Popen[str], int]:
    """`python train.py … trainer=ddp` with a long run ahead, after its first checkpoint, and its second process."""
    words = command(folder, "vqgan", 2, "ddp", f"name={name}", "trainer.max_steps=100000")
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.STDOUT, start_new_session=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 240
    while not (folder / name / "last.ckpt").is_file():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = [child for child in children if b"train.py" in Path(f"/proc/{child}/cmdline").read_bytes()]
    assert len(ranks) == 1, children
    return process, int(ranks[0])


def one_killed(folder: Path) -> tuple[int, list[str]]:
    """Exit code and lines when the second of two processes is killed; the first is, too, if it hangs."""
    process, child = by_train(folder, "one-killed")
    os.kill(child, signal.SIGKILL)
    text = process.communicate(timeout=60)[0]
    return process.returncode, lines(text)


def first_killed(folder: Path) -> list[str]:
    """What the second process says when the first is killed."""
    process, _ = by_train(folder, "first-killed")
    os.kill(process.pid, signal.SIGKILL)
    return lines(process.communicate(timeout=60)[0])  # which ends when nobody has an end of the pipe any more


def told_twice(folder: Path) -> tuple[int, list[str]]:
    """Exit code and lines after two SIGINT to all processes, as Ctrl-C in a terminal sends them."""
    process, _ = by_train(folder, "told-twice")
    assert process.stdout is not None
    os.killpg(process.pid, signal.SIGINT)
    earlier = ""
    while "Stopping after this batch" not in earlier:
        earlier += process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=60)[0]
    return process.returncode, lines(earlier + text)


def main() -> int:
    fine = True
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        print("| model | strategy | steps | losses of 2 ranks and 1 differ by | weights after kill -9 | seconds |")
        print("| --- | --- | ---: | ---: | --- | ---: |")
        for model in MODELS:
            for trainer in ("ddp", "fsdp") if model == "prior" else ("ddp",):
                since = time.monotonic()
                apart_by, equal = compared(folder, model, trainer)
                fine &= equal and apart_by < (1e-3 if model in ("dfgan", "stackgan1") else 1e-5)  # chaos of rounding
                print(f"| {model} | {trainer} | 60 | {apart_by:.1e} | {'equal' if equal else 'DIFFERENT'} |"
                      f" {time.monotonic() - since:.0f} |", flush=True)
        code, told = one_killed(folder)
        fine &= code == 2 and len(told) == 1
        print(f"\nThe second of two killed: exit code {code}\n  " + "\n  ".join(told))
        told = first_killed(folder)
        fine &= len(told) == 1
        print("\nThe first of two killed:\n  " + "\n  ".join(told))
        code, told = told_twice(folder)
        fine &= code == 130 and told[-1].startswith("Aborted at step")
        print(f"\nTold twice to stop: exit code {code}\n  " + "\n  ".join(told))
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
