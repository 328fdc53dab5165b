"""The contracts between packages: what travels from one part to another, and what each part must do.

Images travel as float32 in [-1, 1], shape (b, 3, h, w); data sets yield uint8, which the batch assembly scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn


@dataclass
class Example:
    """One item of a data set: the picture as bytes, every caption it has, and where it came from."""

    image: UInt8[Tensor, "3 h w"]
    captions: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class UnseenWord:
    """A word or phrase that stands in no caption of a data set, and names some of its concepts.

    captions: by style, one that asks for the word in the fullest form of the data set's own. plain_caption: without a
    style.
    """

    word: str
    concepts: tuple[str, ...]
    captions: dict[str, str]
    plain_caption: str


@dataclass(frozen=True)
class Gallery:
    """All true pictures of a data set of concepts drawn in styles, row i of every field but the last for picture i.

    images: (n, 3, s, s) uint8. concepts, styles: names. captions: one caption a picture that names concept and style.
    plain_captions: one that names the concept alone.
    held_out: (n,) bool: the pair is in no training split. unseen_words: by which concepts can be asked for.
    """

    images: UInt8[Tensor, "n 3 s s"]
    concepts: list[str]
    styles: list[str]
    captions: list[str]
    plain_captions: list[str]
    held_out: Bool[Tensor, " n"]
    unseen_words: list[UnseenWord] = field(default_factory=list)


@runtime_checkable
class HasGallery(Protocol):
    """A data set of concepts drawn in styles; whichever split it is, `gallery` has the pictures of all."""

    def gallery(self) -> Gallery: ...


@dataclass
class Batch:
    """Pictures in [-1, 1] with one caption each; `key` names the source of each."""

    image: Float[Tensor, "b 3 h w"]
    text: list[str]
    key: list[str]

    def pin_memory(self) -> Batch:
        """The same where a GPU fetches it from by itself; torch's loaders ask for it."""
        return replace(self, image=self.image.pin_memory())


@dataclass
class CodeBatch:
    """Codebook indices in raster order with one caption each, as the prior trains on them.

    `states` and `mask` are the captions' as `TextEmbedding` has them, where they were cached."""

    ids: Int[Tensor, "b n"]
    text: list[str]
    key: list[str]
    states: Float[Tensor, "b t d"] | None = None
    mask: Bool[Tensor, "b t"] | None = None

    def pin_memory(self) -> CodeBatch:
        """As of `Batch`."""
        states, mask = (None if one is None else one.pin_memory() for one in (self.states, self.mask))
        return replace(self, ids=self.ids.pin_memory(), states=states, mask=mask)


@dataclass
class Quantized:
    """What every quantiser returns: `z_q` carries the gradient to the encoder, `ids` index the codebook."""

    z_q: Float[Tensor, "b d h w"]
    ids: Int[Tensor, "b h w"]
    loss: Float[Tensor, ""]
    metrics: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class TextStates:
    """Caption states: `mask` is True at real positions."""

    states: Float[Tensor, "b t d"]
    mask: Bool[Tensor, "b t"]


@dataclass
class TextEmbedding(TextStates):
    """Caption states, and `pooled`, one vector a caption."""

    pooled: Float[Tensor, "b p"]


def unravel_index(ids: Int[Tensor, "..."], factors: Sequence[int]) -> Int[Tensor, "... f"]:
    """A code as one number a factor, the most significant first."""
    found = []
    for factor in reversed(factors[1:]):
        found.append(ids % factor)
        ids = ids // factor
    return torch.stack([ids, *reversed(found)], -1)


def ravel_index(each: Int[Tensor, "... f"], factors: Sequence[int]) -> Int[Tensor, "..."]:
    """The inverse of `unravel_index`."""
    ids = each[..., 0]
    for i, factor in enumerate(factors[1:], 1):
        ids = ids * factor + each[..., i]
    return ids


class Autoencoder(Protocol):
    """A module's two halves: pictures to latents of `z_channels` channels, in `parts` equal groups, and back.

    `factor`: pixels a side that one latent covers; `last_layer`: the decoder's last weight, which `decoder.compile`
    leaves out, so that its gradient alone can be asked for.
    """

    factor: int
    z_channels: int
    parts: int

    @property
    def encoder(self) -> nn.Module: ...

    @property
    def decoder(self) -> nn.Module: ...

    @property
    def last_layer(self) -> Tensor: ...


@runtime_checkable
class Quantizer(Protocol):
    """`factors`: how many codes each part of a code has, (codebook_size,) where codes have no parts. `unrounded` takes
    latents to where the codes lie, choosing none."""

    dim: int
    codebook_size: int
    factors: tuple[int, ...]

    def __call__(self, z: Float[Tensor, "b d h w"]) -> Quantized: ...

    def unrounded(self, z: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]: ...

    def decode_ids(self, ids: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]: ...

    def codebooks(self) -> list[Float[Tensor, "k d"]]: ...


@runtime_checkable
class Tokenizer(Protocol):
    """Pictures to codes and back. `grid` is (rows, columns); ids are in raster order; `dim`, `factors` and `codebooks`
    are the quantiser's. `latents` are what is rounded to codes, before that; `decode` takes them, or codes' vectors,
    with gradients, and does not clamp its pictures; both take other sizes than `image_size` where the net does."""

    dim: int
    codebook_size: int
    factors: tuple[int, ...]
    grid: tuple[int, int]
    image_size: int

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def encode(self, image: Float[Tensor, "b 3 h w"]) -> Int[Tensor, "b n"]: ...

    def decode_ids(self, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b 3 h w"]: ...

    def latents(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d gh gw"]: ...

    def decode(self, z_q: Float[Tensor, "b d gh gw"]) -> Float[Tensor, "b 3 h w"]: ...

    def codebooks(self) -> list[Float[Tensor, "k d"]]: ...


@runtime_checkable
class TextEncoder(Protocol):
    dim: int
    pooled_dim: int
    max_length: int

    def __call__(self, text: list[str]) -> TextEmbedding: ...

    def states(self, text: list[str]) -> TextStates:
        """The same states, and no more work than they take."""
        ...

    def not_seen(self, caption: str) -> str | None:
        """What of a caption is not taken, in a line: unknown words, and what is cut; None where all is."""
        ...


@runtime_checkable
class ClipModel(Protocol):
    """A frozen CLIP that says how like a text a picture is, with a gradient for the picture.

    Views are square, in [-1, 1] like all pictures here; embeddings are unit vectors in float32."""

    image_size: int
    name: str

    def embed_text(self, text: list[str]) -> Float[Tensor, "b d"]: ...

    def embed_image(self, views: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b d"]: ...

    def hash(self) -> str: ...

    def to(self, device: torch.device | str) -> object: ...


class ImageParameters(Protocol):
    """A picture as parameters, which clip-guided drawing moves. Called, it gives the picture, about in [-1, 1], not
    clamped.

    `after_step` brings the parameters back to where they may lie, after every step of the optimiser; `start_from` makes
    the picture as like a given one as it can be; the parameters are exactly what is moved, frozen decoders stay out."""

    height: int
    width: int

    def __call__(self) -> Float[Tensor, "1 3 h w"]: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def train(self, mode: bool = True) -> object: ...

    def after_step(self) -> None: ...

    def start_from(self, image: Float[Tensor, "1 3 h w"]) -> None: ...


@dataclass
class GeneratorOutput:
    """What a GAN's generator returns: pictures in [-1, 1] and, where it draws its conditions from a Gaussian around the
    caption (conditioning augmentation), that Gaussian's mean and the logarithm of its variance."""

    image: Float[Tensor, "b 3 h w"]
    mean: Float[Tensor, "b c"] | None = None
    log_var: Float[Tensor, "b c"] | None = None


@dataclass
class DiscriminatorFeatures:
    """What a discriminator makes of pictures before it is told a caption; `pixels` has a logit a pixel, if it has them.
    """

    deep: Float[Tensor, "b c 4 4"]
    pixels: Float[Tensor, "b 1 h w"] | None = None


@dataclass
class DiscriminatorLogits:
    """Logits of pictures, high for real ones: with the caption, and without it where the discriminator has such a head.
    """

    conditional: Float[Tensor, " b"]
    unconditional: Float[Tensor, " b"] | None = None
    pixels: Float[Tensor, "b 1 h w"] | None = None


class TextGenerator(Protocol):
    """A net from noise (b, noise_dim), standard normal, and captions (b, text_dim) to pictures."""

    image_size: int
    noise_dim: int
    text_dim: int

    def __call__(self, noise: Float[Tensor, "b z"], text: Float[Tensor, "b t"]) -> GeneratorOutput: ...


class TextDiscriminator(Protocol):
    """A net in two halves, so that one look at a picture serves for its own caption and for a wrong one."""

    image_size: int
    text_dim: int

    def features(self, image: Float[Tensor, "b 3 h w"]) -> DiscriminatorFeatures: ...

    def logits(self, seen: DiscriminatorFeatures, text: Float[Tensor, "b t"]) -> DiscriminatorLogits: ...


@runtime_checkable
class TextToImage(Protocol):
    """Draws one picture a caption, each from its own integer seed, so that no picture depends on its batch.

    An option that the model does not know is a ValueError.
    """

    def sample(self, text: list[str], *, seeds: list[int], **options: object) -> Float[Tensor, "b 3 h w"]: ...
