"""The tab in which a picture is moved until a CLIP agrees with the prompt, before and after side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from t2i.app import outputs
from t2i.app.outputs import MODEL
from t2i.app.record import Request
from t2i.app.studio import STEPS, Studio
from t2i.generation.clip_guided.settings import CANVASES

STARTS = ("as the canvas has it", "noise", "codes", "prior")
WITHOUT = "Guided drawing needs a CLIP: start the page with `clip=FOLDER`, such as `clip=runs/quickstart/clip/hf`."


def build(studio: Studio) -> None:
    if studio.clip is None:
        gr.Markdown(WITHOUT)
        return
    paths = [path for path, one in studio.pipelines.items() if one.tokenizer is not None]
    canvases = [canvas for canvas in CANVASES if canvas != "vqgan" or paths]
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            checkpoint = gr.Dropdown(paths, value=paths[0] if paths else None, label="Checkpoint",
                                     visible=len(paths) > 1)
            prompt = gr.Textbox(label="Prompt", placeholder="a red circle | a blue square:0.5", lines=2, max_lines=6,
                                info="parts are separated by |, each with a weight if you like")
            canvas = gr.Radio(canvases, value=canvases[0], label="What is moved",
                              info="vqgan: a tokenizer's latents; pixels; a Fourier spectrum; a SIREN")
            start = gr.Radio(list(STARTS), value=STARTS[0], label="From where", visible=bool(paths))
            with gr.Row():
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=80)
                steps = gr.Slider(1, STEPS, 200, step=1, label="Steps", min_width=120)
            rate = gr.Number(0, label="Learning rate", info="0: the canvas's own")
            with gr.Row():
                button = gr.Button("Draw", variant="primary", size="lg")
                stops = gr.Column(scale=0, min_width=80)
        with gr.Column(scale=3, min_width=280):
            line = gr.HTML(outputs.status(0, "Ready."), elem_classes="status")
            with gr.Row():
                before, after = (gr.Image(label=label, format="png", interactive=False, min_width=130, height=280,
                                          buttons=["download", "fullscreen"], elem_classes=["pictures", "large"])
                                 for label in ("Before", "Now"))
            files = gr.File(label="The picture with its JSON", file_count="multiple", interactive=False)

    @outputs.guarded
    def guide(
        checkpoint: str | None, prompt: str, canvas: str, start: str, seed: int, steps: int, rate: float
    ) -> Iterator[Any]:
        options: dict[str, Any] = {"canvas": canvas, "steps": steps}
        options |= {} if start == STARTS[0] or canvas != "vqgan" else {"start": start}
        options |= {} if rate == 0 else {"learning_rate": float(rate)}
        request = Request("guided", prompt or "", seed, 1, None, options)
        for update, shown, status, written in outputs.watched(studio.run(checkpoint, request)):
            first = None if update.before is None else outputs.image(update.before)
            yield first, shown[0], status, written

    canvas.change(lambda chosen: gr.update(visible=chosen == "vqgan"), canvas, start, api_visibility="private",
                  show_progress="hidden")
    event = gr.on([button.click, prompt.submit], guide, [checkpoint, prompt, canvas, start, seed, steps, rate],
                  [before, after, line, files], api_name="guided", concurrency_id=MODEL, show_progress_on=line)
    with stops:
        outputs.stop_button([event], line)
