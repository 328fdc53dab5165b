"""What `evaluate.py` does: pictures of a checkpoint or of a folder, measured by the metrics of `metrics/`.

Drawn pictures stay under `<out>/drawn`, so that an evaluation that was broken off goes on, and another one of the same
pictures draws none. Every score carries its protocol; `protocols.py` has the named ones. A metric that cannot be had
costs no other: `missing` says why, before anything is drawn where that can be known. One process at a time evaluates
into a folder.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object
from torch import Tensor

from t2i.checkpoint import atomic, building, file_format
from t2i.checkpoint.lock import exclusive
from t2i.checkpoint.registry import trust
from t2i.config.messages import shown
from t2i.config.quiet import quiet
from t2i.data.datasets import check_data_node
from t2i.data.scenes import render
from t2i.evaluation import composition as compositions
from t2i.evaluation import evaluator, nearest_render, paraphrase, reference_images, scene_editing, scene_paraphrase
from t2i.evaluation.composition import KINDS as SPLITS
from t2i.evaluation.composition import READ_BY, Judgement, Paint, composed, judgement, listed, refined, world_of
from t2i.evaluation.evaluator import Evaluator, Scores, too_few, without
from t2i.evaluation.feature_models import involvement, open_clip_model, open_inception
from t2i.evaluation.generated_images import GeneratedImages, largest_batch
from t2i.evaluation.protocols import BACK, DRAWN, NEEDS_EFFICIENTNET, OF_OWN_CAPTIONS, settle
from t2i.evaluation.reference_images import Reference
from t2i.generation.editing import Edit, edited, of_box
from t2i.generation.text_to_image import (
    KINDS,
    PRIORS,
    check_negative,
    device_of,
    given_options,
    options_of,
    set_weights,
)
from t2i.losses.perceptual import LPIPS, EfficientNetDistance
from t2i.metrics.efficientnet import EfficientNetFeatures
from t2i.metrics.features import FeatureNet
from t2i.models.distributed import barrier, first_error, local_device, rank_and_world_size
from t2i.types import Gallery, HasGallery
from t2i.version import code_version, version
from t2i.viz.grids import to_uint8
from t2i.viz.progress import counter
from t2i.viz.tables import markdown

# What judges have in `evaluation.json` -> their tables.
TABLES = {"nearest_render": nearest_render.tables, "paraphrase": paraphrase.tables,
          "wordings": scene_paraphrase.tables, "editing": scene_editing.tables}


def place(config: Mapping[str, Any]) -> Path:
    """Where an evaluation is written: `out`, beside the checkpoint, or beside the folder of pictures, not in it."""
    if config["out"] or config["ckpt"]:
        return Path(config["out"] or Path(config["ckpt"]).parent)
    return Path(f"{str(config['images']).rstrip('/')}-evaluation")


def kinds_for(metrics: Sequence[str]) -> tuple[str, ...]:
    """The kinds of model that have these metrics. A tokenizer draws nothing, but its reconstructions have their nearest
    renders, and can be read, too."""
    drawing = any(name not in (*BACK, "nearest_render", "composition") for name in metrics)
    kinds = KINDS if drawing else (*KINDS, "vqgan")
    return tuple(kind for kind in kinds if kind in (*PRIORS, "vqgan") or not set(BACK) & set(metrics))


def gallery_metrics(metrics: Sequence[str], data: Mapping[str, Any] | None) -> list[str]:
    """Those that compare with all true pictures of concepts in styles; scenes have a paraphrase of their own."""
    of_scenes = data is not None and compositions.is_scenes(data)
    return [name for name in ("nearest_render", *(() if of_scenes else ("paraphrase",))) if name in metrics]


def check_fit(config: Mapping[str, Any], metrics: Sequence[str], data: Mapping[str, Any] | None) -> None:
    """ValueError for settings that do not fit the metrics or the data (their node)."""
    of_scenes, of_gallery = data is not None and compositions.is_scenes(data), gallery_metrics(metrics, data)
    here = f"here metrics=[{', '.join(metrics)}]"
    if "composition" in metrics and data is not None and not of_scenes:
        raise ValueError("metrics=[composition] reads scenes, of data=shapes; here the data are"
                         f" {data['_target_'].rpartition('.')[2]}")
    if isinstance(config["size"], str):
        raise ValueError(f"size={shown(config['size'])}: a number is wanted, the side of square pictures")
    if config["style_guidance"] and of_scenes and "paraphrase" in metrics and not of_gallery:
        raise ValueError("style_guidance=true: scenes have no styles; it is of data=emoji and its like")
    if config["style_guidance"] and (not of_gallery or config["ckpt"] is None or "clip_guided" in config):
        raise ValueError("style_guidance=true is of metrics=[nearest_render], [paraphrase] and ckpt=, without"
                         f" method=clip_guided; {here}")
    if "editing" in metrics and (config["ckpt"] is None or not of_scenes):
        raise ValueError("metrics=[editing] is of ckpt=, a prior_any of data=shapes, whose pictures it edits")
    if config["pairs"] != "all" and "nearest_render" not in metrics:
        raise ValueError(f"pairs={config['pairs']} is of metrics=[nearest_render]; {here}")
    if config["n_per_task"] < 2:
        raise ValueError(f"n_per_task={config['n_per_task']}: at least 2 (the floor exchanges captions)")


def check_kind(metrics: Sequence[str], model: Any, what: str) -> None:
    """ValueError for a model, or a class of models, that has not what a metric judges; `what` says where it is."""
    if "editing" in metrics and model.kind != "prior_any":
        raise ValueError(f"metrics=[editing]: {what} a {model.kind}, which draws pictures as a whole; a prior_any edits"
                         " (model=prior_any)")


def check_ahead(config: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], trusted: Sequence[str]) -> None:
    """What can be told before the last of some stages (their configs) has trained the model: ValueError for settings
    that do not fit its data or it, and where weights of Inception, VGG or a CLIP are asked for and not there.

    `trusted` names places besides `trust=` that may be opened. A CLIP may be one that a stage trains.
    """
    data, model = config.get("data") or stages[-1]["data"], stages[-1]["model"]
    protocol, _ = settle(config, data["_target_"])
    metrics, made, pictures = protocol.metrics, *map(get_object, (model["_target_"], data["_target_"]))
    check_fit(config, metrics, data)
    if (kind := getattr(made, "kind", None)) is not None:  # of what a function makes nothing is known yet
        if kind not in (kinds := kinds_for(metrics)):
            raise ValueError(f"metrics={list(metrics)}: of a {', '.join(kinds)}; here a {kind} is trained")
        check_kind(metrics, made, "here is trained")
        if kind != "vqgan":
            options = {**made.options, **given_options(config, made)}
            if config["style_guidance"]:
                check_negative("style_guidance=true", made, options.get("guidance"), False)
    device_of(config["device"])
    if isinstance(pictures, type) and not issubclass(pictures, HasGallery):
        for metric in gallery_metrics(metrics, data):
            raise nearest_render.without_gallery(pictures, metric)
    open_inception(config, protocol, torch.device("cpu"))
    folders = [Path(stage["paths"]["runs"], stage["name"]).absolute() for stage in stages]
    if not any(Path(str(protocol.clip_model)).absolute().is_relative_to(folder) for folder in folders):
        trust([*config["trust"], *trusted])  # until a stage says what it trusts
        open_clip_model(config, protocol, stages[-1], torch.device("cpu"))
    if "lpips" in metrics:
        LPIPS(config["vgg"])


class Evaluation:
    """One command's model or folder, protocol and feature models, opened and checked before anything is drawn.

    What there is to show of it is kept: `judgements` of drawings for captions of the metrics' own, `measured` pictures,
    `reconstructions` beside their originals.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.seed, self.started = config, config["seed"], time.monotonic()
        self.scores, self.lock = Scores(), ExitStack()
        self.judgements: dict[str, Judgement] = {}  # by their names in `evaluation.json`
        self.images: GeneratedImages | None = None  # of a folder
        self.measured: GeneratedImages | None = None
        self.reconstructions: tuple[Tensor, Tensor] | None = None
        exporting = config["export"] is not None
        asked = [key for key in ("ckpt", "images") if config[key] is not None]
        if len(asked) != 1 and not exporting:
            raise ValueError("give ckpt=, a checkpoint that draws, or images=, a folder of pictures; one of the two")
        self.held: Any = file_format.read(config["ckpt"])["t2i"]["config"] if config["ckpt"] is not None else None
        self.hash = file_format.file_hash(config["ckpt"]) if config["ckpt"] is not None else None
        node = config["data"] if "data" in config else (self.held or {}).get("data")
        if node is not None and "data" not in config:
            check_data_node(node, config["ckpt"])
        self.protocol, self.changed = settle(config, node["_target_"] if node is not None else None)
        metrics = self.metrics = self.protocol.metrics
        self.of_scenes = node is not None and compositions.is_scenes(node)
        of_gallery = gallery_metrics(metrics, node)
        if self.of_scenes:
            trained = (self.held or {}).get("data") or {}
            known = trained.get("phrasing", "grammar")
            if "paraphrase" in metrics and self.held is not None and known != "english":
                of = f"data.phrasing={known}" if compositions.is_scenes(trained) else "other data"
                self.changed.append(f"asked in English of a model of {of}, which trained on none")
                print(f"Note: {self.changed[-1]}", file=sys.stderr)
        check_fit(config, metrics, node)
        if node is None and (config["images"] is None or set(metrics) - {"clip_score", "r_precision"}):
            raise ValueError("data= is needed: whose captions and real pictures to compare with (data=shapes, data=coco"
                             " data.root=…)")
        self.data: Any = None if node is None else {"data": node, "paths": config["paths"], "seed": self.seed}
        self.device = device_of(local_device(config["device"]))
        self.model: Any = None
        self.options: dict[str, Any] = {}
        if config["ckpt"] is not None:
            self._open_model()
        elif config["images"] is not None:
            if config["weights"] is not None:
                raise ValueError(f"weights={config['weights']}: of a prior's checkpoint, and images= draws nothing")
            if back := [name for name in metrics if name in BACK]:
                raise ValueError(f"metrics=[{', '.join(back)}] are of a tokenizer: give ckpt=, not images=")
            self.images = GeneratedImages.read(config["images"], config["size"])  # theirs, unless asked
        self.size: Any = self.protocol.size or (self.model.image_size if self.model is not None else
                                                node["image_size"] if node is not None else None)
        self.out = place(config)
        self.reference: Reference | None = None
        if not exporting:
            self.clip = open_clip_model(config, self.protocol, self.held, self.device)
            self.inception = open_inception(config, self.protocol, self.device)
            self.efficientnet = EfficientNetFeatures(self.device) if set(NEEDS_EFFICIENTNET) & set(metrics) else None
            self.perceptual = LPIPS(config["vgg"]).to(self.device) if "lpips" in metrics else None
            self.sharpness: EfficientNetDistance | None = None
            if of_gallery:
                self.gallery = self.open_gallery(of_gallery[0])
            if "paraphrase" in of_gallery:
                with self.scores.trying(["paraphrase"], part=True):
                    paraphrase.asked(self.gallery, config["n_pairs"], self.seed)
                self.leave_out()
            if "nearest_render" in metrics:
                with self.scores.trying(["nearest_render_perceptual"]):
                    EfficientNetDistance.check_side(*self.gallery.images.shape[-2:])
                    self.sharpness = EfficientNetDistance().to(self.device)
            self._check()
            self._take()

    def _open_model(self) -> None:
        config = self.config
        self.model = building.load(config["ckpt"], kind=kinds_for(self.metrics)).to(self.device)
        if hasattr(self.model, "place"):
            self.model.place()
        set_weights(self.model, config["weights"])
        check_kind(self.metrics, self.model, f"{config['ckpt']} holds")
        self.generator = self.model
        if self.model.kind != "vqgan" and not set(self.metrics) <= set(BACK):
            wanted = self.protocol.truncation
            if config["truncation"] is None and wanted is not None and "truncation" not in self.model.options:
                self.changed.append(f"no truncation instead of {wanted}: a {self.model.kind} has no noise to truncate")
                wanted = None
            self.options = options_of({**config, "truncation": wanted}, self.model)
        if config["style_guidance"]:
            check_negative("style_guidance=true", self.model, self.options.get("guidance"), False)
        if "clip_guided" in config:
            from t2i.generation.clip_guided.generator import ClipGuidedGenerator
            from t2i.generation.clip_guided.settings import settings_of

            if not hasattr(self.model, "codes"):
                raise ValueError(f"method=clip_guided refines a prior's samples; {config['ckpt']} holds a"
                                 f" {self.model.kind}")
            self.generator = ClipGuidedGenerator(settings_of(config["clip_guided"]), self.model, self.device,
                                                 self.options)
            if self.generator.start != "prior":
                raise ValueError(f"clip_guided.start={self.generator.start}: evaluate.py compares with the prior's own"
                                 " samples; leave it out")

    def _check(self) -> None:
        """What can be had of so many pictures and captions; ValueError where nothing can."""
        asked = [name for name in self.metrics if name in DRAWN]
        if asked and self.data is not None:
            self.reference = Reference(self.data, self.protocol, self.size, self.seed)
            self.changed += self.reference.shortfalls()
        if self.images is not None and {"clip_score", "r_precision", *OF_OWN_CAPTIONS} & set(self.metrics):
            self.images.captions()
        if asked:
            text: Sequence[str | None] = (self.images.text if self.images is not None else
                                          self.reference.text)  # type: ignore[union-attr]
            n_real = None if self.reference is None else len(self.reference.numbers)
            self.scores.missing |= too_few(asked, text, n_real)
            self.leave_out()
            if self.scores.missing and rank_and_world_size()[0] == 0:  # now, so that who cannot do without can stop
                print("\n".join(without(self.scores.missing)), file=sys.stderr)

    def leave_out(self) -> None:
        """What is missing is no longer asked for; ValueError where nothing is left."""
        missing = self.scores.missing
        self.metrics = tuple(name for name in self.metrics if name not in missing)
        if not self.metrics:
            raise ValueError("; ".join(f"{name} cannot be had: {why}" for name, why in missing.items()))

    def _take(self) -> None:
        """The folder, for this process alone; of several processes the first takes it for all."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            if rank_and_world_size()[0] == 0:
                self.lock.enter_context(exclusive(self.out, "evaluation"))
        except OSError as error:
            raise ValueError(f"out={shown(self.out)} cannot be written: {error.strerror}") from error

    def draw(
        self, what: str, text: list[str], guided: bool, negative: Mapping[str, str] | None = None
    ) -> GeneratedImages:
        """Pictures for these captions, drawn now or before."""
        request = {"what": what, "hash": self.hash, "sampler": self.options, "seed": self.seed,
                   **({} if self.config["weights"] is None else {"weights": self.config["weights"]}),
                   **({} if negative is None else {"style_guidance": True}),
                   **({"clip_guided": self.config["clip_guided"]} if guided else {})}
        images = GeneratedImages.for_captions(self.out / "drawn", request, text)
        rank, ranks = rank_and_world_size()
        barrier()
        missing = images.missing()  # the same for all: nobody draws before everybody knows
        barrier()
        fault = None
        try:
            if missing:
                images.draw(missing[rank::ranks], self.generator if guided else self.model, self.seed,
                            {} if guided else self.options, largest_batch(self.device, self.config["batch_size"]),
                            f"drawing, {what}", negative)
        except OSError as error:
            fault = (f"{error.strerror}; {len(images) - len(images.missing())} of {len(images)} pictures are drawn, and"
                     " the same command goes on where it stopped")
        if (fault := first_error(fault)) is not None:
            raise ValueError(fault)
        return images

    def painter(self, metric: str, guided: bool = True, of_gallery: bool = False) -> Paint:
        """The pictures that a metric judges: of the folder, or drawn for its captions, by guided drawing where that is
        asked for. `of_gallery`: its captions name styles, and `style_guidance` leads away from those without."""
        if self.images is not None:
            return listed(self.images, metric)
        guided, away = guided and "clip_guided" in self.config, None
        if of_gallery and self.config["style_guidance"]:
            away = dict(zip(self.gallery.captions, self.gallery.plain_captions, strict=True))
            away |= {text: word.plain_caption for word in self.gallery.unseen_words for text in word.captions.values()}
        return lambda what, text: self.draw(f"{metric}, {what}", text, guided, away).all()

    def judge_composition(self) -> Judgement:
        """Of scenes, of a prior also after guided drawing."""
        def found(guided: bool) -> dict[str, Any]:
            paint, tokenizer = self.painter("composition", guided), getattr(self.model, "tokenizer", None)
            world = world_of(self.data["data"])
            if self.model is not None and self.model.kind == "vqgan":
                paint, tokenizer = compositions.through(tokenizer, self.image_size, n_per_task, self.seed, world), None
            return composed(paint, self.image_size, tokenizer, n_per_task, self.seed, world)

        n_per_task = self.config["n_per_task"]
        both = refined(found(False), found(True)) if "clip_guided" in self.config else found(False)
        return judgement(both, n_per_task, self.seed)

    def open_gallery(self, metric: str) -> Gallery:
        """All true pictures of the data, of the drawn pictures' size, for a metric."""
        trained = self.held["data"] if self.held is not None and "data" in self.held else None
        size = self.size if self.model is None and self.images is None else self.image_size
        return nearest_render.open_gallery(self.data, size, trained, metric)

    def judge_renders(self) -> Judgement:
        """Of drawings by their nearest renders."""
        paint, tokenizer = self.painter("nearest_render", of_gallery=True), getattr(self.model, "tokenizer", None)
        if self.model is not None and self.model.kind == "vqgan":
            paint, tokenizer = nearest_render.through(tokenizer, self.gallery), None
        return nearest_render.judged(paint, self.gallery, tokenizer, self.config["n_pairs"], self.seed, self.sharpness,
                                     styles=self.images is None, device=self.device, pairs=self.config["pairs"])

    def judge_words(self) -> Judgement:
        """Of drawings that are asked for by unseen words."""
        paint = self.painter("paraphrase", of_gallery=True)
        return paraphrase.judged(paint, self.gallery, self.config["n_pairs"], self.seed, self.device)

    def judge_wordings(self) -> Judgement:
        """Of scenes by how their captions are worded."""
        return scene_paraphrase.judged(self.painter("paraphrase"), self.image_size, self.config["n_per_task"],
                                       self.seed, world_of(self.data["data"]))

    def judge_edits(self) -> Judgement:
        """Of edited scenes."""
        n, done = self.config["n_per_task"], count(1)
        with counter("editing", n * len(scene_editing.SPLITS)) as progress:

            def paint(edit: scene_editing.Asked, seed: int) -> Tensor:
                image = torch.from_numpy(render(edit.before, self.image_size)).permute(2, 0, 1)
                asked = Edit(image, of_box(edit.box, *image.shape[1:]))
                drawn = torch.from_numpy(to_uint8(edited(self.model, asked, [edit.caption.text], [seed],
                                                         **self.options)))
                progress(next(done))
                return drawn[0]

            return scene_editing.judged(paint, self.image_size, self.model.tokenizer, n, self.seed,
                                        world_of(self.data["data"]))

    @property
    def image_size(self) -> int:
        """Side of the pictures that are measured."""
        return int(self.model.image_size if self.model is not None else
                   self.images.picture(0).shape[0])  # type: ignore[union-attr]

    def base(self) -> dict[str, Any]:
        """What goes into every score's protocol."""
        return {"protocol": self.protocol.name, "changed": self.changed, "seed": self.seed, "t2i": version(),
                "sampler": {**self.options, **({"style_guidance": True} if self.config["style_guidance"] else {}),
                            **({} if self.config["weights"] is None else {"weights": self.config["weights"]})},
                **({"clip_guided": self.config["clip_guided"]} if "clip_guided" in self.config else {})}

    def measure(self) -> None:
        """Draws and measures."""
        scores, metrics = self.scores, self.metrics
        asked_in_words = ("wordings", self.judge_wordings) if self.of_scenes else ("paraphrase", self.judge_words)
        for metric, name, judge in (
            ("composition", "composition", self.judge_composition),
            ("nearest_render", "nearest_render", self.judge_renders),
            ("paraphrase", *asked_in_words),
            ("editing", "editing", self.judge_edits),
        ):
            if metric in metrics:
                with scores.trying([metric]):
                    self.judgements[name] = found = judge()
                    for value in found.values:
                        scores.add(*value, {**self.base(), **found.protocol})
        if asked := [name for name in metrics if name in DRAWN]:
            with scores.trying(asked):
                self._measure_captioned(asked)
        if asked := [name for name in metrics if name in BACK]:
            from t2i.evaluation.tokenizer import reconstruction

            data = {**self.data, "data": {**self.data["data"], "image_size": self.model.image_size}}
            nets: list[FeatureNet] = [net for net in (self.inception, self.clip, self.efficientnet)
                                      if net is not None]
            with scores.trying(asked):
                self.reconstructions = reconstruction(self.model.tokenizer, data, self.config["split"], self.protocol.n,
                                                      metrics, nets, self.perceptual, self.base(), scores)
        self.leave_out()

    def _measure_captioned(self, metrics: list[str]) -> None:
        """What is of pictures for captions, a model's or a folder's."""
        images = self.images
        if images is None:
            assert self.reference is not None
            images = self.draw("captions", self.reference.text, "clip_guided" in self.config)
        involved = None if self.clip is None else involvement(
            self.clip, self.generator if self.model is not None else None, images.guides)
        text = images.captions() if {"clip_score", "r_precision"} & set(metrics) else None
        measuring = Evaluator(metrics, self.reference, self.clip, self.inception, self.seed, involved, self.base(),
                              efficientnet=self.efficientnet)
        with counter("scoring", len(images)) as progress:
            embedded = measuring.embed(images.batches(progress=progress), self.scores)
        measuring.measure(embedded, text, self.scores)
        self.measured = images
        if images.grey:
            print(f"{images.grey} of {len(images)} pictures have no colours; they are taken as they are, in three equal"
                  " channels")

    def result(self) -> dict[str, Any]:
        """What `evaluation.json` holds: scores, protocols by score, the protocol of all, and what could not be had."""
        config, scores = self.config, self.scores
        protocol = {
            "checkpoint": str(config["ckpt"]) if config["ckpt"] else None, "images": config["images"],
            "hash": self.hash, **self.base(), "metrics": list(self.metrics), "n_per_task": config["n_per_task"],
            "size": self.size, "image_size": self.image_size, **READ_BY,
            "data": None if self.data is None else self.data["data"], "code": code_version(),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        nested: dict[str, Any] = {}
        for name, found in self.judgements.items():
            nested |= {name: found.scores, **found.more}
        return {"scores": {**nested, **scores.values}, "protocols": scores.protocols, "protocol": protocol,
                "missing": scores.missing}

    def save(self) -> tuple[dict[str, Any], Path]:
        """Prints the scores and writes `evaluation.json`."""
        result, path = self.result(), self.out / "evaluation.json"
        print(nested_tables(result["scores"]), end="")
        print(evaluator.table(result["scores"], result["missing"]))
        atomic.write_text(path, json.dumps(result, indent=1))
        return result, path

    def export(self) -> dict[str, Any]:
        """Writes one set of captions with their true pictures, and neither draws nor measures."""
        if "editing" in self.metrics:
            raise ValueError("export= writes captions to draw; metrics=[editing] edits true pictures: leave it out")
        kinds = {name if name in OF_OWN_CAPTIONS else "captions" for name in self.metrics if name not in BACK}
        if not kinds:
            raise ValueError(f"export= writes captions, and metrics=[{', '.join(self.metrics)}] have none")
        if len(kinds) != 1:
            raise ValueError(f"export= writes one set of captions, but metrics={list(self.metrics)} have more:"
                             f" {' and '.join(OF_OWN_CAPTIONS)} have their own; export them one after the other")
        pairs: Iterator[tuple[str, np.ndarray]]
        if kinds == {"nearest_render"}:
            gallery = self.open_gallery("nearest_render")
            picked = nearest_render.chosen(gallery, self.config["n_pairs"], self.seed, self.config["pairs"])
            at = torch.cat(list(picked.values())).tolist()
            total, pairs = len(at), ((gallery.captions[i], gallery.images[i].permute(1, 2, 0).numpy()) for i in at)
        elif kinds == {"paraphrase"} and self.of_scenes:
            chosen = scene_paraphrase.prompts(self.config["n_per_task"], self.seed, world_of(self.data["data"]))
            total, pairs = len(chosen), ((caption.text, render(scene, self.size)) for caption, scene in chosen)
        elif kinds == {"paraphrase"}:
            gallery = self.open_gallery("paraphrase")
            asked = paraphrase.asked(gallery, self.config["n_pairs"], self.seed)
            total, pairs = 2 * len(asked), (
                (text, gallery.images[one.place].permute(1, 2, 0).numpy())
                for texts in paraphrase.captions(gallery, asked).values()
                for text, one in zip(texts, asked, strict=True))
        elif kinds == {"composition"}:
            world = world_of(self.data["data"])
            chosen = [pair for _, split, tasks in SPLITS for pair in zip(*compositions.prompts(
                split, tasks, self.config["n_per_task"], self.seed, world), strict=True)]
            total, pairs = len(chosen), ((caption.text, render(scene, self.size)) for caption, scene in chosen)
        else:
            reference = Reference(self.data, self.protocol, self.size, self.seed)
            total, pairs = len(reference.picked), (
                (text, reference.picture(i)) for (i, _), text in zip(reference.picked, reference.text, strict=True))
        reference_images.export(Path(self.config["export"]), total, pairs)
        return {"out": str(self.config["export"]), "n": total}


def nested_tables(scores: Mapping[str, Any]) -> str:
    """What of `evaluation.json` is more than a score, as Markdown, with a line's end."""
    found = [compositions.table(scores["composition"])] if "composition" in scores else []
    found += [markdown(tables(scores[name])) for name, tables in TABLES.items() if name in scores]
    return "".join(f"{one}\n\n" for one in found)


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Scores, tables, and `evaluation.json`, `evaluation.html` and grids beside the checkpoint or in `out`.

    Returns what `evaluation.json` holds, with `out` and `sheets` (names of grids, with what they show); where `missing`
    in it is not empty, some metric that was asked for could not be had, and a command ends with exit code 1. What
    breaks off in between leaves an `evaluation.json` of the scores that there are.
    """
    quiet()
    trust(config["trust"])
    first = rank_and_world_size()[0] == 0
    task = Evaluation(config)
    if config["export"] is not None:
        return task.export()
    with task.lock:
        try:
            task.measure()
        except BaseException as error:
            if first and task.scores.values:
                task.scores.lack(task.metrics, f"broken off by {type(error).__name__}")
                print(f"Written: {shown(task.save()[1])}")
            raise
        result = task.result()
        if first:
            from t2i.evaluation.page import write

            result, path = task.save()
            page, sheets = write(task, result)
            print("\n".join(f"Written: {shown(file)}" for file in (path, page, *sheets)))
            result["sheets"] = {file.name: caption for file, caption in sheets.items()}
        barrier()  # who goes on may read what was written
    return {**result, "out": str(task.out)}
