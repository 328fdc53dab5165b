"""One training run: its folder, its parts, and what happens when it is interrupted.

A run lives in a folder of a stable name. The same command again continues from `last.ckpt`, or says that the run
is finished; another config in the same folder is refused with the difference. Ctrl-C and SIGTERM save and stop
(exit code 75); a second one aborts. A crash saves beside `last.ckpt`, never over it.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from t2i import checkpoint, loggers
from t2i.config import difference
from t2i.datasets import caption_texts, data_module
from t2i.devices import lost, strategy
from t2i.guards import Checkpoints, Minutes, SelfDescribing, StepSeed
from t2i.models.base import NonFiniteElsewhere, NonFiniteLoss, switch

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
STOPPED = 75  # exit code of a run that was asked to stop and can be continued
# What may differ when a run is continued.
IGNORED = ("resume", "debug", "logger", "stages", "experiments", "estimate", "comparison", "sweep")


def precision(wanted: Literal["auto"] | Precision, accelerator: str) -> Precision:
    """`auto` is bf16-mixed where the hardware multiplies in bf16, else float32."""
    if wanted != "auto":
        if wanted == "16-mixed" and not (torch.cuda.is_available() and accelerator != "cpu"):
            raise ValueError("trainer.precision=16-mixed needs a GPU; here bf16-mixed and 32-true are allowed")
        return wanted
    if torch.cuda.is_available() and accelerator != "cpu":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    return "bf16-mixed" if torch.cpu._is_avx512_bf16_supported() else "32-true"


def compared(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in IGNORED}


def first_of_all() -> bool:
    """Whether this process is the only one, or the first of several."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def open_run(config: dict[str, Any], run_dir: Path) -> Path | None:
    """Makes or re-opens the run's folder and returns the checkpoint to continue from, if any.

    `resume`: auto continues where there is something to continue; must raises where there is not; never starts
    afresh in an emptied folder; anything else is the path of a checkpoint to continue from.
    """
    resume, saved = config["resume"], run_dir / "config.json"
    first = first_of_all()  # of several processes one makes and moves folders
    if resume == "never" and run_dir.exists() and first:
        old = run_dir.with_name(f"{run_dir.name}.old{int(time.time())}")
        run_dir.rename(old)
        print(f"The earlier run was moved to {old}")
    if saved.is_file() and resume != "never":
        differing = difference(compared(json.loads(saved.read_text())), compared(config))
        if differing:
            lines = "\n  ".join(differing)
            raise ValueError(f"{run_dir} holds a run with another config:\n  {lines}\n"
                             "Give the new run a name (name=…), or start afresh with resume=never.")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if first:
            checkpoint.write_text(run_dir / "config.json", json.dumps(config, indent=1, ensure_ascii=False))
    except OSError as error:
        raise ValueError(f"the run folder {run_dir} cannot be written: {error.strerror}."
                         " Choose another with paths.runs=…") from error
    if resume not in ("auto", "must", "never"):
        return Path(resume)
    if resume == "never":
        return None
    for name in ("last.ckpt", "previous.ckpt"):
        path = run_dir / name
        if path.is_file():
            try:
                checkpoint.read(path)
            except ValueError as error:
                print(f"{error}\nTrying the checkpoint before it.")
                continue
            return path
    if resume == "must":
        raise ValueError(f"resume=must, but {run_dir} holds no readable checkpoint (last.ckpt, previous.ckpt)")
    return None


def make_trainer(config: dict[str, Any], run_dir: Path, callbacks: list[Any], model: Any) -> pl.Trainer:
    t = config["trainer"]
    return pl.Trainer(
        accelerator=t["accelerator"], devices=t["devices"], num_nodes=t["num_nodes"], strategy=strategy(config, model),
        precision=precision(t["precision"], t["accelerator"]), max_steps=t["max_steps"], max_epochs=-1,
        val_check_interval=t["val_every_steps"], check_val_every_n_epoch=None,
        limit_val_batches=t["limit_val_batches"], log_every_n_steps=t["log_every_steps"], num_sanity_val_steps=0,
        default_root_dir=run_dir, callbacks=callbacks, enable_checkpointing=False, enable_model_summary=False,
        logger=loggers.make_loggers(config["logger"]["names"], run_dir, config, config["name"], config["group"]),
        plugins=[checkpoint.AtomicCheckpointIO()], use_distributed_sampler=False,
        gradient_clip_val=t["gradient_clip"] if model.automatic_optimization else None,  # two players have it as theirs
        sync_batchnorm=(t["devices"], t["num_nodes"]) != (1, 1) and on_gpu(t),  # it exists on GPUs alone
    )


def on_gpu(t: dict[str, Any]) -> bool:
    return torch.cuda.is_available() and t["accelerator"] in ("auto", "gpu", "cuda")


def finished(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "finished.json"
    return json.loads(path.read_text()) if path.is_file() and (run_dir / "last.ckpt").is_file() else None


def run(config: dict[str, Any], command: str | None = None) -> dict[str, Any]:
    """Trains, or continues, one run; returns its last metrics, seconds and folder.

    `command`: the command line, kept in `command.txt` of a run that begins.
    """
    loggers.quiet()
    run_dir = Path(config["paths"]["runs"]) / config["name"]
    resume = open_run(config, run_dir)
    if command is not None and first_of_all() and not (run_dir / "command.txt").is_file():
        checkpoint.write_text(run_dir / "command.txt", command + "\n")
    done = finished(run_dir)
    if done is not None and config["resume"] in ("auto", "must"):
        print(f"{run_dir} is finished ({done['steps']} steps). Another run: name=…; from the start: resume=never.")
        return done
    started = time.monotonic()
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    model = checkpoint.build(config["model"])
    switch(model, config["trainer"]["accumulate"], config["trainer"]["compile"], config["data"]["batch_size"])
    data = data_module(config, model)
    if hasattr(model, "prepare") and resume is None:
        model.prepare(caption_texts(data.train_set))
    t = config["trainer"]
    saver = Checkpoints(run_dir, every_steps=t["checkpoint_every_steps"], every_minutes=t["checkpoint_every_minutes"],
                        monitor=t["monitor"], mode=t["monitor_mode"])
    extra = [checkpoint.build(node) for node in config["callbacks"].values() if node]
    own = [Minutes(t["max_minutes"]), SelfDescribing(config), saver]
    trainer = make_trainer(config, run_dir, [StepSeed(config["seed"]), *extra, *own], model)
    if resume is not None and first_of_all():
        print(f"Continuing from {resume}")
    failed = True
    try:
        with saver.signals():
            trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        failed = False
    except NonFiniteElsewhere as error:
        raise SystemExit(2) from error
    except RuntimeError as error:
        told = lost(trainer.strategy, error)
        if told is None:
            raise
        raise ValueError(f"{told} {saver.way_on()}") from error
    except NonFiniteLoss as error:
        kept = f"The state is in {run_dir / 'crash.ckpt'}; {run_dir / 'last.ckpt'} is as it was."
        raise ValueError(f"{error} {kept}") from error
    finally:
        loggers.finish(trainer.loggers, failed)
    if saver.stopped:
        if trainer.is_global_zero:
            print(f"Stopped at step {trainer.global_step}; {run_dir / 'last.ckpt'} continues with the same command.")
        raise SystemExit(STOPPED)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    result = {"run_dir": str(run_dir), "steps": trainer.global_step, "seconds": round(time.monotonic() - started, 1),
              "metrics": metrics}
    if trainer.is_global_zero:
        checkpoint.write_text(run_dir / "finished.json", json.dumps(result, indent=1))
    return result


def peak_memory() -> float:
    """The process's largest resident size so far, in GB."""
    import resource

    unit = 1024 if os.uname().sysname == "Linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
