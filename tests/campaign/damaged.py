"""Checkpoints that are damaged, cut, of absurd sizes or built otherwise than ours; and sound ones, which must work."""

from __future__ import annotations

import json
import math
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from campaign.attack import (
    DELETE,
    Attack,
    Calls,
    Entry,
    Expect,
    Line,
    Raw,
    called,
    changed,
    file,
    held,
    save,
    spoilt,
    through,
    tree,
    unzipped,
    zeros,
    zipped,
)
from campaign.hostile import PATH

MODEL = ("t2i", "config", "model")
PART = ("t2i", "parts", "tokenizer")
ENCODER = ("t2i", "parts", "text_encoder")


def sound(made: Path) -> Iterator[Attack]:
    """Files with nothing wrong in them."""
    for model, door in (("prior", "sample"), ("prior", "evaluate"), ("dfgan", "sample"), ("stackgan1", "sample"),
                        ("vqgan", "reconstruct"), ("vqgan", "inspect"), ("prior", "export"), ("vqgan", "convert"),
                        ("vqgan", "tokenizer"), ("vqgan", "evaluate vqgan"), ("prior", "compare"),
                        ("prior", "nearest")):
        yield file(f"a sound {model}", door, made, spoilt(made, model, ("sound",), True), "works")
    for model, door in (("prior", "sample"), ("vqgan", "reconstruct")):
        def link(folder: Path, model: str = model, door: str = door) -> Line:
            os.symlink(made / f"export/{model}", folder / "evil")
            return through(door, folder / "evil", made)

        yield Attack(f"{door}: a sound exported {model}", link, "works")
    best = made / "runs/prior/best.ckpt"
    yield file("a sound best.ckpt", "sample", made, lambda path: path.symlink_to(best), "works")
    renamed = held(made, "prior")
    yield file("a sound prior by another name", "sample", made, lambda path: save(renamed, path), "works", ".pt")
    plain = changed(renamed, ("state_dict",), {k: torch.nn.Parameter(v) if v.is_floating_point() else v
                                               for k, v in renamed["state_dict"].items()})
    yield file("weights that are parameters", "sample", made, lambda path: save(plain, path), "works")


def structures(made: Path) -> Iterator[Attack]:
    """Sections, parts and weights that are not what they should be."""
    prior, vqgan, dfgan = held(made, "prior"), held(made, "vqgan"), held(made, "dfgan")
    wrong: list[Any] = ["x", None, [], 3, {}, DELETE]
    listed: dict[str, tuple[Any, tuple[Any, ...], Any]] = {}

    def shown(value: Any) -> str:
        return "missing" if value is DELETE else repr(value)[:40]

    for value in wrong:
        for place in (("t2i", "config"), MODEL, ("t2i", "parts"), ("t2i", "kind"), (*PART, "config"), PART):
            if not (value == {} and place == ("t2i", "parts")):
                listed[f"{'.'.join(place)} {shown(value)}"] = prior, place, value
    for value in ("x", None, [1], {"a": torch.zeros(1)}, DELETE):
        listed[f"state_dict {shown(value)}"] = prior, ("state_dict",), value
        listed[f"a part's state_dict {shown(value)}"] = prior, (*PART, "state_dict"), value
    for value in ("x", None, 3, [1], {"weights": 3}, {"weights": {"nothing": torch.zeros(1)}, "updates": 1},
                  {"weights": {"gpt.head.weight": "x"}, "updates": 1}, {"updates": 1}):
        listed[f"ema {repr(value)[:50]}"] = prior, ("ema",), value
    listed |= {
        "format 2": (prior, ("t2i", "format"), 2), "format a list": (prior, ("t2i", "format"), [1]),
        "format nan": (prior, ("t2i", "format"), math.nan), "format True": (prior, ("t2i", "format"), "\x1b[2J"),
        "a kind with escapes": (prior, ("t2i", "kind"), "\x1b]0;pwned\x07\n\x1b[2Jprior"),
        "a kind of 10 MB": (prior, ("t2i", "kind"), "x" * 10**7),
        "another's kind": (vqgan, ("t2i", "kind"), "prior"), "dfgan for a prior": (dfgan, ("t2i", "kind"), "prior"),
        "a key with escapes": (prior, ("state_dict", "\x1b]0;pwned\x07\nx"), torch.zeros(1)),
        "a part with escapes": (prior, ("t2i", "parts", "\x1b[2J\n"), {"config": {}}),
        "a target with escapes": (prior, (*MODEL, "_target_"), "\x1b]0;pwned\x07\nx"),
        "an argument with escapes": (prior, (*MODEL, "\x1b]0;pwned\x07\n"), 3),
        "an argument that is none": (prior, (*MODEL, "nothing"), 3),
        "an argument that is no name": (prior, (*MODEL, 5), 3),
        "an argument missing": (dfgan, (*MODEL, "generator", "image_size"), DELETE),
        "files missing": (prior, (*ENCODER, "files"), DELETE), "files a list": (prior, (*ENCODER, "files"), []),
        "files no JSON": (prior, (*ENCODER, "files"), {"config.json": "{", "tokenizer.json": "{}"}),
        "files empty": (prior, (*ENCODER, "files"), {"config.json": "{}", "tokenizer.json": "{}"}),
        "files with a path": (prior, (*ENCODER, "files", "../../campaign_bait"), "x"),
        "tokenizer.json cut": (prior, (*ENCODER, "files", "tokenizer.json"),
                               prior["t2i"]["parts"]["text_encoder"]["files"]["tokenizer.json"][:500]),
        "layer out of range": (prior, (*ENCODER, "config", "layer"), 99),
        "layer a string": (prior, (*ENCODER, "config", "layer"), "x"),
    }
    for turn, (what, (content, place, value)) in enumerate(listed.items()):
        made_content = changed(content, place, value)
        unread = place in (("ema",), ("t2i", "kind")) and value is DELETE
        fits: Expect = "either" if unread or what == "files with a path" else "refused"
        door = ("sample", "evaluate", "sample", "compare", "export")[turn % 5]
        if door in ("compare", "export") and (len(place) > 3 or place[-1] == "kind"):  # which they need not look at
            door = "sample"
        yield file(what, door, made, lambda path, c=made_content: save(c, path), fits)
    for what, content in {"a list": [1, 2], "a tensor": torch.zeros(3), "a number": 3, "nothing": {}, "None": None,
                          "weights alone": prior["state_dict"], "keys with escapes": {"\x1b]0;x\x07\n": 1},
                          "keys that are no texts": {3: 1, None: 2, (1, 2): 3}}.items():
        for door in ("sample", "tokenizer", "inspect"):
            yield file(f"the file is {what}", door, made, lambda path, c=content: save(c, path))


def weights(made: Path) -> Iterator[Attack]:
    """A weight that is none."""
    prior, dfgan, vqgan = held(made, "prior"), held(made, "dfgan"), held(made, "vqgan")
    key = next(k for k, v in prior["ema"]["weights"].items() if v.ndim == 2)
    value = prior["state_dict"][key]

    def spoiled(number: float) -> torch.Tensor:
        copy = value.clone()
        copy.view(-1)[3] = number
        return copy

    strange: dict[str, Any] = {
        "a string": "x", "None": None, "a list": [[1.0]], "a dictionary": {}, "a number": 3.0,
        "sparse": torch.eye(4).to_sparse(), "sparse by rows": torch.eye(4).to_sparse_csr(),
        "meta": value.to("meta"), "complex": value.to(torch.complex64), "bool": value > 0, "integers": value.long(),
        "bytes": value.to(torch.uint8), "quantised": torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        "NaN": spoiled(math.nan), "infinite": spoiled(math.inf), "minus infinite": spoiled(-math.inf),
        "of another shape": value[:1], "transposed": value.t().contiguous(), "empty": value[:0],
        "a scalar": value[0, 0],
        "of 10**12 numbers, stride 0": torch.zeros(1).expand(10**6, 10**6),
        "of the right shape, stride 0, NaN": torch.full((1, 1), math.nan).expand(value.shape),
        "half": value.half() * math.inf, "float8": value.to(torch.float8_e4m3fn),
    }  # fmt: skip
    for turn, (what, bad) in enumerate(strange.items()):
        both = changed(prior, ("ema", "weights", key), bad)
        for where, content in (("both", changed(both, ("state_dict", key), bad)), ("the averages", both)):
            if turn % 2 == 0 or where == "both":
                fits: Expect = "either" if what == "float8" else "refused"
                door = ("sample", "export", "evaluate")[turn % 3]
                door = "sample" if isinstance(bad, torch.Tensor) and bad.shape != value.shape else door
                yield file(f"a weight {what} in {where}", door, made,
                           lambda path, c=content: save(c, path), fits)
    for what in ("NaN", "complex", "sparse", "meta", "a string", "bool"):
        for model, content, door in (("dfgan", dfgan, "sample"), ("vqgan", vqgan, "reconstruct"),
                                     ("vqgan", vqgan, "tokenizer")):
            part = content["ema"]["weights"] if "ema" in content else content["state_dict"]
            name = next(k for k, v in part.items() if v.ndim == 4 and "discriminator" not in k)
            bad = strange[what] if what in ("sparse", "a string") else {
                "NaN": torch.full_like(part[name], math.nan), "complex": part[name].to(torch.complex64),
                "meta": part[name].to("meta"), "bool": part[name] > 0}[what]
            spoilt = changed(content, ("state_dict", name), bad)
            spoilt = changed(spoilt, ("ema", "weights", name), bad) if "ema" in content else spoilt
            yield file(f"a {model}'s weight {what}", door, made, lambda path, c=spoilt: save(c, path))
    quarter = next(k for k, v in prior["t2i"]["parts"]["tokenizer"]["state_dict"].items() if v.ndim == 4)
    tower = next(k for k, v in prior["t2i"]["parts"]["text_encoder"]["state_dict"].items() if v.ndim == 2)
    for part, name in ((PART, quarter), (ENCODER, tower)):
        size = prior["t2i"]["parts"][part[2]]["state_dict"][name]
        for what, bad in (("NaN", torch.full_like(size, math.nan)), ("missing", DELETE), ("a string", "x"),
                          ("of another shape", size[:1]), ("complex", size.to(torch.complex64))):
            content = changed(prior, (*part, "state_dict", name), bad)
            yield file(f"a {part[2]}'s weight {what}", "sample", made, lambda path, c=content: save(c, path))


def sizes(made: Path) -> Iterator[Attack]:
    """Numbers that would take all memory or time, and numbers that are none."""
    prior = held(made, "prior")
    auto, quant = (*PART, "config", "autoencoder"), (*PART, "config", "quantizer")
    vast: list[tuple[str, tuple[Any, ...], list[Any]]] = [
        ("prior", (*MODEL, "num_layers"), [10**9, -1, 0, "1", 1.5, None, True, [1], 10**400]),
        ("prior", (*MODEL, "width"), [10**7, 10**12, -16, 0, "16", math.nan, math.inf]),
        ("prior", (*MODEL, "num_heads"), [10**9, 0, -2, 3, "x"]),
        ("prior", (*MODEL, "dropout"), [math.nan, -1, 2, "x", 1e308]),
        ("prior", (*PART, "config", "image_size"), [2**62, 10**6, 0, -16, 17, "16", math.nan]),
        ("prior", (*quant, "codebook_size"), [10**12, 10**9, 0, -1, "x"]),
        ("prior", (*quant, "dim"), [10**9, 0, -4]),
        ("prior", quant, [{"_target_": "t2i.quantizers.fsq.FSQ", "levels": [8] * 10**6},
                        {"_target_": "t2i.quantizers.fsq.FSQ", "levels": [10**9] * 8},
                        {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 10**12, "dim": 10**6}]),
        ("prior", (*auto, "multipliers"), [[1] * 10**6, [10**9], [], [0], "x", [-1]]),
        ("prior", (*auto, "channels"), [10**8, 0, -8]),
        ("prior", (*auto, "num_res_blocks"), [10**9, -1]),
        ("prior", (*auto, "patch_size"), [2**40, 0, 3]),
        ("prior", (*auto, "attention_levels"), [[10**9], list(range(10**6)), [5]]),
        ("prior", (*auto, "z_channels"), [10**9]),
        ("dfgan", (*MODEL, "generator", "channels"), [10**8, 0, "x"]),
        ("dfgan", (*MODEL, "generator", "image_size"), [2**62, 2**20, 15, 0]),
        ("dfgan", (*MODEL, "generator", "noise_dim"), [10**12, -1]),
        ("dfgan", (*MODEL, "text_dim"), [10**12, 0]),
        ("stackgan1", (*MODEL, "generator", "channels"), [10**8]),
        ("stackgan1", (*MODEL, "generator", "condition_dim"), [10**10]),
    ]
    for turn, (model, place, values) in enumerate(vast):
        for value in values:
            # A head count, a rate that drawing does not use: a file may say what it likes.
            fits: Expect = "either" if place[-1] == "dropout" or value is True or value == 1.5 else "refused"
            yield file(f"{model}: {'.'.join(map(str, place[2:]))} {repr(value)[:30]}",
                       ("sample", "evaluate")[turn % 2], made, spoilt(made, model, place, value), fits)
    config = json.loads(prior["t2i"]["parts"]["text_encoder"]["files"]["config.json"])
    for key, value in (("hidden_size", 10**8), ("num_hidden_layers", 10**9), ("vocab_size", 10**12),
                       ("max_position_embeddings", 10**10), ("intermediate_size", 10**11), ("hidden_size", "x"),
                       ("num_attention_heads", 0), ("hidden_act", "campaign_bait"), ("dtype", "campaign_bait"),
                       ("projection_dim", -1), ("layer_norm_eps", math.nan), ("eos_token_id", 10**9)):
        text = json.dumps({**config, key: value})
        made_content = changed(prior, (*ENCODER, "files", "config.json"), text)
        fits = "either" if key in ("dtype", "eos_token_id", "layer_norm_eps") else "refused"
        yield file(f"the encoder's {key} {value}", "sample", made, lambda path, c=made_content: save(c, path), fits)


def nests(made: Path) -> Iterator[Attack]:
    """Depth, sharing and rings."""
    prior = held(made, "prior")
    deep = b"]" * 100_000 + b"a" * 99_999
    dicts = b"}X\x01\x00\x00\x00a" * 50_000 + b"N" + b"s" * 50_000
    laughs: Any = ["ha"] * 10
    for _ in range(12):
        laughs = [laughs] * 10
    keyed: Any = {"a": 1}
    for _ in range(12):
        keyed = {str(k): keyed for k in range(10)}
    ring: list[Any] = []
    ring.append(ring)
    wheel: dict[str, Any] = {"_target_": "t2i.quantizers.vq.VQ"}
    wheel["dim"] = wheel
    places = {"betas": (*MODEL, "betas"), "data": ("t2i", "config", "data"), "a part": (*PART, "config", "autoencoder"),
              "kind": ("t2i", "kind"), "loops": ("loops",), "files": (*ENCODER, "files")}
    for turn, (name, place) in enumerate(places.items()):
        fits: Expect = "either" if name in ("data", "loops", "betas") else "refused"
        for what, opcodes in (("lists 100,000 deep", deep), ("dictionaries 50,000 deep", dicts)):
            content = changed(prior, place, Raw.MARK)
            yield file(f"{what} as {name}", ("sample", "inspect", "export", "evaluate")[turn % 4], made,
                       lambda path, c=content, o=opcodes: save(c, path, o), fits)
        for what, value in (("lists shared 10**13 times", laughs), ("dictionaries shared 10**13 times", keyed),
                            ("a list in itself", ring), ("a node in itself", wheel)):
            if turn < 3 or what == "lists shared 10**13 times":
                content = tree(prior)
                inner = content
                for key in place[:-1]:
                    inner = inner[key]
                inner[place[-1]] = value
                yield file(f"{what} as {name}", ("sample", "export", "inspect")[turn % 3], made,
                           lambda path, c=content: save(c, path), fits)


def archives(made: Path) -> Iterator[Attack]:
    """What can be wrong with a zip archive."""
    source = made / "runs/prior/last.ckpt"

    def edited(change: Any, before: bytes = b"") -> Any:
        def write(path: Path) -> None:
            zipped(path, change(unzipped(source)), before)

        return write

    def pickle_of(entries: list[Entry]) -> Entry:
        return next(e for e in entries if e.name.endswith("data.pkl"))

    def instead(data: bytes, **more: Any) -> Any:
        return lambda entries: [Entry(e.name, data, **more) if e.name.endswith("data.pkl") else e for e in entries]

    def bomb(entries: list[Entry]) -> list[Entry]:
        data, crc = zeros(4_000_000_000 >> 20 << 20)
        return instead(data, method=8, crc=crc, size=4_000_000_000 >> 20 << 20)(entries)

    def bomb_of_weights(entries: list[Entry]) -> list[Entry]:
        data, crc = zeros(4_000_000_000 >> 20 << 20)
        return [Entry(e.name, data, 8, crc, 4_000_000_000 >> 20 << 20) if e.name.endswith("data/0") else e
                for e in entries]

    def small_bomb(entries: list[Entry]) -> list[Entry]:  # what it is is not what it says
        data, crc = zeros(2_000_000_000 >> 20 << 20)
        return instead(data, method=8, crc=crc, size=1000)(entries)

    def beside(entries: list[Entry]) -> list[Entry]:
        data, crc = zeros(4_000_000_000 >> 20 << 20)
        return [*entries, Entry("last/more.bin", data, 8, crc, 4_000_000_000 >> 20 << 20)]

    evil = b"\x80\x02" + called("os", "system", f"touch {PATH}") + b"."
    root = unzipped(source)[0].name.split("/")[0]
    tricks: dict[str, tuple[Any, Expect]] = {
        "4 GB of zeros as data.pkl": (bomb, "refused"), "4 GB of zeros as weights": (bomb_of_weights, "refused"),
        "2 GB that say 1,000 bytes": (small_bomb, "refused"), "4 GB of zeros beside it all": (beside, "either"),
        "data.pkl missing": (lambda es: [e for e in es if not e.name.endswith("data.pkl")], "refused"),
        "data.pkl empty": (instead(b""), "refused"), "data.pkl one byte": (instead(b"."), "refused"),
        "data.pkl text": (instead(b"hello"), "refused"),
        "data.pkl twice, the second hostile": (lambda es: [*es, Entry(f"{root}/data.pkl", evil)], "either"),
        "data.pkl twice, the first hostile": (lambda es: [Entry(f"{root}/data.pkl", evil), *es], "either"),
        "an absolute name": (lambda es: [*es, Entry(PATH, b"x")], "either"),
        "a name with ..": (lambda es: [*es, Entry(f"{root}/../../../..{PATH}", b"x")], "either"),
        "every name absolute": (lambda es: [Entry("/tmp/" + e.name, e.data) for e in es], "refused"),
        "names with escapes": (lambda es: [Entry("\x1b]0;pwned\x07" + e.name, e.data) for e in es], "either"),
        "two roots": (lambda es: [Entry(e.name.replace(root, "a" if k % 2 else "b"), e.data)
                                  for k, e in enumerate(es)], "refused"),
        "weights shorter": (lambda es: [Entry(e.name, e.data[:4]) if e.name.endswith("data/0") else e for e in es],
                            "refused"),
        "weights empty": (lambda es: [Entry(e.name, b"" if "/data/" in e.name else e.data) for e in es], "refused"),
        "a weight missing": (lambda es: [e for e in es if not e.name.endswith("data/1")], "refused"),
        "wrong checksums": (lambda es: [Entry(e.name, e.data, crc=1) if "/data/" in e.name else e for e in es],
                            "either"),
        "a wrong checksum of data.pkl": (lambda es: instead(pickle_of(es).data, crc=7)(es), "either"),
        "offsets past the end": (lambda es: [Entry(e.name, e.data, at=2**31) for e in es], "refused"),
        "entries that overlap": (lambda es: [Entry(e.name, e.data, at=0) for e in es], "refused"),
        "a size of 4 GB": (lambda es: [Entry(e.name, e.data, size=2**32 - 2) for e in es], "refused"),
        "encrypted, it says": (lambda es: [Entry(e.name, e.data, flags=1) for e in es], "refused"),
        "an unknown compression": (lambda es: [Entry(e.name, e.data, method=99) for e in es], "refused"),
        "byteorder big": (lambda es: [Entry(e.name, b"big") if e.name.endswith("byteorder") else e for e in es],
                          "refused"),
        "byteorder nonsense": (lambda es: [Entry(e.name, b"x\x1b[2J") if e.name.endswith("byteorder") else e
                                           for e in es], "refused"),
        "version 999": (lambda es: [Entry(e.name, b"999") if e.name.endswith("version") else e for e in es], "refused"),
        "code of TorchScript": (lambda es: [*es, Entry(f"{root}/code/__torch__.py", b"import os"),
                                            Entry(f"{root}/constants.pkl", b"\x80\x02).")], "refused"),
        "20,000 members": (lambda es: [*es, *(Entry(f"{root}/x/{k}", b"") for k in range(20_000))], "either"),
        "no members": (lambda es: [], "refused"),
    }
    for turn, (what, (change, fits)) in enumerate(tricks.items()):
        yield file(f"an archive: {what}", "sample", made, edited(change), fits)
        if turn % 3 == 0:
            yield file(f"an archive: {what}", "inspect", made, edited(change), "either")
        elif turn % 3 == 1:
            yield file(f"an archive: {what}", "tokenizer", made, edited(change), fits)
    yield file("an archive with 1 MB before it", "sample", made, edited(lambda es: es, b"MZ" + bytes(10**6)))


def bytes_of_it(made: Path) -> Iterator[Attack]:
    """Cut, flipped, overwritten, and things that are no checkpoints at all."""
    from campaign.made import words

    rng = random.Random(0)
    for model, door in (("prior", "sample"), ("vqgan", "reconstruct")):
        whole = (made / f"runs/{model}/last.ckpt").read_bytes()
        size = len(whole)
        entries = {e.name: e for e in unzipped(made / f"runs/{model}/last.ckpt")}
        for share in (0.0001, 0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 0.999):
            yield file(f"{model} cut at {share:.2%}", door, made,
                       lambda path, n=int(size * share), w=whole: path.write_bytes(w[:n]))
        for n in (1, 20, 22, 60):
            yield file(f"{model} without its last {n} bytes", door, made,
                       lambda path, n=n, w=whole: path.write_bytes(w[:-n]))

        def at(entry: Entry, whole: bytes = whole) -> int:
            return whole.find(entry.data) if len(entry.data) > 16 else -1

        blocks = [e for e in entries.values() if "/data/" in e.name and at(e) > 0]
        for k in range(6):
            entry = blocks[k * len(blocks) // 6]
            where, bit = at(entry) + rng.randrange(len(entry.data)), 1 << rng.randrange(8)
            yield file(f"{model} with a bit of {entry.name.split('/', 1)[1]} flipped", door, made,
                       lambda path, w=whole, i=where, b=bit: path.write_bytes(
                           w[:i] + bytes([w[i] ^ b]) + w[i + 1:]))
        start = at(next(e for e in entries.values() if e.name.endswith("data.pkl")))
        for k in range(4):
            where = start + 40 + k * 400
            yield file(f"{model} with a bit of its pickle flipped at {where - start}", door, made,
                       lambda path, w=whole, i=where: path.write_bytes(w[:i] + bytes([w[i] ^ 4]) + w[i + 1:]))
        directory = whole.rfind(b"PK\x05\x06")
        first = whole.find(b"PK\x01\x02")
        for k in range(4):  # of the first entry: its size, checksum, offset; and the number of entries
            where = (first + 21, first + 17, first + 43, directory + 9)[k]
            yield file(f"{model} with a bit of its directory flipped at {k}", door, made,
                       lambda path, w=whole, i=where: path.write_bytes(w[:i] + bytes([w[i] ^ 16]) + w[i + 1:]),
                       "refused" if k in (0, 2) else "either")
        big = max(blocks, key=lambda e: len(e.data))
        where, count = at(big), min(4096, len(big.data))
        for what, fill in (("zeros", b"\0"), ("ones", b"\xff")):
            yield file(f"{model} with a block of {what}", door, made,
                       lambda path, w=whole, i=where, f=fill, n=count: path.write_bytes(
                           w[:i] + f * n + w[i + n:]))
    nothing = {
        "empty": b"", "a web page": b"\n<!DOCTYPE html><html>sign in</html>", "XML": b"<?xml version='1.0'?><Error/>",
        "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
        "a text": b"hello", "JSON": b'{"message": "Not Found"}', "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "gzip": b"\x1f\x8b\x08" + bytes(100), "noise": rng.randbytes(4096), "zeros": bytes(4096),
        "PK and then nothing": b"PK\x03\x04 and then nothing", "an empty archive": b"PK\x05\x06" + bytes(18),
        "escapes": b"\x1b]0;pwned\x07\x1b[2J",
    }
    for turn, (what, content) in enumerate(nothing.items()):
        yield file(what, ("sample", "tokenizer", "evaluate", "stage1")[turn % 4], made,
                   lambda path, c=content: path.write_bytes(c))
        yield file(what, "inspect", made, lambda path, c=content: path.write_bytes(c), "either")
    odd = {"a folder": lambda path: path.mkdir(), "a pipe": os.mkfifo, "missing": lambda path: None,
           "a link to itself": lambda path: path.symlink_to(path), "/dev/zero": lambda p: p.symlink_to("/dev/zero"),
           "a link to nothing": lambda path: path.symlink_to("nothing")}  # fmt: skip
    for what, write in odd.items():
        for door in ("sample", "tokenizer"):
            yield file(what, door, made, write)
    old = held(made, "prior")
    yield file("a sound prior in the old format", "sample", made,
               lambda path: save(old, path, _use_new_zipfile_serialization=False), "either")
    whole = (made / "runs/vqgan/last.ckpt").read_bytes()

    def cut(folder: Path) -> Line:  # the newest checkpoint of a run that is to go on
        run = folder / "runs/x"
        run.mkdir(parents=True)
        source = made / "runs/vqgan"
        config = json.loads((source / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "name": "x", "paths": {
            "runs": str(folder / "runs"), "cache": str(made / "cache")}}))
        (run / "last.ckpt").write_bytes(whole[: len(whole) // 2])
        (run / "previous.ckpt").write_bytes(whole[: len(whole) // 3])
        return "train", words("vqgan", made, folder / "runs", "name=x", "resume=must")

    yield Attack("train: both checkpoints cut, resume=must", cut, names=("runs/x",), lines=3)


def safetensors(made: Path) -> Iterator[Attack]:
    """Exported files with wrong headers."""
    whole = (made / "export/vqgan/model.safetensors").read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    header, body = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = [name for name in header if name.startswith("tokenizer.")]

    def packed(text: bytes, size: int | None = None) -> bytes:
        return struct.pack("<Q", len(text) if size is None else size) + text + body

    def of(**changes: Any) -> bytes:
        return packed(json.dumps({**header, **changes}).encode())

    one = header[names[0]]
    deep = b"[" * 100_000 + b"]" * 100_000
    listed = {
        "a header of 2**63 bytes": packed(json.dumps(header).encode(), 2**63),
        "a header longer than the file": packed(json.dumps(header).encode(), len(whole) * 2),
        "a header that is no JSON": packed(b'{"' + b"x" * 100), "a header 100,000 deep": packed(b'{"a":' + deep + b"}"),
        "metadata 100,000 deep": of(__metadata__={**header["__metadata__"], "t2i": deep.decode()}),
        "metadata with a number of 5,000 digits": of(__metadata__={"t2i": '{"format": ' + "1" * 5000 + "}"}),
        "metadata no JSON": of(__metadata__={"t2i": "{"}), "metadata a list": of(__metadata__={"t2i": "[]"}),
        "metadata a number": of(__metadata__={"t2i": 3}), "no metadata": packed(json.dumps(
            {k: v for k, v in header.items() if k != "__metadata__"}).encode()),
        "overlapping tensors": of(**{names[0]: header[names[1]]}),
        "an offset past the end": of(**{names[0]: {**one, "data_offsets": [0, 10**12]}}),
        "a negative offset": of(**{names[0]: {**one, "data_offsets": [-4, 4]}}),
        "an unknown type": of(**{names[0]: {**one, "dtype": "X99"}}),
        "a shape of 2**62": of(**{names[0]: {**one, "shape": [2**62, 2**62]}}),
        "a tensor too many": of(extra={**one}), "cut": whole[: len(whole) // 2], "cut in its header": whole[:100],
        "a byte too many": whole + b"x", "names with escapes": packed(json.dumps(
            {("\x1b]0;x\x07" + k if k == names[0] else k): v for k, v in header.items()}).encode()),
        "weights NaN": struct.pack("<Q", length) + whole[8 : 8 + length] + b"\xff" * len(body),
    }
    for turn, (what, content) in enumerate(listed.items()):
        for door in (("reconstruct", "tokenizer", "convert")[turn % 3], "inspect"):
            yield file(f"safetensors: {what}", door, made, lambda path, c=content: path.write_bytes(c),
                       suffix=".safetensors")


def continued(made: Path) -> Iterator[Attack]:
    """Checkpoints that a training is to go on from."""
    vqgan, prior = held(made, "vqgan"), held(made, "prior")
    state = vqgan["optimizer_states"]
    listed: dict[str, Any] = {
        "another kind": prior, "a CLIP": held(made, "clip"),
        "weights alone": {k: vqgan[k] for k in ("state_dict", "t2i")},
        "no optimisers": changed(vqgan, ("optimizer_states",), []), "optimisers a text": changed(
            vqgan, ("optimizer_states",), "x"),
        "an optimiser too few": changed(vqgan, ("optimizer_states",), state[:1]),
        "an optimiser of another size": changed(vqgan, ("optimizer_states",), prior["optimizer_states"] * 2),
        "loops missing": changed(vqgan, ("loops",), DELETE), "loops a text": changed(vqgan, ("loops",), "x"),
        "loops empty": changed(vqgan, ("loops",), {}), "callbacks a list": changed(vqgan, ("callbacks",), []),
        "a callback's state a text": changed(vqgan, ("callbacks", "RunCheckpoint"), "x"),
        "schedules missing": changed(vqgan, ("lr_schedulers",), DELETE),
        "a global step that is text": changed(vqgan, ("global_step",), "x"),
        "a weight NaN": changed(vqgan, ("state_dict", next(iter(vqgan["state_dict"]))), torch.full_like(
            next(iter(vqgan["state_dict"].values())), math.nan)),
        "a weight missing": changed(vqgan, ("state_dict", next(iter(vqgan["state_dict"]))), DELETE),
        "other sizes": changed(vqgan, ("state_dict", "tokenizer.quantizer.codebook"), torch.zeros(99, 4)),
        "Lightning's version of the year 3000": changed(vqgan, ("pytorch-lightning_version",), "999.0.0"),
        "Lightning's version no version": changed(vqgan, ("pytorch-lightning_version",), "\x1b[2J"),
    }
    loose = {"schedules missing", "a global step that is text", "Lightning's version of the year 3000",
             "Lightning's version no version", "loops empty", "callbacks a list"}
    for what, content in listed.items():
        fits: Expect = "either" if what in loose else "refused"
        yield file(what, "resume", made, lambda path, c=content: save(c, path), fits)
    yield file("a sound VQGAN", "resume", made, lambda path: save(vqgan, path), "works")


def encoders(made: Path) -> Iterator[Attack]:
    """Folders of a CLIP."""
    source = made / "runs/clip/hf"
    config = json.loads((source / "config.json").read_text())

    def of(change: Any) -> Any:
        def lay(folder: Path) -> Line:
            out = folder / "evil"
            out.mkdir()
            for path in source.iterdir():
                (out / path.name).write_bytes(path.read_bytes())
            change(out)
            return through("encoder", out, made)

        return lay

    def configured(**more: Any) -> Any:
        return lambda out: (out / "config.json").write_text(json.dumps({**config, **more}))

    def pickled(out: Path) -> None:
        (out / "model.safetensors").unlink()
        torch.save({"x": Calls(os.system, f"touch {PATH}")}, out / "pytorch_model.bin")

    listed = {
        "code of its own": configured(auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"},
                                      model_type="campaign_bait"),
        "no config": lambda out: (out / "config.json").unlink(), "config a list": lambda out: (
            out / "config.json").write_text("[]"),
        "config cut": lambda out: (out / "config.json").write_text("{"),
        "config 100,000 deep": lambda out: (out / "config.json").write_text("[" * 100_000 + "]" * 100_000),
        "text config a text": configured(text_config="x"),
        "10**9 layers": configured(text_config={**config["text_config"], "num_hidden_layers": 10**9}),
        "a width of 10**8": configured(text_config={**config["text_config"], "hidden_size": 10**8}),
        "10**12 words": configured(text_config={**config["text_config"], "vocab_size": 10**12}),
        "weights cut": lambda out: os.truncate(out / "model.safetensors", 1000),
        "weights empty": lambda out: os.truncate(out / "model.safetensors", 0),
        "no weights": lambda out: (out / "model.safetensors").unlink(), "weights a hostile pickle": pickled,
        "no words": lambda out: (out / "tokenizer.json").unlink(),
        "words cut": lambda out: os.truncate(out / "tokenizer.json", 300),
        "words no words": lambda out: (out / "tokenizer.json").write_text("[]"),
        "an empty folder": lambda out: [path.unlink() for path in out.iterdir()],
    }  # fmt: skip
    for what, change in listed.items():
        yield Attack(f"encoder: {what}", of(change), "either" if what in ("no words",) else "refused")


def attacks(made: Path) -> Iterator[Attack]:
    for of in (sound, structures, weights, sizes, nests, archives, bytes_of_it, safetensors, continued, encoders):
        yield from of(made)
