"""How the prior trains and draws: next-code cross-entropy under captions, some of them dropped for guidance.

The second stage of arXiv 2012.09841 with captions as a prefix and classifier-free guidance (arXiv 2207.12598) as
in LlamaGen (arXiv 2406.06525). Tokenizer and text encoder are frozen and held outside the module's state; the
checkpoint carries them as parts, so that a prior draws from its own file alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, cast

import torch
from jaxtyping import Bool, Float, Int
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from t2i.checkpoint.registry import register
from t2i.losses.cross_entropy import cross_entropy
from t2i.models import optimizers
from t2i.models.base import BaseModule
from t2i.models.distributed import LocalRandom, StepRandom, log_step, step_random
from t2i.models.sampling import CodeStep, check_options, drawn, generate_steps, uniforms
from t2i.models.static_decoding import StaticDecoding
from t2i.nets import cpu_linear
from t2i.nets.gpt import GPT, CodeTransformer
from t2i.nets.recompute import set_checkpointing
from t2i.types import Batch, CodeBatch, TextEncoder, Tokenizer, unravel_index


@register("model")
class Prior(BaseModule):
    """A GPT over a tokenizer's codes with caption states as its prefix.

    Args:
        tokenizer: frozen; gives codebook size, grid and picture size.
        text_encoder: frozen; gives the prefix's width and length.
        width, num_layers, num_heads, dropout, word_triples, caption, caption_heads: see `t2i.nets.gpt.GPT`.
        code_dropout: in training, each picture's codes are shown with a share of them replaced, drawn from
            U(0, code_dropout): half by random others (pkeep of arXiv 2012.09841), half by a mask. The net learns to
            go on from its own errors, and to listen to the caption where it would follow the picture so far.
        cache_text: whether training reads the captions' states from a cache instead of running the text encoder.
        caption_dropout: probability with which a training caption gives way to the learned null prefix.
        max_steps: length of training in batches, for the schedule.
        checkpointing: the blocks compute their activations again in the backward instead of keeping them.
    """

    kind = "prior"
    batch = "codes"
    net: ClassVar[type[CodeTransformer]] = GPT
    supports_micro_batches = True
    options: ClassVar[dict[str, Any]] = {"temperature": 0.7, "top_k": None, "top_p": None, "guidance": 1.5,
                                         "unconditional": None}

    def __init__(
        self,
        tokenizer: Tokenizer,
        text_encoder: TextEncoder,
        max_steps: int,
        width: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        dropout: float = 0.0,
        caption_dropout: float = 0.1,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.05,
        warmup_steps: int = 100,
        optimizer: Literal["adamw", "muon"] = "adamw",
        muon_learning_rate: float = 0.02,
        code_dropout: float = 0.0,
        cache_text: bool = False,
        checkpointing: bool = False,
        word_triples: bool = True,
        caption: Literal["prefix", "keys"] = "prefix",
        caption_heads: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= caption_dropout < 1:
            raise ValueError(f"caption_dropout={caption_dropout} is a probability, within [0, 1)")
        if not 0 <= code_dropout <= 1:
            raise ValueError(f"code_dropout={code_dropout} is a share, within [0, 1]")
        if caption_heads and len(tokenizer.factors) == 1:
            raise ValueError("caption_heads=true: the tokenizer's codes have one part, and only heads of later parts"
                             " hear the caption; false is needed (model.caption_heads)")
        self.frozen_parts = (tokenizer, text_encoder)
        self.gpt = self.net(tokenizer.factors, tokenizer.grid, text_encoder.dim, text_encoder.max_length,
                            width, num_layers, num_heads, dropout, word_triples, code_dropout > 0, caption,
                            caption_heads)
        self.gpt.start_from(tokenizer.codebooks())
        set_checkpointing(self.gpt, checkpointing)
        self.code_dropout = code_dropout
        self.caption_dropout, self.max_steps, self.warmup_steps = caption_dropout, max_steps, warmup_steps
        self.learning_rate, self.betas, self.weight_decay = learning_rate, betas, weight_decay
        self.optimizer, self.muon_learning_rate, self.cache_text = optimizer, muon_learning_rate, cache_text
        self.static_decoding = StaticDecoding()

    @property
    def tokenizer(self) -> Any:
        return self.frozen_parts[0]

    @property
    def text_encoder(self) -> Any:
        return self.frozen_parts[1]

    @property
    def image_size(self) -> int:
        return self.tokenizer.image_size

    def check_weights(self, weights: str | None) -> None:
        """ValueError for weights that there are not, or not on this device."""
        if weights is None:
            return
        if weights not in cpu_linear.KINDS:
            raise ValueError(f"weights={weights}: allowed are {', '.join(cpu_linear.KINDS)}, or null (as trained)")
        if self.device.type == "cpu" or weights == "int8":
            reason = cpu_linear.obstacle(weights, self.device)
            if reason is not None:
                raise ValueError(f"weights={weights}: {reason}; null draws with the weights as trained")

    def set_weights(self, weights: str | None) -> None:
        """From now on this prior draws only, its net's weights in "bf16" or "int8" (`t2i.nets.cpu_linear`; on a GPU
        "bf16" alone), None: as trained. ValueError as `check_weights`."""
        self.check_weights(weights)
        if weights == "bf16":
            self.gpt.bfloat16()
        if weights is not None and self.device.type == "cpu":
            for part in (self.gpt.blocks, self.gpt.predict):
                cpu_linear.convert(cast(nn.Module, part), weights)

    def check_options(
        self, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, guidance: float = 1.0,
        unconditional: bool = False,
    ) -> None:
        """ValueError for options of `sample` that are outside what is allowed."""
        if top_k is not None and not isinstance(top_k, int):
            raise ValueError(f"top_k={top_k}: allowed are whole numbers from 1 to {max(self.gpt.factors)}, or null")
        check_options(self.gpt.factors, temperature, top_k, top_p, guidance)

    def nets(self) -> list[nn.Module]:
        return cast(list[nn.Module], list(self.gpt.blocks))  # block by block, since all are alike

    def parts(self) -> dict[str, dict[str, Any]]:
        weights = {name: value.detach().cpu() for name, value in self.tokenizer.state_dict().items()}
        return {"tokenizer": {"config": self.tokenizer.config, "state_dict": weights},
                "text_encoder": self.text_encoder.part()}

    def drawing_parameters(self) -> int:
        """Parameters of all that draws, but for the text encoder."""
        return sum(p.numel() for part in (self.gpt, self.tokenizer) for p in part.parameters())

    def shard(self, mesh: Any) -> None:
        """Each block, and the rest, in shares over a device mesh (FSDP2)."""
        from torch.distributed.fsdp import fully_shard

        for block in self.gpt.blocks:
            fully_shard(cast(nn.Module, block), mesh=mesh)
        fully_shard(self.gpt, mesh=mesh)

    def configure_model(self) -> None:
        mesh = self.device_mesh  # there is one under trainer=fsdp alone
        if mesh is not None and not hasattr(self, "_sharded"):
            self._sharded = True
            self.shard(mesh["data_parallel"])

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = optimizers.make(self.gpt, self.optimizer, self.learning_rate, self.betas, self.weight_decay,
                                    self.muon_learning_rate)
        return optimizers.with_warmup_cosine(optimizer, self.warmup_steps, self.max_steps)

    def loss(self, batch: CodeBatch, null: Tensor, *shown: Tensor | None) -> Float[Tensor, ""]:
        """Mean negative log-likelihood a code (the sum over its parts), in nats; `shown` as the method gives it."""
        if batch.states is not None and batch.mask is not None:
            states, mask = batch.states, batch.mask
        else:
            text = self.text_encoder.states(batch.text)
            states, mask = text.states, text.mask
        logits = self.gpt(batch.ids, states, mask, null, *shown)
        each = unravel_index(batch.ids, self.gpt.factors).flatten(0, 1)
        parts = [cross_entropy(part.flatten(0, 1), each[:, i]) for i, part in enumerate(logits)]
        return torch.stack(parts).sum()

    def corrupted(
        self, ids: Int[Tensor, "b n"], random: StepRandom | LocalRandom
    ) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]]:
        """Codes as training shows them, and which of them are masked."""
        n, most = ids.shape[1], self.tokenizer.codebook_size
        share, drawn, others = random.uniform(1), random.uniform(n), random.integers(most, n)
        share = self.code_dropout * share
        return torch.where(drawn < share / 2, others, ids), (drawn >= share / 2) & (drawn < share)

    def shown(self, ids: Int[Tensor, "b n"], random: StepRandom | LocalRandom) -> tuple[Tensor | None, ...]:
        """What the net is given in training beside codes and captions, a row a picture: see `forward` of the net."""
        return self.corrupted(ids, random) if self.code_dropout else (None, None)

    def training_step(self, batch: CodeBatch, batch_index: int) -> Tensor:
        size = len(batch.text)
        if self.is_first_micro_batch:  # for the whole batch, as it is drawn for one that is not cut
            random = step_random(self, size)
            self._null = random.uniform(1)[:, 0] < self.caption_dropout
            self._shown = self.shown(batch.ids, random)
            self._mean = torch.zeros((), device=self.device)
        micro_batch, where = self.slice_micro_batch(batch, size)
        shown = [None if part is None else part[where] for part in self._shown]
        loss = self.loss(micro_batch, self._null[where], *shown)
        self.check_finite({"train/loss": loss}, micro_batch.key)
        self._mean = self._mean + self.micro_batch_share * loss.detach()
        if self.is_last_micro_batch:
            log_step(self, {"train/loss": self._mean}, size)
        return loss * self.micro_batch_share

    def validation_step(self, batch: CodeBatch, batch_index: int) -> None:
        conditional = torch.zeros(len(batch.text), dtype=torch.bool, device=self.device)
        size = len(batch.text)
        self.log("val/loss", self.loss(batch, conditional), batch_size=size, sync_dist=True)
        self.log("val/loss_without_caption", self.loss(batch, ~conditional), batch_size=size, sync_dist=True)

    def sample(self, text: list[str], *, seeds: list[int], **options: Any) -> Float[Tensor, "b 3 h w"]:
        """Draws one picture a caption, in [-1, 1]; options as those of `codes`."""
        return self.tokenizer.decode_ids(self.codes(text, seeds=seeds, **options).clone()).float()

    def codes(self, text: list[str], *, seeds: list[int], **options: Any) -> Int[Tensor, "b n"]:
        """The codes of one picture a caption; options as those of `code_steps`."""
        return drawn(self.code_steps(text, seeds=seeds, **options))

    def code_steps(
        self,
        text: list[str],
        *,
        seeds: list[int],
        unconditional: bool = False,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        given: Int[Tensor, "b m"] | None = None,
        negative: list[str] | None = None,
        **unknown: object,
    ) -> Iterator[CodeStep]:
        """Draws the codes of one picture a caption, and yields after each; options as in
        `t2i.models.sampling.generate_steps`, but `negative` has a caption a picture."""
        if unknown:
            raise ValueError(f"{', '.join(unknown)} is no option of the prior; allowed are unconditional, temperature,"
                             " top_k, top_p, guidance, given, negative")
        self.check_options(temperature, top_k, top_p, guidance)
        with self.sampling(text, seeds):
            captions = self.caption_states(text)
            uniform = uniforms(seeds, self.gpt.num_codes * len(self.gpt.factors)).to(self.device)
            yield from generate_steps(
                cast(GPT, self.gpt), *captions, uniform, unconditional=unconditional, temperature=temperature,
                top_k=top_k, top_p=top_p, guidance=guidance, given=given,
                negative=None if negative is None else self.caption_states(negative),
                static=self.static_decoding if self.device.type == "cuda" else None)

    def caption_states(self, text: list[str]) -> tuple[Float[Tensor, "b t d"], Bool[Tensor, "b t"]]:
        """Their states, and which of them are real."""
        embedding = self.text_encoder.states(text)
        return embedding.states, embedding.mask

    def on_validation_end(self) -> None:
        self.static_decoding.release()  # training wants the memory

    def pictures(self, batch: Batch | CodeBatch) -> dict[str, Any]:
        """Samples for the batch's first captions, with and without guidance."""
        text = batch.text[:8]
        seeds = list(range(len(text)))
        rows = [(f"guidance {scale:g}", self.sample(text, seeds=seeds, guidance=scale)) for scale in (1.0, 3.0)]
        return {"samples": {"rows": rows, "captions": text}}
