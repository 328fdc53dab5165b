"""The objective of a run and the table, CSV and JSON of a sweep."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from t2i.cli import sweep_results

MEASURED = "step,train/loss,val/loss,val/psnr\n1,9,,\n2,8,0.5,20\n4,7,0.25,30\n6,1,0.75,25\n8,1,nan,inf\n"


def test_the_objective_is_the_best_of_all_validations(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(MEASURED)
    last = {"val/loss": 0.75, "val/psnr": 25.0, "val/other": 1.0}
    assert sweep_results.objective(tmp_path, last, "val/loss", "min") == 0.25
    assert sweep_results.objective(tmp_path, last, "val/loss", "max") == 0.75
    assert sweep_results.objective(tmp_path, last, "val/psnr", "max") == 30
    assert sweep_results.objective(tmp_path, last, "val/other", "min") is None
    assert sweep_results.objective(tmp_path / "bare", last, "val/other", "min") == 1.0
    assert sweep_results.objective(tmp_path / "bare", {}, "val/loss", "min") is None


def ended(i: int, value: float | None, **more: Any) -> dict[str, Any]:
    return {"job": i, "settings": {"model/quantizer": "ema", "seed": str(i)}, "run_dir": f"runs/{i}", "steps": 2,
            "objective": value, "metrics": {"val/loss": 0.5, "train/loss": 1.0}, "error": None, "log": None} | more


def test_the_best_job_is_named() -> None:
    rows = [ended(0, 0.5), ended(1, 0.0123), ended(2, None), ended(3, 3.0)]
    assert sweep_results.best(rows, "val/loss", "min") == (
        "best: model/quantizer=ema seed=1 (objective 0.0123: val/loss, min) in runs/1")
    assert "seed=3 (objective 3:" in sweep_results.best(rows, "val/loss", "max")
    assert sweep_results.best([ended(0, None)], "val/fid", "min") == (
        "No objective: val/fid was not measured; there is val/loss")
    assert sweep_results.best([ended(0, None, run_dir=None, error="x")], "val/fid", "min") == ""


def test_files_hold_everything(tmp_path: Path) -> None:
    failed = ended(1, None, run_dir=None, metrics={}, error="no such file", log="logs/1.log")
    del failed["steps"]
    sweep_results.write(tmp_path / "s", [ended(0, 0.25), failed], ("val/loss", "min"), ["seed=0,1"])
    with (tmp_path / "s/sweep.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["model/quantizer", "seed", "objective", "steps", "val/loss", "train/loss", "error"]
    assert first["objective"] == "0.25" and first["error"] == ""
    assert second["seed"] == "1" and second["objective"] == "" and second["error"] == "no such file"
    held = json.loads((tmp_path / "s/sweep.json").read_text())
    assert held == {"overrides": ["seed=0,1"], "objective": "val/loss", "objective_mode": "min",
                    "jobs": [ended(0, 0.25), failed]}
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["sweep.csv", "sweep.json"]


def test_the_table_shows_settings_objective_and_validation() -> None:
    rows = [sweep_results.flat_row(ended(0, 0.25)), sweep_results.flat_row(ended(1, None, error="broken"))]
    lines = sweep_results.table(rows).splitlines()
    assert lines[0].split() == ["model/quantizer", "seed", "objective", "steps", "val/loss", "error"]
    assert lines[1].split() == ["ema", "0", "0.25", "2", "0.5"]
    assert lines[2].split() == ["ema", "1", "2", "0.5", "broken"]
