"""Label fractions: sizes, nesting, sharing, and errors that teach."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sensorium.errors import SensoriumError
from sensorium.metrics.subsets import parse_fractions, percent, stratified


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.floats(0.002, 1), st.integers(0, 9), st.integers(0, 5))
def test_each_class_keeps_its_share(counts, fraction, seed, unknown):
    labels = np.concatenate([np.full(n, c) for c, n in enumerate(counts)] + [np.full(unknown, -1)])
    np.random.default_rng(seed).shuffle(labels)
    if fraction * min(counts) < 0.5 - 1e-9:
        with pytest.raises(SensoriumError):
            stratified(labels, fraction, seed)
        return
    chosen = stratified(labels, fraction, seed)
    assert (np.diff(chosen) > 0).all()
    assert (labels[chosen] >= 0).all()
    for c, n in enumerate(counts):
        kept = int((labels[chosen] == c).sum())
        assert 1 <= kept <= n
        assert abs(kept - fraction * n) <= 0.5 + 1e-9
    assert np.array_equal(chosen, stratified(labels, fraction, seed))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 99), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_fraction_lies_inside_a_larger_one(seed, a, b):
    labels = np.random.default_rng(seed).integers(0, 3, 300)
    small, large = (set(stratified(labels, f, seed).tolist()) for f in sorted((a, b)))
    assert small <= large


def test_seeds_differ_and_all_labels_are_all_labels():
    labels = np.arange(200) % 4
    assert not np.array_equal(stratified(labels, 0.1, 0), stratified(labels, 0.1, 1))
    assert np.array_equal(stratified(labels, 1.0, 7), np.arange(200))


def test_one_class_does_not_move_the_others():
    labels = np.arange(300) % 3
    fewer = labels.copy()
    fewer[labels == 2] = -1
    both = stratified(labels, 0.1, 3)
    assert np.array_equal(both[labels[both] < 2], stratified(fewer, 0.1, 3))


def test_a_fraction_too_small_names_class_count_and_the_smallest_legal_one():
    labels = np.repeat([0, 1], [500, 12])
    with pytest.raises(SensoriumError, match=r"1% leaves no image of class 'owl' \(12 .*minimum fraction is 4.17%"):
        stratified(labels, 0.01, 0, classes=("cat", "owl"))
    legal = parse_fractions("4.17%")[0]
    assert (labels[stratified(labels, legal, 0)] == 1).sum() == 1


def test_no_labels_is_an_error():
    with pytest.raises(SensoriumError, match="No training image has a label"):
        stratified(np.full(9, -1), 0.5, 0)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01])
def test_a_fraction_outside_the_range_is_an_error(fraction):
    with pytest.raises(SensoriumError, match="outside"):
        stratified(np.zeros(9, int), fraction, 0)


def test_fractions_are_read():
    assert parse_fractions("1%,10%,100%") == (0.01, 0.1, 1.0)
    assert parse_fractions(" 100 %, 0.5%,0.07 ") == (0.005, 0.07, 1.0)
    assert parse_fractions("10%,10%") == (0.1,)
    assert [percent(f) for f in parse_fractions("0.25%,1%,7%,29%,100%")] == ["0.25%", "1%", "7%", "29%", "100%"]


@pytest.mark.parametrize(
    "text, said",
    [("", "empty"), ("1%,", "empty"), ("ten", "'ten'"), ("10", "write 10%"), ("0%", "outside"), ("101%", "outside"),
     ("-1%", "outside"), ("nan", "outside"), ("inf%", "outside")],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_an_example(text, said):
    with pytest.raises(SensoriumError, match=said) as error:
        parse_fractions(text)
    assert "%" in str(error.value)
    assert "\n" not in str(error.value)
