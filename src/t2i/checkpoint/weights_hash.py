"""One hash of networks' weights: of CLIPs that guide and score, of text encoders whose states are cached."""

from __future__ import annotations

import hashlib

from torch import nn


def weights_hash(*modules: nn.Module, begin: str = "", only: tuple[str, ...] = ("",), digits: int = 16) -> str:
    """Hexadecimal digits of the SHA-256 over names and values (as float32) of the modules' state.

    Args:
        begin: what else counts, such as words; it is hashed first.
        only: beginnings of the names that count.
    """
    digest = hashlib.sha256(begin.encode())
    for module in modules:
        for name, value in sorted(module.state_dict().items()):
            if name.startswith(only):
                digest.update(name.encode() + value.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()[:digits]
