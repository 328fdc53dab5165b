"""Lightning's checkpoints, written whole and read safely."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import nn

from t2i.checkpoint.atomic import save_atomic
from t2i.checkpoint.building import check_weights
from t2i.checkpoint.file_format import kind_of, read

# What Lightning writes beside the weights, and reads when a run goes on.
LIGHTNING = {"epoch": int, "global_step": int, "loops": dict, "callbacks": dict, "optimizer_states": list,
             "lr_schedulers": list}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints through `save_atomic`, read back with `weights_only=True` only.

    Args:
        model: what is trained; a checkpoint of another kind or of other sizes is refused before anything is restored.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        save_atomic(checkpoint, path)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        held = read(path)
        if "optimizer_states" not in held:
            raise ValueError(f"{path} holds weights alone: a run is continued from a .ckpt that training wrote")
        if wrong := [key for key, kind in LIGHTNING.items() if not isinstance(held.get(key), kind)]:
            raise ValueError(f"{path} is no checkpoint that training wrote: {', '.join(wrong)} missing or damaged")
        if self.model is not None:
            if kind_of(self.model) != held["t2i"]["kind"]:
                raise ValueError(f"{path} holds a {held['t2i']['kind']}; this run trains a {kind_of(self.model)}")
            check_weights(self.model, held["state_dict"], path)
        return held
