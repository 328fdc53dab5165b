"""The command line of the doors: help, messages instead of tracebacks, sweeps and their table."""

from __future__ import annotations

import ctypes
import gc
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t2i.cli.launchers import STOPPED, Job, Outcome, launch
from t2i.cli.sweep_results import Mode, best, flat_row, row, table, told, write
from t2i.config.check import SOURCE
from t2i.config.compose import ConfigError, choices, compose, groups, parse_sweep
from t2i.config.messages import is_for_people, shown

Run = Callable[[dict[str, Any], list[str]], Any]
LONGEST = 1000  # letters of a line of a message
HELP = """
Settings are key=value; any key can be set (data.batch_size=64), `--cfg` shows them all. -m runs every combination of
settings with several values (model/quantizer=vq,ema seed=0,1). Mistakes give a message; debug=true gives a traceback.
"""


def usage(config_name: str, about: str) -> str:
    lines = [about.strip(), HELP]
    own = {"train": [g for g in groups() if g != "method"], "sample": ["method"], "evaluate": ["data", "method"]}
    if config_name in own:
        lines += ["Groups:", *(f"  {group}={'|'.join(choices(group))}" for group in own[config_name])]
    lines += ["", f"Keys (conf/{config_name}.yaml):"]
    text = (SOURCE.parent / f"conf/{config_name}.yaml").read_text(encoding="utf-8")
    lines += [f"  {line}" for line in text.splitlines() if re.match(r"(  )?\w+:", line) and "searchpath" not in line
              and not re.match(r"(defaults|hydra):", line)]
    return "\n".join(lines)


def main(config_name: str, run: Run, about: str) -> None:
    """Composes the command line's config, checks it, and calls `run(config, overrides)`; never returns.

    Exit codes: 0 done, 1 a job of a sweep failed or an evaluation had to do without a metric, 2 a mistake of the
    user's, 75 stopped and can be continued, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # Captions have letters that an ASCII terminal does not.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:]
    flags = [word for word in words if word.startswith("-") and "=" not in word]
    overrides = [word for word in words if word not in flags]
    code = 0
    keep_freed_memory()
    try:
        if {"-h", "--help"} & set(flags):
            print(usage(config_name, about))
        elif unknown := sorted(set(flags) - {"-m", "--multirun", "-c", "--cfg"}):
            raise ConfigError(f"{', '.join(unknown)}: no such flag; allowed are --help, --cfg, -m (--multirun)")
        elif {"-c", "--cfg"} & set(flags):
            print(json.dumps(compose(overrides, config_name, files=False), indent=2, ensure_ascii=False))
        elif flags:
            code = sweep(config_name, run, overrides)
        elif lone := [word for word in overrides if config_name == "train" and is_sweep_key(word.partition("=")[0])]:
            raise ConfigError(f"{', '.join(lone)}: sweep. settings say how -m runs its jobs, and there is no -m")
        else:
            result = run(compose(overrides, config_name), overrides)
            code = result if isinstance(result, int) and not isinstance(result, bool) else 0
            code = 1 if isinstance(result, dict) and result.get("missing") else code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except (ValueError, OSError) as error:
        if not is_for_people(error) or wants_traceback(overrides):
            raise
        print(message(error), file=sys.stderr)
        code = 2
    sys.exit(code)


def module(run: Callable[[], object], words: Sequence[str]) -> int:
    """Runs a command of `python -m`, with messages instead of tracebacks; 0 done, 2 a mistake of the user's, 130
    interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if not is_for_people(error) or wants_traceback(words):
            raise
        print(message(error), file=sys.stderr)
        return 2
    return 0


def keep_freed_memory() -> None:
    """Tells glibc to keep large blocks that were freed. By default each goes back to the system, and every step's
    tensors are new pages for the kernel to clear: 1.5x the time of a small GPT's training step on a CPU (docs/log.md).
    Does nothing where there is no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no blocks outside the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def wants_traceback(overrides: Sequence[str]) -> bool:
    return os.environ.get("T2I_TRACEBACK") == "1" or "debug=true" in overrides


def message(error: BaseException) -> str:
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return "\n".join(shown(line, LONGEST) for line in f"error: {text}".split("\n"))


def tag(key: str, value: str, keys: list[str]) -> str:
    """A swept setting as a piece of a folder's name: quantizer-vq."""
    last = re.split(r"[./]", key)[-1]
    unique = sum(re.split(r"[./]", other)[-1] == last for other in keys) == 1
    return re.sub(r"[^A-Za-z0-9.-]+", "-", f"{last if unique else key}-{value}").strip("-")


def jobs(overrides: list[str]) -> list[tuple[list[str], dict[str, str]]]:
    """Every combination of a sweep: its overrides, and the swept settings alone."""
    parsed = parse_sweep(overrides)
    swept = {key for key, values in parsed if len(values) > 1}
    combinations = itertools.product(*(values for _, values in parsed))
    return [(list(words), {w.partition("=")[0]: w.partition("=")[2] for w in words if w.partition("=")[0] in swept})
            for words in combinations]


def is_sweep_key(key: str) -> bool:
    return key.lstrip("+~").partition(".")[0] == "sweep"


def prepare_sweep(config_name: str, overrides: list[str]) -> tuple[list[list[str]], list[dict[str, str]], Path]:
    """The jobs' overrides with a name each, their swept settings, and the sweep's folder; checked before any runs."""
    found = jobs(overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("-m under torchrun would run every job on every rank: start the jobs one by one")
    if swept := [key for key in found[0][1] if is_sweep_key(key)]:
        raise ConfigError(f"{', '.join(swept)} has several values: sweep. settings hold for the whole sweep")
    if config_name != "train" and any(is_sweep_key(word.partition("=")[0]) for word in overrides):
        raise ConfigError(f"sweep. settings are train.py's: {config_name}.py -m runs one job after the other")
    configs = [compose(words, config_name) for words, _ in found]
    names = {config.get("name") for config in configs}
    base = f"{names.pop() if len(names) == 1 else 'models'}-sweep"
    everything = []
    for (words, settings), config in zip(found, configs, strict=True):
        if config.get("stages"):
            raise ConfigError("-m does not run pipelines: sweep over one stage, such as experiments=quickstart/vqgan")
        if config_name == "train":
            devices = config["trainer"]["devices"]
            if devices not in (1, [0]) or config["trainer"]["num_nodes"] != 1:
                raise ConfigError(f"-m with trainer.devices={devices}: each device's process would run the whole sweep;"
                                  " use trainer.devices=1 (sweep.launcher=joblib or submitit then gives each job a"
                                  " GPU), or start the jobs one by one (torchrun, a job array)")
            words = [w for w in words if not is_sweep_key(w.partition("=")[0])]
            own = "_".join(tag(key, value, list(settings)) for key, value in settings.items()) or "only"
            words = [w for w in words if not w.startswith("name=")] + [f"name={base}/{own}"]
            words += [] if config["group"] else [f"group={base}"]
        everything.append(words)
    folder = Path(configs[0]["paths"]["runs"]) / base if config_name == "train" else Path()
    return everything, [settings for _, settings in found], folder


def goal(configs: Sequence[Mapping[str, Any]]) -> tuple[str, Mode] | None:
    """The metric that a sweep's jobs are compared by, and which end of it is better; None: by none."""
    found: set[tuple[str | None, Mode]] = set()
    for config in configs:
        options, t = config["sweep"], config["trainer"]
        own = options["objective"]
        found.add((own or t["monitor"], options["objective_mode"] or ("min" if own else t["monitor_mode"])))
    if len(found) > 1:
        shown = ", ".join(f"{key} ({mode})" for key, mode in sorted(found, key=str))
        raise ConfigError(f"the jobs' trainer.monitor differ: {shown}; give sweep.objective= what to compare them by")
    key, mode = found.pop()
    return (key, mode) if key else None


def one_by_one(config_name: str, run: Run, listed: list[list[str]], shown: list[str]) -> Iterator[tuple[int, Outcome]]:
    """Runs the jobs in this process; a mistake in one is told and does not stop the others."""
    for i, words in enumerate(listed):
        print(f"\n[{i + 1}/{len(listed)}] {shown[i]}", flush=True)
        try:
            result = run(compose(words, config_name), words)
        except (ValueError, OSError) as error:
            if not is_for_people(error) or wants_traceback(words):
                raise
            print(message(error), file=sys.stderr)
            yield i, {"error": str(error).partition("\n")[0]}
        else:
            yield i, {"result": result if isinstance(result, dict) else {}}
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()


def sweep(config_name: str, run: Run, overrides: list[str]) -> int:
    """Runs every job, by `sweep.launcher`, and writes one table of their results; returns the exit code."""
    listed, settings, folder = prepare_sweep(config_name, overrides)
    shown = [" ".join(f"{key}={value}" for key, value in setting.items()) for setting in settings]
    wanted, outcomes = None, one_by_one(config_name, run, listed, shown)
    if config_name == "train":
        wanted = goal([compose(words) for words, _ in jobs(overrides)])
        options = compose(jobs(overrides)[0][0])["sweep"]
        if options["launcher"] != "basic":
            configs = [compose(words) for words in listed]
            if any(config["estimate"] for config in configs):
                raise ConfigError(f"estimate=true with sweep.launcher={options['launcher']}: estimates measure one at a"
                                  " time; leave sweep.launcher out")
            logs = [folder / "logs" / f"{Path(config['name']).name}.log" for config in configs]
            found = [Job(*each) for each in zip(shown, listed, configs, logs, strict=True)]
            outcomes = launch(found, options, SOURCE.parent / "train.py", folder / "submitit")
    rows: dict[int, dict[str, Any]] = {}
    stopped = 0
    for i, outcome in outcomes:
        if "stopped" in outcome:
            stopped += 1
            continue
        rows[i] = row(i, settings[i], outcome, wanted)
        if config_name == "train":
            if options["launcher"] != "basic":
                print(told(rows[i], shown[i], len(rows), len(listed), "before" in outcome), flush=True)
            write(folder, [rows[k] for k in sorted(rows)], wanted, overrides)
    done = [rows[k] for k in sorted(rows)]
    if done:
        print("\n" + table([flat_row(each) for each in done]))
    if config_name == "train" and done:
        print(f"\nAll columns: {folder / 'sweep.csv'}")
        if wanted is not None and (line := best(done, *wanted)):
            print(line)
    if stopped:
        print(f"\nStopped with {stopped} of {len(listed)} jobs to go; the same command goes on.")
        return STOPPED
    return 1 if any(each["error"] for each in done) else 0
