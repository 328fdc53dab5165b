"""What came out of a sweep's jobs: the objective, the table, `sweep.csv` and `sweep.json`.

The objective is the best value over a run's validations, not the last one: `best.ckpt` is what one would go on with.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

Mode = Literal["min", "max"]


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


def row(i: int, setting: dict[str, str], outcome: dict[str, Any], wanted: tuple[str, Mode] | None) -> dict[str, Any]:
    """All that is known of a job that ended, as `sweep.json` holds it."""
    result = outcome.get("result", {})
    metrics = result.get("metrics", {})
    numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
    value = None
    if wanted is not None and "run_dir" in result:
        value = objective(Path(result["run_dir"]), metrics, *wanted)
    return {"job": i, "settings": setting, "run_dir": result.get("run_dir"), "objective": value, **numbers,
            "metrics": metrics, "error": outcome.get("error"), "log": outcome.get("log")}


def flat_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table: settings, objective, numbers, metrics, error."""
    apart = ("job", "settings", "run_dir", "metrics", "error", "log")
    kept = {key: row[key] for key in ("objective", *row) if key not in apart and row[key] is not None}
    return row["settings"] | kept | row["metrics"] | ({"error": row["error"]} if row["error"] else {})


def columns_of(rows: list[dict[str, Any]]) -> list[str]:
    """All columns of flat rows, what went wrong last."""
    found = list(dict.fromkeys(key for row in rows for key in row))
    return [key for key in found if key != "error"] + ["error"] * ("error" in found)


def told(row: dict[str, Any], shown: str, count: int, of: int, before: bool) -> str:
    if row["error"]:
        return f"[{count}/{of}] {shown}: error: {row['error']} (all of it: {row['log']})"
    value = "" if row["objective"] is None else f", objective {row['objective']:.4g}"
    return f"[{count}/{of}] {shown}: {'was finished' if before else 'done'}{value}"


def best(rows: list[dict[str, Any]], key: str, mode: Mode) -> str:
    """The job to prefer, in a line; what was measured instead where there is no objective; "" where nothing ran."""
    found = [row for row in rows if row["objective"] is not None]
    if not found:
        known = sorted({name for row in rows for name in row["metrics"] if name.startswith("val/")})
        ran = [row for row in rows if row["run_dir"]]
        return f"No objective: {key} was not measured; there is {', '.join(known) or 'nothing else'}" if ran else ""
    row = (min if mode == "min" else max)(found, key=lambda each: each["objective"])
    shown = " ".join(f"{name}={value}" for name, value in row["settings"].items())
    return f"best: {shown} (objective {row['objective']:.4g}: {key}, {mode}) in {row['run_dir']}"


def write(folder: Path, rows: list[dict[str, Any]], wanted: tuple[str, Mode] | None, overrides: list[str]) -> None:
    """`sweep.csv` and `sweep.json` of the jobs that ended so far, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    flat = [flat_row(row) for row in rows]
    columns = columns_of(flat)
    fresh = folder / ".sweep.tmp"
    with fresh.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(flat)
    os.replace(fresh, folder / "sweep.csv")
    key, mode = wanted or (None, None)
    held = {"overrides": overrides, "objective": key, "objective_mode": mode, "jobs": rows}
    fresh.write_text(json.dumps(held, indent=1, ensure_ascii=False), encoding="utf-8")
    os.replace(fresh, folder / "sweep.json")


def table(rows: list[dict[str, Any]]) -> str:
    """The jobs side by side; of the metrics those of validation where there are any."""
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
