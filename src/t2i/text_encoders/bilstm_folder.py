"""DAMSM's text encoder as a folder: words, a bidirectional LSTM over them, and one way to save and to load both.

DAMSM: Xu et al. 2018 (AttnGAN), arXiv 1711.10485; its encoder conditions AttnGAN, DM-GAN and DF-GAN (arXiv
2008.05865). Parameters bear the published names. Deviations: captions are cut at their first `max_length` words
(DAMSM draws that many at random in training); words beyond ASCII may stand in a vocabulary of our own; the embedding's
dropout (DAMSM: 0.5) is off unless it is asked for.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from t2i.checkpoint.atomic import replacing
from t2i.checkpoint.plain_files import read_json
from t2i.config.messages import shown
from t2i.config.places import program
from t2i.text_encoders.limited_warnings import LimitedWarnings

END = "<end>"  # id 0: padding, and the one token of a caption without known words; no word of a caption reads so
WORD = re.compile(r"\w+")
MODEL_TYPE = "bilstm"
CONFIG, VOCABULARY, WEIGHTS = "config.json", "vocabulary.json", "model.safetensors"


class WordTokenizer:
    """Captions to word ids, padded with 0 to the batch's longest and cut at `max_length` words.

    `words[i]` has the id i; `words[0]` is '<end>'. Case does not matter. Words that are not known are left out.
    """

    def __init__(self, words: list[str], max_length: int = 18) -> None:
        if max_length < 1:
            raise ValueError(f"max_length={max_length}: at least 1")
        if not words or words[0] != END:
            raise ValueError(f"the first word is {words[0] if words else None!r}, it must be {END!r}")
        self.words, self.max_length = list(words), max_length
        self.ids = {word: i for i, word in enumerate(words)}
        if len(self.ids) < len(words):
            twice = next(word for word, n in Counter(words).items() if n > 1)
            raise ValueError(f"the vocabulary has {twice!r} more than once")
        self._warn_cut = LimitedWarnings("cuts")

    @classmethod
    def train(cls, captions: Iterable[str], vocab_size: int, max_length: int = 18) -> WordTokenizer:
        """The most frequent words, at most `vocab_size` with '<end>', frequent ones first and equals by alphabet."""
        if vocab_size < 2:
            raise ValueError(f"vocab_size={vocab_size}: at least 2 ({END} and one word)")
        counts = Counter(word for caption in captions for word in WORD.findall(caption.lower()))
        if not counts:
            raise ValueError("the captions have no words to make a vocabulary of")
        order = sorted(counts, key=lambda word: (-counts[word], word))
        return cls([END, *order[: vocab_size - 1]], max_length)

    @classmethod
    def from_json(cls, text: str) -> WordTokenizer:
        """From the text of a vocabulary.json; ValueError where it is something else."""
        held = json.loads(text)
        if not isinstance(held, dict) or held.keys() != {"max_length", "words"}:
            raise ValueError(f"this is no {VOCABULARY}: max_length and words are wanted")
        words, max_length = held["words"], held["max_length"]
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words) or type(max_length) is not int:
            raise ValueError("words must be a list of texts, max_length a whole number")
        return cls(words, max_length)

    def to_json(self) -> str:
        return json.dumps({"max_length": self.max_length, "words": self.words}, ensure_ascii=False)

    def look_up(self, caption: str) -> tuple[list[int], list[str]]:
        """The ids of the known words, not cut, and the unknown words."""
        found, unknown = [], []
        for word in WORD.findall(caption.lower()):
            # DAMSM drops what is not ASCII from within words; its vocabularies know no other ones.
            i = self.ids.get(word) or self.ids.get(word.encode("ascii", "ignore").decode())
            if i:
                found.append(i)
            else:
                unknown.append(word)
        return found, unknown

    def cut(self, row: list[int]) -> str:
        """What is said of a caption with more known words, of these ids, than are taken."""
        rest = " ".join(self.words[i] for i in row[self.max_length :])
        return (f"the caption has {len(row)} known words, the text encoder takes {self.max_length}: what follows is not"
                f" seen: '{shown(rest)}'")

    def __call__(self, captions: list[str]) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Word ids and the mask of real ones; every caption has at least one."""
        rows = []
        for caption in captions:
            row, _ = self.look_up(caption)
            if len(row) > self.max_length:
                self._warn_cut(self.cut(row))
            rows.append(row[: self.max_length] or [0])
        longest = max(map(len, rows), default=1)
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows]).view(len(rows), longest)
        return ids.long(), torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]


class BiLSTM(nn.Module):
    """Word embeddings and one bidirectional LSTM layer; DAMSM has 300 numbers a word and 128 a direction.

    Args:
        hidden_size: of one direction; a word's state has twice as many numbers.
        dropout: of the embeddings, in training only.
    """

    def __init__(
        self, vocab_size: int, embedding_size: int = 300, hidden_size: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.vocab_size, self.embedding_size, self.hidden_size = vocab_size, embedding_size, hidden_size
        self.encoder = nn.Embedding(vocab_size, embedding_size)
        self.dropout = nn.Dropout(dropout)
        self.rnn = nn.LSTM(embedding_size, hidden_size, batch_first=True, bidirectional=True)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)

    def forward(
        self, ids: Int[Tensor, "b t"], mask: Bool[Tensor, "b t"]
    ) -> tuple[Float[Tensor, "b t 2*h"], Float[Tensor, "b 2*h"]]:
        """Word states, 0 at padding, and the sentence: the last state of either direction, forward first.

        `mask` is True at the first positions of each row, at one at least; on the CPU it costs no waiting for the GPU.
        The recurrence runs in the weights' precision, whatever autocast says.
        """
        lengths = mask.sum(1).cpu()  # where the packing wants them
        with torch.autocast(ids.device.type, enabled=False):
            words = self.dropout(self.encoder(ids))
            # Packed: the backward direction starts at a caption's own last word, not in the padding.
            packed = pack_padded_sequence(words, lengths, batch_first=True, enforce_sorted=False)
            output, (last, _) = self.rnn(packed)
            states, _ = pad_packed_sequence(output, batch_first=True, total_length=ids.shape[1])
        return states, last.transpose(0, 1).flatten(1)  # (2, b, h) -> (b, 2 h)


def from_weights(weights: Mapping[str, Tensor], source: str | Path) -> BiLSTM:
    """The network of these weights in float32 and eval mode, its sizes read from their shapes.

    ValueError names `source` and all that is missing, unexpected or of a shape that does not fit the others.
    """
    with torch.device("meta"):
        wanted = BiLSTM(1, 1, 1).state_dict().keys()
    problems = [f"missing {name}" for name in wanted if name not in weights]
    problems += [f"unexpected {name}" for name in weights if name not in wanted]
    problems += [f"{name} is no tensor" for name in wanted if not isinstance(weights.get(name, torch.empty(0)), Tensor)]
    problems = problems or [f"{name} has shape {tuple(weights[name].shape)}, two dimensions are wanted"
                            for name in ("encoder.weight", "rnn.weight_hh_l0") if weights[name].ndim != 2]
    if not problems:
        with torch.device("meta"):  # no numbers are drawn
            words, numbers = weights["encoder.weight"].shape
            model = BiLSTM(words, numbers, weights["rnn.weight_hh_l0"].shape[1])
        problems = [f"{name} has shape {tuple(weights[name].shape)}, {tuple(value.shape)} is wanted"
                    for name, value in model.state_dict().items() if weights[name].shape != value.shape]
    if problems:
        more = f" and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise ValueError(f"the weights in {source} are no BiLSTM text encoder: {'; '.join(problems[:8])}{more}")
    held = {name: weights[name].detach().to(torch.float32, copy=True) for name in wanted}
    model.load_state_dict(held, assign=True)
    return model.eval().requires_grad_(False)


def check_fit(model: BiLSTM, tokenizer: WordTokenizer, source: str | Path) -> None:
    """ValueError where the vocabulary has ids that the embedding lacks; fewer words than rows are in order."""
    if len(tokenizer.words) > model.vocab_size:
        raise ValueError(f"{source}: the vocabulary has {len(tokenizer.words)} words, the embedding {model.vocab_size}"
                         " rows: they do not belong together")


def describe(model: BiLSTM) -> str:
    """The text of a config.json; it tells what the folder is. Sizes are read from the weights."""
    return json.dumps({"model_type": MODEL_TYPE, "vocab_size": model.vocab_size,
                       "embedding_size": model.embedding_size, "hidden_size": model.hidden_size}, indent=2)


def save_folder(model: BiLSTM, tokenizer: WordTokenizer, folder: str | Path) -> None:
    """Write the folder that `text_encoder=bilstm` reads, whole or not at all; an older one is replaced."""
    folder = Path(folder)
    check_fit(model, tokenizer, folder)
    with replacing(folder) as new:
        (new / CONFIG).write_text(describe(model), encoding="utf-8")
        (new / VOCABULARY).write_text(tokenizer.to_json(), encoding="utf-8")
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, new / WEIGHTS, {"format": "pt"})


def _what_is_there(folder: Path) -> str:
    """Why this is no folder of ours; empty where it may be one."""
    if not folder.is_dir():
        return (f"there is no folder of that name (looked at {folder.absolute()}); train one"
                f" ({program('train')} model=clip model.text_tower=bilstm)")
    held: Any = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else None
    model_type = held.get("model_type") if isinstance(held, dict) else None
    if str(model_type).startswith("clip"):
        return "it is a Hugging Face folder of a CLIP, which text_encoder=clip reads"
    if missing := [name for name in (CONFIG, VOCABULARY, WEIGHTS) if not (folder / name).is_file()]:
        return f"it has no {', no '.join(missing)}"
    return "" if model_type == MODEL_TYPE else f"its {CONFIG} says model_type {model_type!r}, not {MODEL_TYPE!r}"


def load_folder(folder: str | Path) -> tuple[BiLSTM, WordTokenizer]:
    """The network in eval mode, without gradients, and its words; ValueError says what is wrong with the folder."""
    folder = Path(folder)
    if problem := _what_is_there(folder):
        raise ValueError(f"path={str(folder)!r} is no folder of a BiLSTM text encoder: {problem}")
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} cannot be read: {error}") from error
    model = from_weights(weights, folder / WEIGHTS)
    try:
        tokenizer = WordTokenizer.from_json((folder / VOCABULARY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / VOCABULARY}: {error}") from error
    check_fit(model, tokenizer, folder)
    return model, tokenizer
