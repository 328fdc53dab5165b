"""Settings' other names: of earlier versions, which work for one release with a note, and of published notebooks."""

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
_noted: set[str] = set()


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
