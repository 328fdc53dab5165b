"""What a recipe costs on this machine, before the long run: parameters, memory, speed. Trains nothing, writes nothing.

A few steps of the real model and trainer at the recipe's batch size, on random pictures or codes under captions of
words. Loading data, validation and the caches that a run makes first are not in the figures. A tokenizer or CLIP that
has not been trained yet is stood in for by a fresh one of the same shape, where a stage or recipe says which.
"""

from __future__ import annotations

import copy
import gc
import json
import tempfile
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from t2i.checkpoint import building, registry
from t2i.config import quiet
from t2i.config.check import nodes
from t2i.config.compose import ConfigError, choices, compose, plan
from t2i.models.base import set_accumulation_and_compile
from t2i.training import train
from t2i.training.callbacks.progress import Progress
from t2i.training.meter import TIMED, Meter, product
from t2i.types import Batch, CodeBatch

WORDS = ["a", "red", "circle", "above", "two", "small", "blue", "squares", "on", "a", "white", "ground"]
Row = tuple[str, str, str]  # what, how much, how it is known


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


def stand_ins(config: dict[str, Any], earlier: list[dict[str, Any]]) -> dict[str, Any]:
    """What a model's constructor would load and is not there yet: fresh parts of the same shape, by argument."""
    given: dict[str, Any] = {}
    tokenizer, encoder = config["model"].get("tokenizer"), config["model"].get("text_encoder")
    if tokenizer and not Path(tokenizer["path"]).expanduser().exists():
        made = maker(config, Path(tokenizer["path"]).parent, earlier)
        if made is None or "autoencoder" not in made["model"]:
            raise ValueError(
                f"model.tokenizer.path={tokenizer['path']} does not exist, and no stage or recipe says what it will be:"
                " this file is needed first. Train it (model=vqgan), or estimate the pipeline that makes it"
            )
        node = {key: made["model"][key] for key in ("autoencoder", "quantizer", "image_size")}
        fresh = building.build({"_target_": "t2i.nets.tokenizer.ImageTokenizer", **node})
        given["tokenizer"] = fresh.eval().requires_grad_(False)
    made = None  # an encoder that is neither there nor to be made may be a hub's: its constructor tells
    if encoder and not Path(encoder["path"]).expanduser().exists():
        made = maker(config, Path(encoder["path"]).parent, earlier)
    if made is not None and made["model"]["_target_"] == "t2i.models.clip.CLIP":
        clip = building.build(made["model"])
        clip.prepare(captions(64))
        with tempfile.TemporaryDirectory() as folder:
            clip.export(folder)
            given["text_encoder"] = building.build(encoder | {"path": folder})
    stage1 = config["model"].get("stage1")
    if stage1 and not Path(stage1["path"]).expanduser().exists():
        given["stage1"] = coarse(config, stage1["path"], earlier)
    return given


def coarse(config: dict[str, Any], path: str, earlier: list[dict[str, Any]]) -> Any:
    """A fresh stage I, with a text encoder, of the shape that its stage or recipe will give it."""
    made = maker(config, Path(path).parent, earlier)
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
    for frozen in getattr(model, "_outside", ()):
        if frozen is not None:
            rows.append((f"frozen: {type(frozen).__name__}", millions(count(frozen)), "counted"))
    return rows


def measure(config: dict[str, Any], earlier: list[dict[str, Any]]) -> tuple[list[Row], dict[str, float]]:
    """The table of one stage, and its main figures."""
    config, t = copy.deepcopy(config), config["trainer"]
    for _, node in nodes(config["model"]):
        if str(node["_target_"]).startswith("t2i.quantizers.") and "warmup_steps" in node:
            node["warmup_steps"] = 0  # the steps that follow are the many
    config["logger"] = {**config["logger"], "names": []}
    config["trainer"] = {**t, "devices": 1, "num_nodes": 1, "strategy": "auto", "max_steps": 10**9,
                         "limit_val_batches": 0}
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    model = building.build(config["model"], **stand_ins(config, earlier))
    if hasattr(model, "prepare"):
        model.prepare(captions(64))
    set_accumulation_and_compile(model, t["accumulate"], t["compile"], config["data"]["batch_size"])
    world = devices({"trainer": t})
    size = max(1, config["data"]["batch_size"] // world)
    rows, averaged = parts(model), config["callbacks"].get("ema")
    meter, silent = Meter(model, bool(t["compile"])), Progress()
    silent.disable()
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [meter, silent, *([building.build(averaged)] if averaged else [])]
        trainer = train.make_trainer(config, Path(folder), callbacks, model)
        data = [batch(config, model, size)] * 1000  # more than there are steps
        loader: DataLoader[Any] = DataLoader(data, batch_size=None)  # type: ignore[arg-type]
        trainer.fit(model, loader, loader)
    kinds = {"trained": sum(p.numel() * p.element_size() for p in model.parameters()),
             "frozen": 4 * sum(count(part) for part in getattr(model, "_outside", ()) if part is not None),
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
    n, fastest = product(trainer.strategy.root_device, str(trainer.precision))
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
