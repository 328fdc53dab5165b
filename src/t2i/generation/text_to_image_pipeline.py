"""A model for use from Python, as `t2i.load` and `t2i.from_pretrained` give it: captions in, PIL images out.

The name is diffusers' word for it; what it wraps is a `t2i.types.TextToImage`, or a tokenizer alone.
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from t2i.checkpoint import building, file_format
from t2i.checkpoint.registry import trust as set_trust
from t2i.checkpoint.safetensors_io import WEIGHTS
from t2i.config.messages import quoted, shown
from t2i.convert.hub import fetch
from t2i.data.decode import fit
from t2i.generation import editing
from t2i.generation.pictures import pixels_of
from t2i.generation.text_to_image import (
    KINDS,
    OPTIONS,
    check_negative,
    check_styles,
    device_of,
    draw,
    options_of,
    picture_seed,
    read_prompts,
    set_weights,
)
from t2i.generation.tiling import decode_tiled
from t2i.models.base import BaseModule
from t2i.models.prior import Prior
from t2i.models.prior_any import PriorAny
from t2i.models.vqgan import VQGAN
from t2i.nets.tokenizer import ImageTokenizer
from t2i.text_encoders.limited_warnings import CaptionWarning
from t2i.types import TextToImage
from t2i.viz.grids import to_uint8

Picture = Image.Image | str | Path
ASKED = (*OPTIONS, "unconditional")  # options of `draw` that are the model's


def _check(name: str, value: Any, least: int) -> int:
    """The value as a whole number that a random generator takes; ValueError for any other."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not least <= number < 2**63:
        raise ValueError(f"{name}={quoted(value)}: allowed are whole numbers from {least} to 2^63 - 1")
    return number


class TextToImagePipeline:
    """What a checkpoint holds, ready to draw.

    Args:
        model: a prior or a GAN, a VQGAN, or a tokenizer.
        config: that of the model's training.
        source: where it is from, for messages.
        device: auto, cpu, cuda or mps.
        weights: bf16 or int8, as in sample.py; None: as trained.
    """

    def __init__(
        self, model: Any, config: Mapping[str, Any], source: str | Path, device: str = "auto",
        weights: str | None = None,
    ) -> None:
        self.model, self.config, self.source = model.to(device_of(device)).eval(), config, source
        if isinstance(model, BaseModule):
            model.place()
        set_weights(model, weights)

    @classmethod
    def load(
        cls, path: str | Path, device: str = "auto", trust: Iterable[str] = (), weights: str | None = None
    ) -> TextToImagePipeline:
        """See `t2i.load`."""
        set_trust(trust)
        model = building.load(path, (*KINDS, "vqgan", "tokenizer"))
        return cls(model, file_format.read(path)["t2i"]["config"], path, device, weights)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, revision: str | None = None, device: str = "auto", trust: Iterable[str] = (),
        weights: str | None = None,
    ) -> TextToImagePipeline:
        """See `t2i.from_pretrained`."""
        folder = Path(name).expanduser()
        if not folder.exists():
            folder = fetch(str(name), revision)
        elif revision is not None:
            raise ValueError(f"revision={shown(revision)} is of the hub, and {name} lies here")
        if not (folder / WEIGHTS).is_file():
            raise ValueError(f"{name} has no {WEIGHTS}: a folder is wanted that `t2i export` wrote; t2i.load opens a"
                             " checkpoint")
        return cls.load(folder, device, trust, weights)

    @property
    def tokenizer(self) -> ImageTokenizer | None:
        """What turns pictures into codes and back; None of a GAN, which has none."""
        if isinstance(self.model, ImageTokenizer):
            return self.model
        return self.model.tokenizer if isinstance(self.model, Prior | VQGAN) else None

    def draw(
        self, prompts: str | Sequence[str] | None = None, seeds: int | Sequence[int] | None = None, *,
        seed: int | None = None, n: int | None = None, negative: str | None = None, batch_size: int = 16,
        size: str | None = None, **options: Any,
    ) -> list[Image.Image]:
        """Pictures for captions; none depends on what else is drawn.

        Args:
            prompts: captions; None with `unconditional=True`.
            seeds: one a caption, as drawing.json lists them, or several for one caption. By itself those that
                `sample.py seed=… n=…` takes: `seed` (0), and `n` (1) pictures a caption, one caption after the other.
            negative: a caption that guidance leads away from.
            size: "512x256", width x height, of a prior_any; None: the model's own size.
            options: temperature, top_k, top_p, guidance and unconditional of a prior, truncation of a GAN; those that
                are not given, or None, are as in sample.py.

        ValueError names the argument, its value and what is allowed.
        """
        if not isinstance(self.model, TextToImage):
            raise ValueError(f"{self.source} is a tokenizer, which draws nothing for captions; reconstruct() takes"
                             " pictures")
        free = bool(options.get("unconditional"))
        texts, found = self._asked(prompts, negative, options)
        _check("batch_size", batch_size, 1)
        if seeds is None:
            count, base = _check("n", 1 if n is None else n, 1), _check("seed", seed or 0, 0)
            numbers = [picture_seed(base, j, i) for j in range(len(texts)) for i in range(count)]
            texts = [text for text in texts for _ in range(count)]
        elif seed is not None or n is not None:
            raise ValueError("seeds= has each picture's seed; seed= and n= go without it")
        else:
            numbers = [_check("seeds", one, 0) for one in ([seeds] if isinstance(seeds, int) else seeds)]
            texts = texts * len(numbers) if len(texts) == 1 else texts
        if size is None:
            pictures = draw(self.model, texts, numbers, batch_size, negative=negative, **found)
        else:
            sides = editing.check_size(size, self.model)
            pictures = editing.draw_sized(cast(PriorAny, self.model), sides, texts, numbers, batch_size, negative,
                                          **found)
        with warnings.catch_warnings():
            if free:
                warnings.simplefilter("ignore", CaptionWarning)  # of the caption that is not there
            return [Image.fromarray(one) for batch in pictures for one in to_uint8(batch)]

    def _asked(
        self, prompts: str | Sequence[str] | None, negative: str | None, options: Mapping[str, Any]
    ) -> tuple[list[str], dict[str, Any]]:
        """Captions and the model's options, checked."""
        if strange := [name for name in options if name not in ASKED]:
            raise ValueError(f"{strange[0]}={quoted(options[strange[0]])}: there is no such option; there are"
                             f" {', '.join(ASKED)}")
        free = bool(options.get("unconditional"))
        asked = [prompts] if prompts is None or isinstance(prompts, str) else prompts
        texts = [text for one in asked
                 for text in read_prompts({"prompt": one, "prompts": None, "unconditional": free})]
        check_styles([*texts, *([] if negative is None else [negative])], self.config, self.source)
        found = options_of({**dict.fromkeys(OPTIONS), **options}, self.model)
        if negative is not None:
            if not negative.strip():
                raise ValueError('negative="" is empty: write what to lead away from, or leave it out')
            check_negative(f"negative={shown(negative)}", self.model, found.get("guidance"), free)
        return texts, found

    def edit(
        self, image: Picture, prompt: str, *, mask: Picture | None = None, box: Sequence[float] | None = None,
        vary: float | None = None, extend: Sequence[int] | None = None, composite: bool = True, seed: int = 0,
        n: int = 1, negative: str | None = None, batch_size: int = 16, **options: Any,
    ) -> list[Image.Image]:
        """A picture with a part of it drawn anew under a caption, by a prior_any; those of `sample.py edit.image=…
        prompt=… seed=… n=…`.

        Args:
            image: of any size from the model's.
            mask: a picture of its aspect, white where it is drawn anew; or
            box: [x0, y0, x1, y1] in shares of the side; or
            vary: the share of the codes, spread over the picture; or
            extend: [left, top, right, bottom], pixels around it.
            composite: what is not drawn anew is the picture's own pixels.
            seed, n: the pictures draw from (seed, 0) to (seed, n - 1).
            negative, options: as of `draw`.

        ValueError names the argument, its value and what is allowed.
        """
        if not isinstance(self.model, TextToImage):
            raise ValueError(f"{self.source} is a tokenizer, which draws nothing; a prior_any edits")
        asked = {"mask": mask, "box": box, "vary": vary, "extend": extend}
        edit = editing.read({"image": image, "composite": composite, **asked})
        if edit is None:
            raise ValueError("image=None: the picture to edit is wanted")
        edit.check(self.model)
        texts, found = self._asked(prompt, negative, options)
        count, base = _check("n", n, 1), _check("seed", seed, 0)
        numbers = [picture_seed(base, 0, i) for i in range(count)]
        size = _check("batch_size", batch_size, 1)
        pictures = editing.draw(cast(PriorAny, self.model), edit, texts * count, numbers, size, negative, **found)
        return [Image.fromarray(one) for batch in pictures for one in to_uint8(batch)]

    @torch.inference_mode()
    def reconstruct(
        self, images: Picture | Sequence[Picture], batch_size: int = 16, *, keep_size: bool = False
    ) -> list[Image.Image]:
        """Pictures, or their files, through the tokenizer's codes and back: cut about the middle to squares of its
        size, or with `keep_size` as large as they are, a tile at a time (`t2i.generation.tiling`)."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            raise ValueError(f"{self.source} has no tokenizer to reconstruct with; a prior and a VQGAN have one")
        given = [images] if isinstance(images, Picture) else images
        pixels = [pixels_of(one, "images") for one in given]
        if keep_size:
            return [self._whole(tokenizer, one, i) for i, one in enumerate(pixels)]
        found: list[Image.Image] = []
        for start in range(0, len(pixels), batch_size):
            batch = torch.stack([fit(one, tokenizer.image_size, square=True)
                                 for one in pixels[start : start + batch_size]]).float().div(127.5).sub(1)
            ids = tokenizer.encode(batch.to(next(tokenizer.parameters()).device))
            found += [Image.fromarray(one) for one in to_uint8(tokenizer.decode_ids(ids))]
        return found

    def _whole(self, tokenizer: ImageTokenizer, pixels: UInt8[Tensor, "3 h w"], number: int) -> Image.Image:
        (height, width), side, factor = pixels.shape[1:], tokenizer.image_size, tokenizer.autoencoder.factor
        if min(height, width) < side:
            raise ValueError(f"images[{number}] has {width} x {height} pixels; keep_size=True takes at least {side} x"
                             f" {side}, the tokenizer's")
        image = F.pad(pixels.float().div(127.5).sub(1)[None], (0, -width % factor, 0, -height % factor), "replicate")
        ids = editing.encode(tokenizer, image.to(next(tokenizer.parameters()).device))
        return Image.fromarray(to_uint8(decode_tiled(tokenizer, ids[None])[:, :, :height, :width])[0])
