"""The static step draws the codes of the eager loop; on a CPU, where it stands for what a GPU records."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from t2i.models.sampling import Sampler, generate, uniforms
from t2i.models.static_decoding import StaticDecoder, StaticDecoding
from t2i.nets.gpt import GPT

GRID, TEXT, LENGTH = (3, 4), 5, 7
N = 12


def gpt(factors: tuple[int, ...] = (13,), caption: Any = "prefix") -> GPT:
    torch.manual_seed(0)
    made = GPT(factors, GRID, TEXT, LENGTH, width=16, num_layers=2, num_heads=2, caption=caption,
               caption_heads=True)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return made.eval()


def captions(seed: int, *lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), TEXT, generator=generator), mask


OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0}, "plain": {}, "top_k": {"temperature": 0.9, "top_k": 3}, "top_p": {"top_p": 0.8},
    "guided": {"guidance": 2.5, "top_k": 3, "top_p": 0.9}, "unconditional": {"unconditional": True},
    "negative": {"guidance": 3.0, "negative": captions(5, 6, 2, 3)},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("caption", ["prefix", "keys"])
@pytest.mark.parametrize("factors", [(13,), (2, 3, 2)])
def test_static_codes_are_the_eager_ones(factors: tuple[int, ...], caption: str, options: dict[str, Any]) -> None:
    net, static = gpt(factors, caption), StaticDecoding(capture=False)
    for given in (0, 5, N - 1):  # the same memory, used again
        text, seeds = captions(given, 4, 2, 3), [given + 1, 2, 3]
        wanted = {"given": torch.randint(12, (3, given)), **options}
        uniform = uniforms(seeds, N * len(factors))
        eager = generate(net, *text, uniform, **wanted)
        assert torch.equal(generate(net, *text, uniform, **wanted, static=static), eager)
        assert len(static.decoders) == 1 and len(eager.unique()) > 2


def decoder(caption: str = "prefix") -> StaticDecoder:
    static, net = StaticDecoding(capture=False), gpt(caption=caption)
    generate(net, *captions(0, 4, 2), uniforms([1, 2], N), guidance=2.0, top_k=5, top_p=0.9, static=static)
    (found,) = static.decoders.values()
    return found


@pytest.mark.compiles
@pytest.mark.parametrize("caption", ["prefix", "keys"])
def test_a_step_is_one_graph_for_all_cells_and_reads_nothing_back(caption: str) -> None:
    """Dynamo refuses, with fullgraph, what would wait for the host, and compiles anew what depends on a number."""
    made, graphs = decoder(caption), []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    step = torch.compile(made.step, backend=backend, fullgraph=True)
    ids = made.ids.clone()
    with torch.inference_mode():
        made.ids[:, 3:] = 0
        made.each.copy_(torch.cat([ids, ids])[:, 2:3])
        made.index.fill_(3)
        for _ in range(3, N):
            step()
    assert torch.equal(made.ids, ids) and len(graphs) == 1
    assert made.cache.keys.shape[3] % 8 == 0


def test_decoders_are_kept_by_shape_options_and_weights_and_released() -> None:
    net, static = gpt(), StaticDecoding(capture=False, keep=2)

    def draw(count: int, **options: Any) -> None:
        generate(net, *captions(0, *[3] * count), uniforms(range(count), N), **options, static=static)

    draw(2)
    first = next(iter(static.decoders))
    draw(2)
    assert list(static.decoders) == [first]
    draw(2, guidance=2.0)
    draw(2)  # used again: the other one is the oldest now
    draw(3)
    assert len(static.decoders) == 2 and first in static.decoders
    net.start.data = net.start.data.clone()  # elsewhere in memory: a recorded step would read the old one
    draw(2)
    assert first not in static.decoders or len(static.decoders) == 2
    assert next(reversed(static.decoders)) != first
    for copied in (copy.deepcopy(static), pickle.loads(pickle.dumps(static))):
        assert copied.keep == 2 and not copied.capture and not copied.decoders
    static.release()
    assert not static.decoders


def test_what_cannot_be_recorded_is_drawn_eagerly_and_said_once() -> None:
    net, static, text, uniform = gpt(), StaticDecoding(), captions(0, 4, 2), uniforms([1, 2], N)
    eager = generate(net, *text, uniform)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = generate(net, *text, uniform)
        with pytest.warns(UserWarning, match="without a CUDA graph.*: autocast"):
            assert torch.equal(generate(net, *text, uniform, static=static), mixed)
    if torch.cuda.is_available():
        pytest.skip("recording works here")
    with pytest.warns(UserWarning, match="the codes are the same: recording one failed"):
        assert torch.equal(generate(net, *text, uniform, static=static), eager)
    assert torch.equal(generate(net, *text, uniform, static=static), eager) and not static.decoders


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("caption", ["prefix", "keys"])
def test_recorded_codes_are_the_eager_ones(caption: str) -> None:
    net, static = gpt((2, 3, 2), caption).cuda(), StaticDecoding()
    for given in (0, 5):
        text, uniform = [part.cuda() for part in captions(given, 4, 2, 3)], uniforms([1, 2, given], 3 * N).cuda()
        options: dict[str, Any] = {"guidance": 2.5, "top_k": 2, "given": torch.randint(12, (3, given)).cuda()}
        eager = generate(net, *text, uniform, **options)
        assert torch.equal(generate(net, *text, uniform, **options, static=static), eager)
    (found,) = static.decoders.values()
    assert found.graph is not None


def test_samplers_are_alike_by_their_options() -> None:
    assert hash(Sampler(1.0, 2, None, 1.5)) == hash(Sampler(1.0, 2, None, 1.5))
    assert Sampler(1.0, 2, None, 1.5) != Sampler(1.0, 3, None, 1.5)
