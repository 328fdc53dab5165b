"""Runs side by side on one page: `t2i compare runs/a runs/b …`.

Written are `compare.html` (one file: table, curves, pictures), `compare.md` (the table) and `compare.json`.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from t2i.config.check import near
from t2i.config.messages import shown
from t2i.config.places import program

ABOUT = """
t2i compare runs/a runs/b runs/c        settings, cost, scores, curves and pictures of runs, on one page
t2i compare runs/a runs/b/best.ckpt     a checkpoint can be named itself

  out=FOLDER       where to (runs/compare-<names>)
  captions=FILE    what models that draw are asked for, one caption a line (those of the first validation pictures)
  n=8              captions, or pictures to reconstruct
  seed=0           of the drawings; picture i has the same seed in every run
  ckpt=last        last or best
  device=auto      auto, cpu, cuda
  trust=A,B        packages whose classes checkpoints may build, folders and files that runs' configs may open
"""
DEFAULTS: dict[str, Any] = {"out": None, "captions": None, "n": None, "seed": 0, "ckpt": "last", "device": "auto",
                            "trust": None, "debug": "false"}
MOST = 64
LONGEST = 60  # letters of the folder's name


def parse(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Run folders, and options with their defaults; ValueError with all that is wrong."""
    named, options, faults = [], dict(DEFAULTS), []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or Path(word).exists():
            if word.startswith("-"):
                faults.append(f"{word}: no such flag; options are key=value")
            named.append(word)
        elif key not in DEFAULTS:
            faults.append(f"{key}=: there is no such option{near(key, list(DEFAULTS))}; allowed are"
                          f" {', '.join(name for name in DEFAULTS if name != 'debug')}")
        else:
            options[key] = value
    for key, least, most in (("n", 1, MOST), ("seed", 0, None)):
        value = options[key]
        if isinstance(value, str):
            fits = value.isdecimal() and int(value) >= least and (most is None or int(value) <= most)
            if not fits:
                upto = f" to {most}" if most is not None else ""
                faults.append(f"{key}={value}: allowed are whole numbers from {least}{upto}")
            options[key] = int(value) if fits else None
    if options["ckpt"] not in ("last", "best"):
        faults.append(f"ckpt={options['ckpt']}: allowed are last and best; a checkpoint of another name is given by its"
                      " path in a run's place")
    if faults:
        raise ValueError("\n".join(faults))
    return named, options


def folder_of(labels: list[str]) -> Path:
    """The default folder: runs/compare-<names>, cut where they are many."""
    name = "-".join(re.sub(r"[^A-Za-z0-9._]+", "-", label).strip("-") for label in labels)
    return Path("runs") / f"compare-{name[:LONGEST].rstrip('-')}"


def versions() -> str:
    import pytorch_lightning
    import torch

    from t2i.version import version

    return (f"t2i {version()}, torch {torch.__version__}, pytorch_lightning {pytorch_lightning.__version__},"
            f" Python {platform.python_version()}")


def run(named: list[str], options: dict[str, Any]) -> dict[str, Any]:
    """Compares runs as `parse` gives them, writes the three files, prints the table, and returns what `compare.json`
    holds."""
    from t2i.checkpoint.lock import exclusive
    from t2i.checkpoint.registry import trust
    from t2i.config.quiet import quiet
    from t2i.evaluation.compare.runs import gather
    from t2i.generation.text_to_image import device_of, read_lines

    quiet()
    trust((options["trust"] or "").strip("[]").split(","))
    if options["captions"] is not None:
        read_lines(options["captions"], "captions")  # a mistake answers before any model is loaded
    device = device_of(options["device"])
    runs = gather(named, options["ckpt"])
    out = folder_of([one.label for one in runs]) if options["out"] is None else Path(options["out"])
    with ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(exclusive(out, "compare"))
        except OSError as error:
            raise ValueError(f"out={shown(out)} cannot be written: {error.strerror}") from error
        return compared(named, options, runs, out, device)


def compared(named: list[str], options: dict[str, Any], runs: list[Any], out: Path, device: Any) -> dict[str, Any]:
    """Draws, writes and prints; what `run` returns."""
    from t2i.checkpoint import atomic
    from t2i.evaluation.compare import page, tables
    from t2i.evaluation.compare.images import hardware, sheets
    from t2i.evaluation.compare.runs import last_validation, settings, standing
    from t2i.generation.text_to_image import KINDS

    labels = [one.label for one in runs]
    made, missing = sheets(runs, options["captions"], options["n"], options["seed"], device)
    columns, rest = tables.columns(runs)
    notes = [note for one in runs if (note := standing(one)) is not None]
    notes += [*tables.warnings(runs), *missing]
    changed = [f"{key}={value}" for key, value in options.items() if value != DEFAULTS[key]]
    again = ["t2i compare " + shlex.join([*named, *changed])]
    for one in runs:
        again.append(f"# {one.label}")
        again.append(one.command or f"# of an earlier version: see {one.folder / 'config.json'}")
        if one.checkpoint is not None and one.evaluation is None and one.kind in KINDS:
            again.append(f"{program('evaluate')} ckpt={shlex.quote(str(one.checkpoint))}")
    facts = [f"Pictures were made on {hardware(device)}.", versions()]
    date = time.strftime("%Y-%m-%d %H:%M")
    table = tables.markdown(labels, columns)
    result: dict[str, Any] = {
        "runs": [{"label": one.label, "folder": str(one.folder),
                  "checkpoint": None if one.checkpoint is None else str(one.checkpoint),
                  "finished": one.finished is not None, "kind": one.kind, **one.facts,
                  "validation": last_validation(one),
                  "scores": {name: asdict(score) for name, score in tables.scores_of(one.evaluation).items()}}
                 for one in runs],
        "settings": settings([one.config for one in runs]), "notes": notes,
        "footnotes": [f"{title}: {note}" for title, note in tables.footnotes(columns)],
        "captions": next((sheet.texts for sheet in made if sheet.title == "The same captions"), None),
        "seed": options["seed"], "seeds": 'f(seed, "comparison", i)', "date": date, "facts": facts, "again": again,
    }
    listed, commands = "".join(f"- {note}\n" for note in notes), "\n".join(again)
    atomic.write_text(out / "compare.md", f"# {', '.join(labels)}\n\n{date}\n\n{listed}\n{table}\n\n"
                                          f"```\n{commands}\n```\n\n{' '.join(facts)}\n")
    atomic.write_text(out / "compare.json", json.dumps(result, indent=1, ensure_ascii=False))
    page.write(out / "compare.html", runs, columns, rest, page.curves(runs), made, notes, again, facts, date)
    print(table)
    print("".join(f"\n{shown(note, 1000)}" for note in notes))
    print(f"Written: {', '.join(shown(out / f'compare.{ending}') for ending in ('html', 'md', 'json'))}")
    return {**result, "out": str(out)}
