"""Who judges: the CLIP and the Inception of an evaluation, and whether that CLIP had a hand in the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from t2i.checkpoint.registry import is_trusted_place
from t2i.checkpoint.safe_building import said
from t2i.evaluation.protocols import NEEDS_INCEPTION, NEEDS_JUDGE, Protocol
from t2i.generation.clip_guided.clip_models.base import same_weights
from t2i.metrics.clip_score import CLIPScorer, text_hash
from t2i.metrics.inception import Inception, Resize


def text_encoders(model: Any) -> list[Any]:
    """The text encoders that condition a model, those of its parts among them."""
    if model is None:
        return []
    parts = [model, *(model.modules() if isinstance(model, torch.nn.Module) else ())]
    parts += [part.prior for part in parts if getattr(part, "prior", None) is not None]
    found = [encoder for part in parts if (encoder := getattr(part, "text_encoder", None)) is not None]
    return list({id(encoder): encoder for encoder in found}.values())


def involved(judge: CLIPScorer, model: Any = None, guide_hashes: Sequence[str] = ()) -> str | None:
    """What the judge did to the pictures that it scores: `guided`, `conditioned`, or None for nothing.

    `guide_hashes`: of the CLIPs that a drawing.json says guided them.
    """
    if any(same_weights(guide, judge) for guide in getattr(model, "clip_models", ())):
        return "guided"
    if any(judge.id[: len(h)] == h[: len(judge.id)] for h in guide_hashes):
        return "guided"
    towers = [encoder.tower for encoder in text_encoders(model) if hasattr(encoder, "tower")]
    if any(isinstance(tower, torch.nn.Module) and text_hash(tower) == judge.text_id for tower in towers):
        return "conditioned"
    return None


def named(metric: str, how: str | None) -> str:
    """A metric's name in the output: one that the pictures' own CLIP gave says so."""
    return metric if how is None else f"{metric}_by_own_clip"


def open_judge(
    config: Mapping[str, Any], protocol: Protocol, held: Mapping[str, Any] | None, device: torch.device
) -> CLIPScorer | None:
    """The CLIP of `judge=`, or of the protocol, or else that of the checkpoint's own config; None where no metric
    wants one. ValueError where there is none to be had."""
    wanting = [name for name in protocol.metrics if name in NEEDS_JUDGE]
    if not wanting:
        return None
    own = (held or {}).get("text_encoder")
    path = protocol.judge or (own.get("path") if isinstance(own, Mapping) else None)
    if path is None:
        raise ValueError(f"metrics=[{', '.join(wanting)}] need judge=, a CLIP's folder (runs/…/hf of model=clip) or hub"
                         " name; it had better be one that neither conditioned nor guided the pictures")
    if protocol.judge is None and not is_trusted_place(str(path)):
        raise ValueError(f"metrics=[{', '.join(wanting)}] need judge=, a CLIP's folder or hub name; the checkpoint"
                         f" names {said(path)}, and a file's word opens nothing: if it is meant, judge= says so")
    try:
        return CLIPScorer(path, config["allow_download"], prefix=protocol.prefix).to(device)
    except ValueError as error:
        raise ValueError(f"judge={path}: {error}") from error


def open_inception(config: Mapping[str, Any], protocol: Protocol, device: torch.device) -> Inception | None:
    if not any(name in NEEDS_INCEPTION for name in protocol.metrics):
        return None
    if protocol.inception == "torchvision":
        return Inception(config["inception"], kind="torchvision", allow_download=config["allow_download"],
                         device=device)
    return Inception(config["inception"], resize=cast(Resize, protocol.resize),
                     allow_download=config["allow_download"], device=device)
