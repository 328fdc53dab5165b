"""Small reimplementations of published steps, for `gpu.py` and `cpu.py` to compare with: same shapes, random weights.

`Llama`: the net and loop of LlamaGen (arXiv 2406.06525). `TamingStep`: the training step of taming-transformers (arXiv
2012.09841). They follow how those are written, not their weights; figures against them say "like".
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from t2i.losses.perceptual import VGG16Features


class LlamaBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        hidden = 256 * -(-int(8 * width / 3) // 256)  # SwiGLU's, as LLaMA rounds it
        self.heads = heads
        self.norm_attention, self.norm_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.w1, self.w3 = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, cache: Tensor, at: Tensor, mask: Tensor, angles: Tensor) -> Tensor:
        b, s, width = x.shape
        q, k, v = self.qkv(self.norm_attention(x)).view(b, s, 3, self.heads, -1).unbind(2)
        q, k = (self.rotate(part, angles).transpose(1, 2) for part in (q, k))
        cache[0].index_copy_(2, at, k)
        cache[1].index_copy_(2, at, v.transpose(1, 2))
        seen = F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=mask)
        x = x + self.out(seen.transpose(1, 2).reshape(b, s, width))
        y = self.norm_mlp(x)
        return x + self.w2(F.silu(self.w1(y)) * self.w3(y))

    @staticmethod
    def rotate(x: Tensor, angles: Tensor) -> Tensor:
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = angles
        return torch.stack([a * cosine - b * sine, b * cosine + a * sine], -1).flatten(-2).type_as(x)


class Llama(nn.Module):
    """Codes under a prefix with a static cache; both halves of the guidance in a batch, multinomial sampling."""

    def __init__(self, codes: int, num_codes: int, prefix: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.num_codes, self.size = num_codes, prefix + num_codes
        self.codes = nn.Embedding(codes, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, codes, bias=False)
        self.register_buffer("causal", torch.ones(self.size, self.size, dtype=torch.bool).tril())
        half = width // heads // 2
        angles = torch.arange(self.size)[:, None] * 1e4 ** -(torch.arange(half) / half)
        self.register_buffer("angles", torch.stack([angles.cos(), angles.sin()])[:, :, None])
        self.step: Any = self.forward

    def set_up(self, prefix: Tensor) -> None:
        """The cache for this batch; a buffer, whose address compiled graphs may rely on."""
        b, _, width = prefix.shape
        heads = self.blocks[0].heads
        self.register_buffer("cache", prefix.new_zeros(len(self.blocks), 2, b, heads, self.size, width // heads))

    def forward(self, x: Tensor, at: Tensor) -> Tensor:
        mask, angles = self.causal[at][None, None], self.angles[:, at]
        for i, block in enumerate(self.blocks):
            x = block(x, self.cache[i], at, mask, angles)
        return self.head(self.norm(x[:, -1])).float()

    def compile_step(self, mode: str | None, backend: str) -> None:
        self.step = torch.compile(self.forward, mode=mode, fullgraph=True, backend=backend)

    @staticmethod
    def chosen(logits: Tensor, top_k: int, guidance: float) -> Tensor:
        conditional, without = logits.chunk(2)
        mixed = without + guidance * (conditional - without)
        mixed = mixed.masked_fill(mixed < mixed.topk(top_k).values[:, -1:], -torch.inf)
        return torch.multinomial(mixed.softmax(-1), 1)

    @torch.inference_mode()
    def draw(self, prefix: Tensor, top_k: int, guidance: float) -> Tensor:
        t, ids = prefix.shape[1], []
        logits = self.forward(prefix, torch.arange(t, device=prefix.device))
        at = torch.tensor([t], device=prefix.device)
        for i in range(self.num_codes):
            ids.append(chosen := self.chosen(logits, top_k, guidance))
            if i + 1 < self.num_codes:
                logits = self.step(self.codes(torch.cat([chosen, chosen])), at).clone()
                at = at + 1
        return torch.cat(ids, 1)


def taming_argmin(x: Tensor, codebook: Tensor) -> Tensor:
    """VectorQuantizer2's distances, all of them."""
    d = x.square().sum(1, keepdim=True) + codebook.square().sum(1) - 2 * torch.einsum("bd,dn->bn", x, codebook.T)
    return d.argmin(1)


class RandomLPIPS(nn.Module):
    """LPIPS's work without its weights: VGG16's features, normalised, squared differences."""

    def __init__(self) -> None:
        super().__init__()
        self.vgg = VGG16Features().eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        pairs = zip(self.vgg(x), self.vgg(y), strict=True)
        return torch.stack([(F.normalize(a) - F.normalize(b)).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)


class TamingStep(nn.Module):
    """A batch as in taming's `training_step` with two optimisers: for each a forward of the autoencoder and the
    perceptual loss (its `VQLPIPSWithDiscriminator` computes it in both passes), gradients of the one optimiser's
    weights alone, as Lightning 1.0 has them, λ by two gradients of the last layer, Adam; with `dtype`, under autocast
    and with a loss scale."""

    def __init__(
        self, autoencoder: nn.Module, codes: tuple[int, int], discriminator: nn.Module, perceptual: nn.Module,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.autoencoder, self.discriminator, self.perceptual = autoencoder, discriminator, perceptual
        channels = autoencoder.z_channels
        self.codebook = nn.Embedding(*codes)
        nn.init.uniform_(self.codebook.weight, -1 / codes[0], 1 / codes[0])
        self.into, self.out = nn.Conv2d(channels, codes[1], 1), nn.Conv2d(codes[1], channels, 1)
        self.dtype = dtype
        self.optimizers: tuple[torch.optim.Optimizer, ...] | None = None

    def reconstruct(self, image: Tensor) -> tuple[Tensor, Tensor]:
        z = self.into(self.autoencoder.encoder(image)).float()
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
        z_q = self.codebook(taming_argmin(flat, self.codebook.weight)).view_as(z.permute(0, 2, 3, 1))
        z_q = z_q.permute(0, 3, 1, 2)
        loss = (z_q.detach() - z).square().mean() + 0.25 * (z_q - z.detach()).square().mean()
        return self.autoencoder.decoder(self.out(z + (z_q - z).detach())), loss

    def forward(self, image: Tensor) -> None:
        if self.optimizers is None:
            ours = [*self.autoencoder.parameters(), *self.codebook.parameters(), *self.into.parameters(),
                    *self.out.parameters()]
            self.optimizers = (torch.optim.Adam(ours, 4.5e-6, (0.5, 0.9)),
                               torch.optim.Adam(self.discriminator.parameters(), 4.5e-6, (0.5, 0.9)))
            self.scaler = torch.amp.GradScaler(image.device.type, enabled=self.dtype is not None)
        for number, optimizer in enumerate(self.optimizers):
            for other in self.optimizers:
                for group in other.param_groups:
                    for weight in group["params"]:
                        weight.requires_grad_(other is optimizer)
            with torch.autocast(image.device.type, self.dtype, enabled=self.dtype is not None):
                fake, quantized = self.reconstruct(image)
                nll = ((image - fake).abs() + self.perceptual(image, fake).view(-1, 1, 1, 1)).mean()
                if number == 0:
                    g = -self.discriminator(fake).mean()
                    last = self.autoencoder.last_layer
                    sizes = [torch.autograd.grad(part, last, retain_graph=True)[0].norm() for part in (nll, g)]
                    loss = nll + 0.8 * (sizes[0] / (sizes[1] + 1e-4)).clamp(0, 1e4).detach() * g + quantized
                else:
                    loss = 0.5 * (F.relu(1 - self.discriminator(image.detach())).mean()
                                  + F.relu(1 + self.discriminator(fake.detach())).mean())
            optimizer.zero_grad()
            self.scaler.scale(loss).backward()
            self.scaler.step(optimizer)
        self.scaler.update()
