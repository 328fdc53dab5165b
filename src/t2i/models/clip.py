"""A small CLIP trained from scratch on the data at hand (Radford et al. 2021, arXiv 2103.00020).

Deviations: sizes for minutes on a CPU; a byte-level BPE trained on the data's own captions; GELU in its exact
form (one kernel); equal captions in a batch are not negatives of each other; negatives are those of
the global batch. The result is an ordinary Hugging Face folder, which `text_encoder=clip` reads like any
published CLIP. With `text_tower: bilstm` the text side is a BiLSTM over words as in DAMSM (Xu et al. 2018, arXiv
1711.10485), of which `text_encoder=bilstm` reads the folder; DAMSM's losses on words and regions are left out. With
`text_tower: sentence` it is a frozen sentence encoder under a trained projection, and the image tower may be a
pretrained one, locked as in LiT (Zhai et al. 2022, arXiv 2111.07991); `t2i.text_encoders.dual_encoder` has the folder.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
    TimmWrapperConfig,
    TimmWrapperModel,
)

from t2i.checkpoint.registry import register
from t2i.losses.contrastive import caption_groups, contrastive, retrieval
from t2i.losses.perceptual import EfficientNetLite0
from t2i.models import optimizers
from t2i.models.base import BaseModule
from t2i.models.distributed import all_gather_objects, all_gather_rows
from t2i.text_encoders import bilstm_folder
from t2i.text_encoders.bilstm_folder import BiLSTM, WordTokenizer
from t2i.text_encoders.clip_folder import SPECIAL, CaptionTokenizer, preprocess, save_folder, train_tokenizer
from t2i.text_encoders.dual_encoder import EFFICIENTNET, check_pooled, mean_features, save_dual
from t2i.types import Batch

MEAN = STD = (0.5, 0.5, 0.5)
EFFICIENTNET_MEAN, EFFICIENTNET_STD = (127 / 255,) * 3, (128 / 255,) * 3  # bytes, less 127, by 128
MAX_SCALE = 100.0
CHECKPOINT_KEY = "clip_tokenizer"
# Vectors of locked towers that a run keeps: of 384 numbers, 150 MB, and of 1,280, 256 MB.
CACHED_CAPTIONS, CACHED_IMAGES = 100_000, 50_000
CHUNK = 32  # pictures that a locked tower takes at once
TEXT_TOWERS = ("transformer", "bilstm", "sentence")
IMAGE_TOWERS = ("vit", "efficientnet")


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


class SentenceTowers(nn.Module):
    """An image tower, under the names of `VisionTextDualEncoderModel`, beside the projection of the vectors of a
    sentence encoder that lies outside.

    Args:
        text_dim: numbers of such a vector.
    """

    def __init__(self, vision_model: CLIPVisionModel | TimmWrapperModel, text_dim: int, embed_dim: int) -> None:
        super().__init__()
        self.vision_model: Any = vision_model
        self.visual_projection = nn.Linear(vision_model.config.hidden_size, embed_dim, bias=False)
        self.text_projection = nn.Linear(text_dim, embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def train(self, mode: bool = True) -> SentenceTowers:
        """A locked EfficientNet's norms keep ImageNet's statistics."""
        super().train(mode)
        if isinstance(self.vision_model, TimmWrapperModel):
            self.vision_model.eval()
        return self


def efficientnet(image_size: int) -> TimmWrapperModel:
    """EfficientNet-Lite0 (arXiv 1905.11946) as transformers wraps timm's, locked, not filled."""
    config = TimmWrapperConfig(architecture=EFFICIENTNET)
    config.update({"hidden_size": EfficientNetLite0.dim, "image_size": image_size})  # which the class around it reads
    return TimmWrapperModel(config).requires_grad_(False)


def load_imagenet(tower: TimmWrapperModel) -> None:
    """Fills it with the weights that `EfficientNetLite0` has: the same layers in the same order, by other names."""
    net: Any = tower.timm_model
    published = [value for name, value in EfficientNetLite0().net.state_dict().items() if not name.startswith("_fc.")]
    net.load_state_dict(dict(zip(net.state_dict(), published, strict=True)))


@register("model")
class CLIP(BaseModule):
    """Text and image towers, trained to find each other's partner in the batch.

    Logs train/loss, val/loss, the temperature's inverse (`scale`), and top-1 retrieval in both directions:
    within the validation batches (`val/batch_*`) and among the whole validation set (`val/*`); equal captions
    count as correct.

    Args:
        text_tower: "transformer" is CLIP's own. With "bilstm" words are embedded in 300 numbers and `text_width` is
            that of a word's state, half of it a direction (DAMSM: 256); `text_layers` and `text_heads` are not used.
            With "sentence" it is `text_encoder`, frozen; no other key of the text side is used.
        vocab_size: entries of the tokenizer; with "bilstm" the embedding has so many rows even if there are fewer
            words.
        context_length: tokens a caption; with "bilstm" words.
        text_encoder: of "sentence" alone, whose vector of a caption is a mean over tokens
            (`t2i.text_encoders.sentence`). Equal captions are encoded once a run.
        image_tower: "vit" is CLIP's own, from scratch. "efficientnet" is EfficientNet-Lite0 with ImageNet's weights,
            locked, under a projection, with "sentence" alone. Of the image side's keys it uses `image_size` alone;
            small pictures had better be enlarged, 64 pixels to 128. Equal pictures are encoded once a run.
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
        text_tower: Literal["transformer", "bilstm", "sentence"] = "transformer",
        text_encoder: Any = None,
        image_tower: Literal["vit", "efficientnet"] = "vit",
    ) -> None:
        super().__init__()
        if image_tower == "vit" and image_size % patch_size:
            raise ValueError(f"image_size={image_size} is no multiple of patch_size={patch_size}")
        for name, value, allowed in (("text_tower", text_tower, TEXT_TOWERS), ("image_tower", image_tower,
                                                                              IMAGE_TOWERS)):
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: one of {', '.join(allowed)} is needed")
        self.text_tower, self.image_tower = text_tower, image_tower
        self.by_words, self.by_sentences = text_tower == "bilstm", text_tower == "sentence"
        if self.by_sentences != (text_encoder is not None):
            raise ValueError(f"text_tower={text_tower!r} {'without a' if self.by_sentences else 'takes no'}"
                             " text_encoder: model/text_tower=sentence sets both")
        if image_tower == "efficientnet" and not self.by_sentences:
            raise ValueError(f"image_tower='efficientnet' goes with text_tower='sentence', not {text_tower!r}:"
                             " model/text_tower=sentence")
        if image_tower == "efficientnet" and optimizer == "muon":
            raise ValueError("optimizer='muon' is for hidden matrices; with image_tower='efficientnet' two projections"
                             " train, which it overfits: model.optimizer=adamw")
        if width % num_heads:
            raise ValueError(f"width={width} is no multiple of num_heads={num_heads}")
        if text_tower == "transformer" and text_width % text_heads:
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
        longest = max((image_size // patch_size) ** 2 + 1, context_length if text_tower == "transformer" else 0)
        attention = "eager" if longest <= 128 else "sdpa"
        self.mean, self.std = (MEAN, STD) if image_tower == "vit" else (EFFICIENTNET_MEAN, EFFICIENTNET_STD)
        self.clip: CLIPModel | WordTowers | SentenceTowers
        if self.by_sentences:
            check_pooled(text_encoder.tower.config.model_type)
            if image_tower == "vit":
                image: Any = CLIPVisionModel(CLIPVisionConfig(**vision))
                image.set_attn_implementation(attention)
            else:
                image = efficientnet(image_size)
            self.clip = SentenceTowers(image, text_encoder.pooled_dim, embed_dim)
            self.frozen_parts = (text_encoder,)
        elif self.by_words:
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
        # Of captions, by the sentence encoder, and of pictures, by a locked tower.
        self._vectors: dict[str, Tensor] = {}
        self._seen: dict[bytes, Tensor] = {}

    @property
    def text_encoder(self) -> Any:
        return self.frozen_parts[0] if self.frozen_parts else None

    def parts(self) -> dict[str, dict[str, Any]]:
        return {"text_encoder": self.text_encoder.part()} if self.by_sentences else {}

    def nets(self) -> list[nn.Module]:
        if not isinstance(self.clip, CLIPModel):  # a packed recurrence is not traced
            return [self.clip.vision_model]
        return [self.clip.vision_model, self.clip.text_model]

    def prepare(self, captions: Iterable[str]) -> None:
        """Train the tokenizer on the data's captions, and fill an EfficientNet; once before training, not after loading
        a checkpoint."""
        if self.image_tower == "efficientnet":
            load_imagenet(self.clip.vision_model)
        if self.by_sentences:
            return
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
        if self.image_tower == "efficientnet":
            return self.clip.visual_projection(self._image_vectors(images))
        pixels = preprocess(images, self.image_size, self.mean, self.std)
        return self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)

    def encode_text(self, text: list[str]) -> Float[Tensor, "b d"]:
        """Embeddings, not normalised."""
        if isinstance(self.clip, SentenceTowers):
            return self.clip.text_projection(self._sentence_vectors(text).to(self.device))
        ids, mask = self._trained_tokenizer()(text)
        if isinstance(self.clip, WordTowers):
            return self.clip.text_projection(self.clip.words(ids.to(self.device), mask)[1])
        # causal tower, padding behind: no mask needed
        return self.clip.get_text_features(input_ids=ids.to(self.device)).pooler_output

    def _sentence_vectors(self, text: list[str]) -> Float[Tensor, "b d"]:
        """What the text projection takes. Captions of one length are encoded together and nothing is padded, so that,
        bit by bit on a CPU, no vector depends on its batch: a continued run has those of an unbroken one."""
        new = [caption for caption in dict.fromkeys(text) if caption not in self._vectors]
        if len(self._vectors) + len(new) > CACHED_CAPTIONS:
            self._vectors, new = {}, list(dict.fromkeys(text))
        by_length: dict[int, list[str]] = {}
        for caption, length in zip(new, self.text_encoder.tokenizer(new)[1].sum(1).tolist(), strict=True):
            by_length.setdefault(length, []).append(caption)
        for captions in by_length.values():
            self._vectors |= zip(captions, mean_features(self.text_encoder(captions).pooled), strict=True)
        return torch.stack([self._vectors[caption] for caption in text])

    @torch.no_grad()
    def _image_vectors(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """What a locked tower makes of pictures, in float32, as its folder is read. It always takes CHUNK of them, for
        the same reason."""
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in images.float().cpu()]
        new = {key: i for i, key in enumerate(keys) if key not in self._seen}
        if len(self._seen) + len(new) > CACHED_IMAGES:
            self._seen, new = {}, {key: i for i, key in enumerate(keys)}
        rows = torch.tensor(list(new.values()), dtype=torch.long)
        for part in rows.split(CHUNK) if new else ():
            chunk = images.new_zeros(CHUNK, *images.shape[1:])
            chunk[: len(part)] = images[part.to(images.device)]
            pixels = preprocess(chunk, self.image_size, self.mean, self.std)
            with torch.autocast(images.device.type, enabled=False):
                found = self.clip.vision_model(pixel_values=pixels).pooler_output
            self._seen |= zip([keys[i] for i in part.tolist()], found[: len(part)].clone(), strict=True)
        return torch.stack([self._seen[key] for key in keys])

    def _loss(self, image: Tensor, text: Tensor, captions: list[str]) -> Tensor:
        return contrastive(image, text, self.clip.logit_scale.exp(), caption_groups(captions).to(image.device))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Of the global batch: the negatives do not depend on the number of ranks.
        image, text = all_gather_rows(self.encode_image(batch.image)), all_gather_rows(self.encode_text(batch.text))
        loss = self._loss(image, text, all_gather_objects(batch.text))
        self.check_finite({"loss": loss}, batch.key)
        # Without prog_bar, for which Lightning reads a value whenever a callback looks at any.
        self.log("train/loss", loss.detach(), batch_size=len(batch.text))
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
        super().on_save_checkpoint(checkpoint)
        if not self.by_sentences:  # whose tokenizer is the encoder's own
            checkpoint[CHECKPOINT_KEY] = self._trained_tokenizer().to_json()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if not self.by_sentences:
            self._use_tokenizer(checkpoint[CHECKPOINT_KEY])

    def export(self, folder: str | Path) -> None:
        """Write the Hugging Face folder that `text_encoder=clip text_encoder.path=<folder>` reads; with `text_tower`
        "sentence" that of a `VisionTextDualEncoderModel`.

        With `text_tower` "bilstm": the folder that `text_encoder=bilstm` reads, and nothing else. It holds the BiLSTM
        and its words; the image tower and the projections, of no use to conditioning, stay in the checkpoint.
        """
        if isinstance(self.clip, SentenceTowers):
            encoder = self.text_encoder
            save_dual(self.clip, encoder.tower, encoder.tokenizer, folder, self.mean, self.std)
            return
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
