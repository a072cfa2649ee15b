"""The baselines of encoders, once for all runs of a comparison: raw pixels, the majority class, and for each network its
random weights and training from scratch. Saved in ``baselines.json``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sensorium.base.files import write_json
from sensorium.base.precision import device_name
from sensorium.base.reading import read_object
from sensorium.base.terminal import Stage, stages
from sensorium.errors import SensoriumError
from sensorium.judge import baselines
from sensorium.judge.evaluator import Beside
from sensorium.judge.feature_scores import (
    HEAD,
    NEAR,
    WAYS,
    backbone_of,
    deciding,
    deciding_share,
    fractions_of,
    judgeable,
    labels_in,
    seen,
    settled,
    tuning_of,
)
from sensorium.judge.score import Asked, share_error
from sensorium.metrics.subsets import percent


def judge_all(ready: Any, fresh: Mapping[str, Callable[[], Any]], folder: Path, asked: Asked) -> Beside:
    """Raw pixels, majority class, and for each network its random weights and training from scratch on the same labels.

    ``fresh``: untrained methods by the name of their network. Saved in ``folder/baselines.json``.
    """
    ready = seen(ready)
    asked = settled(asked, ready)
    if not judgeable(ready):
        return {}
    assert ready.test is not None
    path = folder / "baselines.json"
    found: dict[str, Any] = {}
    with suppress(SensoriumError):  # damaged: made again
        found = read_object(path) if path.is_file() else {}
    key = asked.key() | {"scores": list(NEAR)}  # of another version: all made again
    if found.get("asked") != key:
        found = {"asked": key, "random": {}, "scratch": {}}
    with stages("baselines", asked.progress) as say:
        _all(found, ready, fresh, path, asked, say)
    return _beside(found, percent(deciding_share(asked)))


def _all(
    found: dict[str, Any], ready: Any, fresh: Mapping[str, Callable[[], Any]], path: Path, asked: Asked, say: Stage
) -> None:
    """Complete what was ``found``, saving each."""
    spans = {"fractions": fractions_of(asked), "seeds": tuple(range(asked.label_seeds))}
    if "pixels" not in found:
        say("raw pixels")
        found["pixels"] = baselines.pixels(ready.train, ready.test, **spans)
        found["majority"] = baselines.majority(labels_in(ready.train), labels_in(ready.test))
        write_json(path, found)
    for name, make in fresh.items():
        begun = time.monotonic()
        build = partial(_fresh, make)
        if name not in found["random"]:
            say(f"random {name}")
            found["random"][name] = baselines.random_network(
                build, ready.train, ready.test, **spans, device=device_name()
            )
            write_json(path, found)
        if asked.finetune and name not in found["scratch"]:
            say(f"{name} from scratch")
            found["scratch"][name] = baselines.scratch(
                build, ready.train, ready.test, **spans, **tuning_of(ready, asked, begun), first=deciding_share(asked)
            )
            write_json(path, found)


def _fresh(make: Callable[[], Any]) -> Any:
    return backbone_of(make())


def _beside(found: dict[str, Any], decides: str) -> Beside:
    """Baselines by title and by the name of their score; ``decides``: the fraction that does."""
    shares = list(found["pixels"]["linear"])

    def named(way: str, scores: dict[str, Any], near: dict[str, Any] | None = None) -> dict[str, Any]:
        rows = {f"{way}, {share}": _valued(one) for share, one in scores.items()}
        rows |= {deciding(decides): _valued(scores[decides])} if decides in scores else {}
        rows |= {HEAD: _valued(scores["100%"])} if "100%" in scores else {}
        return rows | ({} if near is None else {title: _valued(near[piece]) for piece, title in NEAR.items()})

    every = [*NEAR.values(), HEAD, deciding(decides), *(f"{way}, {share}" for way, _, _ in WAYS for share in shares)]
    beside: Beside = {"most frequent class": dict.fromkeys(every, _valued(found["majority"]))}
    simple = {"raw pixels": found["pixels"], **{f"random {name}": one for name, one in found["random"].items()}}
    beside |= {title: named("linear", one["linear"], one) for title, one in simple.items()}
    for name, one in found["random"].items():
        beside[f"random {name}"]["RankMe"] = (one["rankme"], None)
    return beside | {f"{name} from scratch": named("fine-tuned", one) for name, one in found["scratch"].items()}


def _valued(one: dict[str, Any]) -> tuple[float, float]:
    return one["top1"], share_error(one["top1"], one["n"], one.get("std", 0.0), len(one.get("seeds", (0,))))
