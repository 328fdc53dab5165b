"""The tab that changes a picture: a part of it drawn anew, variations, more around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from t2i.app import outputs
from t2i.app.draw_tab import Drawn, chosen_path, sampling
from t2i.app.outputs import MODEL
from t2i.app.record import MOST, Request, checked_pixels, packed
from t2i.app.studio import Studio, mask_png, pixels_of
from t2i.data.decode import UNREADABLE

WAYS = {"Draw the painted part anew": "paint", "Variations": "vary", "More around it": "extend"}
PAINTED = 512  # pixels that a small picture is enlarged to for painting
SIDES = ("left", "top", "right", "bottom")
PAINT = "rgba(255, 64, 160, 0.7)"


def checking(editor: gr.ImageEditor) -> gr.ImageEditor:
    """The editor, that says in a line what is wrong with what it is sent. (Of a subclass Gradio writes a .pyi file into
    the source.)"""
    read = editor.preprocess

    def preprocess(payload: Any) -> Any:
        try:
            return read(payload)
        except UNREADABLE as error:
            raise outputs.told(ValueError("the picture or its mask is no picture, or too large")) from error

    editor.preprocess = preprocess  # type: ignore[method-assign]
    return editor


def opened(path: str | Path) -> np.ndarray:
    """A picture that was uploaded, (h, w, 3) of bytes."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError("the picture is no longer here: choose it again") from error
    return pixels_of(checked_pixels(data, "the picture"))


def to_paint(path: str | Path) -> tuple[dict[str, Any], str]:
    """What the editor shows of a picture, and where the picture lies."""
    picture = Image.fromarray(opened(path))
    scale = max(1, PAINTED // max(picture.size))
    large = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    return {"background": large, "layers": [], "composite": None}, str(path)


def build(studio: Studio, drawn: Drawn, tabs: gr.Tabs, own: str) -> None:
    paths = studio.editing
    if not paths:
        kinds = ", ".join(sorted({studio.pipelines[path].model.kind for path in studio.drawing}))
        gr.Markdown(f"This page's checkpoint is a {kinds}, which draws pictures as a whole. A prior that draws in any"
                    " order edits (`model=prior_any`): start the page with its `ckpt=`.")
        return
    source = gr.State(None)
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            upload = gr.UploadButton("Choose a picture", file_types=["image"], type="filepath", size="sm")
            editor = checking(gr.ImageEditor(
                label="Picture: paint over what is to be drawn anew", type="numpy", image_mode="RGBA", format="png",
                sources=(), transforms=(), layers=False, elem_id="editor", canvas_size=(PAINTED, PAINTED),
                brush=gr.Brush(default_size=40, colors=[PAINT], color_mode="fixed"),
                placeholder="Choose a picture, or edit a drawn one"))
            checkpoint = gr.Dropdown(paths, value=paths[0], label="Checkpoint", visible=len(paths) > 1)
            way = gr.Radio(list(WAYS), value=next(iter(WAYS)), label="What to do")
            share = gr.Slider(0.05, 1, 0.4, step=0.05, label="Share drawn anew", visible=False)
            with gr.Row(visible=False) as around:
                sides = [gr.Number(64 if side == "right" else 0, precision=0, minimum=0, label=f"Pixels {side}",
                                   min_width=70) for side in SIDES]
            prompt = gr.Textbox(label="Prompt", placeholder="what the new picture shows", lines=2, max_lines=6)
            with gr.Row():
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=80)
                n = gr.Slider(1, MOST, 4, step=1, label="Pictures", min_width=120)
            found = sampling(studio.pipelines[paths[0]].model, ("temperature", "guidance", "steps", "weights"))
            with gr.Row():
                button = gr.Button("Draw anew", variant="primary", size="lg")
                stops = gr.Column(scale=0, min_width=80)
        with gr.Column(scale=3, min_width=280):
            line = gr.HTML(outputs.status(0, "Ready."), elem_classes="status")
            pictures = outputs.gallery("Edited pictures")
            files = gr.File(label="Each picture with its JSON", file_count="multiple", interactive=False)

    @outputs.guarded
    def open_picture(path: str | None) -> Iterator[Any]:
        if path is None:
            raise ValueError("choose a picture")
        yield to_paint(path)

    @outputs.guarded
    def take(shown: Any, number: int) -> Iterator[Any]:
        value, path = to_paint(chosen_path(shown, number))
        yield value, path, gr.Tabs(selected=own)

    @outputs.guarded
    def edit(
        checkpoint: str, picture: str | None, painted: dict[str, Any] | None, way: str, share: float, left: int,
        top: int, right: int, bottom: int, prompt: str, seed: int, n: int, *values: Any,
    ) -> Iterator[Any]:
        if picture is None:
            raise ValueError("choose a picture first, or edit one that the tab Draw has drawn")
        chosen = WAYS[way]
        node: dict[str, Any] = {"way": chosen, "image": packed(opened(picture))}
        if chosen == "paint":
            node["mask"] = mask_png(painted["layers"] if painted else [])
        elif chosen == "vary":
            node["share"] = share
        else:
            node["extend"] = [left, top, right, bottom]
        request = Request("edit", prompt or "", seed, n, None, found.options(values), node)
        for _, shown, status, written in outputs.watched(studio.run(checkpoint, request)):
            yield shown, status, written

    upload.upload(open_picture, upload, [editor, source], api_name="open_picture", show_progress="hidden")
    drawn.edit.click(take, [drawn.gallery, drawn.chosen], [editor, source, tabs], api_visibility="private",
                     show_progress="hidden")
    way.change(lambda word: [gr.update(visible=WAYS[word] == "vary"), gr.update(visible=WAYS[word] == "extend")], way,
               [share, around], api_visibility="private", show_progress="hidden")
    event = gr.on([button.click, prompt.submit], outputs.named(edit, found.names),
                  [checkpoint, source, editor, way, share, *sides, prompt, seed, n, *found.components],
                  [pictures, line, files], api_name="edit", concurrency_id=MODEL, show_progress_on=line)
    with stops:
        outputs.stop_button([event], line)
