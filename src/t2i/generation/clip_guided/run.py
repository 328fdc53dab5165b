"""What `sample.py method=clip_guided` writes: each picture, those in between, its latents, and how to draw it again.

`<out>/<000>-<caption>-<i>.png` is the picture; `<same>/<step>.png` what it looked like in between, `<same>.gif` (or
.mp4) that as a film, `<same>.safetensors` the canvas's parameters; `grid.png` start and end of all, and of the second
settings where there are some (`clip_guided.versus`); `drawing.json` everything needed to draw them again
(`method=replay`).
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from t2i.checkpoint import building, file_format, registry, renames, safetensors_io
from t2i.checkpoint.plain_files import read_table
from t2i.config.check import check_node, check_values
from t2i.config.messages import shown
from t2i.convert.tensors import read_tensors
from t2i.convert.tokenizers import load_tokenizer, read_foreign
from t2i.generation.clip_guided.clip_models.base import same_weights
from t2i.generation.clip_guided.generator import ClipGuidedGenerator, release
from t2i.generation.clip_guided.settings import NAME, TARGET, Settings, settings_of
from t2i.generation.output_folder import OutputFolder
from t2i.generation.text_to_image import OPTIONS, PRIORS, device_of, options_of, picture_seed, read_prompts, slug
from t2i.metrics.clip_score import CLIPScorer
from t2i.viz import grids
from t2i.viz.progress import Bar, brief

GRID_LIMIT = 16  # columns of grid.png
OTHERS = 8  # captions that a picture is compared with beside its own
# Keys of the config that do not decide what is drawn, or stand elsewhere in drawing.json.
PLACES = ("out", "device", "debug", "ckpt", "prompt", "prompts", "texts", "hashes", "replay", "trust")


def replayed(cfg: dict[str, Any]) -> dict[str, Any]:
    """The config that a drawing.json describes, for what the command line says now of where to write and what to trust;
    ValueError where it is none, names places that are not trusted, or where its files are gone or others by now."""
    path = Path(cfg[NAME]["path"])
    source = f"{NAME}.path={path}"
    try:
        request = read_table(path, request=dict)["request"]
    except ValueError as error:
        raise ValueError(f"{source} is no drawing.json of clip-guided drawing: {error}") from error
    forms = {"config": dict, "hashes": dict, "prompts": list, "checkpoint": str | None}
    wrong = [key for key, form in forms.items() if key not in request or not isinstance(request[key], form)]
    config, hashes = request.get("config"), request.get("hashes")
    if not wrong:
        config = renames.current(config)
        # Of the command that drew, what decides about the pictures alone.
        config = {key: config[key] for key in ("n", "seed", NAME, *OPTIONS) if key in config}
        wrong += check_values({**cfg, **config, NAME: {}})
        wrong += [] if isinstance(config.get(NAME), dict) else [NAME]
        wrong += [key for key in ("guides", "pictures") if not isinstance(hashes.get(key), dict)]
        wrong += [] if request["prompts"] and all(isinstance(t, str) for t in request["prompts"]) else ["prompts"]
        wrong += [] if type(config.get("seed")) is int else ["seed"]
    if not wrong:
        config[NAME] = {**config[NAME], "_target_": TARGET}
        wrong += check_node(NAME, config[NAME])
    if wrong:
        raise ValueError(f"{source} is no drawing.json of clip-guided drawing, or another version wrote it:"
                         f" {shown('; '.join(wrong), 400)}")
    ckpt, clips = request["checkpoint"], config[NAME]["clips"]
    known = {**hashes["pictures"], **({ckpt: hashes.get("checkpoint")} if ckpt is not None else {})}
    places = [*known, *([clips] if isinstance(clips, str) else clips)]
    if strange := [place for place in dict.fromkeys(places) if not registry.is_trusted_place(place)]:
        raise ValueError(f"{source} opens {shown(', '.join(strange), 400)}; a file's word opens nothing, if it is meant"
                         f" trust=[{shown(','.join(strange), 400)}] says so, or a folder above")
    for file, before in known.items():
        if not safetensors_io.weights_file(file).is_file():
            raise ValueError(f"{source} drew with {shown(file)}, which is gone")
        if (now := file_format.file_hash(Path(file).expanduser())) != before:
            raise ValueError(f"{source} drew with another {shown(file)}: its hash was {shown(before)} and is {now} now")
    return {**cfg, **config, "ckpt": ckpt, "prompt": None, "texts": request["prompts"], "hashes": hashes,
            "replay": str(path)}


def open_ckpt(cfg: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The prior of `ckpt` with its sampling options, or the tokenizer of it; None where there is none."""
    if cfg["ckpt"] is None:
        return None, {}
    held = read_tensors(cfg["ckpt"])
    if not isinstance(held, Mapping) or safetensors_io.KEY not in held:
        return read_foreign(held, cfg["ckpt"]), {}
    if file_format.read(cfg["ckpt"])["t2i"]["kind"] not in PRIORS:
        return load_tokenizer(cfg["ckpt"]), {}
    model = building.load(cfg["ckpt"])
    return model, options_of(dict(cfg), model)


def open_generators(cfg: Mapping[str, Any], settings: Settings) -> list[ClipGuidedGenerator]:
    """That of the settings and, where there are some, that of the second."""
    device = device_of(cfg["device"])
    model, options = open_ckpt(cfg)
    found = [ClipGuidedGenerator(settings, model, device, options)]
    if settings.versus is not None:
        same = None if "precision" in settings.versus else found[0].clip_models
        found.append(ClipGuidedGenerator(settings.second(), model, device, options, same))
    given = [name for name in OPTIONS if cfg[name] is not None]
    if given and all(one.start != "prior" for one in found):
        raise ValueError(f"{given[0]}={cfg[given[0]]}: an option of sampling, and clip-guided drawing has none; with a"
                         f" prior's checkpoint and {NAME}.start=prior it is that prior's")
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


class ClipGuidedRun:
    """One picture from its start to its end, written into the folder as it goes, under `name`."""

    def __init__(
        self, generator: ClipGuidedGenerator, text: str, seed: int, folder: OutputFolder, name: str
    ) -> None:
        self.generator, self.text, self.seed, self.folder, self.name = generator, text, seed, folder, name
        self.drawing = generator.begin(text, seed)
        self.frames: list[np.ndarray] = []
        self.similarity = [self.drawing.similarity()]
        self.losses: list[float] = []
        self.entry: dict[str, Any] = {}

    def frame(self) -> None:
        image = self.drawing.picture()
        self.frames.append(grids.to_uint8(image)[0])
        self.folder.save(self.frames[-1], f"{self.name}/{self.drawing.step:05}.png")
        if self.generator.settings.show:
            show(image)

    def run(self) -> None:
        """All iterations; what there is stays when it is stopped in between."""
        s, drawing, details = self.generator.settings, self.drawing, ""
        self.frame()
        try:
            with Bar(self.name[:40], s.steps, details=lambda: details) as bar:
                while drawing.step < s.steps and not drawing.finished:
                    loss, similarity = drawing.update()
                    details = f"loss {brief(loss)}  similarity {similarity:.3f}"
                    self.losses.append(loss)
                    if drawing.step % s.show_step == 0:
                        self.frame()
                    bar.update()
        finally:
            if drawing.step % s.show_step:
                self.frame()
            self.similarity.append(drawing.similarity())
            self._finish()

    def _finish(self) -> None:
        generator, path = self.generator, self.folder.path / self.name
        self.folder.save(self.frames[-1], f"{self.name}.png")
        losses = [self.losses[0], self.losses[-1]] if self.losses else []
        self.entry = {"file": f"{self.name}.png", "prompt": self.text, "seed": self.seed,
                      "iterations": self.drawing.step, "similarity": [round(value, 5) for value in self.similarity],
                      "loss": [round(value, 5) for value in losses]}
        self.folder.entries.append(self.entry)
        grids.save_animation(self.frames, path, generator.settings.film)
        notes = {"text": self.text, "shape": (generator.height, generator.width),
                 NAME: dataclasses.asdict(generator.settings)}
        # One entry: of several, safetensors writes another one first each time.
        content = save(self.drawing.state(), {"drawing": json.dumps(notes)})
        grids.write_bytes(path.with_name(f"{self.name}.safetensors"), content)

    def compare(self, scorer: CLIPScorer | None, texts: list[str]) -> None:
        """Adds to the entry the cosine of start and end with the caption by another CLIP (said so if it guided), and
        how like other captions the end is: what its similarity is to be held against."""
        first = self.generator.prompts(self.text).targets[0]
        if scorer is not None and self.text and not first.is_image:
            both = torch.from_numpy(np.stack([self.frames[0], self.frames[-1]])).permute(0, 3, 1, 2)
            guided = any(same_weights(clip, scorer) for clip in self.generator.clip_models)
            scores = scorer.score(both.float().div(127.5).sub(1), [first.text] * 2).tolist()
            self.entry["score by the guide" if guided else "score"] = [round(value, 5) for value in scores]
        others = [text for text in dict.fromkeys(texts) if text != self.text][:OTHERS]
        if others:
            each = [self.drawing.similarity(self.generator.targets(text)) for text in others]
            self.entry["others"] = round(sum(each) / len(each), 5)

    def report(self) -> str:
        found = "".join(f"  {kind} {v[0]:.3f} -> {v[1]:.3f}" for kind, v in self.entry.items()
                        if kind.startswith(("similarity", "score")))
        others = f"  (other captions {self.entry['others']:.3f})" if "others" in self.entry else ""
        return f"{shown(self.folder.path / self.entry['file'], 1000)}{found}{others}"


def faults_of(cfg: Mapping[str, Any], settings: Settings) -> list[str]:
    faults = settings.faults()
    given = {"completion.image": cfg["completion"]["image"], "unconditional": cfg["unconditional"] or None,
             "nearest": cfg["nearest"] or None, "best_of": None if cfg["best_of"] == 1 else cfg["best_of"],
             "text_encoder.path": cfg["text_encoder"]["path"], "size": cfg["size"],
             "weights": cfg["weights"],
             **{f"edit.{key}": value for key, value in cfg["edit"].items() if key != "composite"}}
    faults += [f"{key}={value}: clip-guided drawing has no such option" for key, value in given.items()
               if value is not None]
    if settings.film == "mp4" and shutil.which("ffmpeg") is None:
        faults.append(f"{NAME}.film=mp4 needs the program ffmpeg, which is not here; gif and none need nothing")
    if cfg["ckpt"] is not None and "vqgan" not in (settings.canvas, (settings.versus or {}).get("canvas")):
        faults.append(f"ckpt={cfg['ckpt']}: {NAME}.canvas={settings.canvas} has no use for it; leave it out")
    return faults


def texts_of(cfg: Mapping[str, Any], settings: Settings) -> list[str]:
    if "texts" in cfg:
        return list(cfg["texts"])
    if (settings.images or settings.styles) and cfg["prompt"] is None and cfg["prompts"] is None:
        return [""]  # the pictures or styles are the prompt
    return read_prompts(dict(cfg))


def run(cfg: dict[str, Any]) -> dict[str, Any]:
    """Draws what the config describes and returns what it writes to `drawing.json`, with `files`, `grid` and `out`."""
    registry.trust(cfg["trust"])
    if cfg[NAME]["_target_"].endswith("Replay"):
        cfg = replayed(cfg)
    settings = settings_of(cfg[NAME])
    texts = texts_of(cfg, settings)
    if faults := faults_of(cfg, settings):
        raise ValueError("\n".join(faults))
    generators = open_generators(cfg, settings)
    # Every caption is looked at before the first is drawn.
    files = sorted({file for generator in generators for text in texts for file in generator.pictures(text)})
    scorer = CLIPScorer(cfg["scorer"]).to(generators[0].device) if cfg["scorer"] else None
    hashes: dict[str, Any] = {
        "checkpoint": file_format.file_hash(cfg["ckpt"]) if cfg["ckpt"] else None,
        "guides": {clip.name: clip.hash() for clip in generators[0].clip_models},
        "pictures": {file: file_format.file_hash(Path(file).expanduser()) for file in files},
    }
    if "hashes" in cfg and cfg["hashes"] != hashes:
        other = [name for name, value in hashes["guides"].items() if cfg["hashes"]["guides"].get(name) != value]
        raise ValueError(f"{NAME}.path={cfg['replay']} drew with other weights of {', '.join(other)}:"
                         f" {cfg['hashes']['guides']} then, {hashes['guides']} now")
    request = {"prompts": texts, "config": {key: value for key, value in cfg.items() if key not in PLACES},
               "checkpoint": cfg["ckpt"], "hashes": hashes}
    n = 1 if cfg["n"] is None else cfg["n"]
    columns: list[tuple[list[np.ndarray], str]] = []
    captions = [text for text in texts for _ in range(n * len(generators))]
    with OutputFolder(cfg["out"], request, captions, lambda: grid(columns, settings)) as folder:
        for j, text in enumerate(texts):
            for i in range(n):
                columns.append(([], text))
                for k, generator in enumerate(generators):
                    name = f"{j:03}-{slug(text)}-{i}" + ("-versus" if k else "")
                    one = ClipGuidedRun(generator, text, picture_seed(cfg["seed"], j, i), folder, name)
                    try:
                        one.run()
                    finally:
                        columns[-1][0].extend(one.frames[-1:] if k else one.frames[:1] + one.frames[-1:])
                    one.compare(scorer, texts)
                    print(one.report())
                    del one
                    release()
    return folder.result()


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
