"""Retrieval accuracy, top-1, in both directions over a set of picture-caption pairs.

Protocol: the candidates are all pairs given, so a figure means something only beside the size of the set. A
hit on another pair with an equal caption counts as correct: no model could tell the two apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def retrieval(
    image: Float[Tensor, "n d"], text: Float[Tensor, "n d"], groups: Int[Tensor, " n"] | None = None, rows: int = 2048
) -> dict[str, float]:
    """Shares in [0, 1] of captions that find their picture (`text_to_image`) and the reverse.

    Rows of `image` and `text` belong together; pairs with equal `groups` are interchangeable. `rows`
    similarities at a time are held in memory, as (rows, n) in float32.
    """
    if len(image) == 0:
        raise ValueError("retrieval over 0 pairs: give at least one picture with its caption")
    image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
    groups = torch.arange(len(image), device=image.device) if groups is None else groups.to(image.device)

    def hits(query: Tensor, candidates: Tensor) -> float:
        best = torch.cat([(part @ candidates.T).argmax(1) for part in query.split(rows)])
        return (groups[best] == groups).double().mean().item()

    return {"text_to_image": hits(text, image), "image_to_text": hits(image, text)}
