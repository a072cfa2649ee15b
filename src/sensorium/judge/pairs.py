"""Pictures and texts in one space: a quick look while they train, and what they are judged by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sensorium.data.pairs.prepare import Prepared
from sensorium.judge.score import Asked, Score, Trained
from sensorium.method import Method

LOOKED = 500  # test pairs of a look during training


def online(ready: Prepared) -> Callable[[Method], dict[str, float]]:
    """A quick look during training: recall at 1, both ways, among up to 500 held-out pairs."""
    from sensorium.judge.pair_scores import recall

    part = (ready.train if ready.test is None else ready.test).some(LOOKED)

    def look(method: Any) -> dict[str, float]:
        found = recall(method, part, next(method.parameters()).device)
        return {"r1": (found["image_to_text_r1"] + found["text_to_image_r1"]) / 2}

    return look


def judge(run: Trained, ready: Prepared, asked: Asked) -> dict[str, Any]:
    """Retrieval both ways beside chance, classification by names where there are classes, pictures of what is found."""
    from sensorium.judge import pair_scores

    return pair_scores.judge(run, ready)


def scores(found: dict[str, Any]) -> list[Score]:
    """Recall at 1 over both ways decides; then recall at 1, 5 and 10 each way, and zero-shot accuracy."""
    from sensorium.judge import pair_scores

    return pair_scores.scores(found)
