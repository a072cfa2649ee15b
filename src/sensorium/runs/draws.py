"""Settings drawn for a search: each method with its defaults, and again with values from the ranges of its recipe.

Random search finds better settings than a grid of as many runs, because usually few of them matter, and each run tries
another value of these (Bergstra & Bengio, 2012). The values depend on the seed, on the method and on the data and machine that
its defaults depend on: the same search draws the same, and one with more settings draws those and more.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from sensorium.catalogue import allow
from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.recipe.ranges import Range, ranges_of
from sensorium.recipe.trained import make_recipe
from sensorium.runs.compare import parse_method
from sensorium.runs.options import RunOptions

_ELSEWHERE = ("out", "quiet", "trust", "track", "fresh")  # options that change nothing of what is trained


@dataclass(frozen=True)
class Entry:
    """A method of a search, as a comparison takes it, and of each setting that was drawn its default."""

    method: str
    usual: dict[str, Any] = field(default_factory=dict)

    @property
    def drawn(self) -> dict[str, Any]:
        """The values that were drawn."""
        settings = parse_method(self.method)[1]
        return {name: settings[name] for name in self.usual}


def settings_of(method: str, backbone: str | None) -> dict[str, Any]:
    """What the user gave of a method's settings; ``backbone``: for every method."""
    given = parse_method(method)[1]
    return given if backbone is None else {"backbone": backbone, **given}


def open_ranges(method: str, backbone: str | None) -> dict[str, Range]:
    """The ranges of a method's recipe, without those of settings that the user gave."""
    given = settings_of(method, backbone)
    return {name: one for name, one in ranges_of(parse_method(method)[0]).items() if given.get(name) is None}


def entries(methods: Sequence[str], count: int, options: RunOptions, cache: Path, backbone: str | None) -> list[Entry]:
    """Each method as it is given, followed by ``count`` - 1 with drawn settings if its recipe declares ranges. The data are
    prepared in ``cache`` for the defaults. Raises SensoriumError if a recipe declares what isn't one of its settings."""
    found, ready = [], {}
    for recipe in options.trust:
        allow(recipe)
    for method in methods:
        found.append(Entry(method))
        ranges = open_ranges(method, backbone) if count > 1 else {}
        if ranges:
            usual = _usual(method, ranges, options, cache, backbone, ready)
            found += drawn(method, ranges, usual, count - 1, options.seed)
    return found


def drawn(method: str, ranges: dict[str, Range], usual: dict[str, Any], count: int, seed: int) -> list[Entry]:
    """``count`` times ``method`` with a value from each of ``ranges``; ``usual``: the defaults."""
    draw = random.Random(f"{seed} {method}")
    found = []
    for _ in range(count):
        values = {name: one.at(draw.random(), usual[name]) for name, one in ranges.items()}
        found.append(Entry(",".join([method, *(f"{name}={value}" for name, value in values.items())]), usual))
    return found


def _usual(
    method: str, ranges: dict[str, Range], options: RunOptions, cache: Path, backbone: str | None, ready: dict[str, Any]
) -> dict[str, Any]:
    """The default that the recipe picks for each setting with a range, on these data; ``ready``: data prepared before."""
    name, given = parse_method(method)[0], settings_of(method, backbone)
    allow(name)  # the user named it
    wing = kind(kind_name(name))
    key = repr([kind_name(name), *(given.get(one) for one in wing.SHAPED_BY)])
    if key not in ready:
        ready[key] = prepared(method, options, cache, backbone)
    settings = make_recipe(name, wing.situate(ready[key]), given).settings
    for one in ranges:
        if one not in settings:
            raise SensoriumError(
                f"{name}: its RANGES name '{one}', which isn't among the settings that its recipe records."
            )
    return {one: settings[one].value for one in ranges}


def prepared(method: str, options: RunOptions, cache: Path, backbone: str | None) -> Any:
    """The data as a method needs them."""
    name, given = parse_method(method)[0], settings_of(method, backbone)
    allow(name)  # the user named it
    source = Source(options.data, options.test, cache, options.image_size, options.limit, given)
    return kind(kind_name(name)).prepare(source, progress=not options.quiet)


def train_command(entry: Entry, options: RunOptions, seconds: float, backbone: str | None) -> str:
    """The command that trains an entry in one go, for as long as it was trained in all."""
    name, plain = parse_method(entry.method)[0], RunOptions(data=options.data)
    asked = {one.name: getattr(options, one.name) for one in fields(options) if one.name not in _ELSEWHERE}
    asked = {key: value for key, value in asked.items() if value != getattr(plain, key)}
    values = {**settings_of(entry.method, backbone), "data": options.data, **asked, "budget": f"{seconds:.0f}s"}
    words = ["sensorium", "train", *(["--recipe", name] if ":" in name else [name])]
    for key, value in values.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)
