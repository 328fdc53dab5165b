"""The classes that a config out of a file may build, and what the user trusts beyond them.

A checkpoint comes from anywhere. Its config may name the classes that are marked here with `register`, each at its
definition, and nothing else: no function, no other class, no module by its prefix. Arguments that say where something
lies (a folder, a file, a name on the hub) are refused unless the user gave them: `trust=[…]` names packages whose
classes may be built as well, and places that may be opened.

What a user's own config names is not looked at here: `t2i.checkpoint.building.build`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from t2i.config.messages import quoted

Role = Literal["model", "tokenizer", "autoencoder", "quantizer", "generator", "discriminator", "stage1",
               "text_encoder", "data"]
# Modules that hold marked classes: one that a file names is imported only if it stands here.
MODULES = (
    "t2i.data.coco", "t2i.data.cub", "t2i.data.emoji", "t2i.data.folder",
    "t2i.data.huggingface", "t2i.data.shapes", "t2i.data.webdataset",
    "t2i.models.clip", "t2i.models.dfgan", "t2i.models.prior", "t2i.models.prior_any", "t2i.models.stackgan",
    "t2i.models.vqgan",
    "t2i.nets.autoencoder", "t2i.nets.dfgan", "t2i.nets.patchgan", "t2i.nets.rdb", "t2i.nets.stackgan",
    "t2i.nets.tokenizer", "t2i.nets.two_colour", "t2i.nets.unet_discriminator", "t2i.quantizers.ema",
    "t2i.quantizers.fsq", "t2i.quantizers.gumbel", "t2i.quantizers.lfq", "t2i.quantizers.product",
    "t2i.quantizers.residual", "t2i.quantizers.simvq", "t2i.quantizers.vq",
    "t2i.text_encoders.bilstm", "t2i.text_encoders.clip", "t2i.text_encoders.sentence",
)  # fmt: skip
T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """A marked class: what it is used as, and which of its arguments say where something lies."""

    cls: type
    role: Role | None  # None: whatever its user makes of it
    places: tuple[str, ...] = ()


CLASSES: dict[str, Entry] = {}
_trusted: tuple[str, ...] = ()


def register(role: Role, places: Iterable[str] = ()) -> Callable[[T], T]:
    """Marks a class that a config out of a file may build.

    Args:
        role: what it is used as; the key under which a config names it.
        places: its arguments that name a file, a folder or something on the hub.
    """

    def mark(cls: T) -> T:
        CLASSES[f"{cls.__module__}.{cls.__qualname__}"] = Entry(cls, role, tuple(places))
        return cls

    return mark


def find(name: Any) -> Entry | None:
    """The marked class of that name, or one of a package that the user trusts; None where there is none."""
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        return None
    module = name.rpartition(".")[0]
    if module in MODULES:
        importlib.import_module(module)
        return CLASSES.get(name)
    if not module or module.partition(".")[0] == "t2i" or module.partition(".")[0] not in _trusted:
        return None
    try:
        found = getattr(importlib.import_module(module), name.rpartition(".")[2], None)
    except ModuleNotFoundError:
        return None
    return Entry(found, None) if isinstance(found, type) else None


def get(name: Any, where: str) -> Entry:
    """`find`; ValueError, which begins with `where`, where there is none."""
    entry = find(name)
    if entry is None:
        raise ValueError(f"{where}_target_={quoted(name)} is no class that a file may build; if it is yours,"
                         " trust=[its package] says so")
    return entry


def trust(words: Iterable[str]) -> None:
    """What the user trusts from now on: packages, and places (files, folders and what lies in them, names on the hub).
    """
    global _trusted
    _trusted = tuple(word for word in words if word)


def is_trusted_place(place: str) -> bool:
    """Whether the user named this place, or a folder that it lies in."""
    if place in _trusted:
        return True
    lies = Path(place).expanduser().resolve()
    return any(lies.is_relative_to(Path(word).expanduser().resolve()) for word in _trusted if Path(word).exists())
