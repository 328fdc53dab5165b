"""Pickles from outside: plain values are read, and nothing else is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest

from t2i.checkpoint.plain_files import read_pickle

PLAIN = [["a", "é 🙂"], {"x": (1, 2.5, None, True)}, {1: b"bytes", "big": 2**70}, []]


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    value = [item if protocol > 2 else str(item) for item in PLAIN]  # bytes were not plain before
    assert read_pickle(put(tmp_path / "x.pickle", pickle.dumps(value, protocol))) == value


def test_pickles_of_python_2(tmp_path: Path) -> None:
    # pickle.dumps(["abc", "caf\xe9", u"\xe9", 3L]) of Python 2, protocols 0 and 2
    old = b"(lp0\nS'abc'\np1\naS'caf\\xe9'\np2\naV\xe9\np3\naL3L\na."
    assert read_pickle(put(tmp_path / "0.pickle", old)) == ["abc", "café", "é", 3]
    new = b"\x80\x02]q\x00(U\x03abcq\x01U\x04caf\xe9q\x02X\x02\x00\x00\x00\xc3\xa9q\x03\x8a\x01\x03e."
    assert read_pickle(put(tmp_path / "2.pickle", new)) == ["abc", "café", "é", 3]


class Command:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    data = pickle.dumps(["harmless", Command(f"touch {mark}")], protocol)
    path = put(tmp_path / "bad.pickle", data)
    with pytest.raises(ValueError, match=r"bad\.pickle is refused: it wants (posix|nt)\.system; only lists"):
        read_pickle(path)
    assert not mark.exists()
    pickle.loads(data)  # what another reader would have done
    assert mark.exists()


@pytest.mark.parametrize("data", [b"cos\nsystem\n(S'touch %s'\ntR.", b"(S'touch %s'\nios\nsystem\n.",
                                  b"(cos\nsystem\nS'touch %s'\no."])
def test_the_old_ways_to_call_are_shut_too(tmp_path: Path, data: bytes) -> None:
    mark = tmp_path / "ran"
    with pytest.raises(ValueError, match=r"it wants os\.system"):
        read_pickle(put(tmp_path / "bad.pickle", data % str(mark).encode()))
    assert not mark.exists()


def test_classes_and_persistent_ids_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it wants collections\.OrderedDict"):
        read_pickle(put(tmp_path / "x", pickle.dumps(OrderedDict(a=1))))
    with pytest.raises(ValueError, match="it wants the persistent id 'weights'"):
        read_pickle(put(tmp_path / "x", b"Pweights\n."))


def test_what_is_no_pickle_is_named(tmp_path: Path) -> None:
    whole = pickle.dumps(PLAIN)
    for data in (b"", b"<!DOCTYPE html><html></html>", whole[: len(whole) // 2], b"\x80\xff", b"]0."):
        with pytest.raises(ValueError, match="x.pickle is damaged or is no pickle"):
            read_pickle(put(tmp_path / "x.pickle", data))
    with pytest.raises(ValueError, match="gone cannot be read: No such file"):
        read_pickle(tmp_path / "gone")
