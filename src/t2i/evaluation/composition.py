"""Composition of drawn scenes: score, ceilings and floor, of a model or of pictures already drawn.

`composition` (arXiv 2310.11513's logic on embedded scenes): the share of right pictures for each task, on seen and
on held-out combinations, beside the ceiling (true renders of the same captions), the first stage's ceiling (their
reconstructions) and the floor (the samples judged against other captions of the same task).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2i.config.places import program
from t2i.data import shapes
from t2i.data.scenes import TASKS, Caption, Scene, Task, render
from t2i.evaluation.generated_images import BATCH, GeneratedImages, draw
from t2i.metrics.composition import READER, composition_score, shares, shuffled, verdicts
from t2i.metrics.intervals import Interval, bootstrap
from t2i.viz import grids
from t2i.viz.html import composition_tables
from t2i.viz.tables import Table, markdown_table

COLUMNS = {"score": "score", "refined": "refined by CLIP", "ceiling_renders": "ceiling: renders",
           "ceiling_reconstructions": "ceiling: reconstructions", "floor_shuffled_captions": "floor: shuffled captions"}
KINDS: tuple[tuple[str, shapes.Split, tuple[Task, ...]], ...] = (
    ("seen", "val", TASKS), ("heldout", "heldout", shapes.HELDOUT_TASKS))
READ_BY = {"reader": f"{READER} (no learned weights); GenEval's clause logic, arXiv 2310.11513"}
Paint = Callable[[str, list[str]], Tensor]  # split and captions -> uint8 (n, h, w, 3)


@dataclass
class Judgement:
    """What a judge found of drawings.

    scores, more: as `evaluation.json` nests them. values: name, interval, which way is good, and n of each score.
    protocol: what made them. title, tables, sheets: of the page; sheets by name, with what they show.
    """

    title: str
    scores: dict[str, Any]
    values: list[tuple[str, Interval, str, int]]
    protocol: dict[str, Any]
    tables: list[Table]
    sheets: dict[str, tuple[Image.Image, str]]
    more: dict[str, Any] = field(default_factory=dict)


@torch.inference_mode()
def reconstructed(tokenizer: Any, pictures: Tensor) -> Tensor:
    """uint8 (n, h, w, 3) through the tokenizer and back."""
    device = next(tokenizer.parameters()).device
    parts = []
    for chunk in pictures.split(BATCH):
        image = chunk.permute(0, 3, 1, 2).to(device).float().div(127.5).sub(1)
        parts.append(torch.from_numpy(grids.to_uint8(tokenizer.decode_ids(tokenizer.encode(image).clone()))))
    return torch.cat(parts)


def is_scenes(data: Mapping[str, Any]) -> bool:
    """Whether a config's data set is the embedded one."""
    return str(data["_target_"]).startswith("t2i.data.shapes.")


def world_of(data: Mapping[str, Any]) -> shapes.World:
    """The world that a config's data set draws its scenes from; for other data sets all of it."""
    if not is_scenes(data):
        return shapes.World()
    return shapes.World(data["lattice"], tuple(data["backgrounds"] or shapes.World().backgrounds))


def prompts(
    split: shapes.Split, tasks: tuple[Task, ...], n_per_task: int, seed: int, world: shapes.World
) -> tuple[list[Caption], list[Scene]]:
    """The captions that are judged, task after task, each with a scene that it is true of."""
    chosen = [pair for task in tasks for pair in shapes.prompted(split, task, n_per_task, seed, world)]
    return [caption for caption, _ in chosen], [scene for _, scene in chosen]


def composed(
    paint: Paint, image_size: int, tokenizer: Any, n_per_task: int, seed: int, world: shapes.World
) -> dict[str, Any]:
    """Scores with ceilings and floor, for `seen` and `heldout`, of what `paint` gives for the captions.

    `examples` holds pictures of the first two of each task, their captions, and of every picture whether it is right.
    """
    if n_per_task < 2:
        raise ValueError(f"n_per_task={n_per_task}: at least 2 (the floor exchanges captions)")
    result: dict[str, Any] = {}
    for name, split, tasks in KINDS:
        captions, scenes = prompts(split, tasks, n_per_task, seed, world)
        truth = torch.stack([torch.from_numpy(render(scene, image_size)) for scene in scenes])
        pictures = paint(name, [caption.text for caption in captions])
        right = [verdict.correct for verdict in verdicts(pictures.numpy(), captions)]
        result[name] = {
            "score": shares(right, captions),
            "ceiling_renders": composition_score(truth.numpy(), captions),
        }
        if tokenizer is not None:
            back = reconstructed(tokenizer, truth)
            result[name]["ceiling_reconstructions"] = composition_score(back.numpy(), captions)
        result[name]["floor_shuffled_captions"] = composition_score(pictures.numpy(), shuffled(captions, seed))
        first = [i * n_per_task + k for k in range(2) for i in range(len(tasks))]
        result[name]["examples"] = (pictures[first], [captions[i].text for i in first], right)
    return result


def through(tokenizer: Any, image_size: int, n_per_task: int, seed: int, world: shapes.World) -> Paint:
    """A tokenizer's reconstructions in place of drawings."""
    asked = {name: prompts(split, tasks, n_per_task, seed, world)[1] for name, split, tasks in KINDS}
    return lambda name, text: reconstructed(
        tokenizer, torch.stack([torch.from_numpy(render(scene, image_size)) for scene in asked[name]]))


def listed(images: GeneratedImages, metric: str = "composition") -> Paint:
    """Pictures of a folder by a metric's captions; the k-th of equal captions is the k-th picture with it."""
    places: dict[str, list[int]] = defaultdict(list)
    for i, text in enumerate(images.captions()):
        places[text].append(i)

    def paint(split: str, text: list[str]) -> Tensor:
        used: dict[str, int] = defaultdict(int)
        order = []
        for caption in text:
            k = used[caption]
            used[caption] += 1
            if k >= len(places[caption]):
                raise ValueError(f"images={images.folder}: none for the caption {caption!r} of {metric} ({split}):"
                                 f" {program('evaluate')} export=FOLDER metrics=[{metric}] writes the captions to draw"
                                 " (same data=, n_per_task=, n_pairs=, seed=)")
            order.append(places[caption][k])
        return images.only(order).all()

    return paint


def composition(
    model: Any, n_per_task: int, seed: int, options: dict[str, Any], world: shapes.World, label: str | None = None
) -> dict[str, Any]:
    """`composed` of a model that draws."""
    def paint(split: str, text: list[str]) -> Tensor:
        return torch.cat([images for _, images in draw(model, text, seed, options, label=label)])

    return composed(paint, model.image_size, getattr(model, "tokenizer", None), n_per_task, seed, world)


def refined(found: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The scores with those of the same samples after guided drawing beside them, and its pictures as examples."""
    return {split: {"score": kinds.pop("score"), "refined": after[split]["score"], **kinds,
                    "examples": after[split]["examples"]} for split, kinds in found.items()}


def judgement(found: dict[str, Any], n_per_task: int, seed: int) -> Judgement:
    """Of what `composed` found, without its examples."""
    values, sheets = [], {}
    for split, kinds in found.items():
        pictures, captions, right = kinds.pop("examples")
        hits = torch.tensor(right, dtype=torch.float64)
        values.append((f"composition_{split}", bootstrap(hits, seed), "higher", len(right)))
        of = "held-out" if split == "heldout" else split
        sheets[split] = (grids.grid(pictures, captions, columns=len(captions) // 2),
                         f"for captions of {of} combinations, two of each task")
    return Judgement("Composition", found, values, {**READ_BY, "interval": "bootstrap, 1000", "n_per_task": n_per_task},
                     composition_tables(found), sheets)


def table(scores: dict[str, Any]) -> str:
    """The composition scores as a Markdown table, tasks in rows."""
    head = ["task", "split", *(COLUMNS[kind] for kind in next(iter(scores.values())))]
    return markdown_table(head, ([task, split, *(f"{kinds[kind][task]:.3f}" for kind in kinds)]
                                 for split, kinds in scores.items() for task in kinds["score"]))
