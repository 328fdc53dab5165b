"""From a config's `data` node to what a model trains on: pictures, or the cached codes of a prior.

Caches lie under `paths.cache`: `packed/` (decoded pictures), `codes/` (a tokenizer's codes), `states/` (a frozen text
encoder's). All are made on the first use, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2i.checkpoint import building, safe_building
from t2i.config.machine import cores
from t2i.data import code_cache as data_code_cache
from t2i.data import packed, text_embedding_cache
from t2i.data.data_module import DataModule
from t2i.data.faults import brief, told
from t2i.data.images import Pictures
from t2i.data.seeds import number
from t2i.viz.progress import counter

LOOP = ("batch_size", "workers")  # keys of the node that are no argument of the data set
SPLITS = ("train", "val")


def node_of(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config["data"].items() if key not in LOOP}


def admit_data(node: Any, source: Any) -> None:
    """ValueError where the `data` node of a config out of the file `source` is not to be built, or opens a place that
    the user did not name."""
    if not isinstance(node, dict):
        raise ValueError(f"{source}: t2i.config.data is {safe_building.said(node)}; a node with _target_ is wanted")
    safe_building.admit(node_of({"data": node}), "t2i.config.data", source, "data", ("split",))


def dataset(config: dict[str, Any], split: str, build: Callable[..., Any] = building.build_admitted) -> Any:
    """One split of a config's data; pictures on the disk are packed, where `data.pack` says so.

    `build`: `building.build` where the config is the user's own, and none out of a file.
    """
    made = build(node_of(config), split=split)
    if isinstance(made, Pictures) and made.pack:
        with counter(f"packing {split}", len(made)) as progress:
            skipped = packed.attach(made, Path(config["paths"]["cache"]) / "packed", progress, cores())
        left_out(made, skipped)
    for note in made.notes if isinstance(made, Pictures) and split == "train" else []:  # the same of each split
        print(f"data: {brief(note)}")
    return made


def left_out(made: Pictures, skipped: list[dict[str, str]]) -> None:
    """Says what data.on_error=skip left out, and what is damaged and was taken."""
    if lines := made.faults + [entry["reason"] for entry in skipped]:
        print(f"data.on_error=skip: {len(lines)} left out of {made.split}:{told(lines, 10)}")
    if made.damaged:
        print(f"data: {len(made.damaged)} pictures of {made.split} are damaged:{told(made.damaged)}")


def need_captions(config: dict[str, Any], made: dict[str, Any]) -> None:
    """ValueError where a model that reads captions would get pictures without any; with data.on_error=skip those are
    left out, as long as there are others."""
    for split, one in made.items():
        if not isinstance(one, Pictures):
            continue
        bare = np.fromiter((not row["captions"] for row in one.rows), bool, len(one))
        if one.on_error == "skip" and one.store is not None and 0 < bare.sum() < len(bare):
            one.use(packed.Chosen(one.store, ~bare))
            print(f"data.on_error=skip: {bare.sum()} without captions left out of {split}")
        elif bare.any():
            first, name = one.rows[int(bare.argmax())]["key"], config["model"]["_target_"].rpartition(".")[2]
            more = "" if bare.all() else f"; {bare.sum()} of {len(bare)} have none, data.on_error=skip leaves them out"
            raise ValueError(f"{brief(first)} (data, {split}) has no caption; model=vqgan trains on pictures alone,"
                             f" {name} needs captions{more}" + (f"; {brief(one.bare)}" if one.bare else ""))


def disjoint(made: dict[str, Any]) -> None:
    """ValueError where a picture stands in both splits."""
    if all(isinstance(one, Pictures) for one in made.values()):
        train, val = ({row["key"] for row in made[split].rows} for split in SPLITS)
        if both := sorted(train & val):
            raise ValueError(f"{len(both)} pictures are in training and in validation, for instance {both[0]}")


def caption_texts(made: Any, limit: int = 5000) -> Iterator[str]:
    """The captions of a data set's first pictures, for what must see text before training starts."""
    for index in range(min(len(made), limit)):
        for caption in made.captions(index):
            yield getattr(caption, "text", caption)


def described(config: dict[str, Any], made: Any) -> dict[str, Any]:
    """What decides about a data set's pictures and captions, for the header of its codes."""
    if not isinstance(made, Pictures):
        return node_of(config)
    return {**made.settings(), "image_size": made.image_size, "crop": made.crop, "flip": made.flip, "seed": made.seed,
            "rows": made.rows.hash()}


def code_cache(config: dict[str, Any], model: Any, made: dict[str, Any]) -> dict[str, Any]:
    """The codes of each split, encoded on the first use by the model's tokenizer."""
    root, seed = Path(config["paths"]["cache"]), config["seed"]
    device = "cuda" if torch.cuda.is_available() and config["trainer"]["accelerator"] != "cpu" else "cpu"
    model.tokenizer.to(device)
    found = {}
    for split, one in made.items():
        views = one.views if isinstance(one, Pictures) else 1
        head = data_code_cache.header(model.tokenizer, described(config, one), split, len(one), views)
        folder = root / "codes" / f"{split}-{number(json.dumps(head, sort_keys=True)):016x}"
        with counter(f"codes of {split}", len(one)) as progress:
            data_code_cache.build(folder, one, model.tokenizer, head, progress=progress)
        held = data_code_cache.Codes(folder, head)
        texts = text_states(root, split, held, model, device) if model.cache_text else None
        found[split] = data_code_cache.PickedCodes(held, lambda what, epoch, index: number(seed, what, epoch, index),
                                                   texts)
    return found


def text_states(root: Path, split: str, held: data_code_cache.Codes, model: Any,
                device: str) -> text_embedding_cache.States:
    encoder = model.text_encoder.to(device)
    head = text_embedding_cache.header(encoder.hash(), held.rows)
    folder = root / "states" / f"{split}-{number(json.dumps(head, sort_keys=True)):016x}"
    with counter(f"caption states of {split}", len(held)) as progress:
        text_embedding_cache.build(folder, held.rows, encoder, head, progress=progress)
    return text_embedding_cache.States(folder, head)


def data_module(config: dict[str, Any], model: Any) -> DataModule:
    made = {split: dataset(config, split, building.build) for split in SPLITS}
    disjoint(made)
    if model.captions:
        need_captions(config, made)
    common = {"batch_size": config["data"]["batch_size"], "workers": config["data"]["workers"], "seed": config["seed"]}
    if model.batch == "codes":
        found = code_cache(config, model, made)
        return DataModule(found["train"], found["val"], collate=data_code_cache.collate, **common)
    return DataModule(made["train"], made["val"], **common)
