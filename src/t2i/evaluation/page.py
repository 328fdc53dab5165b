"""`evaluation.html`: scores with their protocols, drawn pictures, the nearest training pictures, worst and best."""

from __future__ import annotations

import html
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2i.config.messages import shown as printable
from t2i.data.datasets import check_data_node, dataset
from t2i.metrics.nearest_neighbours import nearest
from t2i.viz import grids
from t2i.viz.html import document, picture, score_table, table
from t2i.viz.progress import counter

SHOWN = 8
SCANNED = 5000  # training pictures that are looked through for the nearest


def scores_table(result: Mapping[str, Any]) -> str:
    """Every score with a value: interval, number of pictures, and what it was made with."""
    head = "".join(f"<th>{name}</th>" for name in ("score", "value", "95 %", "pictures", "better"))
    rows = ""
    for name, entry in result["scores"].items():
        if "value" in entry:
            interval = f"{entry['low']:.4g} to {entry['high']:.4g}" if entry["low"] < entry["high"] else "–"
            rows += (f"<tr><td>{html.escape(name)}</td><td class=score>{entry['value']:.4g}</td><td>{interval}</td>"
                     f"<td>{entry['n']:,}</td><td>{entry['better']}</td></tr>")
    without = "".join(f"<li>{html.escape(f'without {name}: {why}')}</li>" for name, why in result["missing"].items())
    return f'<div class=wide>{table(head, rows)}</div>' + (f"<ul>{without}</ul>" if without else "")


def protocol_lists(result: Mapping[str, Any]) -> str:
    parts = []
    for name, protocol in result["protocols"].items():
        text = json.dumps(protocol, indent=1, ensure_ascii=False, default=str)
        parts.append(f"<details><summary>{html.escape(name)}</summary><pre>{html.escape(text)}</pre></details>")
    return "\n".join(parts)


def extremes(drawn: Any, clip: torch.Tensor) -> list[tuple[str, Any, list[str]]]:
    """Heading, pictures and captions of the worst and the best by CLIP score."""
    order = clip.argsort(stable=True).tolist()
    text = drawn.captions()
    found = []
    for heading, some in (("Best by CLIP score", order[::-1][:SHOWN]), ("Worst by CLIP score", order[:SHOWN])):
        shown = torch.stack([drawn.picture(i) for i in some])
        found.append((heading, shown, [f"{float(clip[i]):.3f} {text[i]}" for i in some]))
    return found


def neighbours(task: Any, drawn: Any) -> Any | None:
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
    some = list(range(min(SHOWN, len(drawn))))
    images = torch.stack([drawn.picture(i) for i in some]).numpy()
    with counter("nearest training pictures", min(SCANNED, len(data))) as progress:
        found, captions, away = nearest(images, data, progress, SCANNED)
    under = [f"{far:.0f} away: {caption}" for far, caption in zip(away, captions, strict=True)]
    return grids.rows([("drawn", images), ("trained on", found)], under)


def write_page(out: Path, result: Mapping[str, Any], shown: Mapping[str, Any]) -> list[Path]:
    """Writes the grids and the page, and returns their paths."""
    task, protocol = shown["task"], result["protocol"]
    source = protocol["checkpoint"] or protocol["images"]
    title = f"Evaluation of {source}"
    facts = f"{time.strftime('%Y-%m-%d %H:%M')} · protocol {protocol['protocol'] or 'the model’s own data'}"
    facts += f" · changed: {', '.join(protocol['changed'])}" if protocol["changed"] else ""
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p class=quiet>{html.escape(facts)}</p>", scores_table(result)]
    written: list[Path] = []

    def show(name: str, image: Any, caption: str) -> None:
        written.append(grids.save(image, out / f"{name}.png"))
        parts.append(picture(written[-1], caption))

    if "composition" in result["scores"]:
        parts += ["<h2>Composition</h2>", score_table(result["scores"]["composition"])]
        for split, (images, captions, _) in shown["composition"].items():
            show(f"evaluation-{split}", grids.grid(images, captions, columns=len(captions) // 2),
                 f"{split}: two of each task")
    if "drawn" in shown:
        drawn = shown["drawn"]
        some = range(min(2 * SHOWN, len(drawn)))
        parts.append("<h2>Drawn for the captions of the data</h2>")
        under = [drawn.text[i] or "" for i in some]
        show("evaluation-drawn", grids.grid(torch.stack([drawn.picture(i) for i in some]), under, SHOWN),
             "the first ones, not chosen")
        if (image := neighbours(task, drawn)) is not None:
            show("evaluation-nearest", image, f"and the training pictures most like them, of the first {SCANNED:,}"
                                              " (differences of 16 x 16 thumbnails in grey levels)")
        if shown["clip"] is not None:
            for heading, images, captions in extremes(drawn, shown["clip"]):
                show(f"evaluation-{heading.split()[0].lower()}", grids.grid(images, captions, SHOWN), heading)
    if "back" in shown:
        before, after = shown["back"]
        parts.append("<h2>Reconstructions</h2>")
        sheet = grids.rows([("picture", np.asarray(before)), ("reconstruction", np.asarray(after))])
        show("evaluation-reconstructions", sheet, "the first ones")
    parts += ["<h2>Protocols</h2>", "<p class=quiet>What decides about each figure; two are comparable where all of it"
              " agrees.</p>", protocol_lists(result)]
    page = grids.write_bytes(out / "evaluation.html", document(title, "\n".join(parts)).encode())
    return [page, *written]
