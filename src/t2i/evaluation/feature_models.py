"""The CLIP and the Inception that an evaluation measures by, and whether that CLIP was involved in the pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from t2i.checkpoint.registry import is_trusted_place
from t2i.config.messages import quoted
from t2i.evaluation.protocols import NEEDS_CLIP, NEEDS_INCEPTION, Protocol
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


def involvement(clip: CLIPScorer, model: Any = None, guide_hashes: Sequence[str] = ()) -> str | None:
    """How the CLIP that scores pictures was involved in drawing them: `guided`, `conditioned`, or None for not at all.

    `guide_hashes`: of the CLIPs that a drawing.json says guided them.
    """
    if any(same_weights(guide, clip) for guide in getattr(model, "clip_models", ())):
        return "guided"
    if any(clip.id[: len(h)] == h[: len(clip.id)] for h in guide_hashes):
        return "guided"
    towers = [encoder.tower for encoder in text_encoders(model) if hasattr(encoder, "tower")]
    if any(isinstance(tower, torch.nn.Module) and text_hash(tower) == clip.text_id for tower in towers):
        return "conditioned"
    return None


def score_name(metric: str, involved: str | None) -> str:
    """A metric's name in the output: one that the pictures' own CLIP gave says so."""
    return metric if involved is None else f"{metric}_by_own_clip"


def open_clip_model(
    config: Mapping[str, Any], protocol: Protocol, held: Mapping[str, Any] | None, device: torch.device
) -> CLIPScorer | None:
    """The CLIP of `clip_model=`, or of the protocol, or else that of the checkpoint's own config; None where no metric
    wants one. ValueError where there is none to be had."""
    wanting = [name for name in protocol.metrics if name in NEEDS_CLIP]
    if not wanting:
        return None
    own = (held or {}).get("text_encoder")
    path = protocol.clip_model or (own.get("path") if isinstance(own, Mapping) else None)
    need = f"metrics=[{', '.join(wanting)}] need clip_model=, a CLIP's folder (runs/…/hf of model=clip) or hub name"
    if path is None:
        raise ValueError(f"{need}; it had better be one that neither conditioned nor guided the pictures")
    if protocol.clip_model is None and not is_trusted_place(str(path)):
        raise ValueError(f"{need}; the checkpoint names {quoted(path)}, and a file's word opens nothing: if it is"
                         " meant, clip_model= says so")
    try:
        return CLIPScorer(path, config["allow_download"], prefix=protocol.prefix).to(device)
    except ValueError as error:
        raise ValueError(f"clip_model={path}: {error}") from error


def open_inception(config: Mapping[str, Any], protocol: Protocol, device: torch.device) -> Inception | None:
    if not any(name in NEEDS_INCEPTION for name in protocol.metrics):
        return None
    if protocol.inception == "torchvision":
        return Inception(config["inception"], kind="torchvision", allow_download=config["allow_download"],
                         device=device)
    return Inception(config["inception"], resize=cast(Resize, protocol.resize),
                     allow_download=config["allow_download"], device=device)
