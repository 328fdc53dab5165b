"""Switches: a batch in pieces, activations computed again, compiled nets, averaged weights."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from tests import tiny
from torch.utils.data import DataLoader

from t2i.checkpoint import atomic, building, file_format
from t2i.config import quiet
from t2i.config.compose import ConfigError, choices, compose
from t2i.models.base import set_accumulation_and_compile, slice_batch
from t2i.models.clip import CLIP
from t2i.models.prior import Prior
from t2i.models.vqgan import VQGAN
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.gpt import GPT
from t2i.nets.patchgan import PatchGAN
from t2i.nets.recompute import Recomputed, set_checkpointing
from t2i.nets.tokenizer import ImageTokenizer
from t2i.nets.two_colour import TwoColourAutoencoder
from t2i.quantizers.fsq import FSQ
from t2i.quantizers.vq import VQ
from t2i.training import train
from t2i.training.callbacks.checkpointing import RunCheckpoint
from t2i.types import Batch, CodeBatch, TextEmbedding

VQ_WORDS = [*tiny.VQGAN, "model.discriminator_start=0.25"]
PRIOR_WORDS = [*tiny.PRIOR, "model.num_layers=2"]


def config(folder: Path, model: list[str], *more: str, steps: int = 8) -> dict[str, Any]:
    paths = [f"paths.runs={folder / 'runs'}", f"paths.cache={folder / 'cache'}"]
    return compose([*model, *tiny.DATA, *tiny.TRAINER, *tiny.QUIET, *paths, f"trainer.max_steps={steps}", *more])


def held(folder: Path, name: str) -> dict[str, Any]:
    return file_format.read(folder / "runs" / name / "last.ckpt")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Letters:
    """A text encoder: each letter is one state, by its number."""

    dim, pooled_dim, max_length = 6, 6, 8
    table = torch.randn(128, 6, generator=torch.Generator().manual_seed(5))

    def to(self, device: Any) -> Letters:
        return self

    def __call__(self, text: list[str]) -> TextEmbedding:
        longest = max(map(len, text))
        ids = torch.tensor([[ord(c) for c in one.ljust(longest, "\0")] for one in text])
        return TextEmbedding(self.table[ids], ids > 0, self.table[ids[:, 0]])

    states = __call__


def prior(**changes: Any) -> Prior:
    torch.manual_seed(0)
    autoencoder = Autoencoder(8, (1,), 1, (), 4, num_groups=4, patch_size=4, mid_attention=False)
    tokenizer = ImageTokenizer(autoencoder, FSQ([4, 4]), 16)
    sizes = {"width": 16, "num_layers": 2, "num_heads": 2, "warmup_steps": 1, "learning_rate": 0.01}
    model = Prior(tokenizer, Letters(), **{"max_steps": 8, **sizes, **changes})
    for name, parameter in model.gpt.named_parameters():
        if name.endswith(("attention_out.weight", "mlp_out.weight")):  # they start at 0 and would hide all behind them
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def vqgan(norm: str = "none", **changes: Any) -> VQGAN:
    torch.manual_seed(0)
    autoencoder = Autoencoder(8, (1, 2), 1, (1,), 4, num_groups=4, attention_heads=2)
    given = {"discriminator": PatchGAN(channels=8, num_layers=1, norm=norm), "learning_rate": 1e-3,
             "discriminator_start": 0.0, "adaptive_weight": False}
    return VQGAN(autoencoder, VQ(16, 4), image_size=16, max_steps=6, **{**given, **changes})


def pictures(n: int = 4, size: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    made = [torch.rand(size, 3, 16, 16, generator=generator) * 2 - 1 for _ in range(n)]
    return [Batch(image, ["a"] * size, [f"{i}/{j}" for j in range(size)]) for i, image in enumerate(made)]


def codes(n: int = 4, size: int = 6) -> list[CodeBatch]:
    generator = torch.Generator().manual_seed(1)
    text = ["red", "a blue", "two", "a", "up", "green"][:size]
    return [CodeBatch(torch.randint(16, (size, 16), generator=generator), text, [f"{i}/{j}" for j in range(size)])
            for i in range(n)]


class Seen(pl.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        every = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        self.gradients.append(every)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        torch.manual_seed(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.rows.append({name: float(value) for name, value in trainer.logged_metrics.items()})


def fit(model: Any, folder: Path, data: list[Any], **options: Any) -> tuple[pl.Trainer, Seen]:
    quiet.quiet()
    seen = Seen()
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_steps=len(data), max_epochs=-1, logger=False, log_every_n_steps=1,
        num_sanity_val_steps=0, default_root_dir=folder, enable_checkpointing=False, enable_model_summary=False,
        enable_progress_bar=False, use_distributed_sampler=False, callbacks=[seen], **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(data, batch_size=None))
    return trainer, seen


def close(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name} {text}")


# Batches in pieces


def test_pieces_of_a_batch() -> None:
    model = vqgan()
    model.num_micro_batches = 4
    batch = codes(1, size=6)[0]
    shares, keys, at = [], [], []
    for _ in model.each_micro_batch():
        piece = model.slice_micro_batch(batch, 6)[0]
        assert len(piece.ids) == len(piece.text) == len(piece.key) and piece.states is None
        shares.append(model.micro_batch_share)
        keys += piece.key
        at.append((model.is_first_micro_batch, model.is_last_micro_batch))
    assert keys == batch.key and sum(shares) == pytest.approx(1)
    assert at == [(True, False), (False, False), (False, False), (False, True)] and model.micro_batch == 0
    states = CodeBatch(batch.ids, batch.text, batch.key, torch.ones(6, 2, 3), torch.ones(6, 2, dtype=torch.bool))
    assert slice_batch(states, slice(1, 3)).states.shape == (2, 2, 3)
    model.num_micro_batches = 7
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=7: a device's batch has 6 pictures; from 1 to 6"):
        model.slice_micro_batch(batch, 6)


@pytest.mark.parametrize("accumulate", [2, 4, 6])
def test_the_prior_steps_as_with_the_whole_batch(tmp_path: Path, accumulate: int) -> None:
    """Gradients, logged losses and counts; a clipped gradient is that of the batch, and the optimiser steps once."""
    runs = []
    for pieces in (1, accumulate):
        model = prior(caption_dropout=0.5)
        set_accumulation_and_compile(model, pieces, False, 6)
        trainer, seen = fit(model, tmp_path, codes(), gradient_clip_val=0.5)
        assert trainer.global_step == 4 and len(seen.rows) == len(seen.gradients) == 4
        assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4
        runs.append(seen)
    whole, cut = runs
    close(whole.gradients[0], cut.gradients[0])
    assert [row["train/loss"] for row in cut.rows] == pytest.approx([r["train/loss"] for r in whole.rows], rel=1e-3)


@pytest.mark.parametrize("precision", ["fused", "alternating"])
@pytest.mark.parametrize("accumulate", [2, 4])
def test_the_vqgan_steps_as_with_the_whole_batch(
    tmp_path: Path, monkeypatch: Any, accumulate: int, precision: str
) -> None:
    """Without BatchNorm and λ, which see a piece, equal but for rounding."""
    monkeypatch.setattr(VQGAN, "fused", precision == "fused")
    runs = []
    for pieces in (1, accumulate):
        model = vqgan(gradient_clip=None)
        set_accumulation_and_compile(model, pieces, False, 6)
        trainer, seen = fit(model, tmp_path, pictures())
        assert trainer.global_step == 4 and len(seen.gradients) == 8  # two players a batch
        assert {int(state["step"]) for o in trainer.optimizers for state in o.state.values()} == {4}
        runs.append(seen)
    whole, cut = runs
    for at in (0, 1):
        close({k: v for k, v in whole.gradients[at].items() if precision == "fused" or at or "tokenizer" in k},
              {k: v for k, v in cut.gradients[at].items() if precision == "fused" or at or "tokenizer" in k})
    assert whole.rows[0].keys() == cut.rows[0].keys()
    for name, value in whole.rows[0].items():
        assert cut.rows[0][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["vq", "ema"])
def test_a_run_in_pieces_continues_exactly(tmp_path: Path, monkeypatch: Any, quantizer: str) -> None:
    """With BatchNorm and an EMA codebook, which see pieces: interrupted in mid-epoch, the weights are the same."""
    words = [*VQ_WORDS, f"model/quantizer={quantizer}", "trainer.accumulate_grad_batches=3"]
    train.run(config(tmp_path, words, "name=whole"))
    original = RunCheckpoint.on_train_batch_end

    def interrupting(self: RunCheckpoint, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        original(self, trainer, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(RunCheckpoint, "on_train_batch_end", interrupting)
        with pytest.raises(SystemExit):
            train.run(config(tmp_path, words, "name=broken"))
    assert held(tmp_path, "broken")["global_step"] == 5
    train.run(config(tmp_path, words, "name=broken"))
    assert same(held(tmp_path, "whole")["state_dict"], held(tmp_path, "broken")["state_dict"])
    if quantizer == "ema":  # as documented: it moves once a piece
        assert int(held(tmp_path, "whole")["state_dict"]["tokenizer.quantizer.step"]) == 3 * 8


def test_a_piece_that_is_not_finite_stops_before_any_weight_moves(tmp_path: Path) -> None:
    model, data = vqgan(), pictures()
    data[0].image[5] = torch.nan  # in the last piece
    set_accumulation_and_compile(model, 3, False, 6)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ArithmeticError, match=r"at step 0: .*The batch: 0/4, 0/5\."):
        fit(model, tmp_path, data)
    assert same(before, model.state_dict())


def test_pieces_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="trainer.accumulate_grad_batches=2: CLIP needs every batch whole"):
        set_accumulation_and_compile(CLIP(), 2, False, 8)
    with pytest.raises(ValueError, match="trainer.accumulate_grad_batches=9 is more than data.batch_size=8"):
        set_accumulation_and_compile(vqgan(), 9, False, 8)
    with pytest.raises(ConfigError, match="trainer.accumulate_grad_batches=0: a whole number >= 1 is needed"):
        compose(["model=vqgan", "trainer.accumulate_grad_batches=0"])


# Activations computed again


def gradients(net: torch.nn.Module, loss: Any) -> list[torch.Tensor]:
    net.zero_grad()
    torch.manual_seed(3)
    loss().backward()
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def kept(loss: Any) -> int:
    """Bytes that autograd keeps for the backward."""
    total = 0

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return total


@pytest.mark.parametrize("mixed", [False, True])
def test_the_gradients_of_a_gpt_are_those_without(mixed: bool) -> None:
    torch.manual_seed(0)
    net = GPT((16,), (4, 4), 6, 8, 16, 3, 2, dropout=0.3)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids, states = torch.randint(16, (3, 16)), torch.randn(3, 5, 6)
    mask, null = torch.ones(3, 5, dtype=torch.bool), torch.tensor([False, True, False])

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            return net(ids, states, mask, null)[0].float().logsumexp(-1).mean()

    plain, bytes_plain = gradients(net, loss), kept(loss)
    set_checkpointing(net, True)
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(net, loss), strict=True))
    assert kept(loss) < bytes_plain / 2


@pytest.mark.parametrize("changes", [{}, {"norm": "spectral", "adaptive_weight": True}, {"norm": "batch"}])
def test_a_vqgan_with_checkpointing_steps_as_without(tmp_path: Path, changes: dict[str, Any]) -> None:
    ends = []
    for checkpointing in (False, True):
        model = vqgan(**changes, checkpointing=checkpointing)
        found = [module.checkpointing for module in model.modules() if isinstance(module, Recomputed)]
        assert found and all(on == checkpointing for on in found)
        fit(model, tmp_path, pictures())
        ends.append(model.state_dict())
    assert same(*ends)
    model = vqgan()
    image = pictures(1)[0].image
    plain = kept(lambda: model.tokenizer(image)[0].sum())
    set_checkpointing(model, True)
    assert kept(lambda: model.tokenizer(image)[0].sum()) < plain / 2


def test_a_prior_with_checkpointing_and_pieces_steps_as_without(tmp_path: Path) -> None:
    ends = []
    for checkpointing in (False, True):
        model = prior(dropout=0.2, checkpointing=checkpointing)
        set_accumulation_and_compile(model, 2, False, 6)
        fit(model, tmp_path, codes())
        ends.append(model.state_dict())
    assert same(*ends)


def test_a_net_with_nothing_to_compute_again() -> None:
    set_checkpointing(torch.nn.Linear(1, 1), False)
    with pytest.raises(ValueError, match="checkpointing=true: Linear has no part"):
        set_checkpointing(torch.nn.Linear(1, 1), True)


# Compiled nets


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.timeout(600)
def test_compiled_nets_train_validate_and_draw(tmp_path: Path, monkeypatch: Any) -> None:
    """About 40 s. With aot_eager, which traces forward and backward as inductor does, and generates no code."""
    asked = []
    original = torch.nn.Module.compile

    def compile(self: torch.nn.Module, *args: Any, **options: Any) -> None:
        asked.append((type(self).__name__, options["backend"]))
        original(self, *args, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    runs, ends = tmp_path / "runs", {}
    needs = [f"model.tokenizer.path={runs / 'vqgan-false/last.ckpt'}", f"text_encoder.path={runs / 'clip-false/hf'}",
             "model.checkpointing=true",
             "callbacks.composition={_target_: t2i.training.callbacks.validation_metrics.Composition, n_per_task: 1}"]
    for compiled in ("false", "aot_eager"):
        for name, words in (("clip", tiny.CLIP), ("vqgan", VQ_WORDS), ("prior", [*tiny.PRIOR, *needs])):
            train.run(config(tmp_path, words, f"name={name}-{compiled}", f"trainer.compile={compiled}"))
            ends[name, compiled] = held(tmp_path, f"{name}-{compiled}")["state_dict"]
        if compiled == "false":
            assert asked == []
    assert {name for name, _ in asked} == {"CLIPVisionModel", "CLIPTextModel", "Encoder", "PatchGAN", "Block"}
    assert {backend for _, backend in asked} == {"aot_eager"}
    for name in ("clip", "vqgan", "prior"):
        a, b = ends[name, "false"], ends[name, "aot_eager"]
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], atol=2e-2, rtol=1e-1, msg=lambda text, k=key: f"{k} {text}")
    model = building.load(runs / "prior-aot_eager/last.ckpt")
    assert model.sample(["a red circle"], seeds=[1]).shape == (1, 3, 32, 32)


SMALL_VQGAN = ["model.autoencoder.channels=8", "model.autoencoder.multipliers=[1,1]", "model.autoencoder.num_groups=4",
               "model.autoencoder.z_channels=8", "model.autoencoder.num_res_blocks=1", "model.quantizer.dim=4",
               "model.autoencoder.attention_levels=[]", "model.quantizer.codebook_size=16",
               "model.discriminator.channels=4", "model.discriminator.num_layers=2", "model.discriminator_start=0"]
SMALL_PRIOR = ["model.width=16", "model.num_layers=2", "model.num_heads=2", "model.tokenizer.path=x"]
SMALL = {"clip": tiny.CLIP[1:], "dfgan": tiny.DFGAN[1:], "stackgan1": tiny.STACKGAN1[1:],
         "stackgan2": ["model.stage1.path=x", "model.generator.channels=4", "model.discriminator.channels=4",
                       "model.generator.condition_dim=8", "model.generator.text_dim=8", "data.image_size=32",
                       "model.generator.num_res_blocks=1"],
         **{name: SMALL_VQGAN for name in choices("model") if name.startswith("vqgan")},
         **{name: SMALL_PRIOR for name in choices("model") if name.startswith("prior")}}
COMPILED = {"clip": {"CLIPVisionModel": 1, "CLIPTextModel": 1}, "dfgan": {"DFGenerator": 1},
            "stackgan1": {"StageOne": 1}, "stackgan2": {"StageTwo": 1},
            **{name: {"Encoder": 1, "Decoder": 1, "PatchGAN": 1} for name in SMALL if name.startswith("vqgan")},
            **{name: {"Block": 2} for name in SMALL if name.startswith("prior")},
            "prior_any": {"Block": 1, "CrossBlock": 1}}
LIKE = {"prior_92m": "prior", "prior_305m": "prior", "vqgan_f16_1024": "vqgan", "vqgan_f16_16384": "vqgan"}


def of_yaml(name: str) -> tuple[Any, Any]:
    """The model of a YAML, small, with fresh frozen parts; and a batch."""
    pl.seed_everything(0, verbose=False)
    node = compose([f"model={name}", "data.image_size=16", "text_encoder.path=x", *SMALL[name]], files=False)["model"]
    given: dict[str, Any] = {} if node.get("text_encoder") is None else {"text_encoder": Letters()}
    if "tokenizer" in node:
        given["tokenizer"] = prior().tokenizer
    if "stage1" in node:
        words = ["model=stackgan1", "data.image_size=8", "text_encoder.path=x", *tiny.STACKGAN1[1:]]
        made = compose(words, files=False)["model"]
        given["stage1"] = building.build(
            {"_target_": "t2i.models.stackgan.Coarse", "generator": made["generator"], "pooled_dim": 6,
             "projection": "linear"}, text_encoder=Letters()).eval().requires_grad_(False)
    model = building.build(node, at="model", **given)
    if hasattr(model, "prepare"):
        model.prepare(["a", "red", "blue"])
    if model.batch == "codes":
        return model, codes(1)[0]
    size = node["image_size"] if "image_size" in node else node["generator"]["image_size"]
    return model, Batch(torch.rand(4, 3, size, size) * 2 - 1, ["a", "red", "two", "blue"], ["1", "2", "3", "4"])


def is_compiled(net: torch.nn.Module) -> bool:
    """A decoder compiles all but its last layer."""
    return "features" in vars(net) if type(net).__name__ == "Decoder" else net._compiled_call_impl is not None


@pytest.mark.slow
@pytest.mark.compiles
def test_a_compiled_tokenizer_of_two_colours_has_the_gradients_of_the_plain_one() -> None:
    """And λ goes back through its last layer alone."""
    graphs, image = [], torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    found = []
    for compiled in (False, True):
        torch.manual_seed(0)
        autoencoder = TwoColourAutoencoder(channels=8, z_channels=6, patch_size=8)
        torch.nn.init.normal_(autoencoder.last_layer, std=0.1)
        model = VQGAN(autoencoder, VQ(16, 6), image_size=16, max_steps=6)
        if compiled:
            torch.compiler.reset()
            set_accumulation_and_compile(model, 1, backend, 2)
        assert not graphs
        reconstruction, _ = model.tokenizer(image)
        alone = torch.autograd.grad(reconstruction.sum(), autoencoder.last_layer, retain_graph=True)[0]
        reconstruction.square().mean().backward()
        found.append([alone, *(parameter.grad for parameter in model.tokenizer.parameters())])
    assert len(graphs) == 3  # the encoder, what is painted, and what the last layer is given
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
@pytest.mark.compiles
@pytest.mark.parametrize("name", choices("model"))
def test_every_models_nets_are_compiled_and_step_and_are_saved_as_before(tmp_path: Path, name: str) -> None:
    """With a backend that counts what was traced of each net, and runs it as it stands; every net is traced whole."""
    traced = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        nonlocal traced
        traced += 1
        return graph.forward

    plain, batch = of_yaml(name)
    assert Counter(type(net).__name__ for net in plain.nets()) == COMPILED[name]
    if name in LIKE:  # at these sizes the same nets, of which the other's test tells
        assert str(plain.nets()) == str(of_yaml(LIKE[name])[0].nets())
        return
    compiled, _ = of_yaml(name)
    torch.compiler.reset()
    set_accumulation_and_compile(compiled, 1, backend, len(batch.text))
    for model, on in ((plain, False), (compiled, True)):
        assert [is_compiled(net) for net in model.nets()] == [on] * len(model.nets())
        if model.batch == "codes":
            model.gpt.dense_mask = False  # as on a GPU
        fit(model, tmp_path, [batch])
        assert (traced >= len(COMPILED[name])) if on else (traced == 0)
    before, after = plain.state_dict(), compiled.state_dict()
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-5, rtol=1e-4, msg=lambda text, key=key: f"{key} {text}")
    plain.load_state_dict(after)


def test_what_is_compiled() -> None:
    backend = []

    class Net(torch.nn.Linear):
        def compile(self, *args: Any, **options: Any) -> None:
            backend.append(options["backend"])

    class Model:
        def nets(self) -> list[torch.nn.Module]:
            return [Net(1, 1)]

    for on in (True, "aot_eager", False):
        set_accumulation_and_compile(Model(), 1, on, 1)
    assert backend == ["inductor", "aot_eager"]
    assert [type(net).__name__ for net in vqgan(discriminator=None).nets()] == ["Encoder", "Decoder"]
    with pytest.raises(ConfigError, match="trainer.compile=yes please: true or false or aot_eager is needed"):
        compose(["model=vqgan", "trainer.compile='yes please'"])


# Averaged weights, warm-up and cosine: one setting each


def test_averaged_weights_from_the_command_line(tmp_path: Path) -> None:
    words = [*VQ_WORDS,
             "callbacks.ema={_target_: t2i.training.callbacks.ema.EMA, modules: [tokenizer], decay: 0.9}"]
    train.run(config(tmp_path, words, "name=x", "trainer.accumulate_grad_batches=2", "model.warmup_steps=3"))
    found = held(tmp_path, "x")
    assert found["ema"]["updates"] == 8  # batches, not pieces
    averaged, last = file_format.weights(found), found["state_dict"]
    changed = {name for name in last if not torch.equal(averaged[name], last[name])}
    assert changed and all(name.startswith("tokenizer.") for name in changed)
    assert set(found["ema"]["weights"]) <= last.keys()


def test_old_configs_without_the_new_keys_still_load(tmp_path: Path) -> None:
    train.run(config(tmp_path, VQ_WORDS, "name=x", steps=1))
    found = held(tmp_path, "x")
    model = found["t2i"]["config"]["model"]
    del model["checkpointing"], model["autoencoder"]["attention_heads"]
    for key in ("accumulate_grad_batches", "compile"):
        del found["t2i"]["config"]["trainer"][key]
    atomic.save_atomic(found, tmp_path / "old.ckpt")
    assert same(building.load(tmp_path / "old.ckpt").state_dict(), found["state_dict"])


def test_products_of_float32_are_as_the_config_says_and_untouched_on_a_cpu(tmp_path: Path) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for wanted, found in (("null", before), ("medium", "medium")):
            words = [f"trainer.matmul_precision={wanted}", f"name={wanted}"]
            train.run(config(tmp_path, VQ_WORDS, *words, steps=1))
            assert torch.get_float32_matmul_precision() == found
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(ConfigError, match="trainer.matmul_precision=low: one of highest, high, medium or null"):
        compose(["model=vqgan", "trainer.matmul_precision=low"])
