"""Heads of codes with parts: what each part is told of the parts before it and of the caption."""

from __future__ import annotations

import pytest
import torch

from t2i.nets.factorised_head import FactorisedHead, Heard
from t2i.nets.gpt import GPT

FACTORS, WIDTH = (3, 4, 5), 16


@pytest.fixture
def head() -> FactorisedHead:
    torch.manual_seed(0)
    made = FactorisedHead(FACTORS, WIDTH, 2)
    for reader in made.readers:
        torch.nn.init.normal_(reader.caption.attention_out.weight, std=0.3)
    return made.eval()


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, text = torch.randn(2, 6, WIDTH, generator=generator), torch.randn(2, 4, WIDTH, generator=generator)
    known = torch.stack([torch.randint(k, (2, 6), generator=generator) for k in FACTORS], -1)
    return x, text, known, torch.tensor([[True, True, True, False], [True, True, False, False]])


@torch.no_grad()
def test_the_first_part_hears_the_transformer_alone_and_later_ones_the_caption_too(head: FactorisedHead) -> None:
    x, text, known, mask = inputs()
    changed = text.clone()
    changed[0, 1] += 1.0
    before, after = head.hear(text, mask), head.hear(changed, mask)
    for i, k in enumerate(FACTORS):
        one, two = head(x, known[..., :i], before), head(x, known[..., :i], after)
        assert one.shape == (2, 6, k) and torch.equal(one[1], two[1])
        assert torch.equal(one[0], two[0]) == (i == 0)


@torch.no_grad()
def test_which_word_is_heard_depends_on_the_parts_before(head: FactorisedHead) -> None:
    """The query is of the parts before: with every outline another attention, and so another change by the caption."""
    x, text, known, mask = inputs()
    reader, other = head.readers[0], known.clone()
    other[..., 0] = (known[..., 0] + 1) % FACTORS[0]
    heard = head.hear(text, mask)
    told = [reader.caption(x + reader.told[0](each[..., 0]), heard.keys[0], heard.values[0], heard.mask)
            for each in (known, other)]
    assert (told[0] - told[1]).abs().max() > 1e-3


@torch.no_grad()
def test_padding_is_not_heard(head: FactorisedHead) -> None:
    x, text, known, mask = inputs()
    other = torch.where(mask[..., None], text, torch.full_like(text, 9.0))
    for i in (1, 2):
        wanted = head(x[1:], known[1:, :, :i], head.hear(text[1:, :2], mask[1:, :2]))
        torch.testing.assert_close(head(x, known[..., :i], head.hear(other, mask))[1:], wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_caption_is_heard_as_torchs_attention_computes_it(head: FactorisedHead) -> None:
    x, text, _, mask = inputs()
    part = head.readers[1].caption
    k, v = part.of_text(text)
    q = part.norm_q(part.query(part.norm(x)).view(2, 6, 2, 8))
    scores = torch.einsum("bnhd,bhtd->bhnt", q, k) / 8**0.5
    weights = scores.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    wanted = part.attention_out(torch.einsum("bhnt,bhtd->bnhd", weights, v).reshape(2, 6, WIDTH))
    heard = head.hear(text, mask)
    torch.testing.assert_close(part(x, heard.keys[1], heard.values[1], heard.mask), wanted, atol=1e-5, rtol=1e-5)


def test_at_the_start_the_caption_is_not_heard_and_codes_of_one_part_have_no_such_head() -> None:
    made = GPT(FACTORS, (2, 3), 5, 4, WIDTH, 1, 2, caption_heads=True)
    assert all(not bool(reader.caption.attention_out.weight.any()) for reader in made.predict.readers)
    plain = GPT((12,), (2, 3), 5, 4, WIDTH, 1, 2, caption_heads=True)
    heard = plain.predict.hear(torch.zeros(1, 4, WIDTH), torch.ones(1, 4, dtype=torch.bool))
    assert heard.keys == [] and len(plain.predict.readers) == 0


@torch.no_grad()
def test_heads_hear_the_caption_only_where_they_are_asked_to() -> None:
    x, text, known, mask = inputs()
    deaf = FactorisedHead(FACTORS, WIDTH)
    assert not any("caption" in name for name, _ in deaf.named_parameters())
    for i in range(3):
        heard = [deaf(x, known[..., :i], deaf.hear(states, mask)) for states in (text, text + 1)]
        assert torch.equal(*heard)
    assert deaf.hear(text, mask).keys == []


def test_what_is_heard_is_copied_into_memory_of_its_own(head: FactorisedHead) -> None:
    _, text, _, mask = inputs()
    one, two = head.hear(text, mask), head.hear(text + 1, mask)
    kept = one.clone()
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(kept.tensors(), one.tensors(), strict=True))
    place = [t.data_ptr() for t in kept.tensors()]
    kept.copy_(two)
    assert [t.data_ptr() for t in kept.tensors()] == place
    assert all(torch.equal(a, b) for a, b in zip(kept.tensors(), two.tensors(), strict=True))
    assert isinstance(one.to(torch.float64), Heard) and one.to(torch.float64).mask.dtype == torch.float64
