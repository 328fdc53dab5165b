"""What every tab of the page shows of a drawing: pictures, a line with a bar, files; and how a mistake is told."""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from t2i.app.record import png
from t2i.app.studio import Update
from t2i.config.messages import is_for_people, shown
from t2i.generation.text_to_image import slug

MODEL = "model"  # one event at a time has the models, whichever tab it comes from
LONGEST = 400  # letters of a message


def line(text: str) -> str:
    """Text for a message, which Gradio takes for HTML."""
    return html.escape(shown(text.replace("\n", "; "), LONGEST))


def told(error: BaseException) -> gr.Error:
    text = str(error.strerror) if isinstance(error, OSError) and error.strerror else str(error)
    return gr.Error(line(text), title="This cannot be done", print_exception=False)


def guarded(call: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """A generator whose mistakes of the user's become one line on the page; faults go to the terminal."""

    @functools.wraps(call)
    def wrapped(*arguments: Any) -> Iterator[Any]:
        try:
            yield from call(*arguments)
        except (ValueError, OSError) as error:
            if not is_for_people(error):
                raise
            raise told(error) from error

    return wrapped


def named(call: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """The function, whose further arguments have these names in the page's API."""
    own = [one for one in inspect.signature(call).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    others = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    call.__signature__ = inspect.Signature([*own, *others])  # type: ignore[attr-defined]
    return call


def status(share: float, note: str) -> str:
    return f'<progress max="1" value="{share:.3f}"></progress><span>{html.escape(note)}</span>'


def image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels)


def saved(update: Update, folder: str) -> list[str]:
    """Each finished picture and its JSON as files, the picture first."""
    files = []
    for pixels, record in zip(update.pictures, update.records, strict=True):
        path = Path(folder) / f"000-{slug(record.request.prompt)}-{record.number}"
        for name, data in ((".png", png(pixels)), (".json", record.to_json())):
            path.with_name(path.name + name).write_bytes(data)
            files.append(f"{path}{name}")
    return files


def watched(
    updates: Iterator[Update], folder: str | None = None
) -> Iterator[tuple[Update, list[Any], str, list[str] | None]]:
    """Each update with its pictures for a gallery, its line, and at the end its files; these lie in the folder, or in
    one of their own while they are yielded, when Gradio copies them."""
    said: set[str] = set()
    for update in updates:
        for text in (text for text in update.texts if text not in said):
            said.add(text)
            gr.Warning(line(text), title="Not all of the caption is heard")
        if not update.records:
            yield update, [image(pixels) for pixels in update.pictures], status(update.share, update.note), None
            continue
        with nullcontext(folder) if folder else TemporaryDirectory(prefix="t2i-pictures-") as place:
            files = saved(update, place)
            yield update, files[::2], status(update.share, update.note), files


def gallery(label: str) -> gr.Gallery:
    """Its label is for those who hear the page: on a screen it would lie on the first picture."""
    return gr.Gallery(label=label, show_label=False, format="png", columns=4, object_fit="contain", height="auto",
                      interactive=False, buttons=["download", "fullscreen"], elem_classes="pictures")


def stop_button(events: list[Any], status_line: gr.HTML) -> gr.Button:
    """Ends the drawing of these events, and lets the next one in the queue begin."""
    button = gr.Button("Stop", variant="stop", size="lg", min_width=80, scale=0)
    button.click(lambda: status(0, "Stopped."), None, status_line, cancels=events, queue=False,
                 api_visibility="private", show_progress="hidden")
    return button
