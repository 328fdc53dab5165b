"""Checkpoints that want something run: `_target_` of every kind in every place, and pickles that call."""

from __future__ import annotations

import builtins
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from campaign.attack import (
    Attack,
    Calls,
    Entry,
    Line,
    Raw,
    called,
    changed,
    file,
    held,
    save,
    spoilt,
    through,
    unzipped,
    zipped,
)
from campaign.forked import BAIT

# What hostile files name: nothing else has it in its path, and the hook tells whoever touches it.
PATH = f"/tmp/{BAIT}_{os.getpid()}"  # others try theirs at the same time
VICTIM = f"{PATH}_victim"  # a folder that is there, to be moved, deleted and read
HUB = f"openai/{BAIT}"

MODEL = ("t2i", "config", "model")
PLACES: dict[str, tuple[str, tuple[Any, ...]]] = {  # name -> model whose file it is, and where in it
    "model": ("prior", MODEL),
    "betas": ("prior", (*MODEL, "betas")),
    "learning rate": ("prior", (*MODEL, "learning_rate")),
    "a list in betas": ("prior", (*MODEL, "betas", 1)),
    "tokenizer's node": ("prior", (*MODEL, "tokenizer")),
    "encoder's node": ("prior", (*MODEL, "text_encoder")),
    "part tokenizer": ("prior", ("t2i", "parts", "tokenizer", "config")),
    "part's autoencoder": ("prior", ("t2i", "parts", "tokenizer", "config", "autoencoder")),
    "part's quantizer": ("prior", ("t2i", "parts", "tokenizer", "config", "quantizer")),
    "part's picture size": ("prior", ("t2i", "parts", "tokenizer", "config", "image_size")),
    "part's multipliers": ("prior", ("t2i", "parts", "tokenizer", "config", "autoencoder", "multipliers")),
    "part text encoder": ("prior", ("t2i", "parts", "text_encoder", "config")),
    "encoder's layer": ("prior", ("t2i", "parts", "text_encoder", "config", "layer")),
    "another part": ("prior", ("t2i", "parts", "scorer")),
    "generator": ("dfgan", (*MODEL, "generator")),
    "discriminator": ("dfgan", (*MODEL, "discriminator")),
    "generator's channels": ("dfgan", (*MODEL, "generator", "channels")),
    "stage I's generator": ("stackgan1", (*MODEL, "generator")),
    "autoencoder": ("vqgan", (*MODEL, "autoencoder")),
    "quantizer": ("vqgan", (*MODEL, "quantizer")),
    "perceptual": ("vqgan", (*MODEL, "perceptual")),
    "quantizer's beta": ("vqgan", (*MODEL, "quantizer", "beta")),
}
UNREAD = {"perceptual", "tokenizer's node", "encoder's node", "discriminator"}  # of which drawing builds none
DOORS = {"prior": ("sample", "evaluate", "compare", "inspect"), "dfgan": ("sample", "evaluate"),
         "stackgan1": ("stage1", "sample"), "vqgan": ("tokenizer", "reconstruct", "convert", "evaluate vqgan")}


def located(path: str) -> dict[str, Any]:
    """A Path, out of a file of plain values."""
    return {"_target_": "t2i.checkpoint.safetensors_io.weights_file", "path": path}


def payloads() -> dict[str, Any]:
    """Nodes that would do something; by what they would do."""
    named: dict[str, Any] = {
        "a shell command (Popen)": {"_target_": "subprocess.Popen", "args": f"touch {PATH}", "shell": True},
        "an app (app.guarded)": {"_target_": "t2i.cli.app.guarded", "call": {"_target_": "t2i.cli.app.main"}},
        "a folder moved away (move_away)": {"_target_": "t2i.training.resume.move_away", "folder": located(PATH)},
        "a file written (write_text)": {"_target_": "t2i.checkpoint.atomic.write_text", "path": PATH, "text": "x"},
        "a file written (save_atomic)": {"_target_": "t2i.checkpoint.atomic.save_atomic", "held": {}, "path": PATH},
        "a folder moved (open_run)": {"_target_": "t2i.training.resume.open_run", "run_dir": located(VICTIM),
                                      "config": {"resume": "never"}},
        "a folder deleted (cache.make)": {"_target_": "t2i.data.cache.make", "folder": located(VICTIM),
                                          "wanted": {"a": 1}, "what": "x", "fill": located(PATH)},
        "a download (CLIPText)": {"_target_": "t2i.text_encoders.clip.CLIPText", "path": HUB, "allow_download": True},
        "a download (CLIPScorer)": {"_target_": "t2i.metrics.clip_score.CLIPScorer", "path": HUB,
                                    "allow_download": True},
        "a folder read (CLIPText)": {"_target_": "t2i.text_encoders.clip.CLIPText", "path": VICTIM},
        "a folder read (BiLSTMText)": {"_target_": "t2i.text_encoders.bilstm.BiLSTMText", "path": VICTIM},
        "a hang (read_lines)": {"_target_": "t2i.generation.text_to_image.read_lines", "path": f"{PATH}_fifo",
                                "key": "x"},
        "another checkpoint (load_tokenizer)": {"_target_": "t2i.convert.tokenizers.load_tokenizer",
                                                "path": f"{PATH}.ckpt"},
        "another checkpoint (vqgan.load_tokenizer)": {"_target_": "t2i.models.vqgan.load_tokenizer",
                                                      "path": f"{PATH}.ckpt"},
        "another checkpoint (load_stage1)": {"_target_": "t2i.models.stackgan.load_stage1", "path": f"{PATH}.ckpt"},
        "another checkpoint (checkpoint.load)": {"_target_": "t2i.checkpoint.building.load", "path": f"{PATH}.ckpt"},
        "a build inside (checkpoint.build)": {"_target_": "t2i.checkpoint.building.build", "node": {"a": 1}},
        "any class (checkpoint.target)": {"_target_": "t2i.checkpoint.building.target",
                                          "name": "t2i.training.train.run"},
        "pictures read (Folder)": {"_target_": "t2i.data.folder.Folder", "root": VICTIM, "split": "train",
                                   "image_size": 16},
        "a log written (CSVLogger)": {"_target_": "t2i.training.loggers.CSVLogger", "run_dir": PATH},
        "a picture written (pictures.save)": {"_target_": "t2i.viz.grids.write_bytes", "path": located(PATH),
                                              "content": "x"},
        "an installation (guided_drawing)": {"_target_": "t2i.generation.clip_guided.run.run", "cfg": {"out": PATH}},
        "a training (engine.run)": {"_target_": "t2i.training.train.run", "config": {
            "paths": {"runs": "/tmp"}, "name": PATH[5:], "resume": "never"}},
        "a report (report.write_report)": {"_target_": "t2i.training.report.write_report", "folder": located(PATH),
                                           "stages": [],
                                           "scores": None, "grids": [], "commands": []},
        "a hash (file_hash)": {"_target_": "t2i.checkpoint.file_format.file_hash", "path": f"{PATH}.ckpt"},
        "an app's main (app.main)": {"_target_": "t2i.cli.app.main", "config_name": "train", "app": located(PATH)},
    }
    for target in ("os.system", "subprocess.Popen", "builtins.eval", "builtins.exec", "builtins.open", "posix.system",
                   "torch.load", "torch.hub.load", "importlib.import_module", f"{BAIT}.thing", "shutil.rmtree",
                   "hydra.utils.instantiate", "hydra._internal.utils._locate", "pytorch_lightning.Trainer",
                   "transformers.pipeline", "functools.partial", "pathlib.Path"):
        named[target] = {"_target_": target, "command": f"touch {PATH}", "args": [PATH]}
    return named


def strange() -> dict[str, Any]:
    """Targets that are no names of ours."""
    attention = "t2i.nets.autoencoder.Autoencoder"
    found: dict[str, Any] = {repr(target): {"_target_": target} for target in (
        "t2i..checkpoint..write_text", "t2i", "t2i.", ".t2i", "", " t2i.nets.autoencoder.Autoencoder", f"{attention}\n",
        f"{attention}.__init__", f"{attention}.__class__", "t2i.nets.autoencoder.__dict__",
        "t2i.checkpoint.file_format.__loader__",
        "t2i.checkpoint.file_format.os.system", "t2i.checkpoint.file_format.importlib", "t2i/nets/autoencoder",
        "../t2i.nets", "T2I.nets.A",
        "t2i.nets.аutoencoder.Autoencoder", "t2i.nets.autoencoder.\x1b[31mRed", "t2i." + "a" * 100_000, None, 3, True,
        1.5, [attention], {"_target_": attention}, [], {})}  # fmt: skip
    names = {repr(k) if len(repr(k)) < 60 else f"{str(k)[:30]}…": v for k, v in found.items()}
    names |= {f"with {key}": {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 16, "dim": 4, key: value}
              for key, value in (("_partial_", True), ("_args_", [PATH]), ("_recursive_", False), ("_convert_", "all"),
                                 ("__class__", "x"), ("self", {}))}
    return names


def targets(made: Path) -> Iterator[Attack]:
    """Every payload in two places, every strange target in one, through the doors in turn."""
    listed = [(what, node, k) for k, (what, node) in enumerate(payloads().items())]
    chosen = [(what, node, place) for what, node, k in listed for place in (2 * k, 2 * k + 7)]
    chosen += [(what, node, 5 * k + 3) for k, (what, node) in enumerate(strange().items())]
    names = [name for name in PLACES if name not in UNREAD]
    for turn, (what, node, place) in enumerate(chosen):
        name = names[place % len(names)]
        model, where = PLACES[name]
        door = DOORS[model][turn % len(DOORS[model])]
        node = {"config": node} if name == "another part" else node
        yield file(f"{what} as {name}", door, made, spoilt(made, model, where, node))
    for name in sorted(UNREAD):  # nothing needs them: they may be passed over, never built
        model, where = PLACES[name]
        for what in ("a file written (write_text)", "a shell command (Popen)"):
            write = spoilt(made, model, where, payloads()[what])
            yield file(f"{what} as {name}", DOORS[model][0], made, write, "either")


def paths(made: Path) -> Iterator[Attack]:
    """Classes that a file may well name, with paths and downloads that the user did not give."""
    prior, vqgan = held(made, "prior"), held(made, "vqgan")
    encoder = ("t2i", "parts", "text_encoder")
    bare = changed(prior, (*encoder,), {"config": {"_target_": "t2i.text_encoders.clip.CLIPText", "path": HUB,
                                                   "layer": -1,
                                                    "allow_download": True}})
    yield file("an encoder by hub name, download allowed", "sample", made, lambda path: save(bare, path))
    for what, path in (("a folder", VICTIM), ("home", f"~/{BAIT}"), ("a share", f"//server/{BAIT}")):
        content = changed(bare, (*encoder, "config", "path"), path)
        yield file(f"an encoder by {what}", "evaluate", made, lambda at, c=content: save(c, at))
    local = changed(prior, (*encoder, "config", "path"), VICTIM)
    yield file("an embedded encoder that was at a path", "sample", made, lambda path: save(local, path), "works")
    local = changed(prior, (*encoder, "config", "allow_download"), True)
    yield file("an embedded encoder with allow_download", "sample", made, lambda path: save(local, path), "either")
    inner = changed(prior, ("t2i", "parts", "tokenizer"), {"config": {
        "_target_": "t2i.convert.tokenizers.load_tokenizer", "path": f"{PATH}.ckpt", "image_size": 16}})
    yield file("a tokenizer by path", "sample", made, lambda path: save(inner, path))
    lpips = changed(vqgan, (*MODEL, "perceptual"), {"_target_": "t2i.losses.perceptual.LPIPS", "vgg": f"{PATH}.pth"})
    yield file("a perceptual net by path", "reconstruct", made, lambda path: save(lpips, path), "either")
    for what, node in {
        "a function": payloads()["a file written (write_text)"],
        "a shell command": payloads()["a shell command (Popen)"],
    }.items():
        data = changed(prior, ("t2i", "config", "data"), {**node, "batch_size": 8, "workers": 0})
        yield file(f"{what} as data", "nearest", made, lambda path, c=data: save(c, path))
        yield file(f"{what} as data", "evaluate", made, lambda path, c=data: save(c, path), "either")
        callbacks = changed(prior, ("t2i", "config", "callbacks"), {"x": node})
        yield file(f"{what} as a callback", "sample", made, lambda path, c=callbacks: save(c, path), "either")


def runs_of_others(made: Path) -> Iterator[Attack]:
    """A stranger's run folder, whose config.json is hostile beside a sound checkpoint."""
    import json

    config = json.loads((made / "runs/prior/config.json").read_text())
    for what, where, node in (
        ("data a function", ("data",), {**payloads()["a file written (write_text)"], "batch_size": 8, "workers": 0}),
        ("data a command", ("data",), {**payloads()["a shell command (Popen)"], "batch_size": 8, "workers": 0}),
        ("model a function", ("model",), payloads()["a file written (write_text)"]),
        ("an encoder by hub name", ("model", "text_encoder", "path"), HUB),
    ):
        def lay(folder: Path, where: Any = where, node: Any = node) -> Line:
            beside = folder / "evil_run"
            beside.mkdir()
            (beside / "config.json").write_text(json.dumps(changed(config, where, node)))
            os.link(made / "runs/prior/last.ckpt", beside / "last.ckpt")
            return "compare", [str(beside), str(made / "runs/vqgan"), f"out={folder / 'page'}", "n=1"]

        yield Attack(f"compare: config.json with {what}", lay, "either")


def pickles(made: Path) -> Iterator[Attack]:
    """Calls in pickles: in the archive, in the old format, bare; and numbers that ask for memory."""
    vqgan = held(made, "vqgan")
    command = f"touch {PATH}"
    objects = {
        "os.system": Calls(os.system, command), "eval": Calls(builtins.eval, f"open('{PATH}', 'w')"),
        "exec": Calls(builtins.exec, f"open('{PATH}', 'w')"), "Popen": Calls(subprocess.Popen, ["touch", PATH]),
        "getattr": Calls(getattr, "os", "system"), "torch.load": Calls(torch.load, f"{PATH}.ckpt"),
        "hub": Calls(torch.hub.load, f"openai/{BAIT}", "x"), "pickle.loads": Calls(pickle.loads, b"cos\nsystem\n."),
        "open": Calls(open, PATH, "w"), "import": Calls(builtins.__import__, BAIT),
    }  # fmt: skip
    for turn, (what, call) in enumerate(objects.items()):
        where = [("t2i", "config", "model"), ("state_dict", "x"), ("hyper_parameters",), ("t2i", "kind")][turn % 4]
        content = changed(vqgan, where, call)
        door = ("tokenizer", "reconstruct", "inspect", "convert", "resume")[turn % 5]
        yield file(f"a pickle that calls {what}", door, made, lambda path, c=content: save(c, path))
        yield file(f"an old-format pickle that calls {what}", "sample", made,
                   lambda path, c=content: save(c, path, _use_new_zipfile_serialization=False))
    raw = {
        "a bare pickle": b"\x80\x02" + called("os", "system", command) + b".",
        "protocol 0": b"cos\nsystem\n(S'" + command.encode() + b"'\ntR.",
        "protocol 4 by STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c" + bytes([len(command)])
                                      + command.encode() + b"\x85R.",
        "an instance": b"(S'" + command.encode() + b"'\nios\nsystem\n.",
        "build of a state": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}(X\x01\x00\x00\x00aK\x01ub.",
        "names with escapes": b"\x80\x02cos\x1b]0;pwned\x07\nsys\x1b[2Jtem\n)R.",
        "a string of 4 GB that is not there": b"\x80\x04\x8d" + (2**32).to_bytes(8, "little") + b"x.",
        "a frame of 2**60 bytes": b"\x80\x04\x95" + (2**60).to_bytes(8, "little") + b"N.",
        "a number of 2**31 bytes": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"1.",
        "a memo of 2**32": b"\x80\x02]r\xff\xff\xff\xff.",
        "no end": b"\x80\x02}",
        "too many pops": b"\x80\x02000000.",
        "marks alone": b"\x80\x02" + b"(" * 10**6 + b".",
        "nested 100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    }
    for turn, (what, opcodes) in enumerate(raw.items()):
        door = ("sample", "tokenizer", "evaluate", "inspect")[turn % 4]
        yield file(f"{what}, as a file", door, made, lambda path, o=opcodes: path.write_bytes(o))

        def inside(path: Path, o: bytes = opcodes) -> None:
            entries = unzipped(made / "runs/vqgan/last.ckpt")
            zipped(path, [Entry(e.name, o) if e.name.endswith("data.pkl") else e for e in entries])

        yield file(f"{what}, in the archive", ("reconstruct", "tokenizer", "export")[turn % 3], made, inside)
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    for what, opcodes in {
        "torch's own function with a size of 2**62": b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage
        + b"\x8a\x08" + (2**60).to_bytes(8, "little") + b"tQK\x00\x8a\x08" + (2**60).to_bytes(8, "little")
        + b"\x85K\x01\x85\x89ccollections\nOrderedDict\n)RtR",
        "a call inside betas": called("os", "system", command),
        "a call that is known to no one": called("t2i.checkpoint.file_format", "write_text", PATH, "x"),
        "a module of its own": called(BAIT, "thing"),
    }.items():
        content = changed(vqgan, (*MODEL, "betas"), Raw.MARK)
        yield file(what, "tokenizer", made, lambda path, o=opcodes, c=content: save(c, path, o))


def exported_folders(made: Path) -> Iterator[Attack]:
    """Safetensors with a hostile section in the metadata."""
    import json

    from safetensors import safe_open
    from safetensors.torch import save_file

    source = made / "export/prior/model.safetensors"
    with safe_open(source, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        section = json.loads(opened.metadata()["t2i"])
    nodes = payloads()
    listed = {
        "a command as model": (("config", "model"), nodes["a shell command (Popen)"]),
        "a file written as betas": (("config", "model", "betas"), nodes["a file written (write_text)"]),
        "a folder moved as a part": (("parts", "tokenizer", "config"), nodes["a folder moved (open_run)"]),
        "a download as a part": (("parts", "text_encoder", "config"), nodes["a download (CLIPText)"]),
        "os.system as quantizer": (("parts", "tokenizer", "config", "quantizer"), nodes["os.system"]),
        "a kind with escapes": (("kind",), "\x1b]0;pwned\x07\x1b[2J"),
        "config no dictionary": (("config",), "x"),
        "model a list": (("config", "model"), []),
        "a part a string": (("parts", "tokenizer"), "x"),
        "files no texts": (("parts", "text_encoder", "files"), {"config.json": 3, "tokenizer.json": []}),
        "a width of 10**7": (("config", "model", "width"), 10**7),
        "10**9 layers": (("config", "model", "num_layers"), 10**9),
    }
    for turn, (what, (where, value)) in enumerate(listed.items()):
        def lay(folder: Path, where: Any = where, value: Any = value, turn: int = turn) -> Line:
            out = folder / "evil"
            out.mkdir()
            text = json.dumps(changed(section, where, value))
            save_file(tensors, out / "model.safetensors", {"t2i": text})
            (out / "config.json").write_text(text)
            return through(("sample", "evaluate", "inspect")[turn % 3] if turn < 6 else "sample", out, made)

        yield Attack(f"an exported folder: {what}", lay, "either" if turn < 6 and turn % 3 == 2 else "refused")


def attacks(made: Path) -> Iterator[Attack]:
    yield from targets(made)
    yield from paths(made)
    yield from runs_of_others(made)
    yield from pickles(made)
    yield from exported_folders(made)
