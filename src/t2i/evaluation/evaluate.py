"""What `evaluate.py` does: pictures of a checkpoint or of a folder, held against the rulers of `metrics/`.

Drawn pictures stay under `<out>/drawn`, so that an evaluation that was broken off goes on, and another one of the same
pictures draws none. Every score carries its protocol; `protocols.py` has the named ones. A metric that cannot be had
costs no other: `missing` says why, before anything is drawn where that can be known. One process at a time evaluates
into a folder.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from t2i.checkpoint import atomic, building, file_format
from t2i.checkpoint.lock import alone
from t2i.checkpoint.registry import trust
from t2i.config.messages import shown as printable
from t2i.data.datasets import admit_data
from t2i.evaluation.composition import composed, listed, refined, table, world_of
from t2i.evaluation.export_references import export
from t2i.evaluation.feature_models import involved, open_inception, open_judge
from t2i.evaluation.generated_images import Drawn, Unwritten, largest_batch
from t2i.evaluation.protocols import BACK, DRAWN, settle
from t2i.evaluation.reference_images import Reference
from t2i.evaluation.scoring import Scores, lines, score_drawn, short, without
from t2i.generation.text_to_image import KINDS, device_of, options_of
from t2i.losses.perceptual import LPIPS
from t2i.metrics.clip_score import CLIPScorer
from t2i.metrics.composition import READER
from t2i.metrics.intervals import bootstrap
from t2i.models.distributed import first_fault, meet, own_device, processes
from t2i.version import code_version, version
from t2i.viz.progress import counter

COMPOSITION = {"reader": f"{READER} (no learned weights); GenEval's clause logic, arXiv 2310.11513"}


def place(config: Mapping[str, Any]) -> Path:
    """Where an evaluation is written: `out`, beside the checkpoint, or beside the folder of pictures, not in it."""
    if config["out"] or config["ckpt"]:
        return Path(config["out"] or Path(config["ckpt"]).parent)
    return Path(f"{str(config['images']).rstrip('/')}-evaluation")


class Evaluation:
    """One command's model or folder, protocol and judges, opened and checked before anything is drawn."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.seed, self.started = config, config["seed"], time.monotonic()
        self.scores, self.held_open = Scores(), ExitStack()
        self.composed: dict[str, Any] = {}  # the composition's scores by task
        asked = [key for key in ("ckpt", "images") if config[key] is not None]
        if len(asked) != 1 and config["export"] is None:
            raise ValueError("give ckpt=, a checkpoint that draws, or images=, a folder of pictures; one of the two")
        self.held: Any = file_format.read(config["ckpt"])["t2i"]["config"] if config["ckpt"] is not None else None
        self.hash = file_format.file_hash(config["ckpt"]) if config["ckpt"] is not None else None
        node = config["data"] if "data" in config else (self.held or {}).get("data")
        if node is not None and "data" not in config:
            admit_data(node, config["ckpt"])
        self.protocol, self.changed = settle(config, node["_target_"] if node is not None else None)
        metrics = self.metrics = self.protocol.metrics
        if config["n_per_task"] < 2:
            raise ValueError(f"n_per_task={config['n_per_task']}: at least 2 (the floor exchanges captions)")
        if node is None and (config["images"] is None or set(metrics) - {"clip_score", "r_precision"}):
            raise ValueError("data= is needed: whose captions and real pictures to compare with (data=shapes, data=coco"
                             " data.root=…)")
        self.data: Any = None if node is None else {"data": node, "paths": config["paths"], "seed": self.seed}
        self.device = device_of(own_device(config["device"]))
        self.model: Any = None
        self.drawn_by: Any = None
        self.options: dict[str, Any] = {}
        if config["ckpt"] is not None:
            self._open_model()
        elif config["images"] is not None:
            if back := [name for name in metrics if name in BACK]:
                raise ValueError(f"metrics=[{', '.join(back)}] are of a tokenizer: give ckpt=, not images=")
            self.drawn_by = Drawn.read(config["images"], config["size"])  # theirs, unless asked
        self.judge = open_judge(config, self.protocol, self.held, self.device) if config["export"] is None else None
        self.inception = open_inception(config, self.protocol, self.device) if config["export"] is None else None
        self.out = place(config)
        lpips = "lpips" in metrics and config["export"] is None
        self.distance = LPIPS(config["vgg"]).to(self.device) if lpips else None
        self.size: Any = self.protocol.size or (self.model.image_size if self.model is not None else
                                           node["image_size"] if node is not None else None)
        self.reference: Any = None
        if config["export"] is None:
            self._check()
            self._take()

    def _check(self) -> None:
        """What can be had of so many pictures and captions; ValueError where nothing can."""
        asked = [name for name in self.metrics if name in DRAWN]
        if asked and self.data is not None:
            self.reference = Reference(self.data, self.protocol, self.size, self.seed)
            self.changed += self.reference.short()
        if self.drawn_by is not None and {"clip_score", "r_precision", "composition"} & set(self.metrics):
            self.drawn_by.captions()
        if asked:
            text = self.reference.text if self.drawn_by is None else self.drawn_by.text
            n_real = None if self.reference is None else len(self.reference.numbers)
            self.scores.missing |= short(asked, len(text), n_real, text)
            self.leave_out()
            if self.scores.missing and processes()[0] == 0:  # now, so that who cannot do without can stop
                print(without(self.scores.missing), file=sys.stderr)

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
            if processes()[0] == 0:
                self.held_open.enter_context(alone(self.out, "evaluation"))
        except OSError as error:
            raise ValueError(f"out={printable(self.out)} cannot be written: {error.strerror}") from error

    def _open_model(self) -> None:
        config, drawing = self.config, any(name not in BACK for name in self.metrics)
        kinds: tuple[str, ...] = KINDS if drawing else ("prior", "vqgan")
        if any(name in BACK for name in self.metrics):
            kinds = tuple(kind for kind in kinds if kind in ("prior", "vqgan"))
        self.model = building.load(config["ckpt"], kind=kinds).to(self.device)
        if hasattr(self.model, "place"):
            self.model.place()
        self.drawer = self.model
        if drawing:
            wanted = self.protocol.truncation
            if config["truncation"] is None and wanted is not None and "truncation" not in self.model.options:
                self.changed.append(f"no truncation instead of {wanted}: a {self.model.kind} has no noise to truncate")
                wanted = None
            self.options = options_of({**config, "truncation": wanted}, self.model)
        if "clip_guided" in config:
            from t2i.generation.clip_guided.generator import ClipGuidedGenerator
            from t2i.generation.clip_guided.settings import settings_of

            if not hasattr(self.model, "codes"):
                raise ValueError(f"method=clip_guided refines a prior's samples; {config['ckpt']} holds a"
                                 f" {self.model.kind}")
            self.drawer = ClipGuidedGenerator(settings_of(config["clip_guided"]), self.model, self.device, self.options)
            if self.drawer.start != "prior":
                raise ValueError(f"clip_guided.start={self.drawer.start}: evaluate.py compares with the prior's own"
                                 " samples; leave it out")

    def request(self, what: str, guided: bool) -> dict[str, Any]:
        """What decides about drawn pictures beside their captions."""
        return {"what": what, "hash": self.hash, "sampler": self.options,
                "seed": self.seed, **({"clip_guided": self.config["clip_guided"]} if guided else {})}

    def pictures(self, what: str, text: list[str], guided: bool) -> Drawn:
        """Drawn for these captions, now or before."""
        drawn = Drawn.for_captions(self.out / "drawn", self.request(what, guided), text)
        rank, ranks = processes()
        meet()
        missing = drawn.missing()  # the same for all: nobody draws before everybody knows
        meet()
        fault = None
        if missing:
            try:
                with counter(f"drawing, {what}", len(text)) as progress:
                    drawn.draw(missing[rank::ranks], self.drawer if guided else self.model, self.seed,
                               {} if guided else self.options, largest_batch(self.device, self.config["batch_size"]),
                               progress)
            except Unwritten as error:
                fault = str(error)
        if (fault := first_fault(fault)) is not None:
            raise ValueError(fault)
        return drawn

    def composition(self) -> dict[str, Any]:
        world = world_of(self.data["data"])
        if self.drawn_by is not None:
            return composed(listed(self.drawn_by), self.image_size(), None, self.config["n_per_task"], self.seed, world)

        def found(guided: bool) -> dict[str, Any]:
            def paint(split: str, text: list[str]) -> Tensor:
                return torch.from_numpy(self.pictures(f"composition, {split}", text, guided).all())

            return composed(paint, self.model.image_size, getattr(self.model, "tokenizer", None),
                            self.config["n_per_task"], self.seed, world)

        return refined(found(False), found(True)) if "clip_guided" in self.config else found(False)

    def image_size(self) -> int:
        return int(self.drawn_by.picture(0).shape[0])

    def captioned(self) -> Drawn:
        """The pictures that the distances and CLIP's scores are of."""
        if self.drawn_by is not None:
            drawn: Drawn = self.drawn_by
            return drawn
        return self.pictures("captions", self.reference.text, "clip_guided" in self.config)

    def base(self) -> dict[str, Any]:
        return {"protocol": self.protocol.name, "changed": self.changed, "seed": self.seed, "t2i": version(),
                "sampler": self.options,
                **({"clip_guided": self.config["clip_guided"]} if "clip_guided" in self.config else {})}

    def how(self, judge: CLIPScorer | None) -> str | None:
        return None if judge is None else involved(judge, self.drawer if self.model is not None else None,
                                                   self.drawn_by.guides if self.drawn_by is not None else ())


def measure(task: Evaluation, shown: dict[str, Any]) -> None:
    """Draws and scores; what is to be seen of it goes into `shown`."""
    config, metrics, scores = task.config, task.metrics, task.scores
    if "composition" in metrics:
        with scores.trying(["composition"]):
            found = task.composition()
            shown["composition"] = {split: found[split].pop("examples") for split in found}
            task.composed = {"composition": found}
            for split, (_, _, right) in shown["composition"].items():
                scores.add(f"composition_{split}", bootstrap(torch.tensor(right, dtype=torch.float64), task.seed),
                           "higher", len(right), {**task.base(), **COMPOSITION, "n_per_task": config["n_per_task"],
                                                  "interval": "bootstrap, 1000"})
    if asked := [name for name in metrics if name in DRAWN]:
        with scores.trying(asked):
            drawn = task.captioned()
            text = drawn.captions() if {"clip_score", "r_precision"} & set(asked) else None
            with counter("scoring", len(drawn)) as progress:
                score_drawn(drawn.batches(progress=progress), text, task.reference, asked, task.judge, task.inception,
                            task.seed, task.how(task.judge), task.base(), scores)
            shown |= {"drawn": drawn, "clip": scores.clip}
            if drawn.grey:
                print(f"{drawn.grey} of {len(drawn)} pictures have no colours; they are taken as they are, in three"
                      " equal channels")
    if asked := [name for name in metrics if name in BACK]:
        from t2i.evaluation.tokenizer import reconstruction

        own = {**task.data, "data": {**task.data["data"], "image_size": task.model.image_size}}
        with scores.trying(asked):
            shown["back"] = reconstruction(
                task.model.tokenizer, own, config["split"], task.protocol.n, metrics, task.judge, task.inception,
                task.distance, task.base(), scores)
    task.leave_out()


def content(task: Evaluation) -> dict[str, Any]:
    """What `evaluation.json` holds: scores, protocols by score, the protocol of all, and what could not be had."""
    config, scores = task.config, task.scores
    protocol = {
        "checkpoint": str(config["ckpt"]) if config["ckpt"] else None, "images": config["images"],
        "hash": task.hash, **task.base(),
        "metrics": list(task.metrics), "n_per_task": config["n_per_task"], "size": task.size,
        "image_size": task.model.image_size if task.model is not None else task.image_size(), **COMPOSITION,
        "data": None if task.data is None else task.data["data"], "code": code_version(),
        "seconds": round(time.monotonic() - task.started, 1),
    }
    return {"scores": {**task.composed, **scores.values}, "protocols": scores.protocols, "protocol": protocol,
            "missing": scores.missing}


def save(task: Evaluation) -> tuple[dict[str, Any], Path]:
    """Prints the scores and writes `evaluation.json`."""
    result, path = content(task), task.out / "evaluation.json"
    if task.composed:
        print(table(task.composed["composition"]))
    print(lines(result["scores"], result["missing"]))
    atomic.write_text(path, json.dumps(result, indent=1))
    return result, path


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Scores, tables, and `evaluation.json`, `evaluation.html` and grids beside the checkpoint or in `out`.

    What breaks off in between leaves an `evaluation.json` of the scores that there are.
    """
    from t2i.config.quiet import quiet

    quiet()
    trust(config["trust"])
    first = processes()[0] == 0
    task = Evaluation(config)
    if config["export"] is not None:
        return export(config, task)
    shown: dict[str, Any] = {"composition": {}, "task": task}
    with task.held_open:
        try:
            measure(task, shown)
        except BaseException as error:
            if first and task.scores.values:
                task.scores.lack(task.metrics, f"broken off by {type(error).__name__}")
                print(f"Written: {printable(save(task)[1])}")
            raise
        result = content(task)
        if first:
            from t2i.evaluation.page import write_page

            result, path = save(task)
            print("\n".join(f"Written: {printable(file)}" for file in (path, *write_page(task.out, result, shown))))
        meet()  # who goes on may read what was written
    return {**result, "out": str(task.out)}
