"""Data sets of Hugging Face's library `datasets` (arXiv 2109.02846): local Parquet, an imagefolder, a name on the hub.

What the library does here is to find, fetch and open the tables; bytes become pixels by this project's own reading
(`decode.py`), so that sizes, damage and the packed cache are as of every data set. No data set's code runs: scripts are
refused, of local files only the kinds named above are opened (a README.md that names others is not read), and a row
that names a file instead of holding a picture opens none outside the data set.

Splits: `train_split` and `val_split`, by default those named train (training) and validation (val, valid, dev); test is
left alone. Without one for validation every twentieth row of training is, by a hash of its picture (its length and its
last bytes; of a file its name; of a stream the row's number): a picture that stands in several rows is on one side.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from t2i.checkpoint.registry import register
from t2i.config.messages import quoted, shown
from t2i.data.image_dataset import (
    CAPTION_NAMES,
    SPLIT_NAMES,
    ImageDataset,
    Split,
    assign_splits,
    find_files,
    is_image,
    split_named,
)
from t2i.data.rows import ListingError, Row, one_line

PACKAGE = "datasets"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
READ = ("parquet", "arrow", "imagefolder", "cache")  # builders of the library; cache is what it fetched before
TABLES = (".parquet", ".geoparquet", ".gpq")
METADATA = "metadata.parquet"  # of an imagefolder
HELD = 256  # pictures of a stream that are kept for whoever asks a little later
TAIL = 256  # bytes of a picture's end that, with its length, stand for it


@register("data", places=("path", "cache"))
class HuggingFace(ImageDataset):
    """Captioned pictures of a data set that the library `datasets` reads.

    Args beside those of `ImageDataset`:
        path: a Parquet file, a folder of them (split by words in their names), an imagefolder, or a name on the hub.
        train_split, val_split: of the data set, also slices (`train[:90%]`); None for those named so.
        image_column: of pictures or their bytes; None for the one that there is.
        caption_column: of strings, lists of strings or class labels; None for the one with a usual name, if any.
        config_name, revision: of a data set on the hub; None for its default.
        streaming: rows are read in order, once a split, into the packed cache, and no table is kept on the disk.
        allow_download: whether a name on the hub may be fetched; else it is looked up in `cache`.
        cache: where fetched and opened tables lie, under `huggingface`.

    ValueError, one line, where there is no such data set or column, or the library cannot read it.
    """

    def __init__(self, split: Split, path: str, train_split: str | None = None, val_split: str | None = None,
                 image_column: str | None = None, caption_column: str | None = None, config_name: str | None = None,
                 revision: str | None = None, streaming: bool = False, allow_download: bool = False,
                 image_size: int = 64, load_size: int | None = None, crop: Literal["center", "random"] = "center",
                 flip: bool = False, views: int = 1, seed: int = 0, on_error: Literal["raise", "skip"] = "raise",
                 pack: bool = True, cache: Path | None = None) -> None:
        if streaming and not pack:
            raise ValueError("data.streaming=true needs data.pack=true: the rows of a stream come in order alone")
        self.where, self.streaming = f"data.path={quoted(path, 200)}", streaming
        self.cache = (Path("cache") if cache is None else Path(cache)).absolute() / "huggingface"
        local = Path(path).expanduser()
        self.source = [local.name if local.exists() else path, config_name, revision, streaming]
        with self._library(allow_download, path) as library:
            if local.exists():
                for key, value in (("config_name", config_name), ("revision", revision)):
                    if value is not None:
                        raise ValueError(f"data.{key}={value} is of a data set on the hub, and {self.where} is here")
                root = (local if local.is_dir() else local.parent).absolute()
                words = self._local_files(local)
            elif HUB_NAME.fullmatch(path):
                root = self.cache / path.replace("/", "___")
                words = {"path": path, "name": config_name, "revision": revision}
            else:
                raise ValueError(f"{self.where}: there is no such file or folder, and a name on the hub is OWNER/NAME")
            builder = self._opened(library, words)
            if not streaming:
                builder.download_and_prepare()
            names = list(builder.info.splits or {}) or list(builder.as_streaming_dataset())
            table_split, held_out = choose_split(self.where, names, split, train_split, val_split)
            table = builder.as_streaming_dataset(table_split) if streaming else builder.as_dataset(table_split)
            self.image_column, self.caption_column, others = choose_columns(
                self.where, library, table.features, image_column, caption_column)
            self._labels = label_names(library, table.features, self.caption_column)
            listed, pictures = table, table.select_columns([self.image_column]).with_format("arrow")
            columns = [self.caption_column] if self.caption_column else []
            if not streaming:
                listed = table.select_columns([self.image_column, *columns])
            elif columns and builder.name == "parquet":  # of a stream only the captions are read twice
                listed = self._opened(library, {**words, "columns": columns}).as_streaming_dataset(table_split)
            faults: list[str] = []
            self.root = root
            rows = list(self._rows(listed.with_format("arrow"), table_split, faults))
        self.splits, self.table_split, self.held_out = names, table_split, held_out
        if held_out and rows:
            sides = assign_splits([row["digest"] for row in rows])
            rows = [row for row, side in zip(rows, sides, strict=True) if side == split]
        self._pictures: Any = pictures
        if streaming:
            self._pictures = Cursor(lambda: self._stream(pictures), [row["index"] for row in rows])
        hint = "data.caption_column= names a column of captions" + (f"; it has {', '.join(others)}" if others else "")
        super().__init__(split, root, rows, faults, image_size, load_size, crop, flip, views, seed, on_error, pack,
                         f"; it has the splits {', '.join(names)}", caption_hint=hint)

    @contextmanager
    def _library(self, allow_download: bool, path: str) -> Iterator[Any]:
        """The library, without a network unless it is allowed; what it raises as one line."""
        try:
            import datasets
            from huggingface_hub.utils import logging as hub_logging
        except ImportError as error:
            raise ValueError(f"data=huggingface needs the package {PACKAGE} ({error.name}): pip install {PACKAGE}"
                             ) from error
        before = (datasets.config.HF_HUB_OFFLINE, datasets.are_progress_bars_disabled(),
                  datasets.logging.get_verbosity(), hub_logging.get_verbosity())
        datasets.config.HF_HUB_OFFLINE = before[0] or not allow_download
        if not allow_download:
            datasets.disable_progress_bars()
        datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what goes wrong is said below, once
        hub_logging.set_verbosity_error()
        try:
            yield datasets
        except ListingError:
            raise
        except Exception as error:  # the library raises its own, pyarrow's, fsspec's and the network's
            if type(error) is ValueError and str(error).startswith("data."):
                raise
            raise ValueError(f"{self.where}: {self._reason(error, allow_download, path)}") from error
        finally:
            datasets.config.HF_HUB_OFFLINE = before[0]
            if not before[1]:
                datasets.enable_progress_bars()
            datasets.logging.set_verbosity(before[2])
            hub_logging.set_verbosity(before[3])

    def _reason(self, error: BaseException, allow_download: bool, path: str) -> str:
        while error.__cause__ is not None and type(error).__name__.startswith("DatasetGeneration"):
            error = error.__cause__
        line, kind = shown(" ".join(str(error).split()), 300), type(error).__name__
        if isinstance(error, ConnectionError) and not allow_download:
            return (f"there is no such file or folder, and no data set of that name was fetched to {self.cache};"
                    " data.allow_download=true fetches it from the hub")
        if isinstance(error, ConnectionError):
            return f"the hub cannot be reached, and nothing of that name was fetched to {self.cache} ({line})"
        if "scripts are no longer supported" in line:
            return (f"it is a script ({line.rpartition(' ')[2]}), and no data set's code is executed; the hub may have"
                    " it as Parquet: data.revision=refs/convert/parquet")
        return f"it cannot be read: {line} ({kind})"

    def _local_files(self, local: Path) -> dict[str, Any]:
        """What the library is to open of a local file or folder."""
        if local.is_file():
            if local.suffix.lower() not in TABLES:
                raise ValueError(f"{self.where} is no Parquet file; a .parquet, a folder or a name on the hub is meant")
            check_rows(self.where, [local])
            return {"path": "parquet", "data_files": {"train": [str(local)]}}
        files = find_files(local, deep=True)
        tables = [name for name in files if name.lower().endswith(TABLES) and not name.endswith(METADATA)]
        if tables:
            check_rows(self.where, [local / name for name in sorted(tables)])
            held: dict[str, list[str]] = {}
            for name in sorted(tables):
                held.setdefault(split_named(name, self.where) or "train", []).append(str(local / name))
            return {"path": "parquet", "data_files": held}
        if any(map(is_image, files)):
            return {"path": "imagefolder", "data_dir": str(local)}
        scripts = [name for name in files if name.endswith(".py")]
        there = f"there is a script, {scripts[0]}, and no data set's code is executed" if scripts else \
            f"there {'is' if len(files) == 1 else 'are'} {', '.join(sorted(files)[:3]) or 'nothing'}"
        raise ValueError(f"{self.where} holds no Parquet file and no picture; {there}")

    def _opened(self, library: Any, words: dict[str, Any]) -> Any:
        """A builder of a kind that is read, whose files lie where the user said."""
        builder = library.load_dataset_builder(**words, cache_dir=str(self.cache))
        if builder.name not in READ:
            more = "; data=webdataset reads tar shards" if builder.name == "webdataset" else ""
            raise ValueError(f"{self.where} holds files of kind {builder.name}; Parquet and pictures are read{more}")
        if "data_files" not in words and "data_dir" not in words:
            named = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
            if strange := [file for file in named if not file.startswith("hf://datasets/")]:
                raise ValueError(f"{self.where} names {quoted(strange[0], 200)}, which is not on the hub: not opened")
        return builder

    def _rows(self, table: Any, table_split: str, faults: list[str]) -> Iterator[Row]:
        """A row a picture; of a stream without size and hash of the picture."""
        index = 0
        for batch in table.iter(batch_size=1000 if self.streaming else 100):
            texts: Sequence[Any] = [None] * len(batch)
            if self.caption_column:
                texts = batch[self.caption_column].to_pylist()
            pictures = [None] * len(batch) if self.streaming else batch[self.image_column]
            for text, picture in zip(texts, pictures, strict=True):
                row = {"key": f"{table_split}/{index}", "captions": self._captions(text), "index": index}
                index += 1
                if self.streaming:
                    yield {**row, "bytes": None, "digest": str(row["index"])}
                    continue
                try:
                    found = self._place(picture)
                except ValueError as error:
                    faults.append(f"{table_split}, row {row['index']}: {error}")
                    continue
                if isinstance(found, Path):
                    size, content = found.stat().st_size, str(found.relative_to(self._home(found))).encode()
                else:
                    size, content = len(found), bytes(found[-TAIL:])
                digest = hashlib.sha256(f"{size} ".encode() + content).hexdigest()[:16]
                yield {**row, "bytes": size, "digest": digest}

    def _captions(self, value: Any) -> list[str]:
        """The captions of a row, without empty ones."""
        if self._labels is not None:
            return [] if value is None or value < 0 else [self._labels[value]]
        return [text for text in ([value] if isinstance(value, str) else value or []) if text and text.strip()]

    def _place(self, picture: Any) -> memoryview | Path:
        """A picture's bytes in the table, or its file; ValueError where there is neither."""
        held, path = picture, None
        if picture.is_valid and hasattr(picture, "keys"):  # of a struct
            held = picture["bytes"]
            path = picture["path"].as_py() if "path" in picture and not held.is_valid else None
        if held.is_valid:
            return memoryview(held.as_buffer())
        if path is None:
            raise ValueError("it has no picture")
        file = self.root / path
        self._home(file)
        if not file.is_file():
            raise ValueError(f"{one_line(file)} is not there")
        return file

    def _home(self, file: Path) -> Path:
        """The folder of the data set's that a file lies in; ValueError where it is in none."""
        homes = [home for home in (self.root, self.cache) if file.resolve().is_relative_to(home.resolve())
                 or file.is_relative_to(home)]
        if not homes or ".." in file.parts:
            raise ValueError(f"it names {quoted(str(file), 200)}, which lies outside of the data set: not opened")
        return homes[0]

    def _stream(self, table: Any) -> Iterator[memoryview | Path | ValueError]:
        for batch in table.iter(batch_size=16):
            for picture in batch[self.image_column]:
                try:
                    yield self._place(picture)
                except ValueError as error:
                    yield error

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"source": self.source, "table": self.table_split, "image": self.image_column,
                                     "caption": self.caption_column, "held out": self.held_out}

    def facts(self) -> dict[str, Any]:
        held = ", every twentieth row held out" if self.held_out else ""
        return {"splits": self.splits, "training": f"{self.table_split}{held}", "image column": self.image_column,
                "caption column": self.caption_column}

    def name(self, row: Row) -> str:
        return one_line(f"{self.root}, {self.table_split}, row {row['index']}")

    def read(self, row: Row) -> bytes:
        try:
            found = self._pictures[row["index"]]
            if not self.streaming:
                found = self._place(found[self.image_column][0])
            if isinstance(found, ValueError):
                raise found
            return found.read_bytes() if isinstance(found, Path) else bytes(found)
        except OSError as error:
            raise ValueError(f"{self.name(row)} cannot be read: {error.strerror or error}") from error
        except ValueError as error:
            raise ValueError(f"{self.name(row)} cannot be read: {error}") from error


class Cursor:
    """The items of a stream by their number, for those who ask in about the order of the stream: one that came by
    already makes it begin anew.

    Args:
        begin: opens the stream.
        wanted: the numbers that may be asked for, ascending.
    """

    def __init__(self, begin: Callable[[], Iterator[Any]], wanted: Sequence[int]) -> None:
        self.begin, self.wanted = begin, set(wanted)
        self.held: OrderedDict[int, Any] = OrderedDict()
        self.stream: Iterator[tuple[int, Any]] = iter(())
        self.next = 0
        self.lock = threading.Lock()

    def __getitem__(self, index: int) -> Any:
        with self.lock:
            if index not in self.held:
                if index < self.next or not self.next:
                    self.stream, self.next = enumerate(self.begin()), 0
                    self.held.clear()
                for number, item in self.stream:
                    self.next = number + 1
                    if number in self.wanted:
                        self.held[number] = item
                        if len(self.held) > HELD:
                            self.held.popitem(last=False)
                    if number == index:
                        break
                else:
                    raise ValueError("the stream is shorter than it was when it was listed")
            return self.held[index]


def check_rows(where: str, files: Sequence[Path]) -> None:
    """ValueError for a Parquet file of no rows, which the library cannot read."""
    from pyarrow import ArrowException, parquet

    for file in files:
        try:
            rows = parquet.read_metadata(file).num_rows
        except (ArrowException, OSError):  # the library says what is wrong with it
            continue
        if rows == 0:
            raise ValueError(f"{where}: {one_line(file.name)} has no rows")


def choose_split(where: str, names: list[str], split: Split, train: str | None, val: str | None) -> tuple[str, bool]:
    """Which split of a data set to read for ours, and whether a part of it is held out."""
    named = {SPLIT_NAMES.get(name.lower()): name for name in reversed(names)}
    for key, wanted in (("train", train), ("val", val)):
        unknown = [word for word in re.split(r"\s*\+\s*", re.sub(r"\[[^]]*\]", "", wanted or "")) if word not in names]
        if wanted is not None and unknown:
            raise ValueError(f"data.{key}_split={wanted}: {where} has no split {quoted(unknown[0])}; it has"
                             f" {', '.join(names)}")
    if train is None and "train" not in named:
        raise ValueError(f"data.train_split=null: {where} has no split named train; it has {', '.join(names)}")
    training, validation = train or named["train"], val or named.get("val")
    if validation == training:
        raise ValueError(f"data.train_split and data.val_split are both {training}; data.val_split=null holds out every"
                         " twentieth row")
    return (training if split == "train" or validation is None else validation), validation is None


def holds_images(library: Any, feature: Any) -> bool:
    """Whether a column may be one of pictures: the library's images, bytes, or records with bytes."""
    binary = isinstance(feature, library.Value) and feature.dtype in ("binary", "large_binary")
    return isinstance(feature, library.Image) or binary or (isinstance(feature, dict) and "bytes" in feature)


def holds_text(library: Any, feature: Any) -> bool:
    inner = feature.feature if isinstance(feature, library.List | library.LargeList) else feature
    return isinstance(inner, library.Value) and inner.dtype in ("string", "large_string")


def kind_of(feature: Any) -> str:
    """A column's type in a word or two."""
    return str(getattr(feature, "dtype", None) or re.sub(r"\s+", " ", str(feature)))


def choose_columns(where: str, library: Any, features: Any, image: str | None, caption: str | None,
                   ) -> tuple[str, str | None, list[str]]:
    """The columns of pictures and captions, and what else could be captions; ValueError names what there is."""
    has = shown("; it has " + ", ".join(f"{name} ({kind_of(feature)})" for name, feature in features.items()), 600)
    for key, wanted in (("image", image), ("caption", caption)):
        if wanted is not None and wanted not in features:
            raise ValueError(f"data.{key}_column={wanted}: {where} has no such column{has}")
    if image is None:
        found = [name for name, feature in features.items() if isinstance(feature, library.Image)] or \
            [name for name, feature in features.items() if holds_images(library, feature)]
        if len(found) != 1:
            several = f"has several columns of pictures ({', '.join(found)})" if found else "has no column of pictures"
            raise ValueError(f"{where} {several}; data.image_column= names one{has}")
        image = found[0]
    elif not holds_images(library, features[image]):
        raise ValueError(f"data.image_column={image} holds {kind_of(features[image])}; pictures or their bytes are"
                         f" wanted{has}")
    labels = [name for name, feature in features.items() if isinstance(feature, library.ClassLabel)]
    texts = [name for name, feature in features.items() if holds_text(library, feature)]
    if caption is None:
        usual = sorted((name for name in texts if name.lower() in CAPTION_NAMES),
                       key=lambda name: CAPTION_NAMES.index(name.lower()))
        caption = usual[0] if usual else None
    elif caption not in texts + labels:
        raise ValueError(f"data.caption_column={caption} holds {kind_of(features[caption])}; strings, lists of strings"
                         f" or class labels are wanted{has}")
    return image, caption, [name for name in texts + labels if name != caption]


def label_names(library: Any, features: Any, caption: str | None) -> list[str] | None:
    """The words of a column of class labels; None for other columns."""
    feature = features[caption] if caption is not None else None
    return [name.replace("_", " ") for name in feature.names] if isinstance(feature, library.ClassLabel) else None
