"""Runs whose files are changed at random: opening one returns, or raises SensoriumError of one line.

``SEEDS`` write a small finished run below a folder; ``READ`` are the ways in which its files are read, and ``OPEN`` does
them all. ``mutate`` changes
``run.json`` or another of its JSON files in ways that a person, a disk or a stranger might.
"""

from __future__ import annotations

import atexit
import copy
import json
import random
import shutil
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

import sensorium
from sensorium.base.records import encode as encode_record
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import VERSION, read_judgement, read_outcomes
from sensorium.judge.score import Score
from sensorium.runs.results import Data, Results, RunResult, read_results, write_results
from sensorium.runs.run import Run

TINY: dict[str, dict[str, Any]] = {
    "simclr": {"data": "digits", "limit": 40},
    "causal_lm": {"data": "TEXT", "width": 16, "depth": 2, "heads": 2, "length": 12},
    "fcos": {"data": "scenes:16", "image_size": 64, "width": 16, "convs": 1},
    "clip": {"data": "scenes:16", "image_size": 32, "text_width": 32, "text_depth": 1, "embed_dim": 16},
    "oadtr": {"data": "scenes:16", "width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "length": 6, "future": 2},
    "vqgan": {"data": "digits", "limit": 40, "codes": 16, "code_width": 8, "discriminator_width": 8,
              "discriminator_depth": 1},
}  # fmt: skip
JSON = ("run.json", "outcome.json", "evaluation.json", "results.json")
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**9, 10**30, 2**63, -(2**70), 1e308, float("nan"), float("inf"), "", "x", "../..", "\ud800",
    "a\nb", "\0", "x" * 5000, "/dev/zero", "/etc/passwd", "pydoc:pipepager", "run/net.py:f", "simclr", "made", [], {},
    [1, 2], ["a"] * 3, {"value": 1}, {"value": {"value": []}, "source": 3}, [[[]]],
)  # fmt: skip


@cache
def _made(system: str) -> Path:
    """A finished run of one step, with an evaluation and the results of a comparison beside it."""
    home = Path(tempfile.mkdtemp(prefix="fuzz-opening-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    settings = dict(TINY[system])
    data = settings.pop("data")
    if data == "TEXT":
        data = str(home / "book.txt")
        Path(data).write_text("The cat sat on the mat, and the tired dog sat on it. " * 40, encoding="utf-8")
    run = sensorium.train(
        system, data, budget="1steps", batch_size=8, out=home / "run", progress=False, seed=3, **settings
    )
    score = Score("kNN", 0.5, "higher", 4, "test images", baselines={"raw pixels": 0.4}, error=0.1, share=True)
    found = {"version": VERSION, "data": "", "details": {"features": {"knn": {"top1": 0.5}}}}
    found |= {"scores": [encode_record(score)], "neighbors": [{"query": 0, "found": [1, 2]}]}
    found |= {"map": {"x": [0.0, 1.0], "y": [0.0, None], "label": [0, 1], "index": [0, 1]}}
    (run.folder / "evaluation.json").write_text(json.dumps(found))
    np.savez(run.folder / "outcomes.npz", kNN=np.array([True, False, True, True]))
    write_results(Results(2, Data("digits"), (RunResult("a", "simclr", scores=(score,)),)), run.folder)
    return run.folder


def _copy(system: str, below: Path) -> Path:
    target = below / system
    shutil.copytree(_made(system), target)
    return target


READ: dict[str, Callable[[Path], object]] = {
    "method": lambda path: Run(path).method,
    "outcome": lambda path: Run(path).outcome,
    "evaluation": read_judgement,
    "outcomes": read_outcomes,
    "results": read_results,
}


def _read_all(run: Path) -> None:
    """Read every file of a run, and raise the first error."""
    errors = []
    for read in READ.values():
        try:
            read(run)
        except SensoriumError as error:
            errors.append(error)
    if errors:
        raise errors[0]


SEEDS: dict[str, Callable[[Path], Path]] = {f"run-{system}": partial(_copy, system) for system in TINY}
OPEN: dict[str, Callable[[Path], object]] = dict.fromkeys(SEEDS, _read_all)


def mutate(run: Path, rng: random.Random, file: str = "") -> str:
    """Change one JSON file of a run, and say how: bytes, or a value replaced, removed, moved or added."""
    path = run / (file or rng.choice(JSON))
    try:
        whole = json.loads(path.read_text("utf-8"))
        places = list(_places(whole))
    except (ValueError, RecursionError):
        places = []
    if not places or rng.random() < 0.15:
        content = bytearray(path.read_bytes() or b"{}")
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        if rng.random() < 0.3:
            del content[rng.randrange(len(content)) :]
        path.write_bytes(content)
        return f"{path.name}: bytes"
    inside, key = rng.choice(places)
    what = rng.choice(("replace", "replace", "replace", "remove", "swap", "scale", "add", "deep"))
    if what == "remove":
        inside.pop(key)
    elif what == "swap":
        other, name = rng.choice(places)
        inside[key] = copy.deepcopy(other[name])
    elif what == "scale" and isinstance(inside[key], int | float):
        inside[key] = inside[key] * rng.choice((-1, 0, 2, 1000, 10**12)) + rng.choice((0, 1, 0.5))
    elif what == "add" and isinstance(inside, dict):
        inside[rng.choice(("x", "width", "path", "__class__", "a\nb"))] = rng.choice(ODD)
    elif what == "deep":
        inside[key] = json.loads('{"a":' * 200 + "1" + "}" * 200)
    else:
        inside[key] = copy.deepcopy(rng.choice(ODD))
    try:
        path.write_text(json.dumps(whole))
    except ValueError:  # it holds itself after a swap
        path.write_text("{}")
    return f"{path.name}: {what} {key}"


def _places(value: Any) -> Any:
    """Every (container, key) of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)
