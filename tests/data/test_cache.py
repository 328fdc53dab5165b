"""Folders made once: whole or not at all, continued, refused with the difference, by one process at a time."""

from __future__ import annotations

import errno
import json
import multiprocessing
import time
from pathlib import Path

import pytest

from t2i.data import cache

WANTED = {"version": 1, "settings": {"side": 8}}


def filled(part: Path) -> cache.Header:
    (part / "data").write_text("x")
    return {"count": 3}


def test_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "deep/cache"
    made = cache.build(folder, WANTED, filled, "cache")
    assert made == cache.read_header(folder) == cache.check_header(folder, WANTED, "cache") == {**WANTED, "count": 3}
    cache.build(folder, WANTED, lambda part: pytest.fail("made twice"), "cache")
    assert sorted(p.name for p in folder.iterdir()) == ["data", "header.json"]
    assert not folder.with_name("cache.part").exists()


def test_another_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache.build(folder, WANTED, filled, "cache")
    with pytest.raises(ValueError, match=r"(?s)does not fit:\n  settings.side: cache 8, wanted 16\n.*Delete it"):
        cache.build(folder, {"version": 1, "settings": {"side": 16}}, filled, "cache")
    assert (folder / "data").read_text() == "x"
    (folder / "header.json").write_text('{"version')
    with pytest.raises(ValueError, match="holds no whole cache .*damaged"):
        cache.build(folder, WANTED, filled, "cache")


def test_interrupted_work_is_handed_on_unless_it_was_for_something_else(tmp_path: Path) -> None:
    folder, seen = tmp_path / "cache", []

    def broken(part: Path) -> cache.Header:
        seen.append(sorted(p.name for p in part.iterdir()))
        (part / "half").write_text("x")
        raise KeyboardInterrupt

    for wanted in (WANTED, WANTED, {"version": 2}):
        with pytest.raises(KeyboardInterrupt):
            cache.build(folder, wanted, broken, "cache")
    assert seen == [["plan.json"], ["half", "plan.json"], ["plan.json"]] and not folder.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_disk_that_takes_no_more_is_named(tmp_path: Path, number: int) -> None:
    def full(part: Path) -> cache.Header:
        import os

        raise OSError(number, os.strerror(number))

    with pytest.raises(ValueError, match=r"cache cannot be written: .*\. What is done is kept in .*cache.part; .*"
                                         "paths.cache="):
        cache.build(tmp_path / "cache", WANTED, full, "cache")


def slowly(folder: str) -> None:
    def fill(part: Path) -> cache.Header:
        count = Path(folder).with_name("count")
        count.write_text(str(int(count.read_text()) + 1 if count.exists() else 1))
        time.sleep(0.3)
        return {}

    cache.build(Path(folder), WANTED, fill, "cache")


def test_several_processes_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=slowly, args=(str(tmp_path / "cache"),)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "count").read_text() == "1"
    assert json.loads((tmp_path / "cache/header.json").read_text()) == WANTED
