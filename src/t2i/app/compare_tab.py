"""The tab that draws the same caption and seeds by several checkpoints, side by side, each by its own options."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from t2i.app import outputs
from t2i.app.draw_tab import PLACE
from t2i.app.outputs import MODEL
from t2i.app.record import MOST, Request
from t2i.app.studio import Studio

WITHOUT = "Comparing takes two checkpoints or more: start the page with `ckpt=A ckpt=B`."


def build(studio: Studio) -> None:
    paths = studio.drawing
    if len(paths) < 2:
        gr.Markdown(WITHOUT)
        return
    prompt = gr.Textbox(label="Prompt", placeholder=PLACE, max_lines=6)
    with gr.Row():
        seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=80)
        n = gr.Slider(1, MOST, 4, step=1, label="Pictures of each", min_width=120)
        button = gr.Button("Draw by all", variant="primary", size="lg", min_width=120)
        stops = gr.Column(scale=0, min_width=80)
    line = gr.HTML(outputs.status(0, "Ready."), elem_classes="status")
    galleries, files = [], []
    with gr.Row():
        for path in paths:
            with gr.Column(min_width=260):
                gr.HTML(html.escape(path))
                galleries.append(outputs.gallery(path))
                files.append(gr.File(label="Each picture with its JSON", file_count="multiple", interactive=False))

    @outputs.guarded
    def compare(prompt: str, seed: int, n: int) -> Iterator[Any]:
        yield *[None] * (2 * len(paths)), outputs.status(0, "Begun.")
        with TemporaryDirectory(prefix="t2i-pictures-") as place:
            written: list[list[str]] = []
            for k, path in enumerate(paths):
                folder = Path(place) / str(k)
                folder.mkdir()
                request = Request("draw", prompt or "", seed, n)
                for update, shown, _, files in outputs.watched(studio.run(path, request), str(folder)):
                    now: list[Any] = [gr.skip()] * (2 * len(paths))
                    now[k] = shown
                    if files is not None:
                        now[len(paths) + k] = files
                        written.append(files)
                    share = (k + update.share) / len(paths)
                    yield *now, outputs.status(share, f"{path}: {update.note}")
            yield *[files[::2] for files in written], *written, outputs.status(1, "Done.")

    event = gr.on([button.click, prompt.submit], compare, [prompt, seed, n], [*galleries, *files, line],
                  api_name="compare", concurrency_id=MODEL, show_progress_on=line)
    with stops:
        outputs.stop_button([event], line)
