"""A text tower in the folder format of sentence-transformers: DistilBERT, mean over the tokens, one dense layer.

Sentence-BERT: Reimers & Gurevych 2019, arXiv 1908.10084; taught to speak many languages in a teacher's space: 2020,
arXiv 2004.09813. `clip-ViT-B-32-multilingual-v1` is one, its teacher the text tower of CLIP ViT-B/32. DistilBERT: Sanh
et al. 2019, arXiv 1910.01108, by transformers. Folders of this chain alone are read, and not by that library: it
imports whatever class a folder's modules.json names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from t2i.checkpoint.building import build_to_fit, load_weights
from t2i.checkpoint.plain_files import read_json
from t2i.config.messages import shown
from t2i.convert.tensors import state_dict_of
from t2i.text_encoders.clip_folder import WEIGHTS, quietly, refuse_code
from t2i.text_encoders.limited_warnings import LimitedWarnings

CHAIN = ("Transformer", "Pooling", "Dense")
ACTIVATIONS = {"Identity": nn.Identity, "Tanh": nn.Tanh}
# A buffer of counted numbers, which older versions of transformers saved beside the weights.
COUNTED = "embeddings.position_ids"


class SBERTText:
    """Sentences in any of its languages -> embeddings (b, `dim`), not normalised, in float32 and without gradient."""

    def __init__(self, path: str) -> None:
        self.path = path
        folders = _folders(Path(path).expanduser())
        transformer = folders["Transformer"]
        self.tower = _tower(transformer)
        config = self.tower.config
        self.dense, self.activation = _dense(folders["Dense"], config.dim)
        _check_mean(folders["Pooling"] / "config.json")
        self.tokenizer = _tokenizer(transformer)
        if len(self.tokenizer) > config.vocab_size:
            raise ValueError(f"{transformer}: the tokenizer has {len(self.tokenizer)} tokens, the embedding"
                             f" {config.vocab_size} rows")
        settings = transformer / "sentence_bert_config.json"
        numbers = _table(settings) if settings.is_file() else {}
        self.lower = bool(numbers.get("do_lower_case"))
        room = config.max_position_embeddings
        length = numbers.get("max_seq_length") or room
        if not isinstance(length, int) or length < 3:
            raise ValueError(f"{settings}: max_seq_length is {length!r}, allowed are whole numbers from 3")
        self.max_length = min(length, room)
        self.dim = self.dense.out_features
        self._warn_cut = LimitedWarnings("cuts")

    @torch.no_grad()
    def __call__(self, text: list[str]) -> Float[Tensor, "b d"]:
        sentences = [sentence.lower() for sentence in text] if self.lower else text
        for sentence in sentences:
            if (length := len(self.tokenizer(sentence, verbose=False)["input_ids"])) > self.max_length:
                self._warn_cut(f"the text has {length} tokens, the text tower {self.path} takes {self.max_length}:"
                               f" the end of '{shown(sentence)}' is not seen")
        device = self.dense.weight.device
        tokens = self.tokenizer(sentences, padding=True, truncation=True, max_length=self.max_length,
                                return_tensors="pt").to(device)
        with torch.autocast(device.type, enabled=False):
            states = self.tower(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            mask = tokens["attention_mask"][..., None].float()  # (b, t, 1)
            mean = (states.last_hidden_state * mask).sum(1) / mask.sum(1)
            return self.activation(self.dense(mean))


def _table(path: Path, **wanted: Any) -> dict[str, Any]:
    """A JSON file's names and values; ValueError where it is missing, damaged, or says other than `wanted`."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist, and a sentence-transformers folder has one")
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}; names and values are wanted")
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ValueError(f"{path}: {key} is {found.get(key)!r}, allowed is {value!r}")
    return found


def _folders(folder: Path) -> dict[str, Path]:
    """Where the chain's parts lie; ValueError for other chains."""
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise ValueError(f"the text tower's folder {folder} {what} (looked at {folder.absolute()})")
    listed = folder / "modules.json"
    if not listed.is_file():
        raise ValueError(f"{listed} does not exist, and a sentence-transformers folder has one")
    try:
        parts = [(module["type"].rpartition(".")[2], str(module["path"])) for module in read_json(listed)]
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


def _state(folder: Path, prefix: str) -> tuple[dict[str, Tensor], Path]:
    """The weights of a part and their file; `prefix` is taken away where all names have it."""
    file = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise ValueError(f"{folder} has no weights: {' or '.join(WEIGHTS)} is wanted")
    held = state_dict_of(file)
    cut = prefix if all(name.startswith(prefix) for name in held) else ""
    state = {name.removeprefix(cut): value for name, value in held.items()}
    return {name: value for name, value in state.items() if name != COUNTED}, file


def _tower(folder: Path) -> DistilBertModel:
    numbers = _table(folder / "config.json", model_type="distilbert")
    refuse_code(numbers, folder / "config.json")
    weights, file = _state(folder, "distilbert.")
    with quietly():
        tower = build_to_fit(lambda: DistilBertModel(DistilBertConfig(**numbers)), weights, file, "config.json")
    load_weights(tower, weights, file)
    return tower


def _dense(folder: Path, width: int) -> tuple[nn.Linear, nn.Module]:
    path = folder / "config.json"
    config = _table(path, in_features=width)
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
    if activation not in ACTIVATIONS:
        raise ValueError(f"{path}: activation_function is {activation!r}, allowed are {', '.join(ACTIVATIONS)}")
    weights, file = _state(folder, "linear.")
    out = config.get("out_features")
    if not isinstance(out, int) or out != len(weights.get("weight", ())):
        raise ValueError(f"{path}: out_features is {out!r}, {file} has {len(weights.get('weight', ()))}")
    dense = nn.Linear(width, out, bias=bool(config.get("bias", True)))
    load_weights(dense, weights, file)
    return dense, ACTIVATIONS[activation]()


def _check_mean(path: Path) -> None:
    """ValueError for any pooling but the mean over the tokens."""
    config = _table(path)
    flags = sorted(key for key, value in config.items() if key.startswith("pooling_mode_") and value is True)
    named = config.get("pooling_mode", "mean")
    if flags not in ([], ["pooling_mode_mean_tokens"]) or named not in ("mean", ["mean"]):
        raise ValueError(f"{path}: the pooling is {', '.join(flags) or named}; allowed is the mean over the tokens"
                         " (pooling_mode_mean_tokens)")


def _tokenizer(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise ValueError(f"{folder} has no tokenizer: tokenizer.json or vocab.txt is wanted")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises nothing more special on damaged files
        raise ValueError(f"{folder}: its tokenizer cannot be read ({error})") from error
