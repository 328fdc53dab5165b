"""Settings of clip-guided drawing: `conf/method/clip_guided.yaml` says what each is.

From Python:

    from t2i.generation.clip_guided.generator import ClipGuidedGenerator
    from t2i.generation.clip_guided.settings import Settings
    settings = Settings(clips="runs/quickstart/clip/hf", canvas="pixels")
    picture = ClipGuidedGenerator(settings).sample(["a red circle"], seeds=[0])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from t2i.config import aliases
from t2i.config.check import check_node

NAME = "clip_guided"  # of the config's node
TARGET = "t2i.generation.clip_guided.settings.Settings"
CANVASES = ("vqgan", "pixels", "fourier", "siren")
STARTS = ("noise", "codes", "prior", "image")
LARGEST = 8192  # pixels a side


@dataclass(frozen=True)
class Replay:
    """A drawing.json to draw again."""

    path: str


@dataclass(frozen=True)
class Settings:
    clips: str | list[str]
    allow_download: bool = False
    canvas: Literal["vqgan", "pixels", "fourier", "siren"] = "vqgan"
    codes: Literal["none", "straight_through", "gumbel"] = "straight_through"
    start: Literal["noise", "codes", "prior", "image"] | None = None
    start_image: str | None = None
    image_size: list[int] | None = None
    steps: int = 200
    show_step: int = 20
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float | None = None
    weight_decay: float = 0.0
    loss: Literal["cosine", "spherical"] = "spherical"
    text_weight: float = 1.0
    negative_weight: float = 0.5
    prompt_share: float = 1.0
    extra_share: float = 0.1
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
        found = [f"{NAME}.{name}={value}: allowed are whole numbers from 1" for name, value in
                 (("steps", self.steps), ("show_step", self.show_step), ("batch_size", self.batch_size)) if value < 1]
        found += [f"{NAME}.{name}={value}: one of {', '.join(allowed)} is needed" for name, value, allowed in
                  (("canvas", self.canvas, CANVASES), ("start", self.start, STARTS))
                  if value is not None and value not in allowed]
        size = self.image_size
        if size is not None and (len(size) != 2 or not 1 <= min(size) <= max(size) <= LARGEST):
            found.append(f"{NAME}.image_size={size}: [height, width] in pixels, at most {LARGEST}, or null")
        if self.canvas != "vqgan" and self.start in ("codes", "prior"):
            found.append(f"{NAME}.start={self.start} needs {NAME}.canvas=vqgan, which has codes; {self.canvas} starts"
                         " from noise or an image")
        if self.start == "image" and self.start_image is None:
            found.append(f"{NAME}.start=image needs {NAME}.start_image=, a picture")
        if self.start_image is not None and self.start not in (None, "image"):
            found.append(f"{NAME}.start_image={self.start_image} does not go with {NAME}.start={self.start}")
        if self.versus is not None:
            fixed = ("clips", "allow_download", "versus", "film", "show", "show_step")
            names = [name for name in Settings.__dataclass_fields__ if name not in fixed]
            found += [f"{NAME}.versus.{key}: there is no such setting; allowed are {', '.join(names)}"
                      for key in self.versus if key not in names]
            wrong = found or check_node(f"{NAME}.versus", {"_target_": TARGET, "clips": self.clips, **self.versus})
            found += wrong or [f"{NAME}.versus: {fault}" for fault in self.second().faults()]
        return found

    def second(self) -> Settings:
        """Those of the drawing beside each, which `versus` describes."""
        return replace(self, **(self.versus or {}), versus=None)


def settings_of(node: Mapping[str, Any]) -> Settings:
    """Of a config's node, which may use the published notebooks' names."""
    values = aliases.current_node(NAME, node)
    return Settings(**{key: value for key, value in values.items() if key != "_target_"})
