"""Several stages as one command: each is a plain run that can be typed by itself; then scores, pictures, a report.

What is done is not done again, what was interrupted goes on: a stage by its run folder, evaluation and comparison by
the hash of the checkpoint that they scored.
"""

from __future__ import annotations

import json
import re
import resource
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from t2i.checkpoint import atomic, building, file_format
from t2i.checkpoint.plain_files import read_table
from t2i.config import quiet
from t2i.config.compose import Stage, compose, flat
from t2i.config.places import program
from t2i.evaluation import evaluate
from t2i.evaluation.evaluator import HEAD, table, without
from t2i.evaluation.evaluator import rows as score_rows
from t2i.evaluation.protocols import OF_OWN_CAPTIONS
from t2i.models.distributed import rank_and_world_size
from t2i.training import train
from t2i.viz.html import composition_tables
from t2i.viz.progress import clock
from t2i.viz.tables import Table

KEY = re.compile(r"[\w.]+=")  # with which a message begins that names one
PLAIN = re.compile(r"(?!(true|false|null|nan|inf)$)[a-z_/~.][\w./~-]*", re.IGNORECASE)  # text that is taken as it is


@rank_zero_only
def heading(text: str) -> None:
    print(f"\n{text}", flush=True)


def asked(settings: dict[str, Any], ckpt: Path, out: Path) -> list[str]:
    """The command line of an evaluation."""
    keys = {key: value for key, value in flat(settings).items() if not isinstance(value, dict)}
    return [f"ckpt={ckpt}", f"out={out}", *(f"{key}={word(value)}" for key, value in keys.items())]


def evaluated(settings: dict[str, Any], ckpt: Path, out: Path, trust: Sequence[str] = ()) -> dict[str, Any]:
    """The scores of a checkpoint, from `evaluation.json` if that is about this very file and these settings; `trust`:
    what else than the settings say it may build and open."""
    overrides = asked(settings, ckpt, out)
    named = [f"trust=[{','.join(trust)}]"] if trust else []
    shown = f"{program('evaluate')} {shlex.join([*overrides, *named])}"
    heading(shown)
    if (found := out / "evaluation.json").is_file():
        held = read_table(found, protocol=dict, scores=dict, missing=dict)
        same = held["protocol"].get("hash") == file_format.file_hash(ckpt) and held.get("settings") == settings
        if same and "sheets" in held:  # without them before 2026-12
            print(f"already there:\n{evaluate.nested_tables(held['scores'])}{table(held['scores'], held['missing'])}")
            return held
    started = time.monotonic()
    config = compose(overrides, "evaluate")
    result = evaluate.run(config | {"trust": [*config["trust"], *trust]})  # not as text: a folder may have any name
    result |= {"settings": settings, "seconds": round(time.monotonic() - started, 1), "command": shown}
    if rank_and_world_size()[0] == 0:
        atomic.write_text(found, json.dumps(result, indent=1))
    return result


def let_open(config: dict[str, Any]) -> list[str]:
    """What a stage's command named may be opened for its own checkpoint, too."""
    return list(dict.fromkeys([*config["trust"], *building.places(config["data"])]))


def word(value: Any) -> str:
    """A setting's value as it is written on a command line."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(word, value)) + "]"
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return QuotedString(value, Quote.double).with_quotes()
    return "null" if value is None else str(value)


def peak_memory() -> float:
    """The process's largest resident size so far, in GB."""
    unit = 1024 if sys.platform == "linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def run(config: dict[str, Any], stages: Sequence[Stage]) -> dict[str, Any]:
    """Runs the stages, evaluates the last one's model, compares several, if the recipe says how, and writes the report.

    Of several processes the first does what follows the stages, those of torchrun share the evaluation; the others
    return what the last stage did.
    """
    quiet.quiet()
    from t2i.evaluation.compare import stages as compare_stages
    from t2i.training.report import write_report

    settings, comparison = config["evaluation"], config["comparison"]
    if comparison is not None:  # a mistake in it would show after hours
        compare_stages.check(comparison, {s.name: compose(s.overrides, files=False) for s in stages})
    started = time.monotonic()
    folder = Path(config["paths"]["runs"]) / config["name"]
    if settings is not None:  # and in these
        if not isinstance(settings, dict):
            raise ValueError(f"evaluation={word(settings)}: keys of evaluate.py are wanted, such as"
                             " evaluation.metrics=[composition], or null")
        for key in ("ckpt", "images", "out", "export"):
            if key in settings:
                raise ValueError(f"evaluation.{key}={word(settings[key])}: a pipeline scores its last stage, in its own"
                                 " folder; python evaluate.py scores any other")
        configs = [compose(stage.overrides, files=False) for stage in stages]
        try:
            given = compose(asked(settings, folder / "last.ckpt", folder), "evaluate", files=False)
            evaluate.check_ahead(given, configs, let_open(configs[-1]))
        except ValueError as error:
            raise ValueError("\n".join(f"evaluation{'.' if KEY.match(line) else ': '}{line}"
                                       for line in str(error).splitlines())) from error
    trained: list[dict[str, Any]] = []
    stage_config: dict[str, Any] = {}
    for i, stage in enumerate(stages, 1):
        heading(f"[{i}/{len(stages)}] {stage.command}")
        stage_config = compose(stage.overrides)
        result = train.run(stage_config, stage.command)
        trained.append({"name": stage.name, "command": stage.command, **result})
    first = not getattr(rank_zero_only, "rank", 0)
    if not first and (settings is None or rank_and_world_size()[1] == 1):
        return trained[-1]
    done, scores, grids, notes = list(trained), None, [], []
    missing: dict[str, str] = {}
    ckpt = f"{trained[-1]['run_dir']}/last.ckpt"
    tables: list[Table] = []
    overall: dict[str, float] = {}
    prompt = "a caption of your own"
    following: list[str] = []
    if settings is not None:
        result = evaluated(settings, Path(ckpt), folder, let_open(stage_config))
        if not first:
            return trained[-1]
        protocol = result["protocol"]
        done.append({"name": "evaluation", "run_dir": str(folder), "command": result["command"],
                     "seconds": result["seconds"]})
        missing = result["missing"]
        notes += [f"Sampler: {protocol['sampler']}, seed {protocol['seed']}.", *without(missing)]
        if "composition" in result["scores"]:
            scores, prompt = result["scores"]["composition"], "two red circles above a blue square"
            notes.append(f"Composition: {protocol['n_per_task']} pictures a task; reader: {protocol['reader']}.")
            recipe = "shapes" if config["group"] == "quickstart" else "pictures data.root=FOLDER"
            following = [f"{program('evaluate')} ckpt={ckpt} n_per_task=200",
                         f"{program('train')} experiments={recipe}"]
            overall |= {f"composition_{split}": kinds["score"]["overall"] for split, kinds in scores.items()}
        if "nearest_render" in result["scores"]:
            judged = result["scores"]["nearest_render"]
            overall |= {f"nearest_render_{split}": kinds["score"]["plain"]["pair"]["value"]
                        for split, kinds in judged.items()}
        if "paraphrase" in result["scores"]:
            overall |= {name: result["scores"][name]["value"] for name in ("paraphrase_names", "paraphrase_words")}
        if "wordings" in result["scores"]:
            overall |= {f"paraphrase_{name}": kinds["score"]["overall"]["value"]
                        for name, kinds in result["scores"]["wordings"].items()}
        of_others = {name: each for name, each in result["scores"].items()
                     if not name.startswith((*OF_OWN_CAPTIONS, "editing")) and "value" in each}
        overall |= {name: each["value"] for name, each in of_others.items()}
        tables += [each for name, judged in result["scores"].items() if name in evaluate.TABLES
                   for each in evaluate.TABLES[name](judged)]
        if of_others:
            tables.append(Table("Scores", ["score", *HEAD], score_rows(of_others), strong_columns=[1]))
        grids += [(text, folder / name) for name, text in result["sheets"].items()]
    shown = scores
    commands = [f'{program("sample")} ckpt={ckpt} prompt="{prompt}" n=8',
                f"{program('sample')} ckpt={ckpt} prompts=prompts.txt out=drawings", *following]
    if comparison is not None:
        heading("Comparison")
        since = time.monotonic()
        compared = compare_stages.run(comparison, trained, folder, config["seed"], config["paths"])
        if scores is None:
            shown = compare_stages.scores(compared)
        else:
            tables += [replace(each, title=f"Comparison: {each.title}")
                       for each in composition_tables(compare_stages.scores(compared))]
        grids.insert(0, ("Models in rows, captions in columns", folder / "comparison.png"))
        done.append({"name": "comparison", "run_dir": str(folder), "seconds": round(time.monotonic() - since, 1)})
        runs = {stage["name"]: stage["run_dir"] for stage in trained}
        commands = [f'{program("sample")} ckpt={runs[stage]}/last.ckpt prompt="two red circles above a blue square" n=8'
                    for stage in comparison["models"].values()]
    total = time.monotonic() - started
    cost = f"{clock(total)} min and {peak_memory():.1f} GB of memory at most."
    notes.append(f"This command took {cost}")
    report = write_report(folder, done, shown, grids, commands, notes=notes, tables=tables)
    heading(f"Done in {cost}")
    print(f"Pictures: {grids[0][1] if grids else done[-1]['run_dir']}\nReport:   {report}\nTry next:")
    print("\n".join(f"  {command}" for command in commands))
    return {"report": str(report), "run_dir": trained[-1]["run_dir"], "seconds": round(total, 1), **overall,
            "missing": missing}
