"""Comparisons that are decided by one score: the table, the curves, the price, the page."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sensorium.judge.score import Score
from sensorium.report.page import write_report
from sensorium.report.table import results_table
from sensorium.runs.results import Data, Request, Results, RunResult
from sensorium.runs.verdict import decide


def run(name: str, value: float, **more: Any) -> RunResult:
    score = Score("bits per byte", value, "lower", 1000, "held-out bytes", {"unigram": 3.0}, curve="bits")
    curve = tuple({"step": i, "seconds": 10.0 * i, "seen": 100.0 * i, "bits": value + 2 / (i + 1)} for i in range(5))
    return replace(RunResult(name, name, scores=(score,), curve=curve, seconds=40.0), **more)


def results(*runs: RunResult) -> Results:
    verdict = decide(runs)
    data = Data("book.txt", "text", 9000, 1000, unit="tokens")
    return Results(2, data, runs, Request("40s"), verdict.winner, verdict.said)


def test_the_page_and_the_terminal_show_it_all(tmp_path: Path) -> None:
    timed = []
    for one, delay in ((run("a", 2.5), 0.5), (run("b", 2.0), 1.5)):
        wait = Score("delay, s", delay, "lower", 10, "actions", price=True)
        timed.append(replace(one, scores=(*one.scores, wait)))
    lost = RunResult("c", "c", "failed", error="no <memory>")
    found = results(*timed, lost)
    page = write_report(found, tmp_path).read_text()
    for word in ("bits per byte", "unigram", "by tokens seen", "What it costs", "delay, s", "no &lt;memory&gt;"):
        assert word in page
    assert "training images" not in page
    assert "kNN" not in page
    table = results_table(found)
    assert [str(column.header) for column in table.columns][:3] == ["run", "bits per byte", "delay, s"]


def test_a_system_of_two_abilities_has_the_scores_of_both(tmp_path: Path) -> None:
    both = run("a", 2.5)
    both = replace(
        both, scores=(*both.scores, Score("R@1", 0.25, "higher", 40, "pictures", {"chance": 0.02}, share=True))
    )
    page = write_report(results(both, run("b", 2.0)), tmp_path).read_text()
    assert "R@1" in page
    assert "25.0" in page
    assert "chance" in page
