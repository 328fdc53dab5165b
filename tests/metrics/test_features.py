"""A CLIP's features and scores against transformers' own computation on a tiny CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPModel

from t2i.metrics.clip_score import CLIPScorer, text_hash
from t2i.models.clip import CLIP
from t2i.text_encoders.clip import CLIPText

TEXT = ["a red circle", "two blue squares", "a red circle and a star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = CLIP(image_size=16, patch_size=8, embed_dim=8, vocab_size=280, context_length=48, width=16, num_heads=2,
                 num_layers=1, text_width=16, text_layers=1, text_heads=2)
    model.prepare([*TEXT, "a photo depicts"])
    found = tmp_path_factory.mktemp("clip") / "hf"
    model.export(found)
    return found


def pictures(n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3), np.uint8))


def test_score_is_the_raw_cosine_of_transformers_behind_the_prefix(folder: Path) -> None:
    held = pictures(3)
    scorer = CLIPScorer(str(folder), prefix="a photo depicts ")
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    pixels = (held.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5  # of the net's own size: nothing is resized
    ids, mask = scorer.tokenizer(["a photo depicts " + caption for caption in TEXT])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, pixel_values=pixels)
        wanted = out.logits_per_image.diagonal() / model.logit_scale.exp()
    images = held.permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(scorer.score(images, TEXT), wanted, rtol=1e-4, atol=1e-5)
    bare = CLIPScorer(str(folder))
    assert float((bare.score(images, TEXT) - wanted).abs().max()) > 1e-4
    assert scorer.score_protocol["prefix"] == "a photo depicts "
    assert scorer.score_protocol["hash"] == scorer.id == bare.id and bare.score_protocol["prefix"] == ""


def test_features_depend_on_neither_batch_nor_autocast(folder: Path) -> None:
    net, held = CLIPScorer(str(folder)), pictures(64)
    together = net(held)
    assert together.shape == (64, net.dim) and together.dtype == torch.float32 and not together.requires_grad
    alone = torch.cat([net(held[i : i + 1]) for i in range(64)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net(held), together)
    torch.testing.assert_close(net(held.numpy()), together)
    assert float((together.norm(dim=1) - 1).abs().min()) > 1e-3  # not normalised
    torch.testing.assert_close(F.normalize(together, dim=1),
                               net.embed_image(held.permute(0, 3, 1, 2).float() / 127.5 - 1))
    told = net.protocol
    assert told["hash"] == net.id and "prefix" not in told and told["size"] == 16


def test_what_is_no_picture_is_refused(folder: Path) -> None:
    net = CLIPScorer(str(folder))
    for wrong in (pictures(2)[..., :1], pictures(2)[0], pictures(2).float()):
        with pytest.raises(ValueError, match=r"uint8 \(n, h, w, 3\) is wanted"):
            net(wrong)


def test_a_text_towers_hash_is_its_clips(folder: Path) -> None:
    scorer, tower = CLIPScorer(str(folder)), CLIPText(str(folder)).tower
    assert text_hash(tower) == scorer.text_id == text_hash(scorer.model) != scorer.id
    with torch.no_grad():
        next(scorer.model.vision_model.parameters()).add_(1.0)
    assert scorer.text_id == text_hash(tower)  # the picture's tower is not in it
    with torch.no_grad():
        next(tower.parameters()).add_(1e-3)
    assert text_hash(tower) != scorer.text_id
