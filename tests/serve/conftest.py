"""What the tests of the API share: a run for each endpoint, pictures, and the API of all."""

import io
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sensorium.runs.run import Run
from sensorium.runs.train import train

Start = Callable[..., str]


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of two steps for each endpoint."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "book.txt").write_text("The cat sat on the mat, and the tired dog sat on it. " * 60)
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "supervised": ("digits", {"backbone": "resnet-micro", "batch_size": 16, "limit": 200}),
        "fcos": ("scenes:12", {"image_size": 64, "batch_size": 2, "width": 16, "convs": 1}),
        "causal_lm": (str(folder / "book.txt"), {"width": 16, "depth": 1, "heads": 2, "length": 16, "batch_size": 8}),
        "made": ("digits", {"hidden": 20, "masks": 2}),
    }
    return {
        name: train(name, data=data, out=folder / name, budget="2steps", progress=False, **settings)
        for name, (data, settings) in rows.items()
    }


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes and kinds, one of 16 bits, one turned by its EXIF data."""
    folder, draws = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for k, (name, size) in enumerate((("a.png", (40, 30)), ("b.jpg", (64, 50)), ("c.png", (9, 17)))):
        values = draws.integers(0, 255, (*size, 3), np.uint8)
        exif = Image.Exif()
        exif[274] = 6
        more = {"exif": exif} if k == 1 else {}
        Image.fromarray(values).resize((size[1] * 2, size[0] * 2)).save(folder / name, **more)
    Image.fromarray(draws.integers(0, 65535, (20, 24), np.uint16)).save(folder / "d.png")
    return folder


def files(*paths: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """The files of a form."""
    return [("file", (path.name, path.read_bytes())) for path in paths]


def png(side: int = 24) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(data, "PNG")
    return data.getvalue()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def helpers() -> Any:
    """What tests call, which lie in folders without names to import."""

    class Helpers:
        files, png, free_port = staticmethod(files), staticmethod(png), staticmethod(free_port)

    return Helpers


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start an API of some runs, on a free port; gives its address. All end with the module."""
    pytest.importorskip("fastapi", reason="the API needs fastapi")
    from sensorium.serving import open_api

    opened = []

    def begin(*runs: Run | Path, **how: Any) -> str:
        opened.append(open_api(runs, **{"port": free_port()} | how))
        return opened[-1].local_url.rstrip("/")

    yield begin
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def address(start: Start, runs: dict[str, Run]) -> str:
    """The API of all runs, a megabyte a request at most."""
    return start(*runs.values(), upload_mb=1)
