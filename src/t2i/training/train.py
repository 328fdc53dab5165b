"""One training run: its folder, its parts, and what happens when it is interrupted.

A run lives in a folder of a stable name, in which one process trains at a time. The same command again continues from
`last.ckpt`, or says that the run is finished; another config in the same folder is refused with the difference, once
there is a checkpoint. Ctrl-C and SIGTERM save and stop (exit code 75); a second one aborts. A crash saves beside
`last.ckpt`, never over it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from t2i.checkpoint import atomic, building, file_format, lightning_io, registry, renames
from t2i.checkpoint.json_file import read_table
from t2i.config import quiet
from t2i.config.compose import compared, difference, flat
from t2i.config.messages import is_for_people, shown
from t2i.data.datasets import caption_texts, data_module
from t2i.models.base import NonFiniteLoss, NonFiniteLossOnOtherRank, precision, set_accumulation_and_compile
from t2i.training import loggers
from t2i.training.callbacks.checkpointing import FULL, AsConfigured, Checkpoints, Minutes, SelfDescribing, StepSeed
from t2i.training.run_folder import alone_in, move_away, tidy, unwritable
from t2i.training.strategies import lost, strategy

STOPPED = 75  # exit code of a run that was asked to stop and can be continued
# What may differ when a run is continued.
# What says where a run lies, and what is written beside it; no weight hangs on it.
BESIDE = ("paths", "name", "group", "data.workers", "data.pack", "callbacks.pictures", "callbacks.plots",
          "callbacks.progress", "trainer.log_every_steps", "trainer.checkpoint_every_steps",
          "trainer.checkpoint_every_minutes", "trainer.monitor", "trainer.monitor_mode")






def decisive(config: dict[str, Any]) -> dict[str, Any]:
    """What a run must share with its folder's, by dotted key; files are named from `paths.` on, wherever that is."""
    places = {name: str(place).rstrip("/") for name, place in config["paths"].items()}

    def placed(value: Any) -> Any:
        for name, place in places.items() if isinstance(value, str) else ():
            if place not in ("", ".") and (value == place or value.startswith(f"{place}/")):
                return f"<paths.{name}>{value[len(place):]}"
        return value

    return {key: placed(value) for key, value in flat(compared(config)).items()
            if not isinstance(value, dict) and not any(f"{key}.".startswith(f"{other}.") for other in BESIDE)}


def first_of_all() -> bool:
    """Whether this process is the only one, or the first of several."""
    return getattr(rank_zero_only, "rank", None) in (None, 0)


def open_run(config: dict[str, Any], run_dir: Path) -> Path | None:
    """Makes or re-opens the run's folder and returns the checkpoint to continue from, if any.

    `resume`: auto continues where there is something to continue; must raises where there is not; never starts
    afresh in an emptied folder; anything else is the path of a checkpoint to begin from. A folder without a checkpoint
    takes any config.
    """
    resume, saved = config["resume"], run_dir / "config.json"
    first = first_of_all()  # of several processes one makes and moves folders
    if resume == "never" and first:
        move_away(run_dir)
    begun = any((run_dir / f"{name}.ckpt").is_file() for name in ("last", "previous", "best"))
    if begun and saved.is_file() and resume != "never":
        before = renames.current(_held(saved, "goes on under this command's settings", paths=dict))
        differing = difference(decisive(before), decisive(config))
        if differing:
            lines = "\n  ".join(differing)
            raise ValueError(f"{run_dir} holds a run with another config:\n  {lines}\n"
                             f"On from its checkpoint with these settings: name=NEW resume={run_dir / 'last.ckpt'};"
                             " from the start: name=NEW, or resume=never, which moves the earlier run away.")
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        if first:
            atomic.write_text(run_dir / "config.json", json.dumps(config, indent=1, ensure_ascii=False))
    except OSError as error:
        raise unwritable(run_dir, error) from error
    if resume == "never":
        return None
    given = None if resume in ("auto", "must") else Path(resume)
    if given is not None and (given.resolve().parent == run_dir.resolve() or not begun):
        return given
    damaged = []
    for name in ("last.ckpt", "previous.ckpt"):  # its own, also of a run that began from another's
        path = run_dir / name
        if path.is_file():
            try:
                file_format.read(path)
            except ValueError as error:
                damaged.append(f"{error}.")
                continue
            if damaged and first:
                print(f"{damaged[0]} The checkpoint before it is taken.")
            return path
    if resume == "must":
        raise ValueError(" ".join([f"resume=must, but {run_dir} holds no readable checkpoint (last.ckpt,"
                                   " previous.ckpt).", *damaged]))
    if damaged and first:
        print("\n".join([*damaged, f"No checkpoint in {run_dir} can be read: training starts "
                         + (f"from {given}." if given else "from the beginning (resume=must stops instead).")]))
    return given


def _held(path: Path, then: str, **kinds: Any) -> dict[str, Any]:
    try:
        return read_table(path, **kinds)
    except ValueError as error:
        why = str(error).removeprefix(f"{path} ")
        raise ValueError(f"{path} is damaged ({why}): delete it, and the run {then}") from error


def make_trainer(config: dict[str, Any], run_dir: Path, callbacks: list[Any], model: Any) -> pl.Trainer:
    t = config["trainer"]
    return pl.Trainer(
        accelerator=t["accelerator"], devices=t["devices"], num_nodes=t["num_nodes"], strategy=strategy(config, model),
        precision=precision(t["precision"], t["accelerator"]), max_steps=t["max_steps"], max_epochs=-1,
        val_check_interval=t["val_every_steps"], check_val_every_n_epoch=None,
        limit_val_batches=t["limit_val_batches"], log_every_n_steps=t["log_every_steps"], num_sanity_val_steps=0,
        default_root_dir=run_dir, callbacks=callbacks, enable_checkpointing=False, enable_model_summary=False,
        logger=loggers.make_loggers(config["logger"]["names"], run_dir, config, config["name"], config["group"]),
        plugins=[lightning_io.AtomicCheckpointIO(model)], use_distributed_sampler=False,
        gradient_clip_val=t["gradient_clip"] if model.automatic_optimization else None,  # two players have it as theirs
        sync_batchnorm=(t["devices"], t["num_nodes"]) != (1, 1) and on_gpu(t),  # it exists on GPUs alone
    )


def on_gpu(t: dict[str, Any]) -> bool:
    return torch.cuda.is_available() and t["accelerator"] in ("auto", "gpu", "cuda")


def finished(run_dir: Path) -> dict[str, Any] | None:
    path = run_dir / "finished.json"
    there = path.is_file() and (run_dir / "last.ckpt").is_file()
    return _held(path, "goes on from its checkpoint", steps=int) if there else None


def run(config: dict[str, Any], command: str | None = None) -> dict[str, Any]:
    """Trains, or continues, one run; returns its last metrics, seconds and folder.

    `command`: the command line, kept in `command.txt` of a run that begins.
    """
    quiet.quiet()
    registry.trust(config["trust"])
    run_dir = Path(config["paths"]["runs"]) / config["name"]
    with alone_in(run_dir) if first_of_all() else nullcontext():
        resume = open_run(config, run_dir)
        done = finished(run_dir)
        if done is not None and resume == run_dir / "last.ckpt":
            print(f"{run_dir} is finished ({done['steps']} steps). For longer: name=NEW resume={resume}"
                  " trainer.max_steps=…; another run: name=…; from the start: resume=never.")
            return done
        if first_of_all():
            try:
                begin(run_dir, resume, command)
            except OSError as error:
                raise unwritable(run_dir, error) from error
        return train(config, run_dir, resume)


def begin(run_dir: Path, resume: Path | None, command: str | None) -> None:
    """Takes away what an earlier life of the folder left that is no longer so."""
    tidy(run_dir)
    (run_dir / "finished.json").unlink(missing_ok=True)
    if resume == run_dir / "previous.ckpt" and (run_dir / "last.ckpt").is_file():
        (run_dir / "last.ckpt").replace(run_dir / "damaged.ckpt")  # else it takes the place of the one that is whole
    anew = resume is None or resume.resolve().parent != run_dir.resolve()
    if anew:
        (run_dir / "metrics.csv").unlink(missing_ok=True)
    if command is not None and (anew or not (run_dir / "command.txt").is_file()):
        atomic.write_text(run_dir / "command.txt", command + "\n")


@contextmanager
def on_a_full_disk(saver: Checkpoints) -> Iterator[None]:
    """Inside, an error of the disk says what is kept and how the run goes on, as one OSError."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = f"{error.filename}: " if error.filename and error.filename not in str(error.strerror) else ""
        what = f"{where}{str(error.strerror).rstrip('.')}."
        raise OSError(error.errno, f"{what} Make room on the disk. {saver.way_on()}") from error


def train(config: dict[str, Any], run_dir: Path, resume: Path | None) -> dict[str, Any]:
    started = time.monotonic()
    pl.seed_everything(config["seed"], workers=False, verbose=False)
    model = building.build(config["model"])
    t = config["trainer"]
    set_accumulation_and_compile(model, t["accumulate"], t["compile"], config["data"]["batch_size"])
    data = data_module(config, model)
    if hasattr(model, "prepare") and resume is None:
        model.prepare(caption_texts(data.train_set))
    t = config["trainer"]
    saver = Checkpoints(run_dir, every_steps=t["checkpoint_every_steps"], every_minutes=t["checkpoint_every_minutes"],
                        monitor=t["monitor"], mode=t["monitor_mode"])
    extra = [building.build(node) for node in config["callbacks"].values() if node]
    own = [Minutes(t["max_minutes"]), SelfDescribing(config), AsConfigured(config), saver]
    trainer = make_trainer(config, run_dir, [StepSeed(config["seed"]), *extra, *own], model)
    saver.attach(trainer)
    if resume is not None and first_of_all():
        print(f"Continuing from {resume}")
    failed = True
    try:
        with saver.signals(), on_a_full_disk(saver):
            trainer.fit(model, data, ckpt_path=resume, weights_only=True)
        failed = False
    except NonFiniteLossOnOtherRank as error:
        raise SystemExit(2) from error
    except RuntimeError as error:
        told = lost(trainer.strategy, error)
        if told is None and resume is not None and not saver.began:
            raise ValueError(unfit(resume, error)) from error
        if told is None:
            raise
        raise ValueError(f"{told} {saver.way_on()}") from error
    except NonFiniteLoss as error:
        state = f"The state is in {run_dir / 'crash.ckpt'}; " if saver.crashed else ""
        raise ValueError(f"{error} {state}{run_dir / 'last.ckpt'} is as it was.") from error
    except Exception as error:  # a checkpoint from elsewhere can fail to be restored in every way there is
        ours = isinstance(error, ValueError | OSError) and is_for_people(error)
        if resume is None or saver.began or ours:
            raise
        raise ValueError(unfit(resume, error)) from error
    finally:
        loggers.finish(trainer.loggers, failed)
    if saver.stopped:
        if trainer.is_global_zero:
            print(f"Stopped at step {trainer.global_step}; {run_dir / 'last.ckpt'} continues with the same command.")
        raise SystemExit(STOPPED)
    # Of a run that was broken off at its very end, those that came with its checkpoint.
    metrics = saver.metrics | {name: float(value) for name, value in trainer.callback_metrics.items()}
    result = {"run_dir": str(run_dir), "steps": trainer.global_step, "seconds": round(time.monotonic() - started, 1),
              "metrics": metrics}
    if trainer.is_global_zero:
        with on_a_full_disk(saver):
            atomic.write_text(run_dir / "finished.json", json.dumps(result, indent=1))
    return result


def unfit(resume: Path, error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{resume} is no checkpoint that this run can go on from ({type(error).__name__}: {shown(first)})"


def peak_memory() -> float:
    """The process's largest resident size so far, in GB."""
    import resource

    unit = 1024 if os.uname().sysname == "Linux" else 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
