"""Each addition to the plain nets by itself, at equal training time, on two kinds of data: a Markdown table.

    python benchmarks/ablations.py [--data emoji scenes] [--rows plain prefix …] [--seeds 0 1] [--minutes 4]
                                   [--tokenizer-minutes 4] [--tokenizers emoji=FILE …] [--alone] [--out runs/ablations]

A row trains a tokenizer (rows of the prior share that of `plain`, made in `tokenizer minutes`) and a prior for so many
minutes, and judges what the prior draws: on emoji by `metrics=[nearest_render]`, on scenes by `metrics=[composition]`.
With `--alone` it trains tokenizers only, and judges reconstructions likewise, and by PSNR and SSIM.
How many steps fit into the minutes is measured by `estimate=true` once a row, so that schedules end when the time does
and seeds take the same steps; the machine should have nothing else to do. What was finished (`scores.json` in a row's
folder) is not run again, so several of these commands may share the work. The table is of all that is finished.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Data:
    """Command lines of the plain stages, and of the evaluation with the scores that it gives."""

    vqgan: list[str]
    prior: list[str]
    evaluation: list[str]
    scores: tuple[str, ...]
    alone: list[str]
    of_alone: tuple[str, ...]


DATA = {
    "emoji": Data(["experiments=emoji/vqgan"], ["experiments=emoji/prior"],
                  ["metrics=[nearest_render]", "n_pairs=300", "pairs=val", "temperature=0.5", "guidance=2"],
                  ("nearest_render_seen_pair", "nearest_render_heldout_pair", "nearest_render_seen_top5",
                   "nearest_render_heldout_top5", "nearest_render_seen_median_rank",
                   "nearest_render_heldout_median_rank"),
                  ["metrics=[nearest_render,reconstruction]", "n_pairs=300", "pairs=val"],
                  ("nearest_render_seen_pair", "nearest_render_heldout_pair", "psnr", "ssim")),
    "scenes": Data(["experiments=shapes/vqgan"], ["experiments=shapes/prior"],
                   ["metrics=[composition]", "n_per_task=40", "temperature=0.7", "guidance=1.5"],
                   ("composition_seen_overall", "composition_heldout_overall"),
                   ["metrics=[composition,reconstruction]", "n_per_task=100"],
                   ("composition_seen_overall", "composition_heldout_overall", "psnr", "ssim")),
}
PRIOR_ROWS = {
    "prefix": ["model.caption=prefix"],
    "words alone": ["model.word_triples=false"],
    "caption heads": ["model.caption_heads=true"],
    "no dropout": ["model.dropout=0.0"],
    "code dropout 0": ["model.code_dropout=0.0"],
    "code dropout 0.4": ["model.code_dropout=0.4"],
    "code dropout 0.8": ["model.code_dropout=0.8"],
    "adamw": ["model.optimizer=adamw", "model.learning_rate=1e-3"],
}
# A convolutional autoencoder in the place of the recipes' two-colour patches.
CONV = ["model/autoencoder=conv", "model.autoencoder.channels=96", "model.autoencoder.multipliers=[1]",
        "model.autoencoder.num_res_blocks=1", "model.autoencoder.attention_levels=[]", "model.autoencoder.num_groups=0",
        "model.autoencoder.patch_size=8", "model.autoencoder.mid_attention=false", "model.autoencoder.z_channels=8",
        "model.autoencoder.local_encoder=true", "model.bounded_latents=true", "model.quantizer_start=0.7",
        "model.weight_decay=0.1", "~model.quantizer.parts"]  # fmt: skip
TOKENIZER_ROWS = {f"conv {name}": [*CONV, f"model/quantizer={name}"]
                  for name in ("product", "residual", "simvq", "fsq", "vq")}
WIDE = [*(word for word in CONV if "local_encoder" not in word and "num_groups" not in word), "model/quantizer=product"]
ALONE_ROWS = TOKENIZER_ROWS | {
    "conv product no bounds": [*(word for word in TOKENIZER_ROWS["conv product"] if "bounded" not in word)],
    "conv product wide": [*WIDE, "model.autoencoder.num_groups=0"],
    "conv product wide norms": [*WIDE, "model.autoencoder.num_groups=32"],
    "two colour adamw": ["model.optimizer=adamw", "model.learning_rate=1e-3"],
}


def command(app: str, *words: str) -> str:
    """Runs an app of the project; what it printed. SystemExit with its last lines where it failed."""
    done = subprocess.run([sys.executable, str(ROOT / f"{app}.py"), *words], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"python {app}.py {' '.join(words)}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def train(words: list[str], minutes: float, rate: Path) -> None:
    """Trains for about so many minutes; steps a second stand in `rate`, or are measured and kept there."""
    if not rate.exists():
        found = re.search(r"([\d.]+) steps/s", command("train", *words, "estimate=true"))
        if found is None:
            raise SystemExit(f"estimate=true of {' '.join(words)} gave no steps/s")
        rate.write_text(found[1])
    steps = max(10, round(60 * minutes * float(rate.read_text())))
    command("train", *words, f"trainer.max_steps={steps}", f"trainer.val_every_steps={steps}")


def alone(name: str, data: Data, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Trains and judges one tokenizer; its scores."""
    own = folder / f"{name.replace(' ', '-')}-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    train([*data.vqgan, *ALONE_ROWS.get(name, []), f"paths.runs={own}", "name=vqgan", f"seed={seed}", "logger=none"],
          args.tokenizer_minutes, folder / f"{name.replace(' ', '-')}.rate")
    command("evaluate", f"ckpt={own}/vqgan/last.ckpt", f"out={own}/evaluation", f"seed={seed}", *data.alone)
    return flat(json.loads((own / "evaluation/evaluation.json").read_text())["scores"], data.of_alone)


def row(name: str, data: Data, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Trains and judges one row; its scores."""
    own = folder / f"{name.replace(' ', '-')}-{seed}"
    own.mkdir(parents=True, exist_ok=True)
    common = [f"seed={seed}", "logger=none"]
    tokenizer, of_row = own / "vqgan/last.ckpt", PRIOR_ROWS[name] if name in PRIOR_ROWS else []  # noqa: SIM401
    if given := dict(args.tokenizers).get(folder.name) if name not in TOKENIZER_ROWS else None:
        tokenizer = Path(given).resolve()
    elif name in PRIOR_ROWS:
        tokenizer = folder / f"plain-{seed}/vqgan/last.ckpt"
        if not (folder / f"plain-{seed}/scores.json").exists():
            raise SystemExit(f"{tokenizer.parent} is not finished: run the row plain first, whose tokenizer is shared")
    else:
        changed = TOKENIZER_ROWS[name] if name != "plain" else []
        train([*data.vqgan, *changed, f"paths.runs={own}", "name=vqgan", *common], args.tokenizer_minutes,
              folder / f"{name.replace(' ', '-')}-tokenizer.rate")
    train([*data.prior, *of_row, f"paths.runs={own}", "name=prior", f"model.tokenizer.path={tokenizer}",
           *common], args.minutes, folder / f"{name.replace(' ', '-')}.rate")
    command("evaluate", f"ckpt={own}/prior/last.ckpt", f"out={own}/evaluation", f"seed={seed}", *data.evaluation)
    return flat(json.loads((own / "evaluation/evaluation.json").read_text())["scores"], data.scores)


def flat(scores: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, float]:
    """The scores by their flat names."""
    found = dict(scores)
    if "composition" in scores:
        found |= {f"composition_{split}_overall": kinds["score"]["overall"]
                  for split, kinds in scores["composition"].items()}
    return {name: float(found[name]["value"] if isinstance(found[name], dict) else found[name]) for name in wanted}


def table(folder: Path, title: str, scores: tuple[str, ...]) -> str:
    """All finished rows: the mean over seeds, its difference to `plain` over the same seeds, and each."""
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for file in sorted(folder.glob("*/scores.json")):
        name, _, seed = file.parent.name.rpartition("-")
        rows.setdefault(name.replace("-", " "), {})[seed] = json.loads(file.read_text())
    lines = [f"| {title} | " + " | ".join(scores) + " |", "| --- |" + " --- |" * len(scores)]
    for name in [name for name in ["plain", *PRIOR_ROWS, *ALONE_ROWS] if name in rows]:
        cells = []
        for score in scores:
            values = [each[score] for each in rows[name].values()]
            plain = [rows["plain"][seed][score] for seed in rows[name] if seed in rows.get("plain", {})]
            difference = f"{statistics.mean(values) - statistics.mean(plain):+.3f}; " if plain else ""
            cells.append(f"{statistics.mean(values):.3f} ({difference}{', '.join(f'{v:.3f}' for v in values)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["plain", *PRIOR_ROWS, *ALONE_ROWS]
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--rows", nargs="*", choices=names,
                        help="all that there are, where nothing is said")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--tokenizer-minutes", type=float, default=4.0)
    parser.add_argument("--tokenizers", nargs="*", type=lambda text: text.split("=", 1), default=[],
                        metavar="DATA=FILE", help="a trained tokenizer in the place of that of plain")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/ablations")
    parser.add_argument("--alone", action="store_true", help="tokenizers alone, judged by their reconstructions")
    args = parser.parse_args()
    known = ["plain", *ALONE_ROWS] if args.alone else ["plain", *PRIOR_ROWS, *TOKENIZER_ROWS]
    if unknown := set(args.rows or []) - set(known):
        parser.error(f"--rows {' '.join(unknown)}: {'with' if args.alone else 'without'} --alone there are {known}")
    print(f"{date.today()}, {args.tokenizer_minutes:g} + {args.minutes:g} min a row, seeds {args.seeds}", flush=True)
    for data in args.data:
        folder = args.out.resolve() / (f"{data}-tokenizers" if args.alone else data)
        for seed in args.seeds:
            for name in args.rows or known:
                kept = folder / f"{name.replace(' ', '-')}-{seed}" / "scores.json"
                if not kept.exists():
                    scores = (alone if args.alone else row)(name, DATA[data], seed, folder, args)
                    kept.write_text(json.dumps(scores, indent=1))
                    print(data, name, seed, scores, flush=True)
        print(table(folder, folder.name, DATA[data].of_alone if args.alone else DATA[data].scores), flush=True)


if __name__ == "__main__":
    main()
