"""Hashes of weights: by them it is known which network made or measured something."""

from __future__ import annotations

import hashlib

from torch import nn


def weights_hash(*modules: nn.Module, prefixes: tuple[str, ...] = ("",), begin: str = "") -> str:
    """Sixteen hex digits over the weights, in float32, of modules; of those alone whose names begin with a prefix.
    `begin` counts too."""
    digest = hashlib.sha256(begin.encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            if name.startswith(prefixes):
                digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
