"""Each addition to the plain nets by itself, at equal training time, on two kinds of data: a Markdown table.

    python benchmarks/ablations.py [--data emoji scenes] [--rows plain neighbours …] [--seeds 0 1]
                                   [--minutes 4] [--tokenizer-minutes 4] [--out runs/ablations]

A row trains a tokenizer (rows of the prior share that of `plain`) and a prior for so many minutes, and judges what the
prior draws: on emoji right pairs by `metrics=[nearest_render]`, on scenes `metrics=[composition]`. How many steps fit
into the minutes is measured by `estimate=true` before every training, so that schedules end when the time does; the
machine should have nothing else to do. What was finished (`rows.json`) is not run again.
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


DATA = {
    "emoji": Data(["experiments=emoji/vqgan"], ["experiments=emoji/prior"],
                  ["metrics=[nearest_render]", "n_pairs=300", "temperature=0.5", "guidance=2"],
                  ("nearest_render_seen_pair", "nearest_render_heldout_pair", "nearest_render_heldout_median_rank")),
    "scenes": Data(["experiments=scenes/vqgan"], ["experiments=scenes/prior"],
                   ["metrics=[composition]", "n_per_task=40", "temperature=0.7", "guidance=1.5"],
                   ("composition_seen_overall", "composition_heldout_overall")),
}
PRIOR_ROWS = {
    "neighbours": ["model.neighbours=true"],
    "running sums": ["model.running_sums=true"],
    "word triples": ["model.word_triples=true"],
    "pointer heads": ["model.part_heads=pointer"],
    "text noise 0.3": ["model.text_noise=0.3"],
    "learned positions": ["model.positions=learned"],
    "code dropout 0": ["model.code_dropout=0.0"],
    "code dropout 0.8": ["model.code_dropout=0.8"],
    "adamw": ["model.optimizer=adamw", "model.learning_rate=1e-3"],
}
TOKENIZER_ROWS = {
    "two colours": ["model/autoencoder=two_colour", "model/quantizer=product_two_colour"],
    "norms": ["model.autoencoder.num_groups=16"],
    "local encoder": ["model.autoencoder.local_encoder=true"],
    "quantised from the start": ["model.quantizer_start=0.0"],
    "simvq": ["model/quantizer=simvq"],
    "residual simvq": ["model/quantizer=residual"],
    "product simvq": ["model/quantizer=product"],
    "fsq": ["model/quantizer=fsq"],
    "ema": ["model/quantizer=ema", "model.quantizer.dim=8"],
}


def command(app: str, *words: str) -> str:
    """Runs an app of the project; what it printed. SystemExit with its last lines where it failed."""
    done = subprocess.run([sys.executable, str(ROOT / f"{app}.py"), *words], cwd=ROOT, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"python {app}.py {' '.join(words)}\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def train(words: list[str], minutes: float) -> None:
    rate = re.search(r"([\d.]+) steps/s", command("train", *words, "estimate=true"))
    if rate is None:
        raise SystemExit(f"estimate=true of {' '.join(words)} gave no steps/s")
    steps = max(10, round(60 * minutes * float(rate[1])))
    command("train", *words, f"trainer.max_steps={steps}", f"trainer.val_every_steps={steps}")


def row(name: str, data: Data, seed: int, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """Trains and judges one row; its scores."""
    own = folder / name.replace(" ", "-")
    tokenizer = folder / "plain" if name in PRIOR_ROWS else own
    common = [f"seed={seed}", "logger=none"]
    if not (tokenizer / "tokenizer-finished").exists():
        of_row = TOKENIZER_ROWS[name] if tokenizer == own and name != "plain" else []
        train([*data.vqgan, *of_row, f"paths.runs={tokenizer}", "name=vqgan", *common], args.tokenizer_minutes)
        (tokenizer / "tokenizer-finished").touch()
    of_row = PRIOR_ROWS[name] if name in PRIOR_ROWS else []  # noqa: SIM401  (no default that hides a mistyped row)
    train([*data.prior, *of_row, f"paths.runs={own}", "name=prior", f"model.tokenizer.path={tokenizer}/vqgan/last.ckpt",
           *common], args.minutes)
    command("evaluate", f"ckpt={own}/prior/last.ckpt", f"out={own}/evaluation", f"seed={seed}", *data.evaluation)
    return flat(json.loads((own / "evaluation/evaluation.json").read_text())["scores"], data.scores)


def flat(scores: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, float]:
    """The scores by their flat names."""
    found = dict(scores)
    if "composition" in scores:
        found |= {f"composition_{split}_overall": kinds["score"]["overall"]
                  for split, kinds in scores["composition"].items()}
    return {name: float(found[name]["value"] if isinstance(found[name], dict) else found[name]) for name in wanted}


def table(rows: dict[str, dict[str, float]], data: str, seeds: list[int]) -> str:
    scores = DATA[data].scores
    lines = [f"| {data} | " + " | ".join(scores) + " |", "| --- |" + " --- |" * len(scores)]
    plain = {score: statistics.mean(rows[f"{data}/plain/{seed}"][score] for seed in seeds) for score in scores}
    for name in dict.fromkeys(key.split("/")[1] for key in rows if key.startswith(f"{data}/")):
        each = [rows[f"{data}/{name}/{seed}"] for seed in seeds if f"{data}/{name}/{seed}" in rows]
        cells = []
        for score in scores:
            values = [one[score] for one in each]
            mean = statistics.mean(values)
            cells.append(f"{mean:.3f} ({mean - plain[score]:+.3f}; {', '.join(f'{v:.3f}' for v in values)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["plain", *PRIOR_ROWS, *TOKENIZER_ROWS]
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--rows", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--tokenizer-minutes", type=float, default=4.0)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/ablations")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept = args.out / "rows.json"
    rows: dict[str, dict[str, float]] = json.loads(kept.read_text()) if kept.is_file() else {}
    print(f"{date.today()}, {args.tokenizer_minutes:g} + {args.minutes:g} min a row, seeds {args.seeds}", flush=True)
    for data in args.data:
        for seed in args.seeds:
            for name in dict.fromkeys(["plain", *args.rows]):
                if (key := f"{data}/{name}/{seed}") not in rows:
                    rows[key] = row(name, DATA[data], seed, args.out.resolve() / data / str(seed), args)
                    kept.write_text(json.dumps(rows, indent=1))
                    print(key, rows[key], flush=True)
        print(table(rows, data, args.seeds), flush=True)


if __name__ == "__main__":
    main()
