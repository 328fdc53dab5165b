"""`trainer.scale_batch_size`: a batch so many times the recipe's, with learning rates and steps to match.

The rule keeps what a recipe says about pictures: steps are divided by n, and learning rates are multiplied by sqrt(n),
which is Adam's rule (Krizhevsky, arXiv 1404.5997; Malladi et al., arXiv 2205.10287, who also move the betas: here they
stay, as averages do). SGD's, n itself (Goyal et al., arXiv 1706.02677), is for no optimiser here: AdamW, and Muon that
takes Adam's for want of its own. It holds up to a batch that nobody knows beforehand (arXiv 1812.06162), and for no
short run (docs/speed.md): `auto` goes no further than `MOST` times, and leaves `LEAST` steps.
"""

from __future__ import annotations

import contextlib
import gc
import io
import math
import re
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

from t2i.checkpoint import building, file_format, renames
from t2i.checkpoint.plain_files import read_table
from t2i.config.compose import difference
from t2i.data.datasets import dataset
from t2i.training import hardware
from t2i.training.resume import has_checkpoint, is_first

MOST, LEAST = 8, 1000  # times the batch, and steps
GAIN = 1.05  # images a second of a batch, at least, to those of half of it
COUNTS = ("max_steps", "warmup_steps", "halve_every", "cutmix_steps", "val_every_steps", "limit_val_batches",
          "log_every_steps", "checkpoint_every_steps")  # of batches


def scaled(config: dict[str, Any], times: int) -> dict[str, Any]:
    """The config with `times` the batch, by the rule above."""

    def by_rule(node: dict[str, Any]) -> dict[str, Any]:
        found = {}
        for key, value in node.items():
            if isinstance(value, dict):
                value = by_rule(value)
            elif value and key.endswith("learning_rate"):
                value = float(f"{value * math.sqrt(times):.4g}")
            elif value and key in COUNTS and isinstance(value, int):
                value = max(1, round(value / times))
            found[key] = value
        return found

    found = {**config, "model": by_rule(config["model"]), "trainer": by_rule(config["trainer"])}
    found["data"] = {**config["data"], "batch_size": times * config["data"]["batch_size"]}
    found["trainer"]["scale_batch_size"] = times
    return found


def find(config: dict[str, Any], earlier: list[dict[str, Any]], pictures: int | None) -> tuple[int, str]:
    """How many times the recipe's batch a run takes, and what was measured: doubled as long as that brings `GAIN`,
    up to `MOST`, to what memory holds, to the training split, and to `LEAST` steps.

    Args:
        config: with the recipe's batch. earlier: see `profiling.Parts`.
        pictures: in the training split; None: not known.
    """
    from t2i.training.profiling import devices, measure  # which import training.train, and that this

    t, size, world = config["trainer"], config["data"]["batch_size"], devices(config)
    bounds = [(MOST, f"{MOST} times is the most"), (t["max_steps"] / LEAST, f"{LEAST:,} steps are to be left")]
    bounds += [] if pictures is None else [(pictures / size, f"the training split has {pictures}")]
    device = torch.device("cuda" if torch.cuda.is_available() and t["accelerator"] != "cpu" else "cpu")
    if min(bounds)[0] >= 2:  # measuring takes a while
        fits = hardware.batch_that_fits(config, hardware.memory_of(device)[1], earlier)
        most = math.inf if fits is None else fits * t["accumulate_grad_batches"] * world
        bounds.append((most / size, f"about {most:.0f} fit in memory"))
    (limit, bound), rates = min(bounds), {}
    times = 1
    while times <= limit >= 2:
        try:
            seconds = measure(scaled(config, times), earlier)[1]["seconds_a_step"]
        except torch.OutOfMemoryError:
            bound = f"{times * size} do not fit in memory"
            break
        rates[times] = times * size / seconds
        if times > 1 and rates[times] < GAIN * rates[times // 2]:
            bound = f"twice as many are not {GAIN - 1:.0%} faster"
            break
        times *= 2
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    listed = ", ".join(f"{float(f'{rate:.3g}'):,g} images/s at {n * size}" for n, rate in rates.items())
    return max(1, times // 2), f"{listed or 'nothing measured'}; {bound}"


def told(config: dict[str, Any], times: int, why: str = "") -> dict[str, Any]:
    """The config with `times` the batch, of which a line says what became of batch, learning rates and steps."""
    found = scaled(config, times)
    if is_first():
        lines = [line for line in difference(config, found)
                 if re.match(r"data\.batch_size|model\.\S*learning_rate|trainer\.max_steps", line)]
        print(f"trainer.scale_batch_size={times}{why}; learning rates x sqrt({times}), all that counts batches /"
              f" {times}: {', '.join(lines) or 'as they were'}", flush=True)
    return found


def chosen(config: dict[str, Any], earlier: list[dict[str, Any]], pictures: int | None) -> dict[str, Any]:
    """The config by its `trainer.scale_batch_size`; for `auto` by what is measured."""
    times, why = config["trainer"]["scale_batch_size"], ""
    if times == "auto":
        times, found = find(config, earlier, pictures)
        why = f" (auto: {found})"
    return config if times is None else told(config, times, why)


def before(config: dict[str, Any], run_dir: Path, together: bool) -> int | None:
    """What a run that goes on, or the process that started this one, has found; None for a run that begins."""
    resume, started = config["resume"], not (is_first() or together)
    if started or (has_checkpoint(run_dir) and resume != "never"):
        held = read_table(run_dir / "config.json", trainer=dict)
    elif resume not in ("auto", "must", "never"):
        held = file_format.read(resume)["t2i"]["config"]
    else:
        return None
    return renames.current(held)["trainer"]["scale_batch_size"] or 1


def settled(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """A run's config with its batch: found once, then as its folder says, or the checkpoint that it goes on from."""
    if config["trainer"]["scale_batch_size"] != "auto":
        return chosen(config, [], None)
    from t2i.training.profiling import devices

    together = devices(config) > 1 and (config["trainer"]["num_nodes"] > 1 or TorchElasticEnvironment.detect()
                                        or SLURMEnvironment.detect())
    if (times := before(config, run_dir, together)) is not None:
        return told(config, times, " (auto, as found before)")
    if together:
        raise ValueError("trainer.scale_batch_size=auto: under torchrun and SLURM all processes begin at once, and none"
                         " can measure for the others. Find it on one device (trainer.devices=1), then give the number"
                         " that its config.json has")
    with contextlib.redirect_stdout(io.StringIO()):  # training tells it again
        pictures = len(dataset(config, "train", building.build))
    return chosen(config, [], pictures)
