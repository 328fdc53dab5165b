"""Clip-guided drawing as a `t2i.types.TextToImage`: which canvas, where it starts, which CLIPs see it how."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from t2i.generation.clip_guided.clip_models.base import Precision
from t2i.generation.clip_guided.clip_models.loading import load_clip_models
from t2i.generation.clip_guided.cutouts import Cutouts
from t2i.generation.clip_guided.image_parameters import (
    FourierParameters,
    LatentParameters,
    ParametersBase,
    PixelParameters,
)
from t2i.generation.clip_guided.optimization import Optimization, TargetEmbeddings, embed_targets
from t2i.generation.clip_guided.prompts import PromptTargets, prompt_targets
from t2i.generation.clip_guided.settings import NAME, Settings
from t2i.generation.clip_guided.siren import SirenParameters
from t2i.generation.pictures import read_bytes, read_shaped, read_square
from t2i.models.base import precision as device_precision
from t2i.models.prior import Prior
from t2i.types import ClipModel, Tokenizer

RATES = {"vqgan": 0.1, "pixels": 0.05, "fourier": 0.05, "siren": 2e-4}
PRIOR_RATE = 0.01  # of latents that a prior drew: small CLIPs take them apart at ten times that (docs/log.md)
SMALL = 100  # pixels of a CLIP below which views show the picture whole
# Names of arguments in the messages of parts -> those of the settings.
SETTING = {"height": "image_size: height", "noise": "noise_factor", "scheme": "views"}
NOTHING = TargetEmbeddings(torch.zeros(0, 1), torch.zeros(0), torch.zeros(0), torch.zeros(0, 1), torch.zeros(0))


class ClipGuidedGenerator:
    """A `t2i.types.TextToImage` that trains nothing.

    Args:
        settings: see `Settings`.
        model: for canvas=vqgan a tokenizer, or a prior, whose tokenizer it is then.
        device: where everything lies.
        options: of the prior's sampling, where it is the start.
        clip_models: in the place of those that the settings name, for use from Python.
    """

    kind = "clip-guided drawing"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, settings: Settings, model: Any = None, device: torch.device | str = "cpu",
        options: dict[str, Any] | None = None, clip_models: Sequence[ClipModel] | None = None,
    ) -> None:
        if faults := settings.faults():
            raise ValueError("; ".join(faults))
        self.settings, self.device = settings, torch.device(device)
        self.precision = cast(Precision, device_precision(settings.precision, self.device.type, "precision"))
        self.prior = model if isinstance(model, Prior) else None
        self.tokenizer: Tokenizer = model if self.prior is None else self.prior.tokenizer
        if settings.canvas == "vqgan" and model is None:
            raise ValueError(f"{NAME}.canvas=vqgan needs ckpt=, a tokenizer or a prior; {NAME}.canvas=pixels, fourier"
                             " or siren need none")
        self.start = settings.start or ("image" if settings.start_image else
                                        "prior" if self.prior is not None and settings.canvas == "vqgan" else "noise")
        if self.start == "prior" and self.prior is None:
            raise ValueError(f"{NAME}.start=prior needs ckpt=, a prior; this one is a tokenizer")
        self.prior_options = options or {}
        names = [settings.clips] if isinstance(settings.clips, str) else settings.clips
        self.clip_models = list(clip_models) if clip_models is not None else load_clip_models(
            names, precision=self.precision, allow_download=settings.allow_download)
        for part in (*self.clip_models, *([] if model is None else [model])):
            part.to(self.device)
        if self.prior is not None:
            self.prior.place()
        side = self.tokenizer.image_size if settings.canvas == "vqgan" else 2 * max(
            clip.image_size for clip in self.clip_models)
        self.height: int
        self.width: int
        self.height, self.width = settings.image_size or (side, side)
        self.image_size = self.height
        if self.start == "prior" and (self.height, self.width) != (self.tokenizer.image_size,) * 2:
            raise ValueError(f"{NAME}.image_size={[self.height, self.width]}: a prior draws"
                             f" {self.tokenizer.image_size} x {self.tokenizer.image_size} pixels; another start takes"
                             " other shapes")
        self._check_numbers()
        self.start_pixels = None if settings.start_image is None else read_shaped(
            settings.start_image, f"{NAME}.start_image", self.height, self.width)

    def prompts(self, text: str) -> PromptTargets:
        """What the caption and the settings ask for."""
        s = self.settings
        found = prompt_targets(text if text else (), styles=s.styles or (), images=s.images or (),
                               extras=s.extras or (), excluded=s.excluded or ())
        if self.start == "prior" and found.targets[0].is_image:
            raise ValueError(f"{NAME}.start=prior draws for a text, and the first prompt is a picture,"
                             f" {found.targets[0].text}")
        return found

    def pictures(self, text: str) -> list[str]:
        """The files of pictures that the drawing depends on; ValueError for those that cannot be read."""
        found = self.prompts(text)
        named = [one.text for one in (*found.targets, *found.extras, *found.excluded) if one.is_image]
        for path in named:
            read_bytes(path, "image")
        return [*named, *([self.settings.start_image] if self.settings.start_image else [])]

    def _blank(self, generator: torch.Generator) -> ParametersBase:
        """The canvas at its own start."""
        s, size = self.settings, (self.height, self.width)
        made: ParametersBase
        if s.canvas == "vqgan":
            made = LatentParameters(self.tokenizer, *size, s.codes, s.temperature, generator=generator)
        elif s.canvas == "pixels":
            made = PixelParameters(*size, generator=generator)
        elif s.canvas == "fourier":
            made = FourierParameters(*size, s.decay, generator=generator)
        else:
            made = SirenParameters(*size, s.hidden, s.layers, generator=generator)
        return made.to(self.device)

    def canvas(self, text: str, seed: int, generator: torch.Generator) -> ParametersBase:
        """The canvas where the drawing starts."""
        made = self._blank(generator)
        if isinstance(made, LatentParameters) and self.start in ("codes", "prior"):
            if self.prior is not None and self.start == "prior":
                first = self.prompts(text).targets[0].text
                ids = self.prior.codes([first], seeds=[seed], **self.prior_options).clone()
            else:
                number = made.grid[0] * made.grid[1]
                ids = torch.randint(self.tokenizer.codebook_size, (1, number), generator=generator)
            made.start_from_ids(ids)
        elif self.start_pixels is not None:
            made.start_from(self.start_pixels.to(self.device))
        return made

    def begin(self, text: str, seed: int) -> Optimization:
        """The drawing of one picture, not yet moved."""
        generator = torch.Generator().manual_seed(seed)
        return self._optimization(self.canvas(text, seed, generator), self.targets(text), generator)

    def targets(self, text: str) -> list[TargetEmbeddings]:
        """What the caption and the settings ask for, in each CLIP's space."""
        prompts, s = self.prompts(text), self.settings
        return [embed_targets(clip, prompts, lambda file, size: read_square(file, "image", size).to(self.device),
                              s.prompt_share, s.extra_share) for clip in self.clip_models]

    def _optimization(
        self, canvas: ParametersBase, targets: Sequence[TargetEmbeddings], generator: torch.Generator
    ) -> Optimization:
        s = self.settings
        cutouts = [Cutouts(clip.image_size, s.batch_size,
                           s.views or ("whole" if clip.image_size < SMALL else "cutouts"), noise=s.noise_factor,
                           jitter=s.jitter) for clip in self.clip_models]
        own = PRIOR_RATE if self.start == "prior" else RATES[s.canvas]
        rate = own if s.learning_rate is None else s.learning_rate
        return Optimization(canvas, self.clip_models, targets, cutouts, s.batch_size, s.micro_batch, s.loss,
                            s.optimizer, rate, s.weight_decay, s.text_weight, s.negative_weight, s.ema, s.patience,
                            self.precision == "bf16-mixed", generator=generator)

    def _check_numbers(self) -> None:
        """ValueError where a setting is out of its part's bounds, before anything is drawn."""
        generator = torch.Generator()
        try:
            self._optimization(self._blank(generator), [NOTHING] * len(self.clip_models), generator)
        except ValueError as error:
            name, equals, rest = str(error).partition("=")
            raise ValueError(f"{NAME}.{SETTING.get(name, name)}{equals}{rest}") from error

    def check_options(self) -> None:
        """It has none."""

    def sample(self, text: list[str], *, seeds: list[int], **unknown: object) -> Tensor:
        """Draws one picture a caption, in [-1, 1], one after the other."""
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no option of clip-guided drawing: its settings are {NAME}.*")
        if len(seeds) != len(text):
            raise ValueError(f"{len(text)} captions but {len(seeds)} seeds; each picture takes one")
        found = []
        for caption, seed in zip(text, seeds, strict=True):
            drawing = self.begin(caption, seed)
            while drawing.step < self.settings.steps and not drawing.finished:
                drawing.update()
            found.append(drawing.picture())
            release()
        return torch.cat(found)


def release() -> None:
    """Frees what the last drawing took."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
