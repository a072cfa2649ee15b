"""What the tests of opening runs share."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_opening as fuzz
import pytest

from sensorium import catalogue

Command = Callable[..., tuple[int, str, str]]
FAST: dict[str, Any] = {"labels": "100%", "label_seeds": 1, "finetune": False, "progress": False}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, where nothing was trusted yet; the state of the user is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "_named", [])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def run(home: Path) -> Path:
    return fuzz.SEEDS["run-simclr"](home)


def change(run: Path, file: str = "run.json", **fields: Any) -> None:
    """Change fields of a JSON file; ``a__b=1`` is the field b of a."""
    found = json.loads((run / file).read_text())
    for name, value in fields.items():
        *inner, last = name.split("__")
        place = found
        for one in inner:
            place = place[one]
        place[last] = value
    (run / file).write_text(json.dumps(found))
