"""The campaign's short form: hostile checkpoints, and one run killed. `tests/campaign/run.py` is the whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from campaign import checkpoints, forked, kills, made
from campaign.common import Result, table


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a CLIP, a VQGAN and a prior."""
    forked.warm()
    return made.make(tmp_path_factory.mktemp("made"), ("clip", "vqgan", "prior"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of tensors that are odd on purpose
def test_hostile_checkpoints_are_refused_in_one_line_and_run_nothing(tiny: Path, tmp_path: Path) -> None:
    found = checkpoints.short(tmp_path / "attacks", tiny)
    assert len(found) == len(checkpoints.SHORT)
    assert [result for result in found if result.outcome != "right"] == []


def test_a_run_killed_in_a_validation_ends_as_the_unbroken_one(tiny: Path, tmp_path: Path) -> None:
    kill = kills.Kill("", "vqgan", (kills.PLACES["in a validation"](2),))
    assert kills.one(kill, tmp_path / "killed", tiny, kills.Whole(tmp_path / "whole", tiny)) == ("right", "")


def test_what_is_not_right_is_seen(tmp_path: Path) -> None:
    """The watcher itself: a command, a file elsewhere, a socket, a hang, memory and a traceback are told apart."""
    import os
    import socket
    import time

    elsewhere = tmp_path / "elsewhere"
    tries = {
        "executed": [lambda: os.system("true"), lambda: elsewhere.write_text("x"), lambda: os.mkdir(elsewhere),
                     lambda: socket.create_connection(("127.0.0.1", 9)), lambda: os.rename(tmp_path, elsewhere)],
        "hung": [lambda: time.sleep(60)], "wrong": [lambda: (lambda held: time.sleep(60))(b"x" * (200 << 20))],
        "traceback": [lambda: 1 // 0], "silent": [lambda: None],
    }  # fmt: skip
    for wanted, works in tries.items():
        for k, work in enumerate(works):
            patience = 0.5 if wanted == "hung" else 30  # a busy machine is no hang
            ended = forked.run(work, tmp_path / f"{wanted}{k}", patience, memory=100e6, guarded=True)
            assert forked.refusal(ended, ["evil"])[0] == wanted, (wanted, k, ended)
    assert not elsewhere.exists()


def test_a_table_counts_by_group() -> None:
    results = [Result("a", "x", "right"), Result("b", "x", "hung"), Result("c", "y", "silent")]
    assert table(results, {"x": 2.4}).splitlines()[2:] == ["| x | 2 | 1 | 0 | 0 | 0 | 0 | 1 | 0 | 2 |",
                                                           "| y | 1 | 0 | 0 | 0 | 0 | 1 | 0 | 0 |  |"]
