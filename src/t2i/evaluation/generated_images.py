"""Pictures to evaluate: how a model draws them, and a folder of them, drawn by it or by another program.

`metadata.jsonl` has a line a picture, `file_name` and `text` (the form that `data=folder` reads too); a picture lies
there as a PNG as soon as it is drawn, so that a command that was broken off goes on where it stopped.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from t2i.checkpoint import atomic
from t2i.checkpoint.plain_files import read_json
from t2i.config.messages import quoted
from t2i.data.decode import fit, read_pixels
from t2i.data.folder import read_folder
from t2i.data.seeds import derive_seed
from t2i.viz.grids import save, to_uint8
from t2i.viz.progress import counter

BATCH = 64
RECORD = "drawing.json"
LARGEST = 1024  # on a GPU, from where it is halved until it fits


def largest_batch(device: torch.device, wanted: int | None) -> int:
    return wanted or (LARGEST if device.type == "cuda" else BATCH)


def draw(
    model: Any, text: Sequence[str], seed: int, options: Mapping[str, Any], numbers: Sequence[int] | None = None, *,
    purpose: str = "evaluation", batch: int = BATCH, label: str | None = None,
    negative: Mapping[str, str] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers (b,) and pictures uint8 (b, h, w, 3) on the CPU, a batch at a time.

    Picture i has the seed f(seed, purpose, i), whatever the batch and whoever draws it. The batch is halved for good
    where the GPU's memory is short.

    Args:
        text: all captions; `numbers` are those to draw, None for all.
        label: of the progress that is shown; None for none.
        negative: by caption, what a prior's guidance leads away from.
    """
    todo = list(range(len(text))) if numbers is None else list(numbers)
    at, before = 0, len(text) - len(todo)
    with counter(label, len(text)) if label is not None else nullcontext(lambda done: None) as progress:
        while at < len(todo):
            some = todo[at : at + batch]
            try:
                with torch.set_grad_enabled(hasattr(model, "clip_models")):  # guided drawing goes by gradients
                    away = {} if negative is None else {"negative": [negative[text[i]] for i in some]}
                    images = model.sample([text[i] for i in some], seeds=[derive_seed(seed, purpose, i) for i in some],
                                          **away, **options)
            except torch.OutOfMemoryError:
                if batch == 1:
                    raise
                torch.cuda.empty_cache()
                batch = batch // 2
                continue
            yield torch.tensor(some), torch.from_numpy(to_uint8(images))
            at += len(some)
            progress(before + at)


class GeneratedImages:
    """Pictures in a folder, in the order of their listing.

    Args:
        folder: made if need be.
        names, text: file name and caption (None where there is none) of each.
        size: pictures are cut about the centre and to_float to this side; None: all must be of one size.
    """

    def __init__(self, folder: Path, names: Sequence[str], text: Sequence[str | None], size: int | None = None) -> None:
        self.folder, self.names, self.text, self.size = Path(folder), list(names), list(text), size
        self.grey = 0  # pictures without colours among those read
        self.guides: list[str] = []  # hashes of the CLIPs that guided them

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def for_captions(cls, root: Path, request: dict[str, Any], text: Sequence[str]) -> GeneratedImages:
        """The folder under `root` that belongs to this request (model, sampler, seed) and these captions."""
        key = f"{derive_seed(json.dumps(request, sort_keys=True), list(text)):016x}"
        folder = root / key
        names = [f"{i:06}.png" for i in range(len(text))]
        lines = [json.dumps({"file_name": n, "text": t}, ensure_ascii=False) for n, t in zip(names, text, strict=True)]
        try:
            atomic.write_text(folder / "metadata.jsonl", "\n".join(lines) + "\n")
            atomic.write_text(folder / "request.json", json.dumps(request, indent=1))
        except OSError as error:
            raise ValueError(f"out: {folder} cannot be written: {error.strerror}; choose another with out=…") from error
        return cls(folder, names, text)

    @classmethod
    def read(cls, folder: str | Path, size: int | None = None) -> GeneratedImages:
        """A folder of pictures in one of the forms of `data=folder`; the first caption of each counts."""
        root = Path(folder)
        if not root.is_dir():
            raise ValueError(f"images={folder} is no folder; it must hold pictures, for captions with a metadata.jsonl")
        if (root / RECORD).is_file():
            return cls._of_record(root, size)
        rows, faults = read_folder(root)
        if faults:
            raise ValueError(f"images={folder}: " + "; ".join(faults[:5]))
        if not rows:
            raise ValueError(f"images={folder} holds no pictures")
        return cls(root, [row["key"] for row in rows], [(row["captions"] or [None])[0] for row in rows], size)

    @classmethod
    def _of_record(cls, root: Path, size: int | None) -> GeneratedImages:
        """What sample.py drew: pictures and captions of its drawing.json."""
        try:
            record = read_json(root / RECORD)
            listed = [(entry["file"], entry.get("prompt")) for entry in record["pictures"]]
            odd = [name for name, text in listed if not isinstance(name, str) or Path(name).name != name
                   or not isinstance(text, str | None)]
            if odd:
                raise ValueError(f"a picture's file {quoted(odd[0])}; names in the folder and captions are wanted")
            guides = list(record["request"].get("hashes", {}).get("guides", {}).values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{root / RECORD} is not as sample.py writes it ({type(error).__name__}:"
                             f" {error})") from error
        if not listed:
            raise ValueError(f"{root / RECORD} lists no pictures: sample.py was stopped at once, or draws just now")
        found = cls(root, [name for name, _ in listed], [text for _, text in listed], size)
        found.guides = guides
        return found

    def only(self, order: Sequence[int]) -> GeneratedImages:
        """Some of the pictures, in this order."""
        return GeneratedImages(self.folder, [self.names[i] for i in order], [self.text[i] for i in order], self.size)

    def missing(self) -> list[int]:
        return [i for i, name in enumerate(self.names) if not (self.folder / name).is_file()]

    def draw(
        self, todo: Sequence[int], model: Any, seed: int, options: Mapping[str, Any], batch: int, label: str,
        negative: Mapping[str, str] | None = None,
    ) -> None:
        """Draws pictures by their numbers, as `draw` does; OSError where one cannot be written."""
        for numbers, pictures in draw(model, [text or "" for text in self.text], seed, options, todo, batch=batch,
                                      label=label, negative=negative):
            for i, pixels in zip(numbers.tolist(), pictures.numpy(), strict=True):
                save(Image.fromarray(pixels), self.folder / self.names[i])

    def picture(self, index: int) -> Tensor:
        """uint8 (h, w, 3), in colours whatever the file has."""
        path = self.folder / self.names[index]
        if not path.is_file():
            raise ValueError(f"{path} is listed, but not there")
        image = read_pixels(path.read_bytes(), path)
        if image.shape[0] == 1:
            image = image.expand(3, -1, -1)
        if bool((image[0] == image[1]).all()) and bool((image[1] == image[2]).all()):
            self.grey += 1
        return (image if self.size is None else fit(image, self.size, square=True)).permute(1, 2, 0)

    def batches(self, size: int = BATCH, progress: Callable[[int], None] | None = None
                ) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers (b,) and pictures uint8 (b, h, w, 3), in order; ValueError where they differ in size."""
        shape = None
        self.grey = 0
        for start in range(0, len(self), size):
            some = range(start, min(start + size, len(self)))
            found = [self.picture(i) for i in some]
            shapes = Counter(tuple(p.shape[:2]) for p in found)
            shape = shape or next(iter(shapes))
            if set(shapes) != {shape}:
                other = next(s for s in shapes if s != shape)
                name = next(self.names[i] for i, p in zip(some, found, strict=True) if tuple(p.shape[:2]) == other)
                raise ValueError(f"{self.folder}: pictures differ in size ({self.names[0]} {shape[1]}x{shape[0]},"
                                 f" {name} {other[1]}x{other[0]}): size=N cuts them about the centre and scales all to"
                                 " N pixels")
            yield torch.tensor(list(some)), torch.stack(found)
            if progress is not None:
                progress(some.stop)

    def captions(self) -> list[str]:
        """ValueError for pictures without one."""
        bare = [name for name, text in zip(self.names, self.text, strict=True) if text is None]
        if bare:
            raise ValueError(f"images={self.folder}: {len(bare)} of {len(self)} pictures have no caption (for instance"
                             f" {bare[0]}), which metrics=[clip_score], [r_precision] and [composition] need: a"
                             " metadata.jsonl with file_name and text, or a text file beside each picture")
        return [text for text in self.text if text is not None]

    def all(self) -> Tensor:
        """uint8 (n, h, w, 3)."""
        return torch.cat([images for _, images in self.batches()])
