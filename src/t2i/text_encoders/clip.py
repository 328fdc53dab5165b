"""The text tower of any CLIP as a frozen text encoder: a published one by hub name or folder, or our own.

CLIP: Radford et al. 2021, arXiv 2103.00020. States are those of one hidden layer for every token of the
caption, as latent diffusion conditions on them (arXiv 2112.10752); `pooled` is the projected embedding that
CLIP compares with pictures, not normalised.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
from transformers.activations import ACT2FN

from t2i.checkpoint.building import build_to_fit, load_weights
from t2i.checkpoint.registry import register
from t2i.checkpoint.weights_hash import weights_hash
from t2i.config.messages import quoted
from t2i.text_encoders.clip_folder import CaptionTokenizer, check_fit, load_clip, quietly, text_config
from t2i.types import TextEmbedding

# What decides about a text tower. A file's config says more, among it names of code to fetch: that is left.
TOWER = ("vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
         "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
         "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id")


def _tower_config(text: str) -> CLIPTextConfig:
    """The config of a text tower that a file carries as JSON; ValueError where it is none."""
    held = json.loads(text)
    config = CLIPTextConfig(**{key: held[key] for key in TOWER if key in held})
    if config.hidden_act not in ACT2FN:
        raise ValueError(f"hidden_act={quoted(config.hidden_act)} is no activation that is known")
    return config


@register("text_encoder", places=("path",))
class CLIPText:
    """Captions -> TextEmbedding, in float32 and without gradient, on the device it was moved to.

    `layer` -1: the last layer after the final layer norm; any other value indexes the hidden states as
    transformers counts them (0 the token embeddings, n the last of n layers before its norm, -2 the one
    before the last). A plain object, no nn.Module, so that a frozen encoder cannot leak into its owner's
    weights.
    """

    def __init__(self, path: str, layer: int = -1, allow_download: bool = False) -> None:
        model, tokenizer = load_clip(path, allow_download)
        config = text_config(model)
        config.projection_dim = model.config.projection_dim
        tower = CLIPTextModelWithProjection(config)
        tower.load_state_dict({name: value for name, value in model.state_dict().items()
                               if name.startswith(("text_model.", "text_projection."))})
        self._set(tower, tokenizer, path, layer, allow_download)
        # Asked now: a folder that is moved away later does not turn its path into a hub name.
        self._local = Path(path).is_dir()

    def _set(
        self, tower: CLIPTextModelWithProjection, tokenizer: CaptionTokenizer, path: str, layer: int,
        allow_download: bool,
    ) -> None:
        layers = tower.config.num_hidden_layers
        if not -layers - 1 <= layer <= layers:
            raise ValueError(f"layer={layer}: the text tower has {layers} layers, allowed are {-layers - 1} to"
                             f" {layers}")
        self.path, self.layer, self.allow_download = path, layer, allow_download
        self.tower, self.tokenizer = tower.eval().requires_grad_(False), tokenizer
        self.dim, self.pooled_dim = tower.config.hidden_size, tower.config.projection_dim
        self.max_length = tokenizer.max_length

    def to(self, device: torch.device | str) -> CLIPText:
        self.tower.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.tower.device

    @torch.no_grad()
    def __call__(self, text: list[str]) -> TextEmbedding:
        """States (b, t, dim), t the longest caption of the batch; 0 at padding, where `mask` is False.

        A caption's states do not depend on its batch: the tower is causal, so padding behind a caption is not
        seen.
        """
        if not text:
            raise ValueError("text=[]: give at least one caption")
        ids, mask = self.tokenizer(text)
        ids, mask = ids.to(self.device), mask.to(self.device)
        last = self.layer == -1
        with torch.autocast(self.device.type, enabled=False):
            output = self.tower(input_ids=ids, output_hidden_states=not last)
        states = output.last_hidden_state if last else output.hidden_states[self.layer]
        return TextEmbedding(states * mask[..., None], mask, output.text_embeds)

    def hash(self) -> str:
        """Sixteen hex digits of what decides about a caption's states: weights, words and layer."""
        return weights_hash(self.tower, begin=repr((self.layer, self.tokenizer.to_json())))

    def part(self) -> dict[str, Any]:
        """What a checkpoint carries: a local folder's tower whole, one from the hub by its name alone."""
        config = {"_target_": "t2i.text_encoders.clip.CLIPText", "path": self.path, "layer": self.layer,
                  "allow_download": self.allow_download}
        if not self._local:
            return {"config": config}
        return {
            "config": config,
            "state_dict": {k: v.detach().cpu().clone() for k, v in self.tower.state_dict().items()},
            "files": {
                "config.json": json.dumps({key: getattr(self.tower.config, key) for key in TOWER}),
                "tokenizer.json": self.tokenizer.to_json(),
            },
        }

    @classmethod
    def from_part(cls, part: dict[str, Any], source: str | Path) -> CLIPText:
        """The encoder that `part` of the file `source` describes; the folder it came from need not exist any more."""
        arguments = {key: value for key, value in part["config"].items() if key != "_target_"}
        if "files" not in part:
            return cls(**arguments)
        text, weights = part["files"]["config.json"], part["state_dict"]
        with quietly():
            tower = build_to_fit(lambda: CLIPTextModelWithProjection(_tower_config(text)), weights, source,
                            "t2i.parts.text_encoder.files.config.json")
        load_weights(tower, weights, source)
        config = tower.config
        tokenizer = CaptionTokenizer.from_json(part["files"]["tokenizer.json"], config.max_position_embeddings)
        check_fit(tokenizer, config, arguments["path"])
        encoder = cls.__new__(cls)
        encoder._set(tower, tokenizer, **arguments)
        encoder._local = True
        return encoder
