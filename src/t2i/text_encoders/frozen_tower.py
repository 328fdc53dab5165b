"""What the frozen transformers of captions share: one layer's states, their hash, and their part of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.activations import ACT2FN

from t2i.checkpoint.building import build_to_fit, load_weights
from t2i.checkpoint.weights_hash import weights_hash
from t2i.config.messages import quoted
from t2i.text_encoders.clip_folder import quietly
from t2i.text_encoders.fast_tokenizer import FastTokenizer
from t2i.types import TextEmbedding, TextStates

CONFIG, TOKENIZER = "config.json", "tokenizer.json"


class FrozenTower:
    """Captions -> TextEmbedding, in float32 and without gradient, on the device it was moved to.

    A plain object, no nn.Module, so that a frozen encoder cannot leak into its owner's weights.

    A subclass says which keys of a config its tower is made of (`kept`; a file's config says more, among it names of
    code to fetch: that is left) and how tower and tokenizer are made of a checkpoint's texts.
    """

    kept: ClassVar[tuple[str, ...]]
    dim: int
    pooled_dim: int
    max_length: int

    @staticmethod
    def tower_of(held: dict[str, Any]) -> PreTrainedModel:
        """A tower, not filled, of the `kept` keys of a config."""
        raise NotImplementedError

    @staticmethod
    def tokenizer_of(text: str, tower: PreTrainedModel, arguments: dict[str, Any]) -> FastTokenizer:
        """Of a tokenizer.json's text, held against the tower; `arguments` are the encoder's own."""
        raise NotImplementedError

    def _set(self, tower: PreTrainedModel, tokenizer: FastTokenizer, arguments: dict[str, Any], local: bool) -> None:
        """`local`: it came from a folder, or out of a checkpoint, and a checkpoint carries it whole."""
        layers, layer = tower.config.num_hidden_layers, arguments["layer"]
        if not -layers - 1 <= layer <= layers:
            raise ValueError(f"layer={layer}: the text tower has {layers} layers, allowed are {-layers - 1} to"
                             f" {layers}")
        self.path, self.layer, self.arguments, self._local = arguments["path"], layer, arguments, local
        self.tower, self.tokenizer = tower.eval().requires_grad_(False), tokenizer
        self.dim, self.max_length = tower.config.hidden_size, tokenizer.max_length

    def to(self, device: torch.device | str) -> Self:
        self.tower.to(device)  # type: ignore[arg-type]  # transformers' types know no text
        return self

    @property
    def device(self) -> torch.device:
        return self.tower.device

    @staticmethod
    def embeddings_of(tower: Any) -> torch.nn.Module:
        """What makes the first hidden states of token ids."""
        raise NotImplementedError

    def lower_tower(self, layers: int) -> Any:
        """Over the same weights one whose last states are those of so many layers; None where there is none such."""
        return None

    def _encode(self, text: list[str], pooled: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """States, mask, and where they are asked for pooled states."""
        raise NotImplementedError

    @torch.no_grad()
    def __call__(self, text: list[str]) -> TextEmbedding:
        """States (b, t, dim), t the longest caption of the batch; 0 at padding, where `mask` is False."""
        states, mask, pooled = self._encode(text, True)
        return TextEmbedding(states, mask, cast(Tensor, pooled))

    @torch.no_grad()
    def states(self, text: list[str]) -> TextStates:
        """As `__call__`; for word embeddings (layer 0) the tower does not run."""
        return TextStates(*self._encode(text, False)[:2])

    def not_seen(self, caption: str) -> str | None:
        """What of a caption is not taken, in a line; None where all is."""
        return self.tokenizer.not_seen(caption)

    def _run(self, ids: Tensor, pooled: bool, **inputs: Tensor) -> tuple[Tensor, Any]:
        """The chosen layer's states, and all that the tower gives; without `pooled` perhaps nothing else."""
        layers, last = self.tower.config.num_hidden_layers, self.layer == -1
        with torch.autocast(self.device.type, enabled=False):
            if not pooled and self.layer in (0, -layers - 1):
                return self.embeddings_of(self.tower)(input_ids=ids), None
            if not pooled and (lower := self.lower_tower(self.layer % (layers + 1))) is not None:
                return lower(input_ids=ids, **inputs).last_hidden_state, None
            output = self.tower(input_ids=ids, output_hidden_states=not last, **inputs)
        return output.last_hidden_state if last else output.hidden_states[self.layer], output

    def hash(self) -> str:
        """Sixteen hex digits of what decides about a caption's states: weights, words and layer."""
        return weights_hash(self.tower, begin=repr((self.layer, self.tokenizer.to_json())))

    def part(self) -> dict[str, Any]:
        """What a checkpoint carries: a local folder's tower whole, one from the hub by its name alone."""
        cls = type(self)
        config = {"_target_": f"{cls.__module__}.{cls.__qualname__}", **self.arguments}
        if not self._local:
            return {"config": config}
        held = self.tower.config.to_dict()
        return {
            "config": config,
            "state_dict": {k: v.detach().cpu().clone() for k, v in self.tower.state_dict().items()},
            "files": {
                CONFIG: json.dumps({key: held[key] for key in self.kept if key in held}),
                TOKENIZER: self.tokenizer.to_json(),
            },
        }

    @classmethod
    def from_part(cls, part: dict[str, Any], source: str | Path) -> Self:
        """The encoder that `part` of the file `source` describes; the folder it came from need not exist any more."""
        arguments = {key: value for key, value in part["config"].items() if key != "_target_"}
        if "files" not in part:
            return cls(**arguments)
        text, weights = part["files"][CONFIG], part["state_dict"]
        with quietly():
            tower = build_to_fit(lambda: cls.tower_of(json.loads(text)), weights, source,
                                 f"t2i.parts.text_encoder.files.{CONFIG}")
        load_weights(tower, weights, source)
        encoder = cls.__new__(cls)
        encoder._set(tower, cls.tokenizer_of(part["files"][TOKENIZER], tower, arguments), arguments, local=True)
        return encoder


def check_activation(name: Any) -> None:
    """ValueError where a config names an activation that transformers lacks."""
    if name not in ACT2FN:
        raise ValueError(f"hidden_act={quoted(name)} is no activation that is known")
