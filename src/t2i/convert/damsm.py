"""DAMSM's published text encoders (Xu et al. 2018, arXiv 1711.10485), as AttnGAN, DM-GAN and DF-GAN share them.

Two files: `text_encoder….pth`, a bare state dict, and `captions_DAMSM.pickle` (or AttnGAN's `captions.pickle`), a list
of train captions, test captions, ixtoword and wordtoix. Neither is executed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from t2i.checkpoint import file_checks
from t2i.checkpoint.plain_files import read_pickle
from t2i.text_encoders.bilstm import BiLSTMText
from t2i.text_encoders.bilstm_folder import END, BiLSTM, WordTokenizer, from_weights

MAX_LENGTH = 18  # WORDS_NUM of the published configs


def _wordtoix(held: Any, path: Path) -> dict[str, int]:
    """The fourth of the list; ValueError where it is no dictionary from words to ids."""
    if not isinstance(held, list | tuple) or len(held) != 4 or not isinstance(held[3], dict) or not held[3]:
        what = f"{len(held)} items" if isinstance(held, list | tuple) else type(held).__name__
        raise ValueError(f"{path} is no vocabulary of DAMSM: a list of train captions, test captions, ixtoword and"
                         f" wordtoix is wanted (it holds {what})")
    if not all(isinstance(word, str) and type(i) is int for word, i in held[3].items()):
        raise ValueError(f"{path} is no vocabulary of DAMSM: its wordtoix does not lead from words to whole numbers")
    return {END: 0} | held[3]


def _in_order(wordtoix: dict[str, int], model: BiLSTM, weights: Path, vocabulary: Path) -> list[str]:
    """The words by their ids, which are 0 to the number of the embedding's rows - 1, each once."""
    words = {i: word for word, i in wordtoix.items()}
    rows = model.vocab_size
    if len(wordtoix) != rows or max(words) != rows - 1:
        raise ValueError(f"{vocabulary} has {len(wordtoix)} words with ids up to {max(words)}, the embedding in"
                         f" {weights} has {rows} rows: they do not belong together")
    if words.keys() != set(range(rows)) or words[0] != END:
        raise ValueError(f"{vocabulary}: the ids of its {rows} words are not 0 ({END}) to {rows - 1}, each once")
    return [words[i] for i in range(rows)]


def read_damsm(weights: str | Path, vocabulary: str | Path, max_length: int = MAX_LENGTH) -> BiLSTMText:
    """The frozen encoder of two published files; its `save` writes the folder that `text_encoder=bilstm` reads.

    ValueError names the file that cannot be read, foreign or missing weights, and a vocabulary of another data set.
    """
    weights, vocabulary = Path(weights).expanduser(), Path(vocabulary).expanduser()
    held = file_checks.load(weights)  # its messages, for web pages and pointers under the name of weights
    if not isinstance(held, dict):
        raise ValueError(f"{weights} holds a {type(held).__name__}; a state dict is wanted")
    model = from_weights({str(name): value for name, value in held.items()}, weights)
    words = _in_order(_wordtoix(read_pickle(vocabulary), vocabulary), model, weights, vocabulary)
    return BiLSTMText.of(model, WordTokenizer(words, max_length), str(weights))
