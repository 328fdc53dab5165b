"""Settings' other names: of earlier versions, which work for one release with a note, and of published notebooks; and
settings that were removed, so that a command line, a config or a checkpoint that has them is told so."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

# Names of published notebooks (VQGAN-CLIP), which stay.
NOTEBOOKS = {
    "clip_guided.alpha": "clip_guided.text_weight",
    "clip_guided.beta": "clip_guided.negative_weight",
    "clip_guided.w1": "clip_guided.prompt_share",
    "clip_guided.w2": "clip_guided.extra_share",
    "clip_guided.total_iter": "clip_guided.steps",
    "clip_guided.im_shape": "clip_guided.image_size",
}
# Old key -> key; it stands for all that lies under it, too. One after the other.
KEYS = {
    "guide": "clip_guided",
    **NOTEBOOKS,
    "judge": "clip_model",
    "callbacks.scores.judge": "callbacks.scores.clip_model",
    "comparison.judge": "comparison.clip_model",
    "callbacks.early_stopping.least": "callbacks.early_stopping.min_delta",
    "trainer.accumulate": "trainer.accumulate_grad_batches",
    "trainer.gradient_clip": "trainer.gradient_clip_val",
}
# Groups of earlier versions -> group, with their choices.
GROUPS = {"guide": ("method", {"clip": "clip_guided", "replay": "replay"})}
# Options of the prior that were removed -> the value that does what is always done now. A checkpoint may have it.
REMOVED_KEYS: dict[str, Any] = {
    "model.neighbours": False,
    "model.running_sums": False,
    "model.text_noise": 0.0,
    "model.positions": "rotary",
    "model.part_heads": "depth",
}
# Recipes that were renamed or removed -> what there is instead.
RECIPES = {"scenes": "shapes", "scenes/vqgan": "shapes/vqgan", "scenes/prior": "shapes/prior",
           "shapes/clip": "quickstart/clip", "flickr64/clip": "pictures/clip", "flickr128/clip": "pictures/clip"}
PRIOR = "t2i.models.prior.Prior"  # whose options they were
_noted: set[str] = set()


def is_removed(target: Any, key: str) -> bool:
    """Whether an argument of a class, by its `_target_`, was removed."""
    return target == PRIOR and f"model.{key}" in REMOVED_KEYS


def removed_in(config: Mapping[str, Any]) -> list[str]:
    """Removed keys that a whole config of before has, at values that no longer hold, as `key=value`."""
    model = without_removed(config).get("model")
    return [f"model.{key}={value}" for key, value in model.items() if is_removed(PRIOR, key)] \
        if isinstance(model, Mapping) and model.get("_target_") == PRIOR else []


def without_removed(config: Mapping[str, Any]) -> dict[str, Any]:
    """A whole config without the removed keys whose value is the one that holds now; what has another stays."""
    model = config.get("model")
    if not isinstance(model, Mapping) or model.get("_target_") != PRIOR:
        return dict(config)
    kept = {key: value for key, value in model.items()
            if not (is_removed(PRIOR, key) and value == REMOVED_KEYS[f"model.{key}"])}
    return {**config, "model": kept}


def current_key(key: str) -> str:
    for old, new in KEYS.items():
        if key == old or key.startswith(f"{old}."):
            key = new + key[len(old) :]
    return key


def current_node(name: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """The values under a key by today's names, those of a node in it too."""
    found = {current_key(f"{name}.{key}").removeprefix(f"{name}."): value for key, value in node.items()}
    return {key: current_node(name, value) if isinstance(value, Mapping) else value for key, value in found.items()}


def _current(word: str) -> str:
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~")
    if bare in GROUPS:
        group, choices = GROUPS[bare]
        return key[: len(key) - len(bare)] + group + equals + ",".join(choices.get(c, c) for c in value.split(","))
    return key[: len(key) - len(bare)] + current_key(bare) + equals + value


def current(overrides: Iterable[str]) -> list[str]:
    """A command line's settings by today's names; a note on stderr, once, for those that go away."""
    found = []
    for word in overrides:
        new = _current(word)
        old_key, new_key = word.partition("=")[0], new.partition("=")[0]
        if old_key != new_key and old_key not in NOTEBOOKS and old_key not in _noted:
            _noted.add(old_key)
            print(f"note: {old_key}= is called {new_key}= now", file=sys.stderr)
        found.append(new)
    return found
