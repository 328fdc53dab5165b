"""The page in a real browser: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.app.served import PROMPT

from t2i.app.record import Record, Request

CHROMIUM = shutil.which("chromium")
SLOW = 60_000  # milliseconds

if CHROMIUM is None:
    pytest.skip("there is no chromium here (apt-get install chromium)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright here (pip install playwright)")


@pytest.fixture(scope="module")
def served(address: str) -> Iterator[SimpleNamespace]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield SimpleNamespace(address=address, browser=browser)
        browser.close()


def opened(served: SimpleNamespace, width: int = 1200, height: int = 800, dark: bool = False) -> Any:
    """The page, with `asked`, the addresses that the browser wanted."""
    tab = served.browser.new_page(viewport={"width": width, "height": height},
                                  color_scheme="dark" if dark else "light")
    tab.asked = []
    tab.on("request", lambda request: tab.asked.append(request.url))
    tab.set_default_timeout(SLOW)
    tab.goto(served.address)
    tab.get_by_label("Prompt").first.wait_for()
    return tab


def draw(tab: Any, prompt: str) -> None:
    tab.get_by_label("Prompt").first.fill(prompt)
    tab.get_by_role("button", name="Draw", exact=True).first.click()


def test_a_picture_is_drawn_downloaded_and_drawn_again(served, tmp_path) -> None:
    tab = opened(served)
    draw(tab, PROMPT)
    tab.locator(".status span", has_text="4 pictures in").first.wait_for()
    with tab.expect_download() as found:
        tab.locator(".file-preview a", has_text=".json").or_(tab.locator("td.download a").nth(1)).first.click()
    path = tmp_path / "one.json"
    found.value.save_as(path)
    assert json.loads(path.read_text())["request"]["prompt"] == PROMPT
    tab.locator("input[type=file]").first.set_input_files(path)
    tab.locator(".status span", has_text="The same picture, byte for byte.").first.wait_for()
    elsewhere = [url for url in tab.asked if not url.startswith((served.address, "data:", "blob:"))]
    assert not elsewhere, "nothing is fetched from anywhere else"
    tab.close()


def test_html_is_text_and_a_mistake_is_a_line(served, tmp_path) -> None:
    html, tab, path = '<img src=x onerror="alert(1)">', opened(served), tmp_path / "other.json"
    said: list[str] = []
    tab.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    draw(tab, html)
    tab.locator(".status span", has_text="pictures in").first.wait_for()
    path.write_bytes(Record(Request("draw", PROMPT), 0, 0, html, "0" * 16, None, "").to_json())
    tab.locator("input[type=file]").first.set_input_files(path)
    tab.get_by_text(f"drawn with the checkpoint {html} of hash").first.wait_for()
    draw(tab, "red " * 2500)
    tab.get_by_text("prompt has 10,000 letters; at most 2,000 are taken").first.wait_for()
    assert not said and tab.locator("img[src=x]").count() == 0
    tab.close()


def test_a_part_is_painted_and_drawn_anew(served, tmp_path) -> None:
    tab = opened(served)
    draw(tab, PROMPT)
    tab.locator(".status span", has_text="pictures in").first.wait_for()
    tab.get_by_role("button", name="Edit the chosen picture").click()
    canvas = tab.locator("#editor canvas").first
    canvas.wait_for()
    tab.wait_for_timeout(1500)  # the picture comes into the canvas
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.3)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4, steps=8)
    tab.mouse.up()
    tab.get_by_label("Prompt").nth(1).fill("two blue stars above a ring")
    tab.get_by_role("button", name="Draw anew").click()
    tab.locator(".status span", has_text="pictures in").nth(1).wait_for()
    shown = tab.locator(".pictures img")
    sources = [shown.nth(k).get_attribute("src") for k in range(shown.count())]
    found = []
    for k in (0, 4):  # the drawn one, and the first edited one
        path = Path(tmp_path / f"{k}.png")
        path.write_bytes(tab.request.get(sources[k]).body())
        found.append(np.array(Image.open(path)))
    assert found[0].shape == found[1].shape and np.array_equal(found[0][-4:], found[1][-4:])
    assert not np.array_equal(*found)
    tab.close()


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_scrolling_sideways(served, dark) -> None:
    tab = opened(served, width=360, height=740, dark=dark)
    for name in ("Draw", "Edit", "Guided", "Compare", "Runs"):
        one = tab.get_by_role("tab", name=name)
        if not one.is_visible():  # the others are behind a button
            tab.locator(".overflow-menu button").first.click()
            one = tab.locator(".overflow-dropdown button", has_text=name)
        one.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= 360, name
    tab.get_by_role("tab", name="Draw").click()
    draw(tab, PROMPT)
    tab.locator(".status span", has_text="4 pictures in").first.wait_for()
    edges = tab.locator(".pictures img").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
    assert len(edges) == 4 and max(edges) <= 360
    ground = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) is dark
    tab.close()
