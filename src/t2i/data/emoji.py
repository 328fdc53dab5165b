"""Emoji as a data set of pairs: a concept (a pretzel) drawn in a style (twemoji), captioned by both.

Concepts are the emoji that all chosen styles have, without those that metadata says look alike (`emoji_names.py`);
some pairs are held out, whose concept is seen in other styles and whose style with other concepts (`emoji_splits.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import UInt8
from PIL import ImageColor
from torch import Tensor

from t2i.checkpoint.registry import register
from t2i.data import packed
from t2i.data.emoji_art import open_art, words_of
from t2i.data.emoji_names import (
    Concept,
    captions_for,
    concepts,
    full_caption,
    in_languages,
    phrases,
    unseen_words,
    with_article,
)
from t2i.data.emoji_splits import find_near_duplicates, group_concepts, held_out_pairs
from t2i.data.image_dataset import ImageDataset, Split
from t2i.data.rows import Row
from t2i.types import Gallery, UnseenWord


@register("data", places=("icons", "font", "cache"))
class Emoji(ImageDataset):
    """Captioned emoji in several styles: `dataset[index, epoch] -> Example`, key `twemoji/1f968`.

    The split val has the held-out pairs. A row's first caption names concept and style, others one of them or a second
    name, or a name in another language; with one style alone no caption names it.

    Args:
        styles: openmoji, openmoji_line and twemoji come with pip packages, noto and fluent with `icons`, font with
            `font`.
        icons: the folder in which Iconify's icon sets were unpacked.
        font: a colour emoji font; None looks in the usual places of Linux, macOS and Windows.
        background: a colour, as CSS has it.
        languages: en, and others in which captions name the concept, as the package emoji has them.
        cache: where near duplicates are kept, and the gallery's pictures; None finds and renders them anew.
        Everything else: see `ImageDataset`.
    """

    def __init__(self, split: Literal["train", "val"], styles: Sequence[str] = ("openmoji", "openmoji_line", "twemoji"),
                 icons: str | None = None, font: str | None = None, background: str = "white",
                 languages: Sequence[str] = ("en",), image_size: int = 64, load_size: int | None = None,
                 crop: Literal["center", "random"] = "center", flip: bool = False, views: int = 1, seed: int = 0,
                 on_error: Literal["raise", "skip"] = "raise", pack: bool = True, cache: Path | None = None) -> None:
        self.styles, self.background, self.cache = tuple(styles), colour(background), cache
        self.languages = list(languages)
        self._source: dict[str, Any] = {
            "styles": self.styles, "icons": icons, "font": font, "background": background, "languages": self.languages,
            "image_size": image_size, "on_error": on_error, "pack": pack, "cache": cache,
        }  # fmt: skip
        if twice := [style for style, times in Counter(self.styles).items() if times > 1]:
            raise ValueError(f"data.styles=[{', '.join(self.styles)}] lists {twice[0]} twice")
        if not self.styles:
            raise ValueError("data.styles=[]: at least one style is needed")
        self.arts = {style: open_art(style, icons, font) for style in self.styles}
        shared = set.intersection(*(set(art.keys()) for art in self.arts.values()))
        known, self.left_out = concepts()
        known = in_languages(known, self.languages)
        keys = [key for key in known if key in shared]
        if not keys:
            have = ", ".join(f"{style} has {len(known.keys() & art.keys())}" for style, art in self.arts.items())
            raise ValueError(f"data.styles=[{', '.join(self.styles)}] share no concept: {have}")
        self.near, faults = find_near_duplicates(self.arts, keys, self.background, cache)
        self.concepts = {key: known[key] for key in keys if key not in faults}
        self.held_out = held_out_pairs(list(self.concepts), self.styles, self.near)
        self._style = {style: words_of(style) if len(self.styles) > 1 else None for style in self.styles}
        rows = [{"key": f"{style}/{key}", "captions": captions_for(concept, self._style[style])}
                for key, concept in self.concepts.items() for style in self.styles
                if ((key, style) in self.held_out) == (split == "val")]
        root = self.arts[self.styles[0]].path
        super().__init__(split, root, rows, list(faults.values()), image_size, load_size, crop, flip, views, seed,
                         on_error, pack)

    def name(self, row: Row) -> str:
        return f"the emoji {row['key']} ({row['captions'][0]})"

    def pixels(self, row: Row) -> UInt8[Tensor, "3 h w"]:
        style, _, key = row["key"].partition("/")
        return self.arts[style].pixels(key, self.side, self.background)

    def settings(self) -> dict[str, Any]:
        art = {style: art.version for style, art in self.arts.items()}
        return super().settings() | {"styles": list(self.styles), "art": art, "background": self.background,
                                     "languages": self.languages}  # a cache has captions, too

    def gallery(self) -> Gallery:
        """The pictures of all pairs at `image_size`, whatever this split's crops and flips, and words that none of
        their captions has."""
        pictures: dict[str, tuple[Tensor, str]] = {}
        captions: set[str] = set()
        splits: tuple[Split, ...] = "train", "val"
        for split in splits:
            part = Emoji(split, **self._source)
            if self.cache is not None and self.pack:
                packed.attach(part, self.cache / "packed")
            for index in range(len(part)):
                example = part[index, 0]
                pictures[example.key] = example.image, example.captions[0]
                captions.update(example.captions)
        pairs = [pair for pair in ((key, style) for key in self.concepts for style in self.styles)
                 if f"{pair[1]}/{pair[0]}" in pictures]
        found = [pictures[f"{style}/{key}"] for key, style in pairs]
        return Gallery(torch.stack([image for image, _ in found]), [self.concepts[key].name for key, _ in pairs],
                       [style for _, style in pairs], [text for _, text in found],
                       [with_article(self.concepts[key].name) for key, _ in pairs],
                       torch.tensor([pair in self.held_out for pair in pairs]),
                       self._unseen_words({key: self.concepts[key] for key, _ in pairs}, captions))

    def _unseen_words(self, drawn: dict[str, Concept], captions: set[str]) -> list[UnseenWord]:
        """Of `emoji_names.unseen_words` those that none of the captions has, styles and other languages among them."""
        seen = {phrase for caption in captions for phrase in phrases(caption)}
        named = {word: tuple(drawn[key].name for key in keys if key in drawn) for word, keys in unseen_words().items()}
        return [UnseenWord(word, names, {style: full_caption(word, text) for style, text in self._style.items()},
                           with_article(word))
                for word, names in named.items() if names and word not in seen]

    def facts(self) -> dict[str, Any]:
        every, known = [set(art.keys()) for art in self.arts.values()], concepts()[0]
        shared, groups = set.intersection(*every), group_concepts(list(self.concepts), self.near)
        apart = Counter(self.left_out.get(key, "without a name") for key in shared if key not in known)
        lacking = {f"not in {style}": len(known.keys() & set.union(*every) - set(art.keys()))
                   for style, art in self.arts.items()}
        joined = [group for group, size in Counter(groups.values()).items() if size > 1]
        seen, out = self.concepts, Counter(style for _, style in self.held_out)
        return {
            "styles": list(self.styles), "concepts": len(seen), "pairs": len(seen) * len(self.styles),
            "seen": len(seen) * len(self.styles) - len(self.held_out), "held out": len(self.held_out),
            "held out by style": dict(out), "left out": dict(apart.most_common()) | lacking,
            "near duplicates": {"within a style": sum(a == b for (_, a), (_, b) in self.near),
                                "across styles": sum(a != b for (_, a), (_, b) in self.near)},
            "concepts joined by them": [[self.concepts[key].name for key in seen if groups[key] == group]
                                        for group in joined],
            "captions of one": list(dict.fromkeys(self.captions(len(self) // 2))),
        }


def colour(text: str) -> str:
    """A colour as `#rrggbb`; ValueError where it is none."""
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
        return f"#{red:02x}{green:02x}{blue:02x}"
    except ValueError:
        raise ValueError(f"data.background={text}: a colour is needed, such as white or '#ffeecc'") from None
