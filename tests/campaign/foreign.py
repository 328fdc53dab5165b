"""Other projects' files, damaged and hostile: tokenizers of taming-transformers and LlamaGen, DF-GAN, vocabularies,
and the weights that score, guide and measure."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from campaign.attack import Attack, Calls, Line, called, file, save
from campaign.hostile import PATH

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
TOKENIZERS = {"taming": ("taming_vqgan_tiny-*", "state_dict", ("convert", "tokenizer", "reconstruct")),
              "LlamaGen": ("llamagen_vq_tiny-*", "model", ("reconstruct", "convert", "tokenizer"))}


def published(pattern: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(GOLDEN.glob(f"{pattern}.safetensors")):
        found |= {name.removeprefix("weight/"): value for name, value in load_file(path).items()
                  if name.startswith("weight/")}
    return found


def tokenizers(made: Path) -> Iterator[Attack]:
    for project, (pattern, key, doors) in TOKENIZERS.items():
        weights = published(pattern)
        yield file(f"a sound file of {project}", "inspect", made, lambda path, w={key: weights}: save(w, path),
                   "works")
        name = next(k for k, v in weights.items() if v.ndim == 4 and "encoder" in k)
        codes = next(k for k, v in weights.items() if v.ndim == 2 and "embedding" in k)
        whole = weights[name]
        bad: dict[str, dict[str, Any]] = {
            "NaN": {name: torch.full_like(whole, math.nan)}, "a string": {name: "x"}, "meta": {name: whole.to("meta")},
            "sparse": {name: torch.eye(4).to_sparse()}, "complex": {name: whole.to(torch.complex64)},
            "of 10**12 numbers, stride 0": {name: torch.zeros(1, 1, 1, 1).expand(10**5, 10**5, 10, 10)},
            "of no numbers": {name: whole[:0]}, "too many": {"x" * 10**6: whole},
            "with escapes": {"encoder.\x1b]0;pwned\x07": whole},
            "a codebook of 10**12": {codes: torch.zeros(1, 1).expand(10**6, 10**6)},
            "code, called": {name: Calls(os.system, f"touch {PATH}")},
        }
        for turn, (what, changes) in enumerate(bad.items()):
            content = {key: {**weights, **changes}}
            for door in (doors[turn % 3], "inspect"):
                yield file(f"a weight of {project} {what}", door, made, lambda path, c=content: save(c, path))


def drawers(made: Path) -> Iterator[Attack]:
    """A DF-GAN with DAMSM's pair, whose vocabulary is a pickle by nature."""
    generator, encoder = published("dfgan_tiny_generator"), made / "runs/clip/hf"
    name, value = next(iter(generator.items()))
    texts = {"a weight a string": {**generator, name: "x"}, "a generator": generator,
             "a weight NaN": {**generator, name: torch.full_like(value, math.nan)}}
    for what, weights in texts.items():
        def lay(folder: Path, weights: Any = weights) -> Line:
            save({"model": {"netG": weights}}, folder / "evil.pth")
            return "sample", [f"ckpt={folder / 'evil.pth'}", "prompt=x", f"text_encoder.path={encoder}"]

        yield Attack(f"sample: DF-GAN's file with {what}, a CLIP as encoder", lay, names=("evil", str(encoder)))
    words: dict[str, bytes] = {
        "calls os.system": b"\x80\x02" + called("os", "system", f"touch {PATH}") + b".",
        "calls Popen": pickle.dumps(Calls(subprocess.Popen, ["touch", PATH])),
        "is cut": pickle.dumps([{}, {}, {}, {}])[:9], "is a text": b"hello", "is empty": b"",
        "holds numbers": pickle.dumps([1, 2, 3, 4]),
        "is nested 100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "has a word with escapes": pickle.dumps([[], [], {0: "\x1b]0;pwned\x07"}, {"\x1b]0;pwned\x07": 0}]),
        "has a string of 4 GB": b"\x80\x04\x8d" + (2**32).to_bytes(8, "little") + b"x.",
    }  # fmt: skip
    for what, content in words.items():
        def given(folder: Path, content: bytes = content) -> Line:
            save({"model": {"netG": generator}}, folder / "g.pth")
            rnn = torch.nn.LSTM(300, 128, batch_first=True, bidirectional=True).state_dict()
            save({"encoder.weight": torch.zeros(5, 300), **{f"rnn.{k}": v for k, v in rnn.items()}}, folder / "t.pth")
            (folder / "evil.pickle").write_bytes(content)
            return "sample", [f"ckpt={folder / 'g.pth'}", "prompt=x", f"text_encoder.path={folder / 't.pth'}",
                              f"text_encoder.vocabulary={folder / 'evil.pickle'}"]

        yield Attack(f"sample: a vocabulary that {what}", given)


def scorers(made: Path) -> Iterator[Attack]:
    """A CLIP's folder or a file of weights that scores, guides or measures."""
    prior = made / "runs/prior/last.ckpt"

    def clip(folder: Path, change: Any) -> Path:
        out = folder / "evil"
        out.mkdir()
        for path in (made / "runs/clip/hf").iterdir():
            (out / path.name).write_bytes(path.read_bytes())
        change(out)
        return out

    changes: dict[str, Any] = {
        "hostile weights": lambda out: ((out / "model.safetensors").unlink(), torch.save(
            {"x": Calls(os.system, f"touch {PATH}")}, out / "pytorch_model.bin")),
        "weights cut": lambda out: os.truncate(out / "model.safetensors", 1000),
        "config cut": lambda out: (out / "config.json").write_text("{"),
        "words cut": lambda out: os.truncate(out / "tokenizer.json", 300),
    }
    for what, change in changes.items():
        def scored(folder: Path, change: Any = change) -> Line:
            return "sample", [f"ckpt={prior}", "prompt=x", "n=1", "best_of=2", f"scorer={clip(folder, change)}",
                              f"out={folder / 'd'}"]

        def evaluated(folder: Path, change: Any = change) -> Line:
            return "evaluate", [f"ckpt={prior}", "metrics=[clip_score]", f"clip_model={clip(folder, change)}",
                                f"out={folder / 'd'}", f"paths.cache={folder / 'cache'}", "n=4"]

        def guided(folder: Path, change: Any = change) -> Line:
            return "sample", ["method=clip_guided", f"clip_guided.clips={clip(folder, change)}", "prompt=x",
                              "clip_guided.canvas=pixels", f"out={folder / 'd'}", "clip_guided.steps=1"]

        yield Attack(f"sample: a scorer with {what}", scored)
        yield Attack(f"evaluate: a scoring CLIP with {what}", evaluated)
        yield Attack(f"sample: a guide with {what}", guided)
    files: dict[str, bytes] = {"a hostile pickle": b"\x80\x02" + called("os", "system", f"touch {PATH}") + b".",
                               "a web page": b"<!DOCTYPE html>", "empty": b""}
    for what, content in files.items():
        for key, metric in (("inception", "fid"), ("vgg", "lpips")):
            def measured(folder: Path, content: bytes = content, key: str = key, metric: str = metric) -> Line:
                (folder / "evil.pth").write_bytes(content)
                ckpt = prior if key == "inception" else made / "runs/vqgan/last.ckpt"
                return "evaluate", [f"ckpt={ckpt}", f"metrics=[{metric}]", f"{key}={folder / 'evil.pth'}", "n=16",
                                    f"out={folder / 'd'}", f"paths.cache={folder / 'cache'}"]

            yield Attack(f"evaluate: {key}'s weights are {what}", measured)


def attacks(made: Path) -> Iterator[Attack]:
    for of in (tokenizers, drawers, scorers):
        yield from of(made)
