"""`t2i app`: the page and its server, on this machine alone unless told otherwise."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from t2i.app.settings import ABOUT, AppSettings, check_place, parse

LARGEST = "30mb"  # of an uploaded file
WAITING = 200  # requests in the queue; further ones are told that it is full


@contextmanager
def serving(settings: AppSettings) -> Iterator[str]:
    """The page's address while it is up. What was shown or uploaded lies in a folder that goes with it."""
    check_place(settings)
    with TemporaryDirectory(prefix="t2i-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        from PIL import Image

        from t2i.app.studio import Studio
        from t2i.generation.editing import LARGEST as PIXELS

        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, PIXELS  # Pillow refuses twice as much
        studio = Studio(settings)
        from t2i.app import page

        built = page.build(studio, None if settings.runs is None else Path(settings.runs).expanduser())
        built.queue(default_concurrency_limit=1, max_size=WAITING)
        check_place(settings)  # once more: loading takes a while
        _, local, shared = built.launch(
            server_name=settings.host, server_port=settings.port, share=settings.share, prevent_thread_lock=True,
            quiet=True, show_error=False, max_file_size=LARGEST, ssr_mode=False, footer_links=["api", "settings"],
            enable_monitoring=False, **page.looks())
        try:
            yield shared or local
        finally:
            built.close(verbose=False)
            Image.MAX_IMAGE_PIXELS = before


def run(words: list[str]) -> None:
    """Serves until Ctrl-C; ValueError, in a line, where something is wrong with the words."""
    if {"-h", "--help"} & set(words):
        print(ABOUT.strip())
        return
    with serving(parse(words)) as address:
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ended")
