"""What would make the host wait for a GPU, seen on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "multinomial", "_unique2", "unique_dim",
           "unique_consecutive", "repeat_interleave"}  # fmt: skip


class DeviceReads(TorchDispatchMode):
    """Inside, operations whose result a host reads, or whose shape hangs on values, raise."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        booleans = name in ("index", "index_put", "index_put_") and any(
            one is not None and one.dtype == torch.bool for one in args[1])
        if name in WAITING or booleans:
            raise AssertionError(f"aten::{name} waits for the device")
        return func(*args, **(kwargs or {}))
