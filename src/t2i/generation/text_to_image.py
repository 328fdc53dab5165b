"""Draws pictures for captions with a trained checkpoint: what `sample.py` does, and `draw()` for Python.

Every picture has a seed of its own, a function of (seed, number of the caption, number of the picture), so that
neither batch size nor the other pictures change it. Everything is checked before the first picture is drawn, and
every picture is written as soon as its batch is done.
"""

from __future__ import annotations

import math
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from t2i.checkpoint import file_format
from t2i.checkpoint.registry import trust
from t2i.config.messages import shown
from t2i.convert.reader import open_model, text_encoder_hashes
from t2i.data.emoji_art import words_of
from t2i.data.emoji_names import asked_style
from t2i.data.seeds import derive_seed
from t2i.generation import editing
from t2i.generation.drawing_step import DrawingStep, grey_where_unknown
from t2i.generation.output_folder import OutputFolder
from t2i.generation.pictures import read_square
from t2i.metrics.clip_score import CLIPScorer
from t2i.metrics.nearest_neighbours import beside, training_data
from t2i.models.prior import Prior
from t2i.text_encoders.limited_warnings import CaptionWarning
from t2i.viz import grids

PRIORS = ("prior", "prior_any")
KINDS = (*PRIORS, "dfgan", "stackgan1", "stackgan2")
GRID_LIMIT = 144  # pictures on grid.png
PICTURES = 4  # a caption
NAMED = ("schedule", "order")  # options that are words
OPTIONS = ("temperature", "top_k", "top_p", "guidance", "truncation", "steps", *NAMED)


def picture_seed(seed: int, prompt: int, picture: int, candidate: int = 0) -> int:
    """The seed of one picture; candidate 0 of best-of-n is the picture drawn without it."""
    return derive_seed(seed, "picture", prompt, picture, *([candidate] if candidate else []))


def slug(text: str, most: int = 40) -> str:
    """A file name's part: ASCII letters, digits and dashes; accents are dropped, emoji vanish."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:most].strip("-") or "picture"


def draw(
    model: Any, prompts: Sequence[str], seeds: Sequence[int], batch_size: int = 16, given: Tensor | None = None,
    negative: str | None = None, **options: Any,
) -> Iterator[Tensor]:
    """Yields batches of pictures in [-1, 1] on the CPU, one picture a prompt and seed.

    `given` holds the first codes of the picture to complete, (m,) or (1, m), the same for all; `negative` is a caption
    to lead away from; `options` are those of `model.sample`.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: each picture takes one of each")
    for start in range(0, len(prompts), batch_size):
        text = list(prompts[start : start + batch_size])
        extra: dict[str, Any] = {} if given is None else {"given": given.reshape(1, -1).expand(len(text), -1)}
        extra |= {} if negative is None else {"negative": [negative] * len(text)}
        yield model.sample(text, seeds=list(seeds[start : start + batch_size]), **extra, **options).float().cpu()


def draw_steps(
    model: Any, prompts: Sequence[str], seeds: Sequence[int], negative: str | None = None, **options: Any
) -> Iterator[DrawingStep]:
    """As `draw` does one batch, after each step; what is not drawn yet is grey. A GAN has one step."""
    text, own = list(prompts), list(seeds)
    if not isinstance(model, Prior):
        extra = {} if negative is None else {"negative": [negative] * len(text)}
        yield DrawingStep(1, 1, model.sample(text, seeds=own, **extra, **options).float().cpu)
        return
    away = None if negative is None else [negative] * len(text)
    for ids, known in model.code_steps(text, seeds=own, negative=away, **options):

        def images(ids: Tensor = ids, known: Tensor = known) -> Tensor:
            found = model.tokenizer.decode_ids(ids.clone()).float().cpu()
            return grey_where_unknown(found, known.view(-1, *model.tokenizer.grid))

        yield DrawingStep(int(known[0].sum()), known.shape[1], images)


def best_pictures(
    batches: Iterable[Tensor], captions: Sequence[str], seeds: Sequence[int], best_of: int, scorer: CLIPScorer | None
) -> Iterator[tuple[Tensor, str, int, float | None]]:
    """Pictures (3, h, w) with caption, seed and score: of every `best_of` candidates, which stand side by side, the one
    that `scorer` likes best."""
    best: tuple[Tensor, int, float | None] | None = None
    at = 0
    for batch in batches:
        scores = None if scorer is None else scorer.score(batch, list(captions[at : at + len(batch)])).tolist()
        for k, image in enumerate(batch):
            score = None if scores is None else scores[k]
            if best is None or (score is not None and best[2] is not None and score > best[2]):
                best = image, seeds[at], score
            at += 1
            if at % best_of == 0:
                yield best[0], captions[at - 1], best[1], best[2]
                best = None


def read_prompts(cfg: dict[str, Any]) -> list[str]:
    """The captions that `prompt`, `prompts` and `unconditional` ask for, in order."""
    given = [name for name in ("prompt", "prompts") if cfg[name] is not None]
    if cfg["unconditional"]:
        if given:
            raise ValueError(f"unconditional=true draws without a caption, but {given[0]}= is given too; choose one")
        return [""]
    if len(given) != 1:
        raise ValueError("give prompt=\"…\" or prompts=FILE (one caption a line), one of the two;"
                         " unconditional=true draws without a caption")
    if given == ["prompts"]:
        return read_lines(cfg["prompts"], "prompts")
    prompt = str(cfg["prompt"]).strip()
    if not prompt:
        raise ValueError('prompt="" is empty: write what to draw, or unconditional=true to draw without a caption')
    if (wrong := re.search("[\ud800-\udfff]", prompt)) is not None:
        raise ValueError(f"prompt={shown(prompt)} is not in UTF-8 at letter {wrong.start() + 1}")
    return [prompt]


def read_lines(path: str | Path, key: str) -> list[str]:
    """The captions of a file, one a line; ValueError names the key that it was given by."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{key}={path} cannot be read ({error}); it is UTF-8 text, one caption a line") from error
    found = [line.strip() for line in text.split("\n") if line.strip()]  # nothing else parts captions, U+2028 neither
    if not found:
        raise ValueError(f"{key}={path} holds no caption; it takes one a line")
    return found


def faults_of(cfg: dict[str, Any]) -> list[str]:
    """What is wrong with the numbers, as far as no model is needed to tell."""
    faults = [f"{name}={cfg[name]}: allowed are whole numbers from 1"
              for name in ("n", "batch_size", "best_of") if not isinstance(cfg[name], int) or cfg[name] < 1]
    if isinstance(cfg["best_of"], int) and cfg["best_of"] > 1 and not cfg["scorer"]:
        faults.append(f"best_of={cfg['best_of']} needs scorer=, a CLIP folder or hub name that chooses"
                      " (the checkpoint carries only CLIP's text half)")
    if isinstance(cfg["best_of"], int) and cfg["best_of"] > 1 and cfg["unconditional"]:
        faults.append(f"best_of={cfg['best_of']} compares with the caption; unconditional=true has none")
    faults += not_numbers(cfg)
    if cfg["negative"] is not None and not str(cfg["negative"]).strip():
        faults.append('negative="" is empty: write what to lead away from, or leave it out')
    image, rows = cfg["completion"]["image"], cfg["completion"]["rows"]
    if cfg["size"] is not None:
        faults += [f"{name} does not go with size={cfg['size']}"
                   for name, wanted in (("completion.image=", image is not None), ("nearest=true", cfg["nearest"]),
                                        ("edit.image=", cfg["edit"]["image"] is not None)) if wanted]
    if (image is None) != (rows is None):
        faults.append(f"completion.image={image} and completion.rows={rows}: give both or none")
    if image is not None and not (isinstance(image, str | Path) and Path(image).is_file()):
        faults.append(f"completion.image={image}: no such file")
    if cfg["edit"]["image"] is not None:
        faults += [f"{name} does not go with edit.image={cfg['edit']['image']}"
                   for name, wanted in (("completion.image=", image is not None), ("nearest=true", cfg["nearest"]))
                   if wanted]
    return faults


def not_numbers(given: Mapping[str, Any]) -> list[str]:
    """What is wrong with options of drawing that are to be numbers, whichever the model."""
    found = {name: given.get(name) for name in OPTIONS if name not in NAMED}
    return [f"{name}={value!r}: allowed are finite numbers, or null" for name, value in found.items()
            if value is not None and not (type(value) in (int, float) and math.isfinite(value))]


def check_styles(texts: Sequence[str], config: Mapping[str, Any], ckpt: str | Path, name: str = "prompt") -> None:
    """ValueError, that calls it `name`, for a caption that asks for a style which the checkpoint, trained under
    `config` on art in several, never saw."""
    if "data" not in config or "styles" not in config["data"]:
        return
    known = [words_of(str(style)) for style in config["data"]["styles"]]
    for text in texts:
        if (style := asked_style(text)) is not None and style not in known:
            raise ValueError(f"{name}={shown(text)}: {ckpt} knows the styles {', '.join(known)}, not {shown(style)}")


def tell_not_seen(texts: Sequence[str], model: Any) -> None:
    """Says what of each caption the model's text encoder does not take, a line a caption."""
    for text in dict.fromkeys(texts):
        if (told := model.text_encoder.not_seen(text)) is not None:
            print(f"caption '{shown(text, 60)}': {told}", file=sys.stderr)


def given_options(cfg: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """The options that a config gives for the `sample` of a model, or of a class of models, which must have them."""
    given = {name: cfg[name] for name in OPTIONS if cfg[name] is not None}
    if faults := not_numbers(given):
        raise ValueError(faults[0])
    given |= {"unconditional": True} if cfg.get("unconditional") else {}
    if strange := [name for name in given if name not in model.options]:
        raise ValueError(f"{strange[0]}={given[strange[0]]}: a {model.kind} has no such option; it has"
                         f" {', '.join(model.options)}")
    return given


def options_of(cfg: dict[str, Any], model: Any) -> dict[str, Any]:
    """The options for `model.sample`: the model's own where the config says null; all checked."""
    given = given_options(cfg, model)
    options = {name: value for name, value in {**model.options, **given}.items() if value is not None}
    model.check_options(**options)
    return options


def check_negative(setting: str, model: Any, guidance: Any, unconditional: bool) -> None:
    """ValueError where a caption to lead away from, which a setting gives, has nothing to work by."""
    if model.kind not in PRIORS:
        raise ValueError(f"{setting}: a {model.kind} has no such option; a prior has")
    if unconditional or guidance == 1:
        what = "unconditional=true" if unconditional else "guidance=1"
        raise ValueError(f"{setting} works by guidance, and {what} draws without it")


def first_codes(model: Any, image: str | Path, rows: Any) -> Tensor:
    """The codes of the first `rows` rows of a picture, cut to a square from its middle and resized."""
    if model.kind not in PRIORS:
        raise ValueError(f"completion.image={image}: a {model.kind} has no codes to begin with; a prior has")
    height, width = model.tokenizer.grid
    if not isinstance(rows, int) or not 1 <= rows <= height:
        raise ValueError(f"completion.rows={rows}: allowed are 1 to {height}, the rows of the tokenizer's grid")
    pixels = read_square(image, "completion.image", model.tokenizer.image_size)
    return model.tokenizer.encode(pixels.to(model.device))[:, : rows * width].clone()


def check_weights(model: Any, weights: str | None) -> None:
    """See `Prior.check_weights`; of other models only None is allowed."""
    if isinstance(model, Prior):
        model.check_weights(weights)
    elif weights is not None:
        raise ValueError(f"weights={weights}: a {getattr(model, 'kind', 'tokenizer')} has no such option; a prior has")


def set_weights(model: Any, weights: str | None) -> None:
    """See `Prior.set_weights`; of other models only None is allowed."""
    check_weights(model, weights)
    if isinstance(model, Prior):
        model.set_weights(weights)


def device_of(wanted: str) -> torch.device:
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise ValueError(f"device={wanted} is not to be had here ({why}); auto and cpu always are") from error
    return device


def run(cfg: dict[str, Any], model: Any = None, scorer: Any = None) -> dict[str, Any]:
    """Draws what `conf/sample.yaml` describes and returns what it writes to `drawing.json`, with `files` and `out`.

    Writes `<out>/<000>-<caption>-<i>.png`, `grid.png` and `drawing.json`. `model` and `scorer` stand in for what
    `ckpt` and `scorer` name, for use from Python; with `weights` the model is changed.
    """
    cfg = {**cfg, "n": PICTURES if cfg["n"] is None else cfg["n"]}
    n, best_of, seed = cfg["n"], cfg["best_of"], cfg["seed"]
    trust(cfg["trust"])
    texts = read_prompts(cfg)
    if faults := faults_of(cfg):
        raise ValueError("; ".join(faults))
    edit = editing.read(cfg["edit"])
    device = device_of(cfg["device"])
    hashes = text_encoder_hashes(cfg)
    if model is None:
        model = open_model(cfg, KINDS)
        if not hashes:  # else it is another project's file
            config = file_format.read(cfg["ckpt"])["t2i"]["config"]
            check_styles(texts, config, cfg["ckpt"])
            if cfg["negative"] is not None:
                check_styles([str(cfg["negative"])], config, cfg["ckpt"], "negative")
    if edit is not None:
        edit.check(model)
    size = None if cfg["size"] is None else editing.check_size(cfg["size"], model)
    model.to(device).eval()
    if isinstance(model, Prior):
        model.place()
    set_weights(model, cfg["weights"])
    options, completion, negative = options_of(cfg, model), cfg["completion"], cfg["negative"]
    if negative is not None:
        negative = str(negative).strip()
        check_negative(f"negative={shown(negative)}", model, options.get("guidance"), cfg["unconditional"])
    given = None if completion["image"] is None else first_codes(model, completion["image"], completion["rows"])
    if best_of > 1 and scorer is None:
        scorer = CLIPScorer(cfg["scorer"]).to(device)
    request = {
        "prompts": texts, "n": n, "seed": seed, "options": options, "best_of": best_of,
        **({} if negative is None else {"negative": negative}),
        "scorer": str(cfg["scorer"]) if best_of > 1 else None,
        "completion": {key: None if value is None else str(value) for key, value in completion.items()},
        **({} if cfg["weights"] is None else {"weights": cfg["weights"]}),
        **({} if edit is None else {"edit": dict(cfg["edit"])}), **({} if size is None else {"size": list(size)}),
        "checkpoint": str(cfg["ckpt"]), "hash": file_format.file_hash(cfg["ckpt"]) if cfg["ckpt"] else None,
        **({"text_encoder": hashes} if hashes else {}),
    }
    if not cfg["unconditional"]:
        tell_not_seen([*texts, *([] if negative is None else [negative])], model)
    data = training_data(cfg)
    gridded: list[np.ndarray] = []

    def grid() -> Image.Image | None:
        under = [entry["prompt"] or "(no caption)" for entry in folder.entries[: len(gridded)]]
        columns = n if 1 < n <= 12 and len(texts) > 1 else None
        return grids.grid(np.stack(gridded), under, columns) if gridded else None

    places = [(j, i, c) for j in range(len(texts)) for i in range(n) for c in range(best_of)]
    captions, seeds = [texts[j] for j, _, _ in places], [picture_seed(seed, *place) for place in places]
    if size is not None:
        batches = editing.draw_sized(model, size, captions, seeds, cfg["batch_size"], negative, **options)
    elif edit is None:
        batches = draw(model, captions, seeds, cfg["batch_size"], given, negative, **options)
    else:
        batches = editing.draw(model, edit, captions, seeds, cfg["batch_size"], negative, **options)
    with warnings.catch_warnings(), OutputFolder(cfg["out"], request, captions[::best_of], grid) as folder:
        warnings.simplefilter("ignore", CaptionWarning)  # all was said
        for (j, i, _), (image, text, own_seed, score) in zip(
                places[::best_of], best_pictures(batches, captions, seeds, best_of, scorer if best_of > 1 else None),
                strict=True):
            pixels = grids.to_uint8(image[None])[0]
            path = folder.save(pixels, f"{j:03}-{slug(text or 'unconditional')}-{i}.png")
            entry = {"file": path.name, "prompt": text, "seed": own_seed}
            folder.entries.append(entry if score is None else {**entry, "score": round(score, 5)})
            if len(gridded) < GRID_LIMIT:
                gridded.append(pixels)
            print(shown(path, 1000))
    if data is not None:
        beside(data, folder.path, np.stack(gridded), folder.entries)
    if len(folder.entries) > GRID_LIMIT:
        print(f"grid.png shows the first {GRID_LIMIT} of {len(folder.entries)} pictures")
    return folder.result()
