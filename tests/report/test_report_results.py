"""results.json: there and back, and a validator that names the field."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorium.errors import SensoriumError
from sensorium.report.page import read_results, validate, verdict, write_report, write_results


def test_results_come_back_as_written(made, tmp_path):
    results = copy.deepcopy(made[0])
    results["winner"], results["verdict"] = verdict(results)
    results["runs"][0]["seconds"] = np.float32(1.5)
    results["runs"][0]["steps"] = np.int64(7)
    results["runs"][0]["rankme"] = math.nan
    results["runs"][0]["map"]["x"] = np.array([0.5] * 300)
    results["runs"][0]["settings"]["folder"] = {"value": Path("a/b"), "source": "given"}
    path = write_results(results, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    back = read_results(tmp_path)
    assert back == read_results(path)
    run = back["runs"][0]
    assert (run["seconds"], run["steps"], run["rankme"], run["map"]["x"][0]) == (1.5, 7, None, 0.5)
    assert run["settings"]["folder"]["value"] == "a/b"
    assert back["winner"]["name"] == "simclr"
    assert back["runs"][1] == results["runs"][1]


def change(results: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    results = copy.deepcopy(results)
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    at: Any = results
    for key in way:
        at = at[key]
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    return results


@pytest.mark.parametrize(
    "path, value, named",
    [
        ("schema", 2, "schema is 2"),
        ("schema", KeyError, "schema is missing"),
        ("data/path", KeyError, "data.path is missing"),
        ("data/classes", "ball", "data.classes"),
        ("runs", {}, "runs is {}"),
        ("runs/1/name", KeyError, "runs[1].name is missing"),
        ("runs/1/name", "mae", "runs[1].name"),
        ("runs/1/status", "done", "runs[1].status"),
        ("runs/1/knn/top1", 56.1, "runs[1].knn.top1 is 56.1, should be from 0 to 1"),
        ("runs/1/linear/1%/top1", "high", "runs[1].linear.1%.top1"),
        ("runs/1/linear/one", {}, "runs[1].linear.one is no label fraction"),
        ("runs/1/parameters", 1.5, "runs[1].parameters"),
        ("runs/1/parameters", True, "runs[1].parameters"),
        ("runs/1/seconds", -1, "runs[1].seconds"),
        ("runs/1/settings/lr", 0.1, "runs[1].settings.lr"),
        ("runs/1/neighbors/0/found/2", -1, "runs[1].neighbors[0].found[2]"),
        ("runs/1/map/x", [1.0], "runs[1].map"),
        ("runs/1/pictures/0/file", KeyError, "runs[1].pictures[0].file is missing"),
        ("baselines/pixels/linear/1%/n", "many", "baselines.pixels.linear.1%.n"),
        ("winner", {"name": "mae"}, "winner.by is missing"),
    ],
)
def test_validate_names_the_field(made, path, value, named):
    validate(made[0])
    with pytest.raises(SensoriumError) as caught:
        validate(change(made[0], path, value))
    assert named in str(caught.value)
    assert "results.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 1}', "\udcff"])
def test_unreadable_results_are_one_line(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(SensoriumError) as caught:
        read_results(tmp_path)
    assert "results.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_results_and_no_place_to_write(made, tmp_path):
    with pytest.raises(SensoriumError, match="no such file"):
        read_results(tmp_path)
    (tmp_path / "file").write_text("")
    for write in (write_results, write_report):
        with pytest.raises(SensoriumError, match="can't be written"):
            write(made[0], tmp_path / "file")
