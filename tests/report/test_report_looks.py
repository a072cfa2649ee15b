"""The report as people see it on wide and narrow windows, and its words: counts, units, ticks, commands."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sensorium.judge.score import Neighbors, Score, lines
from sensorium.report.charts import Axis, shortened, written_ticks
from sensorium.report.curves import lengths
from sensorium.report.details import take_away
from sensorium.report.html import memory, of
from sensorium.report.looks import Names, neighbors
from sensorium.report.page import write_report
from sensorium.report.pictures import Sheet
from sensorium.report.table import best_of, columns, results_table, samples, table
from sensorium.runs.results import AtLength, Data, Request, Results, RunResult

LONG = "causal_lm,width=64,depth=8,heads=4,length=128,batch_size=16,positions="
OUTSIDE = """() => [...document.querySelectorAll('body *')].filter(e => {
  const r = e.getBoundingClientRect();
  return r.width && r.height && !e.closest('.scroll') && !e.closest('nav') && !e.closest('#tip')
    && getComputedStyle(e).position !== 'absolute' && (r.left < -1 || r.right > innerWidth + 1);
}).map(e => `${e.tagName} ${e.textContent.slice(0, 40)} ${e.getBoundingClientRect().right}`)"""
LETTERS = """() => [...document.querySelectorAll('svg.chart')].filter(s => s.getBoundingClientRect().width).map(s =>
  parseFloat(getComputedStyle(s.querySelector('text')).fontSize) * s.getBoundingClientRect().width / s.viewBox.baseVal.width)"""
NAMES = """() => [...document.querySelectorAll('#table .scroll')].map(b => [b.clientWidth,
  Math.max(...[...b.querySelectorAll('th[scope=row]')].map(e => e.getBoundingClientRect().width))])"""


def text_results(**more: Any) -> Results:
    """Two language models with long names."""
    runs = []
    for name, bits, seconds in (("rope", 2.5, 60.02), ("none", 2.4, 60.31)):
        score = Score("bits per byte", bits, "lower", 6028, "held-out bytes", {"unigram": 4.4}, curve="bits")
        curve: tuple[dict[str, float | None], ...] = tuple(
            {"seconds": 6.0 * k, "seen": 2048.0 * k, "bits": 8 - 0.5 * k} for k in range(1, 11)
        )
        at = tuple(AtLength(n, bits + n / 1e6, 15000.0, 15.2) for n in (128, 256, 512))
        runs.append(
            RunResult(
                LONG + name, "causal_lm", seconds=seconds, unit="tokens", per_second=1e4, peak_memory_mb=900.0,
                scores=(score,), curve=curve, lengths=at, abilities=("LanguageModel",), exports=("hf",),
            )
        )  # fmt: skip
    return Results(2, Data("book.txt", train=1, test=2, unit="tokens (257 kinds)"), tuple(runs), Request("60s"), **more)


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("which", ["pictures", "text"])
def test_nothing_is_out_of_the_window(browser: Any, made: Any, tmp_path: Path, which: str, width: int) -> None:
    page = made[1] / "report.html" if which == "pictures" else write_report(text_results(), tmp_path)
    shown = browser.new_page(viewport={"width": width, "height": 900})
    try:
        shown.goto(page.as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        assert shown.evaluate(OUTSIDE) == []
        assert min(shown.evaluate(LETTERS)) > 9  # pixels of the letters of charts
        for box, names in shown.evaluate(NAMES):
            assert names < box - 150  # room for numbers beside the names, which stay where they are
    finally:
        shown.close()


def test_axes_have_two_ticks_or_none_and_labels_that_differ() -> None:
    close = written_ticks(Axis(7.70712, 7.70739, lambda v: f"{v:.3g}"), 5)
    assert len({label for _, label in close}) == len(close) >= 2
    one = written_ticks(Axis(15.0, 17.0, memory, log=True, ticks=[16.0]), 5)
    assert len(one) > 1
    assert all(label.endswith(" MB") for _, label in one)
    near = written_ticks(Axis(15.01, 15.02, memory), 5)
    assert len({label for _, label in near}) == len(near) > 1
    assert written_ticks(Axis(3.0, 3.0, str, ticks=[3.0]), 5) == []
    share = written_ticks(Axis(0.50001, 0.50002, lambda v: f"{100 * v:.1f} %", kind="percent"), 5)
    assert share[0][1].startswith("50.00")
    assert len({label for _, label in share}) == len(share)
    drawn = str(lengths(text_results()))
    assert drawn.count("<figure>") == 3
    single = replace(text_results(), runs=tuple(replace(r, lengths=r.lengths[:1]) for r in text_results().runs))
    assert lengths(single) is None  # one length is no curve


def test_long_names_lose_their_middle() -> None:
    assert shortened("abc", 5) == "abc"
    short = shortened(LONG + "rope", 30)
    assert len(short) == 30
    assert short.endswith("=rope")


def test_neighbors_are_counted_as_they_are_shown() -> None:
    """48 are shown, and of three the labels are known."""
    train = SimpleNamespace(images=np.zeros((20, 3, 8, 8), np.uint8), labels=np.array([1] * 3 + [-1] * 17), classes=())
    test = SimpleNamespace(images=np.zeros((6, 3, 8, 8), np.uint8), labels=np.array([0] + [-1] * 5), classes=())
    run = RunResult("a", "a", neighbors=tuple(Neighbors(q, tuple(range(8))) for q in range(6)))
    results = Results(2, Data("x"), (run,))
    pixels = {"train": train, "test": test}
    said = str(neighbors(results, Sheet("near", pixels, size=8, limit=90), Names(results, pixels)))
    assert "0 % of the 3 neighbors whose label is known, of the 48 neighbors shown," in said
    train.labels[:] = 0
    test.labels[:] = 0
    said = str(neighbors(results, Sheet("near", pixels, size=8, limit=90), Names(results, pixels)))
    assert "100 % of the 48 neighbors shown share" in said


def test_bold_is_where_values_differ() -> None:
    results = text_results()
    bold = {c.title: best_of(c, results.runs) for c in columns(results)}
    assert bold["time"] is None  # it was the budget of all
    assert bold["memory"] is None
    assert bold["bits per byte"] == 2.4
    assert "tokens/s" in bold
    steps = replace(results, asked=Request("500steps"))
    assert {c.title: best_of(c, steps.runs) for c in columns(steps)}["time"] is None  # both read 1 min
    slow = replace(results.runs[0], seconds=90.0)
    steps = replace(steps, runs=(slow, results.runs[1]))
    assert {c.title: best_of(c, steps.runs) for c in columns(steps)}["time"] == 60.31
    equal = replace(results.runs[0], scores=(replace(results.runs[0].scores[0], value=2.40000001),))
    page = str(table(replace(results, runs=(equal, *results.runs[1:])), {run.name: "red" for run in results.runs}))
    assert "<b>" not in page


def test_units_by_kind_and_words_that_agree(tmp_path: Path) -> None:
    assert samples(text_results()) == "tokens"
    assert samples(Results(2, Data("x"), (RunResult("a", "a"),))) == "images"
    assert of(1, "tokens (257 kinds)") == "1 token (257 kinds)"
    assert of(1, "training frames of 0.125 s") == "1 training frame of 0.125 s"
    assert of(2, "training frames of 0.125 s") == "2 training frames of 0.125 s"
    assert [of(1, one) for one in ("test images", "classes", "boxes", "copies")] == [
        "1 test image", "1 class", "1 box", "1 copy",
    ]  # fmt: skip
    page = write_report(text_results(), tmp_path).read_text(encoding="utf-8")
    said = re.sub(r"<[^>]+>", " ", page.partition("<body>")[2])
    assert "1 training token (257 kinds)" in said
    assert "images" not in said.replace("test images", "").partition("How it was measured")[0]
    assert not re.search(r"\b1 (settings|classes|images|bytes|tokens)\b", said)


def test_one_subset_has_no_spread() -> None:
    one = Score("linear, 100%", 0.5, "higher", 400, "test images", error=0.0, share=True, at=1.0, labels=9, spread=0.0)
    assert "+-" not in lines([one])
    results = Results(2, Data("x"), (RunResult("a", "a", scores=(replace(one, group="Linear probe"),)),))
    shown = str(table(results, {"a": "red"}))
    assert "±" not in shown
    assert "one subset" in shown.lower()
    assert "spread" not in str(results_table(results).title)
    three = replace(one, subsets=3, spread=0.02)
    assert "+- 2.0" in lines([three])
    seeded = replace(three, seeds=(0.4, 0.6), error=0.1, group="Linear probe")
    shown = str(table(Results(2, Data("x"), (RunResult("a", "a", scores=(seeded,)),)), {"a": "red"}))
    assert "±\u202f10.0" in shown
    assert "± is the standard error over the seeds." in shown
    rank = Score("RankMe", 89.7, "higher", 1, "run", error=0.650213, seeds=(89.0, 90.4), decides=False)
    shown = str(table(Results(2, Data("x"), (RunResult("a", "a", scores=(rank,)),)), {"a": "red"}))
    assert "89.7" in shown
    assert "±\u202f0.65<" in shown


def test_commands_use_the_best_run(tmp_path: Path) -> None:
    results = text_results()  # no winner is given
    assert f"{LONG}none" in str(take_away(results, tmp_path))
    assert f"{LONG}rope" not in str(take_away(results, tmp_path))
    seeds = [replace(r, scores=(replace(r.scores[0], seeds=(2.6, 2.2)),)) for r in results.runs]
    varied = replace(results, runs=tuple(seeds), asked=Request("60s", vary="positions=rope,none", seeds=(4, 5)))
    assert f"{tmp_path}/seed-5/{LONG}none" in str(take_away(varied, tmp_path))
    lost = RunResult("a", "a", "failed", error="x")
    assert take_away(Results(2, Data("x"), (lost,)), tmp_path) is None
