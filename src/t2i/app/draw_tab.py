"""The tab that draws for a caption, and draws again what a picture's JSON says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr

from t2i.app import outputs
from t2i.app.outputs import MODEL
from t2i.app.record import MOST, Request, read_record
from t2i.app.studio import HIGHEST, Studio
from t2i.models.prior import Prior
from t2i.nets.cpu_linear import KINDS

OPTIONAL = ("steps", "truncation", "top_k", "top_p")
AS_TRAINED = "as trained"
PLACE = "two red circles above a blue square"


class Drawn(NamedTuple):
    """Components that other tabs take pictures from: the pictures, the number of the chosen one, and a button."""

    gallery: gr.Gallery
    chosen: gr.State
    edit: gr.Button


class Sampling(NamedTuple):
    """Components for options of sampling, by the options' names in `names`."""

    names: tuple[str, ...]
    components: list[Any]

    def options(self, values: tuple[Any, ...]) -> dict[str, Any]:
        """Those that are given: what may be left out is 0 then, as a browser sends an empty number."""
        given = zip(self.names, values, strict=True)
        return {name: value for name, value in given
                if value not in (None, AS_TRAINED) and not (name in OPTIONAL and value == 0)}


def sampling(model: Any, names: tuple[str, ...]) -> Sampling:
    """Components for those of the options that a model has, at its own values."""
    made: dict[str, Any] = {}
    own = model.options
    for name in (name for name in names if name in own or (name == "weights" and isinstance(model, Prior))):
        if name == "weights":
            made[name] = gr.Dropdown([AS_TRAINED, *KINDS], value=AS_TRAINED, label="Weights",
                                     info="of a large prior on a CPU: other pictures, sooner")
        elif name == "temperature":
            made[name] = gr.Slider(0, HIGHEST[name], own[name], step=0.05, label="Temperature",
                                   info="1: as learned; less is safer")
        elif name == "guidance":
            made[name] = gr.Slider(0, HIGHEST[name], own[name], step=0.1, label="Guidance", info="1: none")
        elif name == "steps":
            made[name] = gr.Number(0, precision=0, label="Steps", info="0: a quarter of the codes")
        elif name == "truncation":
            made[name] = gr.Number(0, label="Truncation", info="up to 1; 0: none")
        elif name in ("top_k", "top_p"):
            made[name] = gr.Number(0, precision=0 if name == "top_k" else None, label=name, info="0: all codes")
    return Sampling(tuple(made), list(made.values()))


def build(studio: Studio) -> Drawn:
    paths = studio.drawing
    with gr.Row():
        with gr.Column(scale=2, min_width=280):
            checkpoint = gr.Dropdown(paths, value=paths[0], label="Checkpoint", visible=len(paths) > 1)
            prompt = gr.Textbox(label="Prompt", placeholder=PLACE, lines=2, max_lines=6, autofocus=True)
            with gr.Row():
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", min_width=80)
                n = gr.Slider(1, MOST, 4, step=1, label="Pictures", min_width=120)
            groups = {path: sampling_group(studio.pipelines[path].model, path == paths[0]) for path in paths}
            with gr.Row():
                button = gr.Button("Draw", variant="primary", size="lg")
                stops = gr.Column(scale=0, min_width=80)
            again = gr.File(label="A picture's JSON, dropped here, draws it again", type="binary", height=110)
        with gr.Column(scale=3, min_width=280):
            line = gr.HTML(outputs.status(0, "Ready."), elem_classes="status")
            pictures = outputs.gallery("Pictures")
            files = gr.File(label="Each picture with its JSON", file_count="multiple", interactive=False)
            edit = gr.Button("Edit the chosen picture", size="sm", visible=bool(studio.editing))
    chosen = gr.State(0)

    @outputs.guarded
    def draw(checkpoint: str, prompt: str, seed: int, n: int, *values: Any) -> Iterator[Any]:
        start = 0
        options: dict[str, Any] = {}
        negative = None
        for other, (found, _, _) in groups.items():
            own, start = values[start : start + len(found.components) + 1], start + len(found.components) + 1
            if other == checkpoint:
                options, negative = found.options(own[:-1]), (own[-1] or "").strip() or None
        request = Request("draw", prompt or "", seed, n, negative, options)
        for _, shown, status, written in outputs.watched(studio.run(checkpoint, request)):
            yield shown, status, written

    @outputs.guarded
    def draw_again(data: bytes | None) -> Iterator[Any]:
        if data is None:
            raise ValueError("drop the JSON of a picture of this page")
        for update, shown, status, written in outputs.watched(studio.again(read_record(data))):
            if update.records and not update.note.startswith("The same"):
                gr.Warning(outputs.line(update.note), title="Drawn again")
            yield shown, status, written

    fields = [component for found, negative, _ in groups.values() for component in (*found.components, negative)]
    shared: dict[str, Any] = {"outputs": [pictures, line, files], "concurrency_id": MODEL, "show_progress_on": line}
    names = [f"{name}{f'_{k}' if k > 1 else ''}" for k, (found, _, _) in enumerate(groups.values(), 1)
             for name in (*found.names, "negative")]
    event = gr.on([button.click, prompt.submit], outputs.named(draw, names),
                  [checkpoint, prompt, seed, n, *fields], api_name="draw", **shared)
    second = again.upload(draw_again, again, api_name="draw_again", **shared)
    with stops:
        outputs.stop_button([event, second], line)
    checkpoint.change(lambda path: [gr.update(visible=other == path) for other in groups], checkpoint,
                      [group for _, _, group in groups.values()], api_visibility="private", show_progress="hidden")

    def choose(event: gr.SelectData) -> int:
        return int(event.index)

    pictures.select(choose, None, chosen, api_visibility="private", show_progress="hidden")
    return Drawn(pictures, chosen, edit)


def sampling_group(model: Any, visible: bool) -> tuple[Sampling, gr.Textbox, gr.Column]:
    """The options of one model, its negative caption, and what holds both."""
    with gr.Column(visible=visible) as group:
        first = sampling(model, ("temperature", "guidance", "steps", "truncation"))
        with gr.Accordion("More", open=False, visible="top_k" in model.options):
            second = sampling(model, ("top_k", "top_p", "weights"))
            negative = gr.Textbox("", label="Negative", info="a caption to lead away from",
                                  visible="guidance" in model.options)
    return Sampling(first.names + second.names, first.components + second.components), negative, group


def chosen_path(pictures: list[tuple[str, Any]] | None, number: int) -> Path:
    """The file of the chosen picture of a gallery."""
    if not pictures:
        raise ValueError("there is no picture yet: draw one first")
    return Path(pictures[number if number < len(pictures) else 0][0])
