"""Several models of a pipeline side by side: the same captions, the same ruler, one table and one page of drawings.

What a recipe's `comparison` node says: `models` (label -> stage whose `last.ckpt` draws, averaged weights where it has
them), `includes` (label -> other stages whose minutes count for it), `judge` (the stage whose CLIP measures; it must
have conditioned none of the models), `n_per_task`, `fd_pictures`, `columns` (captions on the page). Each model draws
with its own sampling options. One whose checkpoint and settings are unchanged in `comparison.json` is not scored again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from t2i.checkpoint import atomic, building, file_format
from t2i.config.compose import flat
from t2i.data import shapes
from t2i.data.scenes import TASKS, render
from t2i.evaluation.composition import world_of
from t2i.evaluation.generated_images import BATCH
from t2i.evaluation.ruler import TIMED, Ruler, drawn, score
from t2i.generation.text_to_image import KINDS, OPTIONS, device_of, options_of
from t2i.metrics.clip_score import CLIPScorer
from t2i.viz import grids
from t2i.viz.fonts import TEXT_SIZE
from t2i.viz.fonts import write as write_line
from t2i.viz.grids import FRAME, MARGIN, SMALLEST, wrap
from t2i.viz.progress import clock

LEAST = {"n_per_task": 2, "fd_pictures": 2, "columns": 1}
KEYS = ("models", "includes", "judge", *LEAST)
RENDERS = "true renders"
NAMES = {"seen": "seen", "heldout": "held out"}
GUTTER = 190  # pixels for the captions beside the drawings


def check(settings: Mapping[str, Any], stages: Mapping[str, dict[str, Any]]) -> None:
    """ValueError with everything that is wrong with a `comparison` node, before any stage (name -> config) runs."""
    if set(settings) != set(KEYS):
        raise ValueError(f"comparison has the keys {', '.join(settings)}; it takes {', '.join(KEYS)}")
    models, includes, judge = settings["models"], settings["includes"] or {}, settings["judge"]
    faults = [f"comparison.{key}={settings[key]}: a whole number >= {least} is needed"
              for key, least in LEAST.items() if type(settings[key]) is not int or settings[key] < least]
    named = [*models.values(), *(stage for listed in includes.values() for stage in listed), judge]
    faults += [f"comparison: {name} is no stage; there are {', '.join(stages)}" for name in named if name not in stages]
    faults += [f"comparison.includes.{label}: models has no such label; it has {', '.join(models)}"
               for label in includes if label not in models]
    drawing = {label: stages[stage] for label, stage in models.items() if stage in stages}
    faults += [f"comparison.models.{label}: its data is no data=shapes, whose scenes composition scores read"
               for label, config in drawing.items() if config["data"]["_target_"] != "t2i.data.shapes.Shapes"]
    worlds = {label: world_of(config["data"]) for label, config in drawing.items()}
    faults += ["comparison.models draw other scenes: data.lattice and data.backgrounds must be the same in all"
               ] * (len(set(worlds.values())) > 1)
    if judge in stages:
        own = stages[judge]
        if own["model"]["_target_"] != "t2i.models.clip.CLIP":
            faults.append(f"comparison.judge={judge} trains no CLIP (model=clip)")
        folder = Path(own["paths"]["runs"]) / own["name"] / "hf"
        faults += [f"comparison.judge={judge} conditions {label} ({key}): a CLIP is wanted that none of them has seen"
                   for label, config in drawing.items() for key, value in flat(config).items()
                   if isinstance(value, str) and Path(value) == folder]
    if not models or faults:
        raise ValueError("\n".join(faults or ["comparison.models names none"]))


def times(label: str, settings: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Minutes of training, as `guards.Minutes` counted them, and steps."""
    found = {}
    for name in (settings["models"][label], *(settings["includes"] or {}).get(label, [])):
        last = Path(stages[name]["run_dir"]) / "last.ckpt"
        _, minutes = file_format.progress(file_format.read(last), last)
        found[name] = {"minutes": minutes, "command_minutes": stages[name]["seconds"] / 60,
                       "steps": stages[name]["steps"]}
    return {"minutes": sum(stage["minutes"] for stage in found.values()),
            "steps": stages[settings["models"][label]]["steps"], "stages": found}


def scores(result: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """{split: {model: {task: share}}}, the true renders first."""
    rows, found = result["models"], {}
    for split in next(iter(rows.values()))["composition"]:
        ceiling = next(iter(rows.values()))["composition"][split]["ceiling_renders"]
        found[split] = {RENDERS: ceiling, **{name: row["composition"][split]["score"] for name, row in rows.items()}}
    return found


def table(result: Mapping[str, Any]) -> str:
    """The Markdown of `comparison.md`: the models in rows, then tasks in rows and models in columns."""
    shares, n = scores(result), result["protocol"]["fd_pictures"]
    lines = [f"| model | {' | '.join(f'composition, {NAMES[split]}' for split in shares)} | fd_clip ({n:,} pictures) |"
             " images/s | parameters | minutes trained | steps |", "| --- " * (6 + len(shares)) + "|"]
    for name in next(iter(shares.values())):
        cells = [f"{kinds[name]['overall']:.3f}" for kinds in shares.values()]
        row = result["models"].get(name)
        cells += [f"{result['reference']['fd_clip']:.3g} (floor)", *"––––"] if row is None else [
            f"{row['fd_clip']:.3g}", f"{row['images_per_second']:.3g}", f"{row['parameters'] / 1e6:.3g} M",
            clock(60 * row["minutes"]), str(row["steps"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| task | split | {' | '.join(next(iter(shares.values())))} |",
              "| --- " * (3 + len(result["models"])) + "|"]
    for split, kinds in shares.items():
        for task in kinds[RENDERS]:
            cells = [f"{values[task]:.3f}" for values in kinds.values()]
            lines.append(f"| {task} | {NAMES[split]} | {' | '.join(cells)} |")
    p = result["protocol"]
    machines = "; ".join(dict.fromkeys(row["hardware"] for row in result["models"].values()))
    shared = ", ".join(f"{name} {clock(seconds)}" for name, seconds in p["shared_seconds"].items())
    lines += ["", f"Composition: {p['n_per_task']} pictures a task, {p['reader']}. fd_clip: {p['features']}, judge"
              f" {p['judge']}, captions of {n:,} validation scenes against the renders of {n:,} others; the floor is"
              f" what those scenes' own renders get. Images/s: batches of {BATCH}, median of {TIMED}, on this machine"
              f" ({machines}). Parameters: what draws, without the text encoder. Seed {p['seed']}."
              + (f" Minutes of stages that no model is charged with: {shared}." if shared else "")]
    return "\n".join(lines)


def chosen(columns: int, seed: int, world: shapes.World, size: int) -> tuple[list[str], np.ndarray]:
    """Captions for the page, the six tasks first, then the held-out ones, and so on; and their true renders."""
    kinds: list[tuple[Any, Any]] = [("val", task) for task in TASKS]
    kinds += [("heldout", task) for task in shapes.HELDOUT_TASKS]
    text, truth = [], []
    for i in range(columns):
        split, task = kinds[i % len(kinds)]
        caption, scene = shapes.prompted(split, task, i // len(kinds) + 1, seed, world)[-1]
        text.append(caption.text)
        truth.append(render(scene, size))
    return text, np.stack(truth)


def page(columns: Sequence[tuple[str, np.ndarray]], captions: Sequence[str]) -> Image.Image:
    """Captions in rows, their text at the left, and a column of uint8 (n, h, w, 3) a label."""
    largest = max(images.shape[1] for _, images in columns)
    side, line = largest * max(1, -(-SMALLEST // largest)), TEXT_SIZE + 4
    heads = [wrap(label, side) for label, _ in columns]
    head = MARGIN + line * max(len(lines) for lines in heads)
    step = side + MARGIN
    sheet = Image.new("RGB", (GUTTER + len(columns) * step, head + len(captions) * step), "white")
    draw = ImageDraw.Draw(sheet)

    def write(lines: list[str], left: int, top: int) -> None:
        for k, words in enumerate(lines):
            write_line(sheet, left, top + k * line, words)

    for row, caption in enumerate(captions):
        lines = wrap(caption, GUTTER - 2 * MARGIN, lines=side // line)
        write(lines, MARGIN, head + row * step + (side - len(lines) * line) // 2)
    for column, (_, images) in enumerate(columns):
        left = GUTTER + column * step
        write(heads[column], left, MARGIN // 2)
        for row, image in enumerate(images):
            top = head + row * step
            sheet.paste(Image.fromarray(image).resize((side, side), Image.Resampling.NEAREST), (left, top))
            draw.rectangle((left - 1, top - 1, left + side, top + side), outline=FRAME)
    return sheet


def compare(
    models: Mapping[str, tuple[str, Any]], ruler: Ruler, folder: Path, columns: int, facts: Mapping[str, Any],
    shared_seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Scores models, label -> (hash, model), one after the other, and writes all three files; `facts` go into the rows.
    """
    path = folder / "comparison.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"models": {}, "protocol": {}}
    wanted = json.loads(json.dumps(ruler.settings))
    same = {key: old["protocol"].get(key) for key in wanted} == wanted
    reference = old["reference"] if same else {"fd_clip": ruler.floor(), "what": "renders of the captions' scenes"}
    result: dict[str, Any] = {"models": {}, "reference": reference, "protocol": {
        **wanted, "seeds": 'f(seed, "evaluation", i) and, for fd_clip and the page, f(seed, "comparison", i)',
        "torch": torch.__version__, "shared_seconds": dict(shared_seconds)}}
    text, truth = chosen(columns, ruler.seed, ruler.world, ruler.scenes.image_size)
    shown = [(RENDERS, truth)]
    for label, (digest, model) in models.items():
        options = options_of(dict.fromkeys(OPTIONS), model)
        row, key = old["models"].get(label), json.loads(json.dumps({"hash": digest, "sampler": options}))
        if not same or row is None or row["scored"] != key:
            row = {**score(label, model, ruler, options), "scored": key}
        result["models"][label] = {**row, **facts.get(label, {})}
        kept = {name: value for name, value in old["models"].items() if same and name in models}
        atomic.write_text(path, json.dumps({**result, "models": {**kept, **result["models"]}}, indent=1))
        shown.append((label, torch.cat(list(drawn(model, text, ruler.seed, options, f"{label}: page"))).numpy()))
    atomic.write_text(path, json.dumps(result, indent=1))
    atomic.write_text(folder / "comparison.md", table(result) + "\n")
    grids.save(page(shown, text), folder / "comparison.png")
    return result


def run(settings: Mapping[str, Any], done: Sequence[Mapping[str, Any]], folder: Path, seed: int) -> dict[str, Any]:
    """Compares what a pipeline's stages left (each with name, run_dir, seconds, steps); prints table and paths."""
    stages = {stage["name"]: stage for stage in done}
    paths = {label: Path(stages[stage]["run_dir"]) / "last.ckpt" for label, stage in settings["models"].items()}
    device = device_of("auto")
    judge = CLIPScorer(str(Path(stages[settings["judge"]]["run_dir"]) / "hf")).to(device)
    config = file_format.read(next(iter(paths.values())))["t2i"]["config"]
    ruler = Ruler(config, judge, settings["fd_pictures"], settings["n_per_task"], seed)
    models = {}
    for label, path in paths.items():
        models[label] = file_format.file_hash(path), building.load(path, kind=KINDS).to(device)
    facts = {label: times(label, settings, stages) for label in models}
    charged = {settings["judge"], *(name for fact in facts.values() for name in fact["stages"])}
    shared = {name: stage["seconds"] for name, stage in stages.items() if name not in charged}
    result = compare(models, ruler, folder, settings["columns"], facts, shared)
    print(table(result))
    print(f"Written: {', '.join(str(folder / f'comparison.{ending}') for ending in ('json', 'md', 'png'))}")
    return result
