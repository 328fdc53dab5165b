"""Muon against its definition, its AdamW against torch's, and which parameters go where."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from t2i.models import optimizers
from t2i.models.optimizers import Muon, is_hidden_matrix, orthogonalised
from t2i.nets.gpt import GPT


@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16)])
def test_orthogonalised_brings_singular_values_near_one_and_keeps_the_directions(shape) -> None:
    matrix, other = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    found, beside = orthogonalised(torch.stack([matrix, 7 * other]))
    torch.testing.assert_close(orthogonalised(other[None])[0], beside, atol=0.03, rtol=0)  # each for itself
    assert found.shape == matrix.shape and found.dtype == matrix.dtype
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.35
    # Singular values far below the largest take more than five iterations; these shapes have few of them.
    assert values.median() > 0.6
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ found @ vh.T
    assert (turned - torch.diag(turned.diag())).abs().max() < 0.05
    large = orthogonalised(1000 * matrix[None])[0]
    torch.testing.assert_close(large, found, atol=0.03, rtol=0)  # the size does not matter


def test_a_muon_step_follows_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(20, 10, generator=generator), torch.randn(2, 20, 10, generator=generator)
    parameter = nn.Parameter(start.clone())
    optimizer = Muon([{"params": [parameter], "muon": True}], lr=0.1, momentum=0.9, weight_decay=0.5)
    expected, momentum = start.clone(), torch.zeros(20, 10)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        momentum = 0.9 * momentum + 0.1 * gradient
        update = orthogonalised((0.1 * gradient + 0.9 * momentum)[None])[0]
        expected = expected * (1 - 0.1 * 0.5) - 0.1 * 2**0.5 * update
        assert torch.equal(parameter.grad, gradient)  # the gradient is for others to read
    torch.testing.assert_close(parameter.detach(), expected, atol=0.02, rtol=0)


def test_a_kernel_counts_as_a_matrix() -> None:
    gradient = torch.randn(12, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for memory_format in (torch.contiguous_format, torch.channels_last):
        kernel = nn.Parameter(torch.zeros(12, 4, 3, 3).to(memory_format=memory_format))
        kernel.grad = gradient.clone(memory_format=memory_format)
        Muon([{"params": [kernel], "muon": True}], lr=1.0, momentum=0.0).step()
        expected = -orthogonalised(gradient.reshape(1, 12, 36)).reshape(12, 4, 3, 3)
        torch.testing.assert_close(kernel.detach(), expected, atol=0.02, rtol=0)


def test_the_other_group_takes_the_step_of_torchs_adamw() -> None:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 3, generator=generator)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    a = Muon([{"params": [ours]}], lr=0.01, betas=(0.9, 0.99))
    b = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(5):
        ours.grad = torch.randn(7, 3, generator=generator)
        theirs.grad = ours.grad.clone()
        a.step(), b.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    for group in (*a.param_groups, *b.param_groups):
        group["weight_decay"] = 0.3
    a.step(), b.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def run(net: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for i in steps:
        x = torch.randn(8, 10, generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_saved_state_continues_as_if_never_stopped(name: str, tmp_path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1))
    arguments = (name, 0.01, (0.9, 0.99), 0.1, 0.05)
    whole = optimizers.make(net, *arguments)
    run(net, whole, range(4))
    torch.save({"net": net.state_dict(), "optimizer": whole.state_dict()}, tmp_path / "state")
    again = copy.deepcopy(net)
    run(net, whole, range(4, 8))
    held = torch.load(tmp_path / "state", weights_only=True)
    again.load_state_dict(held["net"])
    second = optimizers.make(again, *arguments)
    second.load_state_dict(held["optimizer"])
    run(again, second, range(4, 8))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_a_parameter_without_gradient_stays_as_it_is() -> None:
    for muon in (True, False):
        parameter = nn.Parameter(torch.ones(12, 12))
        Muon([{"params": [parameter], "muon": muon}], weight_decay=0.5).step()
        assert torch.equal(parameter, torch.ones(12, 12))


def test_hidden_matrices() -> None:
    net = GPT((64, 32), (4, 4), text_dim=32, text_length=8, width=32, num_layers=2, num_heads=2,
              caption_heads=True)
    hidden = {name for name, parameter in net.named_parameters() if is_hidden_matrix(name, parameter)}
    assert hidden == {
        f"blocks.{i}.{name}.weight" for i in (0, 1) for name in ("qkv", "attention_out", "mlp_in", "mlp_out")
    } | {f"predict.readers.0.{name}.weight" for name in ("mlp_in", "mlp_out", "caption.query", "caption.text_kv",
                                                         "caption.attention_out")}
    for name, shape, expected in [
        ("encoder.levels.0.conv.weight", (32, 16, 3, 3), True),
        ("encoder.stem.weight", (32, 3, 3, 3), False),
        ("decoder.head.weight", (3, 32, 3, 3), False),
        ("quantizer.codebook", (64, 16), False),  # an embedding: most rows get no gradient
        ("text_model.embeddings.token_embedding.weight", (99, 32), False),
        ("quant_conv.weight", (4, 64, 1, 1), False),  # too thin to be orthogonalised
        ("norm.weight", (32,), False),
    ]:
        assert is_hidden_matrix(name, torch.zeros(shape)) is expected, name


def test_make_divides_the_parameters_and_decays_matrices_only() -> None:
    net = GPT((64,), (4, 4), text_dim=32, text_length=8, width=32, num_layers=1, num_heads=2)
    net.start.requires_grad_(False)
    muon = optimizers.make(net, "muon", 1e-3, (0.9, 0.99), 0.1)
    hidden, others = muon.param_groups
    assert (hidden["muon"], hidden["lr"], hidden["initial_lr"], hidden["weight_decay"]) == (True, 0.02, 0.02, 0.1)
    assert (others["muon"], others["lr"], others["initial_lr"], others["weight_decay"]) == (False, 1e-3, 1e-3, 0.0)
    assert len(hidden["params"]) == 4
    assert len(hidden["params"]) + len(others["params"]) == sum(p.requires_grad for p in net.parameters())
    adamw = optimizers.make(net, "adamw", 1e-3, (0.9, 0.99), 0.1)
    assert isinstance(adamw, torch.optim.AdamW) and [g["lr"] for g in adamw.param_groups] == [1e-3, 1e-3]
    with pytest.raises(ValueError, match="optimizer='sgd': one of adamw, muon"):
        optimizers.make(net, "sgd", 1e-3, (0.9, 0.99), 0.1)
