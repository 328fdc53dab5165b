"""Edits of a picture by a prior that draws in any order (`model=prior_any`): parts drawn anew, variations, more around.

A picture becomes codes, some of them are drawn anew under a caption given the others, and codes become a picture. What
is larger than the model's pictures is done in tiles of their size with overlap: codes of tiles are taken where they are
farthest from an edge, codes are drawn in a window that slides from what is known, and `t2i.generation.tiling` decodes
them. A tile at a time is worked on, so that memory does not grow with the picture but for its pixels.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral, Real
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from t2i.config.messages import shown
from t2i.data.seeds import derive_seed
from t2i.generation.drawing_step import DrawingStep, grey_where_unknown
from t2i.generation.pictures import called, pixels_of
from t2i.generation.tiling import decode_tiled, starts
from t2i.models.any_order import halton_order
from t2i.models.prior_any import PriorAny
from t2i.types import Tokenizer

MOST = 8192  # pixels on a side that `extend` adds
LARGEST = 16_000_000  # pixels of a picture that is edited, or drawn
WAYS = ("mask", "box", "vary", "extend")


@dataclass
class Edit:
    """A picture and what of it is drawn anew: pixels `new`, or the share `vary` of its codes, or `extend` pixels (left,
    top, right, bottom) around it; one of the three.

    composite: pixels that are not drawn anew are the picture's own, with a soft seam on the side of the new ones.
    name: of the picture, for messages.
    """

    image: UInt8[Tensor, "3 h w"]
    new: Bool[Tensor, "h w"] | None = None
    vary: float | None = None
    extend: tuple[int, int, int, int] = (0, 0, 0, 0)
    composite: bool = True
    name: str = "edit.image"

    def check(self, model: Any) -> None:
        """ValueError for a model that cannot edit, or not this picture."""
        if not isinstance(model, PriorAny):
            raise ValueError(f"{self.name}: a {model.kind} draws pictures as a whole; a prior_any edits"
                             " (model=prior_any)")
        check_pixels(self.image, self.name)
        (height, width), side = self.image.shape[1:], model.image_size
        if min(height, width) < side:
            raise ValueError(f"{self.name} has {width} x {height} pixels; at least {side} x {side} are needed, the"
                             " pictures of this model")


def read(node: Mapping[str, Any]) -> Edit | None:
    """What the keys `edit.*` ask for, None where they ask for nothing; ValueError, one line, for what cannot be.
    Pictures are files or PIL's."""
    given = [way for way in WAYS if node[way] is not None]
    if node["image"] is None:
        given += [] if node["composite"] else ["composite"]
        if given:
            raise ValueError(f"edit.{given[0]}={node[given[0]]} needs edit.image=, the picture to edit")
        return None
    name = f"edit.image={called(node['image'])}"
    if len(given) != 1:
        raise ValueError(f"{name}: one of {', '.join(f'edit.{way}=' for way in WAYS)} is needed;"
                         f" given {'are' if given else 'is'} {', '.join(f'edit.{way}' for way in given) or 'none'}")
    way, value = given[0], node[given[0]]
    if way == "vary" and not (_all_of(Real, [value]) and 0 < value <= 1):
        raise ValueError(f"edit.vary={value}: allowed are numbers above 0, to 1 (the share of the codes)")
    if way == "box":
        check_box(value)
    if way == "extend":
        check_extend(value)
    image = pixels_of(node["image"], "edit.image")
    check_pixels(image, name)
    found = Edit(image, composite=node["composite"], name=name)
    if way == "mask":
        found.new = read_mask(value, *image.shape[1:])
    elif way == "box":
        found.new = of_box(value, *image.shape[1:])
    elif way == "vary":
        found.vary = float(value)
    else:
        found.extend = left, top, right, bottom = (value[0], value[1], value[2], value[3])
        check_area(image.shape[2] + left + right, image.shape[1] + top + bottom, f"edit.extend={value}")
    if found.new is not None and (some := bool(found.new.any())) == bool(found.new.all()):
        what, why = ("all", "there is nothing to keep: draw without edit.*") if some else ("nothing", "white is drawn")
        raise ValueError(f"edit.{way}={called(value)} covers {what} of the picture; {why}")
    return found


def check_pixels(image: UInt8[Tensor, "3 h w"], name: str) -> None:
    height, width = image.shape[1:]
    if height * width > LARGEST:
        raise ValueError(f"{name} has {width} x {height} pixels; at most {LARGEST:,} in all can be edited: make it"
                         " smaller, or cut out the part")


def _all_of(kind: type, values: Sequence[Any]) -> bool:
    """Whether all are of a kind of numbers, numpy's among them, and none is a bool."""
    return all(isinstance(value, kind) and not isinstance(value, bool) for value in values)


def check_box(box: Any) -> None:
    numbers = isinstance(box, list | tuple) and len(box) == 4 and _all_of(Real, box)
    if not numbers or not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
        raise ValueError(f"edit.box={box}: allowed are [x0,y0,x1,y1] with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, in"
                         " shares of the side")


def check_extend(extend: Any) -> None:
    whole = isinstance(extend, list | tuple) and len(extend) == 4 and _all_of(Integral, extend)
    if not whole or min(extend) < 0 or not 0 < max(extend) <= MOST:
        raise ValueError(f"edit.extend={extend}: allowed are [left,top,right,bottom], whole numbers of pixels from 0 to"
                         f" {MOST}, and not all 0")


def of_box(box: Sequence[float], height: int, width: int) -> Bool[Tensor, "h w"]:
    new = torch.zeros(height, width, dtype=torch.bool)
    new[math.floor(box[1] * height) : math.ceil(box[3] * height),
        math.floor(box[0] * width) : math.ceil(box[2] * width)] = True
    return new


def read_mask(path: Any, height: int, width: int) -> Bool[Tensor, "h w"]:
    """Of a picture of any size and the aspect of height x width: True where it is white, at least half."""
    return mask_of(pixels_of(path, "edit.mask", background=0), height, width, f"edit.mask={called(path)}")


def mask_of(pixels: UInt8[Tensor, "3 h2 w2"], height: int, width: int, name: str) -> Bool[Tensor, "h w"]:
    """As `read_mask`, of the mask's pixels; `name` is what messages call it."""
    own_height, own_width = pixels.shape[1:]
    if abs(own_height * width / own_width - height) > max(1, height / own_height):  # a pixel of either
        raise ValueError(f"{name} has {own_width} x {own_height} pixels, another aspect than the picture's"
                         f" {width} x {height}; allowed is any size of the same aspect")
    white = (pixels.float().mean(0, keepdim=True) >= 128).float()
    return F.adaptive_max_pool2d(white, (height, width))[0] > 0  # a thin line stays


def encode(tokenizer: Tokenizer, image: Float[Tensor, "1 3 h w"]) -> Int[Tensor, "gh gw"]:
    """The codes of a picture whose sides are multiples of a patch, each from the tile that it is deepest in."""
    (rows, columns), side = tokenizer.grid, tokenizer.image_size
    patch = side // rows
    height, width = image.shape[2] // patch, image.shape[3] // patch
    ids = torch.zeros(height, width, dtype=torch.long, device=image.device)
    deepest = torch.full((height, width), -1, device=image.device)
    for top, left in product(starts(height, rows), starts(width, columns)):
        tile = image[:, :, top * patch : top * patch + side, left * patch : left * patch + side]
        found = tokenizer.encode(tile).view(rows, columns)
        depth = torch.minimum(*torch.meshgrid(_depth(top, rows, height), _depth(left, columns, width), indexing="ij"))
        depth = depth.to(image.device)
        where = slice(top, top + rows), slice(left, left + columns)
        better = depth > deepest[where]
        ids[where] = torch.where(better, found, ids[where])
        deepest[where] = torch.where(better, depth, deepest[where])
    return ids


def _depth(start: int, window: int, length: int) -> Int[Tensor, " window"]:
    """Steps to the nearer edge of a window; an edge of the picture itself is none."""
    before = torch.arange(window) if start else torch.full((window,), length)
    after = torch.arange(window).flip(0) if start + window < length else torch.full((window,), length)
    return torch.minimum(before, after)


def next_window(known: Bool[Tensor, "gh gw"], grid: tuple[int, int]) -> tuple[int, int]:
    """Where the window lies that is drawn next: of those of which half is known the one with most to draw, else the one
    with most known."""
    rows, columns = grid
    sums = F.pad(known.long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    tops, lefts = torch.tensor(starts(known.shape[0], rows)), torch.tensor(starts(known.shape[1], columns))
    a, b, c, d = tops[:, None], tops[:, None] + rows, lefts, lefts + columns
    count, whole = sums[b, d] - sums[a, d] - sums[b, c] + sums[a, c], rows * columns
    # Least known above a half comes first, then most known below it, and never what is all known.
    rank = torch.where(count == whole, -1, torch.where(2 * count >= whole, 2 * whole - count, count))
    best = int(rank.argmax())
    return int(tops[best // len(lefts)]), int(lefts[best % len(lefts)])


def fill(
    model: PriorAny, ids: Int[Tensor, "b gh gw"], known: Bool[Tensor, "gh gw"], text: list[str], seeds: Sequence[int],
    **options: Any,
) -> Iterator[tuple[Int[Tensor, "b gh gw"], Bool[Tensor, "b gh gw"]]]:
    """Draws all codes that are not known, window after window, and yields after each step all codes and which of them
    there are; both go on being written to. Options are those of `PriorAny.codes`."""
    ids, known = ids.clone(), known.cpu().clone()
    there = known.to(ids.device).repeat(len(ids), 1, 1)
    if bool(known.all()):
        yield ids, there
    rows, columns = model.tokenizer.grid
    number = 0
    while not bool(known.all()):
        top, left = next_window(known, (rows, columns))
        where = slice(top, top + rows), slice(left, left + columns)
        here, given = known[where].flatten().clone(), ids[:, *where].flatten(1)
        own = [derive_seed(seed, "window", number) if number else seed for seed in seeds]
        steps = model.code_steps(text, seeds=own, given=given[:, here.to(ids.device)], known=here, **options)
        for drawn, so_far in steps:
            ids[:, *where], there[:, *where] = drawn.view(-1, rows, columns), so_far.view(-1, rows, columns)
            yield ids, there
        known[where], number = True, number + 1


def check_size(size: Any, model: Any, key: str = "size") -> tuple[int, int]:
    """Width and height that a text such as 512x256 asks for; ValueError, which begins with `key`, where the model draws
    no pictures of it."""
    found = re.fullmatch(r"(\d{1,6})x(\d{1,6})", str(size))
    if found is None:
        raise ValueError(f"{key}={shown(size, 40)}: width x height is wanted, such as {key}=512x256")
    if not isinstance(model, PriorAny):
        raise ValueError(f"{key}={size}: a {model.kind} draws pictures of its own size alone; a prior_any draws any"
                         " (model=prior_any)")
    width, height = int(found[1]), int(found[2])
    side, patch = model.image_size, model.image_size // model.tokenizer.grid[0]
    if min(width, height) < side or max(width, height) > MOST or width % patch or height % patch:
        raise ValueError(f"{key}={size}: allowed are multiples of {patch}, the pixels of a code, from {side} to"
                         f" {MOST // patch * patch} on each side")
    check_area(width, height, f"{key}={size}")
    return width, height


def check_area(width: int, height: int, name: str) -> None:
    if width * height > LARGEST:
        raise ValueError(f"{name} makes {width} x {height} pixels; at most {LARGEST:,} in all are drawn")


def draw_sized(
    model: PriorAny, size: tuple[int, int], text: Sequence[str], seeds: Sequence[int], batch_size: int = 16,
    negative: str | None = None, **options: Any,
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Yields batches of pictures of that width and height, in [-1, 1] on the CPU, drawn in a window of the model's size
    that slides; a picture of the model's own size is that of `sample`."""
    patch = model.image_size // model.tokenizer.grid[0]
    grid = size[1] // patch, size[0] // patch
    for start in range(0, len(text), batch_size):
        some = list(text[start : start + batch_size])
        away = None if negative is None else [negative] * len(some)
        ids = torch.zeros(len(some), *grid, dtype=torch.long, device=model.device)
        drawn = fill(model, ids, torch.zeros(grid, dtype=torch.bool), some, seeds[start : start + batch_size],
                     negative=away, **options)
        yield decode_tiled(model.tokenizer, deque(drawn, maxlen=1)[0][0])


def blend(new: Bool[Tensor, "h w"], seam: int) -> Float[Tensor, "h w"]:
    """The share of what is drawn anew in each pixel: 0 where nothing is, rising to 1 over `seam` pixels."""
    inside = new.float()[None, None]
    total = torch.zeros_like(inside)
    for _ in range(seam):
        inside = 1 - F.max_pool2d(F.pad(1 - inside, (1, 1, 1, 1)), 3, 1)  # beyond the picture's edge nothing is kept
        total = total + inside
    return ((new.float() + total[0, 0]) / (seam + 1)) * new


def edited(
    model: PriorAny, edit: Edit, text: list[str], seeds: Sequence[int], **options: Any
) -> Float[Tensor, "b 3 h w"]:
    """The picture edited once for each caption and seed, in [-1, 1] on the CPU; options are those of `PriorAny.codes`.
    """
    return deque(edit_steps(model, edit, text, seeds, **options), maxlen=1)[0].images()


def edit_steps(
    model: PriorAny, edit: Edit, text: list[str], seeds: Sequence[int], **options: Any
) -> Iterator[DrawingStep]:
    """As `edited`, after each step of drawing; what is not drawn yet is grey."""
    edit.check(model)
    model.place()
    tokenizer, (height, width) = model.tokenizer, edit.image.shape[1:]
    patch = model.image_size // tokenizer.grid[0]
    left, top, right, bottom = edit.extend
    before = math.ceil(left / patch), math.ceil(top / patch)  # whole codes
    pixels = edit.image.float().div(127.5).sub(1)[None]
    own = F.pad(pixels, (0, -width % patch, 0, -height % patch), mode="replicate")
    codes = encode(tokenizer, own.to(model.device))
    total = (before[1] + math.ceil((height + bottom) / patch), before[0] + math.ceil((width + right) / patch))
    around = before[0] * patch, before[1] * patch
    source = F.pad(pixels, (around[0], total[1] * patch - width - around[0], around[1],
                            total[0] * patch - height - around[1]), mode="replicate")
    ids = torch.zeros(total, dtype=torch.long, device=model.device)
    ids[before[1] : before[1] + codes.shape[0], before[0] : before[0] + codes.shape[1]] = codes
    if edit.vary is not None:
        new = torch.zeros(total, dtype=torch.bool).flatten()
        new[halton_order(total)[: max(1, round(edit.vary * len(new)))]] = True
        new = new.view(total).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    else:
        new = torch.ones(source.shape[2:], dtype=torch.bool)
        new[around[1] : around[1] + (height if bottom else own.shape[2]),
            around[0] : around[0] + (width if right else own.shape[3])] = False
        if edit.new is not None:
            new[around[1] : around[1] + height, around[0] : around[0] + width] = edit.new
    known = F.max_pool2d(new.float()[None], patch)[0] == 0
    missing = int((~known).sum())
    corner = around[1] - top, around[0] - left
    rows = slice(corner[0], corner[0] + top + height + bottom)
    columns = slice(corner[1], corner[1] + left + width + right)
    for drawn, there in fill(model, ids.expand(len(text), -1, -1), known, text, seeds, **options):

        def images(drawn: Tensor = drawn, there: Tensor = there) -> Tensor:
            found = grey_where_unknown(decode_tiled(tokenizer, drawn), there)
            if edit.composite:
                share = blend(new, max(1, patch // 4))
                found = share * found + (1 - share) * source
            return found[:, :, rows, columns]

        yield DrawingStep(missing - int((~there[0]).sum()), missing, images)


def draw(
    model: PriorAny, edit: Edit, text: Sequence[str], seeds: Sequence[int], batch_size: int = 16,
    negative: str | None = None, **options: Any,
) -> Iterator[Float[Tensor, "b 3 h w"]]:
    """Yields batches of edited pictures; `negative` is a caption to lead away from."""
    for start in range(0, len(text), batch_size):
        some = list(text[start : start + batch_size])
        away = None if negative is None else [negative] * len(some)
        yield edited(model, edit, some, seeds[start : start + batch_size], negative=away, **options)
