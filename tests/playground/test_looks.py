"""What visitors see on wide and narrow windows, measured in a browser: nothing out of the window, nothing over a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import give, opened, picture, shot

from sensorium.playground import open_page
from sensorium.playground.timeline import LISTED, timeline
from sensorium.runs.run import Run
from sensorium.runs.train import train

WIDTHS = (1280, 390)
OUTSIDE = """() => [...document.querySelectorAll('.main *')].filter(e => {
  const r = e.getBoundingClientRect(), s = getComputedStyle(e);
  return r.width && r.height && s.visibility !== 'hidden' && !e.closest('[aria-hidden=true]')
    && (r.left < -1 || r.right > innerWidth + 1);
}).map(e => `${e.tagName}.${e.className} ${e.getBoundingClientRect().right}`)"""
COVERED = """() => [...document.querySelectorAll('.found .gallery-item')].filter(e => e.querySelector('.caption-label')).map(e => {
  const p = e.querySelector('img').getBoundingClientRect(), c = e.querySelector('.caption-label').getBoundingClientRect();
  return [p.width, Math.max(0, Math.min(p.bottom, c.bottom) - Math.max(p.top, c.top)), c.height, c.right - p.right];
})"""
UNDER_ARROW = """() => [...document.querySelectorAll('.secondary-wrap')].filter(e => e.querySelector('.icon-wrap') && e.offsetParent).map(e => {
  const i = e.querySelector('input'), r = i.getBoundingClientRect();
  return r.right - parseFloat(getComputedStyle(i).paddingRight) - e.querySelector('.icon-wrap').getBoundingClientRect().left;
})"""


@pytest.fixture(params=WIDTHS)
def window(request: Any, browser: Any, address: str) -> Any:
    context = browser.new_context(viewport={"width": request.param, "height": 900})
    context.set_default_timeout(45_000)
    shown = context.new_page()
    shown.goto(address)
    shown.get_by_role("tab", name="Look").wait_for()
    yield shown
    context.close()


def fits(page: Any) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    assert page.evaluate(OUTSIDE) == []


def captioned(page: Any, wanted: int) -> None:
    """Each picture has its caption below it, as wide as the picture."""
    page.wait_for_function(f"() => document.querySelectorAll('.found .caption-label').length >= {wanted}")
    page.wait_for_timeout(300)
    for width, over, height, beyond in page.evaluate(COVERED):
        assert width > 90
        assert over <= 1
        assert height >= 12
        assert beyond <= 1


def test_look_and_its_menu_of_runs(window: Any, folder: Path) -> None:
    panel = opened(window, "Look")
    give(panel, picture(folder), panel.locator(".found .grid-container img").nth(7))
    captioned(window, 8)
    fits(window)
    under = window.evaluate(UNDER_ARROW)
    assert under
    assert max(under) <= 0
    shot(window, f"look-{window.viewport_size['width']}")


def test_search(window: Any) -> None:
    panel = opened(window, "Search")
    panel.get_by_label("Description").fill("a red ball")
    panel.get_by_role("button", name="Search").click()
    panel.locator(".found img").nth(11).wait_for()
    captioned(window, 12)
    fits(window)
    shot(window, f"search-{window.viewport_size['width']}")


def test_all_columns_of_detections(window: Any, folder: Path) -> None:
    panel = opened(window, "Detect")
    give(panel, picture(folder), panel.get_by_text("0 objects"))
    panel.get_by_role("spinbutton").first.fill("0.01")
    panel.locator("td:visible").nth(11).wait_for()
    fits(window)
    heads = [cell.bounding_box() for cell in panel.locator("th").all()]
    assert [cell.inner_text() for cell in panel.locator("th").all()][-1] == "bottom"
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= window.viewport_size["width"] for box in heads)
    lines = window.evaluate(
        "() => [...document.querySelectorAll('.objects th')].map(e => e.getBoundingClientRect().height)"
    )
    assert max(lines) < 40  # one line each: no word is broken
    shot(window, f"detect-{window.viewport_size['width']}")


def test_sample_and_write(window: Any) -> None:
    panel = opened(window, "Sample")
    panel.get_by_role("button", name="Draw").click()
    panel.locator(".found img").nth(3).wait_for()
    fits(window)
    panel = opened(window, "Write")
    panel.get_by_label("Prompt").fill("The cat " + "sat" * 200)
    fits(window)


def test_watch_is_legible(window: Any) -> None:
    panel = opened(window, "Watch")
    panel.get_by_role("spinbutton").first.fill("1")
    panel.get_by_role("button", name="Play").click()
    panel.get_by_text("true:").wait_for()
    panel.get_by_text("3.0 s").locator("visible=true").first.wait_for()
    fits(window)
    drawn = window.evaluate("""() => [...document.querySelectorAll('.timeline svg')].filter(e => e.getBoundingClientRect().width)
      .map(e => e.getBoundingClientRect().width / e.viewBox.baseVal.width)""")
    assert len(drawn) == 1
    assert 15 * drawn[0] > 10  # pixels of a letter
    shot(window, f"watch-{window.viewport_size['width']}")


def test_every_class_that_is_drawn_is_in_the_legend() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 13, 30):
        names = [f"action {k}." for k in range(count)]
        truth = np.arange(400) % count
        drawn = timeline(rng.dirichlet(np.ones(count), 400), 400, names, truth, 25.0)
        legend = drawn[drawn.index('class="keys"') :]
        assert [name for name in names if name not in legend] == []
        colors = [part.partition('"')[0] for part in legend.split("background:")[1:]]
        assert len(set(colors)) == count
    many = timeline(rng.dirichlet(np.ones(90), 400), 400, [f"a{k}" for k in range(90)], np.arange(400) % 90)
    assert many.count("<i ") == LISTED
    assert f"and {90 - LISTED} more" in many


@pytest.fixture(scope="module")
def lost(folder: Path) -> list[Run]:
    """Runs whose data are gone."""
    rng = np.random.default_rng(0)
    place = folder / "gone"
    (place / "signals").mkdir(parents=True)
    np.savez(place / "lost.npz", images=rng.integers(0, 255, (40, 16, 16), np.uint8), labels=np.arange(40) % 4)
    for k in range(4):
        values = rng.normal(size=(60, 3)).astype(np.float32)
        np.savez(place / "signals" / f"{k}.npz", features=values, labels=np.arange(60) // 20, classes=["a", "b", "c"])
    runs = [
        train("mae", data=str(place / "lost.npz"), out=place / "m", budget="1steps", progress=False, batch_size=8),
        train(
            "oadtr", data=str(place / "signals"), out=place / "o", budget="1steps", progress=False, width=32, depth=1
        ),
    ]
    (place / "lost.npz").unlink()
    (place / "signals").rename(place / "elsewhere")
    return [Run(run.folder) for run in runs]


def test_where_data_have_moved_there_is_no_empty_box(browser: Any, lost: list[Run], free_port: int) -> None:
    page = open_page(lost, port=free_port + 3)
    context = browser.new_context()
    try:
        shown = context.new_page()
        shown.goto(page.local_url)
        panel = opened(shown, "Look")
        panel.get_by_text("There are no examples to choose from").wait_for()
        assert not panel.locator(".examples:visible").count()
        assert not panel.get_by_text("Or choose one from").count()
        assert not panel.locator(".found:visible").count()
        panel = opened(shown, "Watch")
        panel.get_by_text("There are no test recordings to choose from").wait_for()
        assert not panel.get_by_label("Test recording").locator("visible=true").count()
    finally:
        context.close()
        page.close(verbose=False)
