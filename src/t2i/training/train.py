"""One training run: its parts, and what happens when it is interrupted.

Ctrl-C and SIGTERM save and stop (exit code 75); a second one aborts. A crash saves beside `last.ckpt`, never over it.
Where a run lies and goes on: `t2i.training.resume`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.callbacks import ProgressBar as AnyProgressBar
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from t2i.checkpoint import atomic, building, file_format, lightning_io, registry
from t2i.checkpoint.plain_files import read_table
from t2i.config import quiet
from t2i.config.messages import is_for_people, shown
from t2i.data.datasets import caption_texts, data_module
from t2i.models.base import NonFiniteLoss, NonFiniteLossOnOtherRank, precision, set_accumulation_and_compile
from t2i.training import hardware, loggers
from t2i.training.batch_size import settled
from t2i.training.callbacks.checkpointing import FULL, ConfigInCheckpoint, OptimizerSettings, RunCheckpoint, StepSeed
from t2i.training.callbacks.early_stopping import Timer
from t2i.training.initialization import freeze, start_from
from t2i.training.resume import alone_in, begin, finished, is_first, open_run
from t2i.training.strategies import lost, strategy

BEFORE = "before.json"  # in the folder of a run with init=: the validation of what it started from
STOPPED = 75  # exit code of a run that was asked to stop and can be continued


class Placed(pl.Callback):
    """Frozen parts are where the module is, as training has them."""

    def on_validation_start(self, trainer: pl.Trainer, module: Any) -> None:
        module.place()


def validated(config: dict[str, Any], run_dir: Path, model: Any, data: Any) -> dict[str, float]:
    """The scores of a model as it is; no callback or logger of the run sees them."""
    trainer = make_trainer({**config, "logger": {}}, run_dir, [Placed()], model)
    found = trainer.validate(model, data, verbose=False)
    return {name: value for scores in found for name, value in scores.items() if name.startswith("val/")}


def compared(before: dict[str, float], after: dict[str, float]) -> str:
    """The scores of a validation before training from `init=` and after it, as a Markdown table."""
    rows = [f"| {name} | {value:.4g} | {after[name]:.4g} |" for name, value in before.items() if name in after]
    return "\n".join(["", "| validation | before | after |", "| --- | --- | --- |", *rows])


def make_trainer(config: dict[str, Any], run_dir: Path, callbacks: list[Any], model: Any) -> pl.Trainer:
    t = config["trainer"]
    on_gpu = torch.cuda.is_available() and t["accelerator"] in ("auto", "gpu", "cuda")
    hardware.tell_driver_fault(t["accelerator"])
    if t["matmul_precision"] is not None or on_gpu:  # results on a CPU stay as they are
        torch.set_float32_matmul_precision(t["matmul_precision"] or "high")
    try:
        return pl.Trainer(
            accelerator=t["accelerator"], devices=t["devices"], num_nodes=t["num_nodes"],
            strategy=strategy(config, model),
            precision=precision(t["precision"], t["accelerator"]), max_steps=t["max_steps"], max_epochs=-1,
            val_check_interval=t["val_every_steps"], check_val_every_n_epoch=None,
            limit_val_batches=t["limit_val_batches"], log_every_n_steps=t["log_every_steps"], num_sanity_val_steps=0,
            default_root_dir=run_dir, callbacks=callbacks, enable_model_summary=False,
            enable_checkpointing=any(isinstance(one, Checkpoint) for one in callbacks),
            enable_progress_bar=any(isinstance(one, AnyProgressBar) for one in callbacks),
            logger=loggers.make_loggers(config["logger"], run_dir, config),
            plugins=[lightning_io.AtomicCheckpointIO(model)], use_distributed_sampler=False,
            # Models with two optimisers bound theirs by themselves.
            gradient_clip_val=t["gradient_clip_val"] if model.automatic_optimization else None,
            sync_batchnorm=(t["devices"], t["num_nodes"]) != (1, 1) and on_gpu,  # it exists on GPUs alone
        )
    except MisconfigurationException as error:  # no such device, or a strategy that does not go with it
        asked = ", ".join(f"trainer.{name}={t[name]}" for name in ("accelerator", "devices", "strategy"))
        fault = hardware.driver_fault()
        raise ValueError(f"{asked}: {' '.join(str(error).split())} {'' if fault is None else f'{fault}. '}(trainer=cpu:"
                         " this machine's cores; trainer=auto: what there is)") from error


def run(config: dict[str, Any], command: str | None = None) -> dict[str, Any]:
    """Trains, or continues, one run; returns its last metrics, seconds and folder.

    `command`: the command line, kept in `command.txt` of a run that begins.
    """
    quiet.quiet()
    registry.trust(config["trust"])
    run_dir = Path(config["paths"]["runs"]) / config["name"]
    with alone_in(run_dir) if is_first() else nullcontext():
        config = settled(config, run_dir)
        resume = open_run(config, run_dir)
        done = finished(run_dir)
        if done is not None and resume == run_dir / "last.ckpt":
            print(f"{run_dir} is finished ({done['steps']} steps). For longer: name=NEW resume={resume}"
                  " trainer.max_steps=…; another run: name=…; from the start: resume=never.")
            return done
        if is_first():
            begin(run_dir, resume, command)
        return train(config, run_dir, resume)


@contextmanager
def errors_for_people(
    config: dict[str, Any], trainer: pl.Trainer, model: Any, checkpoint: RunCheckpoint, resume: Path | None
) -> Iterator[None]:
    """Inside, what can go wrong in a training without being a fault says what is kept and how the run goes on."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        said = hardware.too_little_memory(config, trainer, model, error)
        raise ValueError(f"{said} {checkpoint.how_to_continue()}") from error
    except NonFiniteLossOnOtherRank as error:
        raise SystemExit(2) from error
    except NonFiniteLoss as error:
        state = f"The state is in {checkpoint.folder / 'crash.ckpt'}; " if checkpoint.crashed else ""
        raise ValueError(f"{error} {state}{checkpoint.folder / 'last.ckpt'} is as it was.") from error
    except Exception as error:  # a checkpoint from elsewhere can fail to be restored in every way there is
        if isinstance(error, OSError) and error.errno in FULL:
            where = f"{error.filename}: " if error.filename and error.filename not in str(error.strerror) else ""
            raise OSError(error.errno, f"{where}{str(error.strerror).rstrip('.')}. Make room on the disk."
                                       f" {checkpoint.how_to_continue()}") from error
        if (gone := lost(trainer.strategy, error)) is not None:
            raise ValueError(f"{gone} {checkpoint.how_to_continue()}") from error
        ours = isinstance(error, ValueError | OSError) and is_for_people(error)
        if resume is None or checkpoint.training_began or ours:
            raise
        first = str(error).strip().partition("\n")[0]
        raise ValueError(f"{resume} is no checkpoint that this run can go on from ({type(error).__name__}:"
                         f" {shown(first)})") from error


def train(config: dict[str, Any], run_dir: Path, resume: Path | None) -> dict[str, Any]:
    """Trains in a folder that was opened, from `resume` or from the start; returns as `run`."""
    started, t = time.monotonic(), config["trainer"]
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    model = building.build_model(config)
    set_accumulation_and_compile(model, t["accumulate_grad_batches"], t["compile"], config["data"]["batch_size"])
    freeze(model, config["freeze"])
    start = config["init"] if resume is None else None  # a run that goes on has its own weights
    if start is not None:  # before caches are made
        start_from(model, start, config["init_allow"], config["model"])
    if resume is not None:
        held = file_format.read(resume)
        if (kind := held["t2i"]["kind"]) != model.kind:
            raise ValueError(f"resume={resume} holds a {kind}, and this run trains a {model.kind}")
        building.check_weights(model, held["state_dict"], resume, values=False)
    data = data_module(config, model)
    if hasattr(model, "prepare") and resume is None and start is None:
        model.prepare(caption_texts(data.train_set))
    checkpoint = RunCheckpoint(run_dir, t["checkpoint_every_steps"], t["checkpoint_every_minutes"], t["monitor"],
                          t["monitor_mode"])
    given = [building.build(node) for node in config["callbacks"].values() if node]
    timer = Timer(t["max_minutes"])
    trainer = make_trainer(config, run_dir, [StepSeed(config["seed"]), *given, timer,
                                             ConfigInCheckpoint(config), OptimizerSettings(config), checkpoint], model)
    checkpoint.attach(trainer)
    if resume is not None and is_first():
        print(f"Continuing from {resume}")
    failed, before = True, run_dir / BEFORE
    try:
        with checkpoint.signals(), errors_for_people(config, trainer, model, checkpoint, resume):
            if start is not None and trainer.world_size == 1:
                atomic.write_text(before, json.dumps(validated(config, run_dir, model, data)))
            trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        failed = False
    finally:
        for logger in loggers.run_loggers(trainer.loggers):
            logger.finish(failed)
    if checkpoint.stopped:
        if trainer.is_global_zero:
            print(f"Stopped at step {trainer.global_step}; {run_dir / 'last.ckpt'} continues with the same command.")
        raise SystemExit(STOPPED)
    # Of a run that was broken off at its very end, those that came with its checkpoint.
    metrics = checkpoint.metrics | {name: float(value) for name, value in trainer.callback_metrics.items()}
    seconds = round(timer.before + time.monotonic() - started, 1)
    result = {"run_dir": str(run_dir), "steps": trainer.global_step, "seconds": seconds, "metrics": metrics}
    if config["init"] is not None and before.is_file() and trainer.is_global_zero:
        result["before"] = first = read_table(before)
        if first.keys() & metrics.keys():  # none where training ended before its first validation
            print(compared(first, metrics))
    if trainer.is_global_zero:
        with errors_for_people(config, trainer, model, checkpoint, None):
            atomic.write_text(run_dir / "finished.json", json.dumps(result, indent=1))
    return result
