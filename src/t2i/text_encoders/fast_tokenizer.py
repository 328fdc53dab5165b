"""Any fast tokenizer (`tokenizers`) as what frozen text encoders need: rows of ids, padded and cut, and what is said of
captions that they do not take whole."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import torch
from jaxtyping import Bool, Int
from tokenizers import Encoding, Tokenizer
from torch import Tensor

from t2i.config.messages import quoted, shown
from t2i.text_encoders.limited_warnings import LimitedWarnings

CACHED_CAPTIONS = 100_000
# What changes a text before it is parted, and lets it grow by no more than Unicode's own forms do.
NORMALIZERS = ("BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "Replace", "Sequence",
               "Strip", "StripAccents")
LONGEST_FORM = 64  # bytes; Unicode's longest compatibility form of one character has 33


EMPTY = "the caption has no words: the text encoder sees nothing"


def _unknown(words: list[str]) -> str:
    return (f"the text encoder does not know {', '.join(repr(shown(word)) for word in words)}: it sees there that"
            " something is, and not what")


class FastTokenizer:
    """Captions to token ids: `before`, words, `after`, padded to the batch's longest and cut at `max_length` tokens.

    Args:
        pad: the id at padding.
        unknown: the id of what the vocabulary does not have; None where no text is unknown to it.
    """

    def __init__(
        self, tokenizer: Tokenizer, max_length: int, before: list[int], after: list[int], pad: int,
        unknown: int | None = None,
    ) -> None:
        self.tokenizer, self.max_length = tokenizer, max_length
        self.before, self.after, self.pad, self.unknown = before, after, pad, unknown
        self._cache: dict[str, list[int]] = {}
        self._unknown_words: set[str] = set()
        self._warn_cut, self._warn_unknown = LimitedWarnings("cuts"), LimitedWarnings("unknown words")
        self._warn_empty = LimitedWarnings("empty captions")

    def to_json(self) -> str:
        return self.tokenizer.to_str()

    def _ids(self, caption: str) -> list[int]:
        if (known := self._cache.get(caption)) is not None:
            return known
        encoding = self.tokenizer.encode(caption, add_special_tokens=False)
        ids = [*self.before, *encoding.ids[: self.room], *self.after]
        if new := [word for word in self._unknown(caption, encoding) if word not in self._unknown_words]:
            self._unknown_words.update(new)
            self._warn_unknown(f"{_unknown(new)}; text_encoder.path= takes one that knows other languages")
        if not encoding.ids:
            self._warn_empty(EMPTY)
        if len(encoding.ids) > self.room:
            self._warn_cut(self._cut(caption, encoding))
            return ids  # not kept, so that the same prompt warns again
        if len(self._cache) < CACHED_CAPTIONS:
            self._cache[caption] = ids
        return ids

    @property
    def room(self) -> int:
        """Tokens that a caption's words may have."""
        return self.max_length - len(self.before) - len(self.after)

    def not_seen(self, caption: str) -> str | None:
        """What of a caption is not taken, in a line; None where all is."""
        encoding = self.tokenizer.encode(caption, add_special_tokens=False)
        words = self._unknown(caption, encoding)
        found = [_unknown(words)] if words else [] if encoding.ids else [EMPTY]
        found += [self._cut(caption, encoding)] if len(encoding.ids) > self.room else []
        return "; ".join(found) or None

    def _unknown(self, caption: str, encoding: Encoding) -> list[str]:
        """The words that are unknown, of those that are not cut off."""
        kept = zip(encoding.ids[: self.room], encoding.offsets, strict=False)
        return list(dict.fromkeys(caption[slice(*at)] for token, at in kept if token == self.unknown))

    def _cut(self, caption: str, encoding: Encoding) -> str:
        at = encoding.offsets[self.room][0]
        return (f"the caption has {len(encoding.ids)} tokens, the text encoder takes {self.room}: it is cut after"
                f" '{shown(caption[:at].strip()[-60:].strip())}', and what follows is not seen:"
                f" '{shown(caption[at:].strip(), 60)}'")

    def __call__(self, captions: list[str]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Token ids and the mask of real tokens (those before and after the words are real, padding is not)."""
        rows = [self._ids(caption) for caption in captions]
        longest = max((len(row) for row in rows), default=len(self.before) + len(self.after))
        ids = torch.tensor([row + [self.pad] * (longest - len(row)) for row in rows]).view(len(rows), longest)
        lengths = torch.tensor([len(row) for row in rows])
        return ids.long(), torch.arange(longest) < lengths[:, None]

    def check_vocabulary(self, size: int, source: str) -> None:
        """ValueError where the tokenizer has ids that an embedding of `size` rows lacks."""
        highest = max(self.tokenizer.get_vocab().values(), default=0)
        if highest >= size:
            raise ValueError(f"{source}: the tokenizer has the id {highest}, the text tower {size} words")


def read_tokenizer(text: str, source: str = "") -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer of a tokenizer.json's text, which neither cuts nor pads, and what the text says; `source` names the
    file's folder in messages."""
    where = f"{source}: " if source else ""
    try:
        held = json.loads(text)
        _check_normalizers(held)
        tokenizer = Tokenizer.from_str(text)
    except ValueError as error:
        raise ValueError(f"{where}the tokenizer.json cannot be taken: {shown(error)}") from error
    except Exception as error:  # tokenizers raises nothing more special
        raise ValueError(f"{where}the tokenizer.json is damaged ({shown(error)})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, held


def _check_normalizers(node: Any, key: str = "") -> None:
    """ValueError where a tokenizer.json would make long texts out of short ones."""
    if isinstance(node, dict) and key == "normalizer":
        if node.get("type") not in NORMALIZERS:
            raise ValueError(f"normalizer {quoted(node.get('type'))}; {', '.join(NORMALIZERS)} are taken")
        if node.get("type") == "Replace" and len(str(node.get("content", ""))) > 1:
            raise ValueError("a normalizer that replaces by more than one letter")
        if node.get("type") == "Precompiled":
            _check_forms(node.get("precompiled_charsmap"))
        for inner in node.get("normalizers") or []:
            _check_normalizers(inner, "normalizer")
    elif isinstance(node, dict) and not key:
        _check_normalizers(node.get("normalizer"), "normalizer")


def _check_forms(charsmap: Any) -> None:
    """ValueError where SentencePiece's table of forms (the size of a trie, the trie, texts that end with 0) replaces a
    character by a long text."""
    table = base64.b64decode(charsmap if isinstance(charsmap, str) else "")
    forms = table[4 + struct.unpack("<I", table[:4])[0] :] if len(table) > 4 else b""
    if max(map(len, forms.split(b"\0"))) > LONGEST_FORM:
        raise ValueError(f"a normalizer that replaces by more than {LONGEST_FORM} bytes")
