"""The matrices that draw on a CPU: how far they are from the plain product, and that a row's result is its own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from t2i.nets import cpu_linear
from t2i.nets.cpu_linear import Int8Linear, PackedLinear

SIZES = [(96, 64), (63, 40), (7, 5), (2, 33)]
int8 = pytest.mark.skipif(cpu_linear.obstacle("int8", torch.device("cpu")) is not None, reason="no VNNI here")
bf16 = pytest.mark.skipif(cpu_linear.obstacle("bf16", torch.device("cpu")) is not None, reason="no AVX-512 here")


def sides(size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and a weight whose magnitudes differ from row to row, a row of zeros in each."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, size[1], generator=generator) * torch.logspace(-3, 2, n)[:, None] for n in (9, size[0]))
    x[4], weight[size[0] // 2] = 0, 0
    return x, weight


@int8
@pytest.mark.parametrize("size", SIZES)
def test_an_int8_product_is_as_near_as_rounding_lets_it_be(size: tuple[int, int]) -> None:
    x, weight = sides(size)
    found, exact = Int8Linear(weight)(x).double(), x.double() @ weight.double().T
    steps = [part.double().abs().amax(1) / 127 for part in (x, weight)]
    bound = (steps[0][:, None] / 2 * weight.abs().sum(1) + x.abs().sum(1)[:, None] * steps[1] / 2
             + size[1] * steps[0][:, None] * steps[1] / 4)
    assert ((found - exact).abs() <= 1.001 * bound + 1e-30).all()
    assert (found - exact).abs().max() > 0 and torch.equal(found[4], torch.zeros(size[0]).double())


@int8
def test_integers_come_out_exactly() -> None:
    weight = torch.randint(-127, 128, (48, 3072)).float()
    x = torch.randint(-127, 128, (3, 3072)).float()
    weight[:, 0], x[:, 0] = 127, 127  # so that a step is 1
    torch.testing.assert_close(Int8Linear(weight)(x), x @ weight.T, rtol=1e-5, atol=16)


@bf16
@pytest.mark.parametrize("size", SIZES)
def test_a_packed_product_is_the_one_in_bf16(size: tuple[int, int]) -> None:
    x, weight = (part.bfloat16() for part in sides(size))
    for rows in (1, 2, 9):
        found = PackedLinear(weight)(x[:rows])
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), F.linear(x[:rows].float(), weight.float()), rtol=0.01, atol=1e-2)


@pytest.mark.parametrize("kind, rows", [pytest.param("int8", (1, 2, 5, 9), marks=int8),
                                        pytest.param("bf16", (2, 5, 9), marks=bf16)])
def test_a_row_does_not_depend_on_the_batch(kind: str, rows: tuple[int, ...]) -> None:
    x, weight = sides((96, 64))
    layer, x = cpu_linear.KINDS[kind](weight), x.bfloat16()
    whole = layer(x.view(3, 3, 64)).view(9, -1)
    assert all(torch.equal(layer(x[:n]), whole[:n]) for n in rows)


@int8
def test_every_matrix_is_replaced_and_the_net_before_stays() -> None:
    net = nn.Sequential(nn.Linear(8, 16, bias=False), nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4, bias=False)))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    held, x = net[0], torch.randn(3, 8)
    wanted = net(x)
    cpu_linear.convert(net, "int8")
    assert [type(module) for module in (net[0], net[1][1])] == [Int8Linear] * 2
    assert torch.equal(held.weight, before["0.weight"])
    torch.testing.assert_close(net(x), wanted, rtol=0.05, atol=0.05)


def test_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_linear.obstacle("int8", torch.device("cuda")) == "its kernels are the CPU's, and this draws on cuda"
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert "no VNNI" in str(cpu_linear.obstacle("int8", torch.device("cpu")))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "without oneDNN" in str(cpu_linear.obstacle("bf16", torch.device("cpu")))
