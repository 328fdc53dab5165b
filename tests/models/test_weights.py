"""Priors that draw in bf16 and int8: near the codes as trained, the same in any batch, refused where they cannot."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models.test_prior import TEXT, made  # noqa: F401
from tests.models.test_prior import prior as raster
from tests.models.test_prior_any import prior as any_order

from t2i.nets import cpu_linear
from t2i.nets.cpu_linear import Int8Linear, PackedLinear

LAYERS = {"bf16": PackedLinear, "int8": Int8Linear}
HERE = [pytest.param(kind, marks=pytest.mark.skipif(
    cpu_linear.obstacle(kind, torch.device("cpu")) is not None, reason="not on this CPU")) for kind in LAYERS]


@pytest.mark.parametrize("weights", HERE)
@pytest.mark.parametrize("caption", ["prefix", "keys"])
@pytest.mark.parametrize("kind", [raster, any_order])
def test_pictures_of_a_seed_are_the_same_in_any_batch(made, kind, caption: str, weights: str) -> None:  # noqa: F811
    model = kind(made, caption=caption).eval()
    for parameter in model.gpt.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    quick = copy.deepcopy(model)
    quick.set_weights(weights)
    layers = [m for m in (*quick.gpt.blocks.modules(), *quick.gpt.predict.modules()) if isinstance(m, torch.nn.Linear)]
    assert not layers and isinstance(quick.gpt.blocks[-1].mlp_in, LAYERS[weights])
    options: dict[str, Any] = {"guidance": 2.0, "top_k": 8}
    whole = quick.codes(TEXT, seeds=[0, 1, 2, 3], **options)
    for i in (0, 3):
        assert torch.equal(quick.codes(TEXT[i : i + 1], seeds=[i], **options)[0], whole[i])
    assert torch.equal(quick.codes(TEXT[1:3], seeds=[1, 2], **options), whole[1:3])
    as_trained = model.codes(TEXT, seeds=[0, 1, 2, 3], **options)
    assert (whole == as_trained).float().mean() > 0.5 and len(whole.unique()) > 4
    assert quick.sample(TEXT[:1], seeds=[0]).dtype == torch.float32


def test_what_cannot_be_is_refused_in_a_line(made, monkeypatch) -> None:  # noqa: F811
    model = raster(made)
    model.set_weights(None)
    with pytest.raises(ValueError, match=r"^weights=int4: allowed are bf16, int8, or null \(as trained\)$"):
        model.set_weights("int4")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match="^weights=int8: this CPU has no VNNI.*; null draws with the weights as"):
        model.set_weights("int8")
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    with pytest.raises(ValueError, match="^weights=int8: its kernels are the CPU's, and this draws on cuda"):
        model.set_weights("int8")
    model.set_weights("bf16")
    assert {parameter.dtype for parameter in model.gpt.parameters()} == {torch.bfloat16}
