"""What Hydra's -m does not have: one table of the jobs' results, `sweep.csv` and `sweep.json`, and a GPU for each job.

A job's objective is the best value over its validations, not the last one: `best.ckpt` is what one would go on with.
Every job leaves its row in `<sweep>/.jobs/`, whichever launcher ran it, and in whichever process.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import math
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from t2i.checkpoint.atomic import write_text
from t2i.config.machine import cores

Mode = Literal["min", "max"]
ROWS = ".jobs"


def objective(run_dir: Path, metrics: Mapping[str, float], key: str, mode: Mode) -> float | None:
    """The best value of `key` over a run's validations, as `best.ckpt` follows it; None if it was not measured.

    Read from the run's `metrics.csv`; a run without one (logger=none) has only its last value, in `metrics`.
    """
    path = run_dir / "metrics.csv"
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            values = [float(row[key]) for row in csv.DictReader(file) if row.get(key)]
    else:
        values = [metrics[key]] if key in metrics else []
    values = [value for value in values if math.isfinite(value)]
    return (min if mode == "min" else max)(values) if values else None


def row(num: int, settings: Mapping[str, str], result: Mapping[str, Any], goal: tuple[str, Mode] | None,
        error: str | None = None) -> dict[str, Any]:
    """All that is known of a job that ended, as `sweep.json` holds it."""
    metrics = result.get("metrics", {})
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    value = objective(Path(result["run_dir"]), metrics, *goal) if goal is not None and "run_dir" in result else None
    return {"job": num, "settings": settings, "run_dir": result.get("run_dir"), "objective": value, **numbers,
            "metrics": metrics, "error": error, "goal": goal}


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: settings, objective, numbers, metrics, error."""
    apart = ("job", "settings", "run_dir", "metrics", "error", "goal")
    kept = {key: row[key] for key in ("objective", *row) if key not in apart and row[key] is not None}
    return row["settings"] | kept | row["metrics"] | ({"error": row["error"]} if row["error"] else {})


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """All columns of flat rows, what went wrong last."""
    found = list(dict.fromkeys(key for row in rows for key in row))
    return [key for key in found if key != "error"] + ["error"] * ("error" in found)


def best(rows: list[dict[str, Any]]) -> str:
    """The job to prefer, in a line; what was measured instead where there is no objective; "" where there is none to
    compare by."""
    goals = {tuple(row["goal"]) for row in rows if row["run_dir"] and row["goal"]}
    if len(goals) != 1:
        return ""
    key, mode = goals.pop()
    found = [row for row in rows if row["objective"] is not None]
    if not found:
        known = sorted({name for row in rows for name in row["metrics"] if name.startswith("val/")})
        return f"No objective: {key} was not measured; there is {', '.join(known) or 'nothing else'}"
    row = (min if mode == "min" else max)(found, key=lambda each: each["objective"])
    shown = " ".join(f"{name}={value}" for name, value in row["settings"].items())
    return f"best: {shown or 'the only job'} (objective {row['objective']:.4g}: {key}, {mode}) in {row['run_dir']}"


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a sweep's jobs that ended so far."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (folder / ROWS).glob("[0-9]*.json")]
    return sorted(found, key=lambda each: int(each["job"]))


def keep(folder: Path, row: dict[str, Any]) -> None:
    """Adds a job's row to its sweep, and writes `sweep.csv` and `sweep.json` anew, each whole or not at all."""
    write_text(folder / ROWS / f"{row['job']}.json", json.dumps(row, ensure_ascii=False))
    rows = rows_of(folder)
    write_text(folder / "sweep.json", json.dumps({"jobs": rows}, indent=1, ensure_ascii=False))
    flat = [flat_row(each) for each in rows]
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, columns_of(flat))
    writer.writeheader()
    writer.writerows(flat)
    write_text(folder / "sweep.csv", lines.getvalue())


def table(rows: list[dict[str, Any]]) -> str:
    """Flat rows side by side; of the metrics those of validation where there are any."""
    columns = columns_of(rows)
    if any(c.startswith("val/") for c in columns):
        settings = [c for c in columns if isinstance(rows[0].get(c), str)]
        columns = [c for c in columns if "/" not in c or c.startswith("val/") or c in settings]
    cells = [columns]
    for row in rows:
        values = [row.get(column, "") for column in columns]
        cells.append([f"{value:.4g}" if isinstance(value, float) else str(value) for value in values])
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in cells)


class Table(Callback):
    """Hydra's callback of the apps: the table after a sweep, and exit code 1 where a job failed."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        shutil.rmtree(Path(config.hydra.sweep.dir) / ROWS, ignore_errors=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        rows = rows_of(folder)
        if rows:
            print(f"\n{table([flat_row(each) for each in rows])}\n\nAll columns: {folder / 'sweep.csv'}")
            print(best(rows), flush=True)
        if failed := [f"{each['job']}" for each in rows if each["error"]]:
            print(f"failed: job {', '.join(failed)}")
            raise SystemExit(1)  # of callbacks' exceptions Hydra makes warnings


def gpus() -> list[str]:
    """The GPUs that jobs may have, by what CUDA_VISIBLE_DEVICES calls them; without torch."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [one for one in given.split(",") if one]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return [str(i) for i in range(listed.count("GPU "))]


def jobs_at_once() -> int:
    """One a GPU; without GPUs two, if there are two cores."""
    return len(gpus()) or min(2, cores())


_own: list[Any] = []  # the lock of this process's GPU, which ends with the process


def take_gpu(folder: Path) -> None:
    """Gives this process a GPU of its own among those of a sweep's other processes on this machine, waiting for one to
    be free; to be called before torch is imported. Does nothing where there is none, or it has one."""
    offered = gpus()
    if _own or not offered:
        return
    (folder / ROWS).mkdir(parents=True, exist_ok=True)
    while True:
        for gpu in offered:
            file = (folder / ROWS / f"gpu-{gpu}.lock").open("a")
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                continue
            _own.append(file)
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu
            return
        time.sleep(1)
