"""A CLIP of two towers trained apart, in the folder of transformers' `VisionTextDualEncoderModel`; one way to read any
CLIP.

LiT (Zhai et al. 2022, arXiv 2111.07991) ties a locked tower to one that trains. Here the text tower is locked, a
sentence encoder whose vector of a caption is the mean over its tokens (Sentence-BERT, arXiv 1908.10084), while the
stock class takes BERT's pooler: tanh of a linear layer on the first token's state. So the folder's text tower has one
layer more (`with_mean_pooling`), which makes the first token's state the mean: queries and keys of 0 look at all tokens
alike, values are the states themselves. Folders of others, of a CLIP's image tower and a BERT, are read as well.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers.utils import cached_file

from t2i.checkpoint.building import build_to_fit, load_weights
from t2i.checkpoint.plain_files import read_json
from t2i.config.messages import quoted
from t2i.text_encoders.clip_folder import load_clip, quietly, write_folder
from t2i.text_encoders.fast_tokenizer import FastTokenizer
from t2i.text_encoders.frozen_tower import CONFIG, check_activation
from t2i.text_encoders.sentence_folder import KEPT, folder_files, sentence_tokenizer

MODEL_TYPE = "vision-text-dual-encoder"
POOLED = ("bert", "roberta", "xlm-roberta")  # their pooler reads the first token's state
EFFICIENTNET = "tf_efficientnet_lite0"  # timm's name of the one net of its that is built
TEXT_KEPT = (*KEPT, "mean_pooling_layer", "context_length", "projection_dim")
VISION_KEPT = {
    "clip_vision_model": ("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "hidden_act",
                          "num_attention_heads", "num_channels", "image_size", "patch_size", "layer_norm_eps"),
    "timm_wrapper": ("architecture", "hidden_size", "image_size"),
}  # fmt: skip
# The mean times this drowns the first token's own state, which the layer adds to it; float16 cannot hold it.
MEAN_SCALE = 1e6
# Small enough for tanh to be the identity; the projection takes it back.
POOLER_SCALE = 1e-4


def mean_features(pooled: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """What the projection takes: a caption's mean state of any length, by a layer norm without weights."""
    return F.layer_norm(pooled, pooled.shape[-1:], eps=1e-12)


def check_pooled(model_type: Any) -> None:
    """ValueError for sentence encoders whose class has no pooler, or attends by more than queries and keys."""
    if model_type not in POOLED:
        raise ValueError(f"model_type={quoted(model_type)} of a CLIP's text tower; {', '.join(POOLED)} are taken")


@torch.no_grad()
def with_mean_pooling(tower: PreTrainedModel, max_length: int) -> PreTrainedModel:
    """A copy whose `pooler_output` is `mean_features` of the mean over the last layer's states, times POOLER_SCALE."""
    config, layer = copy.deepcopy(tower.config), tower.config.num_hidden_layers
    config.update({"num_hidden_layers": layer + 1, "mean_pooling_layer": True, "context_length": max_length})
    found: Any = AutoModel.from_config(config).eval()
    held = {name: value.cpu() for name, value in tower.state_dict().items()}
    weights = {name: held.get(name, torch.zeros_like(value)) for name, value in found.state_dict().items()}
    identity, at = torch.eye(config.hidden_size), f"encoder.layer.{layer}."
    weights[f"{at}attention.self.value.weight"] = identity
    weights[f"{at}attention.output.dense.weight"] = MEAN_SCALE * identity
    for norm in ("attention.output.LayerNorm.weight", "output.LayerNorm.weight"):
        weights[at + norm] = torch.ones(config.hidden_size)
    weights["pooler.dense.weight"] = POOLER_SCALE * identity
    found.load_state_dict(weights)
    return found


class DualText(nn.Module):
    """The text side, under the names that it has in the whole, for `text_encoder=clip`: the sentence encoder's states,
    those of a pooling layer left out, and the projected vector. `config` counts the sentence encoder's layers."""

    def __init__(self, text_model: Any, projection_dim: int) -> None:
        super().__init__()
        self.text_model = text_model
        self.config = copy.deepcopy(text_model.config)
        self.config.num_hidden_layers -= bool(getattr(self.config, "mean_pooling_layer", False))
        self.config.projection_dim = projection_dim
        self.text_projection = nn.Linear(self.config.hidden_size, projection_dim, bias=False)

    @classmethod
    def of_config(cls, held: dict[str, Any]) -> DualText:
        """Not filled, of the `TEXT_KEPT` keys of its config."""
        check_pooled(held.get("model_type"))
        more = bool(held.get("mean_pooling_layer", False))
        config = _text_config(held | {"num_hidden_layers": held["num_hidden_layers"] + more})
        return cls(AutoModel.from_config(AutoConfig.for_model(**config)), held["projection_dim"])

    @classmethod
    def of_model(cls, model: VisionTextDualEncoderModel) -> DualText:
        found = cls(copy.deepcopy(model.text_model), model.projection_dim)
        found.text_projection.load_state_dict(model.text_projection.state_dict())
        return found

    @property
    def device(self) -> torch.device:
        return self.text_projection.weight.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> Any:
        output = self.text_model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        states = output.hidden_states[: self.config.num_hidden_layers + 1]
        return SimpleNamespace(last_hidden_state=states[-1], hidden_states=states,
                               text_embeds=self.text_projection(output.pooler_output))


def _text_config(held: dict[str, Any]) -> dict[str, Any]:
    return {key: held[key] for key in TEXT_KEPT if key in held}


def _empty(held: dict[str, Any]) -> VisionTextDualEncoderModel:
    """Not filled, of the kept keys of a folder's config; ValueError for towers that are not read."""
    text, vision = held.get("text_config"), held.get("vision_config")
    if not isinstance(text, dict) or not isinstance(vision, dict):
        raise ValueError("it does not tell text_config and vision_config")
    check_pooled(text.get("model_type"))
    kind = vision.get("model_type")
    if kind not in VISION_KEPT:
        raise ValueError(f"model_type={quoted(kind)} of a CLIP's image tower; {', '.join(VISION_KEPT)} are taken")
    if kind == "timm_wrapper" and vision.get("architecture") != EFFICIENTNET:  # timm takes hub names there too
        raise ValueError(f"architecture={quoted(vision.get('architecture'))} of timm; {EFFICIENTNET} is taken")
    for tower in (text, vision):
        check_activation(tower.get("hidden_act", "gelu"))
    kept = {key: vision[key] for key in ("model_type", *VISION_KEPT[kind]) if key in vision}
    return VisionTextDualEncoderModel(VisionTextDualEncoderConfig(
        text_config=_text_config(text), vision_config=kept, projection_dim=held.get("projection_dim", 512)))


def text_tokenizer(text: str, config: Any, source: str) -> FastTokenizer:
    """Of a tokenizer.json's text; a caption has as many tokens as in training, or as the tower has places for."""
    shift = config.pad_token_id + 1 if config.model_type in POOLED[1:] else 0
    room = config.max_position_embeddings - shift
    length = getattr(config, "context_length", room)
    if type(length) is not int or not 3 <= length <= room:
        raise ValueError(f"{source}: context_length={quoted(length)}; allowed are 3 to {room} tokens")
    return sentence_tokenizer(text, config, length, source)


def load_dual(path: str, allow_download: bool = False) -> tuple[VisionTextDualEncoderModel, FastTokenizer]:
    """In eval mode and float32, with its tokenizer; ValueError as `load_clip` has them. Weights are read from
    safetensors alone, and no name of a class or of code in a config counts."""
    files = folder_files(path, allow_download)
    # Of transformers before 5, and numbers that are only counted.
    weights = {name.replace("vision_model.vision_model.", "vision_model."): value
               for name, value in files.weights.items() if not name.endswith("embeddings.position_ids")}
    with quietly():
        model = build_to_fit(lambda: _empty(files.config), weights, files.source, CONFIG)
    load_weights(model, weights, files.source)
    tokenizer = text_tokenizer(files.tokenizer, model.text_model.config, files.source)
    return model.eval().requires_grad_(False), tokenizer


def is_dual(path: str, allow_download: bool = False) -> bool:
    """Whether the config of a folder or of a name on the hub is of such a CLIP; False where there is none."""
    file = Path(path) / CONFIG
    if not Path(path).is_dir():
        try:
            found = cached_file(path, CONFIG, local_files_only=not allow_download)
        except (OSError, ValueError):  # what `load_clip` has a message for
            return False
        file = Path(str(found))
    if not file.is_file():
        return False
    held = read_json(file)
    return isinstance(held, dict) and held.get("model_type") == MODEL_TYPE


def load_towers(
    path: str, allow_download: bool = False
) -> tuple[CLIPModel | VisionTextDualEncoderModel, FastTokenizer]:
    """Any CLIP in eval mode and float32 with its tokenizer, from a local folder or by its name on the hub."""
    return load_dual(path, allow_download) if is_dual(path, allow_download) else load_clip(path, allow_download)


def text_features(
    model: CLIPModel | VisionTextDualEncoderModel, tokenizer: FastTokenizer, text: Sequence[str]
) -> Float[Tensor, "b d"]:
    """Projected, not normalised."""
    ids, mask = tokenizer(list(text))
    # CLIP's tower is causal, with padding behind: no mask needed.
    more = {"attention_mask": mask.long().to(model.device)} if isinstance(model, VisionTextDualEncoderModel) else {}
    return model.get_text_features(input_ids=ids.to(model.device), **more).pooler_output


def save_dual(
    towers: nn.Module, tower: PreTrainedModel, tokenizer: FastTokenizer, folder: str | Path, mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Write a folder that `VisionTextDualEncoderModel.from_pretrained` reads, whole or not at all.

    Args:
        towers: `vision_model`, `visual_projection`, `text_projection` (of `mean_features`) and `logit_scale`.
        tower: the sentence encoder.
    """
    with quietly():
        text = with_mean_pooling(tower, tokenizer.max_length)
    held = {name: value.detach().float().cpu() for name, value in towers.state_dict().items()}
    held["text_projection.weight"] = held["text_projection.weight"] / POOLER_SCALE
    vision: Any = towers.vision_model
    model = VisionTextDualEncoderModel(VisionTextDualEncoderConfig(
        text_config=text.config.to_dict(), vision_config=vision.config.to_dict(),
        projection_dim=len(held["text_projection.weight"])))
    model.load_state_dict(held | {f"text_model.{name}": value for name, value in text.state_dict().items()})
    words = Tokenizer.from_str(tokenizer.to_json())
    fast = PreTrainedTokenizerFast(tokenizer_object=words, pad_token=words.id_to_token(tokenizer.pad),
                                   model_max_length=tokenizer.max_length)
    write_folder(model, fast, vision.config.image_size, folder, mean, std)
