"""What `sample.py guide=clip` writes: each picture, the way to it, its latents, and how to draw it again.

`<out>/<000>-<caption>-<i>.png` is the picture; `<same>/<step>.png` what it looked like on the way, `<same>.gif` (or
.mp4) the way as a film, `<same>.safetensors` the canvas's parameters; `grid.png` start and end of all, and of the
second settings where there are some (`guide.versus`); `drawing.json` everything needed to draw them again
(`guide=replay`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from t2i.checkpoint import building, file_format, registry, safetensors_io
from t2i.checkpoint.plain_files import read_table
from t2i.config.check import check_node, check_values
from t2i.config.messages import shown
from t2i.convert.tensors import read_tensors
from t2i.convert.tokenizers import load_tokenizer, read_foreign
from t2i.generation.clip_guided.clip_models.identity import same_weights
from t2i.generation.clip_guided.settings import Drawer, Settings, release, settings_of
from t2i.generation.output_folder import DrawingFolder
from t2i.generation.text_to_image import OPTIONS, device_of, options_of, picture_seed, read_prompts, slug, version
from t2i.metrics.clip_score import CLIPScorer
from t2i.viz import grids
from t2i.viz.progress import Bar, brief

GRID_LIMIT = 16  # columns of grid.png
# Keys of the config that do not decide what is drawn, or stand elsewhere in drawing.json.
PLACES = ("out", "device", "debug", "ckpt", "prompt", "prompts", "texts", "hashes", "replay", "trust")


SETTINGS = "t2i.generation.clip_guided.settings.Settings"


def replayed(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config that a drawing.json describes, for what the command line says now of where to write and what to trust;
    ValueError where it is none, names places that are not trusted, or where its files are gone or others by now."""
    path = Path(cfg["guide"]["path"])
    try:
        request = read_table(path, request=dict)["request"]
    except ValueError as error:
        raise ValueError(f"guide.path={path} is no drawing.json of guided drawing: {error}") from error
    forms = {"config": dict, "hashes": dict, "prompts": list, "checkpoint": str | None}
    wrong = [key for key, form in forms.items() if key not in request or not isinstance(request[key], form)]
    config, hashes = request.get("config"), request.get("hashes")
    if not wrong:
        # Of the command that drew, what decides about the pictures alone.
        config = {key: config[key] for key in ("n", "seed", "guide", *OPTIONS) if key in config}
        wrong += check_values({**cfg, **config, "guide": {}})
        wrong += [] if isinstance(config.get("guide"), dict) else ["guide"]
        wrong += [key for key in ("guides", "pictures") if not isinstance(hashes.get(key), dict)]
        wrong += [] if request["prompts"] and all(isinstance(t, str) for t in request["prompts"]) else ["prompts"]
        wrong += [] if type(config.get("seed")) is int else ["seed"]
    if not wrong:
        config["guide"] = {**config["guide"], "_target_": SETTINGS}
        wrong += check_node("guide", config["guide"])
    if wrong:
        raise ValueError(f"guide.path={path} is no drawing.json of guided drawing, or another version wrote it:"
                         f" {shown('; '.join(wrong), 400)}")
    ckpt, clips = request["checkpoint"], config["guide"]["clips"]
    known = {**hashes["pictures"], **({ckpt: hashes.get("checkpoint")} if ckpt is not None else {})}
    places = [*known, *([clips] if isinstance(clips, str) else clips)]
    if strange := [place for place in dict.fromkeys(places) if not registry.is_trusted_place(place)]:
        raise ValueError(f"guide.path={path} opens {shown(', '.join(strange), 400)}; a file's word opens nothing, if it"
                         f" is meant trust=[{shown(','.join(strange), 400)}] says so, or a folder above")
    for file, before in known.items():
        if not safetensors_io.weights_file(file).is_file():
            raise ValueError(f"guide.path={path} drew with {shown(file)}, which is gone")
        if (now := file_format.file_hash(Path(file).expanduser())) != before:
            raise ValueError(f"guide.path={path} drew with another {shown(file)}: its hash was {shown(before)} and is"
                             f" {now} now")
    return {**cfg, **config, "ckpt": ckpt, "prompt": None, "texts": request["prompts"], "hashes": hashes,
            "replay": str(path)}


def open_ckpt(cfg: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The prior of `ckpt` with its sampling options, or the tokenizer of it; None where there is none."""
    if cfg["ckpt"] is None:
        return None, {}
    held = read_tensors(cfg["ckpt"])
    if not isinstance(held, Mapping) or safetensors_io.KEY not in held:
        return read_foreign(held, cfg["ckpt"]), {}
    if file_format.read(cfg["ckpt"])["t2i"]["kind"] != "prior":
        return load_tokenizer(cfg["ckpt"]), {}
    model = building.load(cfg["ckpt"])
    return model, options_of(dict(cfg), model)


def open_drawers(cfg: Mapping[str, Any], settings: Settings) -> list[Drawer]:
    """That of the settings and, where there are some, that of the second."""
    device = device_of(cfg["device"])
    model, options = open_ckpt(cfg)
    found = [Drawer(settings, model, device, options)]
    if settings.versus is not None:
        other = dataclasses.replace(settings, **settings.versus, versus=None)
        found.append(Drawer(other, model, device, options, None if "precision" in settings.versus else found[0].guides))
    given = [name for name in OPTIONS if cfg[name] is not None]
    if given and all(drawer.start != "prior" for drawer in found):
        raise ValueError(f"{given[0]}={cfg[given[0]]}: an option of sampling, and guided drawing has none; with a"
                         " prior's checkpoint and guide.start=prior it is that prior's")
    return found


def show(image: Tensor) -> None:
    """The picture in a notebook, or in a terminal as coloured half blocks; nothing elsewhere."""
    pixels = grids.to_uint8(image)[0]
    shell = sys.modules.get("IPython")
    if shell is not None and shell.get_ipython() is not None:
        shell.display.clear_output(wait=True)
        shell.display.display(Image.fromarray(pixels))
    elif sys.stdout.isatty():
        columns = min(64, shutil.get_terminal_size().columns)
        height = max(2, round(columns * pixels.shape[0] / pixels.shape[1] / 2) * 2)
        small = np.asarray(Image.fromarray(pixels).resize((columns, height), Image.Resampling.BOX))
        for above, below in zip(small[::2], small[1::2], strict=True):
            cells = (f"\x1b[38;2;{a[0]};{a[1]};{a[2]};48;2;{b[0]};{b[1]};{b[2]}m▀"
                     for a, b in zip(above.tolist(), below.tolist(), strict=True))
            print("".join(cells) + "\x1b[0m")


class Way:
    """One picture from its start to its end, written as it goes."""

    def __init__(self, drawer: Drawer, text: str, seed: int, path: Path, label: str) -> None:
        self.drawer, self.text, self.path, self.label = drawer, text, path, label
        self.drawing = drawer.begin(text, seed)
        self.frames: list[np.ndarray] = []
        self.similarity = [self.drawing.similarity()]
        self.losses: list[float] = []
        self.written = False  # whether the picture is there

    def frame(self) -> None:
        image = self.drawing.picture()
        self.frames.append(grids.to_uint8(image)[0])
        self.path.mkdir(exist_ok=True)
        grids.save(Image.fromarray(self.frames[-1]), self.path / f"{self.drawing.step:05}.png")
        if self.drawer.settings.show:
            show(image)

    def go(self) -> None:
        """All iterations; what there is stays when it is stopped in between."""
        s, drawing, shown = self.drawer.settings, self.drawing, ""
        self.frame()
        try:
            with Bar(self.label, s.total_iter, drawing.step, details=lambda: shown) as bar:
                while drawing.step < s.total_iter and not drawing.finished:
                    loss, likeness = drawing.move()
                    shown = f"loss {brief(loss)}  similarity {likeness:.3f}"
                    self.losses.append(loss)
                    if drawing.step % s.show_step == 0:
                        self.frame()
                    bar.update()
        finally:
            if drawing.step % s.show_step:
                self.frame()
            self.similarity.append(drawing.similarity())
            self.finish()

    def finish(self) -> None:
        image = self.frames[-1]
        grids.save(Image.fromarray(image), self.path.with_name(self.path.name + ".png"))
        self.written = True
        grids.save_animation(self.frames, self.path, self.drawer.settings.film)
        notes = {"text": self.text, "shape": self.drawer.shape, "guide": dataclasses.asdict(self.drawer.settings)}
        # One entry: of several, safetensors writes another one first each time.
        content = save(self.drawing.state(), {"drawing": json.dumps(notes)})
        grids.write_bytes(self.path.with_name(self.path.name + ".safetensors"), content)

    def entry(self, seed: int) -> dict[str, Any]:
        return {"file": self.path.name + ".png", "prompt": self.text, "seed": seed, "iterations": self.drawing.step,
                "similarity": [round(value, 5) for value in self.similarity],
                "loss": [round(self.losses[0], 5), round(self.losses[-1], 5)] if self.losses else []}


def faults_of(cfg: Mapping[str, Any], settings: Settings) -> list[str]:
    faults = settings.faults()
    asked = {"completion.image": cfg["completion"]["image"], "unconditional": cfg["unconditional"] or None,
             "nearest": cfg["nearest"] or None, "best_of": None if cfg["best_of"] == 1 else cfg["best_of"],
             "text_encoder.path": cfg["text_encoder"]["path"]}
    faults += [f"{key}={value}: guided drawing has no such option" for key, value in asked.items() if value is not None]
    if settings.film == "mp4" and shutil.which("ffmpeg") is None:
        faults.append("guide.film=mp4 needs the program ffmpeg, which is not here; gif and none need nothing")
    if cfg["ckpt"] is not None and "vqgan" not in (settings.canvas, (settings.versus or {}).get("canvas")):
        faults.append(f"ckpt={cfg['ckpt']}: guide.canvas={settings.canvas} has no use for it; leave it out")
    return faults


def texts_of(cfg: Mapping[str, Any], settings: Settings) -> list[str]:
    if "texts" in cfg:
        return list(cfg["texts"])
    if (settings.images or settings.styles) and cfg["prompt"] is None and cfg["prompts"] is None:
        return [""]  # the pictures or styles are the prompt
    return read_prompts(dict(cfg))


def judged(scorer: CLIPScorer | None, way: Way) -> dict[str, Any]:
    """The cosine of start and end with the caption by the CLIP that `scorer` names; said so if it is a guide itself."""
    first = way.drawer.wish(way.text).targets[0]
    if scorer is None or not way.text or first.is_image:
        return {}
    both = torch.from_numpy(np.stack([way.frames[0], way.frames[-1]])).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    guided = any(same_weights(guide, scorer) for guide in way.drawer.guides)
    name = "score by the guide" if guided else "score"
    return {name: [round(value, 5) for value in scorer.score(both, [first.text] * 2).tolist()]}


def others(way: Way, texts: list[str]) -> dict[str, Any]:
    """How like the other captions the end is, the mean of up to eight: what its similarity is to be held against."""
    rest = [way.drawer.wishes(text) for text in dict.fromkeys(texts) if text != way.text][:8]
    return {"others": round(sum(map(way.drawing.similarity, rest)) / len(rest), 5)} if rest else {}


def run(cfg: dict[str, Any]) -> dict[str, Any]:
    """Draws what the config describes and returns what it writes to `drawing.json`, with `files`, `grid` and `out`."""
    registry.trust(cfg["trust"])
    if cfg["guide"]["_target_"].endswith("Replay"):
        cfg = replayed(cfg)
    settings = settings_of(cfg["guide"])
    texts = texts_of(cfg, settings)
    if faults := faults_of(cfg, settings):
        raise ValueError("\n".join(faults))
    rivals = open_drawers(cfg, settings)
    # Every caption is looked at before the first is drawn.
    files = sorted({file for rival in rivals for text in texts for file in rival.pictures(text)})
    scorer = CLIPScorer(cfg["scorer"]).to(rivals[0].device) if cfg["scorer"] else None
    hashes: dict[str, Any] = {
        "checkpoint": file_format.file_hash(cfg["ckpt"]) if cfg["ckpt"] else None,
        "guides": {guide.name: guide.hash() for guide in rivals[0].guides},
        "pictures": {file: file_format.file_hash(Path(file).expanduser()) for file in files},
    }
    if "hashes" in cfg and cfg["hashes"] != hashes:
        other = [name for name, value in hashes["guides"].items() if cfg["hashes"]["guides"].get(name) != value]
        raise ValueError(f"guide.path={cfg['replay']} drew with other weights of {', '.join(other)}:"
                         f" {cfg['hashes']['guides']} then, {hashes['guides']} now")
    kept = {key: value for key, value in cfg.items() if key not in PLACES}
    request = {"prompts": texts, "config": kept, "checkpoint": cfg["ckpt"], "hashes": hashes}
    record: dict[str, Any] = {"request": request, "t2i": version(), "torch": torch.__version__,
                              "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "pictures": []}
    started = time.monotonic()
    columns: list[tuple[list[np.ndarray], str]] = []
    n = 1 if cfg["n"] is None else cfg["n"]
    coming = [text for text in texts for _ in range(n * len(rivals))]
    with DrawingFolder(cfg["out"], record, coming, lambda: grid(columns, settings)) as folder:
        out = folder.path
        try:
            for j, text in enumerate(texts):
                for i in range(n):
                    seed = picture_seed(cfg["seed"], j, i)
                    columns.append(([], text))
                    for k, rival in enumerate(rivals):
                        name = f"{j:03}-{slug(text)}-{i}" + ("-versus" if k else "")
                        way = Way(rival, text, seed, out / name, name[:40])
                        try:
                            way.go()
                        finally:
                            if way.written:
                                entry = way.entry(seed)
                                record["pictures"].append(entry)
                                folder.done += 1
                            columns[-1][0].extend(way.frames[-1:] if k else way.frames[:1] + way.frames[-1:])
                        entry |= judged(scorer, way) | others(way, texts)
                        said = "".join(f"  {kind} {v[0]:.3f} -> {v[1]:.3f}" for kind, v in entry.items()
                                       if kind.startswith(("similarity", "score")))
                        said += f"  (other captions {entry['others']:.3f})" if "others" in entry else ""
                        print(shown(out / entry["file"], 1000), said, sep="")
                        del way
                        release()
        finally:  # also when stopped in between
            record["seconds"] = round(time.monotonic() - started, 2)
    print(*(shown(out / name, 1000) for name in ("grid.png", "drawing.json")), sep="\n")
    return {**record, "out": str(out), "grid": str(out / "grid.png"),
            "files": [str(out / entry["file"]) for entry in record["pictures"]]}


def grid(columns: list[tuple[list[np.ndarray], str]], settings: Settings) -> Image.Image | None:
    """Start over end, and over the end by the second settings, a column a picture."""
    rows = max((len(column) for column, _ in columns), default=0)
    whole = [(column, text) for column, text in columns if rows and len(column) == rows][:GRID_LIMIT]
    if not whole:
        return None
    second = ", ".join(f"{key}={value}" for key, value in (settings.versus or {}).items())
    labels = ["start", "end", second][:rows]
    labelled = [(label, np.stack([column[r] for column, _ in whole])) for r, label in enumerate(labels)]
    return grids.rows(labelled, [text or "(pictures)" for _, text in whole])
