"""What a recipe costs on this machine, before the long run: parameters, memory, speed. Trains nothing, writes nothing.

A few steps of the real model and trainer at the recipe's batch size, on random pictures or codes under captions of
words. Loading data, validation and the caches that a run makes first are not in the figures. A tokenizer or CLIP that
has not been trained yet is stood in for by a fresh one of the same shape, where a stage or recipe says which.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import re
import resource
import sys
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from t2i.checkpoint import building, registry
from t2i.config import quiet
from t2i.config.check import nodes
from t2i.config.compose import ConfigError, choices, compose, plan
from t2i.models.base import set_accumulation_and_compile
from t2i.models.vqgan import TOKENIZER
from t2i.training import batch_size, train
from t2i.types import Batch, CodeBatch

TIMED, SECONDS = 5, 15.0  # steps that are timed: so many, or as many as begin within the seconds
WORDS = ["a", "red", "circle", "above", "two", "small", "blue", "squares", "on", "a", "white", "ground"]
Row = tuple[str, str, str]  # what, how much, how it is known


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process in memory, now or (VmHWM) at most; the most so far on systems without /proc."""
    if (status := Path("/proc/self/status")).is_file():
        found = re.search(rf"{what}:\s+(\d+) kB", status.read_text())
        assert found is not None
        return 1024 * int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Peak:
    """The most memory between `start` and `stop` above that at the start, in bytes: allocated on a GPU, else
    resident."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"

    def start(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)  # the apps tell glibc to keep what was freed (t2i.cli.app)
        with suppress(OSError):  # refused in some containers: then the process's whole past counts
            Path("/proc/self/clear_refs").write_text("5")
        self.before = resident()

    def stop(self) -> int:
        return (torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")) - self.before


class Meter(pl.Callback):
    """Measures the steps of each phase: one that counts operations and warms up (two more where nets are compiled),
    one that watches memory, and a few that are timed. Phases are fractions of training: with and without the
    discriminator where it starts later."""

    def __init__(self, model: Any, compiled: bool) -> None:
        start = getattr(model, "discriminator_start", None) if getattr(model, "has_discriminator", False) else None
        shares = {"": 1.0} if start is None else {" without the discriminator": start, " with it": 1 - start}
        self.phases = {name: share for name, share in shares.items() if share > 0}
        self.waiting, self.watched = list(self.phases), 3 if compiled else 1
        self.seconds: dict[str, float] = {}
        self.operations: dict[str, float] = {}
        self.activations: dict[str, int] = {}
        self.state = self.step = 0
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if self.step == 0:
            if hasattr(module, "discriminator_start"):
                module.discriminator_start = 2.0 if "without" in self.waiting[0] else 0.0
            torch.compiler.set_stance("force_eager" if self.watched > 1 else "default")
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()
        elif self.step == self.watched:
            self.peak = Peak(module.device)
            self.peak.start()
        self.started = self.now(module)

    def now(self, module: Any) -> float:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        took, phase = self.now(module) - self.started, self.waiting[0]
        if self.step == 0:
            self.counter.__exit__(None, None, None)
            torch.compiler.set_stance("default")
            self.operations[phase] = float(self.counter.get_total_flops())
        elif self.step == self.watched:
            self.activations[phase] = self.peak.stop()
            self.state = sum(value.numel() * value.element_size() for optimizer in trainer.optimizers
                             for state in optimizer.state.values() for value in state.values()
                             if isinstance(value, torch.Tensor))
        if self.step > self.watched or (self.step == self.watched and took > SECONDS):
            self.times.append(took)
        self.step += 1
        if len(self.times) == TIMED or sum(self.times) > SECONDS:
            self.seconds[phase] = sorted(self.times)[len(self.times) // 2]
            self.waiting, self.step, self.times = self.waiting[1:], 0, []
            trainer.should_stop = not self.waiting


@cache  # once for all stages
def matrix_product(device: torch.device, precision: str) -> tuple[int, float]:
    """The side of a big matrix product in the run's precision, and its operations a second at best."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision, torch.float32)
    n, best = 8192 if device.type == "cuda" else 2048, float("inf")
    a = torch.randn(n, n, device=device).to(dtype)
    for _ in range(4):
        started = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - started)
    return n, 2 * n**3 / best


def captions(count: int) -> list[str]:
    return [" ".join(WORDS[: 4 + i % (len(WORDS) - 3)]) for i in range(count)]


def devices(config: dict[str, Any]) -> int:
    t = config["trainer"]
    found = len(t["devices"]) if isinstance(t["devices"], list) else t["devices"]
    if found in (-1, "auto"):
        found = max(1, torch.cuda.device_count()) if t["accelerator"] != "cpu" else 1
    return found * t["num_nodes"]


class Parts:
    """What a model's constructor would load and is not there yet: fresh parts of the same shape.

    Args:
        earlier: the configs of the stages before it.
    """

    def __init__(self, config: dict[str, Any], earlier: list[dict[str, Any]]) -> None:
        self.config, self.earlier = config, earlier

    def missing(self, part: str) -> Path | None:
        node = self.config["model"].get(part)
        path = node["path"] if node and "path" in node else None  # null: what comes with a package
        return Path(path) if path is not None and not Path(path).expanduser().exists() else None

    def maker(self, path: Path, kind: str) -> dict[str, Any] | None:
        """The config of the run that makes a file: an earlier stage's, its folder's own, or the recipe of that name;
        None for one of another kind of model."""
        runs, folder = Path(self.config["paths"]["runs"]), path.parent
        name = folder.relative_to(runs).as_posix() if folder.is_relative_to(runs) else ""
        made = next((other for other in self.earlier if other["name"] == name), None)
        if made is None and (folder / "config.json").is_file():
            made = json.loads((folder / "config.json").read_text())
        if made is None and name in choices("experiments"):
            root = [f"data.root={self.config['data']['root']}"] if "root" in self.config["data"] else []
            with suppress(ConfigError):
                made = compose([f"experiments={name}", *root], files=False)
        return made if made is not None and kind in made["model"]["_target_"] else None

    def needed(self, path: Path, part: str, kind: str, group: str) -> dict[str, Any]:
        if (made := self.maker(path, kind)) is None:
            raise ValueError(f"model.{part}.path={path} does not exist, and no stage or recipe says what it will be:"
                             f" this file is needed first. Train it (model={group}), or estimate the pipeline that"
                             " makes it")
        return made

    def given(self) -> dict[str, Any]:
        """By argument."""
        found: dict[str, Any] = {}
        if (path := self.missing("tokenizer")) is not None:
            model = self.needed(path, "tokenizer", ".vqgan.", "vqgan")["model"]
            node = {key: model[key] for key in TOKENIZER if key in model}
            found["tokenizer"] = frozen({"_target_": "t2i.nets.tokenizer.ImageTokenizer", **node})
        path = self.missing("text_encoder")
        # An encoder that is neither there nor to be made may be a hub's: its constructor tells.
        made = None if path is None else self.maker(path, ".clip.")
        if made is not None:
            clip = building.build(made["model"])
            clip.prepare(captions(64))
            with tempfile.TemporaryDirectory() as folder:
                clip.export(folder)
                found["text_encoder"] = building.build(self.config["model"]["text_encoder"] | {"path": folder})
        if (path := self.missing("stage1")) is not None:
            made = self.needed(path, "stage1", ".stackgan.", "stackgan1")
            fresh, model = Parts(made, self.earlier).given(), made["model"]
            encoder = fresh["text_encoder"] if "text_encoder" in fresh else building.build(model["text_encoder"])
            found["stage1"] = frozen({"_target_": "t2i.models.stackgan.Coarse", "generator": model["generator"],
                                      "pooled_dim": encoder.pooled_dim, "projection": model["projection"]},
                                     text_encoder=encoder)
        return found


def frozen(node: dict[str, Any], **given: Any) -> Any:
    return building.build(node, **given).eval().requires_grad_(False)


def batch(config: dict[str, Any], model: Any, size: int) -> Batch | CodeBatch:
    text, keys = captions(size), [f"synthetic/{i}" for i in range(size)]
    if model.batch == "images":
        side = config["data"]["image_size"]
        return Batch(torch.rand(size, 3, side, side) * 2 - 1, text, keys)
    rows, columns = model.tokenizer.grid
    ids = torch.randint(model.tokenizer.codebook_size, (size, rows * columns))
    if not model.cache_text:
        return CodeBatch(ids, text, keys)
    states = model.text_encoder.states(text)
    return CodeBatch(ids, text, keys, states.states, states.mask)


def count(module: Any) -> int:
    holder = module if hasattr(module, "parameters") else module.tower
    return sum(p.numel() for p in holder.parameters())


def size_of(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def millions(value: float) -> str:
    return f"{value / 1e6:.3f} M" if value < 1e7 else f"{value / 1e6:.1f} M"


def parameters(model: Any, outside: list[Any]) -> list[Row]:
    """Parameters of what trains, two levels deep where a part is worth a line, and of what is frozen."""
    total, rows = count(model), []
    for name, child in model.named_children():
        rows.append((f"parameters of {name}", millions(count(child)), "counted"))
        inside = [(inner, count(module)) for inner, module in child.named_children()]
        rows += [(f"  {inner}", millions(n), "counted") for inner, n in inside if n > 0.05 * total]
    return rows + [(f"frozen: {type(part).__name__}", millions(count(part)), "counted") for part in outside]


def measure(config: dict[str, Any], earlier: list[dict[str, Any]]) -> tuple[list[Row], dict[str, float]]:
    """The table of one stage, and its main figures."""
    config, t = copy.deepcopy(config), config["trainer"]
    for _, node in nodes(config["model"]):
        if str(node["_target_"]).startswith("t2i.quantizers.") and "warmup_steps" in node:
            node["warmup_steps"] = 0  # the steps that follow are the many
        if "quantizer_start" in node:
            node["quantizer_start"] = 0.0
    config["logger"] = {}
    config["trainer"] = {**t, "devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": 10**9,
                         "limit_val_batches": 0}
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    model = building.build_model(config, **Parts(config, earlier).given())
    if hasattr(model, "prepare"):
        model.prepare(captions(64))
    set_accumulation_and_compile(model, t["accumulate_grad_batches"], t["compile"], config["data"]["batch_size"])
    world = devices({"trainer": t})
    size = max(1, config["data"]["batch_size"] // world)
    averaged = config["callbacks"].get("ema")
    meter = Meter(model, bool(t["compile"]))
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [meter, *([building.build(averaged)] if averaged else [])]
        trainer = train.make_trainer(config, Path(folder), callbacks, model)
        data = [batch(config, model, size)] * 1000  # more than there are steps
        loader: DataLoader[Any] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
        trainer.fit(model, loader, loader)
    outside = [part for part in model.frozen_parts if part is not None]
    trained = sum(p.numel() * p.element_size() for p in model.parameters())
    fixed = 4 * sum(map(count, outside))
    shadow = 4 * sum(count(model.get_submodule(name)) for name in averaged["modules"]) if averaged else 0
    memory = 2 * trained + fixed + shadow + meter.state + max(meter.activations.values())
    on_cpu, device = model.device.type != "cuda", trainer.strategy.root_device
    one = f"; one device of {world}, its share of the batch" if world > 1 else ""
    rows = [("batch", f"{size} pictures, {trainer.precision}, {device}{one}", "the config"),
            *parameters(model, outside),
            ("weights", size_of(trained + fixed), "counted"), ("gradients", size_of(trained), "counted"),
            ("optimiser state", size_of(meter.state), "measured")]
    rows += [("averaged weights (EMA)", size_of(shadow), "counted")] if averaged else []
    rows += [(f"activations and the rest{name}, at most", size_of(value),
              f"measured ({'resident' if on_cpu else 'allocated'})") for name, value in meter.activations.items()]
    rows.append(("memory together", size_of(memory), "beside Python and its libraries"))
    n, fastest = matrix_product(device, str(trainer.precision))
    tokens = model.gpt.num_codes if model.batch == "codes" else None
    for name, seconds in meter.seconds.items():
        speed = f"{1 / seconds:.3g} steps/s, {size / seconds:.3g} images/s"
        speed += f", {size * tokens / seconds:.3g} tokens/s" if tokens else ""
        done = meter.operations[name] / seconds
        rows += [(f"a step{name}", f"{seconds:.3g} s: {speed}", f"measured, median of up to {TIMED}"),
                 ("  operations", f"{meter.operations[name] / 1e9:.3g} GFLOP", "counted by torch"),
                 ("  of the hardware", f"{done / 1e9:.3g} GFLOP/s, {done / fastest:.0%} of a matrix product of {n}"
                  f" ({fastest / 1e9:.3g} GFLOP/s)", "measured")]
    mean = sum(share * meter.seconds[name] for name, share in meter.phases.items())
    hours = t["max_steps"] * mean / 3600
    rows.append((f"{t['max_steps']:,} steps", f"{hours:.2f} h", "computed; without data, validation, caches"))
    if t["max_minutes"] is not None and (most := t["max_minutes"] / 60) < hours:
        last = int(3600 * most / mean)
        rows.append(("  ends before", f"{most:.2f} h, at about step {last:,}", "trainer.max_minutes"))
        hours = most
    return rows, {"parameters": float(count(model)), "memory_gb": memory / 1e9, "seconds_a_step": mean, "hours": hours}


def table(rows: list[Row]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"  {what:{widths[0]}}  {value:{widths[1]}}  {how}" for what, value, how in rows)


def run(config: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Prints one table a stage; returns the main figures, of a pipeline by stage."""
    quiet.quiet()
    registry.trust(config["trust"])
    stages = [compose(stage.overrides, files=False) for stage in plan(overrides)] if config["stages"] else [config]
    found: dict[str, Any] = {}
    for i, stage in enumerate(stages):
        print(f"\nEstimate of {stage['name']} ({stage['model']['_target_'].rpartition('.')[2]})", flush=True)
        rows, figures = measure(batch_size.chosen(stage, stages[:i], None), stages[:i])
        print(table(rows), flush=True)
        found[stage["name"]] = figures
        gc.collect()
    if len(stages) == 1:
        return figures
    print(f"\nAll stages: {sum(figures['hours'] for figures in found.values()):.2f} h")
    return found
