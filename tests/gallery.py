"""A made-up gallery of concepts in styles, in which the right answers are known."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from t2i.types import Gallery, UnseenWord

STYLES = ("plain", "warm", "dark")


def gallery(concepts: int = 12, side: int = 64) -> Gallery:
    """Smooth blobs on white, a style being a linear map of the colours; the style of every third concept is held
    out in turn."""
    torch.manual_seed(0)
    noise = torch.rand(concepts, 3, 3, 3)
    blobs = F.interpolate(noise, (side * 3 // 4,) * 2, mode="bicubic").clamp(0, 1)
    blobs = F.pad(blobs, [side // 8] * 4, value=1.0)
    maps = [torch.eye(3), torch.tensor([[0.8, 0.2, 0.0], [0.3, 0.5, 0.2], [0.0, 0.4, 0.6]]), 0.6 * torch.eye(3)]
    images = torch.stack([torch.einsum("ij,cjhw->cihw", m, blobs) for m in maps], 1).flatten(0, 1)
    names = [f"thing {c}" for c in range(concepts) for _ in STYLES]
    styles = [style for _ in range(concepts) for style in STYLES]
    words = [("item zero", ("thing 0",)), ("gizmo", ("thing 1",)), ("duo", ("thing 2", "thing 3")), ("void", ())]
    held = torch.tensor([c % 3 == 0 and c // 3 % len(STYLES) == k for c in range(concepts)
                         for k in range(len(STYLES))])
    return Gallery(images.mul(255).round().byte(), names, styles,
                   [f"a {style} drawing of {name}" for name, style in zip(names, styles, strict=True)],
                   [f"a {name}" for name in names], held,
                   [UnseenWord(word, named, {style: f"a {style} drawing of a {word}" for style in STYLES}, f"a {word}")
                    for word, named in words])
