"""Scores a checkpoint by the rulers of `metrics/`; each number carries its protocol.

`composition` (arXiv 2310.11513's logic on embedded scenes): the share of right pictures for each task, on seen and
on held-out combinations, beside the ceiling (true renders of the same captions), the first stage's ceiling (their
reconstructions) and the floor (the samples judged against other captions of the same task).
`reconstruction`: PSNR, SSIM and codebook usage of the tokenizer on the validation split.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i import checkpoint
from t2i.data import shapes
from t2i.data.module import DataModule, scaled
from t2i.data.seeds import number
from t2i.datasets import dataset
from t2i.drawing import KINDS, options_of
from t2i.metrics.composition import composition_score, shuffled
from t2i.metrics.reconstruction import CodebookUsage, psnr, ssim
from t2i.scenes import TASKS, Task, render

COLUMNS = {"score": "score", "refined": "refined by CLIP", "ceiling_renders": "ceiling: renders",
           "ceiling_reconstructions": "ceiling: reconstructions", "floor_shuffled_captions": "floor: shuffled captions"}
METRICS = ("composition", "reconstruction")
BATCH = 64


def draw(model: Any, text: list[str], seed: int, options: dict[str, Any], progress: Any = None) -> Tensor:
    """One picture a caption, uint8 (n, h, w, 3), in batches; picture i has the seed f(seed, "evaluation", i)."""
    drawn = []
    for start in range(0, len(text), BATCH):
        part = text[start : start + BATCH]
        seeds = [number(seed, "evaluation", start + i) for i in range(len(part))]
        drawn.append(as_bytes(model.sample(part, seeds=seeds, **options)))
        if progress is not None:
            progress(start + len(part), len(text))
    return torch.cat(drawn)


def as_bytes(image: Tensor) -> Tensor:
    """(b, 3, h, w) in [-1, 1] to uint8 (b, h, w, 3) on the CPU."""
    return image.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


@torch.inference_mode()
def reconstructed(tokenizer: Any, pictures: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) through the tokenizer and back."""
    device = next(tokenizer.parameters()).device
    parts = []
    for chunk in pictures.split(BATCH):
        image = chunk.permute(0, 3, 1, 2).to(device).float().div(127.5).sub(1)
        parts.append(as_bytes(tokenizer.decode_ids(tokenizer.encode(image).clone())))
    return torch.cat(parts)


def world_of(data: dict[str, Any]) -> shapes.World:
    """The world that a config's data set draws its scenes from; for other data sets all of it."""
    if not data["_target_"].startswith("t2i.data.shapes."):
        return shapes.World()
    return shapes.World(data["lattice"], tuple(data["backgrounds"] or shapes.World().backgrounds))


def composition(
    model: Any, n_per_task: int, seed: int, options: dict[str, Any], world: shapes.World, progress: Any = None
) -> dict[str, Any]:
    """Scores with ceilings and floor, for `seen` and `heldout`; `examples` holds pictures of the first of each task."""
    result: dict[str, Any] = {}
    kinds: tuple[tuple[str, shapes.Split, tuple[Task, ...]], ...] = (
        ("seen", "val", TASKS), ("heldout", "heldout", shapes.HELDOUT_TASKS))
    for name, split, tasks in kinds:
        chosen = [pair for task in tasks for pair in shapes.prompted(split, task, n_per_task, seed, world)]
        captions = [caption for caption, _ in chosen]
        truth = torch.stack([torch.from_numpy(render(scene, model.image_size)) for _, scene in chosen])
        pictures = draw(model, [caption.text for caption in captions], seed, options, progress)
        result[name] = {
            "score": composition_score(pictures.numpy(), captions),
            "ceiling_renders": composition_score(truth.numpy(), captions),
        }
        if hasattr(model, "tokenizer"):
            back = reconstructed(model.tokenizer, truth)
            result[name]["ceiling_reconstructions"] = composition_score(back.numpy(), captions)
        result[name]["floor_shuffled_captions"] = composition_score(pictures.numpy(), shuffled(captions, seed))
        first = [i * n_per_task + k for k in range(2) for i in range(len(tasks))]
        result[name]["examples"] = (pictures[first], [captions[i].text for i in first])
    return result


def refined(
    found: dict[str, Any], config: dict[str, Any], model: Any, options: dict[str, Any], world: shapes.World,
    progress: Any = None,
) -> dict[str, Any]:
    """The scores with those of the same samples after guided drawing beside them, and its pictures as examples."""
    from t2i.guiding import Drawer, settings_of

    if not hasattr(model, "codes"):
        raise ValueError(f"guide= refines a prior's samples; {config['ckpt']} holds a {model.kind}")
    drawer = Drawer(settings_of(config["guide"]), model, options=options)
    if drawer.start != "prior":
        raise ValueError(f"guide.start={drawer.start}: evaluate.py compares with the prior's own samples; leave it out")
    after = composition(drawer, config["n_per_task"], config["seed"], {}, world, progress)
    return {split: {"score": kinds.pop("score"), "refined": after[split]["score"], **kinds,
                    "examples": after[split]["examples"]} for split, kinds in found.items()}


@torch.inference_mode()
def reconstruction(tokenizer: Any, config: dict[str, Any], split: str = "val", limit: int = 512) -> dict[str, Any]:
    """Means over the first `limit` pictures of a split of the data the checkpoint was trained on."""
    data = DataModule(None, dataset(config, split), BATCH, 0, config["seed"])
    usage, sums, count = CodebookUsage(tokenizer.factors), {"psnr": 0.0, "ssim": 0.0}, 0
    for batch in map(scaled, data.val_dataloader()):
        ids = tokenizer.encode(batch.image.to(next(tokenizer.parameters()).device))
        back = tokenizer.decode_ids(ids.clone()).float().cpu()
        usage.update(ids.cpu())
        sums["psnr"] += float(psnr(back, batch.image).sum())
        sums["ssim"] += float(ssim(back, batch.image).sum())
        count += len(batch.text)
        if count >= limit:
            break
    return {**{k: v / count for k, v in sums.items()}, **usage.compute(), "n": count, "split": split}


def evaluate(config: dict[str, Any], progress: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The scores that `config["metrics"]` names (with protocol), and example pictures by split."""
    unknown = [name for name in config["metrics"] if name not in METRICS]
    if unknown or not config["metrics"]:
        raise ValueError(f"metrics={config['metrics']}: allowed are {', '.join(METRICS)}, one or more")
    if config["n_per_task"] < 2:
        raise ValueError(f"n_per_task={config['n_per_task']}: at least 2 (the floor exchanges captions)")
    kinds: tuple[str, ...] = KINDS if "reconstruction" not in config["metrics"] else ("prior",)
    kinds = kinds if "composition" in config["metrics"] else ("prior", "vqgan")
    model = checkpoint.load(config["ckpt"], kind=kinds)
    held = checkpoint.read(config["ckpt"])["t2i"]["config"]
    started = time.monotonic()
    scores: dict[str, Any] = {}
    examples: dict[str, Any] = {}
    options: dict[str, Any] = {}
    if "composition" in config["metrics"]:
        options = options_of(config, model)
        found = composition(model, config["n_per_task"], config["seed"], options, world_of(held["data"]), progress)
        if "guide" in config:
            found = refined(found, config, model, options, world_of(held["data"]), progress)
        examples = {split: found[split].pop("examples") for split in found}
        scores["composition"] = found
    if "reconstruction" in config["metrics"]:
        scores["reconstruction"] = reconstruction(model.tokenizer, held, config["split"])
    protocol = {
        "checkpoint": str(config["ckpt"]), "hash": checkpoint.file_hash(config["ckpt"]), "seed": config["seed"],
        "sampler": options, "n_per_task": config["n_per_task"], "image_size": model.image_size,
        "reader": "t2i.metrics.composition (no learned weights); GenEval's clause logic, arXiv 2310.11513",
        **({"guide": config["guide"]} if "guide" in config else {}),
        "data": held["data"], "seconds": round(time.monotonic() - started, 1),
    }
    return {"scores": scores, "protocol": protocol}, examples


def table(scores: dict[str, Any]) -> str:
    """The composition scores as a Markdown table, tasks in rows."""
    columns = [COLUMNS[kind] for kind in next(iter(scores.values()))]
    rows = ["| task | split | " + " | ".join(columns) + " |", "| --- " * (2 + len(columns)) + "|"]
    for split, kinds in scores.items():
        for task in kinds["score"]:
            cells = " | ".join(f"{kinds[kind][task]:.3f}" for kind in kinds)
            rows.append(f"| {task} | {split} | {cells} |")
    return "\n".join(rows)


def run(config: dict[str, Any]) -> dict[str, Any]:
    """What `evaluate.py` does: scores, tables, and `evaluation.json` beside the checkpoint or in `out`."""
    from t2i.loggers import quiet
    from t2i.progress import counter

    quiet()
    out = Path(config["out"]) if config["out"] else Path(config["ckpt"]).parent
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out={out} cannot be written: {error.strerror}") from error
    with counter("drawing", 0) as progress:
        result, examples = evaluate(config, progress)
    if "composition" in result["scores"]:
        print(table(result["scores"]["composition"]))
    if "reconstruction" in result["scores"]:
        print(json.dumps(result["scores"]["reconstruction"], indent=1))
    path = out / "evaluation.json"
    checkpoint.write_text(path, json.dumps(result, indent=1))
    from t2i.pictures import grid

    for split, (pictures, captions) in examples.items():
        grid(pictures, captions, columns=len(captions) // 2).save(out / f"evaluation-{split}.png")
    print(f"Written: {path}")
    return {**result, "out": str(out)}
