"""Our own warnings are a line; others' stay as Python writes them."""

from __future__ import annotations

import warnings

import pytest

from t2i.config.quiet import plain_warnings
from t2i.text_encoders.bilstm_folder import WordTokenizer


def test_our_warnings_are_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    plain_warnings()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        WordTokenizer(["<end>", "red"], 1)(["red red"])
        warnings.warn("another's", stacklevel=1)
    ours, others = (warnings.formatwarning(w.message, w.category, w.filename, w.lineno) for w in caught)
    assert ours == "warning: the caption has 2 known words, the text encoder takes 1: what follows is not seen: 'red'\n"
    assert others.splitlines()[0].endswith("UserWarning: another's")
