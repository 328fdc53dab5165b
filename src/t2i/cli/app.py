"""What wraps the Hydra apps: their command lines are quoted and checked before Hydra reads them, mistakes are told in a
line with near names, and exit codes say how it ended.

Exit codes: 0 done, 1 a fault, a job of a sweep failed or an evaluation had to do without a metric, 2 a mistake of the
user's, 75 stopped and can be continued, 130 interrupted.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import shlex
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from t2i.cli import sweep
from t2i.config.compose import (
    ConfigError,
    composed,
    imply_model,
    parsed,
    plain,
    plan,
    quoted,
    refuse,
    resolved,
    swept,
)
from t2i.config.messages import is_for_people, shown
from t2i.config.places import PACKAGE, program
from t2i.config.quiet import plain_warnings

Run = Callable[[dict[str, Any], list[str]], Any]
LONGEST = 1000  # letters of a line of a message
log = logging.getLogger(__name__)


def main(app: Callable[[], Any], config_name: str) -> NoReturn:
    """Runs a function that `hydra.main` wraps, and ends the process with its exit code."""
    keep_freed_memory()
    if os.getcwd() not in sys.path:  # classes of the user's own, named by _target_
        sys.path.append(os.getcwd())

    def checked() -> None:
        sys.argv[1:] = prepared(config_name, sys.argv[1:])
        app()

    sys.exit(guarded(checked, "debug=true" in sys.argv))


def guarded(call: Callable[[], object], debug: bool = False) -> int:
    """Calls it, with messages instead of tracebacks; the exit code."""
    plain_warnings()
    for stream in (sys.stdout, sys.stderr):
        # Captions have letters that an ASCII terminal does not.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        call()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if debug or not is_for_people(error):
            raise
        print(message(error), file=sys.stderr)
        return 2
    return 0


def message(error: BaseException) -> str:
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return "\n".join(shown(line, LONGEST) for line in f"error: {text}".split("\n"))


def keep_freed_memory() -> None:
    """Tells glibc to keep large blocks that were freed. By default each goes back to the system, and every step's
    tensors are new pages for the kernel to clear: 1.5x the time of a small GPT's training step on a CPU (docs/log.md).
    Does nothing where there is no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no blocks outside the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: the heap does not shrink


def rank() -> int:
    """Of this process among those of a run, as torchrun, SLURM or Lightning numbers them."""
    found = (os.environ.get(name) for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    return next((int(value) for value in found if value), 0)


def refuse_flag(message: str) -> NoReturn:
    raise ConfigError(f"{message}; settings are key=value, and --help names the flags")


def prepared(config_name: str, words: Sequence[str]) -> list[str]:
    """A command line as Hydra is to read it, once it was checked; ConfigError says what is wrong with it."""
    parser = get_args_parser()
    parser.error = refuse_flag  # type: ignore[method-assign]  # argparse would print its usage
    args = parser.parse_intermixed_args(words)
    flags = [word for word in words if word not in args.overrides]
    if sum(bool(flag) for flag in (args.run, args.multirun, args.cfg, args.info, args.shell_completion)) > 1:
        raise ConfigError("of --run, --multirun, --cfg, --info and --shell-completion one at a time is allowed")
    if args.resolve and not args.cfg:
        raise ConfigError("--resolve goes with --cfg")
    if args.hydra_help or args.shell_completion:
        return list(words)
    if args.help:  # Hydra's own way takes seconds: it lists every group of its own and of its plugins, twice
        print(composed([], args.config_name or config_name, args.config_dir).hydra.help.template)
        raise SystemExit(0)
    refuse(args.overrides)
    overrides = imply_model(quoted(args.overrides))
    if args.multirun:
        overrides = prepared_sweep(config_name, overrides, args)
    elif several := [word for word in overrides if parsed(word).is_sweep_override()]:
        keys = [word.partition("=")[0].lstrip("+") for word in several]
        raise ConfigError("\n".join(f"{key} has several values: put -m before the settings to run one after the other"
                                    for key in keys))
    else:
        config = composed(overrides, args.config_name or config_name, args.config_dir)
        if args.cfg is None and args.info is None:
            overrides += prepared_run(config_name, config)
    return [*overrides, *flags]


def prepared_run(config_name: str, config: DictConfig) -> list[str]:
    """Checks the config of one run; what is to be added to its command line."""
    choices = config.hydra.runtime.choices
    if choices.get("hparams_search"):
        raise ConfigError(f"hparams_search={choices['hparams_search']} says what -m searches through: put -m before"
                          " the settings")
    found = resolved(config, config_name)
    quiet = ["hydra.output_subdir=null", *(["hydra/job_logging=none"] * (choices["hydra/job_logging"] == "default"))]
    if config_name == "train" and found["estimate"]:
        return ["hydra.run.dir=.", *quiet]
    if rank() > 0:
        return quiet  # the first of several processes writes for all
    if found.get("resume") == "never":  # before Hydra writes into the folder
        from t2i.training.resume import alone_in, move_away

        folder = Path(config.hydra.run.dir)
        with alone_in(folder):
            move_away(folder)
    return []


def prepared_sweep(config_name: str, overrides: list[str], args: Namespace) -> list[str]:
    """Checks a sweep's jobs before any runs: every value once, beside the first ones of the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("-m under torchrun would run every job on every rank: start the jobs one by one")
    several = [word.partition("=")[0] for word in overrides if parsed(word).is_sweep_override()]
    if {"model", "experiments"} & set(several):  # Hydra composes what all jobs share, where there is no model yet
        overrides = [f"{key}=choice({value})" if key.startswith("model.") and key not in several else word
                     for word in overrides for key, _, value in [word.partition("=")]]
    name = args.config_name or config_name
    shared = composed(overrides, name, args.config_dir, RunMode.MULTIRUN)
    sweeper = shared.hydra.sweeper
    optuna = "optuna" in sweeper._target_
    given = {word.partition("=")[0] for word in overrides}
    space = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items() if key not in given]
    axes, fixed = [], [key for key in given if key not in several]
    for word in [*space, *overrides]:
        override = parsed(word)
        key = override.get_key_element()
        value = override.value()
        if not override.is_sweep_override():
            axes.append([word])
        elif override.is_discrete_sweep():
            axes.append([f"{key}={each}" for each in override.sweep_string_iterator()])
        elif not optuna:
            raise ConfigError(f"{word}: an interval is searched by hydra/sweeper=optuna; -m alone takes {key}=a,b,c")
        else:
            assert isinstance(value, IntervalSweep)
            axes.append([f"{key}={value.start}", f"{key}={value.end}"])
    jobs = [[axis[0] for axis in axes]]
    jobs += [[*jobs[0][:i], other, *jobs[0][i + 1 :]] for i, axis in enumerate(axes) for other in axis[1:]]
    found = [resolved(composed(job, name, args.config_dir), config_name) for job in jobs]
    keys = ",".join(f"'{key.lstrip('+')}'" for key in fixed)
    more = [f"hydra.job.config.override_dirname.exclude_keys=[{keys}]"]
    if config_name == "train":
        more += prepared_training(found, sweeper if optuna else None)
    if shared.hydra.runtime.choices.get("hydra/launcher") == "submitit_slurm" and shutil.which("srun") is None:
        raise ConfigError("hydra/launcher=submitit_slurm: there is no srun here; start it where SLURM's programs are,"
                          " or take submitit_local, joblib or basic")
    if shared.hydra.runtime.choices.get("hydra/launcher") == "joblib" and "hydra.launcher.n_jobs" not in given:
        more.append(f"hydra.launcher.n_jobs={sweep.jobs_at_once()}")
    # The launchers' processes import this package, and the user's own classes.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()])
    return [*overrides, *more]


def prepared_training(configs: Sequence[dict[str, Any]], optuna: DictConfig | None) -> list[str]:
    """What of these configs does not go with -m, as ConfigError; the sweep's folder, where it is not by the name."""
    for config in configs:
        if config["stages"]:
            raise ConfigError("-m does not run pipelines: sweep over one stage, such as experiments=quickstart/vqgan")
        devices = config["trainer"]["devices"]
        if devices not in (1, [0]) or config["trainer"]["num_nodes"] != 1:
            raise ConfigError(f"-m with trainer.devices={devices}: each device's process would run the whole sweep; use"
                              " trainer.devices=1 (hydra/launcher=joblib or submitit_slurm then gives each job a GPU),"
                              " or start the jobs one by one (torchrun, a job array)")
        if config["estimate"]:
            raise ConfigError("estimate=true measures one at a time: leave -m out")
    goals = {(config["trainer"]["monitor"], config["trainer"]["monitor_mode"]) for config in configs}
    if len(goals) > 1:
        listed = ", ".join(f"{key} ({mode})" for key, mode in sorted(goals, key=str))
        raise ConfigError(f"the jobs' trainer.monitor differ: {listed}; give trainer.monitor= what to compare them by")
    monitor, mode = goals.pop()
    if optuna is not None:
        if monitor is None:
            raise ConfigError("hydra/sweeper=optuna needs a metric to search by: trainer.monitor=, such as val/loss")
        direction = str(getattr(optuna.direction, "name", optuna.direction))
        if direction[:3] != mode:
            raise ConfigError(f"hydra.sweeper.direction={direction} does not go with trainer.monitor_mode={mode}")
    names = {config["name"] for config in configs}
    return ["hydra.sweep.dir=${paths.runs}/models-sweep"] if len(names) > 1 else []


def train(config: dict[str, Any], overrides: list[str]) -> Any:
    if config["estimate"]:
        from t2i.training import profiling

        return profiling.run(config, overrides)
    if config["stages"] is not None:
        from t2i.training import pipeline

        return pipeline.run(config, plan(overrides))
    from t2i.training import train

    return train.run(config, f"{program('train')} {shlex.join(overrides)}")


def sample(config: dict[str, Any], overrides: list[str]) -> Any:
    if "clip_guided" in config:
        from t2i.generation.clip_guided import run as clip_guided_run

        return clip_guided_run.run(config)
    from t2i.generation import text_to_image

    return text_to_image.run(config)


def evaluate(config: dict[str, Any], overrides: list[str]) -> Any:
    from t2i.evaluation import evaluate

    result = evaluate.run(config)
    return result | {name: each["value"] for name, each in result.get("scores", {}).items() if "value" in each}


def prepare(config: dict[str, Any], overrides: list[str]) -> Any:
    from t2i.data import prepare

    return prepare.run(config)


RUNS: dict[str, Run] = {"train": train, "sample": sample, "evaluate": evaluate, "prepare": prepare}


def job(cfg: DictConfig, config_name: str, run: Run | None = None) -> float | None:
    """The body of a Hydra app: calls `run(config, overrides)`, by itself the app's, with the plain, checked config.

    Alone it ends the process with the exit code, if that is not 0. In a sweep it keeps the result, or what went wrong,
    and returns the objective (`t2i.cli.sweep`).
    """
    hydra, run = HydraConfig.get(), run or RUNS[config_name]
    words = [plain(word) for word in OmegaConf.to_container(hydra.overrides.task, resolve=False)]  # type: ignore
    if hydra.mode == RunMode.MULTIRUN:
        return job_of_sweep(cfg, config_name, run, words)
    config = resolved(cfg, config_name)
    if config_name == "train" and not config["estimate"]:
        words += placed(config)
    if config["debug"]:
        os.environ["HYDRA_FULL_ERROR"] = "1"
    result: Any = None

    # Without a job log, records go to the terminal by Hydra's own handler.
    logged = hydra.runtime.choices["hydra/job_logging"] != "none"

    def call() -> None:
        nonlocal result
        if logged:
            log.info("%s %s", program(config_name), " ".join(words))
        result = run(config, words)
        if logged:
            log.info("ended: %s", result)

    code = guarded(call, config["debug"])
    if code and logged:
        log.info("ended with exit code %s; what is wrong was printed", code)
    if isinstance(result, int) and not isinstance(result, bool):
        code = result
    if isinstance(result, dict) and result.get("missing"):
        code = 1
    if code:
        raise SystemExit(code)
    return None


def placed(config: dict[str, Any]) -> list[str]:
    """Makes `name` and `paths.runs` those of the folder that Hydra gave this job; the overrides that say so."""
    output = Path(HydraConfig.get().runtime.output_dir)
    runs = Path(config["paths"]["runs"])
    if output == (runs / config["name"]).absolute():
        return []
    if output.is_relative_to(runs.absolute()) and output != runs.absolute():
        config["name"] = output.relative_to(runs.absolute()).as_posix()
    else:
        config["paths"]["runs"], config["name"] = str(output.parent), output.name
    return [f"paths.runs={config['paths']['runs']}", f"name={config['name']}"]


def job_of_sweep(cfg: DictConfig, config_name: str, run: Run, words: list[str]) -> float | None:
    hydra = HydraConfig.get()
    folder = Path(hydra.sweep.dir)
    launcher = str(hydra.launcher._target_)
    if "joblib" in launcher or launcher.endswith("LocalLauncher"):
        sweep.take_gpu(folder)
    raw = OmegaConf.to_container(hydra.overrides.task, resolve=False), hydra.job.config.override_dirname.exclude_keys
    settings = {key: plain(f"{key}={value}").partition("=")[2] for key, value in swept(*raw).items()}  # type: ignore
    name = " ".join(f"{key}={value}" for key, value in settings.items())
    result, goal, error = {}, None, None
    try:
        config = resolved(cfg, config_name)
        if config_name == "train":
            t = config["trainer"]
            goal = (t["monitor"], t["monitor_mode"]) if t["monitor"] else None
            words = [word for word in words if not word.startswith("name=")] + placed(config)
            if not config["group"]:
                config["group"] = Path(config["name"]).parent.as_posix()
                words.append(f"group={config['group']}")
        found = run(config, words)
        result = found if isinstance(found, dict) else {}
    except (ValueError, OSError) as mistake:
        if not is_for_people(mistake):
            log.exception("job %s (%s)", hydra.job.num, name)
        error = message(mistake).removeprefix("error: ")
    except Exception as fault:  # the others are to run: Hydra would end the sweep without a table
        log.exception("job %s (%s)", hydra.job.num, name)
        error = f"{type(fault).__name__}: {shown(str(fault).partition(chr(10))[0])}"
    row = sweep.row(int(hydra.job.num), settings, result, goal, error and error.partition("\n")[0])
    sweep.keep(folder, row)
    value = "" if row["objective"] is None else f", objective {row['objective']:.4g}"
    print(f"[job {hydra.job.num}] {name}: " + (f"error: {error}" if error else f"done{value}"), flush=True)
    gc.collect()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()
    objective: float | None = row["objective"]
    return objective
