"""The ranges that recipes declare: of their own settings, the default inside, and every bound builds, on any machine."""

import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorium.catalogue import find, systems
from sensorium.data.images.prepare import Situation
from sensorium.data.streams.prepare import StreamSituation
from sensorium.data.text.prepare import TextSituation
from sensorium.recipe.info import parameters
from sensorium.recipe.ranges import Choice, FromOne, Log, Range, Times, Uniform, ranges_of
from sensorium.recipe.trained import make_recipe, roles

GREY = (0.5, 0.5, 0.5)
DECLARED = [system.name for system in systems() if ranges_of(system.name)]
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)


def test_the_systems_that_are_tried_first_declare_ranges() -> None:
    assert {system.name for system in systems() if system.starter} <= set(DECLARED)
    assert {"byol", "vicreg", "moco_v2", "swav", "barlow_twins"} <= set(DECLARED)
    assert {"mae_streams", "cpc_streams", "mae_text", "cpc_text"} <= set(DECLARED)


def situations(kind: str, device: Any) -> list[Any]:
    """Small and large data of a kind."""
    if kind == "images":
        return [Situation(size, 20_000, ("a", "b"), GREY, GREY, device, 4) for size in (32, 224)]
    if kind == "text":
        return [TextSituation(vocab, length, 5_000, device, 4) for vocab, length in ((257, 128), (8000, 1024))]
    return [
        StreamSituation(
            width, ("a", "b"), frame, length, 0, 900, (0.0,) * width, (1.0,) * width, device=device, cores=4
        )
        for width, frame, length in ((42, 12, 32), (3, 1, 64), (200, 1, 64))
    ]


@pytest.mark.parametrize("system", DECLARED)
def test_names_are_settings(system: str) -> None:
    ranges = ranges_of(system)
    assert 2 <= len(ranges) <= 4  # more dimensions are not searched by a few draws
    assert set(ranges) <= set(parameters(system)) - set(roles(system))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("system", DECLARED)
def test_every_bound_builds(system: str, device: Any) -> None:
    for on in situations(find(system).data, device):
        with torch.device("meta"):
            settings = make_recipe(system, on, {}).settings
            for name, one in ranges_of(system).items():
                usual = settings[name].value
                values = [one.at(place, usual) for place in PLACES]
                assert usual in values if isinstance(one, Choice) else values[0] <= usual <= values[-1], name
                assert len(set(values)) > 1
                assert all(type(value) is type(usual) for value in values), name
                for value in (values[0], values[-1]):
                    made = make_recipe(system, on, {name: value}).settings[name]
                    assert (made.value, made.source) == (value, "given")


@pytest.mark.parametrize(
    "one, usual, low, middle, high",
    [
        (Uniform(0.2, 0.6), 0.5, 0.2, 0.4, 0.6),
        (Log(0.01, 1.0), 0.5, 0.01, 0.1, 1.0),
        (Times(1 / 4, 4), 2e-3, 5e-4, 2e-3, 8e-3),
        (Times(1 / 4, 4), 128, 32, 128, 512),
        (FromOne(1 / 4, 4), 0.98, 0.92, 0.98, 0.995),
        (FromOne(1 / 4, 4), 0.999, 0.996, 0.999, 0.99975),
        (Choice("a", "b", "c"), "a", "a", "b", "c"),
    ],
)
def test_values_by_place(one: Range, usual: Any, low: Any, middle: Any, high: Any) -> None:
    found = [one.at(place, usual) for place in (0.0, 0.5, 1.0)]
    assert found == [low, middle, high]


def test_draws_of_a_rate_are_even_in_its_logarithm() -> None:
    draw = random.Random(0)
    logs = [math.log(Times(1 / 8, 8).at(draw.random(), 1e-3) / 1e-3, 8) for _ in range(2000)]
    assert statistics.fmean(logs) == pytest.approx(0, abs=0.06)
    assert statistics.pstdev(logs) == pytest.approx(1 / math.sqrt(3), rel=0.05)


def test_a_recipe_of_ones_own_declares_them_too(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from sensorium.recipe.ranges import Times\nRANGES = {'lr': Times(1 / 2, 2)}\ndef mine(on, *, lr=1e-3):\n    pass\n"
    )
    assert ranges_of(f"{tmp_path / 'mine.py'}:mine") == {"lr": Times(1 / 2, 2)}
