"""What configs of earlier versions call by other names: checkpoints and run folders written then still load.

`MODULES` holds modules that moved, `CLASSES` classes and functions of another name (by today's module), `KEYS` keys of
a whole config, by their path, which a command line may use too; `ADDED` keys that were not there, `CALLBACKS` names of
callbacks in checkpoints. What was removed stands in `t2i.config.aliases`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from t2i.config import aliases

MODULES = {
    "t2i.callbacks": "t2i.training.callbacks.visuals",
    "t2i.guiding": "t2i.generation.clip_guided.settings",
    "t2i.interop.tokenizers": "t2i.convert.tokenizers",
    "t2i.measures": "t2i.training.callbacks.validation_metrics",
    "t2i.progress": "t2i.training.callbacks.progress",
    "t2i.text.bilstm": "t2i.text_encoders.bilstm",
    "t2i.text.clip": "t2i.text_encoders.clip",
    "t2i.watch": "t2i.training.callbacks.generation_metrics",
}
CLASSES: dict[str, str] = {
    "t2i.training.callbacks.generation_metrics.Scores": "t2i.training.callbacks.generation_metrics.GenerationMetrics",
    "t2i.training.callbacks.progress.Progress": "t2i.training.callbacks.progress.ProgressBar",
    "t2i.training.callbacks.visuals.EMA": "t2i.training.callbacks.ema.EMA",
    "t2i.training.callbacks.visuals.EarlyStopping": "t2i.training.callbacks.early_stopping.EarlyStopping",
    "t2i.training.callbacks.visuals.LossPlots": "t2i.training.callbacks.loss_plots.LossPlots",
    "t2i.training.callbacks.visuals.PictureGrid": "t2i.training.callbacks.image_grid.ImageGrid",
}
KEYS: dict[str, str] = aliases.KEYS
# Keys that came later, with the value that is as it was before.
ADDED: dict[str, Any] = {"trainer.matmul_precision": None, "trainer.scale_batch_size": None, "init": None,
                         "init_allow": [], "freeze": []}
# What callbacks keep in checkpoints, by their name there.
CALLBACKS: dict[str, str] = {"Checkpoints": "RunCheckpoint", "PictureGrid": "ImageGrid", "Scores": "GenerationMetrics"}


def renamed(value: Any) -> Any:
    """A copy of a config, or of a node of one, in which every `_target_` that moved has today's name."""
    if isinstance(value, Mapping):
        return {key: _target(item) if key == "_target_" else renamed(item) for key, item in value.items()}
    return [renamed(item) for item in value] if isinstance(value, list | tuple) else value


def _target(name: Any) -> Any:
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    found = f"{MODULES[module]}.{attribute}" if module in MODULES else name
    return CLASSES.get(found, found) if isinstance(found, str) else found


def current(config: Mapping[str, Any]) -> dict[str, Any]:
    """A whole config of an earlier version as today's version calls things: `renamed`, its keys by `KEYS`, and without
    keys that were removed and change nothing."""
    found: dict[str, Any] = aliases.without_removed(renamed(config))
    for old, new in KEYS.items():
        *folders, name = old.split(".")
        node: Any = found
        for folder in folders:
            node = node.get(folder) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name not in node:
            continue
        value, into = node.pop(name), found
        *folders, name = new.split(".")
        for folder in folders:
            into = into.setdefault(folder, {})
        into.setdefault(name, value)
    data = found.get("data")
    if isinstance(data, dict) and data.get("_target_") == "t2i.data.emoji.Emoji" and data.get("flags") is False:
        data.pop("flags")  # emoji were those of a font, before there were styles
        data.setdefault("styles", ["font"])
    for key, value in ADDED.items():
        section, _, name = key.rpartition(".")
        table = found.get(section) if section else found if "resume" in found else None  # of a run, not of a tokenizer
        if isinstance(table, dict):
            table.setdefault(name, value)
    return found


def callback_states(states: Mapping[str, Any]) -> dict[str, Any]:
    """What the callbacks of a checkpoint of an earlier version kept, as today's callbacks keep it."""
    found: dict[str, Any] = {}
    for name, state in states.items():
        if name == "Minutes" and isinstance(state, Mapping):
            found["Timer"] = {"time_elapsed": {"train": state.get("seconds")}}
        elif name == "EarlyStopping" and isinstance(state, Mapping) and isinstance(state.get("best"), float):
            # The first versions kept no monitor; it was val/loss unless said otherwise, and less was better.
            monitor = {"monitor": state.get("monitor", "val/loss"), "mode": "min"}
            found[f"EarlyStopping{monitor}"] = {"wait_count": state.get("since"), "stopped_epoch": 0,
                                                "best_score": state["best"]}
        else:
            found[CALLBACKS.get(name, name)] = state
    return found
