"""The short form of the campaign's prompts; all of them: `python tests/campaign/prompts.py`."""

from __future__ import annotations

from pathlib import Path

from campaign.prompts import prompts, run, short


def test_a_prompt_or_two_of_every_kind(tmp_path: Path) -> None:
    found = run(tmp_path, short())
    assert [result for result in found if result.outcome != "right"] == []
    assert len(prompts()) >= 1000 and len(found) > 60
