"""Text about a scene, from its layout: a caption, and questions with short answers.

The classes of a scene's objects differ, so "the cone" is never ambiguous; colors may repeat. Answers are balanced
where possible: "is there a ...?" is yes half of the time.
"""

from __future__ import annotations

import numpy as np

from sensorium.data.scenes.layout import CLASSES, COLOURS, GROUNDS, SURFACES, Layout

Array = np.ndarray
_HUES = tuple(COLOURS)
_NUMBERS = ("no", "one", "two", "three", "four")


def caption(layout: Layout, draws: Array) -> str:
    """One sentence about scene 0 of ``layout``, worded by ``draws`` (uniform in [0, 1), at least 4).

    Example: "a red ball left of a small blue cone on a striped ground".
    """
    around = _small(layout)
    surface = SURFACES[layout.surface[0, 0]]
    main = f"{surface} {_name(layout, 0)}" if surface != "plain" and draws[0] < 0.6 else _name(layout, 0)
    small = "small " if draws[1] < 0.7 else ""
    on = f"on {_a(GROUNDS[layout.ground[0]])} ground"
    if not around:
        return f"{_a(main)} {on}"
    nearest = min(around, key=lambda k: _distance(layout, 0, k))
    words = f"{_a(main)} {relation(layout, 0, nearest)} {_a(small + _name(layout, nearest))}"
    others = [_a(small + _name(layout, k)) for k in around if k != nearest]
    if others and draws[2] < 0.7:
        words += " with " + " and ".join(others)
    return f"{words} {on}"


def questions(layout: Layout, draws: Array) -> list[tuple[str, str]]:
    """Eight questions about scene 0 of ``layout`` with their answers, one to three words each; of an object alone seven."""
    around = _small(layout)
    seen = [0, *around]
    one = seen[int(draws[4] * len(seen))]
    hue = _HUES[layout.hue[0, one]] if draws[6] < 0.5 else _HUES[int(draws[7] * len(_HUES))]
    present = {CLASSES[layout.kind[0, k]] for k in seen}
    pool = [name for name in CLASSES if (name in present) == (draws[8] < 0.5)]
    asked = pool[int(draws[9] * len(pool))]
    count = sum(_HUES[layout.hue[0, k]] == hue for k in seen)
    surface = seen[int(draws[10] * len(seen))]
    where = []
    if around:
        other = around[int(draws[5] * len(around))]
        asking = f"where is the {_class(layout, other)} from the {_class(layout, 0)}?"
        where = [(asking, relation(layout, other, 0))]
    return [
        ("what is the largest object?", _class(layout, 0)),
        (f"what colour is the {_class(layout, one)}?", _HUES[layout.hue[0, one]]),
        ("how many objects are there?", _NUMBERS[len(seen)]),
        ("what is the ground like?", GROUNDS[layout.ground[0]]),
        (f"is there {_a(asked)}?", "yes" if asked in present else "no"),
        (f"how many objects are {hue}?", _NUMBERS[count]),
        *where,
        (f"what is on the {_class(layout, surface)}?", _MARKS[SURFACES[layout.surface[0, surface]]]),
    ]


_MARKS = {"plain": "nothing", "striped": "stripes", "spotted": "spots"}


def relation(layout: Layout, a: int, b: int) -> str:
    """The position of object ``a`` of scene 0 relative to ``b``, along the axis on which their centers differ more."""
    dx = float(layout.x[0, a] - layout.x[0, b])
    dy = float(layout.y[0, a] - layout.y[0, b])
    if abs(dx) >= abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def _small(layout: Layout) -> list[int]:
    return [k for k in range(1, layout.kind.shape[1]) if layout.present[0, k]]


def _class(layout: Layout, k: int) -> str:
    return CLASSES[layout.kind[0, k]]


def _name(layout: Layout, k: int) -> str:
    return f"{_HUES[layout.hue[0, k]]} {_class(layout, k)}"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _distance(layout: Layout, a: int, b: int) -> float:
    return float(np.hypot(layout.x[0, a] - layout.x[0, b], layout.y[0, a] - layout.y[0, b]))
