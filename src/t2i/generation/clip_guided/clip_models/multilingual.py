"""A multilingual text tower with the image tower of the CLIP whose space it was taught, as one CLIP.

Reimers & Gurevych 2020, arXiv 2004.09813. `clip-ViT-B-32-multilingual-v1` fits OpenAI's ViT-B/32 and no other CLIP,
though many have embeddings of 512 numbers: the pair is tried on English sentences, which both text towers know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from t2i.generation.clip_guided.clip_models.base import FrozenClip, Precision
from t2i.generation.clip_guided.clip_models.clip import TransformersCLIP
from t2i.generation.clip_guided.clip_models.sbert import SBERTText

PROBES = (
    "a photo of a dog", "two cats sleeping on a sofa", "a red car in front of a house", "a bowl of fruit on a table",
    "snow covered mountains", "a plane in the sky", "people walking in the rain", "a portrait of an old man",
    "a child playing football", "an abstract painting", "a city at night", "a boat on a lake at sunset",
    "a plate of pasta with tomatoes", "a horse running through a field", "a map of the world", "a blue flower",
)  # fmt: skip
# Towers of different spaces have cosines of 0 give or take 1/√d, 0.04 at 512 numbers, whether the sentences are equal
# or not, so the half of 1 is out of their reach; a taught tower is published with 0.9 or more for equal ones (not
# measured here).
LEAST = 0.5
# A space's own text tower parts unequal sentences by 1 - (their mean cosine), little enough in CLIP; a tower of another
# space by about 0, whatever the sentences have in common. Between 0 and 1 of it the line is drawn in the middle.
SHARE = 0.5
# Below this a CLIP does not tell the probes apart, and nothing can be compared.
APART = 1e-4


@dataclass(frozen=True)
class Agreement:
    """Mean cosines over the probes: of equal and of unequal sentences between the two text towers, and of unequal ones
    within the CLIP's own."""

    equal: float
    unequal: float
    own: float

    @property
    def belongs(self) -> bool:
        apart = 1 - self.own
        return apart > APART and self.equal >= LEAST and self.equal - self.unequal >= SHARE * apart


def agreement(one: Float[Tensor, "n d"], clip: Float[Tensor, "n d"]) -> Agreement:
    """Of unit vectors of the same sentences, by a tower and by the CLIP's own."""
    apart = ~torch.eye(len(clip), dtype=torch.bool, device=clip.device)
    across, within = one @ clip.T, clip @ clip.T
    return Agreement(float(across.diagonal().mean()), float(across[apart].mean()), float(within[apart].mean()))


class MultilingualCLIP(FrozenClip):
    """A `t2i.types.ClipModel`; `image_size` and pictures are the CLIP's, texts the multilingual tower's.

    Args:
        path: the text tower, a sentence-transformers folder.
        clip: a folder or hub name of a CLIP.
        precision, allow_download: as of `TransformersCLIP`.
        check_pair: whether the two must be of one space. Their embeddings must have one length in any case.

    ValueError refuses a pair with the figures.
    """

    def __init__(
        self, path: str, clip: str, precision: Precision = "32-true", allow_download: bool = False,
        check_pair: bool = True,
    ) -> None:
        self.text, self.clip = SBERTText(path), TransformersCLIP(clip, precision, allow_download)
        if self.text.dim != self.clip.dim:
            raise ValueError(f"text and image tower are of different spaces: the text tower {path} makes embeddings of"
                             f" {self.text.dim} numbers, the CLIP {clip} of {self.clip.dim}")
        super().__init__(f"sbert{'' if check_pair else '_unchecked'}:{path}@{clip}",
                         (self.clip.model, self.text.tower, self.text.dense), self.clip.image_size, self.clip.mean,
                         self.clip.std, precision)
        if check_pair:
            self._check(path, clip)

    def _check(self, path: str, clip: str) -> None:
        found = agreement(self.embed_text(list(PROBES)), self.clip.embed_text(list(PROBES)))
        if found.belongs:
            return
        apart = max(0.0, 1 - found.own)
        why = (f"the CLIP's own text tower does not tell them apart (cosine {found.own:.4f})" if apart <= APART else
               f"allowed are at least {LEAST} for equal ones and {SHARE * apart:.3f} less for unequal ones, half of"
               " what the CLIP's own text tower parts them by")
        raise ValueError(
            f"text and image tower are of different spaces, as far as {len(PROBES)} English sentences tell: the mean"
            f" cosine of the text tower {path} with the CLIP {clip} is {found.equal:.3f} for equal sentences and"
            f" {found.unequal:.3f} for unequal ones; {why}. clip-ViT-B-32-multilingual-v1 belongs to OpenAI's ViT-B/32."
            " The pair is taken all the same as sbert_unchecked:FOLDER@CLIP (check_pair=False)"
        )

    def text_features(self, text: list[str]) -> Float[Tensor, "b d"]:
        return self.text(text)

    def image_features(self, pixels: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]:
        return self.clip.image_features(pixels)
