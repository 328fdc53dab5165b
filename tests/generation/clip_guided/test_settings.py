"""The loop of clip-guided drawing, and `ClipGuidedGenerator` from Python: what moves, what it is moved by, where it
starts, what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from t2i.checkpoint import atomic, building, file_format
from t2i.convert.tokenizers import load_tokenizer
from t2i.generation.clip_guided.clip_models.clip import TransformersCLIP
from t2i.generation.clip_guided.generator import ClipGuidedGenerator
from t2i.generation.clip_guided.image_parameters import PixelParameters
from t2i.generation.clip_guided.optimization import Optimization, TargetEmbeddings, embed_targets, mean_similarity
from t2i.generation.clip_guided.prompts import prompt_targets
from t2i.generation.clip_guided.settings import Settings
from t2i.losses.guidance import cosine
from t2i.models.clip import CLIP
from t2i.types import TextToImage
from t2i.viz.grids import to_uint8

TEXT = ["a red circle", "two blue stars above a ring", "a green square"]
VQGAN = {
    "_target_": "t2i.models.vqgan.VQGAN", "image_size": 16, "max_steps": 1,
    "autoencoder": {
        "_target_": "t2i.nets.autoencoder.Autoencoder", "channels": 8, "multipliers": [1, 1, 1], "num_res_blocks": 1,
        "attention_levels": [], "z_channels": 4, "num_groups": 4, "mid_attention": False,
    },
    "quantizer": {"_target_": "t2i.quantizers.vq.VQ", "codebook_size": 16, "dim": 4},
    "discriminator": None, "perceptual": None,
}  # fmt: skip


def clip_folder(path: Path, seed: int = 0, size: int = 16) -> str:
    """A random CLIP, whose weights are large enough for texts and pictures to differ."""
    torch.manual_seed(seed)
    model = CLIP(image_size=size, patch_size=8, width=16, num_layers=1, num_heads=2, text_width=16, text_layers=1,
                 text_heads=2, embed_dim=16, vocab_size=280, context_length=40)
    for name, weight in model.clip.named_parameters():
        if weight.ndim > 1:
            weight.data.normal_(0, 1.0 if "embedding" in name else 0.3)
    model.prepare(TEXT)
    model.export(path)
    return str(path)


def save_checkpoint(model: Any, config: dict[str, Any], path: Path) -> str:
    atomic.save_atomic({"state_dict": model.state_dict(), "t2i": file_format.pack(model, {"model": config})}, path)
    return str(path)


def make_parts(root: Path) -> SimpleNamespace:
    """Two CLIPs of different sizes, a tokenizer, a prior over its codes, and a picture."""
    clip, other = clip_folder(root / "clip"), clip_folder(root / "other", seed=1, size=24)
    torch.manual_seed(0)
    vqgan = building.build(VQGAN)
    with torch.no_grad():  # fresh codes are all but equal, and fresh decoders grey
        vqgan.tokenizer.quantizer.codebook.normal_()
        vqgan.tokenizer.autoencoder.decoder.head.weight.normal_(0, 0.3)
    tokenizer = save_checkpoint(vqgan, VQGAN, root / "vqgan.ckpt")
    config = {"_target_": "t2i.models.prior.Prior", "width": 16, "num_layers": 1, "num_heads": 2, "max_steps": 1,
              "tokenizer": {"_target_": "t2i.models.vqgan.load_tokenizer", "path": tokenizer},
              "text_encoder": {"_target_": "t2i.text_encoders.clip.CLIPText", "path": clip}}
    model = building.build(config)
    model.gpt.cell.data.normal_(0, 5)  # or the likeliest code is one everywhere: norms divide by nothing
    prior = save_checkpoint(model, config, root / "prior.ckpt")
    picture = root / "picture.png"
    coarse = torch.rand((1, 3, 4, 6), generator=seeded(4)) * 2 - 1
    Image.fromarray(to_uint8(torch.nn.functional.interpolate(coarse, (20, 30), mode="bilinear"))[0]).save(picture)
    return SimpleNamespace(root=root, clip=clip, other=other, vqgan=tokenizer, prior=prior, picture=str(picture))


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return make_parts(tmp_path_factory.mktemp("parts"))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def whole(image: torch.Tensor, generator: torch.Generator, n: int) -> torch.Tensor:
    """Cutouts that chance has no part in: the picture, `n` times."""
    return torch.nn.functional.interpolate(image, (16, 16), mode="bilinear").expand(n, -1, -1, -1)


def hardly(path: str, size: int) -> torch.Tensor:
    raise AssertionError("no picture was asked for")


def loop(parts: SimpleNamespace, text: Any = TEXT[0], show: Any = whole, **changes: Any) -> Optimization:
    """Pixels of 16 x 16 and one CLIP."""
    clip_model = TransformersCLIP(parts.clip)
    given = {"batch_size": 4, "learning_rate": 0.05, "generator": seeded(1), **changes}
    kinds = {name: given.pop(name) for name in ("excluded", "extras") if name in given}
    targets = embed_targets(clip_model, prompt_targets(text, **kinds), hardly)
    return Optimization(PixelParameters(16, 16, generator=seeded()), [clip_model], [targets], [show], **given)


def moved(drawing: Optimization, n: int) -> Optimization:
    for _ in range(n):
        drawing.update()
    return drawing


def drawer(parts: SimpleNamespace, model: Any = None, **changes: Any) -> ClipGuidedGenerator:
    given = {"clips": parts.clip, "canvas": "pixels", "image_size": [16, 16], "steps": 3, "batch_size": 4, **changes}
    return ClipGuidedGenerator(Settings(**given), model)


CANVASES = {
    "pixels": {}, "fourier": {"canvas": "fourier"},
    "siren": {"canvas": "siren", "hidden": 16, "layers": 2, "learning_rate": 3e-3},
    **{codes: {"canvas": "vqgan", "codes": codes, "image_size": None}
       for codes in ("none", "straight_through", "gumbel")},
}  # fmt: skip


@pytest.mark.parametrize("name", CANVASES)
def test_the_similarity_rises_and_the_canvas_alone_moves(parts: SimpleNamespace, name: str) -> None:
    tokenizer = load_tokenizer(parts.vqgan)
    made = drawer(parts, tokenizer if "codes" in CANVASES[name] else None, **CANVASES[name])
    frozen = [*tokenizer.parameters(), *(p for clip_model in made.clip_models for p in clip_model.model.parameters())]
    kept = [p.clone() for p in frozen]
    wrong, rise, lead = embed_targets(made.clip_models[0], prompt_targets(TEXT[0]), hardly), [], []
    seeds = 4 if "codes" in CANVASES[name] else 1  # a dozen codes move in jerks
    for seed in range(seeds):
        drawing = made.begin(TEXT[1], seed)
        before, start = drawing.similarity(), drawing.picture()
        moved(drawing, 30)
        rise.append(drawing.similarity() - before)
        lead.append(drawing.similarity() - likeness(drawing, wrong))
        assert not torch.equal(start, drawing.picture()) and drawing.picture().shape == (1, 3, 16, 16)
    assert sum(rise) / seeds > 0.1 and sum(lead) / seeds > 0.1, (rise, lead)
    assert all(p.grad is None and not p.requires_grad and torch.equal(p, old)
               for p, old in zip(frozen, kept, strict=True))
    assert all(p.grad is not None for p in drawing.canvas.parameters())
    held = {id(p) for group in drawing.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in drawing.canvas.parameters()}


def likeness(drawing: Optimization, other: TargetEmbeddings) -> float:
    return mean_similarity(drawing.clip_models[0].embed_image(whole(drawing.picture(), seeded(), 1)), other)


@pytest.mark.parametrize("loss", ["cosine", "spherical"])
def test_an_iteration_is_the_gradient_of_the_loss(parts: SimpleNamespace, loss: Any) -> None:
    drawing = loop(parts, loss=loss, optimizer="sgd", learning_rate=1.0)
    pixels = drawing.canvas.pixels.detach().clone().requires_grad_()
    likeness = -cosine(drawing.clip_models[0].embed_image(pixels), drawing.targets[0].targets)[0, 0]
    wanted = -likeness if loss == "cosine" else likeness.acos().square() / 2
    wanted.backward()
    found, alike = drawing.update()
    assert found == pytest.approx(wanted.item(), abs=1e-5) and alike == pytest.approx(likeness.item(), abs=1e-5)
    torch.testing.assert_close(drawing.canvas.pixels.detach(), (pixels - pixels.grad).detach(), atol=1e-5, rtol=1e-4)


def test_both_losses_raise_the_similarity(parts: SimpleNamespace) -> None:
    for loss in ("cosine", "spherical"):
        drawing = loop(parts, loss=loss)
        before = drawing.similarity()
        assert moved(drawing, 20).similarity() > before + 0.1


@pytest.mark.parametrize("micro_batch", [1, 3, 4, 100])
def test_views_in_parts_give_the_gradient_of_all_at_once(parts: SimpleNamespace, micro_batch: int) -> None:
    calls: list[int] = []

    def corners(image: torch.Tensor, generator: torch.Generator, n: int) -> torch.Tensor:
        """Turned over for every other view, counted over the calls."""
        first = sum(calls) % 10
        calls.append(n)
        seen = [image.flip(3) if i % 2 else image for i in range(first, first + n)]
        return torch.cat(seen)

    once = loop(parts, show=corners, batch_size=10)
    all_at_once = once.update()
    calls.clear()
    drawing = loop(parts, show=corners, batch_size=10, micro_batch=micro_batch)
    assert drawing.update() == pytest.approx(all_at_once, abs=1e-6)
    assert sum(calls) == 10 and max(calls) == min(micro_batch, 10)
    torch.testing.assert_close(drawing.canvas.pixels.grad, once.canvas.pixels.grad, atol=1e-7, rtol=1e-4)


def test_the_picture_is_rendered_once_and_views_come_in_one_batch(parts: SimpleNamespace) -> None:
    class Counted(PixelParameters):
        renderings = 0

        def forward(self) -> torch.Tensor:
            self.renderings += 1
            return super().forward()

    class Watched(TransformersCLIP):
        texts, batches = 0, ()

        def embed_text(self, text: list[str]) -> torch.Tensor:
            self.texts += len(text)
            return super().embed_text(text)

        def embed_image(self, views: torch.Tensor) -> torch.Tensor:
            self.batches = (*self.batches, len(views))
            return super().embed_image(views)

    clip_model, canvas = Watched(parts.clip), Counted(16, 16, generator=seeded())
    prompts = prompt_targets(f"{TEXT[0]} | {TEXT[1]}:0.5", extras="a dog")
    drawing = Optimization(canvas, [clip_model], [embed_targets(clip_model, prompts, hardly)], [whole], 6,
                           learning_rate=0.01, generator=seeded())
    moved(drawing, 3)
    assert clip_model.texts == 3 and clip_model.batches == (6, 6, 6) and canvas.renderings == 3


def test_texts_are_embedded_once_a_drawing(parts: SimpleNamespace) -> None:
    class Watched(TransformersCLIP):
        texts: tuple[str, ...] = ()

        def embed_text(self, text: list[str]) -> torch.Tensor:
            self.texts = (*self.texts, *text)
            return super().embed_text(text)

    clip_model = Watched(parts.clip)
    made = ClipGuidedGenerator(Settings(clips=parts.clip, canvas="pixels", steps=5, batch_size=2, styles="ink",
                           excluded="text"), clip_models=[clip_model])
    made.sample([TEXT[0], TEXT[1]], seeds=[0, 1])
    assert clip_model.texts == (TEXT[0], "ink", "text", TEXT[1], "ink", "text")


def test_the_average_is_shown_and_the_canvas_moves_on(parts: SimpleNamespace) -> None:
    plain, averaged = loop(parts), loop(parts, ema=0.9)
    average, seen = plain.canvas.pixels.detach().clone(), []
    for step in range(1, 6):
        plain.update(), averaged.update()
        decay = min(0.9, step / (10 + step))
        average = decay * average + (1 - decay) * plain.canvas.pixels.detach()
        seen.append(averaged.picture())
        assert torch.equal(plain.canvas.pixels, averaged.canvas.pixels)  # showing changes nothing
    torch.testing.assert_close(seen[-1], average.clamp(-1, 1))
    torch.testing.assert_close(averaged.state()["pixels"], average)
    assert torch.equal(plain.state()["pixels"], plain.canvas.pixels) and not torch.equal(seen[-1], plain.picture())


def test_the_average_of_codes_stays_in_the_codebooks_range_and_is_put_back(parts: SimpleNamespace) -> None:
    made = drawer(parts, load_tokenizer(parts.vqgan), canvas="vqgan", image_size=None, ema=0.8)
    drawing = moved(made.begin(TEXT[0], 0), 4)
    now = drawing.canvas.z.detach().clone()
    book = load_tokenizer(parts.vqgan).codebooks()[0]
    with drawing.shown() as canvas:
        assert not torch.equal(canvas.z, now)
        z_q = (canvas.z * canvas._unit).detach()[0].flatten(1)
    assert torch.equal(drawing.canvas.z, now)
    assert (z_q.amax(1) <= book.amax(0) + 1e-5).all() and (z_q.amin(1) >= book.amin(0) - 1e-5).all()

    def stop() -> torch.Tensor:
        raise KeyboardInterrupt

    drawing.canvas.forward = stop
    with pytest.raises(KeyboardInterrupt):
        drawing.picture()
    assert torch.equal(drawing.canvas.z, now)


def test_patience_ends_a_drawing_that_gets_no_better(parts: SimpleNamespace) -> None:
    still = loop(parts, learning_rate=0.0, patience=3)
    steps = 0
    while not still.finished:
        still.update()
        steps += 1
    assert steps == 4  # the first loss is the best
    assert not moved(loop(parts, patience=3), 10).finished and not moved(loop(parts, learning_rate=0.0), 10).finished
    made = drawer(parts, steps=100, learning_rate=0.0, views="whole", patience=2)
    assert made.sample([TEXT[0]], seeds=[0]).shape == (1, 3, 16, 16)


def test_negative_weights_and_what_is_excluded_push_away(parts: SimpleNamespace) -> None:
    clip_model = TransformersCLIP(parts.clip)
    other = embed_targets(clip_model, prompt_targets(TEXT[1]), hardly)
    plain = moved(loop(parts), 40)
    pushed = moved(loop(parts, f"{TEXT[0]} | {TEXT[1]}:-1"), 40)
    kept_out = moved(loop(parts, excluded=TEXT[1], negative_weight=1.0), 40)
    for drawing in (pushed, kept_out):
        assert likeness(drawing, other) < likeness(plain, other) - 0.05
    alone = loop(parts, f"{TEXT[1]}:-1")
    before = likeness(alone, other)
    moved(alone, 20)
    assert likeness(alone, other) < before - 0.1 and alone.similarity() == 0  # nothing is asked for
    assert moved(loop(parts, excluded=TEXT[1], text_weight=0.0), 5).update()[0] < 0


def test_extras_and_styles_and_prompts_of_several_parts_count(parts: SimpleNamespace) -> None:
    clip_model = TransformersCLIP(parts.clip)
    extra = embed_targets(clip_model, prompt_targets(TEXT[0], extras=TEXT[1]), hardly, 0.0, 1.0)
    torch.testing.assert_close(extra.targets, clip_model.embed_text([TEXT[1]]))
    prompts = prompt_targets(f"{TEXT[0]}:2 | {TEXT[1]}:0.5:0.1", styles="ink", excluded="text:3")
    both = embed_targets(clip_model, prompts, hardly)
    assert both.weights.tolist() == [2, 0.5, 0.5] and both.stops.tolist() == [-math.inf, pytest.approx(0.1), -math.inf]
    torch.testing.assert_close(both.targets, clip_model.embed_text([TEXT[0], TEXT[1], "ink"]), atol=1e-5, rtol=1e-4)
    assert both.excluded_weights.tolist() == [3]
    one, two = (embed_targets(clip_model, prompt_targets(text), hardly) for text in TEXT[:2])
    leaning, plain = moved(loop(parts, f"{TEXT[0]} | {TEXT[1]}"), 40), moved(loop(parts), 40)
    assert likeness(leaning, two) > likeness(plain, two) + 0.05 and likeness(leaning, one) < likeness(plain, one)


def test_a_picture_as_a_prompt(parts: SimpleNamespace) -> None:
    made = drawer(parts, images=parts.picture)
    drawing = made.begin("", 0)
    before = drawing.similarity()
    assert moved(drawing, 40).similarity() > before + 0.1
    beside = made.begin(f"{TEXT[0]} | image:{parts.picture}:0.25", 0).targets[0]
    assert beside.weights.tolist() == [1, 0.25, 1]
    torch.testing.assert_close(beside.targets[1], beside.targets[2])


def test_several_guides_agree(parts: SimpleNamespace) -> None:
    made = drawer(parts, clips=[parts.clip, parts.other], image_size=None)
    assert (made.height, made.width) == (48, 48) and [view.image_size for view in made.clip_models] == [16, 24]
    drawing = made.begin(TEXT[0], 0)
    singly = []
    for k in range(2):
        single = Optimization(drawing.canvas, [made.clip_models[k]], [drawing.targets[k]], [whole], generator=seeded())
        singly.append((single, single.similarity()))
    assert drawing.similarity() == pytest.approx(sum(before for _, before in singly) / 2, abs=1e-6)
    moved(drawing, 40)
    assert all(single.similarity() > before + 0.1 for single, before in singly)


def test_every_optimizer_and_precision_draws(parts: SimpleNamespace) -> None:
    for changes in ({"optimizer": "adamw", "weight_decay": 0.01}, {"optimizer": "sgd", "learning_rate": 5.0},
                    {"precision": "bf16-mixed"}, {"views": "crops"}, {"views": "cutouts", "jitter": 0.1}):
        drawing = drawer(parts, **changes, batch_size=16).begin(TEXT[0], 0)
        seen = [drawing.update()[1] for _ in range(40)]  # of the views: crops are little like the whole picture
        assert sum(seen[-10:]) / 10 > sum(seen[:10]) / 10 + 0.04, changes
    made = drawer(parts, load_tokenizer(parts.vqgan), canvas="vqgan", image_size=None, precision="bf16-mixed")
    drawing = made.begin(TEXT[0], 0)
    before = drawing.similarity()
    assert moved(drawing, 25).similarity() > before + 0.05 and drawing.picture().dtype == torch.float32


def test_a_drawing_repeats_bit_for_bit_and_depends_on_its_seed(parts: SimpleNamespace) -> None:
    tokenizer = load_tokenizer(parts.vqgan)
    for name, changes in CANVASES.items():
        made = drawer(parts, tokenizer if "codes" in changes else None, **changes, views="cutouts")
        first, other = (moved(made.begin(TEXT[0], seed), 3).picture() for seed in (6, 5))
        torch.manual_seed(9)
        again = moved(made.begin(TEXT[0], 6), 3).picture()
        assert torch.equal(first, again) and not torch.equal(first, other), name


def test_starts(parts: SimpleNamespace) -> None:
    prior = building.load(parts.prior)
    tokenizer = prior.tokenizer
    for codes in ("straight_through", "gumbel", "none"):
        changes = {"canvas": "vqgan", "codes": codes, "image_size": None}
        made = drawer(parts, prior, **changes)
        assert made.start == "prior"
        start = made.begin(TEXT[1], 11).picture()
        torch.testing.assert_close(start, prior.sample([TEXT[1]], seeds=[11]).clamp(-1, 1), atol=1e-5, rtol=1e-5)
        colder = ClipGuidedGenerator(made.settings, prior, options={"temperature": 0.0}).begin(TEXT[1], 11).picture()
        torch.testing.assert_close(colder, prior.sample([TEXT[1]], seeds=[11], temperature=0.0).clamp(-1, 1),
                                   atol=1e-5, rtol=1e-5)
        every = {how: drawer(parts, prior, **changes, start=how).begin(TEXT[1], 11).picture()
                 for how in ("noise", "codes")}
        assert not torch.equal(every["noise"], every["codes"]) and not torch.equal(every["noise"], start)
    assert drawer(parts, tokenizer, canvas="vqgan", image_size=None).start == "noise"
    assert all(p.grad is None for p in prior.parameters())


@pytest.mark.parametrize("name", CANVASES)
def test_start_from_a_picture(parts: SimpleNamespace, name: str) -> None:
    tokenizer = load_tokenizer(parts.vqgan)
    model = tokenizer if "codes" in CANVASES[name] else None
    made = drawer(parts, model, **CANVASES[name], start_image=parts.picture)
    assert made.start == "image"
    given, start = made.start_pixels, made.begin(TEXT[0], 0).picture()
    if model is not None and name != "none":
        wanted = tokenizer.decode_ids(tokenizer.encode(given)).clamp(-1, 1)
        torch.testing.assert_close(start, wanted, atol=1e-4, rtol=1e-4)
    elif name != "none":
        assert (start - given).square().mean() < (0.05 if name == "siren" else 1e-6)
    wide = drawer(parts, model, **{**CANVASES[name], "image_size": [8, 24]}, start_image=parts.picture)
    if model is None:
        assert wide.begin(TEXT[0], 0).picture().shape == wide.start_pixels.shape == (1, 3, 8, 24)


def test_from_python(parts: SimpleNamespace) -> None:
    made = drawer(parts)
    assert isinstance(made, TextToImage)
    assert made.sample(TEXT[:2], seeds=[0, 1]).shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="2 captions but 1 seeds"):
        made.sample(TEXT[:2], seeds=[0])
    with pytest.raises(ValueError, match="temperature is no option of clip-guided drawing"):
        made.sample(TEXT[:1], seeds=[0], temperature=1.0)
    assert drawer(parts, image_size=None).image_size == 32  # twice the CLIP's


def test_what_is_not_finite_stops_with_the_iteration(parts: SimpleNamespace) -> None:
    drawing = moved(loop(parts), 2)
    with torch.no_grad():
        drawing.canvas.pixels[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match=r"iteration 3: loss nan .*clip_guided\.learning_rate"):
        drawing.update()


@pytest.mark.parametrize(("changes", "message"), [
    ({"steps": 0, "show_step": 0, "batch_size": 0},
     r"clip_guided\.steps=0: allowed are whole numbers from 1; clip_guided\.show_step=0.*clip_guided\.batch_size=0"),
    ({"image_size": [16]}, r"clip_guided\.image_size=\[16\]: \[height, width\]"),
    ({"image_size": [0, 16]}, r"clip_guided\.image_size=\[0, 16\]"),
    ({"canvas": "oil"}, r"clip_guided\.canvas=oil: one of vqgan, pixels, fourier, siren is needed"),
    ({"start": "end"}, r"clip_guided\.start=end: one of noise, codes, prior, image is needed"),
    ({"start": "prior"},
     r"clip_guided\.start=prior needs clip_guided\.canvas=vqgan.*pixels starts from noise or an image"),
    ({"start": "codes"}, r"clip_guided\.start=codes needs clip_guided\.canvas=vqgan"),
    ({"start": "image"}, r"clip_guided\.start=image needs clip_guided\.start_image="),
    ({"start": "noise", "start_image": "a.png"}, r"start_image=a\.png does not go with clip_guided\.start=noise"),
    ({"start_image": "gone.png"}, r"clip_guided\.start_image=gone\.png cannot be read: No such file"),
    ({"canvas": "vqgan"}, r"clip_guided\.canvas=vqgan needs ckpt=, a tokenizer or a prior"),
    ({"learning_rate": -1.0}, r"clip_guided\.learning_rate=-1\.0: allowed are numbers from 0"),
    ({"weight_decay": math.inf}, r"clip_guided\.weight_decay=inf"),
    ({"ema": 1.0}, r"clip_guided\.ema=1\.0: allowed are numbers from 0 up to, not including, 1"),
    ({"patience": 0}, r"clip_guided\.patience=0: allowed are whole numbers from 1, or null"),
    ({"micro_batch": 0}, r"clip_guided\.micro_batch=0: allowed are whole numbers from 1, or null"),
    ({"noise_factor": -0.1}, r"clip_guided\.noise_factor=-0\.1: allowed are numbers from 0 to 10"),
    ({"jitter": 2.0}, r"clip_guided\.jitter=2\.0: allowed are numbers from 0 to 1"),
    ({"views": "holes"}, r"clip_guided\.views='holes': one of crops, cutouts, whole is needed"),
    ({"loss": "l2"}, r"clip_guided\.loss='l2': one of cosine, spherical is needed"),
    ({"optimizer": "lion"}, r"clip_guided\.optimizer='lion': one of adam, adamw, sgd is needed"),
    ({"canvas": "fourier", "decay": 9.0}, r"clip_guided\.decay=9\.0: allowed are numbers from 0"),
    ({"canvas": "siren", "layers": 0}, r"clip_guided\.hidden=256, layers=0"),
    ({"versus": {"codes": "soft"}},
     r"clip_guided\.versus\.codes=soft: one of none, straight_through, gumbel is needed"),
    ({"versus": {"learning_rate": "fast"}}, r"clip_guided\.versus\.learning_rate=fast: a number or null is needed"),
    ({"versus": {"clip": "x"}}, r"clip_guided\.versus\.clip: there is no such setting; allowed are canvas, codes"),
    ({"versus": {"clips": "x"}}, r"clip_guided\.versus\.clips: there is no such setting"),
    ({"versus": {"steps": 0}}, r"clip_guided\.versus: clip_guided\.steps=0"),
])
def test_refused_by_name(parts: SimpleNamespace, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawer(parts, **changes)


@pytest.mark.parametrize(("changes", "message"), [
    ({"image_size": [18, 20]},
     r"clip_guided\.image_size: height=18, width=20: both must be divisible by .* factor 4, such as"),
    ({"start": "prior"}, r"clip_guided\.start=prior needs ckpt=, a prior; this one is a tokenizer"),
    ({"codes": "soft"}, r"clip_guided\.codes='soft': one of none, straight_through, gumbel is needed"),
    ({"codes": "gumbel", "temperature": 0.0}, r"clip_guided\.temperature=0\.0: a number above 0 is needed"),
])
def test_refused_with_a_tokenizer(parts: SimpleNamespace, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawer(parts, load_tokenizer(parts.vqgan), **{"canvas": "vqgan", "image_size": None, **changes})


def test_refused_with_a_prior(parts: SimpleNamespace) -> None:
    prior = building.load(parts.prior)
    made = drawer(parts, prior, canvas="vqgan", image_size=None)
    with pytest.raises(ValueError, match=r"clip_guided\.image_size=\[32, 32\]: a prior draws 16 x 16 pixels"):
        ClipGuidedGenerator(replace(made.settings, image_size=[32, 32]), prior)
    with pytest.raises(ValueError, match="draws for a text, and the first prompt is a picture"):
        made.prompts(f"image:{parts.picture}")


@pytest.mark.parametrize(("text", "changes", "message"), [
    ("", {}, "prompt: nothing asked for"),
    (" ", {}, "text='' is empty: write what to draw"),
    ("a dog | ", {}, "text='' is empty"),
    ("a dog:heavy", {}, "the weight 'heavy' is no number"),
    ("a dog:nan", {}, "weight=nan of text 'a dog': allowed are finite numbers"),
    ("a dog:0", {}, "all weights are 0"),
    ("image:gone.png", {}, r"image=gone\.png cannot be read: No such file"),
    ("a dog", {"images": "gone.png"}, r"image=gone\.png cannot be read"),
    ("a dog", {"excluded": "text:-1"}, "excluded: weight=-1"),
    ("a dog", {"styles": [3]}, "styles: 3 is neither a text nor a mapping"),
    ("a dog", {"extras": [{"text": "ink", "weight": "x"}]}, "weight='x' of text 'ink' is no number"),
])
def test_wishes_that_are_refused(parts: SimpleNamespace, text: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawer(parts, **changes).begin(text, 0)


def test_a_picture_that_is_none(parts: SimpleNamespace, tmp_path: Path) -> None:
    page = tmp_path / "page.png"
    page.write_text("<html>not found</html>")
    with pytest.raises(ValueError, match=r"image=.*page\.png cannot be read as a picture"):
        drawer(parts, images=str(page)).begin("", 0)
    with pytest.raises(ValueError, match=r"clip_guided\.start_image=.*page\.png cannot be read as a picture"):
        drawer(parts, start_image=str(page))


def test_the_loops_own_arguments(parts: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="0 CLIPs, 0 targets, 0 cutouts: one of each a CLIP"):
        Optimization(PixelParameters(4, 4, generator=seeded()), [], [], [], generator=seeded())
