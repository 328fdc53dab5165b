"""Guided drawing from settings: which canvas, where it starts, which CLIPs say what, for `sample.py guide=clip`.

From Python:

    from t2i.generation.clip_guided.settings import Drawer, Settings
    picture = Drawer(Settings(clips="runs/quickstart/clip/hf", canvas="pixels")).sample(["a red circle"], seeds=[0])
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from t2i.config.check import check_node
from t2i.data.decode import fit, read_pixels
from t2i.generation.clip_guided.clip_models.frozen import Precision
from t2i.generation.clip_guided.clip_models.open import open_guides
from t2i.generation.clip_guided.cutouts import Views
from t2i.generation.clip_guided.image_parameters import FourierCanvas, LatentCanvas, PixelCanvas
from t2i.generation.clip_guided.optimization import Asked, Guided, asked
from t2i.generation.clip_guided.prompts import Wish, wish
from t2i.generation.clip_guided.siren import SirenCanvas
from t2i.models.base import precision as device_precision
from t2i.types import Guide

RATES = {"vqgan": 0.1, "pixels": 0.05, "fourier": 0.05, "siren": 2e-4}
PRIOR_RATE = 0.01  # of latents that a prior drew: small CLIPs take them apart at ten times that (docs/log.md)
SMALL = 100  # pixels of a CLIP below which views show the picture whole
STARTS = ("noise", "codes", "prior", "image")
# Settings whose names differ from those of the arguments that they become, as messages have them.
LARGEST = 8192  # pixels a side
RENAMED = {"height": "im_shape: height", "noise": "noise_factor", "scheme": "views"}
NOTHING = Asked(torch.zeros(0, 1), torch.zeros(0), torch.zeros(0), torch.zeros(0, 1), torch.zeros(0))


@dataclass(frozen=True)
class Replay:
    """A drawing.json to draw again."""

    path: str


@dataclass(frozen=True)
class Settings:
    """Of a guided drawing; `conf/guide/clip.yaml` says what each is."""

    clips: str | list[str]
    allow_download: bool = False
    canvas: Literal["vqgan", "pixels", "fourier", "siren"] = "vqgan"
    codes: Literal["none", "straight_through", "gumbel"] = "straight_through"
    start: Literal["noise", "codes", "prior", "image"] | None = None
    start_image: str | None = None
    im_shape: list[int] | None = None
    total_iter: int = 200
    show_step: int = 20
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float | None = None
    weight_decay: float = 0.0
    loss: Literal["cosine", "spherical"] = "spherical"
    alpha: float = 1.0
    beta: float = 0.5
    w1: float = 1.0
    w2: float = 0.1
    extras: str | list[Any] | None = None
    excluded: str | list[Any] | None = None
    styles: str | list[Any] | None = None
    images: str | list[Any] | None = None
    batch_size: int = 32
    micro_batch: int | None = None
    views: Literal["crops", "cutouts", "whole"] | None = None
    noise_factor: float | None = None
    jitter: float = 0.0
    temperature: float = 1.0
    ema: float = 0.0
    patience: int | None = None
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"
    hidden: int = 256
    layers: int = 8
    decay: float = 1.0
    versus: dict[str, Any] | None = None
    film: Literal["gif", "mp4", "none"] = "gif"
    show: bool = False

    def faults(self) -> list[str]:
        """What is wrong with the numbers, as far as it can be told without any file."""
        found = [f"guide.{name}={value}: allowed are whole numbers from 1" for name, value in
                 (("total_iter", self.total_iter), ("show_step", self.show_step), ("batch_size", self.batch_size))
                 if value < 1]
        found += [f"guide.{name}={value}: one of {', '.join(allowed)} is needed" for name, value, allowed in
                  (("canvas", self.canvas, RATES), ("start", self.start, STARTS))
                  if value is not None and value not in allowed]
        if self.im_shape is not None and (len(self.im_shape) != 2 or not 1 <= min(self.im_shape) <= max(self.im_shape)
                                          <= LARGEST):
            found.append(f"guide.im_shape={self.im_shape}: [height, width] in pixels, at most {LARGEST}, or null")
        if self.canvas != "vqgan" and self.start in ("codes", "prior"):
            found.append(f"guide.start={self.start} needs guide.canvas=vqgan, which has codes; {self.canvas} starts"
                         " from noise or an image")
        if self.start == "image" and self.start_image is None:
            found.append("guide.start=image needs guide.start_image=, a picture")
        if self.start_image is not None and self.start not in (None, "image"):
            found.append(f"guide.start_image={self.start_image} does not go with guide.start={self.start}")
        if self.versus is not None:
            fixed = ("clips", "allow_download", "versus", "film", "show", "show_step")
            names = [name for name in Settings.__dataclass_fields__ if name not in fixed]
            found += [f"guide.versus.{key}: there is no such setting; allowed are {', '.join(names)}"
                      for key in self.versus if key not in names]
            node = {"_target_": "t2i.generation.clip_guided.settings.Settings", "clips": self.clips, **self.versus}
            wrong = found or check_node("guide.versus", node)
            found += wrong or [f"guide.versus: {fault}" for fault in replace(self, **self.versus, versus=None).faults()]
        return found


def settings_of(node: Mapping[str, Any]) -> Settings:
    """Of a config's node."""
    return Settings(**{key: value for key, value in node.items() if key != "_target_"})


def read_square(path: str, size: int) -> Tensor:
    """A picture as (1, 3, size, size) in [-1, 1], cut to a square about its middle."""
    return fit(pixels_of(path, "image"), size, square=True)[None].float().div(127.5).sub(1)


def pixels_of(path: str, key: str) -> Tensor:
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"{key}={path} cannot be read: {error.strerror}") from error
    return read_pixels(data, f"{key}={path}")


def fitted(path: str, height: int, width: int) -> Tensor:
    """A picture as (1, 3, height, width) in [-1, 1], cut about its middle to that shape."""
    pixels = pixels_of(path, "guide.start_image").float()
    scale = max(height / pixels.shape[1], width / pixels.shape[2])
    size = (max(height, round(pixels.shape[1] * scale)), max(width, round(pixels.shape[2] * scale)))
    scaled = torch.nn.functional.interpolate(pixels[None], size, mode="bicubic", antialias=True)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return scaled[..., top : top + height, left : left + width].clamp(0, 255).div(127.5).sub(1)


class Drawer:
    """A `t2i.types.TextToImage` that trains nothing.

    Args:
        settings: see `Settings`.
        model: for canvas=vqgan a tokenizer, or a prior, whose tokenizer it is then.
        device: where everything lies.
        options: of the prior's sampling, where it is the start.
        guides: in the place of those that the settings name, for use from Python.
    """

    kind = "guided drawing"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, settings: Settings, model: Any = None, device: torch.device | str = "cpu",
        options: dict[str, Any] | None = None, guides: Sequence[Guide] | None = None,
    ) -> None:
        if faults := settings.faults():
            raise ValueError("; ".join(faults))
        self.settings, self.device = settings, torch.device(device)
        self.precision = cast(Precision, device_precision(settings.precision, self.device.type))
        self.prior = model if hasattr(model, "codes") else None
        self.tokenizer = self.prior.tokenizer if self.prior is not None else model
        if settings.canvas == "vqgan" and model is None:
            raise ValueError("guide.canvas=vqgan needs ckpt=, a tokenizer or a prior; guide.canvas=pixels, fourier or"
                             " siren need none")
        self.start = settings.start or ("image" if settings.start_image else
                                        "prior" if self.prior is not None and settings.canvas == "vqgan" else "noise")
        if self.start == "prior" and self.prior is None:
            raise ValueError("guide.start=prior needs ckpt=, a prior; this one is a tokenizer")
        self.prior_options = options or {}
        names = [settings.clips] if isinstance(settings.clips, str) else settings.clips
        self.guides = list(guides) if guides is not None else open_guides(
            names, precision=self.precision, allow_download=settings.allow_download)
        for part in (*self.guides, model):
            if part is not None:
                part.to(self.device)
        if self.prior is not None:
            self.prior.place()
        self.shape = self.shape_of()
        if self.start == "prior" and self.shape != (self.tokenizer.image_size,) * 2:
            raise ValueError(f"guide.im_shape={list(self.shape)}: a prior draws {self.tokenizer.image_size} x"
                             f" {self.tokenizer.image_size} pixels; another start takes other shapes")
        self.check_numbers()
        self.start_pixels = fitted(settings.start_image, *self.shape) if settings.start_image else None

    def shape_of(self) -> tuple[int, int]:
        s = self.settings
        if s.im_shape is not None:
            return s.im_shape[0], s.im_shape[1]
        size = self.tokenizer.image_size if s.canvas == "vqgan" else 2 * max(g.image_size for g in self.guides)
        return size, size

    @property
    def image_size(self) -> int:
        return self.shape[0]

    def wish(self, text: str) -> Wish:
        """What the caption and the settings ask for."""
        s = self.settings
        found = wish(text if text else (), styles=s.styles or (), images=s.images or (), extras=s.extras or (),
                     excluded=s.excluded or ())
        if self.start == "prior" and found.targets[0].is_image:
            raise ValueError(f"guide.start=prior draws for a text, and the first prompt is a picture,"
                             f" {found.targets[0].text}")
        return found

    def pictures(self, text: str) -> list[str]:
        """The files of pictures that the drawing depends on; ValueError for those that cannot be read."""
        found = self.wish(text)
        named = [one.text for one in (*found.targets, *found.extras, *found.excluded) if one.is_image]
        for path in named:
            pixels_of(path, "image")
        return [*named, *([self.settings.start_image] if self.settings.start_image else [])]

    def blank(self, generator: torch.Generator) -> Any:
        """The canvas at its own start."""
        s, (height, width) = self.settings, self.shape
        made: Any
        if s.canvas == "vqgan":
            made = LatentCanvas(self.tokenizer, height, width, s.codes, s.temperature, generator=generator)
        elif s.canvas == "pixels":
            made = PixelCanvas(height, width, generator=generator)
        elif s.canvas == "fourier":
            made = FourierCanvas(height, width, s.decay, generator=generator)
        else:
            made = SirenCanvas(height, width, s.hidden, s.layers, generator=generator)
        return made.to(self.device)

    def canvas(self, text: str, seed: int, generator: torch.Generator) -> Any:
        made = self.blank(generator)
        if self.start == "codes":
            number = made.grid[0] * made.grid[1]
            made.start_from_ids(torch.randint(self.tokenizer.codebook_size, (1, number), generator=generator))
        elif self.start == "prior":
            first = self.wish(text).targets[0]
            assert self.prior is not None  # start is "prior" with one alone
            made.start_from_ids(self.prior.codes([first.text], seeds=[seed], **self.prior_options).clone())
        elif self.start_pixels is not None:
            made.start_from(self.start_pixels.to(self.device))
        return made

    def begin(self, text: str, seed: int) -> Guided:
        """The drawing of one picture, not yet moved."""
        drawn = torch.Generator().manual_seed(seed)
        return self.assembled(self.canvas(text, seed, drawn), self.wishes(text), drawn)

    def wishes(self, text: str) -> list[Asked]:
        """What the caption and the settings ask for, to each guide."""
        wanted, w1, w2 = self.wish(text), self.settings.w1, self.settings.w2
        return [asked(g, wanted, lambda file, n: read_square(file, n).to(self.device), w1, w2) for g in self.guides]

    def assembled(self, canvas: Any, wishes: Sequence[Asked], generator: torch.Generator) -> Guided:
        s = self.settings
        views = [Views(guide.image_size, s.batch_size, s.views or ("whole" if guide.image_size < SMALL else "cutouts"),
                       noise=s.noise_factor, jitter=s.jitter) for guide in self.guides]
        own = PRIOR_RATE if self.start == "prior" else RATES[s.canvas]
        rate = own if s.learning_rate is None else s.learning_rate
        return Guided(canvas, self.guides, wishes, views, s.batch_size, s.micro_batch, s.loss, s.optimizer, rate,
                      s.weight_decay, s.alpha, s.beta, s.ema, s.patience, self.precision == "bf16-mixed",
                      generator=generator)

    def check_numbers(self) -> None:
        """ValueError where a setting is out of its part's bounds, before anything is drawn."""
        generator = torch.Generator()
        try:
            self.assembled(self.blank(generator), [NOTHING] * len(self.guides), generator)
        except ValueError as error:
            name, equals, rest = str(error).partition("=")
            raise ValueError(f"guide.{RENAMED.get(name, name)}{equals}{rest}") from error

    def check_options(self) -> None:
        """It has none."""

    def sample(self, text: list[str], *, seeds: list[int], **unknown: object) -> Tensor:
        """Draws one picture a caption, in [-1, 1], one after the other."""
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no option of guided drawing: its settings are guide.*")
        if len(seeds) != len(text):
            raise ValueError(f"{len(text)} captions but {len(seeds)} seeds; each picture takes one")
        found = []
        for caption, seed in zip(text, seeds, strict=True):
            drawing = self.begin(caption, seed)
            while drawing.step < self.settings.total_iter and not drawing.finished:
                drawing.move()
            found.append(drawing.picture())
            release()
        return torch.cat(found)


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
