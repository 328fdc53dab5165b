"""Runs as `t2i compare` sets them side by side: what their folders say of them, short names, and where they differ."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from t2i.checkpoint import file_format, renames
from t2i.checkpoint.plain_files import read_table
from t2i.config.compose import compared, flat
from t2i.viz.plots import read_metrics

ABSENT = "–"
# What every run's config.json has, and the files beside it.
SECTIONS: dict[str, Any] = {"model": dict, "data": dict, "trainer": dict, "seed": int}
BESIDE: dict[str, dict[str, Any]] = {"finished": {"metrics": dict, "steps": int},
                                     "evaluation": {"scores": dict, "protocol": dict}}
T = TypeVar("T")
LEFT_OUT = ("name", "group", "paths")  # where a run lies says nothing of what it does
WIDE = 8  # settings as columns of the table; more stand in a table of their own


@dataclass
class Run:
    """One run: its folder, and what was read of it. `facts` has kind, steps, minutes and hash as far as known."""

    folder: Path
    label: str
    checkpoint: Path | None  # None: none was saved yet
    config: dict[str, Any]
    series: dict[str, tuple[list[int], list[float]]]
    finished: dict[str, Any] | None
    evaluation: dict[str, Any] | None
    command: str | None = None  # that began it; None of an earlier version
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return str(self.facts.get("kind") or self.config["model"]["_target_"].rpartition(".")[2].lower())


def tails(paths: Sequence[Sequence[str]], joint: str) -> list[str]:
    """The shortest tail of each path that no other path ends with; paths must differ."""
    found = []
    for i, path in enumerate(paths):
        others = [other for k, other in enumerate(paths) if k != i]
        fits = (n for n in range(1, len(path) + 1) if all(other[-n:] != path[-n:] for other in others))
        found.append(joint.join(path[-next(fits, len(path)) :]))
    return found


def labels(named: Sequence[tuple[Path, Path | None]]) -> list[str]:
    """Short names of runs, each a folder and the checkpoint that was asked for by its path."""
    folders = [folder for folder, _ in named]
    paths = [asked if asked is not None and folders.count(folder) > 1 else folder for folder, asked in named]
    return tails([path.parts for path in paths], "/")


def _found(word: str, which: str) -> tuple[Path, Path | None, Path | None]:
    """The run folder that a word of the command line names, its checkpoint, and the same if the word named it."""
    path = Path(word).expanduser()
    asked = path.resolve() if path.is_file() else None
    folder = (path.parent if asked is not None else path).resolve()
    if not folder.is_dir() or (asked is None and not path.is_dir()):
        raise ValueError(f"{word} does not exist: the folder of a run, or one of its checkpoints, is wanted")
    if not (folder / "config.json").is_file():
        inside = sorted(p.parent.name for p in folder.glob("*/config.json"))
        hint = f"; it holds the runs {', '.join(inside)}" if inside else ""
        raise ValueError(f"{word} is no run's folder: {folder} has no config.json{hint}")
    if asked is not None:
        return folder, asked, asked
    own = folder / f"{which}.ckpt"
    if not own.is_file() and which != "last":
        there = ", ".join(sorted(p.name for p in folder.glob("*.ckpt"))) or "none"
        raise ValueError(f"ckpt={which}: {word} has no {own.name} (there are: {there}); a checkpoint can be named"
                         f" itself, as in {word.rstrip('/')}/last.ckpt")
    return folder, own if own.is_file() else None, None


def read_run(folder: Path, path: Path | None, label: str) -> Run:
    """A run with its curves, its last result and its evaluation, where there are some; ValueError for damaged files."""
    config = renames.current(read_table(folder / "config.json", **SECTIONS))
    held: dict[str, Any] = {name: read_table(file, **kinds) if file.is_file() else None
                            for name, kinds in BESIDE.items() if (file := folder / f"{name}.json")}
    metrics, began = folder / "metrics.csv", folder / "command.txt"
    run = Run(folder, label, path, config, read_metrics(metrics) if metrics.exists() else {}, **held,
              command=began.read_text(encoding="utf-8", errors="backslashreplace").strip() if began.is_file() else None)
    if path is not None:
        read = file_format.read(path)
        steps, minutes = file_format.progress(read, path)
        run.facts = {"kind": read["t2i"]["kind"], "steps": steps, "hash": file_format.file_hash(path),
                     "minutes": minutes, "averaged": "ema" in read}
        del read
        gc.collect()
    elif run.series:
        run.facts = {"steps": max(steps[-1] for steps, _ in run.series.values())}
    return run


def expanded(words: Sequence[str]) -> list[str]:
    """A sweep's folder as its runs, in order; what lies beside them (its tables and logs, caught by a *) left out."""
    found = []
    for word in words:
        path = Path(word)
        if (path / "sweep.json").is_file():
            found += [str(config.parent) for config in sorted(path.glob("*/config.json"))]
        elif not (path.parent / "sweep.json").is_file() or path.suffix == ".ckpt" or (path / "config.json").is_file():
            found.append(word)
    return found


def gather(words: Sequence[str], which: str = "last") -> list[Run]:
    """The runs that a command line names, at least two; ValueError with everything that is wrong with them."""
    words = expanded(words)
    if len(words) < 2:
        raise ValueError(f"{len(words)} run{'s' * (len(words) != 1)} given: t2i compare takes two or more run folders")
    found, faults = _each(_found, [(word, which) for word in words])
    paths = [path or folder for folder, path, _ in found]
    faults += [f"{path} is named twice" for path in dict.fromkeys(paths) if paths.count(path) > 1]
    runs: list[Run] = []
    if not faults:
        named = labels([(folder, asked or path) for folder, path, asked in found])
        runs, faults = _each(read_run, [(*one[:2], label) for one, label in zip(found, named, strict=True)])
    if faults:
        raise ValueError("\n".join(faults))
    return runs


def _each(read: Callable[..., T], given: Sequence[tuple[Any, ...]]) -> tuple[list[T], list[str]]:
    """What a function makes of each of its arguments, and what is wrong with the others."""
    found, faults = [], []
    for arguments in given:
        try:
            found.append(read(*arguments))
        except ValueError as error:
            faults.append(str(error))
    return found, faults


def brief(value: Any) -> str:
    """A setting's value for people: a class by its name, numbers short, long paths by their end."""
    if isinstance(value, Mapping):
        return brief(value["_target_"]) if "_target_" in value else "{…}"
    if isinstance(value, str):
        value = value.rpartition(".")[2] if value.startswith("t2i.") else value
        return value if len(value) <= 40 else f"…{value[-39:]}"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What differs between configs: {short key: a value each}, keys that all have first."""
    kept = [flat({key: value for key, value in compared(dict(config)).items() if key not in LEFT_OUT})
            for config in configs]
    leaves = dict.fromkeys(key for one in kept for key, value in one.items() if not isinstance(value, dict))
    rows = {key: [brief(one[key]) if key in one else ABSENT for one in kept] for key in leaves}
    rows = {key: values for key, values in rows.items() if len(set(values)) > 1}
    short = tails([key.removesuffix("._target_").split(".") for key in rows], ".")
    named = dict(zip(short, rows.values(), strict=True))
    return dict(sorted(named.items(), key=lambda pair: ABSENT in pair[1]))


def last_validation(run: Run) -> dict[str, float]:
    """The metrics of the last validation up to the checkpoint's step; of a run without curves those of its end."""
    until = run.facts.get("steps")
    found = {}
    for name, (steps, values) in run.series.items():
        upto = [value for step, value in zip(steps, values, strict=True) if until is None or step <= until]
        if name.startswith("val/") and upto:
            found[name] = upto[-1]
    if not run.series and run.finished is not None:
        found = {name: value for name, value in run.finished["metrics"].items() if name.startswith("val/")}
    return found


def standing(run: Run) -> str | None:
    """What a reader must know of a run that is not done, or None."""
    if run.checkpoint is None:
        return f"{run.label} has no last.ckpt yet: table and curves only."
    if run.finished is None:
        done, wanted = run.facts.get("steps"), run.config["trainer"].get("max_steps")
        of = f" of {wanted}" if isinstance(wanted, int) and wanted > 0 else ""
        return f"{run.label} is not finished: step {done}{of}."
    return None
