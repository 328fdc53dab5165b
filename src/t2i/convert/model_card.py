"""The README.md of an exported folder: a model card as the Hugging Face hub reads it (its YAML is `ModelCardData`'s).

Scores are those of an evaluation.json beside the checkpoint, or in the folder above as a pipeline writes it, if it is
of this very file. Pictures are the last grid of samples of the run and, if asked for, those of a folder of `sample.py`.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from t2i.checkpoint import atomic, file_format
from t2i.checkpoint.plain_files import read_table
from t2i.config.messages import quoted, shown

CARD = "README.md"
GRID = "samples.png"
DRAWS = ("prior", "dfgan", "stackgan1", "stackgan2")
OWN_CAPTIONS = ("folder", "huggingface", "webdataset")  # data in whatever language
MOST = 8  # pictures of the widget
USE = """import t2i

model = t2i.from_pretrained("FOLDER or owner/name")
"""
CALLS = {True: 'images = model.draw("…", n=4)  # PIL images\n', False: 'images = model.reconstruct(["photo.jpg"])\n'}


def _evaluation(ckpt: Path, hash: str) -> dict[str, Any] | None:
    for folder in (ckpt.parent, ckpt.parent.parent):
        path = folder / "evaluation.json"
        if path.is_file():
            found = read_table(path, scores=dict, protocols=dict, protocol=dict)
            if found["protocol"].get("hash") == hash:
                return found
            print(f"{path} is of another file ({shown(found['protocol'].get('hash'))}): its scores are left out")
    return None


def _results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    data = (evaluation["protocol"].get("data") or {}).get("_target_", "unknown").split(".")[-2:][0]
    return [EvalResult("text-to-image", data, data, name, held["value"], metric_name=name,
                       metric_args={**evaluation["protocols"][name], **{k: v for k, v in held.items() if k != "value"}})
            for name, held in evaluation["scores"].items() if name in evaluation["protocols"]]


def _drawings(source: Path, hash: str, folder: Path) -> list[tuple[str, str]]:
    """Copies pictures of a folder of `sample.py`; (caption, file)."""
    record = read_table(source / "drawing.json", request=dict, pictures=list)
    if record["request"].get("hash") != hash:
        raise ValueError(f"--drawings {source}: they are of another checkpoint"
                         f" ({shown(record['request'].get('checkpoint'))})")
    found = []
    for i, entry in enumerate(record["pictures"][:MOST]):
        shutil.copyfile(source / Path(entry["file"]).name, folder / f"{i}.png")
        found.append((entry["prompt"], f"{i}.png"))
    return found


def write_card(
    folder: Path, section: Mapping[str, Any], ckpt: Path, license: str | None = None, languages: Sequence[str] = (),
    drawings: str | Path | None = None,
) -> None:
    """Writes the card of an exported folder, but not over one that is there.

    Args:
        section: `t2i` of the checkpoint.
        license: a key of the hub's, such as mit or cc-by-sa-4.0; by itself other.
        languages: of the captions; by itself those of the data, where it has its own.
        drawings: a folder of `sample.py`, of this checkpoint.
    """
    license = "other" if license is None else license
    if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(f"--license {quoted(license)}: a key as the hub has them is wanted, such as mit, apache-2.0,"
                         " cc-by-4.0 or other")
    if (folder / CARD).exists():
        print(f"{folder / CARD} stays as it is; delete it to have it written anew")
        return
    kind, config, hash = section["kind"], section["config"], file_format.file_hash(ckpt)
    data = config.get("data") or {}
    dataset = data["_target_"].split(".")[-2] if "_target_" in data else None
    if not languages and dataset not in (None, *OWN_CAPTIONS):
        languages = data.get("languages", ["en"])
    evaluation = _evaluation(ckpt, hash)
    results = [] if evaluation is None else _results(evaluation)
    pictures = [] if drawings is None else _drawings(Path(drawings).expanduser(), hash, folder)
    grids = sorted(ckpt.parent.glob("grids/samples-*.png"))
    if grids:
        shutil.copyfile(grids[-1], folder / GRID)
    name = folder.resolve().name
    widget: Any = {"widget": [{"text": text, "output": {"url": file}} for text, file in pictures]} if pictures else {}
    head = ModelCardData(
        model_name=name if results else None, license=license, library_name="t2i", tags=["t2i", kind],
        pipeline_tag="text-to-image" if kind in DRAWS else None, language=list(languages) or None,
        datasets=[dataset] if dataset else None, metrics=[each.metric_type for each in results] or None,
        eval_results=results or None, **widget,
    )
    size = config["model"].get("image_size", data.get("image_size"))
    lines = [f"# {name}", f"A {kind} of t2i" + (f", trained on `{dataset}`" if dataset else "")
             + (f", for images of {size} pixels" if size else "") + ".",
             f"```python\n{USE}{CALLS[kind in DRAWS]}```"]
    if results:
        rows = [f"| {r.metric_type} | {r.metric_value:.4g} | {a['low']:.4g} to {a['high']:.4g} | {a['n']} |"
                if (a := r.metric_args or {}).keys() >= {"low", "high", "n"} else
                f"| {r.metric_type} | {r.metric_value:.4g} | | |" for r in results]
        lines += ["\n".join(["| score | value | 95 % interval | n |", "| --- | --- | --- | --- |", *rows]),
                  "Each score's protocol stands in the head of this file, as `args`."]
    lines += [f"![Samples of the last validation]({GRID})"] * bool(grids)
    alt = [re.sub(r"([\\\[\]<>`])", r"\\\1", text) for text, _ in pictures]
    lines += [" ".join(f"![{text}]({file})" for text, (_, file) in zip(alt, pictures, strict=True))] * bool(pictures)
    atomic.write_text(folder / CARD, f"---\n{head.to_yaml()}\n---\n\n" + "\n\n".join(lines) + "\n")
