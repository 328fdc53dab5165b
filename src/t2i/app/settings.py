"""The words of `t2i app`, checked before anything slow is imported: files are there, the port is free, Gradio too."""

from __future__ import annotations

import importlib.util
import socket
from dataclasses import dataclass
from pathlib import Path

from t2i.config.check import near
from t2i.config.messages import shown

ABOUT = """
t2i app ckpt=runs/quickstart/prior/last.ckpt          a page to draw and edit in, at http://127.0.0.1:7860
t2i app ckpt=A ckpt=B clip=runs/quickstart/clip/hf    several checkpoints, and a CLIP to draw by

  ckpt=FILE        a checkpoint; may be given several times
  clip=FOLDER      a CLIP for guided drawing, as of clip_guided.clips
  runs=FOLDER      whose runs are shown (runs, where there is one)
  host=127.0.0.1   where it listens; 0.0.0.0: for everybody in the network
  port=7860
  share=false      true: also under an address that Gradio's servers give it, open to everybody who has it
  device=auto      auto, cpu, cuda
  trust=A,B        packages whose classes checkpoints may build, folders and files that they may open
"""
KEYS = ("ckpt", "clip", "runs", "host", "port", "share", "device", "trust", "debug")
INSTALL = "pip install gradio (in t2i's extra app)"
RUNS = "runs"


@dataclass(frozen=True)
class AppSettings:
    """What the page shows and where it listens."""

    ckpts: tuple[str, ...] = ()
    clip: str | None = None
    runs: str | None = None
    host: str = "127.0.0.1"
    port: int = 7860
    share: bool = False
    device: str = "auto"
    trust: tuple[str, ...] = ()


def parse(words: list[str]) -> AppSettings:
    """ValueError with all that is wrong with the words."""
    given: dict[str, list[str]] = {}
    faults = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            faults.append(f"{shown(word)}: settings are key=value; a checkpoint is ckpt={shown(word)}")
        elif key not in KEYS:
            faults.append(f"{shown(key)}=: there is no such setting{near(key, list(KEYS))}; allowed are"
                          f" {', '.join(KEYS[:-1])}")
        elif not value:
            faults.append(f"{key}= is empty")
        else:
            given.setdefault(key, []).append(value)
    faults += [f"{key}= is given {len(values)} times; once is allowed" for key, values in given.items()
               if len(values) > 1 and key != "ckpt"]
    one = {key: values[-1] for key, values in given.items()}
    port = one.get("port", "7860")
    if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        faults.append(f"port={shown(port)}: allowed are whole numbers from 1 to 65535")
    for key in ("share", "debug"):
        if one.get(key, "false") not in ("true", "false"):
            faults.append(f"{key}={shown(one[key])}: allowed are true and false")
    ckpts = given.get("ckpt", [])
    faults += [f"ckpt={shown(path)}: no such file" for path in ckpts if not Path(path).expanduser().exists()]
    faults += [f"ckpt={shown(path)} is named twice" for path in dict.fromkeys(ckpts) if ckpts.count(path) > 1]
    runs = one.get("runs", RUNS if Path(RUNS).is_dir() else None)
    if runs is not None and not Path(runs).expanduser().is_dir():
        faults.append(f"runs={shown(runs)}: no such folder")
    if not faults and not ckpts and runs is None and "clip" not in one:
        faults.append("nothing to show: ckpt=FILE names a checkpoint to draw with, clip=FOLDER a CLIP to draw by,"
                      " runs=FOLDER runs to look at")
    if faults:
        raise ValueError("\n".join(faults))
    return AppSettings(tuple(ckpts), one.get("clip"), runs, one.get("host", "127.0.0.1"), int(port),
                       one.get("share") == "true", one.get("device", "auto"),
                       tuple(one["trust"].split(",")) if "trust" in one else ())


def check_place(settings: AppSettings) -> None:
    """ValueError where Gradio is not installed, or nothing can listen at host and port."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(f"the page needs Gradio, which is not installed: {INSTALL}")
    host, port = settings.host, settings.port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"host={shown(host)}: no such address ({error.strerror})") from error
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            raise ValueError(f"port={port} cannot be listened on at host={shown(host)}: {error.strerror}; another with"
                             " port=…") from error
