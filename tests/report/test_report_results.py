"""results.json: there and back exactly, and a reader that names the damaged field."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sensorium.base.records import encode
from sensorium.errors import SensoriumError
from sensorium.report.page import write_report
from sensorium.runs.results import Chosen, read_results, results_of, write_results


def test_results_come_back_as_written(made, tmp_path):
    results = made[0]
    path = write_results(results, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert read_results(tmp_path) == read_results(path) == results
    before = path.read_text()
    assert write_results(read_results(path), tmp_path).read_text() == before


def test_numpy_paths_and_what_is_not_finite_are_written_as_json_has_them(made, tmp_path):
    first = made[0].runs[0]
    scores = (replace(first.scores[0], value=math.nan, outcomes=np.ones(5, bool)), *first.scores[1:])
    first = replace(
        first, seconds=np.float32(1.5), steps=np.int64(7), scores=scores, map=replace(first.map, x=np.full(300, 0.5)),
        settings={"folder": Chosen(Path("a/b"), "given")},
    )  # fmt: skip
    path = write_results(replace(made[0], runs=(first, *made[0].runs[1:])), tmp_path)
    run = read_results(path).runs[0]
    assert (run.seconds, run.steps, run.scores[0].value, run.map.x[0]) == (1.5, 7, None, 0.5)
    assert run.settings["folder"].value == "a/b"
    assert "outcomes" not in path.read_text()


def change(found: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(found)
    *way, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    at: Any = found
    for key in way:
        at = at[key]
    if value is KeyError:
        del at[last]
    else:
        at[last] = value
    return found


@pytest.mark.parametrize(
    "path, value, named",
    [
        ("schema", 1, "schema is 1"),
        ("schema", KeyError, "schema is missing"),
        ("data/path", KeyError, "data.path is missing"),
        ("data/classes", "ball", "data.classes is 'ball', should be a list"),
        ("runs", {}, "runs is {}"),
        ("runs/1/name", KeyError, "runs[1].name is missing"),
        ("runs/1/name", "mae", "runs[1].name"),
        ("runs/1/status", "done", "runs[1].status"),
        ("runs/1/scores/0/at", 56.1, "runs[1].scores[0].at is 56.1, should be from 0 to 1"),
        ("runs/1/scores/0/value", "high", "runs[1].scores[0].value is 'high', should be a number"),
        ("runs/1/scores/0/baselines/raw pixels", None, "runs[1].scores[0].baselines.raw pixels"),
        ("runs/1/scores/0/bettr", 1, "runs[1].scores[0].bettr is not a field"),
        ("runs/1/scores/1/n", "many", "runs[1].scores[1].n"),
        ("runs/1/parameters", 1.5, "runs[1].parameters"),
        ("runs/1/parameters", True, "runs[1].parameters"),
        ("runs/1/seconds", -1, "runs[1].seconds is -1, should be at least 0"),
        ("runs/1/by_labels", 1, "runs[1].by_labels is 1, should be true or false"),
        ("runs/1/settings/lr", 0.1, "runs[1].settings.lr"),
        ("runs/1/neighbors/0/found/2", -1, "runs[1].neighbors[0].found[2]"),
        ("runs/1/map/x", [1.0], "runs[1].map has lists of different lengths"),
        ("runs/1/pictures/0/file", KeyError, "runs[1].pictures[0].file is missing"),
        ("winner", {"name": "mae"}, "winner.by is missing"),
    ],
)
def test_a_damaged_field_is_named(made, path, value, named):
    found = encode(made[0])
    assert results_of(found) == made[0]
    with pytest.raises(SensoriumError) as caught:
        results_of(change(found, path, value))
    assert named in str(caught.value)
    assert str(caught.value).startswith("results.json: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "runs": []}', "\udcff"])
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
        with pytest.raises(SensoriumError, match="could not write"):
            write(made[0], tmp_path / "file")
