"""The symmetric contrastive loss of CLIP (Radford et al. 2021, arXiv 2103.00020, figure 3).

Deviation: pictures whose captions are equal cannot be told apart by text, so they are not negatives of each
other; such pairs are left out of the softmax (both directions). Negatives come from the batch of one process
only.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def caption_groups(captions: list[str]) -> Int[Tensor, " b"]:
    """One integer a caption, the same for equal captions (lower-cased, as the tokenizer reads them)."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(caption.lower(), i) for i, caption in enumerate(captions)])


def contrastive(
    image: Float[Tensor, "b d"],
    text: Float[Tensor, "b d"],
    scale: Float[Tensor, ""] | float,
    groups: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean of the cross-entropies picture -> text and text -> picture; rows i of both belong together.

    Features of any length (normalised here, in float32); `scale` is the inverse temperature; rows with equal
    `groups` are not negatives of each other.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = scale * image @ text.T  # (b, b), row: picture, column: text
        if groups is not None:
            same = groups[:, None] == groups[None, :]
            same.fill_diagonal_(False)
            logits = logits.masked_fill(same, float("-inf"))
        target = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def retrieval(
    image: Float[Tensor, "n d"], text: Float[Tensor, "n d"], groups: Int[Tensor, " n"] | None = None, rows: int = 2048
) -> dict[str, float]:
    """Top-1 retrieval: shares in [0, 1] of captions that find their picture (`text_to_image`) and the reverse.

    The candidates are all pairs given: a figure means something only beside the size of the set.

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
