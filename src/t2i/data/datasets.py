"""From a config's `data` node to what a model trains on: pictures, or the cached codes of a prior.

Caches lie under `paths.cache`: `packed/` (decoded pictures), `codes/` (a tokenizer's codes), `states/` (a frozen text
encoder's). All are made on the first use, once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from t2i.checkpoint import building
from t2i.config.check import constructor
from t2i.config.machine import cores
from t2i.config.messages import quoted
from t2i.data import code_cache, packed, text_embedding_cache
from t2i.data.cache import Header
from t2i.data.data_module import DataModule
from t2i.data.image_dataset import ImageDataset
from t2i.data.rows import fault_lines, one_line
from t2i.data.seeds import derive_seed
from t2i.viz.progress import counter

LOOP = ("batch_size", "workers")  # keys of the node that are no argument of the data set
SPLITS = ("train", "val")


def dataset_node(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the data set in a config's `data`."""
    return {key: value for key, value in config["data"].items() if key not in LOOP}


def check_data_node(node: Any, source: Any) -> None:
    """ValueError where the `data` node of a config out of the file `source` is not to be built, or opens a place that
    the user did not name."""
    if not isinstance(node, dict):
        raise ValueError(f"{source}: t2i.config.data is {quoted(node)}; a node with _target_ is wanted")
    building.check_file_node(dataset_node({"data": node}), "t2i.config.data", source, "data", ("split",))


def given_arguments(config: dict[str, Any], split: str) -> dict[str, Any]:
    """What our code gives a data set: its split, and where it may keep things, if it takes that."""
    found = constructor(config["data"]["_target_"])
    takes = found is not None and "cache" in found.arguments
    return {"split": split} | ({"cache": Path(config["paths"]["cache"])} if takes else {})


def dataset(config: dict[str, Any], split: str, build: Callable[..., Any] = building.build_registered) -> Any:
    """One split of a config's data; pictures on the disk are packed, where `data.pack` says so.

    `build`: `building.build` where the config is the user's own, and none out of a file.
    """
    made = build(dataset_node(config), **given_arguments(config, split))
    if not isinstance(made, ImageDataset):
        return made
    if made.pack:
        with counter(f"packing {split}", len(made)) as progress:
            skipped = packed.attach(made, Path(config["paths"]["cache"]) / "packed", progress, cores())
        if lines := made.faults + [entry["reason"] for entry in skipped]:
            print(f"data.on_error=skip: {len(lines)} left out of {split}:{fault_lines(lines, 10)}")
        if made.damaged:
            print(f"data: {len(made.damaged)} pictures of {split} are damaged:{fault_lines(made.damaged)}")
    for note in made.notes if split == "train" else []:  # the same of each split
        print(f"data: {one_line(note)}")
    return made


def need_captions(config: dict[str, Any], made: dict[str, Any]) -> None:
    """ValueError where a model that reads captions would get pictures without any; with data.on_error=skip those are
    left out, as long as there are others."""
    for split, one in made.items():
        if not isinstance(one, ImageDataset):
            continue
        bare = np.fromiter((not row["captions"] for row in one.rows), bool, len(one))
        if one.on_error == "skip" and one.store is not None and 0 < bare.sum() < len(bare):
            one.use(packed.StoreSubset(one.store, ~bare))
            print(f"data.on_error=skip: {bare.sum()} without captions left out of {split}")
        elif bare.any():
            first, name = one.rows[int(bare.argmax())]["key"], config["model"]["_target_"].rpartition(".")[2]
            more = "" if bare.all() else f"; {bare.sum()} of {len(bare)} have none, data.on_error=skip leaves them out"
            hint = f"; {one_line(one.caption_hint)}" if one.caption_hint else ""
            raise ValueError(f"{one_line(first)} (data, {split}) has no caption; model=vqgan trains on pictures alone,"
                             f" {name} needs captions{more}{hint}")


def disjoint(made: dict[str, Any]) -> None:
    """ValueError where a picture stands in both splits."""
    if all(isinstance(one, ImageDataset) for one in made.values()):
        train, val = ({row["key"] for row in made[split].rows} for split in SPLITS)
        if both := sorted(train & val):
            raise ValueError(f"{len(both)} pictures are in training and in validation, for instance {both[0]}")


def caption_texts(made: Any, limit: int = 5000) -> Iterator[str]:
    """The captions of a data set's first pictures, for what must see text before training starts."""
    for index in range(min(len(made), limit)):
        yield from made.captions(index)


def data_settings(config: dict[str, Any], made: Any) -> dict[str, Any]:
    """What decides about a data set's pictures and captions, for the header of its codes."""
    if not isinstance(made, ImageDataset):
        return dataset_node(config)
    return {**made.settings(), "image_size": made.image_size, "crop": made.crop, "flip": made.flip, "seed": made.seed,
            "rows": made.rows.hash()}


def _folder(config: dict[str, Any], kind: str, split: str, header: Header) -> Path:
    code = derive_seed(json.dumps(header, sort_keys=True))
    return Path(config["paths"]["cache"]) / kind / f"{split}-{code:016x}"


def code_dataset(config: dict[str, Any], model: Any, split: str, made: Any) -> code_cache.CodeDataset:
    """The codes of a split, and with `model.cache_text` its captions' states, encoded on the first use by the model's
    tokenizer and text encoder."""
    views, seed = made.views if isinstance(made, ImageDataset) else 1, config["seed"]
    header = code_cache.header(model.tokenizer, data_settings(config, made), split, len(made), views)
    folder = _folder(config, "codes", split, header)
    with counter(f"codes of {split}", len(made)) as progress:
        code_cache.build(folder, made, model.tokenizer, header, progress=progress)
    codes, states = code_cache.CodeCache(folder, header), None
    if model.cache_text:
        header = text_embedding_cache.header(model.text_encoder.hash(), codes.rows)
        folder = _folder(config, "states", split, header)
        with counter(f"caption states of {split}", len(codes)) as progress:
            text_embedding_cache.build(folder, codes.rows, model.text_encoder, header, progress=progress)
        states = text_embedding_cache.TextEmbeddingCache(folder, header)
    return code_cache.CodeDataset(codes, partial(derive_seed, seed), states)


def data_module(config: dict[str, Any], model: Any) -> DataModule:
    made = {split: dataset(config, split, building.build) for split in SPLITS}
    disjoint(made)
    if model.captions:
        need_captions(config, made)
    collate = None
    if model.batch == "codes":
        device = "cuda" if torch.cuda.is_available() and config["trainer"]["accelerator"] != "cpu" else "cpu"
        model.tokenizer.to(device)
        if model.cache_text:
            model.text_encoder.to(device)
        made = {split: code_dataset(config, model, split, one) for split, one in made.items()}
        collate = code_cache.collate
    return DataModule(made["train"], made["val"], config["data"]["batch_size"], config["data"]["workers"],
                      config["seed"], collate)
