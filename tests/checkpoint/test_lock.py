"""One process at a time in a folder, and locks of processes that are gone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from t2i.checkpoint.lock import LockTaken, exclusive

HOLDER = """
import sys
from pathlib import Path
from t2i.checkpoint.lock import exclusive
with exclusive(Path(sys.argv[1]), "work", "this"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(LockTaken, match=rf"is being written by process {process.pid} on .* since 2") as taken:
            with exclusive(tmp_path, "work"):
                pass
        assert taken.value.holder["work"] == "this"
        with exclusive(tmp_path, "other"):
            pass
        process.kill()
        process.wait()
    assert (tmp_path / ".work.lock").exists()
    with exclusive(tmp_path, "work"):
        assert f'"pid": {os.getpid()}' in (tmp_path / ".work.lock").read_text()
    assert not list(tmp_path.iterdir())


def test_a_lock_that_says_nothing_and_one_of_this_process(tmp_path: Path) -> None:
    (tmp_path / ".work.lock").write_text("[")
    with exclusive(tmp_path, "work", "mine"):
        with pytest.raises(LockTaken, match=f"is being written by process {os.getpid()} on .*: wait") as taken:
            with exclusive(tmp_path, "work"):
                pass
        assert taken.value.holder["work"] == "mine"
