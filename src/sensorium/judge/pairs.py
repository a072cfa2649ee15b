"""Images and texts in one space: retrieval both ways with chance level, zero-shot classification."""

from __future__ import annotations

from typing import Any

from sensorium.abilities import ImageText
from sensorium.data.pairs.prepare import Prepared
from sensorium.judge.evaluator import Evaluator
from sensorium.judge.pair_scores import judge, recall

LOOKED = 500  # test pairs of an online evaluation


def online(method: Any, ready: Prepared) -> dict[str, float]:
    """Recall at 1, both ways, among up to 500 held-out pairs."""
    part = (ready.train if ready.test is None else ready.test).some(LOOKED)
    found = recall(method, part, next(method.parameters()).device)
    return {"r1": (found["image_to_text_r1"] + found["text_to_image_r1"]) / 2}


EVALUATOR = Evaluator(
    name="retrieval", ability=ImageText, needs=frozenset({"image", "tokens"}), judge=judge, online=online
)
