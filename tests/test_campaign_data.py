"""Some of the campaign's data sets (tests/campaign/data.py): read as they should be, or refused by one line."""

from __future__ import annotations

from pathlib import Path

from campaign.data import run, short


def test_damaged_and_odd_data_sets_are_read_or_named(tmp_path: Path) -> None:
    results = run(tmp_path, short())
    assert len(results) > 20
    assert not [result for result in results if result.outcome != "right"]
