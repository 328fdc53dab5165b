"""Guides of every kind from tiny random models in the formats in which they are published."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
)

from t2i.generation.clip_guided.clip_models.base import same_weights
from t2i.generation.clip_guided.clip_models.clip import TransformersCLIP
from t2i.generation.clip_guided.clip_models.loading import load_clip_models
from t2i.generation.clip_guided.clip_models.multilingual import PROBES, MultilingualCLIP, agreement
from t2i.metrics.clip_score import CLIPScorer
from t2i.text_encoders.clip_folder import SPECIAL, save_folder, train_tokenizer
from t2i.types import ClipModel

TEXTS = ["a red circle", "two blue stars", "a portrait of an old man"]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SIZE, DIM, WIDTH = 16, 24, 32


def clip_folder(path: Path, seed: int = 0, dim: int = DIM, size: int = SIZE) -> Path:
    """A random transformers CLIP, whose weights are large enough for texts to differ."""
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(PROBES, 320)
    start, end, pad = range(len(SPECIAL))
    tower = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 40,
                     "bos_token_id": start, "eos_token_id": end, "pad_token_id": pad},
        vision_config={**tower, "image_size": size, "patch_size": 8},
        projection_dim=dim,
    )  # fmt: skip
    model = CLIPModel(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 1.0 if "embedding" in name else 0.3)
    save_folder(model, tokenizer.to_str(), path, MEAN, STD)
    return path


def sbert_folder(path: Path, clip: Path, fitted: bool = True, dim: int = DIM, binary: bool = False) -> Path:
    """A random multilingual text tower; `fitted`: its dense layer takes the probes to where the CLIP has them."""
    torch.manual_seed(7)
    transformer, pooling, dense = (path / name for name in ("0_Transformer", "1_Pooling", "2_Dense"))
    for part in (transformer, pooling, dense):
        part.mkdir(parents=True)
    words = sorted({word for text in (*PROBES, *TEXTS) for word in text.split()} | {"أحمر", "دائرة"})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    (transformer / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    tokenizer = BertTokenizer(str(transformer / "vocab.txt"), do_lower_case=False)
    tokenizer.save_pretrained(transformer)
    tower = DistilBertModel(
        DistilBertConfig(vocab_size=len(tokenizer), max_position_embeddings=40, dim=48, n_layers=2, n_heads=2,
                         hidden_dim=64)
    ).eval()  # fmt: skip
    tower.save_pretrained(transformer)
    layer = torch.nn.Linear(48, dim, bias=False)
    if fitted:
        tokens = AutoTokenizer.from_pretrained(transformer)(list(PROBES), padding=True, return_tensors="pt")
        with torch.no_grad():
            states = tower(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            mean = (states * mask).sum(1) / mask.sum(1)
            wanted = TransformersCLIP(str(clip)).embed_text(list(PROBES)).double()
            layer.weight.copy_(torch.linalg.lstsq(mean.double(), wanted, driver="gelsd").solution.T)
    save_file({"linear.weight": layer.weight.detach().contiguous()}, dense / "model.safetensors")
    if binary:
        for part in (transformer, dense):
            torch.save(load_file(part / "model.safetensors"), part / "pytorch_model.bin")
            (part / "model.safetensors").unlink()
    write(transformer / "sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    write(pooling / "config.json", {"word_embedding_dimension": 48, "pooling_mode_cls_token": False,
                                    "pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": False})
    write(dense / "config.json", {"in_features": 48, "out_features": dim, "bias": False,
                                  "activation_function": "torch.nn.modules.linear.Identity"})
    write(path / "modules.json", [
        {"idx": i, "name": str(i), "path": part.name, "type": f"sentence_transformers.models.{part.name[2:]}"}
        for i, part in enumerate((transformer, pooling, dense))
    ])  # fmt: skip
    return path


def write(path: Path, held: object) -> None:
    path.write_text(json.dumps(held), encoding="utf-8")


def change(path: Path, **changes: object) -> None:
    write(path, {**json.loads(path.read_text(encoding="utf-8")), **changes})


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clip_folder(tmp_path_factory.mktemp("guides") / "clip")


@pytest.fixture(scope="module")
def sbert(tmp_path_factory, clip):
    return sbert_folder(tmp_path_factory.mktemp("guides") / "sbert", clip)


@pytest.fixture
def copied(tmp_path, sbert):
    return Path(shutil.copytree(sbert, tmp_path / "sbert"))


def pictures(count: int = 2, size: int = SIZE) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def normalised(views: torch.Tensor, mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD) -> torch.Tensor:
    return ((views + 1) / 2 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def keeps_the_contract(clip_model: ClipModel, parameters: list[torch.nn.Parameter]) -> None:
    assert isinstance(clip_model, ClipModel)
    views = pictures().requires_grad_()
    image, text = clip_model.embed_image(views), clip_model.embed_text(TEXTS)
    for found in (image, text):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(len(found)))
    assert not text.requires_grad
    assert (text[0] - text[1]).abs().max() > 1e-3
    (image @ text.T).sum().backward()
    assert views.grad is not None and bool((views.grad.abs().amax((1, 2, 3)) > 0).all())
    assert parameters and all(p.grad is None and not p.requires_grad for p in parameters)
    assert len(clip_model.hash()) == 16 and int(clip_model.hash(), 16) >= 0
    clip_model.to("cpu")
    with torch.autocast("cpu", torch.bfloat16):  # of the drawing's, which is not the guide's
        torch.testing.assert_close(clip_model.embed_image(pictures()), image.detach())
        torch.testing.assert_close(clip_model.embed_text(TEXTS), text)
    with pytest.raises(ValueError, match=rf"views of 8 x {SIZE} pixels: this CLIP takes {SIZE} x {SIZE}"):
        clip_model.embed_image(torch.zeros(1, 3, 8, SIZE))
    with pytest.raises(ValueError, match=r"text=\[\]"):
        clip_model.embed_text([])


def test_transformers_clip_keeps_the_contract(clip):
    clip_model = TransformersCLIP(str(clip))
    keeps_the_contract(clip_model, list(clip_model.model.parameters()))


def test_transformers_clip_equals_a_direct_computation(clip):
    clip_model, model = TransformersCLIP(str(clip)), CLIPModel.from_pretrained(clip).eval()
    with torch.no_grad():
        image = model.get_image_features(pixel_values=normalised(pictures())).pooler_output
        tokens = AutoTokenizer.from_pretrained(clip)(TEXTS, padding=True, return_tensors="pt")
        text = model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(clip_model.embed_image(pictures()), F.normalize(image, dim=-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(clip_model.embed_text(TEXTS), F.normalize(text, dim=-1), atol=1e-5, rtol=0)


def test_bf16_is_close_and_still_differentiable(clip):
    exact, rough = TransformersCLIP(str(clip)), TransformersCLIP(str(clip), "bf16-mixed")
    views = pictures().requires_grad_()
    found = rough.embed_image(views)
    assert found.dtype == torch.float32
    assert (found * exact.embed_image(pictures())).sum(-1).min() > 0.99
    assert not torch.equal(found, exact.embed_image(pictures()))
    found.sum().backward()
    assert views.grad.dtype == torch.float32 and bool(torch.isfinite(views.grad).all())
    torch.testing.assert_close(rough.embed_text(TEXTS), exact.embed_text(TEXTS))
    with pytest.raises(ValueError, match="precision='fp16': one of 32-true, bf16-mixed"):
        TransformersCLIP(str(clip), "fp16")


def test_the_same_weights_are_known_again(clip, sbert, tmp_path):
    clip_model, other = TransformersCLIP(str(clip)), TransformersCLIP(str(clip_folder(tmp_path / "other", seed=1)))
    moved = TransformersCLIP(str(shutil.copytree(clip, tmp_path / "copy")), "bf16-mixed")
    assert clip_model.hash() == moved.hash() != other.hash()
    scorer = CLIPScorer(str(clip))
    assert clip_model.hash().startswith(scorer.id)
    assert same_weights(clip_model, moved) and same_weights(clip_model, scorer) and same_weights(scorer, clip_model)
    assert not same_weights(clip_model, other) and not same_weights(other, scorer)
    multilingual = MultilingualCLIP(str(sbert), str(clip), "bf16-mixed")
    assert multilingual.hash() != clip_model.hash()
    assert same_weights(multilingual, scorer) and not same_weights(multilingual, other)
    assert not same_weights(clip_model, TransformersCLIP(str(clip_folder(tmp_path / "large", size=32))))


def test_what_is_no_folder_of_a_clip_is_refused_by_name(clip, sbert, tmp_path):
    with pytest.raises(ValueError, match="'nowhere/clip': path='nowhere/clip': no folder of that name"):
        load_clip_models(["nowhere/clip"])
    (tmp_path / "last.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a file; a transformers CLIP is a folder"):
        load_clip_models([str(tmp_path / "last.ckpt")])
    with pytest.raises(ValueError, match="a text tower in that format is named sbert:FOLDER@CLIP_FOLDER"):
        load_clip_models([str(sbert)])
    with pytest.raises(ValueError, match="is the folder of a model of type 'distilbert'; 'clip' is wanted"):
        load_clip_models([str(sbert / "0_Transformer")])
    shutil.copytree(clip, tmp_path / "run" / "hf")
    with pytest.raises(ValueError, match="is a run's folder; its CLIP is .*hf"):
        load_clip_models([str(tmp_path / "run")])
    shutil.copytree(clip, tmp_path / "st" / "0_CLIPModel")
    write(tmp_path / "st" / "modules.json", [])
    with pytest.raises(ValueError, match="its CLIP is .*0_CLIPModel"):
        load_clip_models([str(tmp_path / "st")])


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def hostile(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Evil()}, protocol=2))


def page(folder: Path) -> None:
    without_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"<!DOCTYPE html>")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


@pytest.mark.parametrize(
    "spoil, says",
    [
        (without_weights, "no weights: model.safetensors or pytorch_model.bin"),
        (hostile, "pytorch_model.bin was written by another program: reading it would need print"),
        (page, "pytorch_model.bin is a web page"),
        (cut, "model.safetensors is a damaged safetensors file"),
        (lambda folder: change(folder / "config.json", projection_dim=7), "its config and its weights do not fit"),
        (lambda folder: change(folder / "config.json", projection_dim="x"), "its config and its weights do not fit"),
        (lambda folder: change(folder / "config.json", model_type="siglip"), "a model of type 'siglip'"),
        (lambda folder: write(folder / "preprocessor_config.json", {}), "does not tell image_mean and image_std"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "_config.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "it has no vocabulary: tokenizer.json is wanted"),
        (lambda folder: os.truncate(folder / "tokenizer.json", 300), "tokenizer.json cannot be read"),
    ],
)
def test_a_spoilt_folder_of_a_clip_is_refused_by_name(clip, tmp_path, capsys, spoil, says):
    folder = Path(shutil.copytree(clip, tmp_path / "spoilt"))
    spoil(folder)
    with pytest.raises(ValueError, match=f"the CLIP '{folder}': .*{says}"):
        load_clip_models([str(folder)])
    assert "executed" not in capsys.readouterr().out


def test_weights_as_torch_wrote_them_are_the_same_clip(clip, tmp_path):
    folder = Path(shutil.copytree(clip, tmp_path / "binary"))
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    without_weights(folder)
    assert TransformersCLIP(str(folder)).hash() == TransformersCLIP(str(clip)).hash()


def test_several_guides_open_in_their_order_and_all_faults_are_told(clip, sbert, tmp_path):
    other = clip_folder(tmp_path / "a@b:c", seed=1)
    specs = [str(clip), str(other), f"sbert:{sbert}@{clip}"]
    assert [clip_model.name for clip_model in load_clip_models(specs, precision="bf16-mixed")] == specs
    away = Path(shutil.copytree(sbert, tmp_path / "s@t"))
    assert load_clip_models([f"sbert:{away}@{clip}"])[0].image_size == SIZE
    with pytest.raises(ValueError) as told:
        load_clip_models([str(clip), str(clip), "sbret:x@y", "sbert:x", "gone"])
    for part in (f"{str(clip)!r} is named 2 times", "'sbret' is no kind of CLIP; 'sbert' is near",
                 "'sbert:x': the form is sbert:FOLDER@CLIP", "'gone': path='gone'"):
        assert part in str(told.value)
    for specs in ([], "one"):
        with pytest.raises(ValueError, match="a list of at least one CLIP"):
            load_clip_models(specs)


@pytest.mark.parametrize("binary", [False, True])
def test_multilingual_tower_with_its_clip(clip, tmp_path, binary):
    folder = sbert_folder(tmp_path / "sbert", clip, binary=binary)
    clip_model = MultilingualCLIP(str(folder), str(clip))
    keeps_the_contract(clip_model, [*clip_model.text.tower.parameters(), *clip_model.text.dense.parameters(),
                               *clip_model.clip.model.parameters()])
    assert torch.equal(clip_model.embed_image(pictures()), TransformersCLIP(str(clip)).embed_image(pictures()))
    probes = list(PROBES)
    found = agreement(clip_model.embed_text(probes), clip_model.clip.embed_text(probes))
    assert found.equal > 0.99 and found.belongs
    arabic = clip_model.embed_text(["دائرة أحمر", "a red circle"])
    assert torch.isfinite(arabic).all()
    assert clip_model.name == f"sbert:{folder}@{clip}"


def test_multilingual_tower_equals_a_direct_computation(clip, sbert):
    tower, folder = DistilBertModel.from_pretrained(sbert / "0_Transformer").eval(), sbert / "0_Transformer"
    clip_model = MultilingualCLIP(str(sbert), str(clip))
    weight = load_file(sbert / "2_Dense" / "model.safetensors")["linear.weight"]
    for i, text in enumerate(TEXTS):  # one by one, without any padding
        tokens = AutoTokenizer.from_pretrained(folder)([text], return_tensors="pt")
        with torch.no_grad():
            states = tower(tokens["input_ids"]).last_hidden_state
        expected = F.normalize(states.mean(1) @ weight.T, dim=-1)
        torch.testing.assert_close(clip_model.embed_text(TEXTS)[i : i + 1], expected, atol=1e-5, rtol=0)


def test_a_pair_of_different_spaces_is_refused_with_its_figures(clip, sbert, tmp_path):
    other = clip_folder(tmp_path / "other", seed=1)
    says = r"different spaces.* is -?0\.\d{3} for equal sentences and -?0\.\d{3} for unequal ones.*sbert_unchecked"
    with pytest.raises(ValueError, match=says):
        MultilingualCLIP(str(sbert), str(other))
    random = sbert_folder(tmp_path / "random", clip, fitted=False)
    with pytest.raises(ValueError, match=says):
        load_clip_models([f"sbert:{random}@{clip}"])
    assert load_clip_models([f"sbert_unchecked:{sbert}@{other}"])[0].name == f"sbert_unchecked:{sbert}@{other}"
    narrow = clip_folder(tmp_path / "narrow", dim=8)
    for check in (True, False):
        with pytest.raises(ValueError, match=f"embeddings of {DIM} numbers, the CLIP .*narrow of 8"):
            MultilingualCLIP(str(sbert), str(narrow), check_pair=check)


def test_towers_that_share_their_mean_alone_do_not_belong():
    torch.manual_seed(0)
    middle = torch.randn(512) * 3
    clip, other = (F.normalize(middle + torch.randn(len(PROBES), 512), dim=-1) for _ in range(2))
    found = agreement(other, clip)
    assert found.equal > 0.8 and not found.belongs
    close = agreement(F.normalize(clip + 0.01 * torch.randn_like(clip), dim=-1), clip)
    assert close.equal > 0.9 and close.belongs
    same = F.normalize(middle, dim=-1).expand(len(PROBES), -1)
    assert not agreement(same, same).belongs


def test_long_texts_are_cut_with_a_warning(clip, sbert):
    clip_model = MultilingualCLIP(str(sbert), str(clip))
    with pytest.warns(UserWarning, match="has 62 tokens, the text tower .* takes 32"):
        clip_model.embed_text([" ".join(["a red circle"] * 20)])


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


def test_faults_of_a_multilingual_folder_are_named(clip, copied, capsys):
    def refused(match: str) -> None:
        with pytest.raises(ValueError, match=match):
            MultilingualCLIP(str(copied), str(clip))

    dense, transformer, pooling = copied / "2_Dense", copied / "0_Transformer", copied / "1_Pooling"
    kept = (dense / "model.safetensors").read_bytes()
    (dense / "model.safetensors").unlink()
    refused("2_Dense has no weights: model.safetensors or pytorch_model.bin")
    (dense / "pytorch_model.bin").write_bytes(pickle.dumps({"linear.weight": Evil()}, protocol=2))
    refused("print")
    assert "executed" not in capsys.readouterr().out
    (dense / "pytorch_model.bin").write_bytes(b"<!DOCTYPE html>")
    refused("is a web page")
    (dense / "model.safetensors").write_bytes(kept[:-8])
    refused("damaged safetensors file")
    save_file({"linear.weight": torch.zeros(DIM, 40)}, dense / "model.safetensors")
    refused(r"weight has shape \(24, 40\), \(24, 48\) is wanted")
    (dense / "model.safetensors").write_bytes(kept)
    change(dense / "config.json", activation_function="os.system")
    refused("activation_function is 'system', allowed are Identity, Tanh")
    change(dense / "config.json", activation_function="torch.nn.modules.linear.Identity", in_features=40)
    refused("in_features is 40, allowed is 48")
    change(dense / "config.json", in_features=48)
    change(pooling / "config.json", pooling_mode_mean_tokens=False, pooling_mode_cls_token=True)
    refused("the pooling is pooling_mode_cls_token; allowed is the mean")
    change(pooling / "config.json", pooling_mode_mean_tokens=True, pooling_mode_cls_token=False)
    change(transformer / "config.json", model_type="bert")
    refused("model_type is 'bert', allowed is 'distilbert'")
    change(transformer / "config.json", model_type="distilbert", vocab_size=5)
    refused("embeddings.word_embeddings.weight has shape")
    change(transformer / "config.json", vocab_size=len(AutoTokenizer.from_pretrained(transformer)))
    MultilingualCLIP(str(copied), str(clip))
    for name in ("tokenizer.json", "vocab.txt"):
        (transformer / name).unlink(missing_ok=True)
    refused("has no tokenizer")
    modules = copied / "modules.json"
    listed = json.loads(modules.read_text(encoding="utf-8"))
    write(modules, [{**listed[0], "path": "../elsewhere"}, *listed[1:]])
    refused("leads out of the folder")
    write(modules, [{"type": "sentence_transformers.models.CLIPModel", "path": ""}])
    refused("is a chain of CLIPModel; allowed is Transformer, Pooling, Dense")
    write(modules, {})
    refused("is a chain of nothing")
    modules.unlink()
    refused("modules.json does not exist")
    shutil.rmtree(copied)
    refused("does not exist")


def test_the_tower_may_lie_in_the_folder_itself_under_a_task_models_names(clip, copied, sbert):
    inner = copied / "0_Transformer"
    state = {f"distilbert.{name}": value for name, value in load_file(inner / "model.safetensors").items()}
    torch.save({**state, "distilbert.embeddings.position_ids": torch.arange(40)[None]}, copied / "pytorch_model.bin")
    for name in ("config.json", "vocab.txt", "sentence_bert_config.json"):  # no tokenizer.json: an old folder
        shutil.move(inner / name, copied / name)
    shutil.rmtree(inner)
    listed = json.loads((copied / "modules.json").read_text(encoding="utf-8"))
    write(copied / "modules.json", [{**listed[0], "path": ""}, *listed[1:]])
    found, before = (MultilingualCLIP(str(folder), str(clip)) for folder in (copied, sbert))
    torch.testing.assert_close(found.embed_text(TEXTS), before.embed_text(TEXTS))
    assert found.hash() == before.hash()
    with pytest.raises(ValueError, match="is a sentence-transformers folder, not a CLIP's"):
        TransformersCLIP(str(copied))


def test_a_missing_file_of_open_clip_is_named():
    with pytest.raises(ValueError, match="'open_clip:ViT-B-32@gone.safetensors': file='gone.safetensors' does not"):
        load_clip_models(["open_clip:ViT-B-32@gone.safetensors"])


@pytest.fixture
def tiny(tmp_path):
    """A tiny model in open_clip's list, and a file of random weights for it."""
    write(tmp_path / "tiny-t2i.json", {
        "embed_dim": DIM,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 64, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    })  # fmt: skip
    open_clip.add_model_config(tmp_path / "tiny-t2i.json")
    torch.manual_seed(3)
    model = open_clip.create_model("tiny-t2i").eval()
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 0.2)
    file = tmp_path / "weights" / "open_clip_model.safetensors"
    file.parent.mkdir()
    save_file(model.state_dict(), file)
    return model, file


def test_open_clip_keeps_the_contract_and_equals_the_library(tiny):
    model, file = tiny
    (clip_model,) = load_clip_models([f"open_clip:tiny-t2i@{file}"])
    keeps_the_contract(clip_model, list(clip_model.model.parameters()))
    with torch.no_grad():
        image = model.encode_image(normalised(pictures(), clip_model.mean, clip_model.std), normalize=True)
        text = model.encode_text(open_clip.get_tokenizer("tiny-t2i")(TEXTS), normalize=True)
    torch.testing.assert_close(clip_model.embed_image(pictures()), image, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip_model.embed_text(TEXTS), text, atol=1e-5, rtol=0)
    (rough,) = load_clip_models([f"open_clip:tiny-t2i@{file}"], precision="bf16-mixed")
    assert (rough.embed_image(pictures()) * image).sum(-1).min() > 0.99
    assert same_weights(clip_model, rough)
    with pytest.warns(UserWarning, match="has 60 tokens, open_clip:.* takes 18"):
        clip_model.embed_text(["a red circle " * 20])


def test_open_clip_reads_training_checkpoints_and_the_config_beside(tiny):
    model, file = tiny
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 1, "state_dict": state}, file.with_name("epoch_1.pt"))
    (clip_model,) = load_clip_models([f"open_clip:tiny-t2i@{file.with_name('epoch_1.pt')}"])
    assert clip_model.hash() == load_clip_models([f"open_clip:tiny-t2i@{file}"])[0].hash()
    beside = file.with_name("open_clip_config.json")
    write(beside, {"model_cfg": {}, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
    assert load_clip_models([f"open_clip:tiny-t2i@{file}"])[0].mean == (0.5,) * 3
    write(beside, {"model_cfg": {"quick_gelu": True}})
    with pytest.raises(ValueError, match="name the model with -quickgelu"):
        load_clip_models([f"open_clip:tiny-t2i@{file}"])


def test_open_clip_refuses_other_files_and_names(tiny, capsys):
    model, file = tiny
    bad = file.with_name("bad.pt")

    def refused(match: str, name: str = "tiny-t2i") -> None:
        with pytest.raises(ValueError, match=match):
            load_clip_models([f"open_clip:{name}@{bad}"])

    bad.write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    refused("print")
    assert "executed" not in capsys.readouterr().out
    torch.jit.script(torch.nn.Linear(2, 2)).save(bad)
    refused("TorchScript archive")
    bad.write_bytes(b"<html>")
    refused("is a web page")
    state = dict(model.state_dict())
    torch.save({**state, "more": torch.zeros(1)}, bad)
    refused("unexpected more")
    del state["visual.proj"]
    torch.save(state, bad)
    refused("missing visual.proj")
    refused("model='ViT-B32' is none of open_clip's .* near are ViT-B-32", "ViT-B32")
    refused("hub", "xlm-roberta-base-ViT-B-32")
    refused("none of open_clip's", "hf-hub:someone/model")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        load_clip_models([f"open_clip:tiny-t2i@{file.parent}"])
