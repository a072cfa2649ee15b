"""The page, in a real browser: every tab with a tiny run, errors as one line, nothing from elsewhere."""

import re
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from driver import again, choose, error_of, example, give, opened, picture, shot
from PIL import Image

from sensorium.errors import SensoriumError
from sensorium.playground import build, open_page, serve
from sensorium.playground.timeline import timeline
from sensorium.runs.run import Run
from sensorium.runs.train import train

ALL = ["Look", "Search", "Detect", "Sample", "Complete", "Between", "Reconstruct", "Write", "Watch"]


def titles(blocks: Any) -> list[str]:
    return [block.label for block in blocks.blocks.values() if type(block).__name__ == "Tab"]


@again
def test_a_tab_for_each_thing_that_some_run_offers(page: Any) -> None:
    assert [tab.inner_text() for tab in page.get_by_role("tab").all()] == ALL


@again
def test_look_completes_an_upload_and_finds_its_like(page: Any, folder: Path) -> None:
    panel = opened(page, "Look")
    give(panel, picture(folder), panel.get_by_text("Reconstruction").first)
    panel.locator(".found .grid-container img").nth(7).wait_for()
    shot(page, "look")


@again
def test_look_takes_a_picture_of_the_data(page: Any) -> None:
    panel = opened(page, "Look")
    panel.locator(".examples img").first.wait_for()
    for run in ("clip", "supervised"):  # the examples are those of the run
        before = example(page)
        choose(page, panel, "Run", run)
        page.wait_for_function(
            "before => (e => e && e.src !== before)(document.querySelector('.examples img'))", arg=before
        )
    panel.locator(".examples img").nth(3).click()
    panel.get_by_text("Where features are strong").wait_for()
    panel.get_by_test_id("label-output-value").wait_for()
    panel.locator(".found .grid-container img").nth(7).wait_for()
    assert panel.get_by_test_id("label-output-value").inner_text().strip()
    shot(page, "look-supervised")


@again
def test_look_names_what_is_no_picture(page: Any, folder: Path) -> None:
    (folder / "torn.png").write_bytes(picture(folder).read_bytes()[:60])
    give(opened(page, "Look"), folder / "torn.png")
    said = error_of(page)
    assert "torn.png" in said
    assert "Traceback" not in said
    assert "/tmp" not in said
    shot(page, "look-error")


@again
def test_uploads_are_bounded(page: Any, folder: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (800, 800, 3), np.uint8)
    Image.fromarray(noise).save(folder / "large.png")
    assert (folder / "large.png").stat().st_size > 2**20
    panel = opened(page, "Look")
    give(panel, folder / "large.png")
    assert "size" in error_of(page).lower()
    assert not panel.locator(".found .grid-container img").count()


@again
def test_sample_draws_with_its_way(page: Any) -> None:
    panel = opened(page, "Sample")
    panel.get_by_role("button", name="Draw").click()
    panel.get_by_text("step 25").wait_for()
    assert panel.get_by_label("Guidance").first.is_visible()
    shot(page, "sample")
    choose(page, panel, "Run", "made")
    page.wait_for_function(
        "() => ![...document.querySelectorAll('label')].some(l => /Guidance/.test(l.innerText) && l.offsetParent)"
    )
    panel.get_by_role("button", name="Draw").click()
    panel.locator("img").first.wait_for()
    shot(page, "sample-made")
    choose(page, panel, "Run", "rectified_flow")
    panel.get_by_label("Guidance").first.wait_for()
    panel.get_by_role("button", name="Draw").click()
    panel.get_by_text("step 25").wait_for()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.found img')].every(i => !i.offsetParent || i.naturalWidth > 64)"
    )


@again
def test_between_the_pictures_of_two_seeds(page: Any) -> None:
    panel = opened(page, "Between")
    panel.get_by_role("button", name="Draw").click()
    panel.locator(".found img").nth(7).wait_for()
    panel.get_by_text("From seed 0 to seed 1").wait_for()
    shot(page, "between")
    panel.get_by_label("Last seed").fill("")
    panel.get_by_role("button", name="Draw").click()
    assert "Last seed: give a whole number from 0" in error_of(page)


@again
def test_complete_draws_the_other_half(page: Any, folder: Path) -> None:
    panel = opened(page, "Complete")
    panel.get_by_role("button", name="Complete").click()
    assert "give a picture first" in error_of(page)
    give(panel, picture(folder))
    choose(page, panel, "Known half", "left")
    panel.get_by_role("button", name="Complete").click()
    panel.get_by_text("known: left").wait_for()
    assert panel.locator(".found img").count() == 8
    shot(page, "complete")


@again
def test_reconstruct_shows_where_it_errs(page: Any, folder: Path) -> None:
    panel = opened(page, "Reconstruct")
    give(panel, picture(folder), panel.get_by_text("PSNR"))
    panel.get_by_text("error; white:").wait_for()
    assert panel.locator(".found img").count() == 3
    shot(page, "reconstruct")
    (folder / "words.png").write_bytes(b"no picture")
    give(panel, folder / "words.png")
    assert "words.png" in error_of(page)


@again
def test_write_goes_on_from_the_prompt(page: Any) -> None:
    panel = opened(page, "Write")
    panel.get_by_label("Prompt").fill("The cat")
    panel.get_by_role("button", name="Write").click()
    page.wait_for_function(
        "() => [...document.querySelectorAll('textarea')].some(t => t.value.startsWith('The cat') && t.value.length > 12)"
    )
    assert panel.get_by_label("Prompt").input_value() == "The cat"
    shot(page, "write")


@again
def test_search_by_text_and_by_picture(page: Any) -> None:
    panel = opened(page, "Search")
    panel.get_by_role("button", name="Search").click()
    assert "give a query" in error_of(page)
    panel.get_by_label("Description").fill("a red ball")
    panel.get_by_role("button", name="Search").click()
    panel.locator(".found img").nth(11).wait_for()
    assert panel.locator(".caption-label").first.inner_text()
    before = page.evaluate("[...document.querySelectorAll('.found img')].map(x => x.src).join()")
    panel.locator(".examples img").nth(2).click()
    page.wait_for_function(
        "before => [...document.querySelectorAll('.found img')].map(x => x.src).join() !== before", arg=before
    )
    shot(page, "search")


@again
def test_detect_draws_what_is_above_the_threshold(page: Any, folder: Path) -> None:
    panel = opened(page, "Detect")
    give(panel, picture(folder), panel.get_by_text("0 objects"))
    panel.get_by_role("spinbutton").first.fill("0.01")
    panel.get_by_text(re.compile("[1-9][0-9]* objects with a score of 0.01")).wait_for()
    panel.locator("td:visible").first.wait_for()
    shot(page, "detect")


@again
def test_watch_plays_a_recording(page: Any, folder: Path, runs: dict[str, Run]) -> None:
    panel = opened(page, "Watch")
    panel.get_by_role("spinbutton").first.fill("1")
    panel.get_by_role("button", name="Play").click()
    panel.get_by_text("3.0 s").first.wait_for()
    panel.get_by_text("true:").wait_for()
    shot(page, "watch")
    width = len(runs["oadtr"].situation.mean)
    np.save(folder / "own.npy", np.random.default_rng(0).normal(size=(40, width)).astype(np.float32))
    give(panel, folder / "own.npy", panel.get_by_label("own.npy"))
    panel.get_by_role("button", name="Play").click()
    panel.get_by_text("5.0 s").first.wait_for()
    assert not panel.get_by_text("true:").count()


@again
def test_watch_names_a_recording_that_does_not_fit(page: Any, folder: Path) -> None:
    np.save(folder / "narrow.npy", np.zeros((40, 3), np.float32))
    panel = opened(page, "Watch")
    give(panel, folder / "narrow.npy", panel.get_by_label("narrow.npy"))
    panel.get_by_role("button", name="Play").click()
    said = error_of(page)
    assert "narrow.npy: 3 values per step" in said


def test_without_its_data_a_run_still_shows_what_it_can(browser: Any, folder: Path, free_port: int) -> None:
    rng = np.random.default_rng(0)
    np.savez(folder / "lost.npz", images=rng.integers(0, 255, (40, 16, 16), np.uint8), labels=np.arange(40) % 4)
    run = train(
        "mae", data=str(folder / "lost.npz"), out=folder / "lost", budget="2steps", progress=False, batch_size=8
    )
    (folder / "lost.npz").unlink()
    page = open_page([run], port=free_port + 2)
    context = browser.new_context()
    try:
        shown = context.new_page()
        shown.goto(page.local_url)
        give(opened(shown, "Look"), picture(folder), shown.get_by_text("Reconstruction").first)
        shown.get_by_text("lost.npz").last.wait_for()
    finally:
        context.close()
        page.close(verbose=False)


def test_dark_and_narrow(browser: Any, address: str, folder: Path) -> None:
    for name, size, theme in (("dark", (1280, 900), "dark"), ("narrow", (420, 900), "light")):
        context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme)
        shown = context.new_page()
        shown.goto(address)
        shown.get_by_role("tab", name="Look").wait_for()
        assert shown.evaluate("document.body.classList.contains('dark')") == (theme == "dark")
        assert shown.evaluate("document.documentElement.scrollWidth") <= size[0]
        give(opened(shown, "Look"), picture(folder), shown.locator(".found .grid-container img").nth(7))
        shot(shown, name)
        context.close()


def test_a_password_is_asked_for(browser: Any, runs: dict[str, Run], free_port: int) -> None:
    page = open_page([runs["made"]], port=free_port + 1, password="open sesame")
    context = browser.new_context()
    try:
        shown = context.new_page()
        shown.goto(page.local_url)
        assert not shown.get_by_role("tab").count()
        shown.locator("input").nth(0).fill("sensorium")
        shown.locator("input").nth(1).fill("open sesame")
        shown.get_by_role("button", name="Login").click()
        shown.get_by_role("tab", name="Sample").wait_for()
        assert context.request.get(f"{page.local_url}config").ok
        assert browser.new_context().request.get(f"{page.local_url}config").status == 401
    finally:
        context.close()
        page.close(verbose=False)


def test_a_port_that_is_taken_is_said(runs: dict[str, Run]) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(SensoriumError, match=r"cannot listen at 127\.0\.0\.1"):
            open_page([runs["made"]], port=other.getsockname()[1])


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.7", "::", "example.org"])
def test_others_need_a_password(host: str, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="--password"):
        serve([tmp_path], host=host, password="")


def test_what_is_no_run_says_how_to_train_one(tmp_path: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    with pytest.raises(SensoriumError, match="sensorium train SYSTEM"):
        build([tmp_path / "nowhere"])
    with pytest.raises(SensoriumError, match="sensorium train SYSTEM"):
        build([])


def test_numbers_out_of_range() -> None:
    with pytest.raises(SensoriumError, match="--upload-mb"):
        serve([], upload_mb=0)
    with pytest.raises(SensoriumError, match="--port"):
        serve([], port=0)


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SensoriumError, match=r"sensorium\[play\]"):
        build([])


def test_no_tab_without_a_run_for_it(runs: dict[str, Run]) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    assert titles(build([runs["made"], runs["causal_lm"]])) == ["Sample", "Complete", "Write"]


def test_a_timeline_is_bounded_and_its_names_are_text() -> None:
    chances = np.random.default_rng(0).dirichlet(np.ones(12), 5000)
    names = ["background", "<script>alert(1)</script>", *(f"action {k}" for k in range(10))]
    drawn = timeline(chances, 9000, names, np.arange(9000) % 12 - 1, 25.0)
    assert "<script" not in drawn
    assert "&lt;script" in drawn
    assert drawn.count("<polyline") == 2 * len(names)  # for wide windows and for narrow ones
    assert max(len(points.split('"')[0].split()) for points in drawn.split('points="')[1:]) <= 401
    assert "200.0 s" in drawn
    assert "360.0 s" in drawn


def test_a_folder_of_runs_gives_all_of_them(runs: dict[str, Run], folder: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    assert titles(build([folder])) == ALL
