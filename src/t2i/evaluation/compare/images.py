"""What runs make of the same captions and pictures: drawings of every run that draws, reconstructions of every
tokenizer. One model is in memory at a time.

Picture i is drawn with the seed f(seed, "comparison", i), by the model's own sampling options. Captions and pictures
are those of the first run of each kind, from the start of its validation split; `captions=FILE` replaces the captions.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from t2i.checkpoint import building, file_format
from t2i.config.compose import difference
from t2i.data.datasets import LOOP, check_data_node, dataset_node
from t2i.evaluation.compare.runs import Run
from t2i.evaluation.composition import reconstructed
from t2i.evaluation.generated_images import BATCH, draw
from t2i.generation.text_to_image import KINDS, OPTIONS, options_of, read_lines
from t2i.metrics.reconstruction import psnr

TOKENIZER = "vqgan"
COLUMNS = 8  # captions, or pictures, where n= says nothing
MOST = 64
ORIGINALS = "original"
TIMED = 3


@dataclass
class Sheet:
    """What several runs made of the same captions or pictures: `columns` label -> (uint8 (n, h, w, 3), a line under
    each)."""

    title: str
    texts: list[str]
    notes: list[str] = field(default_factory=list)
    columns: dict[str, tuple[np.ndarray, list[str]]] = field(default_factory=dict)


def drawn(model: Any, text: Sequence[str], seed: int, options: dict[str, Any], label: str | None) -> np.ndarray:
    """uint8 (n, h, w, 3) for a comparison's captions."""
    parts = draw(model, text, seed, options, purpose="comparison", label=label)
    return torch.cat([pictures for _, pictures in parts]).numpy()


def speed(model: Any, text: Sequence[str], options: dict[str, Any]) -> float:
    """Pictures a second in batches of 64, warmed up, median of three."""
    some = [text[i % len(text)] for i in range(BATCH)]
    seconds = []
    for _ in range(1 + TIMED):
        started = time.perf_counter()
        drawn(model, some, 0, options, None)  # on the CPU at last: nothing is still under way
        seconds.append(time.perf_counter() - started)
    return BATCH / median(seconds[1:])


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {device.type}, torch threads {torch.get_num_threads()}"


def validation(run: Run, n: int, size: int | None = None) -> tuple[np.ndarray, list[str]]:
    """The first pictures of a run's validation split, uint8 (n, h, w, 3), of another side with `size`, and their first
    captions ("" where there is none)."""
    config, source = run.config, run.folder / "config.json"
    data = config["data"] if size is None else {**config["data"], "image_size": size}
    check_data_node(data, source)
    made = building.build_registered(dataset_node({**config, "data": data}), split="val")
    examples = [made[(i, 0)] for i in range(min(n, len(made)))]
    return (torch.stack([one.image for one in examples]).permute(0, 2, 3, 1).contiguous().numpy(),
            [str(one.captions[0]) if one.captions else "" for one in examples])


def other_data(first: Run, run: Run) -> str | None:
    """Which data a run was trained on, where they are not those that the sheet was made of."""
    left, right = ({k: v for k, v in one.config["data"].items() if k not in (*LOOP, "size", "val_size", "image_size")}
                   for one in (first, run))
    changed = difference(left, right)
    if not changed:
        return None
    shown = "; ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
    return f"{run.label} was trained on other data than {first.label}: {shown}."


def opened(run: Run, device: torch.device) -> Any:
    """A run's model, ready to draw; its parameters are counted: of what draws without the text encoder, of a tokenizer
    without its discriminator, else of all."""
    assert run.checkpoint is not None
    model = building.load(run.checkpoint).to(device).eval()
    if hasattr(model, "place"):
        model.place()
    if hasattr(model, "drawing_parameters"):
        run.facts["parameters"] = int(model.drawing_parameters())
    else:
        counted = model.tokenizer if file_format.kind_of(model) == TOKENIZER else model
        run.facts["parameters"] = sum(p.numel() for p in counted.parameters())
    return model


def captioned(first: Run, captions: str | None, n: int | None) -> Sheet:
    """The sheet of the runs that draw, with captions (and their pictures, where they are the data's) but no drawings.
    """
    if captions is not None:
        every = read_lines(captions, "captions")
        texts = every[: MOST if n is None else n]
        of = f", the first {len(texts)} of {len(every)}" if len(texts) < len(every) else ""
        return Sheet("The same captions", texts, [f"Captions: {captions}{of}."])
    pictures, texts = validation(first, n or COLUMNS)
    if not all(texts):
        raise ValueError(f"the data of {first.label} have pictures without captions: captions=FILE names what to draw")
    return Sheet("The same captions", texts, [
        f"Captions: the first {len(texts)} of {first.label}'s validation split, with their own pictures as"
        f" {ORIGINALS}s."], {ORIGINALS: (pictures, [""] * len(texts))})


def reconstruct(sheet: Sheet, first: Run, run: Run, model: Any, n: int | None) -> None:
    """Adds a tokenizer's reconstructions of the first run's validation pictures, PSNR in dB under each."""
    pictures, texts = validation(first, n or COLUMNS, model.image_size)
    if ORIGINALS not in sheet.columns:
        sheet.texts, sheet.columns[ORIGINALS] = texts, (pictures, ["PSNR"] * len(texts))
    elif pictures.shape[1] != sheet.columns[ORIGINALS][0].shape[1]:
        sheet.notes.append(f"{run.label} works at {model.image_size} pixels: it got the pictures in that size, and its"
                           " PSNR is against them.")
    back = reconstructed(model.tokenizer, torch.from_numpy(pictures))

    def to_float(images: Tensor) -> Tensor:
        return images.permute(0, 3, 1, 2).float() / 127.5 - 1

    run.facts["shown_psnr"] = psnr(to_float(back), to_float(torch.from_numpy(pictures))).tolist()
    sheet.columns[run.label] = back.numpy(), [f"{value:.1f} dB" for value in run.facts["shown_psnr"]]


def sheets(
    runs: Sequence[Run], captions: str | None, n: int | None, seed: int, device: torch.device
) -> tuple[list[Sheet], list[str]]:
    """Draws and reconstructs with one run after the other, and counts parameters (`facts`); also returns what could not
    be made, and why."""
    drawing = [run for run in runs if run.checkpoint is not None and run.kind in KINDS]
    tokenizers = [run for run in runs if run.checkpoint is not None and run.kind == TOKENIZER]
    missing: list[str] = []
    sheet = rebuilt = None
    if drawing:
        try:
            sheet = captioned(drawing[0], captions, n)
        except (ValueError, OSError) as error:
            if captions is not None:
                raise
            missing.append(f"Nothing was drawn: {error} (captions=FILE does without the data)")
    if tokenizers:
        rebuilt = Sheet("The same pictures, reconstructed", [], [
            f"Pictures: the first of {tokenizers[0].label}'s validation split. PSNR in dB, higher is nearer."])
    for made, members in ((sheet, drawing), (rebuilt, tokenizers)):
        if made is not None:
            made.notes += [note for run in members if (note := other_data(members[0], run)) is not None]
    for run in (run for run in runs if run.checkpoint is not None):
        try:
            model = opened(run, device)
            if run in drawing and sheet is not None:
                options = run.facts["options"] = options_of(dict.fromkeys(OPTIONS), model)
                images = drawn(model, sheet.texts, seed, options, f"{run.label}: drawing")
                sheet.columns[run.label] = images, [""] * len(images)
            elif run in tokenizers and rebuilt is not None:
                reconstruct(rebuilt, tokenizers[0], run, model, n)
        except (ValueError, OSError) as error:  # one run that cannot draw here must not hide the others
            missing.append(f"{run.label} made no pictures: {error}")
        model = None
        gc.collect()
    return [made for made in (sheet, rebuilt) if made is not None and made.texts and made.columns], missing
