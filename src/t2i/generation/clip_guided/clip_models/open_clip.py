"""A model of open_clip with its weights from a local file.

OpenCLIP: Cherti et al. 2022, arXiv 2212.07143; https://github.com/mlfoundations/open_clip. The library builds the model
and tokenises; the file is read here, strictly, and nothing in it is executed. A file does not tell its activation:
OpenAI's weights, and others that its tags mark so, want the model's name with `-quickgelu`.
"""

from __future__ import annotations

import logging
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from t2i.checkpoint import building
from t2i.checkpoint.plain_files import read_json
from t2i.convert.tensors import state_dict_of
from t2i.generation.clip_guided.clip_models.base import FrozenClip, Precision
from t2i.text_encoders.clip_folder import MEAN, STD
from t2i.text_encoders.limited_warnings import LimitedWarnings

CONFIG = "open_clip_config.json"
# Numbers, not weights, that OpenAI's files hold beside them; open_clip leaves exactly these out too.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")


class OpenCLIP(FrozenClip):
    """A `t2i.types.ClipModel`.

    Args:
        model: a name of `open_clip.list_models()`.
        file: its weights, .safetensors or torch's; where `open_clip_config.json` lies beside it, mean and deviation of
            the pictures are taken from there.
        precision: of the image tower.
        allow_download: whether the tokenizer may be fetched, of those models that do not have OpenAI's.
    """

    def __init__(
        self, model: str, file: str, precision: Precision = "32-true", allow_download: bool = False
    ) -> None:
        path = Path(file).expanduser()
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise ValueError(f"file={file!r} {what} (looked at {path.absolute()})")
        library = _library()
        config = _config(library, model)
        mean, std = _normalisation(library, model, path, bool(config.get("quick_gelu", False)))
        with _quiet():
            self.model: Any = library.create_model(model, pretrained=None, pretrained_text=False)
        building.load_weights(self.model, _weights(path, self.model), path)
        size = self.model.visual.image_size
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise ValueError(f"model={model!r} takes pictures of {size} pixels; squares are wanted")
        self.tokenizer = _tokenizer(library, model, config["text_cfg"].get("hf_tokenizer_name"), allow_download)
        self._warn_cut = LimitedWarnings("cuts")
        super().__init__(f"open_clip:{model}@{file}", (self.model,), sides.pop(), mean, std, precision)

    def text_features(self, text: list[str]) -> Float[Tensor, "b d"]:
        room = self.tokenizer.context_length - 2
        if encode := getattr(self.tokenizer, "encode", None):  # tokenizers from the hub have none
            for caption in text:
                if (length := len(encode(caption))) > room:
                    self._warn_cut(f"the text has {length} tokens, {self.name} takes {room}: the end of {caption!r}"
                                   " is not seen")
        return self.model.encode_text(self.tokenizer(text).to(self.device))

    def image_features(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return self.model.encode_image(pixels)


def _library() -> Any:
    try:
        import open_clip
    except ModuleNotFoundError as error:
        if error.name != "open_clip":
            raise
        raise ValueError('open_clip is not installed: pip install open_clip_torch (in t2i\'s extra open-clip)'
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


def _config(library: Any, model: str) -> dict[str, Any]:
    """The library's own config of a model; ValueError for names that it does not know or would fetch."""
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


def _normalisation(
    library: Any, model: str, file: Path, quick_gelu: bool
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the pictures: the publisher's config beside the file's, or what most published weights of
    this model want. ValueError where that config wants the model's other activation."""
    beside = file.with_name(CONFIG)
    if beside.is_file():
        held = read_json(beside)
        try:
            theirs, numbers = bool(held["model_cfg"].get("quick_gelu", False)), held.get("preprocess_cfg", {})
            given = (tuple(numbers["mean"]), tuple(numbers["std"])) if numbers.keys() >= {"mean", "std"} else None
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{beside} is no config of open_clip ({type(error).__name__}: {error})") from error
        if theirs != quick_gelu:
            raise ValueError(f"model={model!r} {'has not' if theirs else 'has'} the activation quick_gelu, and {beside}"
                             f" says that its weights {'have' if theirs else 'have not'}: name the model"
                             f" {'with' if theirs else 'without'} -quickgelu")
        if given is not None:
            return given
    tags = [library.get_pretrained_cfg(model, tag) for tag in library.list_pretrained_tags_by_model(model)]
    found = Counter((tuple(tag["mean"]), tuple(tag["std"])) for tag in tags)
    if not found:
        return MEAN, STD
    mean, std = found.most_common(1)[0][0]
    if len(found) > 1:
        warnings.warn(f"published weights of {model} want pictures of different mean and deviation, and no {CONFIG}"
                      f" lies beside the file: {mean} and {std} are taken", stacklevel=4)
    return mean, std


def _weights(file: Path, model: Any) -> dict[str, Tensor]:
    """The state dict of a file under the names of `model`; ValueError where there is none in it."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any("/code/" in name for name in archive.namelist()):
                raise ValueError(f"{file} is a TorchScript archive, a program, as OpenAI publishes its CLIPs; nothing"
                                 " in it was run. The same weights are published as safetensors")
    held = state_dict_of(file)
    state = convert_state_dict(model, {name: value for name, value in held.items() if name not in NOT_WEIGHTS})
    return convert_to_custom_text_state_dict(state) if hasattr(model, "text") else state


def _tokenizer(library: Any, model: str, hub: str | None, allow_download: bool) -> Any:
    options = {"local_files_only": not allow_download} if hub else {}
    try:
        with _quiet():
            return library.get_tokenizer(model, **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"model={model!r}: its tokenizer {hub} is not in the Hugging Face cache"
                         f"{'' if allow_download else ', and allow_download is false'} ({error})") from error
