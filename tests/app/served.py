"""Tiny checkpoints, and the page over them, for the tests of the page."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from tests.generation.clip_guided.test_settings import TEXT, make_parts, save_checkpoint

from t2i.app.server import serving
from t2i.app.settings import parse
from t2i.checkpoint import building

PROMPT = TEXT[0]
SIDE = 16  # of the pictures


def make(root: Path) -> SimpleNamespace:
    """Two priors, of any order and of raster order, a tokenizer, a CLIP, and a folder of runs."""
    parts = make_parts(root)
    torch.manual_seed(0)
    config = {"_target_": "t2i.models.prior_any.PriorAny", "width": 16, "num_layers": 2, "num_heads": 2, "max_steps": 1,
              "tokenizer": {"_target_": "t2i.models.vqgan.load_tokenizer", "path": parts.vqgan},
              "text_encoder": {"_target_": "t2i.text_encoders.clip.CLIPText", "path": parts.clip}}
    model: Any = building.build(config)
    torch.nn.init.normal_(model.gpt.predict.first.weight)
    parts.any = save_checkpoint(model, config, root / "any.ckpt")
    run = root / "runs" / "group" / "one"
    (run / "plots").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "finished.json").write_text('{"metrics": {"val/<b>psnr": 31.5}, "steps": 3}')
    Image.new("RGB", (8, 8), "red").save(run / "plots" / "loss.png")
    parts.runs = str(root / "runs")
    return parts


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def page(parts: SimpleNamespace) -> Iterator[str]:
    words = [f"ckpt={parts.any}", f"ckpt={parts.prior}", f"ckpt={parts.vqgan}", f"clip={parts.clip}",
             f"runs={parts.runs}", "device=cpu", f"port={free_port()}"]
    with serving(parse(words)) as address:
        yield address


