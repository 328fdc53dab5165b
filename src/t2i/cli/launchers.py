"""How the jobs of a sweep are started when it is not one after the other in this process: joblib, submitit.

Every job is the command line of a plain run, in a fresh Python of its own: torch meets the threads and the GPU that it
was given, and nothing of an earlier job is left in memory. So joblib hands out the places in line (its own workers,
loky's, serve several jobs each) and submitit runs the door itself. Nothing but the run's folder carries results: what
is finished there is not started again, whichever launcher ran it.
"""

from __future__ import annotations

import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Literal

from t2i.config.machine import cores

STOPPED = 75  # exit code of a run, and of a sweep, that the same command continues
Outcome = dict[str, Any]  # result: of the run; error and log: what went wrong; stopped: before its end


@dataclass(frozen=True)
class Job:
    """One run of a sweep: its command line, its resolved config, and the file that takes what it prints."""

    name: str
    words: Sequence[str]
    config: Mapping[str, Any]
    log: Path

    @property
    def run_dir(self) -> Path:
        return Path(self.config["paths"]["runs"]) / self.config["name"]


@dataclass(frozen=True)
class Door:
    """A command line that submitit calls, with the environment to set before torch is imported.

    `checkpoint` is what submitit asks for when SLURM preempts the job or its minutes are over: the same command goes
    on from the run's last checkpoint.
    """

    path: str
    words: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self) -> None:
        os.environ.update(self.environment)
        sys.argv = [self.path, *self.words]
        try:
            runpy.run_path(self.path, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise RuntimeError(f"exit code {end.code}") from end

    def checkpoint(self) -> Any:
        return library("submitit").helpers.DelayedSubmission(self)


class Stop:
    """Counts SIGINT and SIGTERM while jobs run: the first asks them to save and stop, the second kills them."""

    def __init__(self) -> None:
        self.asked = 0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
            self.before = {which: signal.signal(which, self.ask) for which in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:  # whoever waited for the jobs is gone: none is left behind
            self.asked = max(self.asked, 1)
        for which, handler in self.before.items():
            signal.signal(which, handler)

    def ask(self, number: int, frame: FrameType | None) -> None:
        self.asked += 1
        if self.asked == 1:
            print("\nStopping all jobs, with a checkpoint each; once more kills them.", flush=True)


def library(name: Literal["joblib", "submitit"]) -> ModuleType:
    """The launcher's library; ValueError names the extra that brings it."""
    try:
        if name == "joblib":
            import joblib

            return joblib
        import submitit
        import submitit.helpers

        return submitit
    except ImportError as error:
        raise ValueError(f"sweep.launcher={name} needs {name}: pip install -e '.[sweeps]', or sweep.launcher=basic"
                         f" ({error})") from error


def visible_gpus(accelerators: Sequence[str]) -> list[str]:
    """The CUDA devices that jobs on these accelerators share, as CUDA_VISIBLE_DEVICES names them."""
    if not set(accelerators) & {"auto", "gpu", "cuda"}:
        return []
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return given.split(",")[:count] if given else [str(i) for i in range(count)]


def places(wanted: int | None, number_of_jobs: int, gpus: Sequence[str]) -> list[dict[str, str]]:
    """The environments of the jobs that run at once on this machine: a GPU of its own each, and its share of cores.

    `wanted` None: one a GPU; without GPUs two, if there are two cores. An OMP_NUM_THREADS of the user's stays.
    """
    if gpus and wanted is not None and wanted > len(gpus):
        raise ValueError(f"sweep.jobs={wanted}: there are {len(gpus)} GPUs ({', '.join(gpus)}), and two jobs on one"
                         f" would run out of its memory; allowed are 1 to {len(gpus)}")
    at_once = min(wanted or len(gpus) or min(2, cores()), number_of_jobs)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores() // at_once))
    return [{"OMP_NUM_THREADS": threads} | ({"CUDA_VISIBLE_DEVICES": gpus[i]} if gpus else {}) for i in range(at_once)]


def finished(job: Job) -> dict[str, Any] | None:
    """The results of a run that was finished with this very config; None where there is something to do."""
    saved = job.run_dir / "config.json"
    if job.config["resume"] not in ("auto", "must") or not (job.run_dir / "finished.json").is_file():
        return None
    from t2i.config.compose import difference
    from t2i.training import resume

    if not saved.is_file() or difference(resume.decisive(json.loads(saved.read_text(encoding="utf-8"))),
                                         resume.decisive(dict(job.config))):
        return None  # the run itself says what differs
    return resume.finished(job.run_dir)


def outcome(job: Job, code: int, log: Path, since: int = 0) -> Outcome:
    """What became of a job by its exit code: its results, or the message at the end of its log."""
    if code in (STOPPED, 130) or code < 0:
        return {"stopped": True, "log": str(log)}
    if code == 0:
        return {"result": json.loads((job.run_dir / "finished.json").read_text(encoding="utf-8"))}
    told, lines = messages(log, since)
    return {"error": (told or lines or [f"exit code {code}"])[-1], "log": str(log)}


def messages(log: Path, since: int) -> tuple[list[str], list[str]]:
    """What a job's log has from byte `since` on: the mistakes that the door told, and all lines."""
    with log.open("rb") as file:
        file.seek(since)
        lines = [line for line in file.read().decode("utf-8", "backslashreplace").splitlines() if line.strip()]
    return [line.removeprefix("error: ") for line in lines if line.startswith("error: ")], lines


def run_alone(job: Job, door: Path, environment: Mapping[str, str], stop: Stop) -> Outcome:
    """One job in a Python of its own, to its end; what it prints is appended to its log."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("ab") as log:
        since = log.tell()
        # A session of its own: Ctrl-C in the terminal reaches this process alone, which then asks each job once.
        process = subprocess.Popen([sys.executable, str(door), *job.words], stdout=log, stderr=subprocess.STDOUT,
                                   stdin=subprocess.DEVNULL, start_new_session=True,
                                   env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"})
        told = 0
        while process.poll() is None:
            if stop.asked > told:
                told = stop.asked
                process.terminate() if told == 1 else process.kill()
            time.sleep(0.1)
    found = outcome(job, process.returncode, job.log, since)
    if "stopped" in found and not stop.asked:  # killed from elsewhere, for memory perhaps: that is no wish of ours
        return {"error": f"ended by itself with exit code {process.returncode}", "log": str(job.log)}
    return found


def with_joblib(jobs: Sequence[Job], door: Path, wanted: int | None) -> Iterator[tuple[int, Outcome]]:
    """Runs jobs at once on this machine; yields each with its place in `jobs` as it ends."""
    joblib = library("joblib")
    offered = places(wanted, len(jobs), visible_gpus([j.config["trainer"]["accelerator"] for j in jobs]))
    free: queue.Queue[dict[str, str]] = queue.Queue()
    for place in offered:
        free.put(place)
    print(f"joblib: {len(offered)} at once, OMP_NUM_THREADS={offered[0]['OMP_NUM_THREADS']} each"
          + (", a GPU each" if "CUDA_VISIBLE_DEVICES" in offered[0] else "") + f"; logs in {jobs[0].log.parent}",
          flush=True)

    with Stop() as stop:
        def turn(i: int) -> tuple[int, Outcome]:
            if stop.asked:
                return i, {"stopped": True}
            place = free.get()
            try:
                return i, run_alone(jobs[i], door, place, stop)
            finally:
                free.put(place)

        # Threads, which only wait: the jobs are processes.
        parallel = joblib.Parallel(len(offered), backend="threading", return_as="generator_unordered", batch_size=1)
        yield from parallel(joblib.delayed(turn)(i) for i in range(len(jobs)))


def executor(settings: Mapping[str, Any], folder: Path) -> Any:
    """submitit's executor of `sweep.submitit`; ValueError where SLURM is wanted and there is none."""
    submitit = library("submitit")
    try:
        made = submitit.AutoExecutor(folder=folder, cluster=settings["cluster"])
    except RuntimeError as error:
        raise ValueError(f"sweep.submitit.cluster={settings['cluster']}: {error} Allowed here is local.") from error
    made.update_parameters(
        name="t2i", timeout_min=settings["minutes"], cpus_per_task=settings["cpus"], mem_gb=settings["memory_gb"],
        gpus_per_node=settings["gpus"] or None, slurm_partition=settings["partition"], stderr_to_stdout=True)
    return made


def with_submitit(jobs: Sequence[Job], door: Path, wanted: int | None, settings: Mapping[str, Any],
                  folder: Path) -> Iterator[tuple[int, Outcome]]:
    """Hands jobs to submitit, at most `wanted` at a time; yields each with its place in `jobs` as it ends.

    On `cluster=slurm` None hands over all at once; on `local` it means what it means with joblib.
    """
    local, offered = settings["cluster"] == "local", [dict[str, str]()] * min(wanted or len(jobs), len(jobs))
    if local:
        gpus = visible_gpus([job.config["trainer"]["accelerator"] for job in jobs]) if settings["gpus"] else []
        offered = places(wanted, len(jobs), gpus)
    made = executor(settings, folder)
    print(f"submitit: {settings['cluster']}, {len(offered)} at once; logs in {folder}", flush=True)
    waiting, free, told = list(range(len(jobs))), list(offered), 0
    running: dict[int, tuple[Any, dict[str, str]]] = {}
    # The jobs unpickle `Door` by name; submitit's processes inherit this environment, SLURM's too.
    path = os.pathsep.join([str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    with library("submitit").helpers.environment_variables(PYTHONPATH=path), Stop() as stop:
        while waiting or running:
            while waiting and free and not stop.asked:
                i, place = waiting.pop(0), free.pop(0)
                running[i] = (made.submit(Door(str(door), tuple(jobs[i].words), place)), place)
            if stop.asked > told:
                told = stop.asked
                for handle, _ in running.values():
                    handle.cancel()
            for i, (handle, _) in list(running.items()):
                if handle.done():
                    free.append(running.pop(i)[1])
                    yield i, submitted_outcome(jobs[i], handle, bool(stop.asked))
            if stop.asked and not running:
                yield from ((i, {"stopped": True}) for i in waiting)
                return
            time.sleep(0.2 if local else 2)


def submitted_outcome(job: Job, handle: Any, stopping: bool) -> Outcome:
    log = handle.paths.stdout
    if stopping and not handle.paths.result_pickle.exists():  # submitit would wait for it
        return {"stopped": True, "log": str(log)}
    try:
        error = handle.exception()
    except library("submitit").core.utils.UncompletedJobError as incomplete:  # it ended without a word: killed
        error = incomplete
    if error is None:
        return outcome(job, 0, log)
    if stopping:
        return {"stopped": True, "log": str(log)}
    if log.is_file() and (told := messages(log, 0)[0]):
        return {"error": told[-1], "log": str(log)}
    # submitit frames the traceback with lines of dashes, and advice about its logs follows.
    trace = [line for line in str(error).rpartition("\n---")[0].splitlines() if line.strip()]
    return {"error": (trace or str(error).splitlines())[-1].strip(), "log": str(log)}


def launch(jobs: Sequence[Job], options: Mapping[str, Any], door: Path, folder: Path) -> Iterator[tuple[int, Outcome]]:
    """Runs what is not finished by `options["launcher"]`; yields (place in `jobs`, outcome), finished ones first."""
    library(options["launcher"])
    left = []
    for i, job in enumerate(jobs):
        done = finished(job)
        if done is None:
            left.append(i)
        else:
            yield i, {"result": done, "before": True}
    if left:
        chosen = [jobs[i] for i in left]
        settings = options["submitit"]
        started = (with_joblib(chosen, door, options["jobs"]) if options["launcher"] == "joblib" else
                   with_submitit(chosen, door, options["jobs"], settings, Path(settings["folder"] or folder)))
        for k, found in started:
            yield left[k], found
