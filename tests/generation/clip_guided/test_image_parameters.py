from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from t2i.generation.clip_guided.image_parameters import START, FourierParameters, LatentParameters, PixelParameters
from t2i.generation.clip_guided.siren import SirenParameters
from t2i.nets.autoencoder import Autoencoder
from t2i.nets.tokenizer import ImageTokenizer
from t2i.nets.two_colour import TwoColourAutoencoder
from t2i.quantizers.ema import EMA
from t2i.quantizers.fsq import FSQ
from t2i.quantizers.gumbel import Gumbel
from t2i.quantizers.product import Product
from t2i.quantizers.residual import Residual
from t2i.quantizers.vq import VQ

H, W = 8, 12
QUANTIZERS = {
    "vq": lambda: VQ(codebook_size=20, dim=4),
    "normalised": lambda: VQ(codebook_size=20, dim=4, normalize=True),
    "ema": lambda: EMA(codebook_size=20, dim=4),
    "fsq": lambda: FSQ(levels=(5, 2, 2)),
    "gumbel": lambda: Gumbel(codebook_size=20, dim=4),
    "product": lambda: Product({"a": EMA(codebook_size=5, dim=3), "b": FSQ(levels=(2, 2, 1 + 1))}),
    "residual": lambda: Residual(VQ(codebook_size=5, dim=4), depth=3),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tokenizer(name: str = "vq", any_size: bool = False) -> ImageTokenizer:
    torch.manual_seed(0)
    autoencoder = Autoencoder(channels=8, multipliers=(1, 1, 1), num_res_blocks=1, attention_levels=(), z_channels=4,
                              num_groups=4)
    return ImageTokenizer(autoencoder, QUANTIZERS[name](), 16, any_size).eval()


CANVASES = {
    "pixels": lambda g: PixelParameters(H, W, generator=g),
    "fourier": lambda g: FourierParameters(H, W, generator=g),
    "siren": lambda g: SirenParameters(H, W, hidden=16, layers=2, generator=g),
    **{
        f"{codes}-{name}": lambda g, codes=codes, name=name: LatentParameters(tokenizer(name), H, W, codes, generator=g)
        for codes in ("none", "straight_through", "gumbel")
        for name in QUANTIZERS
    },
}


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(max(float((a - b).square().mean()) / 4, 1e-20))


def smooth(height: int, width: int) -> Tensor:
    coarse = torch.rand((1, 3, 4, 4), generator=seeded(1)) * 2 - 1
    return F.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("name", CANVASES)
def test_contract(name: str) -> None:
    canvas = CANVASES[name](seeded())
    picture = canvas()
    assert picture.shape == (1, 3, H, W) and picture.dtype == torch.float32 and (canvas.height, canvas.width) == (H, W)
    assert all(value.isfinite().all() for value in (picture, *canvas.parameters()))
    (picture - 0.5).square().mean().backward()
    for parameter in canvas.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0
    assert set(canvas.state_dict()) == {key for key, _ in canvas.named_parameters()}  # no decoder, no tables
    canvas.after_step()


@pytest.mark.parametrize("name", CANVASES)
def test_drawing_repeats_bit_for_bit(name: str) -> None:
    def drawn(seed: int) -> Tensor:
        canvas = CANVASES[name](seeded(seed))
        optimizer = torch.optim.Adam(canvas.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            (canvas() - 0.5).square().mean().backward()
            optimizer.step()
            canvas.after_step()
        return canvas().detach()

    torch.manual_seed(1)
    first = drawn(3)
    torch.manual_seed(2)
    assert torch.equal(first, drawn(3)) and not torch.equal(first, drawn(4))


@pytest.mark.parametrize("name", CANVASES)
def test_the_state_says_all(name: str) -> None:
    canvas, other = CANVASES[name](seeded()).eval(), CANVASES[name](seeded(5)).eval()
    other.load_state_dict(canvas.state_dict())
    assert torch.equal(canvas(), other())


@pytest.mark.parametrize("name", ["pixels", "fourier"])
def test_start_is_grey_with_faint_noise(name: str) -> None:
    kinds = {"pixels": PixelParameters, "fourier": FourierParameters}
    picture = kinds[name](64, 96, generator=seeded())()
    assert picture.std().item() == pytest.approx(START, rel=0.3) and abs(picture.mean()) < 0.1


@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 5), (1, 1), (6, 9)])
@pytest.mark.parametrize("kind", [PixelParameters, FourierParameters])
def test_pixels_and_spectrum_start_from_a_picture_exactly(kind: type, height: int, width: int) -> None:
    canvas = kind(height, width, generator=seeded())
    image = torch.rand((1, 3, height, width), generator=seeded(2)) * 2 - 1
    canvas.start_from(image)
    torch.testing.assert_close(canvas().detach(), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_spectrum_falls_with_the_frequency(decay: float) -> None:
    canvas = FourierParameters(64, 64, decay, generator=seeded())
    with torch.no_grad():
        canvas.spectrum.copy_(torch.randn(canvas.spectrum.shape, generator=seeded(1)))
    picture = canvas().detach()
    power = torch.fft.rfft2(picture, norm="ortho").abs().square().mean((0, 1))
    assert power[0, 4].item() > 0 and picture.square().mean().item() == pytest.approx(1, rel=0.6)
    ratio = float(canvas.scale[0, 4, 0] / canvas.scale[0, 16, 0])
    assert ratio == pytest.approx(4**decay) and canvas.scale[0, 0, 0] == canvas.scale[0, 1, 0]


def test_siren_is_initialised_as_in_the_paper() -> None:
    canvas = SirenParameters(4, 6, hidden=64, layers=3, w0=30, generator=seeded())
    first, second = canvas.layers[0].weight, canvas.layers[1].weight
    assert 0.45 < first.abs().max() <= 1 / 2 and first.std().item() == pytest.approx(1 / 2 / math.sqrt(3), rel=0.15)
    bound = math.sqrt(6 / 64) / 30
    for weight in (second, canvas.head.weight):
        assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert len(canvas.layers) == 3 and sum(p.numel() for p in canvas.parameters()) == 3 * 64 + 2 * 65 * 64 + 65 * 3
    places = canvas.places.view(4, 6, 2)
    assert places[0, 0].tolist() == [-1, -1] and places[-1, -1].tolist() == [1, 1] and places[0, -1].tolist() == [-1, 1]
    by_hand = torch.sin(30 * (first @ places[1, 2] + canvas.layers[0].bias))
    for layer in canvas.layers[1:]:
        by_hand = torch.sin(30 * (layer.weight @ by_hand + layer.bias))
    torch.testing.assert_close(canvas()[0, :, 1, 2], canvas.head.weight @ by_hand + canvas.head.bias)
    assert canvas().abs().max() < 0.3  # grey


def test_siren_starts_from_a_picture() -> None:
    canvas = SirenParameters(16, 24, hidden=64, layers=3, generator=seeded())
    image = smooth(16, 24)
    with torch.no_grad():  # it fits all the same
        canvas.start_from(image)
    assert psnr(canvas().detach(), image) > 35
    assert all(parameter.grad is None for parameter in canvas.parameters())


def test_latents_start_as_published() -> None:
    canvas = LatentParameters(tokenizer(), 16, 32, unit="raw", generator=seeded())
    noise = torch.randn((1, 4, 4, 8), generator=seeded())
    assert torch.equal(canvas.z.detach(), torch.sin(0.5 * noise))
    torch.testing.assert_close(canvas(), tokenizer().decode(torch.sin(0.5 * noise)))


def test_units_are_those_of_the_codebook() -> None:
    net = tokenizer()
    canvas = LatentParameters(net, 16, 16, generator=seeded())
    rms = net.codebooks()[0].square().mean(0).sqrt().view(1, -1, 1, 1)
    torch.testing.assert_close(canvas(), net.decode(canvas.z * rms))


@pytest.mark.parametrize("unit", ["codebook", "raw"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_latents_start_from_a_picture(name: str, unit: str) -> None:
    net, image = tokenizer(name), smooth(16, 16)
    encoded = net.decode_ids(net.encode(image))
    for codes in ("straight_through", "gumbel"):
        canvas = LatentParameters(net, 16, 16, codes, unit=unit, generator=seeded()).eval()
        canvas.start_from(image)
        torch.testing.assert_close(canvas().clamp(-1, 1), encoded, atol=1e-5, rtol=0)
    canvas = LatentParameters(net, 16, 16, unit=unit, generator=seeded())
    canvas.start_from(image)
    torch.testing.assert_close(canvas(), net.decode(net.latents(image)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name, codes", [
    (name, codes) for name in QUANTIZERS for codes in ("none", "straight_through", "gumbel")
    if (name, codes) != ("residual", "straight_through")  # a sum of residual codes may be rounded to others
])  # fmt: skip
def test_latents_start_from_codes(name: str, codes: str) -> None:
    net = tokenizer(name)
    ids = torch.randint(net.codebook_size, (1, 16), generator=seeded(3))
    canvas = LatentParameters(net, 16, 16, codes, generator=seeded()).eval()
    canvas.start_from_ids(ids)
    torch.testing.assert_close(canvas().clamp(-1, 1), net.decode_ids(ids), atol=1e-5, rtol=0)
    wide = LatentParameters(net, 8, 32, codes, generator=seeded()).eval()
    wide.start_from_ids(ids)
    torch.testing.assert_close(wide(), net.decode(net.quantizer.decode_ids(ids.view(1, 2, 8))), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "gumbel"])
def test_nearest_codes_are_those_of_the_quantiser(name: str) -> None:
    net = tokenizer(name, any_size=True)
    images = torch.rand((6, 3, 16, 16), generator=seeded(4)) * 2 - 1
    canvas = LatentParameters(net, 16, 16, "straight_through", unit="raw", generator=seeded())
    for image in images.split(1):
        with torch.no_grad():
            canvas.z.copy_(net.latents(image))
        torch.testing.assert_close(canvas().clamp(-1, 1), net.decode_ids(net.encode(image)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name != "gumbel"])
@pytest.mark.parametrize("codes", ["straight_through", "gumbel"])
def test_pictures_of_other_sizes_have_the_same_codes(name: str, codes: str) -> None:
    net, image = tokenizer(name, any_size=True), smooth(8, 20)
    canvas = LatentParameters(net, 8, 20, codes, generator=seeded()).eval()
    canvas.start_from(image)
    ids = net.encode(image).view(1, 2, 5)
    torch.testing.assert_close(canvas(), net.decode(net.quantizer.decode_ids(ids)), atol=1e-5, rtol=0)


def test_straight_through_passes_the_decoders_gradient() -> None:
    net = tokenizer()
    canvas = LatentParameters(net, 16, 16, "straight_through", unit="raw", generator=seeded())
    with torch.no_grad():
        canvas.z.add_(0.003 * torch.randn(canvas.z.shape, generator=seeded(1)))
    canvas().square().sum().backward()
    z_q = net.quantizer.decode_ids(net.quantizer(canvas.z.detach()).ids).detach().requires_grad_()
    net.decode(z_q).square().sum().backward()
    torch.testing.assert_close(canvas.z.grad, z_q.grad)


@pytest.mark.parametrize("unit", ["codebook", "raw"])
def test_after_step_clamps_to_the_codebooks_range(unit: str) -> None:
    net = tokenizer("product")
    canvas = LatentParameters(net, 16, 16, "straight_through", unit=unit, generator=seeded())
    with torch.no_grad():
        canvas.z.normal_(0, 50, generator=seeded())
    canvas.after_step()
    low = torch.cat([book.amin(0) for book in net.codebooks()]).view(1, -1, 1, 1)
    high = torch.cat([book.amax(0) for book in net.codebooks()]).view(1, -1, 1, 1)
    latents = canvas.z.detach() * (1 if unit == "raw" else canvas._unit)
    assert (latents >= low - 1e-6).all() and (latents <= high + 1e-6).all() and (latents - low).abs().min() < 1e-6
    free = LatentParameters(net, 16, 16, generator=seeded())
    with torch.no_grad():
        free.z.fill_(50)
    free.after_step()
    assert (free.z == 50).all()


def test_gumbel_draws_while_training_and_takes_the_likeliest_otherwise() -> None:
    canvas = LatentParameters(tokenizer(), 16, 16, "gumbel", generator=seeded())
    assert not torch.equal(canvas(), canvas())
    canvas.eval()
    assert torch.equal(canvas(), canvas())


def test_gumbel_draws_codes_as_often_as_their_softmax_says() -> None:
    canvas = LatentParameters(tokenizer(), 4, 4, "gumbel", generator=seeded())
    logits = torch.full((1, 20, 1, 1), -50.0)
    logits[0, :3, 0, 0] = torch.tensor([0.5, 0.3, 0.2]).log()
    with torch.no_grad():
        canvas.z.copy_(logits)
        book = canvas._books[0]
        drawn = torch.stack([torch.cdist(canvas._mixed().flatten(1), book).argmin() for _ in range(2000)])
    shares = drawn.bincount(minlength=20) / 2000
    torch.testing.assert_close(shares[:3], torch.tensor([0.5, 0.3, 0.2]), atol=0.04, rtol=0)


def test_given_codes_are_mostly_kept_by_gumbel() -> None:
    net = tokenizer()
    canvas = LatentParameters(net, 16, 16, "gumbel", generator=seeded())
    ids = torch.randint(20, (1, 16), generator=seeded(3))
    canvas.start_from_ids(ids)
    probability = canvas.z.detach().softmax(1).flatten(2)[0].gather(0, ids)
    torch.testing.assert_close(probability, torch.full_like(probability, 0.99))


def test_the_tokenizer_is_frozen_and_gets_no_gradient() -> None:
    net = tokenizer()
    canvas = LatentParameters(net, 16, 16, "straight_through", generator=seeded())
    canvas().sum().backward()
    assert all(weight.grad is None and not weight.requires_grad for weight in net.parameters())
    assert [name for name, _ in canvas.named_parameters()] == ["z"] and not list(canvas.children())


def test_two_colours_on_a_wide_picture() -> None:
    torch.manual_seed(0)
    parts = Product({name: VQ(codebook_size=6, dim=4) for name in ("form", "first", "second")})
    autoencoder = TwoColourAutoencoder(patch_size=4, channels=8, num_res_blocks=1, z_channels=12)
    net = ImageTokenizer(autoencoder, parts, 16).eval()
    canvas = LatentParameters(net, 8, 24, "straight_through", generator=seeded())
    canvas.start_from(smooth(8, 24))
    assert canvas().shape == (1, 3, 8, 24) and canvas.grid == (2, 6)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda g: PixelParameters(0, 4, generator=g), "height=0, width=4: whole numbers from 1"),
        (lambda g: FourierParameters(4, 4, -1, generator=g), "decay=-1: allowed are numbers from 0"),
        (lambda g: SirenParameters(4, 4, hidden=0, generator=g), "hidden=0, layers=8: whole numbers from 1"),
        (lambda g: SirenParameters(4, 4, w0=float("nan"), generator=g), "w0=nan: a number above 0"),
        (lambda g: LatentParameters(tokenizer(), 18, 5, generator=g),
         "height=18, width=5: both must be divisible by the tokenizer's factor 4, such as 16, 4"),
        (lambda g: LatentParameters(tokenizer(), 16, 16, "some", generator=g),
         "codes='some': one of none, straight_through, gumbel"),
        (lambda g: LatentParameters(tokenizer(), 16, 16, unit="m", generator=g), "unit='m': one of codebook, raw"),
        (lambda g: LatentParameters(tokenizer(), 16, 16, temperature=0, generator=g), "temperature=0: a number "),
    ],
)
def test_faults_are_named(make: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make(seeded())


@pytest.mark.parametrize("name", CANVASES)
def test_a_picture_of_another_size_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"image \(1, 3, 12, 8\): the start takes one of shape \(1, 3, 8, 12\)"):
        CANVASES[name](seeded()).start_from(torch.zeros(1, 3, W, H))


def test_wrong_codes_are_refused() -> None:
    canvas = LatentParameters(tokenizer(), 16, 16, generator=seeded())
    with pytest.raises(ValueError, match=r"ids \(1, 15\): there are 4 x 4 codes, \(1, 16\)"):
        canvas.start_from_ids(torch.zeros(1, 15, dtype=torch.long))
    with pytest.raises(ValueError, match=r"ids from 0 to 20: this tokenizer's are 0\.\.19"):
        canvas.start_from_ids(torch.tensor([[0] * 15 + [20]]))
