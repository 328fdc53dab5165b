"""The models behind the page: requests in, pictures while they are drawn out, by the ways of `sample.py`.

Picture i of a request is drawn from the seed that `sample.py` gives picture i of one caption, in the same batch, so
that the page and the command line draw the same.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from t2i.app import record
from t2i.app.record import LONGEST, MOST, Record, Request, packed, unpacked
from t2i.app.settings import AppSettings
from t2i.checkpoint import file_format, registry
from t2i.config.check import check_node
from t2i.config.messages import quoted, shown
from t2i.generation import editing
from t2i.generation.clip_guided.clip_models.loading import load_clip_models
from t2i.generation.clip_guided.generator import ClipGuidedGenerator
from t2i.generation.clip_guided.prompts import parse_prompts
from t2i.generation.clip_guided.settings import NAME, TARGET
from t2i.generation.clip_guided.settings import Settings as GuidedSettings
from t2i.generation.drawing_step import DrawingStep
from t2i.generation.text_to_image import (
    OPTIONS,
    check_negative,
    check_styles,
    check_weights,
    device_of,
    draw_steps,
    options_of,
    picture_seed,
    read_prompts,
)
from t2i.generation.text_to_image_pipeline import TextToImagePipeline
from t2i.models.base import precision
from t2i.models.prior import Prior
from t2i.types import TextToImage
from t2i.viz.grids import to_uint8

FRAME = 0.25  # seconds between pictures of a drawing
GUIDED = ("canvas", "start", "steps", "learning_rate")  # settings of clip_guided that the page has
HIGHEST = {"temperature": 2, "guidance": 10}
STEPS = 2000  # of guided drawing, at most
EDITS = ("paint", "vary", "extend")


@dataclass(frozen=True)
class Update:
    """A drawing by now: `share` of it is done, `pictures` (h, w, 3) of bytes, `before` of a guided one, and a line.
    `records` are there at the end, one a picture; `texts` is what the text encoder did not take."""

    share: float
    pictures: list[np.ndarray]
    note: str
    before: np.ndarray | None = None
    records: tuple[Record, ...] = ()
    texts: tuple[str, ...] = ()


class Studio:
    """All checkpoints, and the CLIP, that the page draws with; ValueError says which of them cannot be opened."""

    def __init__(self, settings: AppSettings) -> None:
        self.device = device_of(settings.device)
        registry.trust(settings.trust)
        self.pipelines = {path: TextToImagePipeline.load(path, settings.device, settings.trust)
                          for path in settings.ckpts}
        self.quick: tuple[tuple[str | None, str], Any] | None = None  # the latest model in other weights, and which
        self.hashes = {path: file_format.file_hash(path) for path in settings.ckpts}
        self.clip = settings.clip
        self.clip_models = [] if self.clip is None else load_clip_models(
            [self.clip], precision=precision("auto", self.device.type), allow_download=False)  # type: ignore[arg-type]
        self.clip_hash = self.clip_models[0].hash() if self.clip_models else None

    @property
    def drawing(self) -> list[str]:
        """The checkpoints that draw for a caption."""
        return [path for path, one in self.pipelines.items() if isinstance(one.model, TextToImage)]

    @property
    def editing(self) -> list[str]:
        return [path for path in self.drawing if self.pipelines[path].model.kind == "prior_any"]

    def pipeline(self, checkpoint: Any) -> TextToImagePipeline:
        if checkpoint not in self.pipelines:
            there = ", ".join(self.pipelines) or "none"
            raise ValueError(f"checkpoint={quoted(checkpoint)}: this page was started with {there}")
        return self.pipelines[checkpoint]

    def weighted(self, checkpoint: str | None, weights: Any) -> Any:
        """The checkpoint's model, its net in bf16 or int8 where that is asked for (a copy: what is converted draws
        only)."""
        model = self.pipeline(checkpoint).model
        check_weights(model, weights)
        if weights is None:
            return model
        if self.quick is None or self.quick[0] != (checkpoint, weights):
            self.quick = None  # one at a time
            copied = copy.deepcopy(model, {id(model.frozen_parts): model.frozen_parts})
            copied.set_weights(weights)
            self.quick = (checkpoint, weights), copied
        return self.quick[1]

    def run(self, checkpoint: str | None, request: Request) -> Iterator[Update]:
        """Draws what is asked for; ValueError, in a line, where that cannot be."""
        way = {"draw": self.draw, "edit": self.edit, "guided": self.guided}[request.way]
        return way(checkpoint, request)

    def again(self, found: Record) -> Iterator[Update]:
        """The one picture of a record, drawn as it was; its last note says whether the bytes are the same."""
        checkpoint = next((path for path, hash in self.hashes.items() if hash == found.hash), None)
        if found.hash is not None and checkpoint is None:
            raise ValueError(f"the JSON's picture was drawn with the checkpoint {shown(found.checkpoint)} of hash"
                             f" {shown(found.hash, 20)}; this page has {', '.join(self.hashes.values()) or 'none'}")
        if found.clip_hash is not None and found.clip_hash != self.clip_hash:
            raise ValueError(f"the JSON's picture was drawn by a CLIP of hash {shown(found.clip_hash, 20)}; this page"
                             f" has {self.clip_hash or 'none'}")
        if found.picture_seed != picture_seed(found.request.seed, 0, found.number):
            raise ValueError(f"the JSON was changed: picture_seed={found.picture_seed} is not that of picture"
                             f" {found.number} of seed={found.request.seed}")
        for update in self.run(checkpoint, found.request):
            at = slice(found.number, found.number + 1)
            note = update.note
            if update.records:
                same = update.records[found.number].pixels == found.pixels
                note = "The same picture, byte for byte." if same else (
                    "Not the same bytes as the JSON says: it was changed, or drawn by other versions or hardware.")
            yield Update(update.share, update.pictures[at], note, update.before, update.records[at], update.texts)

    def _asked(self, checkpoint: str | None, request: Request) -> tuple[Any, dict[str, Any], tuple[str, ...]]:
        """The model, the options for it, and what of the caption it does not take; everything is checked."""
        pipeline = self.pipeline(checkpoint)
        if not isinstance(pipeline.model, TextToImage):
            raise ValueError(f"{shown(checkpoint)} is a tokenizer, which draws nothing for captions; guided drawing"
                             " takes one")
        check_request(request)
        asked = {name: value for name, value in request.options.items() if name != "weights"}
        model = self.weighted(checkpoint, request.options.get("weights"))
        texts = [*read_prompts({"prompt": request.prompt, "prompts": None, "unconditional": False}),
                 *([] if request.negative is None else [request.negative])]
        check_styles(texts, pipeline.config, str(checkpoint))
        if strange := [name for name in asked if name not in OPTIONS]:
            raise ValueError(f"{shown(strange[0], 40)}: there is no such option; allowed are"
                             f" {', '.join((*OPTIONS, 'weights'))}")
        options = options_of({**dict.fromkeys(OPTIONS), **asked}, model)
        for name, most in HIGHEST.items():
            if not 0 <= options.get(name, 0) <= most:
                raise ValueError(f"{name}={options[name]:g}: allowed on the page are numbers from 0 to {most}")
        if request.negative is not None:
            check_negative(f"negative={shown(request.negative)}", model, options.get("guidance"), False)
        told = [f"'{shown(text, 60)}': {line}" for text in texts
                if (line := model.text_encoder.not_seen(text)) is not None]
        return model, options, tuple(told)

    def draw(self, checkpoint: str | None, request: Request) -> Iterator[Update]:
        model, options, told = self._asked(checkpoint, request)
        prompt = request.prompt.strip()
        seeds = seeds_of(request)
        steps = draw_steps(model, [prompt] * request.n, seeds, request.negative, **options)
        yield from self._watched(steps, checkpoint, request, told)

    def edit(self, checkpoint: str | None, request: Request) -> Iterator[Update]:
        edit = edit_of(request.edit)
        edit.check(self.pipeline(checkpoint).model)
        model, options, told = self._asked(checkpoint, request)
        text, seeds = [request.prompt.strip()] * request.n, seeds_of(request)
        negative = None if request.negative is None else [request.negative] * request.n
        steps = editing.edit_steps(model, edit, text, seeds, negative=negative, **options)
        yield from self._watched(steps, checkpoint, request, told)

    def _watched(
        self, steps: Iterator[DrawingStep], checkpoint: str | None, request: Request, told: tuple[str, ...]
    ) -> Iterator[Update]:
        started = last = time.monotonic()
        for step in steps:
            now = time.monotonic()
            done = step.done == step.total
            if not done and now - last < FRAME and last != started:
                continue
            last = now
            pictures = list(to_uint8(step.images()))
            if done:
                many = f"{len(pictures)} pictures" if len(pictures) > 1 else "1 picture"
                note = f"{many} in {time.monotonic() - started:.1f} s"
                yield Update(1.0, pictures, note, None, self._records(checkpoint, request, pictures, False), told)
            else:
                yield Update(step.done / step.total, pictures, f"{step.done} of {step.total} codes", texts=told)

    def _records(
        self, checkpoint: str | None, request: Request, pictures: list[np.ndarray], guided: bool
    ) -> tuple[Record, ...]:
        return tuple(Record(request, i, seed, checkpoint, None if checkpoint is None else self.hashes[checkpoint],
                            self.clip_hash if guided else None, record.digest(pixels))
                     for i, (seed, pixels) in enumerate(zip(seeds_of(request), pictures, strict=True)))

    def guided(self, checkpoint: str | None, request: Request) -> Iterator[Update]:
        """One picture that the page's CLIP moves; its start stands beside it."""
        if self.clip is None:
            raise ValueError("guided drawing needs a CLIP: start the page with clip=FOLDER")
        check_request(request)
        if request.n != 1:
            raise ValueError(f"n={request.n}: guided drawing draws 1 picture")
        prompt = request.prompt.strip()
        if not prompt:
            raise ValueError('prompt="" is empty: write what to draw')
        if any(part.is_image for part in parse_prompts(prompt)):
            raise ValueError("prompt: image:… names a file, and the page opens none")
        if strange := [name for name in request.options if name not in GUIDED]:
            raise ValueError(f"{shown(strange[0], 40)}: there is no such option; allowed are {', '.join(GUIDED)}")
        node = {"_target_": TARGET, "clips": self.clip, **request.options}
        if faults := check_node(NAME, node):
            raise ValueError("; ".join(faults))
        settings = GuidedSettings(**{key: value for key, value in node.items() if key != "_target_"})
        if settings.steps > STEPS:
            raise ValueError(f"steps={settings.steps}: at most {STEPS} on the page")
        model: Any = None
        options: dict[str, Any] = {}
        if settings.canvas == "vqgan":
            pipeline = self.pipeline(checkpoint)
            model = pipeline.model if isinstance(pipeline.model, Prior) else pipeline.tokenizer
            if model is None:
                raise ValueError(f"{shown(checkpoint)} has no tokenizer whose latents could be moved; canvas=pixels,"
                                 " fourier or siren needs none")
            options = options_of(dict.fromkeys(OPTIONS), model) if isinstance(model, Prior) else {}
        else:
            checkpoint = None
        generator = ClipGuidedGenerator(settings, model, self.device, options, self.clip_models)
        seed = seeds_of(request)[0]
        drawing = generator.begin(prompt, seed)
        before = to_uint8(drawing.picture())[0]
        first = drawing.similarity()
        yield Update(0.0, [before], f"similarity {first:.3f}", before)
        last = time.monotonic()
        while drawing.step < settings.steps and not drawing.finished:
            _, similarity = drawing.update()
            if time.monotonic() - last >= FRAME:
                last = time.monotonic()
                note = f"{drawing.step} of {settings.steps} steps, similarity {similarity:.3f}"
                yield Update(drawing.step / settings.steps, [to_uint8(drawing.picture())[0]], note, before)
        pictures = [to_uint8(drawing.picture())[0]]
        note = f"{drawing.step} steps: similarity {first:.3f} before, {drawing.similarity():.3f} after"
        yield Update(1.0, pictures, note, before, self._records(checkpoint, request, pictures, True))


def seeds_of(request: Request) -> list[int]:
    """Each picture's own, as `sample.py` derives it."""
    return [picture_seed(request.seed, 0, i) for i in range(request.n)]


def check_request(request: Request) -> None:
    """ValueError, with all faults at once, for numbers and lengths that are not taken."""
    faults = [f"{name} has {len(text):,} letters; at most {LONGEST:,} are taken" for name, text in
              (("prompt", request.prompt), ("negative", request.negative or "")) if len(text) > LONGEST]
    for name, value, least, most in (("n", request.n, 1, MOST), ("seed", request.seed, 0, 2**63 - 1)):
        if type(value) is not int or not least <= value <= most:
            faults.append(f"{name}={quoted(value)}: allowed are whole numbers from {least} to"
                          f" {most if most < 2**32 else '2^63 - 1'}")
    if request.negative is not None and not request.negative.strip():
        faults.append('negative="" is empty: write what to lead away from, or leave it out')
    if faults:
        raise ValueError("; ".join(faults))


def edit_of(node: dict[str, Any] | None) -> editing.Edit:
    """What a request's `edit` asks for: `image`, and of `way` paint a `mask`, vary a `share`, extend four numbers."""
    way = None if node is None else node.get("way")
    key = {"paint": "mask", "vary": "share", "extend": "extend"}.get(way if isinstance(way, str) else "")
    if node is None or key is None:
        raise ValueError(f"edit: way={quoted(way)}; allowed are {', '.join(EDITS)}")
    if set(node) != {"way", "image", key}:
        raise ValueError(f"edit: {way} takes way, image and {key}; given are {shown(', '.join(map(str, node)))}")
    image, value = unpacked(node["image"], "the picture"), node[key]
    found = editing.Edit(image, name="the picture")
    if way == "paint":
        height, width = image.shape[1:]
        found.new = editing.mask_of(unpacked(value, "the mask"), height, width, "the mask")
        if not bool(found.new.any()):
            raise ValueError("nothing is painted: paint over what is to be drawn anew")
        if bool(found.new.all()):
            raise ValueError("all of the picture is painted, and nothing kept: the tab Draw draws whole pictures")
    elif way == "vary":
        if type(value) not in (int, float) or not 0 < value <= 1:
            raise ValueError(f"share={quoted(value)}: allowed are numbers above 0, to 1")
        found.vary = float(value)
    else:
        editing.check_extend(value)
        found.extend = (value[0], value[1], value[2], value[3])
    return found


def mask_png(layers: list[np.ndarray]) -> str:
    """Painted layers (h, w, 4) of bytes as one mask: white where any is painted."""
    if not layers:
        raise ValueError("nothing is painted: paint over what is to be drawn anew")
    if len({layer.shape for layer in layers}) > 1:
        raise ValueError(f"the mask's layers differ in size: {', '.join(str(layer.shape[:2]) for layer in layers)}")
    return packed(np.maximum.reduce([layer[..., 3:].repeat(3, 2) for layer in layers]))


def pixels_of(image: Tensor) -> np.ndarray:
    """(3, h, w) of bytes as (h, w, 3)."""
    return image.permute(1, 2, 0).contiguous().numpy()
