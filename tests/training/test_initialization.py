"""`init=` and `freeze=`: weights alone, what does not fit by name, and runs that go on as if unbroken."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.convert.test_convert import CLIP_NODE, hf, prior, same, save, vqgan  # noqa: F401  # fixtures
from tests.convert.test_llamagen import golden
from tests.convert.test_reader import files  # noqa: F401  # a fixture
from tests.convert.test_taming import TINY, random_state
from tests.convert.test_vq_model import saved
from tests.in_child import config, differing, in_child, result
from tests.tiny import DATA, QUIET, TRAINER
from tests.training.test_resume import in_validation

from t2i.checkpoint import atomic, building, file_format
from t2i.config.compose import ConfigError, compose
from t2i.convert.convert import convert, export
from t2i.convert.dfgan import read_dfgan
from t2i.convert.reader import read_text_encoder
from t2i.convert.tokenizers import load_tokenizer
from t2i.models.dfgan import DFGAN
from t2i.nets.dfgan import DFDiscriminator, DFGenerator
from t2i.training import train
from t2i.training.initialization import freeze, start_from

DECODER = "tokenizer.autoencoder.decoder"
LONG = ["model.adaptive_weight=false", f"freeze=[{DECODER}]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a run of four steps, with averages."""
    folder = tmp_path_factory.mktemp("trained")
    train.run(config(folder, "name=first", "trainer.max_steps=4", "seed=3"))
    return folder / "runs/first/last.ckpt"


def model_of(folder: Path, *words: str) -> Any:
    return building.build(config(folder, *words)["model"])


def test_weights_are_taken_and_nothing_else(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = file_format.weights(file_format.read(trained))
    for path in (trained, export(trained, tmp_path / "exported")):
        model = model_of(tmp_path)
        start_from(model, str(path), [])
        found = model.state_dict()
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert f"Starting from {path}: {len(wanted)} of {len(wanted)} weights\n" in capsys.readouterr().out


def test_a_run_starts_anew_from_weights_and_goes_on_bit_equal(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "start.ckpt"
    copy.write_bytes(trained.read_bytes())
    words = [f"init={copy}", *LONG]
    train.run(config(tmp_path, "name=whole", *words))

    def broken() -> None:
        in_validation(8, signal.SIGKILL)
        train.run(config(tmp_path, "name=x", *words))

    assert in_child(broken, tmp_path / "log") == -signal.SIGKILL
    again = config(tmp_path, "name=x", *words)
    copy.unlink()  # what goes on needs it no more
    assert train.run(again)["steps"] == 13
    assert not differing(result(tmp_path / "runs/whole"), result(tmp_path / "runs/x"))
    last = file_format.read(tmp_path / "runs/x/last.ckpt")
    steps = {float(state["step"]) for state in last["optimizer_states"][0]["state"].values()}
    assert last["global_step"] == 13 and steps == {13.0}
    assert last["t2i"]["config"]["init"] == str(copy)
    start = file_format.weights(file_format.read(trained))
    for name, value in last["state_dict"].items():
        if name.startswith(f"{DECODER}."):
            assert torch.equal(value, start[name]), name
    moved = [name for name in last["state_dict"] if name.startswith("tokenizer.autoencoder.encoder")]
    assert any(not torch.equal(last["state_dict"][name], start[name]) for name in moved)
    with pytest.raises(ValueError, match=r"init: \S+start\.ckpt -> \S+last\.ckpt"):
        train.run(config(tmp_path, "name=x", f"init={trained}", *LONG))
    with pytest.raises(ValueError, match=r"freeze: \['tokenizer\.autoencoder\.decoder'\] -> \[\]"):
        train.run(config(tmp_path, "name=x", words[0], LONG[0]))


def test_what_does_not_fit_is_listed_and_refused_unless_it_is_allowed(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["model.quantizer.codebook_size=7"]
    monkeypatch.setattr(train, "data_module", lambda *_: pytest.fail("data were opened"))
    with pytest.raises(ValueError, match=r"init=\S+ does not fit: tokenizer\.quantizer\.\S+ has shape .* is wanted.*"
                                         r"init_allow=\[tokenizer\.quantizer\] starts without"):
        train.run(config(tmp_path, "name=y", f"init={trained}", *words))
    model = model_of(tmp_path, *words)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    start_from(model, str(trained), ["tokenizer.quantizer"])
    given = file_format.weights(file_format.read(trained))
    left = [name for name, value in model.state_dict().items() if not torch.equal(value, given[name])]
    assert left and all(name.startswith("tokenizer.quantizer.") for name in left)
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in left)
    assert "not taken: tokenizer.quantizer." in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"init_allow=tokenizer\.quantiser: no weight or part has a name that begins so"
                                         r" \(did you mean tokenizer\.quantizer"):
        start_from(model, str(trained), ["tokenizer.quantiser"])
    with pytest.raises(ValueError, match=r"is a vqgan, of which no weight fits CLIP"):
        start_from(building.build(CLIP_NODE), str(trained), ["clip", "tokenizer"])
    (tmp_path / "page.ckpt").write_text("<html>no</html>")
    with pytest.raises(ValueError, match=r"^init=\S+page\.ckpt is a web page"):
        start_from(model, str(tmp_path / "page.ckpt"), [])


def test_a_prior_under_another_tokenizer_is_refused(prior: Path, vqgan: Path, hf: Path, tmp_path: Path) -> None:  # noqa: F811
    words = ["model=prior", "data.image_size=16", f"text_encoder.path={hf}", "model.width=32", "model.num_layers=1",
             "model.num_heads=2"]
    start_from(building.build(compose([*words, f"model.tokenizer.path={vqgan}"])["model"]), str(prior), [])
    held = file_format.read(vqgan)
    held["ema"]["weights"]["tokenizer.quant_conv.bias"] += 1
    atomic.save_atomic(held, tmp_path / "other.ckpt")
    model = building.build(compose([*words, f"model.tokenizer.path={tmp_path / 'other.ckpt'}"])["model"])
    with pytest.raises(ValueError, match=r"fit: the tokenizer of training is another; init_allow=\[tokenizer\]"):
        start_from(model, str(prior), [])
    start_from(model, str(prior), ["tokenizer"])


def test_a_clip_keeps_its_vocabulary(tmp_path: Path) -> None:
    model = building.build(CLIP_NODE)
    model.prepare(["a red circle", "two blue squares"])
    more: dict[str, Any] = {}
    model.on_save_checkpoint(more)
    path = save(model, {"model": CLIP_NODE}, tmp_path / "clip.ckpt", **more)
    again = building.build(CLIP_NODE)
    start_from(again, str(path), [])
    assert again.tokenizer.to_json() == model.tokenizer.to_json()


def test_freezing(tmp_path: Path) -> None:
    model = model_of(tmp_path)
    freeze(model, ["discriminator"])
    assert not any(p.requires_grad for p in model.discriminator.parameters())
    assert all(p.requires_grad for p in model.tokenizer.parameters())
    with pytest.raises(ValueError, match="freeze=discriminato: no parameter has a name that begins so .did you mean"
                                         " discriminator"):
        freeze(model, ["discriminato"])
    with pytest.raises(ValueError, match=r"freeze=\[discriminator,tokenizer\] leaves no parameter of VQGAN to train"):
        freeze(model, ["discriminator", "tokenizer"])
    with pytest.raises(ValueError, match="freeze= leaves nothing to train in .*, which has its own optimiser"):
        train.run(config(tmp_path, "name=x", "freeze=[discriminator]"))
    with pytest.raises(ValueError, match=r"decoder's last layer, where model\.adaptive_weight=true"):
        train.run(config(tmp_path, "name=y", f"freeze=[{DECODER}]"))


def test_what_does_not_go_together(trained: Path, tmp_path: Path) -> None:
    cases = {("model=vqgan", f"init={trained}", f"resume={trained}"): "give one of the two",
             ("model=vqgan", "init_allow=[tokenizer]"): r"init_allow=\['tokenizer'\] says what need not fit init=",
             ("model=vqgan", "init=none.ckpt"): r"init=none\.ckpt: no such file or folder",
             ("model=vqgan", "init=[a]"): "init=",
             ("model=vqgan", "freeze=gpt"): "freeze=gpt: a list of names",
             ("experiments=quickstart", f"init={trained}"): "is one stage's: give it to one of experiments=quickstart/"}
    for words, message in cases.items():
        with pytest.raises(ValueError, match=message):
            compose([*words, f"paths.runs={tmp_path}"])


def test_a_run_of_before_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its config.json knows no such keys."""
    train.run(config(tmp_path, "name=x", "trainer.max_steps=2"))
    path = tmp_path / "runs/x/config.json"
    before = {key: value for key, value in json.loads(path.read_text()).items()
              if key not in ("init", "init_allow", "freeze")}
    path.write_text(json.dumps(before))
    train.run(config(tmp_path, "name=x", "trainer.max_steps=2"))
    assert "is finished (2 steps)" in capsys.readouterr().out


def starting(node: dict[str, Any]) -> Any:
    """A VQGAN around a tokenizer's nets, without a discriminator."""
    parts = {key: node[key] for key in ("autoencoder", "quantizer", "image_size")}
    return building.build({"_target_": "t2i.models.vqgan.VQGAN", "max_steps": 1, **parts})


@pytest.mark.parametrize("system", ["taming", "llamagen", "diffusers"])
def test_a_vqgan_starts_from_other_projects_tokenizers(system: str, tmp_path: Path) -> None:
    path: Path = tmp_path / "file.ckpt"
    if system == "taming":
        torch.save({"state_dict": random_state(*TINY)}, path)
    elif system == "llamagen":
        torch.save({"model": golden()[0]}, path)
    else:
        path = export(saved(tmp_path), tmp_path / "folder", format="diffusers")
    wanted = load_tokenizer(path)
    model = starting(dict(wanted.config or {}))
    start_from(model, str(path), [])
    assert same(model.tokenizer, wanted)
    again = starting(dict(wanted.config or {}))
    start_from(again, str(convert(path, tmp_path / "ours.safetensors")), [])  # a tokenizer by itself
    assert same(again.tokenizer, wanted)


def test_a_dfgan_starts_from_the_published_layout(files: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    path = files["state_epoch_1220.pth"]
    encoder = read_text_encoder(files["text_encoder200.pth"], files["captions_DAMSM.pickle"])
    wanted = read_dfgan(path, encoder)

    def made() -> Any:
        return DFGAN(DFGenerator(16, 2, 4, 8), DFDiscriminator(16, 2, 8), encoder, 1, text_dim=8, projection="none")

    start_from(model := made(), str(path), [])
    assert same(model, wanted)
    held = torch.load(path, weights_only=True)["model"]
    torch.save({"netG": held["netG"]}, tmp_path / "netG.pth")
    with pytest.raises(ValueError, match=r"fit: missing discriminator\..*init_allow=\[discriminator"):
        start_from(made(), str(tmp_path / "netG.pth"), [])
    start_from(made(), str(tmp_path / "netG.pth"), ["discriminator"])
    with pytest.raises(ValueError, match=r"is a DF-GAN, of which no weight fits CLIP"):
        start_from(building.build(CLIP_NODE), str(path), [])
    with pytest.raises(ValueError, match=r"is a text encoder of DAMSM.*and none that a run starts"):
        start_from(made(), str(files["text_encoder200.pth"]), [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"^init=\S+empty is a folder without weights that are read"):
        start_from(made(), str(tmp_path / "empty"), [])


def test_finetuning_takes_sizes_tokenizer_and_text_encoder_from_its_start(
    prior: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]  # noqa: F811
) -> None:
    start = tmp_path / "base"
    start.mkdir()
    (start / "last.ckpt").write_bytes(prior.read_bytes())
    atomic.write_text(start / "config.json", json.dumps(file_format.read(prior)["t2i"]["config"]))
    words = ["experiments=finetune", "data=shapes", *DATA[1:], *TRAINER, *QUIET, f"paths.runs={tmp_path / 'runs'}",
             f"paths.cache={tmp_path / 'cache'}", "trainer.max_steps=4", "model.code_dropout=0.0"]
    for path in (start / "last.ckpt", export(prior, tmp_path / "exported")):
        model = compose([*words, f"init={path}"])["model"]
        assert (model["width"], model["num_layers"], model["num_heads"]) == (32, 1, 2)
    result = train.run(compose([*words, f"init={start / 'last.ckpt'}"]))
    before, after = result["before"]["val/loss"], result["metrics"]["val/loss"]
    assert before != after
    assert f"| val/loss | {before:.4g} | {after:.4g} |" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"of which no weight fits Prior \(its model had model\.width=32\)"):
        train.run(compose([*words, f"init={start / 'last.ckpt'}", "model.width=16", "name=other"]))


def test_finetuning_says_what_its_start_lacks(prior: Path, vqgan: Path, tmp_path: Path) -> None:  # noqa: F811
    alone, words = tmp_path / "alone" / "last.ckpt", ["experiments=finetune", "data=shapes"]
    alone.parent.mkdir()
    alone.write_bytes(prior.read_bytes())
    with pytest.raises(ConfigError, match=(r"^init=\S+: there is no config\.json beside it or in it that can be read,"
                                           r" for .*model\.width, .*: copy it from the run's folder, or give all")):
        compose([*words, f"init={alone}"])
    given = ["model.width=32", "model.num_layers=1", "model.num_heads=2", "model.caption=prefix",
             "model.caption_heads=false", "model.word_triples=true", "model.code_dropout=0.0", "data.image_size=16"]
    assert compose([*words, f"init={alone}", *given])["model"]["width"] == 32
    with pytest.raises(ValueError, match=r"^text_encoder\.path=\S+ is a vqgan, which carries no text_encoder; a p"):
        train.run(compose([*words, *given, f"init={vqgan}", f"paths.runs={tmp_path / 'runs'}", "trainer=cpu"]))
