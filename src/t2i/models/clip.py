"""A small CLIP trained from scratch on the data at hand (Radford et al. 2021, arXiv 2103.00020).

Deviations: sizes for minutes on a CPU; a byte-level BPE trained on the data's own captions; GELU in its exact
form (one kernel); equal captions in a batch are not negatives of each other; negatives are those of
the global batch. The result is an ordinary Hugging Face folder, which `text_encoder=clip` reads like any
published CLIP. With `text_tower: bilstm` the text side is a BiLSTM over words as in DAMSM (Xu et al. 2018, arXiv
1711.10485), of which `text_encoder=bilstm` reads the folder; DAMSM's losses on words and regions are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from t2i.checkpoint.registry import register
from t2i.losses.contrastive import caption_groups, contrastive, retrieval
from t2i.models import optimizers
from t2i.models.base import BaseModule, check_finite
from t2i.models.distributed import all_gather_objects, all_gather_rows
from t2i.text_encoders import bilstm_folder
from t2i.text_encoders.bilstm_folder import BiLSTM, WordTokenizer
from t2i.text_encoders.clip_folder import SPECIAL, CaptionTokenizer, preprocess, save_folder, train_tokenizer
from t2i.types import Batch

MEAN = STD = (0.5, 0.5, 0.5)
MAX_SCALE = 100.0
CHECKPOINT_KEY = "clip_tokenizer"


class WordTowers(nn.Module):
    """CLIP's image tower, under the names it has in `CLIPModel`, beside a BiLSTM and its projection."""

    def __init__(self, vision: CLIPVisionConfig, words: BiLSTM, attention: str) -> None:
        super().__init__()
        image = CLIPVisionModelWithProjection(vision)
        image.set_attn_implementation(attention)
        self.vision_model, self.visual_projection = image.vision_model, image.visual_projection
        self.words = words
        self.text_projection = nn.Linear(2 * words.hidden_size, vision.projection_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))  # CLIP's start


@register("model")
class CLIP(BaseModule):
    """Text and image towers, trained to find each other's partner in the batch.

    Logs train/loss, val/loss, the temperature's inverse (`scale`), and top-1 retrieval in both directions:
    within the validation batches (`val/batch_*`) and among the whole validation set (`val/*`); equal captions
    count as correct.

    Args:
        text_tower: "transformer" is CLIP's own. With "bilstm" words are embedded in 300 numbers and `text_width` is
            that of a word's state, half of it a direction (DAMSM: 256); `text_layers` and `text_heads` are not used.
        vocab_size: entries of the tokenizer; with "bilstm" the embedding has so many rows even if there are fewer
            words.
        context_length: tokens a caption; with "bilstm" words.
    """

    kind = "clip"

    def __init__(
        self,
        image_size: int = 48,
        patch_size: int = 8,
        width: int = 128,
        num_layers: int = 3,
        num_heads: int = 4,
        text_width: int = 128,
        text_layers: int = 2,
        text_heads: int = 4,
        embed_dim: int = 128,
        vocab_size: int = 512,
        context_length: int = 64,
        learning_rate: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        weight_decay: float = 0.1,
        warmup_steps: int = 50,
        max_steps: int = 1000,
        optimizer: Literal["adamw", "muon"] = "adamw",
        muon_learning_rate: float = 0.02,
        text_tower: Literal["transformer", "bilstm"] = "transformer",
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size={image_size} is no multiple of patch_size={patch_size}")
        if text_tower not in ("transformer", "bilstm"):
            raise ValueError(f"text_tower={text_tower!r}: one of transformer, bilstm is needed")
        self.by_words = text_tower == "bilstm"
        if width % num_heads:
            raise ValueError(f"width={width} is no multiple of num_heads={num_heads}")
        if not self.by_words and text_width % text_heads:
            raise ValueError(f"text_width={text_width} is no multiple of text_heads={text_heads}")
        if self.by_words and text_width % 2:
            raise ValueError(f"text_width={text_width} is odd: half of it is a direction of text_tower=bilstm")
        if context_length < 3:
            raise ValueError(f"context_length={context_length}: at least 3 (start, one token, end)")
        self.image_size, self.vocab_size, self.context_length = image_size, vocab_size, context_length
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.warmup_steps, self.max_steps = warmup_steps, max_steps
        self.optimizer, self.muon_learning_rate = optimizer, muon_learning_rate
        start, end, pad = range(len(SPECIAL))
        vision: dict[str, Any] = {
            "hidden_size": width, "intermediate_size": 4 * width, "projection_dim": embed_dim,
            "num_hidden_layers": num_layers, "num_attention_heads": num_heads, "image_size": image_size,
            "patch_size": patch_size, "hidden_act": "gelu",
        }  # fmt: skip
        # A step of the defaults in bf16 on a CPU: 0.19 s of CPU time eager, 0.36 s fused (in float32 even).
        longest = max((image_size // patch_size) ** 2 + 1, 0 if self.by_words else context_length)
        attention = "eager" if longest <= 128 else "sdpa"
        self.clip: CLIPModel | WordTowers
        if self.by_words:
            words = BiLSTM(vocab_size, hidden_size=text_width // 2)
            self.clip = WordTowers(CLIPVisionConfig(**vision), words, attention)
        else:
            text = {
                "vocab_size": vocab_size, "hidden_size": text_width, "intermediate_size": 4 * text_width,
                "projection_dim": embed_dim, "num_hidden_layers": text_layers, "num_attention_heads": text_heads,
                "max_position_embeddings": context_length, "hidden_act": "gelu", "bos_token_id": start,
                "eos_token_id": end, "pad_token_id": pad,
            }  # fmt: skip
            self.clip = CLIPModel(CLIPConfig(projection_dim=embed_dim, text_config=text, vision_config=vision))
            self.clip.set_attn_implementation(attention)
        self.tokenizer: CaptionTokenizer | WordTokenizer | None = None
        self._validated: list[tuple[Tensor, Tensor, list[str]]] = []

    def nets(self) -> list[nn.Module]:
        if isinstance(self.clip, WordTowers):  # a packed recurrence is not traced
            return [self.clip.vision_model]
        return [self.clip.vision_model, self.clip.text_model]

    def prepare(self, captions: Iterable[str]) -> None:
        """Train the tokenizer on the data's captions; once before training, not after loading a checkpoint."""
        if self.by_words:
            self.tokenizer = WordTokenizer.train(captions, self.vocab_size, self.context_length)
        else:
            self._use_tokenizer(train_tokenizer(captions, self.vocab_size).to_str())

    def _use_tokenizer(self, text: str) -> None:
        self.tokenizer = (WordTokenizer.from_json(text) if self.by_words else
                          CaptionTokenizer.from_json(text, self.context_length))

    def _trained_tokenizer(self) -> CaptionTokenizer | WordTokenizer:
        if self.tokenizer is None:
            raise ValueError("this CLIP has no tokenizer yet: call prepare(captions), or load a checkpoint")
        return self.tokenizer

    def encode_image(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Embeddings, not normalised, of pictures in [-1, 1]; other sizes than `image_size` are resized."""
        pixels = preprocess(images, self.image_size, MEAN, STD)
        return self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)

    def encode_text(self, text: list[str]) -> Float[Tensor, "b d"]:
        """Embeddings, not normalised."""
        ids, mask = self._trained_tokenizer()(text)
        if isinstance(self.clip, WordTowers):
            return self.clip.text_projection(self.clip.words(ids.to(self.device), mask)[1])
        # causal tower, padding behind: no mask needed
        return self.clip.get_text_features(input_ids=ids.to(self.device)).pooler_output

    def _loss(self, image: Tensor, text: Tensor, captions: list[str]) -> Tensor:
        return contrastive(image, text, self.clip.logit_scale.exp(), caption_groups(captions).to(image.device))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Of the global batch: the negatives do not depend on the number of ranks.
        image, text = all_gather_rows(self.encode_image(batch.image)), all_gather_rows(self.encode_text(batch.text))
        loss = self._loss(image, text, all_gather_objects(batch.text))
        check_finite({"loss": loss}, self.global_step, batch.key)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.text))
        self.log("train/scale", self.clip.logit_scale.detach().exp(), batch_size=len(batch.text))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        # After the step rather than in the forward, where the clamped scale would get no gradient any more.
        with torch.no_grad():
            self.clip.logit_scale.clamp_(0.0, math.log(MAX_SCALE))

    def on_validation_epoch_start(self) -> None:
        self._validated = []

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        image, text = self.encode_image(batch.image).float().cpu(), self.encode_text(batch.text).float().cpu()
        rows = all_gather_objects(list(zip(image, text, batch.text, strict=True)))
        image, text = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        captions = [row[2] for row in rows]
        loss = self._loss(image.to(self.device), text.to(self.device), captions)
        self.log("val/loss", loss, batch_size=len(rows), sync_dist=True)
        for name, share in retrieval(image, text, caption_groups(captions)).items():
            self.log(f"val/batch_{name}", share, batch_size=len(rows), sync_dist=True)
        self._validated.append((image, text, captions))

    def on_validation_epoch_end(self) -> None:
        if not self._validated:
            return
        image = torch.cat([part[0] for part in self._validated])
        text = torch.cat([part[1] for part in self._validated])
        captions = [caption for part in self._validated for caption in part[2]]
        self._validated = []
        for name, share in retrieval(image, text, caption_groups(captions)).items():
            self.log(f"val/{name}", share, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Linear warm-up, then half a cosine down to 0 at `max_steps`."""
        optimizer = optimizers.make(self.clip, self.optimizer, self.learning_rate, self.betas, self.weight_decay,
                                    self.muon_learning_rate)
        return optimizers.with_warmup_cosine(optimizer, self.warmup_steps, self.max_steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = self._trained_tokenizer().to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._use_tokenizer(checkpoint[CHECKPOINT_KEY])

    def export(self, folder: str | Path) -> None:
        """Write the Hugging Face folder that `text_encoder=clip text_encoder.path=<folder>` reads.

        With `text_tower` "bilstm": the folder that `text_encoder=bilstm` reads, and nothing else. It holds the BiLSTM
        and its words; the image tower and the projections, of no use to conditioning, stay in the checkpoint.
        """
        tokenizer = self._trained_tokenizer()
        if isinstance(self.clip, WordTowers):
            assert isinstance(tokenizer, WordTokenizer)
            bilstm_folder.save_folder(self.clip.words, tokenizer, folder)
        else:
            save_folder(self.clip, tokenizer.to_json(), folder, MEAN, STD)

    def on_fit_end(self) -> None:
        # Not on_train_end: that one is not called when a finished run is started again.
        if self.trainer.is_global_zero:
            self.export(Path(self.trainer.default_root_dir) / ("bilstm" if self.by_words else "hf"))
