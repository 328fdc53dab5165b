"""The text tower of any CLIP as a frozen text encoder: a published one by hub name or folder, or our own.

CLIP: Radford et al. 2021, arXiv 2103.00020. States are those of one hidden layer for every token of the
caption, as latent diffusion conditions on them (arXiv 2112.10752); `pooled` is the projected embedding that
CLIP compares with pictures, not normalised. Of a CLIP over a sentence encoder (`t2i.text_encoders.dual_encoder`) states
are that encoder's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection

from t2i.checkpoint.registry import register
from t2i.text_encoders.clip_folder import CaptionTokenizer, check_fit, text_config
from t2i.text_encoders.dual_encoder import POOLED, TEXT_KEPT, DualText, load_towers, text_tokenizer
from t2i.text_encoders.fast_tokenizer import FastTokenizer
from t2i.text_encoders.frozen_tower import FrozenTower, check_activation


@register("text_encoder", places=("path",))
class CLIPText(FrozenTower):
    """Captions -> TextEmbedding, in float32 and without gradient, on the device it was moved to.

    `layer` -1: the last layer after the final layer norm; any other value indexes the hidden states as
    transformers counts them (0 the token embeddings, n the last of n layers before its norm, -2 the one
    before the last).
    """

    kept: ClassVar[tuple[str, ...]] = (
        "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range",
        "initializer_factor", "pad_token_id", "bos_token_id", "eos_token_id",
        *TEXT_KEPT)  # fmt: skip

    def __init__(self, path: str, layer: int = -1, allow_download: bool = False) -> None:
        model, tokenizer = load_towers(path, allow_download)
        tower: CLIPTextModelWithProjection | DualText
        if isinstance(model, CLIPModel):
            config = text_config(model)
            config.projection_dim = model.config.projection_dim
            tower = CLIPTextModelWithProjection(config)
            tower.load_state_dict({name: value for name, value in model.state_dict().items()
                                   if name.startswith(("text_model.", "text_projection."))})
        else:
            tower = DualText.of_model(model)
        # Asked now: a folder that is moved away later does not turn its path into a hub name.
        self._set(tower, tokenizer, {"path": path, "layer": layer, "allow_download": allow_download},
                  Path(path).is_dir())

    def _set(self, tower: Any, tokenizer: Any, arguments: dict[str, Any], local: bool) -> None:
        super()._set(tower, tokenizer, arguments, local)
        self.pooled_dim = tower.config.projection_dim

    @staticmethod
    def tower_of(held: dict[str, Any]) -> Any:
        if held.get("model_type") in POOLED:
            return DualText.of_config(held)
        config = CLIPTextConfig(**{key: held[key] for key in CLIPText.kept if key in held})
        check_activation(config.hidden_act)
        return CLIPTextModelWithProjection(config)

    @staticmethod
    def tokenizer_of(text: str, tower: Any, arguments: dict[str, Any]) -> FastTokenizer:
        if isinstance(tower, DualText):
            return text_tokenizer(text, tower.config, f"path={arguments['path']!r}")
        tokenizer = CaptionTokenizer.from_json(text, tower.config.max_position_embeddings)
        check_fit(tokenizer, tower.config, arguments["path"])
        return tokenizer

    @staticmethod
    def embeddings_of(tower: Any) -> torch.nn.Module:
        return tower.text_model.embeddings

    def _encode(self, text: list[str], pooled: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """A caption's states do not depend on its batch: CLIP's tower is causal, so padding behind a caption is not
        seen; to a sentence encoder it is hidden."""
        if not text:
            raise ValueError("text=[]: give at least one caption")
        ids, mask = self.tokenizer(text)
        mask = mask.to(self.device, non_blocking=True)
        more = {"attention_mask": mask.long()} if isinstance(self.tower, DualText) else {}
        states, output = self._run(ids.to(self.device, non_blocking=True), pooled, **more)
        return states * mask[..., None], mask, output.text_embeds if pooled else None
