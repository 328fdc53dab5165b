"""CLIP as a Hugging Face folder: one way to load ours and published ones, to save, tokenise and feed it.

CLIP: Radford et al. 2021, arXiv 2103.00020; the network is `transformers.CLIPModel`. Deviations for our own:
the byte-level BPE marks the beginning of a word (as GPT-2's does) instead of its end, and has a padding token
of its own.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import cached_file
from transformers.utils import logging as transformers_logging

from t2i.checkpoint import file_checks
from t2i.checkpoint.atomic import replacing
from t2i.checkpoint.building import on_meta_device
from t2i.checkpoint.plain_files import read_json
from t2i.config.messages import quoted, shown
from t2i.config.places import program
from t2i.text_encoders.fast_tokenizer import FastTokenizer, read_tokenizer

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
# In this order: transformers takes the end token's id 2 for the mark of an old config and then pools at the
# largest id instead of at the end token, so END must not be 2.
SPECIAL = (START, END, PAD)
SMALLEST_VOCABULARY = 256 + len(SPECIAL)

# Of OpenAI's models, whose preprocessing a folder without preprocessor_config.json is taken to share.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

PREPROCESSOR = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class CaptionTokenizer(FastTokenizer):
    """Captions to token ids: start, words, end, padded to the batch's longest and cut at `max_length` tokens."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, start: int, end: int, pad: int) -> None:
        super().__init__(tokenizer, max_length, [start], [end], pad)
        self.start, self.end = start, end

    @classmethod
    def from_json(cls, text: str, max_length: int) -> CaptionTokenizer:
        """From the text of a tokenizer.json."""
        tokenizer, _ = read_tokenizer(text)
        start, end, pad = (tokenizer.token_to_id(token) for token in SPECIAL)
        if start is None or end is None:
            raise ValueError(f"the tokenizer has no {START} or no {END}: it is none of CLIP's")
        # OpenAI's vocabulary has no padding token and pads with the end token.
        return cls(tokenizer, max_length, start, end, end if pad is None else pad)


def check_fit(captions: CaptionTokenizer, text: CLIPTextConfig, path: str) -> None:
    """ValueError where a tokenizer has ids that the text tower's embedding lacks, or ends captions with another token
    than the one the tower pools at: every caption would get one and the same embedding."""
    captions.check_vocabulary(text.vocab_size, f"path={path!r}")
    # Of configs with the id 2 transformers makes the largest id of a caption.
    old_config = text.eos_token_id == 2 and captions.end == captions.tokenizer.get_vocab_size() - 1
    if text.eos_token_id != captions.end and not old_config:
        raise ValueError(f"path={path!r}: the text tower pools at token {text.eos_token_id} (eos_token_id), the"
                         f" tokenizer ends captions with token {captions.end}")


def train_tokenizer(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """A lower-casing byte-level BPE of at most `vocab_size` entries; no text is unknown to it."""
    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(f"vocab_size={vocab_size}: at least {SMALLEST_VOCABULARY} (256 bytes and the special tokens)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    # The space before the first word makes it the same token as in the middle of a caption.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(captions, trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, SPECIAL.index(START)), (END, SPECIAL.index(END))])
    return tokenizer


@contextmanager
def quietly(local: bool = True) -> Iterator[None]:
    """Without transformers' bars, for weights that are read in a blink, and its warnings, for what is said below."""
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    if local:
        transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_folder(folder: Path) -> None:
    """ValueError where a folder is another model's, or its config, its weights or its words are damaged or do not fit;
    tried without memory."""
    if not (folder / "config.json").is_file():
        raise ValueError("it has no config.json, as a Hugging Face folder of a CLIP has")
    held = read_json(folder / "config.json")
    if not isinstance(held, dict) or held.get("model_type") != "clip":
        what = quoted(held.get("model_type")) if isinstance(held, dict) else f"a {type(held).__name__}"
        raise ValueError(f"its config.json is of a model of type {what}; 'clip' is wanted")
    refuse_code(held, "its config.json")
    shapes = _shapes(folder)
    with on_meta_device(len(shapes)):
        try:
            own = CLIPModel(CLIPConfig(**held)).state_dict()
        except Exception as error:  # a config can make transformers fail in every way there is
            last = [line.strip() for line in str(error).splitlines() if line.strip()][-1:] or [type(error).__name__]
            raise ValueError(f"its config and its weights do not fit ({shown(last[0])})") from error
    wrong = [name for name, value in own.items() if name in shapes and shapes[name] != tuple(value.shape)]
    if wrong:
        raise ValueError(f"its config and its weights do not fit: {wrong[0]} has shape {shapes[wrong[0]]},"
                         f" {tuple(own[wrong[0]].shape)} is wanted")
    if (folder / "tokenizer.json").is_file():
        read_json(folder / "tokenizer.json")
    elif missing := [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]:
        raise ValueError(f"it has no vocabulary: tokenizer.json is wanted, or vocab.json and merges.txt"
                         f" ({' and '.join(missing)} lack too)")
    else:
        read_json(folder / "vocab.json")


def refuse_code(held: dict[str, Any], source: Any) -> None:
    """ValueError where a config, or one in it, would have transformers look up code elsewhere: kernels and
    quantisation."""
    for key, value in held.items():
        name = key.lstrip("_")
        if ((key == "quantization_config" and value is not None)
                or (name.startswith("attn_implementation") and value not in (None, "eager", "sdpa"))):
            raise ValueError(f"{source} asks for {key}={quoted(value)}, which would be fetched and run")
        if isinstance(value, dict):
            refuse_code(value, source)


def _shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Of the weights in a folder; ValueError where there are none, or they cannot be read."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(f"it has no weights: {' or '.join(WEIGHTS)} is wanted")
    file_checks.check(found)
    if not file_checks.is_safetensors(found):
        held = file_checks.load(found)
        return {str(name): tuple(value.shape) for name, value in held.items() if isinstance(value, Tensor)}
    try:
        with safe_open(found, "pt") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{found.name} is a damaged safetensors file ({error})") from error


def load_clip(path: str, allow_download: bool = False) -> tuple[CLIPModel, CaptionTokenizer]:
    """A CLIP in eval mode and float32 with its tokenizer, from a local folder or by its name on the hub.

    ValueError where it is not there, is incomplete, or its tokenizer is another's.
    """
    is_folder = Path(path).is_dir()
    local_only = is_folder or not allow_download
    try:
        with quietly(local_only):
            if is_folder:
                _check_folder(Path(path))
            loaded = CLIPModel.from_pretrained(path, local_files_only=local_only, output_loading_info=True,
                                               dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=local_only, trust_remote_code=False)
    except Exception as error:  # transformers, tokenizers and torch raise a dozen types on damaged folders
        if is_folder or not isinstance(error, OSError | ValueError):
            first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise ValueError(f"path={path!r} could not be read as a CLIP folder: {shown(first, 300)}") from error
        how = ("the download failed" if allow_download else f"train one ({program('train')} model=clip), name the"
               " folder of one, or set its allow_download to true")
        raise ValueError(f"path={path!r}: no folder of that name (looked at {Path(path).absolute()}), and no such model"
                         f" in the Hugging Face cache; {how}") from error
    model, report = cast(tuple[CLIPModel, dict[str, Any]], loaded)  # typed as if there were no report
    if missing := sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"])):
        raise ValueError(f"path={path!r} is no complete CLIP: {len(missing)} weights are missing, {missing[0]} the"
                         " first")
    # A reader of the model's own length; the tokenizer's stored maximum is often absent or wrong.
    text = text_config(model)
    captions = CaptionTokenizer.from_json(tokenizer.backend_tokenizer.to_str(), text.max_position_embeddings)
    check_fit(captions, text, path)
    return model.eval().requires_grad_(False), captions


def text_config(model: CLIPModel) -> CLIPTextConfig:
    """Of the text tower; transformers' types leave open what its constructor has made of it."""
    return cast(CLIPTextConfig, model.config.text_config)


def image_size(model: PreTrainedModel) -> int:
    """The side of the square pictures that the image tower takes."""
    return cast(int, cast(CLIPVisionConfig, model.config.vision_config).image_size)


def image_normalisation(path: str, allow_download: bool = False) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the pictures (scaled to [0, 1]) that the CLIP at `path` takes."""
    found = cached_file(path, PREPROCESSOR, local_files_only=not allow_download,
                        _raise_exceptions_for_missing_entries=False)
    if found is None:
        return MEAN, STD
    numbers = read_json(Path(found))
    try:
        mean, std = (tuple(map(float, numbers[key])) for key in ("image_mean", "image_std"))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"path={path!r}: its {PREPROCESSOR} does not tell image_mean and image_std") from error
    if not len(mean) == len(std) == 3 or min(std) <= 0:
        raise ValueError(f"path={path!r}: its {PREPROCESSOR} does not tell image_mean and image_std of three channels")
    return mean, std


def save_folder(
    model: CLIPModel, tokenizer_json: str, folder: str | Path, mean: tuple[float, ...] = (0.5, 0.5, 0.5),
    std: tuple[float, ...] = (0.5, 0.5, 0.5),
) -> None:
    """Write the CLIP as a folder that `transformers` reads, whole or not at all; an older one is replaced."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    pad = PAD if tokenizer.token_to_id(PAD) is not None else END
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=START, eos_token=END, pad_token=pad,
                                   model_max_length=text_config(model).max_position_embeddings)
    write_folder(model, fast, image_size(model), folder, mean, std)


def write_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, size: int, folder: str | Path, mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Write a model of pictures and captions as a folder, whole or not at all; `size` is its pictures' side."""
    folder = Path(folder)
    with replacing(folder) as new:
        with quietly():
            try:
                model.save_pretrained(new)
            except SafetensorError as error:  # which has the system's own only as words
                number = re.search(r"os error (\d+)", str(error))
                if number is None:
                    raise
                why = os.strerror(int(number[1]))
                raise OSError(int(number[1]), f"{folder} could not be written: {why}") from error
        tokenizer.save_pretrained(new)
        numbers = {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": size},
                   "resample": 3, "do_center_crop": True, "crop_size": {"height": size, "width": size},
                   "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "image_mean": list(mean),
                   "image_std": list(std)}
        (new / PREPROCESSOR).write_text(json.dumps(numbers, indent=2), encoding="utf-8")


def resize_and_crop(images: Float[Tensor, "b 3 h w"], height: int, width: int) -> Float[Tensor, "b 3 h2 w2"]:
    """Scaled (bicubic, antialiased) until both sides are covered, then cut about the middle."""
    h, w = images.shape[-2:]
    scale = max(height / h, width / w)
    shape = max(height, round(h * scale)), max(width, round(w * scale))
    if shape != (h, w):
        images = F.interpolate(images, shape, mode="bicubic", antialias=True, align_corners=False)
    top, left = (shape[0] - height) // 2, (shape[1] - width) // 2
    return images[..., top : top + height, left : left + width]


def preprocess(
    images: Float[Tensor, "b 3 h w"], size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Float[Tensor, "b 3 s s"]:
    """Pictures in [-1, 1] as CLIP takes them: short side to `size` (bicubic, antialiased), crop, normalised.

    Differentiable; overshoot of the bicubic filter is not clipped, so that the gradient reaches every pixel.
    """
    with torch.autocast(images.device.type, enabled=False):
        images = resize_and_crop(images.float(), size, size)
        centre = images.new_tensor(mean).view(3, 1, 1) * 2 - 1
        return (images - centre) / (images.new_tensor(std).view(3, 1, 1) * 2)
