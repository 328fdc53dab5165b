"""A text tower in the folder format of sentence-transformers: DistilBERT, mean over the tokens, one dense layer.

Sentence-BERT: Reimers & Gurevych 2019, arXiv 1908.10084; taught to speak many languages in a teacher's space: 2020,
arXiv 2004.09813. `clip-ViT-B-32-multilingual-v1` is one, its teacher the text tower of CLIP ViT-B/32. DistilBERT: Sanh
et al. 2019, arXiv 1910.01108, by transformers. Folders of this chain alone are read.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from t2i.checkpoint import building
from t2i.config.messages import shown
from t2i.convert.tensors import read_tensors
from t2i.generation.clip_guided.clip_models.frozen import said

CHAIN = ("Transformer", "Pooling", "Dense")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh}
# A buffer of counted numbers, which older versions of transformers saved beside the weights.
COUNTED = "embeddings.position_ids"
MAX_WARNINGS = 5


class SBERTText:
    """Sentences in any of its languages -> embeddings (b, `dim`), not normalised, in float32 and without gradient."""

    def __init__(self, path: str) -> None:
        self.path = path
        folders = _folders(Path(path).expanduser())
        self.tower, config = _tower(folders["Transformer"] / "config.json")
        building.load_weights(self.tower, *_state(folders["Transformer"], "distilbert."))
        self.dense, self.activation = _dense(folders["Dense"], config.dim)
        _check_mean(folders["Pooling"] / "config.json")
        self.tokenizer = _tokenizer(folders["Transformer"])
        if len(self.tokenizer) > config.vocab_size:
            raise ValueError(f"{folders['Transformer']}: the tokenizer has {len(self.tokenizer)} tokens, the embedding"
                             f" {config.vocab_size} rows")
        settings = folders["Transformer"] / "sentence_bert_config.json"
        numbers = _json(settings, {}) if settings.is_file() else {}
        self.lower = bool(numbers.get("do_lower_case"))
        room: int = config.max_position_embeddings
        asked = numbers.get("max_seq_length") or room
        if not isinstance(asked, int) or asked < 3:
            raise ValueError(f"{settings}: max_seq_length is {asked!r}, allowed are whole numbers from 3")
        self.max_length = min(asked, room)
        self.dim = self.dense.out_features
        for part in (self.tower, self.dense):
            part.eval().requires_grad_(False)
        self._warned = 0

    @property
    def device(self) -> torch.device:
        return self.dense.weight.device

    def to(self, device: torch.device | str) -> SBERTText:
        for module in (self.tower, self.dense):
            nn.Module.to(module, device)
        return self

    @torch.no_grad()
    def __call__(self, text: list[str]) -> Float[Tensor, "b d"]:
        sentences = [sentence.lower() for sentence in said(text)] if self.lower else said(text)
        for sentence in sentences:
            self._warn_cut(sentence)
        tokens = self.tokenizer(sentences, padding=True, truncation=True, max_length=self.max_length,
                                return_tensors="pt").to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            states = self.tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            mask = tokens["attention_mask"][..., None].float()  # (b, t, 1)
            mean = (states.last_hidden_state * mask).sum(1) / mask.sum(1)
            return self.activation(self.dense(mean))

    def _warn_cut(self, sentence: str) -> None:
        if self._warned >= MAX_WARNINGS:
            return
        length = len(self.tokenizer(sentence, verbose=False)["input_ids"])
        if length > self.max_length:
            self._warned += 1
            last = " (further cuts are not reported)" if self._warned == MAX_WARNINGS else ""
            warnings.warn(f"the text has {length} tokens, the text tower {self.path} takes {self.max_length}: the end"
                          f" of '{shown(sentence)}' is not seen{last}", stacklevel=5)


def _json(path: Path, wanted: Mapping[str, Any] | None = None) -> Any:
    """What a JSON file says; ValueError where it is missing, damaged, or no mapping that has what is `wanted`."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist, and a sentence-transformers folder has one")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if wanted is not None and not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; names and values are wanted")
    for key, value in (wanted or {}).items():
        if found.get(key) != value:
            raise ValueError(f"{path}: {key} is {found.get(key)!r}, allowed is {value!r}")
    return found


def _folders(folder: Path) -> dict[str, Path]:
    """Where the chain's parts lie; ValueError for other chains."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise ValueError(f"the text tower's folder {folder} {what} (looked at {folder.absolute()})")
    listed = folder / "modules.json"
    modules = _json(listed)
    try:
        parts = [(module["type"].rpartition(".")[2], str(module["path"])) for module in modules]
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{listed} is no list of modules with type and path") from error
    chain = tuple(kind for kind, _ in parts)
    if chain not in (CHAIN, (*CHAIN, "Normalize")):
        raise ValueError(f"{listed} is a chain of {', '.join(chain) or 'nothing'}; allowed is {', '.join(CHAIN)}, the"
                         " multilingual text tower, not a CLIP")
    for kind, path in parts:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise ValueError(f"{listed}: the path {path!r} of {kind} leads out of the folder")
    return {kind: folder / path for kind, path in parts}


def _state(folder: Path, prefix: str = "") -> tuple[dict[str, Any], Path]:
    """The weights of a part and their file; `prefix` is taken away where all names have it."""
    there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not there:
        raise ValueError(f"{folder} has no weights: {' or '.join(WEIGHTS)} is wanted")
    held = read_tensors(there[0])
    plain = isinstance(held, Mapping) and all(isinstance(name, str) for name in held)
    if not plain or not held or not all(isinstance(value, Tensor) for value in held.values()):
        raise ValueError(f"{there[0]} holds no state dict, names and tensors")
    cut = prefix if all(name.startswith(prefix) for name in held) else ""
    state = {name.removeprefix(cut): value for name, value in held.items()}
    return {name: value for name, value in state.items() if name != COUNTED}, there[0]


def _tower(path: Path) -> tuple[DistilBertModel, DistilBertConfig]:
    numbers = _json(path, {"model_type": "distilbert"})
    try:
        config = DistilBertConfig(**numbers)
        return DistilBertModel(config), config
    except (StrictDataclassError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} describes no DistilBERT ({error})") from error


def _dense(folder: Path, width: int) -> tuple[nn.Linear, nn.Module]:
    path = folder / "config.json"
    config = _json(path, {"in_features": width})
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise ValueError(f"{path}: activation_function is {activation!r}, allowed are {', '.join(ACTIVATIONS)}")
    out = config.get("out_features")
    if not isinstance(out, int) or out < 1:
        raise ValueError(f"{path}: out_features is {out!r}, allowed are whole numbers from 1")
    dense = nn.Linear(width, out, bias=bool(config.get("bias", True)))
    building.load_weights(dense, *_state(folder, "linear."))
    return dense, ACTIVATIONS[activation]()


def _check_mean(path: Path) -> None:
    """ValueError for any pooling but the mean over the tokens."""
    config = _json(path, {})
    flags = sorted(key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
    named = config.get("pooling_mode", "mean")
    if flags not in ([], ["pooling_mode_mean_tokens"]) or named not in ("mean", ["mean"]):
        raise ValueError(f"{path}: the pooling is {', '.join(flags) or named}; allowed is the mean over the tokens"
                         " (pooling_mode_mean_tokens)")


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise ValueError(f"{folder} has no tokenizer: tokenizer.json or vocab.txt is wanted")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: its tokenizer cannot be read ({error})") from error
