"""How well a tokenizer gives pictures back: PSNR, SSIM, LPIPS, codebook usage, and distances of whole sets.

A low distance (rFID) alone says little: 1.96 goes with a PSNR of 18.6. So the others stand beside it whenever one is
asked for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from t2i.data.data_module import DataModule, to_float
from t2i.data.datasets import data_settings, dataset
from t2i.evaluation.evaluator import Scores
from t2i.evaluation.generated_images import BATCH
from t2i.evaluation.protocols import fid_name
from t2i.losses.perceptual import LPIPS
from t2i.metrics.features import FeatureNet
from t2i.metrics.intervals import Interval, bootstrap
from t2i.metrics.reconstruction import CodebookUsage, psnr, ssim
from t2i.metrics.statistics import Statistics, frechet
from t2i.viz.grids import to_uint8
from t2i.viz.progress import counter

SHOWN = 8
BETTER = {"psnr": "higher", "ssim": "higher", "lpips": "lower"}


def metric_of(net: FeatureNet) -> str:
    return "rfid" if net.name.startswith("inception") else f"rfd_{net.name}"


@torch.inference_mode()
def reconstruction(
    tokenizer: Any, config: dict[str, Any], split: str, limit: int | None, metrics: tuple[str, ...],
    nets: list[FeatureNet], distance: LPIPS | None, protocol: dict[str, Any], scores: Scores,
) -> tuple[Tensor, Tensor]:
    """Adds the scores of the first `limit` pictures of a split (None: all); the first of them, and what came back, as
    bytes (n, h, w, 3)."""
    made = dataset(config, split)
    total = len(made) if limit is None else min(limit, len(made))
    device = next(tokenizer.parameters()).device
    nets = [net for net in nets if metric_of(net) in metrics]
    sets = {net.name: (Statistics(net.dim), Statistics(net.dim)) for net in nets}
    usage, count = CodebookUsage(tokenizer.factors), 0
    values: dict[str, list[Tensor]] = {name: [] for name in BETTER}
    first: tuple[Tensor, Tensor] | None = None
    with counter("reconstructions", total) as progress:
        for batch in map(to_float, DataModule(None, made, BATCH, 0, config["seed"]).val_dataloader()):
            image = batch.image[: total - count]
            ids = tokenizer.encode(image.to(device))
            back = tokenizer.decode_ids(ids.clone()).float().cpu()
            usage.update(ids.cpu())
            values["psnr"].append(psnr(back, image))
            values["ssim"].append(ssim(back, image))
            if distance is not None:
                values["lpips"].append(distance(back.clamp(-1, 1).to(device), image.to(device)).cpu())
            numbers, pair = torch.arange(count, count + len(image)), (to_uint8(back), to_uint8(image))
            for net in nets:
                with scores.trying([metric_of(net)], part=True):
                    for statistics, pictures in zip(sets[net.name], pair, strict=True):
                        statistics.update(net(pictures), numbers)
            nets = [net for net in nets if metric_of(net) not in scores.missing]
            first = first or (torch.from_numpy(pair[1][:SHOWN]), torch.from_numpy(pair[0][:SHOWN]))
            count += len(image)
            progress(count)
            if count >= total:
                break
    if first is None:
        raise ValueError(f"split={split} of the data holds no pictures")
    held = {**protocol, "split": split, "n": count, "interval": "bootstrap, 1000", "data": data_settings(config, made)}
    for name, better in BETTER.items():
        if values[name]:
            with scores.trying([name if name == "lpips" else "reconstruction"], part=name == "psnr"):
                scores.add(name, bootstrap(torch.cat(values[name]), config["seed"]), better, count, held)
    for name, value in usage.compute().items():
        scores.add(f"codebook_{name}", Interval(value, value, value), "higher", count, {**held, "interval": "none"})
    for net in nets:
        fake, real = sets[net.name]
        special = "_dfgan" if net.name == "inception_torchvision" else ""
        stem = metric_of(net)
        with scores.trying([stem]):
            if stem == "rfid":
                stem = fid_name(f"rfid{special}", fake.count, real.count)
            scores.add(stem, frechet(fake, real), "lower", count, {
                **held, "features": net.protocol, "interval": "jackknife over ten groups of the reconstructions"})
    return first
