"""Driving the page as a visitor does."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SHOTS = os.environ.get("SENSORIUM_SHOTS")  # a folder: keep a screenshot of each tab there


def again(test: Any) -> Any:
    """A browser beside other work may hear a click before its page listens: what was waited for in vain is tried on a
    page opened anew, twice; what is wrong stays wrong."""

    @functools.wraps(test)
    def tried(*args: Any, **kept: Any) -> None:
        from playwright.sync_api import TimeoutError as Unheard

        for left in (2, 1, 0):
            try:
                return test(*args, **kept)
            except Unheard:
                if not left:
                    raise
                kept["page"].reload()
                kept["page"].get_by_role("tab", name="Look").wait_for()

    return tried


def opened(page: Any, name: str) -> Any:
    """Go to a tab, again where the page went back while it began; gives its panel."""
    tab = page.get_by_role("tab", name=name, exact=True)
    page.get_by_role("tab").first.wait_for()
    page.wait_for_timeout(300)
    if not tab.count():  # a narrow window
        page.get_by_label("More tabs").click()
        page.locator(".overflow-dropdown button", has_text=name).click()
        tab.wait_for()
    for _ in range(3):
        tab.click()
        page.wait_for_timeout(400)
        if tab.get_attribute("aria-selected") == "true":
            break
    panel = page.locator("div[role=tabpanel]:visible").first
    panel.wait_for()
    return panel


def give(panel: Any, path: Path, then: Any = None) -> None:
    """Hand a file over; again where the page had not begun to listen yet, for its parts arrive one by one: no upload
    followed, or it did and ``then`` was not to be seen."""
    from playwright.sync_api import TimeoutError as Unheard

    for left in (2, 1, 0):
        try:
            with panel.page.expect_response(lambda answer: "/upload" in answer.url, timeout=15_000):
                panel.locator("input[type=file]").first.set_input_files(path, timeout=15_000)
            if then is not None:
                then.wait_for(timeout=40_000)
            return
        except Unheard:
            if not left:
                raise


def choose(page: Any, panel: Any, label: str, value: str) -> None:
    panel.get_by_label(label).first.click()
    page.get_by_role("option").filter(has_text=value).first.click()


def example(page: Any) -> str:
    return page.evaluate("document.querySelector('.examples img').src")


def shot(page: Any, name: str) -> None:
    if SHOTS:
        page.wait_for_timeout(600)
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def error_of(page: Any) -> str:
    toast = page.locator(".toast-body.error, .toast-wrap [data-testid=toast-body]").first
    toast.wait_for()
    return toast.inner_text()


def picture(folder: Path, name: str = "stroke.png") -> Path:
    pixels = np.zeros((40, 30, 3), np.uint8)
    pixels[5:35, 12:18] = 255
    Image.fromarray(pixels).save(folder / name)
    return folder / name
