"""A run's folder is data: opening one executes nothing that came with it, unless the person names it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sensorium
from sensorium import catalogue
from sensorium.errors import SensoriumError

Command = Callable[..., tuple[int, str, str]]

COMMANDS = (
    ["export", "RUN", "--out", "OUT"],
    ["evaluate", "RUN"],
    ["embed", "RUN", "--data", "digits", "--limit", "8"],
    ["neighbors", "RUN", "x.png"],
    ["play", "RUN"],
    ["serve", "RUN"],
    ["sample", "RUN"],
    ["samplers", "RUN"],
    ["generate", "RUN"],
    ["detect", "RUN", "x.png"],
    ["watch", "RUN", "x.npy"],
    ["search", "RUN", "--text", "x"],
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run in RUN, and nothing of one's own named so far."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "_named", [])
    settings = {"data": "digits", "limit": 40, "budget": "1steps", "batch_size": 8, "progress": False}
    sensorium.train("simclr", **settings, out=tmp_path / "RUN")
    Image.new("RGB", (16, 16)).save("x.png")
    np.save("x.npy", np.zeros((20, 3), np.float32))
    return tmp_path / "RUN"


def forge(run: Path, recipe: str, **given: str) -> None:
    info = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(info | {"recipe": recipe, "given": given}))


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_strangers_run_calls_no_function_of_any_module(words: list[str], run: Path, command: Command) -> None:
    forge(run, "pydoc:pipepager", cmd="touch EXECUTED")
    code, _, said = command(*words)
    assert code == 1
    assert "pydoc:pipepager" in said
    assert not Path("EXECUTED").exists()


@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_strangers_run_executes_no_file_beside_it(words: list[str], run: Path, command: Command) -> None:
    (run / "net.py").write_text("open('EXECUTED', 'w')\nfrom sensorium.selfsup.simclr.recipe import simclr\n")
    forge(run, "RUN/net.py:simclr")
    code, _, said = command(*words)
    assert code == 1
    assert "--trust RUN/net.py:simclr" in said
    assert not Path("EXECUTED").exists()


def test_a_file_that_the_person_names_is_executed(run: Path, command: Command) -> None:
    (run / "net.py").write_text("open('EXECUTED', 'w')\nfrom sensorium.selfsup.simclr.recipe import simclr\n")
    forge(run, "RUN/net.py:simclr")
    code, _, said = command("export", "RUN", "--out", "OUT", "--trust", "RUN/net.py:simclr")
    assert code == 0, said
    assert Path("EXECUTED").exists()


def test_a_recipe_is_a_system_or_a_file() -> None:
    for name in ("pydoc:pipepager", "os:system", "sensorium.selfsup.simclr.recipe:simclr", "x.pyc:f"):
        with pytest.raises(SensoriumError, match=r"neither a system .* nor FILE\.py:FUNCTION"):
            catalogue.resolve(name)
