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
import os
import resource
import sys
import tempfile
import threading
import time
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
from t2i.training import train
from t2i.types import Batch, CodeBatch

TIMED, SECONDS = 5, 15.0  # steps that are timed: so many, or as many as begin within the seconds
WORDS = ["a", "red", "circle", "above", "two", "small", "blue", "squares", "on", "a", "white", "ground"]
Row = tuple[str, str, str]  # what, how much, how it is known


def resident() -> int:
    """Bytes of this process in memory; of systems without /proc the most so far."""
    statm = Path("/proc/self/statm")
    if statm.is_file():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Peak:
    """The most memory between `start` and `stop` above what was in use at the start: allocated on a GPU, else
    resident."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.bytes = device.type == "cuda", 0

    def start(self) -> None:
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
            return
        if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)  # the apps tell glibc to keep what was freed (t2i.cli.app)
        self.before, self.stopped = resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.stopped.wait(0.001):
            self.bytes = max(self.bytes, resident() - self.before)

    def stop(self) -> None:
        if self.cuda:
            self.bytes = torch.cuda.max_memory_allocated() - self.before
            return
        self.bytes = max(self.bytes, resident() - self.before)
        self.stopped.set()
        self.thread.join()


class Meter(pl.Callback):
    """Measures the steps of each phase: one that counts operations and warms up (two more where nets are compiled),
    one that watches memory, and a few that are timed. Phases are fractions of training: with and without the
    discriminator where it starts later."""

    def __init__(self, model: Any, compiled: bool) -> None:
        start = getattr(model, "discriminator_start", None) if getattr(model, "has_discriminator", False) else None
        shares = {"": 1.0} if start is None else {" without the discriminator": start, " with it": 1 - start}
        self.phases = {name: share for name, share in shares.items() if share > 0}
        self.waiting, self.compiled = list(self.phases), compiled
        self.seconds: dict[str, float] = {}
        self.operations: dict[str, float] = {}
        self.activations: dict[str, int] = {}
        self.state = self.step = 0
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if self.step == 0:
            if hasattr(module, "discriminator_start"):
                module.discriminator_start = 2.0 if "without" in self.waiting[0] else 0.0
            torch.compiler.set_stance("force_eager" if self.compiled else "default")
            self.counter = FlopCounterMode(display=False)
            self.counter.__enter__()
        self.watched = self.step == (3 if self.compiled else 1)
        if self.watched:
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
        elif self.watched:
            self.peak.stop()
            self.activations[phase] = self.peak.bytes
            self.state = sum(value.numel() * value.element_size() for optimizer in trainer.optimizers
                             for state in optimizer.state.values() for value in state.values()
                             if isinstance(value, torch.Tensor))
        if phase in self.activations and (not self.watched or took > SECONDS):
            self.times.append(took)
        self.step += 1
        if len(self.times) == TIMED or sum(self.times) > SECONDS:
            self.seconds[phase] = sorted(self.times)[len(self.times) // 2]
            self.waiting, self.step, self.times = self.waiting[1:], 0, []
            trainer.should_stop = not self.waiting


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


def maker(config: dict[str, Any], folder: Path, earlier: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The config of the run that makes a folder: an earlier stage's, the folder's own, or the recipe of its name."""
    runs = Path(config["paths"]["runs"])
    for other in earlier:
        if runs / other["name"] == folder:
            return other
    if (folder / "config.json").is_file():
        return json.loads((folder / "config.json").read_text())
    name = folder.relative_to(runs).as_posix() if folder.is_relative_to(runs) else ""
    if name not in choices("experiments"):
        return None
    root = [f"data.root={config['data']['root']}"] if "root" in config["data"] else []
    try:
        return compose([f"experiments={name}", *root], files=False)
    except ConfigError:
        return None


def missing(config: dict[str, Any], part: str) -> Path | None:
    """The path of a part of the model that is to be loaded and is not there."""
    node = config["model"].get(part)
    return Path(node["path"]) if node and not Path(node["path"]).expanduser().exists() else None


def stand_ins(config: dict[str, Any], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """What a model's constructor would load and is not there yet: fresh parts of the same shape, by argument."""
    given: dict[str, Any] = {}
    tokenizer, encoder, stage1 = (missing(config, part) for part in ("tokenizer", "text_encoder", "stage1"))
    if tokenizer is not None:
        made = maker(config, tokenizer.parent, earlier)
        if made is None or "autoencoder" not in made["model"]:
            raise ValueError(f"model.tokenizer.path={tokenizer} does not exist, and no stage or recipe says what it"
                             " will be: this file is needed first. Train it (model=vqgan), or estimate the pipeline"
                             " that makes it")
        node = {key: made["model"][key] for key in ("autoencoder", "quantizer", "image_size")}
        fresh = building.build({"_target_": "t2i.nets.tokenizer.ImageTokenizer", **node})
        given["tokenizer"] = fresh.eval().requires_grad_(False)
    # An encoder that is neither there nor to be made may be a hub's: its constructor tells.
    made = None if encoder is None else maker(config, encoder.parent, earlier)
    if made is not None and made["model"]["_target_"] == "t2i.models.clip.CLIP":
        clip = building.build(made["model"])
        clip.prepare(captions(64))
        with tempfile.TemporaryDirectory() as folder:
            clip.export(folder)
            given["text_encoder"] = building.build(config["model"]["text_encoder"] | {"path": folder})
    if stage1 is not None:
        given["stage1"] = coarse(config, stage1, earlier)
    return given


def coarse(config: dict[str, Any], path: Path, earlier: list[dict[str, Any]]) -> Any:
    """A fresh stage I, with a text encoder, of the shape that its stage or recipe will give it."""
    made = maker(config, path.parent, earlier)
    if made is None or "stackgan" not in str(made["model"]["_target_"]):
        raise ValueError(f"model.stage1.path={path} does not exist, and no stage or recipe says what it will be: train"
                         " it first (model=stackgan1), or estimate the pipeline that makes it")
    model = made["model"]
    fresh = stand_ins(made, earlier)
    encoder = fresh["text_encoder"] if "text_encoder" in fresh else building.build(model["text_encoder"])
    node = {"_target_": "t2i.models.stackgan.Coarse", "generator": model["generator"],
            "pooled_dim": encoder.pooled_dim, "projection": model["projection"]}
    return building.build(node, text_encoder=encoder).eval().requires_grad_(False)


def batch(config: dict[str, Any], model: Any, size: int) -> Batch | CodeBatch:
    text, keys = captions(size), [f"synthetic/{i}" for i in range(size)]
    if model.batch == "images":
        side = config["data"]["image_size"]
        return Batch(torch.rand(size, 3, side, side) * 2 - 1, text, keys)
    rows, columns = model.tokenizer.grid
    ids = torch.randint(model.tokenizer.codebook_size, (size, rows * columns))
    if not model.cache_text:
        return CodeBatch(ids, text, keys)
    states = model.text_encoder(text)
    return CodeBatch(ids, text, keys, states.states, states.mask)


def count(module: Any) -> int:
    holder = module if hasattr(module, "parameters") else module.tower
    return sum(p.numel() for p in holder.parameters())


def size_of(value: float) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def millions(value: float) -> str:
    return f"{value / 1e6:.3f} M" if value < 1e7 else f"{value / 1e6:.1f} M"


def parts(model: Any) -> list[Row]:
    """Parameters of what trains, two levels deep where a part is worth a line, and of what is frozen."""
    total, rows = count(model), []
    for name, child in model.named_children():
        rows.append((f"parameters of {name}", millions(count(child)), "counted"))
        inside = [(inner, count(module)) for inner, module in child.named_children()]
        rows += [(f"  {inner}", millions(n), "counted") for inner, n in inside if n > 0.05 * total]
    for frozen in model.frozen_parts:
        if frozen is not None:
            rows.append((f"frozen: {type(frozen).__name__}", millions(count(frozen)), "counted"))
    return rows


def measure(config: dict[str, Any], earlier: list[dict[str, Any]]) -> tuple[list[Row], dict[str, float]]:
    """The table of one stage, and its main figures."""
    config, t = copy.deepcopy(config), config["trainer"]
    for _, node in nodes(config["model"]):
        if str(node["_target_"]).startswith("t2i.quantizers.") and "warmup_steps" in node:
            node["warmup_steps"] = 0  # the steps that follow are the many
    config["logger"] = {}
    config["trainer"] = {**t, "devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": 10**9,
                         "limit_val_batches": 0}
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    model = building.build(config["model"], **stand_ins(config, earlier))
    if hasattr(model, "prepare"):
        model.prepare(captions(64))
    set_accumulation_and_compile(model, t["accumulate_grad_batches"], t["compile"], config["data"]["batch_size"])
    world = devices({"trainer": t})
    size = max(1, config["data"]["batch_size"] // world)
    rows, averaged = parts(model), config["callbacks"].get("ema")
    meter = Meter(model, bool(t["compile"]))
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [meter, *([building.build(averaged)] if averaged else [])]
        trainer = train.make_trainer(config, Path(folder), callbacks, model)
        data = [batch(config, model, size)] * 1000  # more than there are steps
        loader: DataLoader[Any] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
        trainer.fit(model, loader, loader)
    kinds = {"trained": sum(p.numel() * p.element_size() for p in model.parameters()),
             "frozen": 4 * sum(count(part) for part in model.frozen_parts if part is not None),
             "averaged": 4 * sum(count(model.get_submodule(name)) for name in averaged["modules"]) if averaged else 0}
    activations = max(meter.activations.values())
    memory = 2 * kinds["trained"] + kinds["frozen"] + kinds["averaged"] + meter.state + activations
    rows += [("weights", size_of(kinds["trained"] + kinds["frozen"]), "counted"),
             ("gradients", size_of(kinds["trained"]), "counted"),
             ("optimiser state", size_of(meter.state), "measured")]
    rows += [("averaged weights (EMA)", size_of(kinds["averaged"]), "counted")] if averaged else []
    kind = "allocated" if model.device.type == "cuda" else "resident"
    rows += [(f"activations and the rest{name}, at most", size_of(value), f"measured ({kind})")
             for name, value in meter.activations.items()]
    rows.append(("memory together", size_of(memory), "beside Python and its libraries"))
    n, fastest = matrix_product(trainer.strategy.root_device, str(trainer.precision))
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
    one = f"; one device of {world}, its share of the batch" if world > 1 else ""
    shown = f"{size} pictures, {trainer.precision}, {trainer.strategy.root_device}{one}"
    rows.insert(0, ("batch", shown, "the config"))
    figures = {"parameters": float(count(model)), "memory_gb": memory / 1e9, "seconds_a_step": mean, "hours": hours}
    return rows, figures


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
        rows, figures = measure(stage, stages[:i])
        print(table(rows), flush=True)
        found[stage["name"]] = figures
        gc.collect()
    if len(stages) == 1:
        return figures
    print(f"\nAll stages: {sum(figures['hours'] for figures in found.values()):.2f} h")
    return found
