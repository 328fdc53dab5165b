"""`t2i app`'s words, and what is said on the terminal before anything is served."""

from __future__ import annotations

import importlib.util
import socket
from pathlib import Path

import pytest

from t2i.app.settings import AppSettings, check_place, parse
from t2i.cli.console import main


def test_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where there is no runs/
    files = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for file in files:
        file.touch()
    found = parse([f"ckpt={files[0]}", f"ckpt={files[1]}", "port=80", "host=0.0.0.0", "share=true", "trust=a,b"])
    assert found == AppSettings(tuple(map(str, files)), None, None, "0.0.0.0", 80, True, "auto", ("a", "b"))
    assert parse([f"ckpt={files[0]}"]).host == "127.0.0.1" and not parse([f"ckpt={files[0]}"]).share


@pytest.mark.parametrize(
    ("words", "match"),
    [
        ([], "nothing to show: ckpt=FILE names a checkpoint"),
        (["last.ckpt"], "last.ckpt: settings are key=value; a checkpoint is ckpt=last.ckpt"),
        (["ckpt=gone.ckpt"], "ckpt=gone.ckpt: no such file"),
        (["prot=1"], r"prot=: there is no such setting \(did you mean port\?\)"),
        (["clip=x", "port=70000"], "port=70000: allowed are whole numbers from 1 to 65535"),
        (["clip=x", "share=yes"], "share=yes: allowed are true and false"),
        (["clip=x", "clip=y"], "clip= is given 2 times"),
        (["runs=gone"], "runs=gone: no such folder"),
    ],
)
def test_wrong_words(words: list[str], match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=match):
        parse(words)


def test_a_port_in_use_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert main(["app", "clip=x", f"port={port}"]) == 2
    assert capsys.readouterr().err == (f"error: port={port} cannot be listened on at host=127.0.0.1: Address already in"
                                       " use; another with port=…\n")


def test_a_host_that_is_none_and_gradio_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="host=no host: no such address"):
        check_place(AppSettings(host="no host", port=7999))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="the page needs Gradio, which is not installed: pip install gradio"):
        check_place(AppSettings())
