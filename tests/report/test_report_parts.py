"""Small parts of the report: markup, numbers, charts, curves, the terminal's table."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
import pytest
from rich.console import Console

from sensorium.report.charts import nice_ticks, spread_labels
from sensorium.report.curves import MAX_POINTS, read_losses
from sensorium.report.html import Html, count, duration, el, memory, percent, short
from sensorium.report.table import results_table


def test_losses_are_thinned_and_bad_rows_left_out(tmp_path):
    (tmp_path / "mae").mkdir()
    rows = [f"{step},{step / 2},{256 * step},{1 / (step + 1):.6f}" for step in range(5000)]
    (tmp_path / "mae" / "metrics.csv").write_text("step,seconds,images,loss\n" + "\n".join(rows) + "\n5000,1,1,nan\n50")
    found = read_losses(tmp_path, "mae")
    assert len(found) == MAX_POINTS
    assert found[0][2] == pytest.approx(np.mean([1 / (i + 1) for i in range(10)]), rel=1e-5)
    assert found[-1][0] == 4999
    assert read_losses(tmp_path, "../mae") == []
    assert read_losses(tmp_path, "dino") == []


def test_markup_escapes_by_default():
    assert el("p", "<b>", Html("<i>"), title='"<') == '<p title="&quot;&lt;">&lt;b&gt;<i></p>'
    assert el("p", None, False, ["a", ["<"]], cls="c", hidden=True, data_x=None) == '<p class="c" hidden>a&lt;</p>'
    assert el("img", src="x") == '<img src="x">'


@pytest.mark.parametrize(
    "said, wanted",
    [
        (percent(0.5412), "54.1 %"),
        (percent(math.nan), "–"),
        (duration(600), "10 min"),
        (duration(605.2), "10 min 5 s"),
        (duration(59.7), "1 min"),
        (duration(7380), "2 h 3 min"),
        (duration(0.25), "0.25 s"),
        (memory(1234), "1.23 GB"),
        (short(2_787_264), "2.79 M"),
        (short(999_900), "1 M"),
        (count(12345.6), "12,346"),
        (count(61.32), "61.3"),
        (count(True), "–"),
    ],
)
def test_numbers_as_people_read_them(said, wanted):
    assert said == wanted


def test_ticks_and_labels():
    assert nice_ticks(0.2, 0.8, 6) == [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    assert nice_ticks(3, 3) == [3]
    placed = spread_labels([50, 52, 51, 10], 15, 0, 100)
    ordered = [placed[i] for i in (3, 0, 2, 1)]
    assert all(b - a >= 15 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert min(placed) >= 0
    assert max(placed) <= 100


def test_the_terminal_has_the_same_numbers(made):
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(results_table(made[0]))
    said = console.export_text()
    for number in ("56.1", "43.1 ±1.1", "74.2", "1.18 GB", "raw pixels"):
        assert number in said
