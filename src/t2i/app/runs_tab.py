"""The tab that shows a folder of runs: their pictures, curves and scores. It reads, and writes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from t2i.app import outputs
from t2i.app.edit_tab import opened
from t2i.checkpoint.plain_files import read_table
from t2i.config.messages import shown

DEEPEST = 4  # folders between the one that is shown and a run
MOST = 40  # pictures of a run
CONFIG = "config.json"


def runs_in(root: Path) -> list[str]:
    """The runs below a folder by their paths, in order."""
    found = []
    for place, folders, files in os.walk(root):
        here = Path(place).relative_to(root)
        if CONFIG in files:
            found.append(here.as_posix())
        folders[:] = [] if len(here.parts) >= DEEPEST else sorted(name for name in folders if not name.startswith("."))
    return found


def numbers(value: Any, name: str = "") -> Iterator[list[str]]:
    """The numbers of a nested table, a row each: name and value."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from numbers(each, f"{name}/{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield [shown(name), f"{value:.5g}"]


def scores(run: Path) -> list[list[str]]:
    """What the run's evaluation.json and finished.json say: a row a score, those of the evaluation first."""
    rows: list[list[str]] = []
    for file, key in (("evaluation.json", "scores"), ("finished.json", "metrics")):
        if (run / file).is_file():
            rows += numbers(read_table(run / file, **{key: dict})[key])
    return rows


def pictures(run: Path) -> list[Path]:
    """Grids, curves and other pictures of a run: the newest grids first, then curves, then what lies beside them."""
    grids = sorted((run / "grids").glob("*.png"), reverse=True)
    return [*grids, *sorted((run / "plots").glob("*.png")), *sorted(run.glob("*.png"))]


def build(root: Path) -> Any:
    """The tab, and what fills it when it is opened."""
    with gr.Row():
        name = gr.Dropdown(runs_in(root), label=f"Runs in {root}", value=None, scale=4, min_width=200)
        refresh = gr.Button("Look again", size="lg", min_width=100, scale=0)
    line = gr.Markdown()
    gallery = gr.Gallery(label="Grids and curves", format="png", columns=3, object_fit="contain", height="auto",
                         interactive=False)
    table = gr.Dataframe(headers=["score", "value"], datatype="str", interactive=False, label="Scores", wrap=True)

    @outputs.guarded
    def show(chosen: str | None) -> Iterator[Any]:
        if chosen is None:
            yield "", [], []
            return
        if chosen not in runs_in(root):
            raise ValueError(f"{shown(chosen)}: there is no such run in {root}")
        run = root / chosen
        paths = pictures(run)
        found = [(outputs.image(opened(path)), path.relative_to(run).as_posix()) for path in paths[:MOST]]
        rows = scores(run)
        state = "finished" if (run / "finished.json").is_file() else "not finished"
        more = f", the first {MOST} shown" if len(paths) > MOST else ""
        yield f"{state}; {len(paths)} pictures{more}; {len(rows)} scores", found, rows

    name.change(show, name, [line, gallery, table], api_name="show_run", show_progress="minimal")
    refresh.click(lambda: gr.update(choices=runs_in(root)), None, name, api_visibility="private",
                  show_progress="hidden")
