"""The command line of the doors: help, messages instead of tracebacks, sweeps and their table."""

from __future__ import annotations

import csv
import ctypes
import gc
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from t2i.check import SOURCE
from t2i.config import ConfigError, choices, compose, groups, parse_sweep

Run = Callable[[dict[str, Any], list[str]], Any]
HELP = """
Settings are key=value; any key can be set (data.batch_size=64), `--cfg` shows them all. -m runs every combination of
settings with several values (model/quantizer=vq,ema seed=0,1). Mistakes give a message; debug=true gives a traceback.
"""


def usage(config_name: str, about: str) -> str:
    lines = [about.strip(), HELP]
    own = {"train": [g for g in groups() if g != "guide"], "sample": ["guide"], "evaluate": ["guide"]}
    if config_name in own:
        lines += ["Groups:", *(f"  {group}={'|'.join(choices(group))}" for group in own[config_name])]
    lines += ["", f"Keys (conf/{config_name}.yaml):"]
    text = (SOURCE.parent / f"conf/{config_name}.yaml").read_text(encoding="utf-8")
    lines += [f"  {line}" for line in text.splitlines() if re.match(r"(  )?\w+:", line) and "searchpath" not in line
              and not re.match(r"(defaults|hydra):", line)]
    return "\n".join(lines)


def main(config_name: str, run: Run, about: str) -> None:
    """Composes the command line's config, checks it, and calls `run(config, overrides)`; never returns.

    Exit codes: 0 done, 1 a job of a sweep failed, 2 a mistake of the user's, 75 stopped and can be continued,
    130 interrupted.
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
        else:
            result = run(compose(overrides, config_name), overrides)
            code = result if isinstance(result, int) and not isinstance(result, bool) else 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except (ValueError, OSError) as error:
        if not is_for_people(error) or wants_traceback(overrides):
            raise
        print(message(error), file=sys.stderr)
        code = 2
    sys.exit(code)


def keep_freed_memory() -> None:
    """Tells glibc to keep large blocks that were freed. By default each goes back to the system, and every step's
    tensors are new pages for the kernel to clear: 1.5x the time of a small GPT's training step on a CPU (docs/log.md).
    Does nothing where there is no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no blocks outside the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def wants_traceback(overrides: list[str]) -> bool:
    return os.environ.get("T2I_TRACEBACK") == "1" or "debug=true" in overrides


def is_for_people(error: BaseException) -> bool:
    """Whether our own code raised it: libraries' errors are faults to look at, with their traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).resolve().is_relative_to(SOURCE / "t2i")


def message(error: BaseException) -> str:
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return f"error: {text}"


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


def prepare_sweep(config_name: str, overrides: list[str]) -> tuple[list[list[str]], list[dict[str, str]], Path]:
    """The jobs' overrides with a name each, their swept settings, and the sweep's folder; checked before any runs."""
    found = jobs(overrides)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("-m under torchrun would run every job on every rank: start the jobs one by one")
    configs = [compose(words, config_name) for words, _ in found]
    names = {config.get("name") for config in configs}
    base = f"{names.pop() if len(names) == 1 else 'models'}-sweep"
    everything = []
    for (words, settings), config in zip(found, configs, strict=True):
        if config.get("stages"):
            raise ConfigError("-m does not run pipelines: sweep over one stage, such as experiments=quickstart/vqgan")
        devices = config.get("trainer", {}).get("devices", 1)
        if devices not in (1, [0]) or config.get("trainer", {}).get("num_nodes", 1) != 1:
            raise ConfigError(f"-m with trainer.devices={devices}: each device's process would run the whole sweep;"
                              " use trainer.devices=1, or start the jobs one by one (torchrun, a job array)")
        if config_name == "train":
            own = "_".join(tag(key, value, list(settings)) for key, value in settings.items()) or "only"
            words = [w for w in words if not w.startswith("name=")] + [f"name={base}/{own}"]
            words += [] if config["group"] else [f"group={base}"]
        everything.append(words)
    folder = Path(configs[0]["paths"]["runs"]) / base if config_name == "train" else Path()
    return everything, [settings for _, settings in found], folder


def sweep(config_name: str, run: Run, overrides: list[str]) -> int:
    """Runs every job after the other and writes one table of their results."""
    listed, settings, folder = prepare_sweep(config_name, overrides)
    rows: list[dict[str, Any]] = []
    for i, (words, setting) in enumerate(zip(listed, settings, strict=True)):
        shown = " ".join(f"{key}={value}" for key, value in setting.items())
        print(f"\n[{i + 1}/{len(listed)}] {shown}", flush=True)
        row: dict[str, Any] = dict(setting)
        try:
            result = run(compose(words, config_name), words)
            if isinstance(result, dict):
                row |= {key: value for key, value in result.items() if isinstance(value, int | float)}
                row |= result.get("metrics", {})
        except (ValueError, OSError) as error:
            if not is_for_people(error) or wants_traceback(overrides):
                raise
            print(message(error), file=sys.stderr)
            row["error"] = str(error).splitlines()[0]
        rows.append(row)
        gc.collect()
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
            sys.modules["torch"].cuda.empty_cache()
    print("\n" + table(rows))
    if config_name == "train":
        columns = list(dict.fromkeys(key for row in rows for key in row))
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        print(f"\nAll columns: {folder / 'sweep.csv'}")
    return 1 if any("error" in row for row in rows) else 0


def table(rows: list[dict[str, Any]]) -> str:
    """The jobs side by side; of the metrics those of validation where there are any."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if any(c.startswith("val/") for c in columns):
        settings = [c for c in columns if isinstance(rows[0].get(c), str)]
        columns = [c for c in columns if "/" not in c or c.startswith("val/") or c in settings]
    cells = [columns]
    for row in rows:
        values = [row.get(column, "") for column in columns]
        cells.append([f"{value:.4g}" if isinstance(value, float) else str(value) for value in values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)
