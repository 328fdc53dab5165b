"""Hostile and damaged checkpoint files through every door that takes one: `hostile`, `damaged`, `foreign` make them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from campaign import damaged, foreign, hostile
from campaign.attack import Attack, outcome
from campaign.common import Result
from campaign.made import make

GROUP = "checkpoint files"


def attacks(made: Path) -> Iterator[Attack]:
    yield from hostile.attacks(made)
    yield from damaged.attacks(made)
    yield from foreign.attacks(made)


def tried(chosen: Iterable[Attack], folder: Path, made: Path) -> list[Result]:
    found = []
    victim = Path(hostile.VICTIM)
    try:
        for k, attack in enumerate(chosen):
            victim.mkdir(exist_ok=True)
            (victim / "config.json").write_text("{}")
            place = folder / f"{k:04}"
            kind, detail = outcome(attack, place, made)
            if not (victim / "config.json").is_file() or Path(hostile.PATH).exists():
                kind, detail = "executed", "the folder is gone, or the file is there"
            found.append(Result(attack.name, GROUP, kind, detail))
            shutil.rmtree(place)
    finally:
        shutil.rmtree(victim, ignore_errors=True)
    return found


def run(folder: Path, part: int = 0, parts: int = 1, every: int = 1) -> list[Result]:
    """All attacks, or every `parts`-th from `part` on; of those `every` leaves out all but one in so many."""
    made = make(folder / "made")
    chosen = (attack for k, attack in enumerate(attacks(made)) if k % parts == part and k // parts % every == 0)
    return tried(chosen, folder / f"checkpoints-{part}", made)


SHORT = ("a shell command (Popen) as", "a file written (write_text) as", "a folder moved",
         "a sound prior", "a pickle that calls os.system", "prior cut at", "flipped", "model.num_layers 10000000",
         "an encoder by hub name", "a web page")


def short(folder: Path, made: Path) -> list[Result]:
    """A handful of attacks through `sample.py` and the tokenizer's door, one of each of `SHORT`, on CLIP, VQGAN, prior.
    """
    listed = chain(*(of(made) for of in (hostile.targets, hostile.paths, hostile.pickles, damaged.sound, damaged.sizes,
                                         damaged.bytes_of_it)))
    gans = tuple(f" as {name}" for name, (model, _) in hostile.PLACES.items() if model in ("dfgan", "stackgan1"))
    first: dict[str, Attack] = {}
    for attack in listed:
        for piece in SHORT:
            if piece in attack.name and attack.name.startswith(("sample", "tokenizer")) \
                    and not attack.name.endswith(gans):
                first.setdefault(piece, attack)
    return tried(first.values(), folder, made)
