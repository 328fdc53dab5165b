"""Clip-guided drawing from Python, watched: `t2i.guided`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from t2i.config.check import check_node
from t2i.config.messages import quoted
from t2i.generation.clip_guided.generator import ClipGuidedGenerator
from t2i.generation.clip_guided.settings import NAME, TARGET, Settings
from t2i.generation.text_to_image import OPTIONS, device_of, options_of, picture_seed, read_prompts
from t2i.generation.text_to_image_pipeline import TextToImagePipeline
from t2i.models.prior import Prior
from t2i.viz.grids import to_uint8

FILES = ("film", "show", "versus")  # settings of what sample.py writes


@dataclass(frozen=True)
class GuidedStep:
    """A drawing on its way.

    Args:
        step: iterations done.
        image: the picture by now.
        similarity: mean cosine, over the CLIPs, of the picture seen whole and what is asked for, -1 to 1.
    """

    step: int
    image: Image.Image
    similarity: float


def guided(
    prompt: str, clips: str | Sequence[str], model: TextToImagePipeline | None, seed: int, device: str,
    settings: Mapping[str, Any],
) -> Iterator[GuidedStep]:
    """See `t2i.guided`. What is wrong is said by this call, not by the first step."""
    allowed = [name for name in Settings.__dataclass_fields__ if name not in (*FILES, "clips")]
    if strange := [name for name in settings if name not in allowed]:
        raise ValueError(f"{strange[0]}={quoted(settings[strange[0]])}: guided() has no such setting; it has"
                         f" {', '.join(allowed)}")
    given = {"clips": clips if isinstance(clips, str) else list(clips), **settings}
    if faults := check_node(NAME, {"_target_": TARGET, **given}):
        raise ValueError("\n".join(faults))
    asked = Settings(**given)
    text = prompt
    if prompt or not (asked.images or asked.styles):
        text = read_prompts({"prompt": prompt, "prompts": None, "unconditional": False})[0]
    source: Any = None
    options: dict[str, Any] = {}
    if model is not None:
        source = model.model if isinstance(model.model, Prior) else model.tokenizer
        if source is None or asked.canvas != "vqgan":
            raise ValueError(f"model={quoted(str(model.source))}: " + (
                "it has no tokenizer to draw with; a prior, a VQGAN and a tokenizer have one" if source is None else
                f"canvas={asked.canvas} has no use for it; leave it out"))
        options = options_of(dict.fromkeys(OPTIONS), source) if isinstance(source, Prior) else {}
    generator = ClipGuidedGenerator(asked, source, device_of(device), options)
    generator.pictures(text)
    return _steps(generator, text, picture_seed(seed, 0, 0))


def _steps(generator: ClipGuidedGenerator, text: str, seed: int) -> Iterator[GuidedStep]:
    drawing, asked = generator.begin(text, seed), generator.settings

    def now() -> GuidedStep:
        return GuidedStep(drawing.step, Image.fromarray(to_uint8(drawing.picture())[0]), drawing.similarity())

    yield now()
    while drawing.step < asked.steps and not drawing.finished:
        drawing.update()
        if drawing.step % asked.show_step == 0:
            yield now()
    if drawing.step % asked.show_step:
        yield now()
