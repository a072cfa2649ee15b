"""What the tests of the page share: a run for each tab, and the page of all. Also lets them import ``driver``."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from sensorium.playground import open_page
from sensorium.runs.run import Run
from sensorium.runs.train import train

sys.path.insert(0, str(Path(__file__).parent))

TEXT = "The cat sat on the mat, and the tired dog sat on it. "


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("played")


@pytest.fixture(scope="session")
def runs(folder: Path) -> dict[str, Run]:
    """A run of two steps for each tab."""
    (folder / "book.txt").write_text(TEXT * 60)
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "mae": ("digits", {"backbone": "vit-micro", "batch_size": 16}),
        "dino": ("digits", {"backbone": "vit-micro", "batch_size": 16}),
        "supervised": ("digits", {"backbone": "resnet-micro", "batch_size": 16}),
        "rectified_flow": ("digits", {"batch_size": 8}),
        "made": ("digits", {"hidden": 20, "masks": 2}),
        "vq_vae": ("digits", {"batch_size": 8}),
        "causal_lm": (str(folder / "book.txt"), {"width": 16, "depth": 2, "heads": 2, "length": 12, "batch_size": 8}),
        "clip": ("scenes:24", {"image_size": 32, "batch_size": 8}),
        "fcos": ("scenes:24", {"image_size": 64, "batch_size": 4}),
        "oadtr": ("scenes:24", {"width": 32, "depth": 1, "batch_size": 8}),
    }
    return {
        name: train(name, data=data, out=folder / name, budget="2steps", progress=False, **settings)
        for name, (data, settings) in rows.items()
    }


@pytest.fixture(scope="session")
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def address(runs: dict[str, Run], free_port: int) -> Iterator[str]:
    """The page of all runs, a megabyte an upload at most."""
    pytest.importorskip("gradio", reason="the page needs gradio")
    page = open_page(list(runs.values()), port=free_port, upload_mb=1)
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, opened; at the end nothing was asked of another machine, and no script failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(45_000)  # of a machine that does other things besides
    shown = context.new_page()
    asked, failed = [], []
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("pageerror", lambda error: failed.append(str(error)))
    shown.goto(address)
    shown.get_by_role("tab", name="Look").wait_for()
    yield shown
    context.close()
    elsewhere = [url for url in asked if urlparse(url).hostname not in ("127.0.0.1", "localhost", None)]
    assert not elsewhere
    assert not failed
