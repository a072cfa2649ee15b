import time

import pytest

import sensorium
from sensorium.errors import SensoriumError
from sensorium.training.budget import Budget, Clock


@pytest.mark.parametrize(
    "text, kind, amount",
    [
        ("10m", "seconds", 600),
        ("90s", "seconds", 90),
        ("2h", "seconds", 7200),
        ("1.5h", "seconds", 5400),
        ("500steps", "steps", 500),
        ("1step", "steps", 1),
        ("100_000images", "images", 100_000),
        ("1000000tokens", "tokens", 1_000_000),
        ("20 epochs", "epochs", 20),
        ("0.5epochs", "epochs", 0.5),
    ],
)
def test_parse(text, kind, amount):
    assert Budget.parse(text) == Budget(kind, amount)
    assert Budget.parse(str(Budget.parse(text))) == Budget(kind, amount)


@pytest.mark.parametrize(
    "text, says",
    [
        ("10", "no unit"),
        ("ten", "not a number"),
        ("5parsecs", "parsecs"),
        ("0m", "more than zero"),
        ("1.5steps", "whole"),
    ],
)
def test_errors_teach(text, says):
    with pytest.raises(SensoriumError, match=says):
        Budget.parse(text)


def test_what_it_pays_for():
    data = {"batch": 64, "data": 1000}
    assert Budget.parse("500steps").steps(**data) == 500
    assert Budget.parse("1000images").steps(**data) == 16  # 15.6
    assert Budget.parse("2epochs").steps(**data) == 32  # 31.25
    assert Budget.parse("1m").steps(**data) is None
    assert Budget.parse("1m").spent(steps=3, seconds=15, **data) == 0.25
    assert Budget.parse("8steps").spent(steps=2, seconds=1e6, **data) == 0.25
    assert Budget.parse("1000images").spent(steps=16, seconds=0, **data) == 1
    assert Budget.parse("1000images").spent(steps=15, seconds=0, **data) < 1


def test_it_counts_in_the_unit_of_the_data():
    for text in ("1m", "3steps", "2epochs", "100tokens"):
        assert Budget.parse(text).of("tokens") == Budget.parse(text)
    with pytest.raises(
        SensoriumError, match="budget '100images' counts images, these data are tokens: write 100tokens"
    ):
        Budget.parse("100images").of("tokens")


def test_the_clock_counts_training_only():
    clock = Clock(100.0)
    time.sleep(0.02)
    assert clock.elapsed == 100.0
    clock.start()
    time.sleep(0.02)
    with clock.paused():
        before = clock.elapsed
        time.sleep(0.05)
        assert clock.elapsed == before
    clock.stop()
    assert 100.02 <= clock.elapsed < 100.05


@pytest.mark.parametrize("budget, says", [("10tokens", "write 10images"), ("5parsecs", "parsecs")])
def test_a_budget_that_does_not_fit_is_refused_before_anything_is_written(budget, says, tmp_path):
    with pytest.raises(SensoriumError, match=says):
        sensorium.train("mae", data="digits", budget=budget, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SensoriumError, match=says):
        sensorium.compare(["mae", "simclr"], data="digits", budget=budget, out=tmp_path / "both", progress=False)
    assert not (tmp_path / "both" / "mae").exists()
