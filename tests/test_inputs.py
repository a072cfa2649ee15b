"""A run is an input: asked for by role, recorded with its digest, held against that digest when training goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import sensorium
from sensorium.errors import SensoriumError
from sensorium.recipe.trained import Trained, roles

FEW: dict[str, Any] = {"data": "digits", "limit": 40, "batch_size": 8, "progress": False, "classes": False}


def test_a_role_is_what_a_recipe_says() -> None:
    assert roles("rectified_flow") == ("teacher",)
    assert roles("mae") == ()


def test_a_run_records_what_it_was_made_of(tmp_path: Path) -> None:
    first = sensorium.train("rectified_flow", **FEW, budget="2steps", out=tmp_path / "first")
    again = sensorium.train("rectified_flow", **FEW, budget="2steps", out=tmp_path / "again", teacher=str(first.folder))
    kept = json.loads((again.folder / "run.json").read_text())["inputs"]["teacher"]
    assert kept == {"folder": str(first.folder), "recipe": "rectified_flow", "digest": Trained(first.folder).digest}
    weights = load_file(first.folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1}, first.folder / "model.safetensors")
    with pytest.raises(SensoriumError, match=r"other settings: input\.teacher was"):
        sensorium.train("rectified_flow", **FEW, budget="2steps", out=tmp_path / "again", teacher=str(first.folder))


def test_an_unfinished_run_is_no_input(tmp_path: Path) -> None:
    first = sensorium.train("rectified_flow", **FEW, budget="1steps", out=tmp_path / "first")
    (first.folder / "model.safetensors").unlink()
    with pytest.raises(SensoriumError, match="has not finished"):
        sensorium.train("rectified_flow", **FEW, budget="1steps", out=tmp_path / "again", teacher=str(first.folder))
