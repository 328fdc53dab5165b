from __future__ import annotations

import copy
import math
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import load_file
from tests.device_reads import DeviceReads
from tests.in_child import in_child, in_children
from torch import nn

from t2i.models.base import NonFiniteLoss, check_finite
from t2i.quantizers.base import straight_through
from t2i.quantizers.ema import EMA
from t2i.quantizers.fsq import FSQ
from t2i.quantizers.gumbel import Gumbel
from t2i.quantizers.lfq import LFQ, entropy
from t2i.quantizers.nearest import nearest
from t2i.quantizers.product import Product
from t2i.quantizers.residual import Residual
from t2i.quantizers.simvq import SimVQ
from t2i.quantizers.vq import VQ, rotate
from t2i.types import Quantizer, ravel_index, unravel_index

GOLDEN = Path(__file__).parents[1] / "golden"
ALL = {
    "vq": lambda: VQ(codebook_size=40, dim=4),
    "rotation": lambda: VQ(codebook_size=40, dim=4, gradient="rotation"),
    "normalised": lambda: VQ(codebook_size=40, dim=4, normalize=True),
    "ema": lambda: EMA(codebook_size=40, dim=4),
    "fsq": lambda: FSQ(levels=(5, 2, 2, 2)),
    "gumbel": lambda: Gumbel(codebook_size=40, dim=4),
    "simvq": lambda: SimVQ(codebook_size=40, dim=4),
    "lfq": lambda: LFQ(dim=4),
    "product": lambda: Product({"a": EMA(codebook_size=8, dim=2), "b": VQ(codebook_size=5, dim=2)}),
    "groups": lambda: Product(quantizer=SimVQ(codebook_size=6, dim=2), groups=2),
    "residual": lambda: Residual(EMA(codebook_size=6, dim=4), depth=2),
}


@pytest.mark.parametrize("name", ALL)
def test_contract(name: str) -> None:
    torch.manual_seed(0)
    quantizer = ALL[name]().eval()
    size = {"lfq": 16, "groups": 36, "residual": 36}.get(name, 40)
    assert isinstance(quantizer, Quantizer) and (quantizer.codebook_size, quantizer.dim) == (size, 4)
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    out = quantizer(z)
    assert out.z_q.shape == z.shape and out.ids.shape == (2, 3, 5) and out.ids.dtype == torch.long
    assert out.loss.shape == () and all(value.shape == () for value in out.metrics.values())
    torch.testing.assert_close(out.z_q, quantizer.decode_ids(out.ids), atol=1e-6, rtol=1e-6)
    assert math.prod(quantizer.factors) == size
    each = unravel_index(out.ids[0, 0, 0], quantizer.factors)
    found = [book[i] for book, i in zip(quantizer.codebooks(), each, strict=True)]
    vectors = sum(found) if name == "residual" else torch.cat(found)
    torch.testing.assert_close(vectors, quantizer.decode_ids(out.ids)[0, :, 0, 0])
    (out.z_q.square().sum() + out.loss).backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0
    for wrong in (size, -1):
        with pytest.raises(ValueError, match=rf"code id {wrong} is out of range: .* {size} entries, ids 0..{size - 1}"):
            quantizer.decode_ids(torch.tensor([[[0, wrong]]]))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [*ALL, "warming", "keeping"])
def test_latents_that_are_not_finite_move_nothing_and_stop_the_training(name: str, wrong: float) -> None:
    """In the first forward, where k-means would start, and in a later one."""
    more = {"warming": lambda: EMA(codebook_size=40, dim=4, warmup_steps=9),
            "keeping": lambda: EMA(codebook_size=40, dim=4, dead_threshold=0.0)}
    for earlier in (0, 2):
        torch.manual_seed(0)
        quantizer = (ALL | more)[name]().train()
        for _ in range(earlier):
            quantizer(torch.randn(2, 4, 8, 8))
        before = copy.deepcopy(quantizer.state_dict())
        z = torch.randn(2, 4, 8, 8)
        z[1, 2, 3, 4] = wrong
        out = quantizer(z)
        assert all(torch.equal(value, quantizer.state_dict()[key]) for key, value in before.items()
                   if not key.endswith("step"))
        with pytest.raises(NonFiniteLoss, match="loss=nan|loss=inf"):
            check_finite({"loss": out.loss}, 0, ["a"])


@pytest.mark.parametrize("name", ALL)
def test_a_forward_after_the_first_waits_for_no_gpu(name: str) -> None:
    torch.manual_seed(0)
    quantizer = ALL[name]().train()
    quantizer(torch.randn(2, 4, 8, 8))  # k-means may start from it
    z = torch.randn(2, 4, 8, 8, requires_grad=True)
    with DeviceReads():
        out = quantizer(z)
        (out.z_q.square().sum() + out.loss).backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


@pytest.mark.parametrize("latents", [30, 60])
def test_restarts_are_drawn_as_multinomial_draws(latents: int) -> None:
    """Without it, since it makes the host wait for a GPU; with more and with fewer latents than codes."""
    quantizer = EMA(codebook_size=40, dim=4, seed=3)
    x, weights = torch.randn(latents, 4), torch.rand(latents)
    generator = torch.Generator().manual_seed(3 * 1_000_003 * 1_000_003 % 2**63)
    share = weights.double()
    share = share + 1e-12 + 1e-6 * share.mean()
    expected = x[torch.multinomial(share, 40, replacement=latents < 40, generator=generator)]
    if latents < 40:
        expected = expected + 0.01 * x.std() * torch.randn(expected.shape, generator=generator)
    assert torch.equal(quantizer._candidates(x, weights), expected)


@pytest.mark.parametrize("name", ALL)
def test_autocast_changes_nothing(name: str) -> None:
    quantizer = ALL[name]().eval()
    z = torch.randn(2, 4, 8, 8)
    plain = quantizer(z)
    with torch.autocast("cpu", torch.bfloat16):
        cast = quantizer(z)
    assert torch.equal(plain.ids, cast.ids) and torch.equal(plain.z_q, cast.z_q) and cast.loss.dtype == torch.float32


@pytest.mark.parametrize(("n", "k", "d"), [(1, 2, 1), (70, 65, 3), (1500, 5000, 8), (2048, 2112, 64)])
def test_nearest_is_nearest(n: int, k: int, d: int) -> None:
    torch.manual_seed(0)
    x, codebook = torch.randn(n, d), torch.randn(k, d)
    ids = nearest(x, codebook)
    distances = torch.cdist(x.double(), codebook.double())
    found = distances.gather(1, ids[:, None])[:, 0]
    torch.testing.assert_close(found, distances.min(1).values, atol=1e-5, rtol=1e-5)
    assert (ids == distances.argmin(1)).float().mean() > 0.999


def test_nearest_takes_the_first_of_equals() -> None:
    codebook = torch.zeros(5000, 2)
    codebook[3000:] = 1
    assert nearest(torch.tensor([[0.1, 0.0], [0.9, 1.2]]), codebook).tolist() == [0, 3000]


def test_nearest_survives_what_is_not_finite() -> None:
    ids = nearest(torch.tensor([[float("nan"), 0.0], [float("inf"), 1.0]]), torch.randn(10, 2))
    assert ids.min() >= 0 and ids.max() < 10


def test_nearest_never_holds_the_whole_matrix(tmp_path: Path) -> None:
    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def search() -> None:
        x, codebook = torch.randn(32768, 8), torch.randn(16384, 8)
        nearest(x[:2000], codebook)
        before = peak()
        nearest(x, codebook)
        print(peak() - before)

    assert in_child(search, tmp_path / "log") == 0
    assert int((tmp_path / "log").read_text()) < 100_000  # kB; the matrix would be 2 GB


@pytest.mark.parametrize(
    ("name", "normalize", "dim"), [("taming_vqgan_tiny", False, 16), ("llamagen_vq_tiny", True, 8)]
)
def test_reproduces_the_references(name: str, normalize: bool, dim: int) -> None:
    golden = load_file(GOLDEN / f"{name}_quantizer.safetensors")
    quantizer = VQ(codebook_size=64, dim=dim, normalize=normalize)
    with torch.no_grad():
        quantizer.codebook.copy_(golden["weight/quantize.embedding.weight"])
        out = quantizer(golden["io/latent"])
    assert torch.equal(out.ids.flatten(1), golden["io/indices"].view(out.ids.shape[0], -1))
    torch.testing.assert_close(out.z_q, golden["io/quantized"], atol=1e-6, rtol=0)


def test_vq_starts_uniform() -> None:
    codebook = VQ(codebook_size=50, dim=64).codebook
    assert codebook.abs().max() <= 1 / 50 and codebook.std().item() == pytest.approx(1 / 50 / math.sqrt(3), rel=0.05)
    assert torch.allclose(VQ(codebook_size=50, dim=8, normalize=True).codebook.norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("legacy", [False, True])
def test_beta_weighs_the_commitment(legacy: bool) -> None:
    quantizer = VQ(codebook_size=2, dim=1, beta=0.25, legacy_beta=legacy)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    z = torch.full((1, 1, 1, 1), 2.0, requires_grad=True)
    out = quantizer(z)
    assert out.loss.item() == pytest.approx(4 * 1.25) and out.metrics["commitment"].item() == pytest.approx(4)
    out.loss.backward()
    # d/dz (z - e)^2 = 4 and d/de = -4 at z = 2, e = 0.
    commitment, codebook = (1.0, 0.25) if legacy else (0.25, 1.0)
    assert z.grad.item() == pytest.approx(4 * commitment)
    assert quantizer.codebook.grad.flatten().tolist() == pytest.approx([-4 * codebook, 0])


def test_straight_through_passes_the_gradient() -> None:
    z, q, g = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3), torch.randn(5, 3)
    out = straight_through(z, q)
    out.backward(g)
    assert torch.equal(z.grad, g)
    torch.testing.assert_close(out.detach(), q)


def test_rotation_turns_the_gradient_with_the_code() -> None:
    torch.manual_seed(0)
    z, q = torch.randn(50, 6, dtype=torch.double, requires_grad=True), torch.randn(50, 6, dtype=torch.double)
    g = torch.randn(50, 6, dtype=torch.double)
    out = rotate(z, q)
    torch.testing.assert_close(out.detach(), q)
    out.backward(g)
    # A rotation keeps angles: the gradient stands to z as it stood to q, longer by |q| / |z|.
    torch.testing.assert_close(F.cosine_similarity(z.grad, z.detach()), F.cosine_similarity(g, q))
    torch.testing.assert_close(z.grad.norm(dim=1), g.norm(dim=1) * q.norm(dim=1) / z.detach().norm(dim=1))
    # And it turns in the plane of z and q only.
    plane = torch.linalg.qr(torch.stack([z.detach(), q], 2)).Q
    outside = lambda v: v - (plane @ (plane.mT @ v[..., None]))[..., 0]  # noqa: E731
    scale = (q.norm(dim=1) / z.detach().norm(dim=1))[:, None]
    torch.testing.assert_close(outside(z.grad), outside(g) * scale)


def test_rotation_is_finite_at_zero_and_at_the_opposite() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    out = rotate(z, torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    out.sum().backward()
    torch.testing.assert_close(out.detach(), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    assert z.grad.isfinite().all()


def test_fsq_reaches_each_code_and_no_other() -> None:
    torch.manual_seed(0)
    quantizer = FSQ(levels=(8, 5, 5, 5))
    assert (quantizer.codebook_size, quantizer.dim) == (1000, 4)
    out = quantizer(torch.randn(4, 4, 64, 64) * 1.2)
    assert out.ids.unique().tolist() == list(range(1000))
    assert out.loss.item() == 0
    grid = quantizer.decode_ids(torch.arange(1000).view(1, 1, 1000))
    assert grid.min() == -1 and grid.max() == 1 and len(grid[0, 0].unique()) == 8 and len(grid[0, 1].unique()) == 5
    assert not list(quantizer.parameters()) and not quantizer.state_dict()
    with pytest.raises(ValueError, match=r"levels=\[8, 1\]"):
        FSQ(levels=(8, 1))
    with pytest.raises(ValueError, match="latent of 3 channels"):
        quantizer(torch.zeros(1, 3, 2, 2))


def blobs(n: int, seed: int = 0) -> torch.Tensor:
    """Latents (1, 2, 1, n) tightly round four corners."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.tensor([[5.0, 5.0], [5.0, -5.0], [-5.0, 5.0], [-5.0, -5.0]])
    x = corners[torch.arange(n) % 4] + 0.01 * torch.randn(n, 2, generator=generator)
    return x.T.view(1, 2, 1, n)


def test_ema_starts_from_kmeans() -> None:
    quantizer = EMA(codebook_size=8, dim=2)
    assert not quantizer.initialised
    out = quantizer(blobs(400))
    assert quantizer.initialised and out.metrics["commitment"] < 0.01
    assert not list(quantizer.parameters())


def test_ema_follows_running_means() -> None:
    quantizer = EMA(codebook_size=2, dim=1, beta=0.5, decay=0.9, kmeans_init=False, dead_threshold=0)
    quantizer.codebook.copy_(torch.tensor([[0.0], [10.0]]))
    quantizer.sums.copy_(quantizer.codebook)
    z = torch.tensor([1.0, 2.0, 3.0, 12.0]).view(1, 1, 2, 2).requires_grad_()
    out = quantizer(z)
    assert out.ids.flatten().tolist() == [0, 0, 0, 1]
    assert out.loss.item() == pytest.approx(0.5 * (1 + 4 + 9 + 4) / 4)
    assert quantizer.counts.tolist() == pytest.approx([0.9 + 0.3, 0.9 + 0.1])
    assert quantizer.codebook.flatten().tolist() == pytest.approx([0.6 / 1.2, (9 + 1.2) / 1.0])
    before = copy.deepcopy(quantizer.state_dict())
    quantizer.eval()(z)
    assert all(torch.equal(before[key], value) for key, value in quantizer.state_dict().items())


def test_ema_restarts_dead_codes_from_the_batch() -> None:
    quantizer = EMA(codebook_size=4, dim=2, decay=0.5, kmeans_init=False, dead_threshold=0.1)
    quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [99.0, 99.0], [-99.0, 99.0], [99.0, -99.0]]))
    quantizer.sums.copy_(quantizer.codebook)
    restarted = 0
    for step in range(12):
        restarted += int(quantizer(blobs(400, step)).metrics["restarted"])
    assert restarted >= 3 and quantizer.codebook.abs().max() < 6
    assert quantizer(blobs(400)).ids.unique().numel() >= 3


def test_ema_gives_up_one_of_two_like_codes_for_a_rare_latent_far_away() -> None:
    quantizer = EMA(codebook_size=4, dim=2, decay=0.98, kmeans_init=False)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.tensor([[0.0, 0.0], [0.02, 0.0], [0.0, 0.02], [5.0, 5.0]]))
        quantizer.counts.copy_(torch.tensor([30.0, 20.0, 10.0, 39.0]))
        quantizer.sums.copy_(quantizer.codebook * quantizer.counts[:, None])
    near = torch.cat([torch.zeros(60, 2), torch.full((39, 2), 5.0), torch.tensor([[-4.0, 4.0]])])
    near[:60] += 0.02 * torch.rand(60, 2, generator=torch.Generator().manual_seed(0))
    z = near.T.reshape(1, 2, 10, 10)
    for _ in range(60):
        out = quantizer(z)
    assert (quantizer.codebook - torch.tensor([-4.0, 4.0])).norm(dim=1).min() < 0.1
    assert (out.z_q - z).abs().max() < 0.1  # and none of the others is missed


def test_ema_with_fewer_latents_than_codes() -> None:
    quantizer = EMA(codebook_size=64, dim=2)
    for step in range(3):
        quantizer(blobs(16, step))
    assert quantizer.codebook.isfinite().all() and len(quantizer.codebook.unique(dim=0)) == 64


@pytest.mark.parametrize("make", [
    lambda: EMA(codebook_size=32, dim=4, dead_threshold=0.5),
    lambda: SimVQ(codebook_size=32, dim=4),
    lambda: Product(quantizer=EMA(codebook_size=8, dim=2, dead_threshold=0.5), groups=2),
    lambda: Residual(EMA(codebook_size=8, dim=4, dead_threshold=0.5), depth=3),
    lambda: Residual(SimVQ(codebook_size=8, dim=4), depth=2),
], ids=["ema", "simvq", "product ema", "residual ema", "residual simvq"])  # fmt: skip
def test_resumes_bit_for_bit(make: Callable[[], nn.Module]) -> None:
    def steps(quantizer: nn.Module, numbers: range) -> None:
        for number in numbers:
            torch.manual_seed(number)
            loss = quantizer(torch.randn(2, 4, 8, 8)).loss
            if loss.requires_grad:
                quantizer.zero_grad()
                loss.backward()
                with torch.no_grad():
                    for parameter in quantizer.parameters():
                        parameter -= 0.1 * parameter.grad
            torch.rand(3)  # what else the run draws must not matter

    unbroken = make()
    steps(unbroken, range(6))
    first = make()
    steps(first, range(3))
    second = make()
    second.eval()(torch.randn(1, 4, 2, 2))  # a sanity check before the weights are loaded
    second.train().load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, range(3, 6))
    for key, value in unbroken.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    quantizer = EMA(codebook_size=9, dim=3, dead_threshold=0.5)
    with torch.no_grad():
        quantizer.codebook.copy_(torch.arange(27.0).view(9, 3))
    for step in range(3):
        z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(10 * step + rank))
        quantizer(z)
    torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_ema_ranks_agree(tmp_path: Path) -> None:
    assert in_children([partial(_rank, rank, str(tmp_path)) for rank in range(2)], tmp_path) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert all(torch.equal(first[key], second[key]) for key in first)
    # 64 latents a step over both ranks: counts start at, are restarted with, and tend to 64 in all.
    assert first["counts"].sum() > 32 and int(first["step"]) == 3


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="gradient='st': one of ste, rotation"):
        VQ(gradient="st")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="codebook_size=1"):
        VQ(codebook_size=1)
    with pytest.raises(ValueError, match="decay=1"):
        EMA(decay=1)
    with pytest.raises(ValueError, match="dead_threshold=2"):
        EMA(dead_threshold=2)


def test_digits_and_back() -> None:
    ids = torch.arange(24).view(2, 12)
    each = unravel_index(ids, (2, 3, 4))
    assert each.shape == (2, 12, 3) and each[1, 11].tolist() == [1, 2, 3] and each[0, 5].tolist() == [0, 1, 1]
    assert torch.equal(ravel_index(each, (2, 3, 4)), ids)
    assert torch.equal(unravel_index(ids, (24,))[..., 0], ids)


def test_each_part_of_a_product_quantises_its_own_channels() -> None:
    torch.manual_seed(0)
    parts = {"a": EMA(codebook_size=8, dim=2), "b": EMA(codebook_size=16, dim=2)}
    quantizer = Product(parts)
    z = torch.randn(4, 4, 5, 5)
    out = quantizer(z)  # training mode: the codebooks start and move
    assert set(out.metrics) == {f"{name}/{key}" for name in parts for key in ("restarted", "commitment")}
    quantizer.eval()
    out = quantizer(z)
    each = unravel_index(out.ids, (8, 16))
    for i, part in enumerate(parts.values()):
        alone = part(z[:, 2 * i : 2 * i + 2])
        assert torch.equal(each[..., i], alone.ids) and torch.equal(out.z_q[:, 2 * i : 2 * i + 2], alone.z_q)
    losses = [part(z[:, 2 * i : 2 * i + 2]).loss for i, part in enumerate(parts.values())]
    torch.testing.assert_close(out.loss, sum(losses))
    other = z.clone()
    other[:, :2] = torch.randn(4, 2, 5, 5)
    assert torch.equal(unravel_index(quantizer(other).ids, (8, 16))[..., 1], each[..., 1])  # not moved


def test_groups_of_one_node_are_quantisers_of_their_own() -> None:
    torch.manual_seed(0)
    quantizer = Product(quantizer=SimVQ(codebook_size=8, dim=2), groups=3)
    assert quantizer.factors == (8, 8, 8) and quantizer.dim == 6 and len(list(quantizer.parameters())) == 3
    quantizer(torch.randn(4, 6, 5, 5)).loss.backward()
    gradients = [parameter.grad for parameter in quantizer.parameters()]
    assert not torch.equal(gradients[0], gradients[1])
    listed = Product([SimVQ(codebook_size=8, dim=2) for _ in range(3)])
    listed.load_state_dict(quantizer.state_dict())  # strictly: the same names


def test_largest_codes_of_parts() -> None:
    quantizer = Product(quantizer=FSQ((8, 8)), groups=10)
    last = torch.tensor([[[2**60 - 1]]])
    assert torch.equal(quantizer(quantizer.decode_ids(last) * 9).ids, last)


def test_a_residual_code_adds_up() -> None:
    quantizer = Residual(VQ(codebook_size=2, dim=1, beta=0.5), depth=2)
    with torch.no_grad():
        for part, values in zip(quantizer.parts.values(), ([0.0, 8.0], [-1.0, 1.0]), strict=True):
            part.codebook.copy_(torch.tensor(values)[:, None])
    z = torch.tensor([6.0, 9.5]).view(1, 1, 1, 2).requires_grad_()
    out = quantizer(z)
    assert out.ids.flatten().tolist() == [0b10, 0b11] and out.z_q.flatten().tolist() == [7.0, 9.0]
    # What each depth leaves over: -2, 1.5, then -1, 0.5; the codebook's term and half the commitment of each.
    left = [(4 + 2.25) / 2, (1 + 0.25) / 2]
    assert out.loss.item() == pytest.approx(1.5 * sum(left))
    out.loss.backward()  # d/dz of 0.5 (first² + second²) / 2
    assert z.grad.flatten().tolist() == pytest.approx([0.5 * (-2 - 1), 0.5 * (1.5 + 0.5)])
    z.grad = None
    quantizer(z).z_q.sum().backward()
    assert z.grad.flatten().tolist() == [1, 1]


def test_simvq_moves_every_code_with_the_chosen_ones() -> None:
    quantizer, again = SimVQ(codebook_size=16, dim=2, seed=3), SimVQ(codebook_size=16, dim=2, seed=3)
    assert torch.equal(quantizer.codebook, again.codebook) and torch.equal(quantizer.vectors(), quantizer.codebook)
    assert not torch.equal(quantizer.codebook, SimVQ(codebook_size=16, dim=2, seed=4).codebook)
    assert SimVQ(codebook_size=4096, dim=16).codebook.std().item() == pytest.approx(0.25, rel=0.02)
    z = (quantizer.codebook[5] + torch.tensor([0.01, 0.02])).view(1, 2, 1, 1).detach().requires_grad_()
    out = quantizer(z)
    assert out.ids.item() == 5 and out.loss.item() == pytest.approx(1.25 * (0.01**2 + 0.02**2) / 2, rel=1e-3)
    out.loss.backward()
    assert z.grad.flatten().tolist() == pytest.approx([0.25 * 0.01, 0.25 * 0.02], rel=1e-3)
    before = quantizer.vectors()
    with torch.no_grad():
        quantizer.codebook_map.weight -= quantizer.codebook_map.weight.grad
    assert (quantizer.vectors() - before).abs().sum(1).min() > 0
    assert [name for name, _ in quantizer.named_parameters()] == ["codebook_map.weight"]
    assert set(quantizer.state_dict()) == {"codebook", "codebook_map.weight"}


def test_simvq_stretches_its_codebook_over_the_latents_and_uses_all_of_it() -> None:
    torch.manual_seed(0)
    z = torch.randn(16, 2, 8, 8) * torch.tensor([8.0, 0.5]).view(2, 1, 1)
    quantizer = SimVQ(codebook_size=32, dim=2)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.2)
    before = quantizer(z).metrics["commitment"]
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(z).loss.backward()
        optimizer.step()
    out = quantizer(z)
    assert out.metrics["commitment"] < 0.1 * before and len(out.ids.unique()) == 32


@pytest.mark.parametrize("dim", [1, 3, 9])
def test_lfq_entropies_are_those_of_a_softmax_over_all_codes(dim: int) -> None:
    torch.manual_seed(0)
    quantizer = LFQ(dim, beta=0, entropy_weight=1, diversity=0.5, temperature=2.0)
    z = torch.randn(3, dim, 2, 2)
    out, x = quantizer(z), z.permute(0, 2, 3, 1).flatten(0, 2)
    p = (-torch.cdist(x, quantizer.codebooks()[0]).square() / 2.0).softmax(-1)
    sure, spread = entropy(p).mean(), entropy(p.mean(0))
    torch.testing.assert_close(out.metrics["entropy"], sure)
    torch.testing.assert_close(out.metrics["codebook_entropy"], spread)
    torch.testing.assert_close(out.loss, sure - 0.5 * spread)
    assert torch.equal(out.ids.flatten(), ((x > 0) * 2 ** torch.arange(dim)).sum(1))


def test_lfq_of_many_bits_bounds_the_entropy_from_above(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("t2i.quantizers.lfq.GROUP", 4)
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    quantizer = LFQ(7)
    p = (-torch.cdist(x, quantizer.codebooks()[0]).square()).softmax(-1)
    sure, spread = quantizer.entropies(x)
    torch.testing.assert_close(sure, entropy(p).mean(), rtol=1e-4, atol=1e-4)
    assert entropy(p.mean(0)) < spread <= 7 * math.log(2)
    with pytest.raises(ValueError, match="dim=25: a code has from 1 to 24 bits"):
        LFQ(25)
    with pytest.raises(ValueError, match="latent of 3 channels: dim=7"):
        quantizer(torch.zeros(1, 3, 2, 2))


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"parts=\{\}: at least one"):
        Product({})
    with pytest.raises(ValueError, match=r"different dim \(a 2, b 3\)"):
        Product({"a": EMA(4, dim=2), "b": EMA(4, dim=3)})
    with pytest.raises(ValueError, match="latent of 5 channels: the parts quantise 4"):
        Product({"a": EMA(4, dim=2), "b": EMA(4, dim=2)})(torch.zeros(1, 5, 2, 2))
    for wrong in ({}, {"parts": [EMA(4, 2)], "quantizer": EMA(4, 2), "groups": 2}, {"quantizer": EMA(4, 2)}):
        with pytest.raises(ValueError, match="parts, or of quantizer and groups"):
            Product(**wrong)
    with pytest.raises(ValueError, match="groups=0: at least 1"):
        Product(quantizer=EMA(4, 2), groups=0)
    for many in (11, 10**9):
        with pytest.raises(ValueError, match=rf"groups={many}: codes of .* parts of 64, 64.* less than 2\*\*63"):
            Product(quantizer=FSQ((8, 8)), groups=many)
    assert Product(quantizer=FSQ((8, 8)), groups=10).codebook_size == 2**60
    for wrong_part in (FSQ((3, 3)), LFQ(2), Gumbel(4, 2), VQ(4, 2, normalize=True)):
        with pytest.raises(ValueError, match=f"quantizer={type(wrong_part).__name__}: residuals need"):
            Residual(wrong_part)


@pytest.mark.parametrize("name", ALL)
def test_what_is_not_rounded_lies_where_the_codes_do(name: str) -> None:
    torch.manual_seed(0)
    quantizer = ALL[name]().eval()
    z = torch.randn(2, 4, 3, 5, requires_grad=True)
    unrounded = quantizer.unrounded(z)
    assert unrounded.shape == z.shape and unrounded.dtype == torch.float32
    if name == "gumbel":  # a mixture: with all probability on one code it is that code
        with torch.no_grad():
            quantizer.proj.weight.mul_(1e4)
        torch.testing.assert_close(quantizer.unrounded(z), quantizer.decode_ids(quantizer(z).ids))
        return
    if name == "residual":  # the first code is the nearest, and the sum of all is nearer
        out, (first, _) = quantizer(z), quantizer.codebooks()
        nearest_first = torch.cdist(unrounded.permute(0, 2, 3, 1).flatten(0, 2), first).min(1)
        assert torch.equal(nearest_first.indices, unravel_index(out.ids, (6, 6))[..., 0].flatten())
        assert (out.z_q - z).square().sum() < nearest_first.values.square().sum()
        return
    parts = [p.dim for p in quantizer.parts.values()] if name in ("product", "groups") else [4]
    each = unravel_index(quantizer(z).ids, quantizer.factors)
    for i, (part, book) in enumerate(zip(unrounded.split(parts, 1), quantizer.codebooks(), strict=True)):
        assert torch.equal(torch.cdist(part.permute(0, 2, 3, 1).flatten(0, 2), book).argmin(1), each[..., i].flatten())
    unrounded.square().sum().backward()
    assert z.grad.isfinite().all()


def test_gumbel_reproduces_the_reference() -> None:
    """The reference draws also in evaluation: its indices are those of the noise that followed its picture."""
    golden = load_file(GOLDEN / "taming_gumbel_tiny_quantizer.safetensors")
    z = F.conv2d(golden["io/latent"], golden["weight/quant_conv.weight"], golden["weight/quant_conv.bias"])
    quantizer = Gumbel(codebook_size=64, dim=16, kl_weight=1e-8)
    names = {"proj.weight": "proj.weight", "proj.bias": "proj.bias", "codebook": "embed.weight"}
    quantizer.load_state_dict({ours: golden[f"weight/quantize.{theirs}"] for ours, theirs in names.items()})
    torch.manual_seed(2)
    torch.rand(2, 3, 32, 32)  # the picture
    out = quantizer(z)
    assert torch.equal(out.ids.flatten(1), golden["io/indices"])
    torch.testing.assert_close(out.z_q, golden["io/quantized"], atol=1e-6, rtol=0)
    likeliest = quantizer.eval()(z).ids
    assert torch.equal(likeliest, quantizer(z).ids) and torch.equal(likeliest, quantizer.proj(z).argmax(1))


def test_gumbel_learns_and_keeps_its_codes_in_use() -> None:
    torch.manual_seed(0)
    quantizer = Gumbel(codebook_size=8, dim=2, kl_weight=0.5)
    with torch.no_grad():
        quantizer.proj.bias[0] = 20.0
    collapsed = quantizer(torch.randn(1, 2, 4, 4))
    assert collapsed.loss.item() == pytest.approx(0.5 * math.log(8), rel=1e-3)
    assert collapsed.metrics["divergence"].item() == pytest.approx(math.log(8), rel=1e-3)
    quantizer = Gumbel(codebook_size=8, dim=2, temperature=0.7)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    z = blobs(400)
    before = F.mse_loss(quantizer.eval()(z).z_q, z).item()
    quantizer.train()
    for _ in range(200):
        optimizer.zero_grad()
        out = quantizer(z)
        (F.mse_loss(out.z_q, z) + out.loss).backward()
        optimizer.step()
    assert F.mse_loss(quantizer.eval()(z).z_q, z).item() < 0.1 * before
    soft = Gumbel(codebook_size=8, dim=2, straight_through=False)
    assert not torch.equal(soft(z).z_q, soft.decode_ids(soft(z).ids))
    with pytest.raises(ValueError, match=r"temperature=0: a number above 0"):
        Gumbel(temperature=0)
