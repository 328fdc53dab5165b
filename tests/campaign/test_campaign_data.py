"""Some of the campaign's data sets (tests/campaign/data.py): read as they should be, or refused by one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign.data import run, short


@pytest.mark.slow
def test_damaged_and_odd_data_sets_are_read_or_named(tmp_path: Path) -> None:
    results = run(tmp_path, short())
    assert len(results) >= 18
    assert not [result for result in results if result.outcome != "right"]
