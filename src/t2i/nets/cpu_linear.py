"""Matrices of a transformer for drawing on a CPU: in bf16 as oneDNN's kernel wants them, or in int8.

`PackedLinear`: the weight laid out beforehand in blocks, which the plain layer does anew in each product. `Int8Linear`:
integers with a scale a row of the weight, and one a row of the input, found as it comes (dynamic quantization as in
LLM.int8(), arXiv 2208.07339, without its outliers). The sums are of integers, thus exact: a row's result does not
depend on what else is in the batch.

torch's kernel for int8 weights alone (`_weight_int8pack_mm`) is slower than `PackedLinear` but at two rows, and reads
beyond its input where the columns are no multiple of 16 (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from t2i.nets.transformer import CrossBlock, matrix_vector


class PackedLinear(nn.Module):
    """x @ weight.T in bf16. One row takes torch's own kernel and the plain weight (`matrix_vector`)."""

    def __init__(self, weight: Float[Tensor, "o i"]) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().bfloat16(), requires_grad=False)
        self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.data)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        if x.numel() == x.shape[-1]:
            with matrix_vector(x.view(1, -1)):
                return F.linear(x, self.weight)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, None, "none", [], "")


class Int8Linear(nn.Module):
    """x @ weight.T with both in int8; x and the result in float32 or bf16."""

    def __init__(self, weight: Float[Tensor, "o i"]) -> None:
        super().__init__()
        weight = weight.detach().float()
        scales = weight.abs().amax(1).clamp_min(1e-30) / 127
        levels = (weight / scales[:, None]).round().to(torch.int8)
        self.packed = torch.ops.onednn.qlinear_prepack(levels, None)
        self.scales, self.zeros = scales, torch.zeros(len(scales), dtype=torch.long)
        # The kernel is fast for inputs of uint8 alone: those are 128 more, and the product as much less.
        self.offset = -128 * scales * levels.sum(1)

    def forward(self, x: Float[Tensor, "... i"]) -> Float[Tensor, "... o"]:
        rows = x.reshape(-1, x.shape[-1]).float()
        scale = rows.abs().amax(1, keepdim=True).clamp_min_(1e-30).div_(127)
        levels = (rows / scale).add_(128.5).to(torch.uint8)  # rounded: what is cut off is less than 1
        product = torch.ops.onednn.qlinear_pointwise(levels, 1.0, 0, self.packed, self.scales, self.zeros, self.offset,
                                                     1.0, 0, torch.float32, "none", [], "")
        return product.mul_(scale).to(x.dtype).view(*x.shape[:-1], -1)


KINDS: dict[str, Callable[[Tensor], nn.Module]] = {"bf16": PackedLinear, "int8": Int8Linear}


def obstacle(weights: str, device: torch.device) -> str | None:
    """Why these kernels cannot run there; None if they can."""
    if device.type != "cpu":
        return f"its kernels are the CPU's, and this draws on {device.type}"
    if not torch.backends.mkldnn.is_available():
        return "this torch is built without oneDNN"
    if weights == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "this CPU has no AVX-512"
    if weights == "int8" and not torch.cpu._is_vnni_supported():
        return "this CPU has no VNNI, without which sums of int8 products overflow"
    return None


@torch.no_grad()
def convert(module: nn.Module, weights: str) -> None:
    """Replaces each linear layer below `module`, all of them without a bias; no gradient goes through it after."""
    make = KINDS[weights]
    for name, child in list(module.named_children()):
        if isinstance(child, CrossBlock):
            width = child.qkv.in_features
            child.halves = make(child.qkv.weight[:width]), make(child.qkv.weight[width:])
            del child.qkv
        if isinstance(child, nn.Linear):
            assert child.bias is None
            setattr(module, name, make(child.weight))
        else:
            convert(child, weights)
