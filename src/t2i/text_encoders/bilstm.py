"""A BiLSTM over words as a frozen text encoder: one that `model=clip model.text_tower=bilstm` trained, or DAMSM's.

DAMSM: Xu et al. 2018, arXiv 1711.10485 (`t2i.convert.damsm` reads its files). States are a word's two directions;
`pooled` is the sentence, the last state of either direction.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from t2i.checkpoint.registry import register
from t2i.checkpoint.weights_hash import weights_hash
from t2i.text_encoders.bilstm_folder import (
    CONFIG,
    VOCABULARY,
    BiLSTM,
    WordTokenizer,
    check_fit,
    describe,
    from_weights,
    load_folder,
    save_folder,
)
from t2i.text_encoders.limited_warnings import LimitedWarnings
from t2i.types import TextEmbedding


def _unknown(words: list[str]) -> str:
    several = len(words) > 1
    return (f"the text encoder does not know the word{'s' if several else ''} {', '.join(map(repr, words))}:"
            f" {'they are' if several else 'it is'} left out")


@register("text_encoder", places=("path",))
class BiLSTMText:
    """Captions -> TextEmbedding, in float32 and without gradient, on the device it was moved to.

    A plain object, no nn.Module, so that a frozen encoder cannot leak into its owner's weights.
    """

    def __init__(self, path: str) -> None:
        self._set(*load_folder(path), path)

    def _set(self, tower: BiLSTM, tokenizer: WordTokenizer, path: str) -> None:
        self.path, self.tower, self.tokenizer = path, tower.eval().requires_grad_(False), tokenizer
        self.dim = self.pooled_dim = 2 * tower.hidden_size
        self.max_length = tokenizer.max_length
        self._unknown: set[str] = set()
        self._warn_unknown = LimitedWarnings("words")

    @classmethod
    def of(cls, tower: BiLSTM, tokenizer: WordTokenizer, path: str) -> BiLSTMText:
        """From a network and its words; `path` says where they came from. The network is frozen."""
        check_fit(tower, tokenizer, path)
        encoder = cls.__new__(cls)
        encoder._set(tower, tokenizer, path)
        return encoder

    def save(self, folder: str | Path) -> None:
        """Write the folder that `text_encoder=bilstm text_encoder.path=<folder>` reads."""
        save_folder(self.tower, self.tokenizer, folder)

    def to(self, device: torch.device | str) -> BiLSTMText:
        self.tower.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.tower.encoder.weight.device

    @torch.no_grad()
    def __call__(self, text: list[str]) -> TextEmbedding:
        """States (b, t, dim), t the most words of a caption; 0 at padding, where `mask` is False.

        A caption's states do not depend on its batch. A caption without known words has the one state of '<end>'.
        """
        if not text:
            raise ValueError("text=[]: give at least one caption")
        # An unknown word has no effect at all, which its author would otherwise look for in vain.
        for word in (word for caption in text for word in self.tokenizer.look_up(caption)[1]):
            if word not in self._unknown:
                self._unknown.add(word)
                self._warn_unknown(_unknown([word]))
        ids, mask = self.tokenizer(text)
        states, sentence = self.tower(ids.to(self.device, non_blocking=True), mask)
        return TextEmbedding(states, mask.to(self.device, non_blocking=True), sentence)

    def states(self, text: list[str]) -> TextEmbedding:
        """As `__call__`: the sentence's state comes with the words'."""
        return self(text)

    def not_seen(self, caption: str) -> str | None:
        """What of a caption is not taken, in a line; None where all is."""
        known, unknown = self.tokenizer.look_up(caption)
        found = [_unknown(list(dict.fromkeys(unknown)))] if unknown else []
        found += [self.tokenizer.cut(known)] if len(known) > self.max_length else []
        return "; ".join(found) or None

    def hash(self) -> str:
        """Sixteen hex digits of what decides about a caption's states: weights and words."""
        return weights_hash(self.tower, begin=self.tokenizer.to_json())

    def part(self) -> dict[str, Any]:
        """What a checkpoint carries: weights and words, so that the folder is not needed any more."""
        return {
            "config": {"_target_": "t2i.text_encoders.bilstm.BiLSTMText", "path": self.path},
            "state_dict": {k: v.detach().cpu().clone() for k, v in self.tower.state_dict().items()},
            "files": {CONFIG: describe(self.tower), VOCABULARY: self.tokenizer.to_json()},
        }

    @classmethod
    def from_part(cls, part: dict[str, Any], source: str | Path) -> BiLSTMText:
        """The encoder that `part` of the file `source` describes; the folder it came from need not exist any more."""
        path = part["config"]["path"]
        tokenizer = WordTokenizer.from_json(part["files"][VOCABULARY])
        return cls.of(from_weights(part["state_dict"], path), tokenizer, path)
