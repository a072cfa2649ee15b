"""Comparisons that are judged by scores of their own: the rule, the table, the curves, the page."""

from pathlib import Path
from typing import Any

import pytest

from sensorium.report.page import results_table, validate, verdict, write_report


def run(
    name: str, value: float, *, better: str = "lower", error: float | None = None, beside: float = 3.0, **more: Any
):
    score = {
        "name": "bits per byte", "value": value, "better": better, "n": 1000, "counted": "held-out bytes",
        "baselines": {"unigram": beside}, "references": {}, "error": error, "share": False, "curve": "bits", "price": False,
    }  # fmt: skip
    curve = [{"step": i, "seconds": 10.0 * i, "images": 100 * i, "bits": value + 2 / (i + 1)} for i in range(5)]
    return {
        "name": name,
        "method": name,
        "status": "finished",
        "scores": [score],
        "curve": curve,
        "seconds": 40.0,
    } | more


def results(*runs: dict[str, Any]) -> dict[str, Any]:
    data = {"path": "book.txt", "layout": "text", "train": 9000, "test": 1000, "unit": "tokens"}
    found = {"schema": 1, "data": data, "judged": "scores", "asked": {"budget": "40s"}, "runs": list(runs)}
    validate(found)
    return found


def test_the_lower_wins_where_lower_is_better() -> None:
    winner, said = verdict(results(run("a", 2.5), run("b", 2.0)))
    assert winner is not None
    assert (winner["name"], winner["over"], winner["margin"]) == ("b", "a", 0.5)
    assert not winner["sure"]
    assert "unigram, comes to 3" in said
    winner, _ = verdict(results(run("a", 2.5, better="higher", beside=1), run("b", 2.0, better="higher", beside=1)))
    assert winner is not None
    assert winner["name"] == "a"


@pytest.mark.parametrize(("error", "sure"), [(0.1, True), (0.4, False)])
def test_errors_make_it_sure_or_not(error: float, sure: bool) -> None:
    winner, _ = verdict(results(run("a", 2.5, error=error), run("b", 2.0, error=error)))
    assert winner is not None
    assert winner["sure"] is sure


def test_no_winner_below_the_simple_models() -> None:
    winner, said = verdict(results(run("a", 3.5), run("b", 3.0)))
    assert winner is None
    assert "No run beat the simple models" in said


def test_no_verdict_between_different_measures() -> None:
    other = run("b", 2.0)
    other["scores"][0]["counted"] = "held-out tokens"
    winner, said = verdict(results(run("a", 2.5), other))
    assert winner is None
    assert "not judged by the same measure" in said


def test_without_a_finished_run() -> None:
    winner, said = verdict(results({"name": "a", "method": "a", "status": "failed", "error": "no memory"}))
    assert winner is None
    assert "No run could be judged" in said


def test_the_page_and_the_terminal_show_it_all(tmp_path: Path) -> None:
    late = run("b", 2.0)
    for one, delay in ((late, 1.5), (first := run("a", 2.5), 0.5)):
        one["scores"].append({**one["scores"][0], "name": "delay, s", "value": delay, "price": True, "baselines": {}})
    lost = {"name": "c", "method": "c", "status": "failed", "error": "no <memory>"}
    found = results(first, late, lost)
    page = write_report(found, tmp_path).read_text()
    for word in ("bits per byte", "unigram", "by samples seen", "What it costs", "delay, s", "no &lt;memory&gt;"):
        assert word in page
    assert "training images" not in page
    assert "kNN" not in page
    table = results_table(found)
    assert [str(column.header) for column in table.columns][:3] == ["run", "bits per byte", "delay, s"]
