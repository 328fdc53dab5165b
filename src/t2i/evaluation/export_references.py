"""Captions and real pictures of an evaluation as a folder, for other programs to draw from and to be held against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from t2i.checkpoint import atomic
from t2i.data.scenes import render
from t2i.evaluation.composition import KINDS, prompts, world_of
from t2i.evaluation.protocols import DRAWN
from t2i.evaluation.reference_images import Reference
from t2i.viz import grids
from t2i.viz.progress import counter


def composition_pairs(task: Any, size: int) -> tuple[int, Iterator[tuple[str, np.ndarray]]]:
    """How many captions composition is judged by, and each with a true render."""
    chosen = []
    for _, split, tasks in KINDS:
        captions, scenes = prompts(split, tasks, task.config["n_per_task"], task.seed, world_of(task.data["data"]))
        chosen += list(zip(captions, scenes, strict=True))
    return len(chosen), ((caption.text, render(scene, size)) for caption, scene in chosen)


def captioned_pairs(task: Any, size: int) -> tuple[int, Iterator[tuple[str, np.ndarray]]]:
    """How many captions distances and CLIP's scores are of, and each with the picture that it belongs to."""
    reference = Reference(task.data, task.protocol, size, task.seed)
    pairs = zip(reference.picked, reference.text, strict=True)
    return len(reference.picked), ((text, reference.picture(index)) for (index, _), text in pairs)


def export(config: dict[str, Any], task: Any) -> dict[str, Any]:
    """Writes `<export>/metadata.jsonl`, `captions.txt` and a PNG each."""
    kinds = {"composition" if name == "composition" else "captions" for name in task.metrics
             if name == "composition" or name in DRAWN}
    if len(kinds) != 1:
        raise ValueError(f"export= writes one set of captions, but metrics={list(task.metrics)} have two: composition"
                         " has its own; export them one after the other")
    folder, size = Path(config["export"]), task.size
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"export={folder} is there already, and not empty")
    total, pairs = composition_pairs(task, size) if kinds == {"composition"} else captioned_pairs(task, size)
    lines, texts = [], []
    with counter("exporting", total) as progress:
        for i, (text, pixels) in enumerate(pairs):
            name = f"{i:06}.png"
            grids.save(Image.fromarray(pixels), folder / name)
            lines.append(json.dumps({"file_name": name, "text": text}, ensure_ascii=False))
            texts.append(text)
            progress(i + 1)
    atomic.write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
    atomic.write_text(folder / "captions.txt", "\n".join(texts) + "\n")
    print(f"Written: {len(lines)} pictures with captions to {folder} (captions.txt: one a line, in the same order)")
    return {"out": str(folder), "n": len(lines)}
