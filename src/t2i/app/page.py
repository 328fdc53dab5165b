"""The page: its tabs, theme and style."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from t2i.app import compare_tab, draw_tab, edit_tab, guided_tab, runs_tab
from t2i.app.studio import Studio

FONTS = ("system-ui", "sans-serif")
MONO = ("ui-monospace", "monospace")
# Small pictures are enlarged without smoothing, and stand on the same ground in light and dark.
STYLE = """
.pictures img { image-rendering: pixelated; }
.large img { width: 100% !important; height: 100% !important; object-fit: contain; }
.status progress { width: 100%; height: 0.6rem; appearance: none; border: 0; border-radius: 0.3rem; overflow: hidden; }
.status progress, .status progress::-webkit-progress-bar { background: var(--border-color-primary); }
.status progress::-webkit-progress-value { background: var(--primary-500); }
.status progress::-moz-progress-bar { background: var(--primary-500); }
.status span { font-size: 0.9rem; }
footer { opacity: 0.7; }
@media (max-width: 640px) {
  .gradio-container { padding: 0.5rem !important; }
  .pictures .grid-container { grid-template-columns: repeat(2, minmax(0, 1fr)) !important; }
}
"""
KEEP = (600, 7200)  # seconds: how often files that were shown or uploaded are looked through, and how old they get
WITHOUT = "Drawing needs a checkpoint: start the page with `ckpt=FILE`."


def build(studio: Studio, runs: Path | None) -> gr.Blocks:
    with gr.Blocks(title="t2i", analytics_enabled=False, delete_cache=KEEP) as page:
        gr.Markdown("# t2i")
        with gr.Tabs() as tabs:
            with gr.Tab("Draw", id="draw"):
                drawn = draw_tab.build(studio) if studio.drawing else None
                if drawn is None:
                    gr.Markdown(WITHOUT)
            with gr.Tab("Edit", id="edit"):
                if drawn is None:
                    gr.Markdown(WITHOUT)
                else:
                    edit_tab.build(studio, drawn, tabs, "edit")
            with gr.Tab("Guided", id="guided"):
                guided_tab.build(studio)
            with gr.Tab("Compare", id="compare"):
                compare_tab.build(studio)
            with gr.Tab("Runs", id="runs"):
                if runs is None:
                    gr.Markdown("No folder of runs: start the page with `runs=FOLDER`.")
                else:
                    runs_tab.build(runs)
    page.queue(default_concurrency_limit=1)
    return page


def looks() -> dict[str, Any]:
    """What `launch` takes of theme and style. Fonts are the system's: nothing is fetched."""
    return {"theme": gr.themes.Default(primary_hue="indigo", font=FONTS, font_mono=MONO), "css": STYLE}
