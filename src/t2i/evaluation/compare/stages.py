"""Several models of a pipeline side by side: the same captions and metrics, one table and one sheet of drawings.

What a recipe's `comparison` node says: `models` (label -> stage whose `last.ckpt` draws, averaged weights where it has
them), `includes` (label -> other stages whose minutes count for it), `clip_model` (the stage whose CLIP measures; it
must have conditioned none of the models), `n_per_task`, `fd_pictures`, `columns` (captions on the sheet). Each model
draws with its own sampling options. One whose checkpoint and settings are unchanged in `comparison.json` is not scored
again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.checkpoint import atomic, building, file_format
from t2i.config.compose import flat
from t2i.data import shapes
from t2i.data.datasets import check_data_node
from t2i.data.scenes import TASKS, render
from t2i.evaluation.compare.images import TIMED, drawn, hardware, speed
from t2i.evaluation.composition import composition, world_of
from t2i.evaluation.evaluator import Evaluator, Scores
from t2i.evaluation.generated_images import BATCH, draw
from t2i.evaluation.protocols import PROTOCOLS, SHAPES
from t2i.evaluation.reference_images import Reference
from t2i.generation.text_to_image import KINDS, OPTIONS, device_of, options_of
from t2i.metrics.clip_score import FEATURES, CLIPScorer
from t2i.metrics.composition import READER
from t2i.viz import grids
from t2i.viz.progress import clock
from t2i.viz.tables import markdown_table

LEAST = {"n_per_task": 2, "fd_pictures": 2, "columns": 1}
KEYS = ("models", "includes", "clip_model", *LEAST)
RENDERS = "true renders"
NAMES = {"seen": "seen", "heldout": "held out"}


def current(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A `comparison` node with today's keys; `judge` is taken for one release."""
    found = dict(settings)
    if "judge" in found and "clip_model" not in found:
        print("comparison.judge is now called comparison.clip_model", file=sys.stderr)
        found["clip_model"] = found.pop("judge")
    return found


def check(settings: Mapping[str, Any], stages: Mapping[str, dict[str, Any]]) -> None:
    """ValueError with everything that is wrong with a `comparison` node, before any stage (name -> config) runs."""
    if not isinstance(settings, Mapping):
        raise ValueError(f"comparison={settings}: its keys take a value each: {', '.join(KEYS)}; or null")
    settings = current(settings)
    if set(settings) != set(KEYS):
        raise ValueError(f"comparison has the keys {', '.join(settings)}; it takes {', '.join(KEYS)}")
    models, includes, clip = settings["models"], settings["includes"] or {}, settings["clip_model"]
    if not isinstance(models, Mapping) or not isinstance(includes, Mapping):
        raise ValueError(f"comparison.models={models}, comparison.includes={includes}: labels with stages are wanted,"
                         " as in {prior:baselines_shapes/prior}")
    faults = [f"comparison.{key}={settings[key]}: a whole number >= {least} is needed"
              for key, least in LEAST.items() if type(settings[key]) is not int or settings[key] < least]
    named = [*models.values(), *(stage for listed in includes.values() for stage in listed), clip]
    faults += [f"comparison: {name} is no stage; there are {', '.join(stages)}" for name in named if name not in stages]
    faults += [f"comparison.includes.{label}: models has no such label; it has {', '.join(models)}"
               for label in includes if label not in models]
    drawing = {label: stages[stage] for label, stage in models.items() if stage in stages}
    faults += [f"comparison.models.{label}: its data is no data=shapes, whose scenes composition scores read"
               for label, config in drawing.items() if config["data"]["_target_"] != SHAPES]
    worlds = {label: world_of(config["data"]) for label, config in drawing.items()}
    faults += ["comparison.models draw other scenes: data.lattice and data.backgrounds must be the same in all"
               ] * (len(set(worlds.values())) > 1)
    if clip in stages:
        own = stages[clip]
        if own["model"]["_target_"] != "t2i.models.clip.CLIP":
            faults.append(f"comparison.clip_model={clip} trains no CLIP (model=clip)")
        folder = Path(own["paths"]["runs"]) / own["name"] / "hf"
        faults += [f"comparison.clip_model={clip} conditions {label} ({key}): a CLIP is wanted that none has seen"
                   for label, config in drawing.items() for key, value in flat(config).items()
                   if isinstance(value, str) and Path(value) == folder]
    if not models or faults:
        raise ValueError("\n".join(faults or ["comparison.models names none"]))


def times(label: str, settings: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Minutes of training, as the checkpoints count them, and steps."""
    found = {}
    for name in (settings["models"][label], *(settings["includes"] or {}).get(label, [])):
        last = Path(stages[name]["run_dir"]) / "last.ckpt"
        _, minutes = file_format.progress(file_format.read(last), last)
        found[name] = {"minutes": minutes, "command_minutes": stages[name]["seconds"] / 60,
                       "steps": stages[name]["steps"]}
    return {"minutes": sum(stage["minutes"] for stage in found.values()),
            "steps": stages[settings["models"][label]]["steps"], "stages": found}


class Comparison:
    """What all models are held against: captions, real pictures, a CLIP. Nothing is drawn before it is needed.

    `composition` is that of evaluate.py. `fd_clip` (arXiv 1706.08500's distance on CLIP's features) sets drawings for
    the first captions of n validation scenes against the renders of n other scenes of that split; its floor is the
    distance of the first n scenes' own renders from those others: what a perfect model would get.

    Args:
        config: of a run on data=shapes, with `paths` of the caches.
        n, n_per_task: pictures for fd_clip and, a task, for the composition score.
    """

    def __init__(self, config: dict[str, Any], clip: CLIPScorer, n: int, n_per_task: int, seed: int) -> None:
        self.n, self.n_per_task, self.seed, self.world = n, n_per_task, seed, world_of(config["data"])
        self.size = int(config["data"]["image_size"])
        self.reference = Reference(config, replace(PROTOCOLS["shapes"], n=n), self.size, seed)
        self.evaluator = Evaluator(["fd_clip"], self.reference, clip, None, seed, intervals=False)
        self.protocol = {"n_per_task": n_per_task, "fd_pictures": n, "seed": seed, "clip_model": clip.id,
                         "reader": READER, "features": FEATURES,
                         "data": {k: v for k, v in config["data"].items() if k != "workers"}}

    def fd_clip(self, pictures: Iterable[tuple[Tensor, Tensor]]) -> float:
        scores = Scores()
        self.evaluator.measure(self.evaluator.embed(pictures, scores), None, scores)
        if scores.missing:
            raise ValueError(f"fd_clip cannot be had: {scores.missing['fd_clip']}")
        return float(scores.values["fd_clip"]["value"])

    def floor(self) -> float:
        return self.fd_clip(self.reference.batches(range(self.n)))

    def score(self, label: str, model: Any, options: dict[str, Any]) -> dict[str, Any]:
        """All that is measured of one model."""
        found = composition(model, self.n_per_task, self.seed, options, self.world, f"{label}: composition")
        for kinds in found.values():
            del kinds["examples"]
        text = self.reference.text
        distance = self.fd_clip(draw(model, text, self.seed, options, purpose="comparison", label=f"{label}: fd_clip"))
        return {"composition": found, "fd_clip": distance, "images_per_second": speed(model, text, options),
                "parameters": model.drawing_parameters(), "image_size": model.image_size,
                "hardware": hardware(next(model.parameters()).device)}


def scores(result: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """{split: {model: {task: share}}}, the true renders first."""
    rows, found = result["models"], {}
    for split in next(iter(rows.values()))["composition"]:
        ceiling = next(iter(rows.values()))["composition"][split]["ceiling_renders"]
        found[split] = {RENDERS: ceiling, **{name: row["composition"][split]["score"] for name, row in rows.items()}}
    return found


def table(result: Mapping[str, Any]) -> str:
    """The Markdown of `comparison.md`: the models in rows, then tasks in rows and models in columns."""
    shares, p = scores(result), result["protocol"]
    n, names, rows = p["fd_pictures"], list(next(iter(shares.values()))), []
    for name in names:
        row = result["models"].get(name)
        cells = [f"{result['reference']['fd_clip']:.3g} (floor)", *"––––"] if row is None else [
            f"{row['fd_clip']:.3g}", f"{row['images_per_second']:.3g}", f"{row['parameters'] / 1e6:.3g} M",
            clock(60 * row["minutes"]), str(row["steps"])]
        rows.append([name, *(f"{kinds[name]['overall']:.3f}" for kinds in shares.values()), *cells])
    head = ["model", *(f"composition, {NAMES[split]}" for split in shares), f"fd_clip ({n:,} pictures)", "images/s",
            "parameters", "minutes trained", "steps"]
    by_task = [[task, NAMES[split], *(f"{values[task]:.3f}" for values in kinds.values())]
               for split, kinds in shares.items() for task in kinds[RENDERS]]
    machines = "; ".join(dict.fromkeys(row["hardware"] for row in result["models"].values()))
    shared = ", ".join(f"{name} {clock(seconds)}" for name, seconds in p["shared_seconds"].items())
    notes = (f"Composition: {p['n_per_task']} pictures a task, {p['reader']}. fd_clip: {p['features']}, CLIP"
             f" {p['clip_model']}, captions of {n:,} validation scenes against the renders of {n:,} others; the floor"
             f" is what those scenes' own renders get. Images/s: batches of {BATCH}, median of {TIMED}, on this machine"
             f" ({machines}). Parameters: what draws, without the text encoder. Seed {p['seed']}."
             + (f" Minutes of stages that no model is charged with: {shared}." if shared else ""))
    return "\n\n".join([markdown_table(head, rows), markdown_table(["task", "split", *names], by_task), notes])


def chosen(columns: int, seed: int, world: shapes.World, size: int) -> tuple[list[str], np.ndarray]:
    """Captions for the sheet, the six tasks first, then the held-out ones, and so on; and their true renders."""
    kinds: list[tuple[Any, Any]] = [("val", task) for task in TASKS]
    kinds += [("heldout", task) for task in shapes.HELDOUT_TASKS]
    text, truth = [], []
    for i in range(columns):
        split, task = kinds[i % len(kinds)]
        caption, scene = shapes.prompted(split, task, i // len(kinds) + 1, seed, world)[-1]
        text.append(caption.text)
        truth.append(render(scene, size))
    return text, np.stack(truth)


def compare(
    models: Mapping[str, tuple[str, Any]], comparison: Comparison, folder: Path, columns: int, facts: Mapping[str, Any],
    shared_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Scores models, label -> (hash, model), one after the other, and writes all three files; `facts` go into the rows.
    """
    path = folder / "comparison.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"models": {}, "protocol": {}}
    if "judge" in old["protocol"]:  # of an earlier version
        old["protocol"]["clip_model"] = old["protocol"].pop("judge")
    wanted = json.loads(json.dumps(comparison.protocol))
    same = {key: old["protocol"].get(key) for key in wanted} == wanted
    reference = old["reference"] if same else {"fd_clip": comparison.floor(), "what": "renders of the captions' scenes"}
    result: dict[str, Any] = {"models": {}, "reference": reference, "protocol": {
        **wanted, "seeds": 'f(seed, "evaluation", i) and, for fd_clip and the page, f(seed, "comparison", i)',
        "torch": torch.__version__, "shared_seconds": dict(shared_seconds)}}
    text, truth = chosen(columns, comparison.seed, comparison.world, comparison.size)
    shown = [(RENDERS, truth)]
    for label, (digest, model) in models.items():
        options = options_of(dict.fromkeys(OPTIONS), model)
        row, key = old["models"].get(label), json.loads(json.dumps({"hash": digest, "sampler": options}))
        if not same or row is None or row["scored"] != key:
            row = {**comparison.score(label, model, options), "scored": key}
        result["models"][label] = {**row, **facts.get(label, {})}
        kept = {name: value for name, value in old["models"].items() if same and name in models}
        atomic.write_text(path, json.dumps({**result, "models": {**kept, **result["models"]}}, indent=1))
        shown.append((label, drawn(model, text, comparison.seed, options, f"{label}: sheet")))
    atomic.write_text(path, json.dumps(result, indent=1))
    atomic.write_text(folder / "comparison.md", table(result) + "\n")
    grids.save(grids.rows(shown, text), folder / "comparison.png")
    return result


def run(
    settings: Mapping[str, Any], done: Sequence[Mapping[str, Any]], folder: Path, seed: int, paths: Mapping[str, Any]
) -> dict[str, Any]:
    """Compares what a pipeline's stages left (each with name, run_dir, seconds, steps); prints table and paths."""
    settings, stages = current(settings), {stage["name"]: stage for stage in done}
    files = {label: Path(stages[stage]["run_dir"]) / "last.ckpt" for label, stage in settings["models"].items()}
    device = device_of("auto")
    clip = CLIPScorer(str(Path(stages[settings["clip_model"]]["run_dir"]) / "hf")).to(device)
    first = next(iter(files.values()))
    data = file_format.read(first)["t2i"]["config"]["data"]
    check_data_node(data, first)
    comparison = Comparison({"data": data, "paths": paths}, clip, settings["fd_pictures"], settings["n_per_task"], seed)
    models = {label: (file_format.file_hash(path), building.load(path, kind=KINDS).to(device))
              for label, path in files.items()}
    facts = {label: times(label, settings, stages) for label in models}
    charged = {settings["clip_model"], *(name for fact in facts.values() for name in fact["stages"])}
    shared = {name: stage["seconds"] for name, stage in stages.items() if name not in charged}
    result = compare(models, comparison, folder, settings["columns"], facts, shared)
    print(table(result))
    print(f"Written: {', '.join(str(folder / f'comparison.{ending}') for ending in ('json', 'md', 'png'))}")
    return result
