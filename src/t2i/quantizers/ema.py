"""Vector quantisation whose codebook follows running means of the latents instead of a gradient.

Papers: arXiv 1711.00937, appendix A.1 (running means); k-means start and restart of dead codes as in
SoundStream, arXiv 2107.03312. Deviations: a code is dead below a share of the uniform use, not below a count,
so that the threshold does not depend on the batch; all random choices come from generators seeded by
(seed, step), so that a resumed run repeats an unbroken one bit for bit and all ranks agree.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from t2i.checkpoint.registry import register
from t2i.quantizers.base import CodebookQuantizer, nan_unless_finite, straight_through, to_grid, to_rows
from t2i.quantizers.nearest import nearest
from t2i.types import Quantized

REVIEW = 50  # training forwards between two looks for codes that lie beside a like one


@register("quantizer")
class EMA(CodebookQuantizer):
    """Latents (b, dim, h, w) to the nearest of `codebook_size` running means; distances and loss in float32.

    decay: of the running counts and sums, a training forward. kmeans_init: start from k-means on the first
    batch. dead_threshold: a code used less than this share of the uniform use, or all but equal to another one, is
    replaced by a latent of the batch, drawn in proportion to its squared error; 0 never replaces. warmup_steps: so
    many training forwards pass the latents on as they are, before k-means starts from the next batch: an autoencoder
    learns faster with no quantiser in its way, and its latents are worth clustering then.
    The codebook moves only in training mode, once a forward, and not on latents that are not finite: then the loss is
    not finite either, and training stops.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    initialised: Tensor
    step: Tensor

    def __init__(
        self,
        codebook_size: int = 1024,
        dim: int = 256,
        beta: float = 0.25,
        decay: float = 0.99,
        kmeans_init: bool = True,
        kmeans_steps: int = 10,
        dead_threshold: float = 0.03,
        warmup_steps: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(codebook_size, dim)
        if warmup_steps < 0 or (warmup_steps and not kmeans_init):
            raise ValueError(f"warmup_steps={warmup_steps}: 0, or with kmeans_init a number of training forwards")
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: a number in [0, 1) is needed")
        if not 0 <= dead_threshold < 1:
            raise ValueError(f"dead_threshold={dead_threshold}: a share in [0, 1) is needed (0 = never restart)")
        self.beta, self.decay, self.kmeans_steps = beta, decay, kmeans_steps
        self.dead_threshold, self.warmup_steps, self.seed = dead_threshold, warmup_steps, seed
        codebook = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        self.register_buffer("codebook", codebook)
        self.register_buffer("counts", torch.ones(codebook_size))
        self.register_buffer("sums", codebook.clone())
        self.register_buffer("initialised", torch.tensor(not kmeans_init))
        self.register_buffer("step", torch.tensor(0))
        # Mirrors of the two scalars above, read back once after loading: asking the device every step would
        # make the host wait for it.
        self._ready: bool | None = None
        self._step = 0
        self._cells = 1  # latents a picture, as the last forward had them
        self.register_load_state_dict_post_hook(_reread_scalars)

    def vectors(self) -> Float[Tensor, "k d"]:
        return self.codebook

    def forward(self, z: Float[Tensor, "b d h w"]) -> Quantized:
        self._cells = z.shape[2] * z.shape[3]
        with torch.autocast(z.device.type, enabled=False):
            x = to_rows(z)
            if self.training:
                self._kmeans(x.detach())
            ids = nearest(x.detach(), self.codebook)
            if self.warmup_steps and not self._is_ready():
                z_q, loss = x, nan_unless_finite(x)  # the latents as they are
                restarted = commitment = x.new_zeros(())
                if self.training:
                    self._count_step()
            else:
                q = F.embedding(ids, self.codebook)
                commitment = F.mse_loss(x, q)
                z_q, loss = straight_through(x, q), self.beta * commitment
                if self.training:
                    restarted = self._update(x.detach(), ids, (x - q).detach().square().sum(1))
        metrics = {"commitment": commitment.detach()}
        if self.training:
            metrics["restarted"] = restarted
        return Quantized(to_grid(z_q, z), ids.view(len(z), *z.shape[2:]), loss, metrics)

    def _is_ready(self) -> bool:
        if self._ready is None:
            self._ready, self._step = bool(self.initialised), int(self.step)
        return self._ready

    def _count_step(self) -> None:
        self._step += 1
        self.step.add_(1)

    @torch.no_grad()
    def _kmeans(self, x: Float[Tensor, "n d"]) -> None:
        """Starts the codebook: Lloyd's iterations; a centre that loses all its vectors stays where it is."""
        if self._is_ready() or self._step < self.warmup_steps:
            return
        every = self._all_ranks(x)
        if not bool(every.isfinite().all()):
            return
        centres = self._candidates(every, (every - every.mean(0)).square().sum(1))
        for _ in range(self.kmeans_steps):
            counts, sums = self._totals(x, nearest(x, centres))
            centres = torch.where(counts[:, None] > 0, sums / counts.clamp_min(1)[:, None], centres)
        # As if every code had been used as often as the average one: none is dead before it had its chance.
        share = self._sum_over_ranks(x.new_tensor(float(len(x)))) / self.codebook_size
        self.codebook.copy_(centres)
        self.counts.fill_(share)
        self.sums.copy_(centres * share)
        self.initialised.fill_(True)
        self._ready = True

    @torch.no_grad()
    def _update(
        self, x: Float[Tensor, "n d"], ids: Int[Tensor, "n"], error: Float[Tensor, "n"]
    ) -> Float[Tensor, ""]:
        """Moves counts, sums and codebook; returns how many dead codes were restarted."""
        counts, sums = self._totals(x, ids)
        every_error = self._all_ranks(error) if self.dead_threshold > 0 else error.new_zeros(())
        fine = sums.isfinite().all() & every_error.isfinite().all()  # on the device, and the same on all ranks
        total = counts.sum()
        self.counts.lerp_(torch.where(fine, counts, self.counts), 1 - self.decay)
        self.sums.lerp_(torch.where(fine, sums, self.sums), 1 - self.decay)
        restarted = total.new_zeros(())
        if self.dead_threshold > 0:
            share = total / self.codebook_size
            dead = self.counts < self.dead_threshold * share
            if self._step % REVIEW == 0:
                dead = dead | self._redundant(self._sum_over_ranks(error.sum()))
            # The draws are in order of likelihood: the first ones for the dead.
            dead = dead & fine
            candidates = self._candidates(self._all_ranks(x), every_error)[(dead.cumsum(0) - 1).clamp_min(0)]
            trial = min(1.0, 2 * self.dead_threshold) * share  # unused, it is dead again after ln 2 / (1 - decay) steps
            self.counts.copy_(torch.where(dead, trial, self.counts))
            self.sums.copy_(torch.where(dead[:, None], candidates * trial, self.sums))
            restarted = dead.sum().float()
        self.codebook.copy_(torch.where(fine, self.sums / self.counts.clamp_min(1e-5)[:, None], self.codebook))
        self._count_step()
        return restarted

    def _redundant(self, distortion: Float[Tensor, ""]) -> Bool[Tensor, "k"]:
        """Codes beside a like one: giving them up would cost less than a quarter of the average code's error, and the
        neighbour is used more. Rare latents far from any code have then something to hope for (Fritzke 1997, LBG-U)."""
        nearest_other, other = [], []
        for rows in torch.arange(self.codebook_size, device=self.codebook.device).split(1024):
            distance = torch.cdist(self.codebook[rows], self.codebook)
            distance.scatter_(1, rows[:, None], torch.inf)
            found = distance.min(1)
            nearest_other.append(found.values)
            other.append(found.indices)
        every, index = torch.cat(other), torch.arange(self.codebook_size, device=self.codebook.device)
        mine, its = self.counts, self.counts[every]
        less = (mine < its) | ((mine == its) & (index > every))
        return less & (mine * torch.cat(nearest_other).square() < 0.25 * distortion / self.codebook_size)

    def _totals(self, x: Tensor, ids: Tensor) -> tuple[Float[Tensor, "k"], Float[Tensor, "k d"]]:
        """How many vectors fell on each code and their sum, over all ranks."""
        both = x.new_zeros(self.codebook_size, self.dim + 1)
        both.index_add_(0, ids, F.pad(x, (0, 1), value=1.0))
        if _world() > 1:
            dist.all_reduce(both)
        return both[:, -1].contiguous(), both[:, :-1].contiguous()

    def _sum_over_ranks(self, total: Float[Tensor, ""]) -> Float[Tensor, ""]:
        if _world() > 1:
            dist.all_reduce(total)
        return total

    def _all_ranks(self, x: Float[Tensor, "n ..."]) -> Float[Tensor, "m ..."]:
        """The latents (or what else there is one of for each) of all ranks, in the order of the global batch, of which
        rank r has the pictures r, r + world, …: what is drawn from them does not depend on the number of ranks."""
        if _world() == 1:
            return x
        parts = [torch.empty_like(x) for _ in range(_world())]
        dist.all_gather(parts, x.contiguous())
        return torch.stack([part.unflatten(0, (-1, self._cells)) for part in parts], 1).flatten(0, 2)

    def _candidates(self, x: Float[Tensor, "n d"], weights: Float[Tensor, "n"]) -> Float[Tensor, "k d"]:
        """One latent for each code, drawn from the whole batch in proportion to `weights`; the same on every rank."""
        generator = torch.Generator(x.device).manual_seed((self.seed * 1_000_003 + self._step) * 1_000_003 % 2**63)
        weights = weights.double().nan_to_num(0.0, 0.0, 0.0)  # what is not finite restarts nothing
        weights = weights + 1e-12 + 1e-6 * weights.mean()
        # As `torch.multinomial`, which would make the host wait for a GPU.
        if x.shape[0] >= self.codebook_size:
            race = weights / torch.empty_like(weights).exponential_(generator=generator)
            return x[race.topk(self.codebook_size).indices]
        share = weights.cumsum(0)
        at = torch.rand(self.codebook_size, dtype=share.dtype, device=x.device, generator=generator)
        chosen = x[torch.searchsorted(share / share[-1], at)]
        # Fewer latents than codes: copies are told apart by noise well below the spread of the latents.
        return chosen + 0.01 * x.std() * torch.randn(chosen.shape, generator=generator, device=x.device)


def _reread_scalars(module: EMA, incompatible_keys: object) -> None:
    module._ready = None


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
