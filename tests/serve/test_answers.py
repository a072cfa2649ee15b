"""The API's answers are those of the commands, to the last digit."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

import sensorium
from sensorium.data.images.cache import squares
from sensorium.data.images.gathered import Encoded, pictures_in_memory
from sensorium.runs.run import Run

NAMES = ("a.png", "b.jpg", "c.png", "d.png")


def test_predict(address: str, runs: dict[str, Run], photos: Path, helpers: Any) -> None:
    paths = [photos / name for name in NAMES]
    answer = httpx.post(f"{address}/predict?top=3", files=helpers.files(*paths))
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["run"], found["problems"], found["calibrated"]) == ("supervised", 0, False)
    expected = sensorium.predict(runs["supervised"], [str(photos)], top=3)
    assert [Path(one.picture).name for one in expected] == [one["picture"] for one in found["pictures"]] == list(NAMES)
    for ours, theirs in zip(found["pictures"], expected, strict=True):
        assert [one["class"] for one in ours["classes"]] == list(theirs.classes)
        assert [one["probability"] for one in ours["classes"]] == list(theirs.probabilities)


def test_predict_knows_no_more_classes_than_there_are(address: str, helpers: Any) -> None:
    found = httpx.post(f"{address}/predict?top=9999", content=helpers.png()).json()["pictures"][0]
    assert len(found["classes"]) == 10
    assert sum(one["probability"] for one in found["classes"]) == pytest.approx(1, abs=1e-5)


def test_detect(address: str, runs: dict[str, Run], photos: Path, helpers: Any) -> None:
    paths = [photos / name for name in NAMES]
    answer = httpx.post(f"{address}/detect", params={"threshold": 0.01}, files=helpers.files(*paths))
    assert answer.status_code == 200, answer.text
    expected = sensorium.detect(runs["fcos"], [str(path) for path in paths], 0.01)
    assert any(expected)
    for ours, boxes in zip(answer.json()["pictures"], expected, strict=True):
        rows = [(*one["box"], one["score"], one["class"], one["label"]) for one in ours["objects"]]
        assert rows == [tuple(box) for box in boxes]
    assert [(one["width"], one["height"]) for one in answer.json()["pictures"]] == [
        (60, 80),
        (128, 100),
        (34, 18),
        (24, 20),
    ]


def test_embed(address: str, runs: dict[str, Run], photos: Path, helpers: Any) -> None:
    answer = httpx.post(f"{address}/embed", files=helpers.files(*(photos / name for name in NAMES)))
    assert answer.status_code == 200, answer.text
    expected = sensorium.embed(runs["supervised"], photos)
    assert [Path(name).name for name in expected.names] == list(NAMES)
    assert [one["features"] for one in answer.json()["pictures"]] == expected.features.tolist()


def test_generate(address: str, runs: dict[str, Run]) -> None:
    how: dict[str, Any] = {"most": 20, "temperature": 0.7, "top_k": 9, "seed": 3}
    answer = httpx.post(f"{address}/generate", json={"prompt": "The cat", **how})
    assert answer.status_code == 200, answer.text
    assert answer.json()["text"] == sensorium.generate(runs["causal_lm"], "The cat", **how)


def test_one_picture_as_the_body(address: str, photos: Path, helpers: Any) -> None:
    data = (photos / "b.jpg").read_bytes()
    asked = httpx.post(f"{address}/predict", files=helpers.files(photos / "b.jpg")).json()["pictures"][0]
    for kind in (
        "image/jpeg",
        "application/octet-stream",
        "application/x-www-form-urlencoded",
    ):  # curl's own is the last
        alone = httpx.post(f"{address}/predict", content=data, headers={"content-type": kind}).json()["pictures"][0]
        assert alone == asked | {"picture": "picture"}


def test_runs_are_told(address: str, runs: dict[str, Run]) -> None:
    found = {one["name"]: one for one in httpx.get(f"{address}/runs").json()["runs"]}
    assert list(found) == ["supervised", "fcos", "causal_lm"]  # nothing of made is served
    assert found["supervised"]["can"] == ["predict", "embed"]
    assert "Classifier" in found["supervised"]["abilities"]
    assert found["supervised"]["classes"] == list(runs["supervised"].situation.classes)
    assert found["fcos"] | {"classes": [], "abilities": []} == {
        "name": "fcos", "system": "fcos", "can": ["detect"], "classes": [], "abilities": [], "scores": [],
    }  # fmt: skip
    assert found["causal_lm"]["classes"] == []
    assert "/" not in json.dumps(found)


def test_scores_and_calibration_are_told(start: Any, runs: dict[str, Run], helpers: Any) -> None:
    runs["supervised"].judge(finetune=False, labels="100%", label_seeds=1, progress=False)
    try:
        address = start(runs["supervised"])
        scores = httpx.get(f"{address}/runs").json()["runs"][0]["scores"]
        assert any(one["name"] == "kNN" and 0 <= one["value"] <= 1 and one["n"] for one in scores)
        found = httpx.post(f"{address}/predict", content=helpers.png()).json()
        assert found["calibrated"] is True
    finally:
        (runs["supervised"].folder / "evaluation.json").unlink()


def test_two_runs_of_a_kind_are_named(start: Any, runs: dict[str, Run], helpers: Any) -> None:
    address = start(runs["supervised"], runs["supervised"])
    said = httpx.post(f"{address}/predict", content=helpers.png())
    assert said.status_code == 400
    assert "supervised, supervised-2" in said.json()["error"]
    named = httpx.post(f"{address}/predict?run=supervised-2", content=helpers.png())
    assert named.json()["run"] == "supervised-2"


def test_the_page_lists_what_there_is(address: str) -> None:
    for path in ("/", "/docs"):
        page = httpx.get(f"{address}{path}")
        assert page.headers["content-type"].startswith("text/html")
        for words in ("POST /predict", "POST /detect", "POST /embed", "POST /generate", "supervised", "curl"):
            assert words in page.text
        assert "<script" not in page.text
        assert "http://localhost:" in page.text
        assert page.text.count("://") == page.text.count("http://localhost:")  # nothing from elsewhere
        assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_description_has_what_these_runs_can(address: str, start: Any, runs: dict[str, Run]) -> None:
    paths = httpx.get(f"{address}/openapi.json").json()["paths"]
    assert set(paths) == {"/health", "/runs", "/predict", "/detect", "/embed", "/generate"}
    assert {one["name"] for one in paths["/detect"]["post"]["parameters"]} == {"run", "threshold"}
    less = start(runs["fcos"])
    assert set(httpx.get(f"{less}/openapi.json").json()["paths"]) == {"/health", "/runs", "/detect"}
    assert "POST /predict" not in httpx.get(less).text


def test_a_bad_picture_leaves_nothing_in_memory() -> None:
    """The frames of its error would hold the bytes that were sent."""
    [(block, [(index, error)])] = squares(pictures_in_memory([Encoded("x.png", b"no")], None), 8)
    assert (len(block), index, error.name) == (0, 0, "x.png")
    assert error.__traceback__ is error.__context__ is None
