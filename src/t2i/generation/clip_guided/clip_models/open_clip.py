"""A model of open_clip with its weights from a local file, as a guide (optional: `pip install -e ".[open-clip]"`).

OpenCLIP: Cherti et al. 2022, arXiv 2212.07143; https://github.com/mlfoundations/open_clip. The library builds the model
and tokenises; the file is read here, and nothing in it is executed. A file does not tell its activation: OpenAI's
weights, and others that its tags mark so, want the model's name with `-quickgelu`.
"""

from __future__ import annotations

import json
import logging
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from t2i.checkpoint import building
from t2i.convert.tensors import bare, read_tensors
from t2i.generation.clip_guided.clip_models.frozen import Precision, checked, said, seen, weights_hash
from t2i.text_encoders.clip_folder import MEAN, STD

BESIDE = "open_clip_config.json"
# Numbers, not weights, that OpenAI's files hold beside them; open_clip leaves exactly these out too.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
MAX_WARNINGS = 5


class OpenCLIPGuide:
    """A `t2i.types.Guide`.

    Args:
        model: a name of `open_clip.list_models()`.
        file: its weights, .safetensors or torch's; where `open_clip_config.json` lies beside it, mean and deviation of
            the pictures are taken from there.
        precision: of the image tower; texts are always embedded in float32.
        allow_download: whether the tokenizer may be fetched, of those models that do not have OpenAI's.
    """

    def __init__(
        self, model: str, file: str, precision: Precision = "32-true", allow_download: bool = False
    ) -> None:
        self.name, self.precision = f"open_clip:{model}@{file}", checked(precision)
        path = Path(file).expanduser()
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise ValueError(f"file={file!r} {what} (looked at {path.absolute()})")
        library, config = _library(), _config(model)
        beside = _beside(path, model, config)
        with _quiet():
            self.model = library.create_model(model, pretrained=None, pretrained_text=False)
        building.load_weights(self.model, _weights(path, self.model), path)
        self.model.eval().requires_grad_(False)
        size = self.model.visual.image_size
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise ValueError(f"model={model!r} takes pictures of {size} pixels; guides look at squares")
        self.image_size: int = sides.pop()
        self.mean, self.std = _normalisation(model, beside)
        self.tokenizer = _tokenizer(model, config, allow_download)
        self._warned = 0
        self._hash: str | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> OpenCLIPGuide:
        self.model.to(device)
        return self

    @torch.no_grad()
    def embed_text(self, text: list[str]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32."""
        ids = self.tokenizer(said(text))
        for caption in text:
            self._warn_cut(caption)
        with torch.autocast(self.device.type, enabled=False):
            return F.normalize(self.model.encode_text(ids.to(self.device)).float(), dim=-1)

    def _warn_cut(self, caption: str) -> None:
        encode = getattr(self.tokenizer, "encode", None)  # tokenizers from the hub have none
        room = self.tokenizer.context_length - 2
        if encode is None or self._warned >= MAX_WARNINGS or (length := len(encode(caption))) <= room:
            return
        self._warned += 1
        last = " (further cuts are not reported)" if self._warned == MAX_WARNINGS else ""
        warnings.warn(f"the text has {length} tokens, the guide {self.name} takes {room}: the end of {caption!r} is not"
                      f" seen{last}", stacklevel=4)

    def embed_image(self, views: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        """Unit vectors, float32, of views in [-1, 1]; the views have a gradient, the weights none."""
        return seen(self.model.encode_image, views, self.image_size, self.mean, self.std, self.precision, self.device)

    def hash(self) -> str:
        """Sixteen hex digits over the weights."""
        self._hash = self._hash or weights_hash(self.model)
        return self._hash


def _library() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise ValueError('open_clip is not installed: pip install -e ".[open-clip]" (the package open_clip_torch)'
                         ) from error
    return open_clip


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's word that a model has random weights, which it has for a moment."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _config(model: str) -> dict[str, Any]:
    """The library's own config of a model; ValueError for names that it does not know or would fetch."""
    library = _library()
    known = library.list_models()
    if model not in known:
        near = get_close_matches(model, known, 3)
        raise ValueError(f"model={model!r} is none of open_clip's {len(known)} models" +
                         (f"; near are {', '.join(near)}" if near else "; open_clip.list_models() names them"))
    config = library.get_model_config(model)
    if hub := config["text_cfg"].get("hf_model_name"):
        raise ValueError(f"model={model!r} has a text tower of the hub's ({hub}), which open_clip would fetch: not"
                         " read here")
    return config


def _beside(file: Path, model: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """What the publisher's config beside the weights says; empty where there is none."""
    path = file.with_name(BESIDE)
    if not path.is_file():
        return {}
    try:
        said_there = json.loads(path.read_text(encoding="utf-8"))
        theirs = bool(said_there["model_cfg"].get("quick_gelu", False))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no config of open_clip ({type(error).__name__}: {error})") from error
    if theirs != bool(config.get("quick_gelu", False)):
        raise ValueError(f"model={model!r} {'has not' if theirs else 'has'} the activation quick_gelu, and {path} says"
                         f" that its weights {'have' if theirs else 'have not'}: name the model"
                         f" {'with' if theirs else 'without'} -quickgelu")
    return said_there


def _weights(file: Path, model: Any) -> dict[str, Tensor]:
    """The state dict of a file under the names of `model`; ValueError where there is none in it."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise ValueError(f"{file} is a TorchScript archive, a program, as OpenAI publishes its CLIPs; nothing"
                                 " in it was run. The same weights are published as safetensors")
    held = read_tensors(file)
    state = held["state_dict"] if isinstance(held, Mapping) and "state_dict" in held else held
    state, _ = bare(state, str(file))
    state = {name: value for name, value in state.items() if name not in NOT_WEIGHTS}
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"{file} is no state dict of open_clip: {', '.join(others[:8])} "
                         f"{'is no tensor' if len(others) == 1 else 'are no tensors'}")
    state = convert_state_dict(model, state)
    return convert_to_custom_text_state_dict(state) if hasattr(model, "text") else state


def _normalisation(model: str, beside: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pictures: the publisher's, or what most published weights of this model want."""
    numbers = beside.get("preprocess_cfg", {})
    if "mean" in numbers and "std" in numbers:
        return tuple(numbers["mean"]), tuple(numbers["std"])
    library = _library()
    tags = [library.get_pretrained_cfg(model, tag) for tag in library.list_pretrained_tags_by_model(model)]
    found = Counter((tuple(tag["mean"]), tuple(tag["std"])) for tag in tags)
    if not found:
        return MEAN, STD
    mean, std = found.most_common(1)[0][0]
    if len(found) > 1:
        warnings.warn(f"published weights of {model} want pictures of different mean and deviation, and no {BESIDE}"
                      f" lies beside the file: {mean} and {std} are taken", stacklevel=4)
    return mean, std


def _tokenizer(model: str, config: Mapping[str, Any], allow_download: bool) -> Any:
    hub = config["text_cfg"].get("hf_tokenizer_name")
    options = {"local_files_only": not allow_download} if hub else {}
    try:
        with _quiet():
            return _library().get_tokenizer(model, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"model={model!r}: its tokenizer {hub} is not in the Hugging Face cache"
                         f"{'' if allow_download else ', and allow_download is false'} ({error})") from error
