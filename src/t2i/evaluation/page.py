"""`evaluation.html`: scores with their protocols, drawn pictures, the nearest training pictures, worst and best."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from t2i.config.messages import shown as printable
from t2i.data.datasets import check_data_node, dataset
from t2i.evaluation import evaluator
from t2i.evaluation.generated_images import GeneratedImages
from t2i.metrics.nearest_neighbours import nearest
from t2i.viz import grids
from t2i.viz.html import Picture, picture, write_page
from t2i.viz.progress import counter
from t2i.viz.tables import Table

if TYPE_CHECKING:
    from t2i.evaluation.evaluate import Evaluation

SHOWN = 8
SCANNED = 5000  # training pictures that are looked through for the nearest


def extremes(images: GeneratedImages, clip: torch.Tensor) -> list[tuple[str, Image.Image]]:
    """Heading and grid of the best and the worst by CLIP score."""
    order, text = clip.argsort(stable=True).tolist(), images.captions()
    return [(heading, grids.grid(torch.stack([images.picture(i) for i in some]),
                                 [f"{float(clip[i]):.3f} {text[i]}" for i in some], SHOWN))
            for heading, some in (("Best by CLIP score", order[::-1][:SHOWN]), ("Worst by CLIP score", order[:SHOWN]))]


def neighbours(task: Evaluation, images: GeneratedImages) -> Image.Image | None:
    """Drawn pictures over the training pictures most like them; None without a checkpoint, which knows its data."""
    if task.held is None or "data" not in task.held:
        return None
    node = task.held["data"]
    try:
        check_data_node(node, task.config["ckpt"])
        node = {**node, "pack": False} if "pack" in node else node  # to look at some is no reason to pack all
        data = dataset({"data": node, "paths": task.config["paths"]}, "train")
    except ValueError as error:
        print(f"No nearest training pictures on the page: {printable(error, 1000)}")
        return None
    pictures = torch.stack([images.picture(i) for i in range(min(SHOWN, len(images)))]).numpy()
    with counter("nearest training pictures", min(SCANNED, len(data))) as progress:
        found, captions, away = nearest(pictures, data, progress, SCANNED)
    under = [f"{far:.0f} away: {caption}" for far, caption in zip(away, captions, strict=True)]
    return grids.rows([("drawn", pictures), ("trained on", found)], under)


def write(task: Evaluation, result: Mapping[str, Any]) -> tuple[Path, dict[Path, str]]:
    """Writes the grids and the page, and returns its path and theirs, with what they show."""
    protocol = result["protocol"]
    facts = f"{time.strftime('%Y-%m-%d %H:%M')} · protocol {protocol['protocol'] or 'the model’s own data'}"
    facts += f" · changed: {', '.join(protocol['changed'])}" if protocol["changed"] else ""
    written: dict[Path, str] = {}

    def show(of: str, name: str, image: Image.Image, caption: str) -> Picture:
        path = grids.save(image, task.out / f"evaluation-{name}.png")
        written[path] = f"{of}: {caption}"
        return picture(path, caption)

    sections: list[tuple[str, list[Table], list[Picture]]] = [
        (found.title, found.tables, [show(found.title, name, *sheet) for name, sheet in found.sheets.items()])
        for found in task.judgements.values()]
    if (images := task.measured) is not None:
        some = range(min(2 * SHOWN, len(images)))
        under = [images.text[i] or "" for i in some]
        of = "Drawn for the captions of the data"
        shown = [show(of, "drawn", grids.grid(torch.stack([images.picture(i) for i in some]), under, SHOWN),
                      "the first ones, not chosen")]
        if (sheet := neighbours(task, images)) is not None:
            shown.append(show(of, "nearest", sheet, "and the training pictures most like them, of the first"
                                                    f" {SCANNED:,} (differences of 16 x 16 thumbnails in grey levels)"))
        if task.scores.clip is not None:
            shown += [show(of, heading.split()[0].lower(), sheet, heading)
                      for heading, sheet in extremes(images, task.scores.clip)]
        sections.append((of, [], shown))
    if task.reconstructions is not None:
        before, after = (np.asarray(pictures) for pictures in task.reconstructions)
        sheet = grids.rows([("picture", before), ("reconstruction", after)])
        sections.append(("Reconstructions", [], [show("Reconstructions", "reconstructions", sheet, "the first ones")]))
    page = write_page(
        task.out / "evaluation.html", "evaluation.html", facts=facts, sections=sections, missing=result["missing"],
        title=f"Evaluation of {protocol['checkpoint'] or protocol['images']}",
        scores=Table("", ["score", *evaluator.HEAD], evaluator.rows(result["scores"]), strong_columns=[1]),
        protocols={name: json.dumps(held, indent=1, ensure_ascii=False, default=str)
                   for name, held in result["protocols"].items()})
    return page, written
